"""One run of a learner: its settings, its folder under runs/, its loop, and the result that it ends with."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgce import processes
from pgce.choices import Activation, OptimizerName, Resume, Schedule, check_types
from pgce.disk import write_file
from pgce.flags import from_config, home_of, parse, program_of, value_of, words_of
from pgce.folders import Lock, differences, named, stamped
from pgce.outcomes import Several, refuse, train_each, train_or_exit
from pgce.records import MAY_CHANGE, STOPS, UNSHOWN, Record, read_json
from pgce.stops import Stops

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    from torch import nn

    from pgce.optimizer import Optimizer

__all__ = ["Learner", "Run", "main", "train_or_exit"]


_TELLS = "config.json", "versions.json", "command.txt", "attempts.json", "result.json"
"""Files in which an attempt tells what it is, and what came of it."""


Also = Callable[[int, Mapping[str, float]], object]
"""Called with every step at which numbers are logged, and the numbers by tag: another tracker, say."""


@dataclass(kw_only=True)
class Learner:
    """Settings that every learner has. Each field is a flag of the script and an argument in Python.

    Example:
        >>> from pgce.agents import Supervised
        >>> Supervised(seed=3, hidden_sizes=(32, 32), track=False).command()
        'python -m pgce.agents.supervised --seed 3 --hidden-sizes 32 32 --no-track'
    """

    seed: int = 1
    """Seed of the network, the environments or the order of examples, and the actions."""
    device: str = "auto"
    """Where to compute: auto (the first at hand of cuda, mps, cpu), or one of them."""
    process_timeout: float = 120.0
    """Seconds that processes started by torchrun wait for each other before the job ends."""
    threads: int = 1
    """CPU threads of torch and NumPy. One is fastest for small networks, and a seed then gives the same run
    on machines with more cores."""
    optimizer: OptimizerName = "adam"
    """Optimizer by name."""
    learning_rate: float = 1e-3
    """Step size."""
    lr_schedule: Schedule = "constant"
    """How the learning rate falls over the run."""
    warmup_steps: int = 0
    """Updates over which the learning rate climbs to its full value."""
    max_grad_norm: float | None = None
    """Limit of the gradient's Euclidean norm."""
    weight_decay: float | None = None
    """Weight decay; None is the optimizer's own, 0.01 of adamw, else 0."""
    max_skips: int = 0
    """Updates in a row that may be left out since the gradient was not finite, before the run ends."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    """After each hidden layer."""
    runs_dir: str = "runs"
    """Folder in which the run gets a folder of its own."""
    run: str | None = None
    """Name of that folder. The same name again goes on from its last checkpoint."""
    resume: Resume = "auto"
    """With `run`: go on if there is a checkpoint; never, which refuses a folder that has one; or must, which
    refuses one without."""
    allow_change: tuple[str, ...] = ()
    """Settings, or versions, that may differ from those of the run that is resumed."""
    checkpoint_every: float = 60.0
    """Seconds of training between checkpoints; 0 is after every round."""
    track: bool = True
    """Write TensorBoard events, metrics.jsonl and pictures."""
    profile: bool = False
    """Write a trace of three rounds by torch's profiler into the folder trace/."""
    quiet: bool = False
    """Print nothing but errors."""
    json: bool = False
    """Print the result as one JSON object, on the last line of standard output."""

    def __post_init__(self) -> None:
        for name, value in [*vars(self).items()]:  # into what JSON and a command line have
            if isinstance(value, np.generic):
                setattr(self, name, value.item())
            elif isinstance(value, os.PathLike):
                setattr(self, name, os.fspath(value))
            elif isinstance(value, list):
                setattr(self, name, tuple(value))

    @property
    def learner(self) -> str:
        """Name of the learner, as its file is called."""
        return type(self).__name__.lower()

    @property
    def configuration(self) -> dict[str, Any]:
        """What a run's config.json holds: the settings, and before them whose they are."""
        return {"learner": self.learner, "class": home_of(type(self)), **dataclasses.asdict(self)}

    def command(self) -> str:
        """The command line that repeats this run: every setting that is not the default."""
        words = program_of(type(self))
        defaults = self.defaults()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == getattr(defaults, field.name):
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                told = words_of(value) if isinstance(value, dict) else map(str, values)
                words += [f"--{flag}", *told]
        return shlex.join(words)

    def defaults(self) -> Learner:
        """What the settings are if no flag is given but those that say on what to train."""
        return type(self)()

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer stack of these settings over the model's parameters."""
        from pgce.optimizer import Optimizer

        options: dict[str, Any] = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return Optimizer(
            model.parameters(),
            self.optimizer,
            learning_rate=self.learning_rate,
            schedule=self.lr_schedule,
            warmup_steps=self.warmup_steps,
            max_grad_norm=self.max_grad_norm,
            max_skips=self.max_skips,
            **options,
        )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, torch uses `threads` CPU threads, and what torchrun started is one group.

        Raises:
            ValueError: a setting is not of its type, or out of its range.
        """
        import torch

        self.check()
        processes.join(self.device, self.process_timeout)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
            processes.leave(together=True)
        finally:
            torch.set_num_threads(before)

    def check(self) -> None:
        """Refuse settings that are not of their type, or out of their range."""
        check_types(vars(self), type(self))
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{name} is a number: it is nan")
        self.at_least_one("threads")
        for name in ("seed", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is at least 0: it is {getattr(self, name)}")

    def at_least_one(self, *names: str) -> None:
        """Refuse settings of these names that are below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1: it is {getattr(self, name)}")


class Run:
    """One run of a learner: folder, logger, console, clock, checkpoints. Ends with a result.

    Attributes:
        path: the folder runs/{subject}__{learner}__{seed}__{time}, or the one that the setting `run` names.
        checkpoints: the one that the run goes on from, if it does, and those to come.
        attempt: how often the run was begun, this time included.
        spent: seconds that were spent on a part, by name: "collect", "log", and beside training "evaluate".
        result: what came of it, the same as `--json` prints; empty until the end.
        model: the trained model.

    Raises:
        ValueError: the folder is that of another run, or is not to be resumed.
    """

    def __init__(self, settings: Learner, subject: str, also: Also | None = None) -> None:
        from pgce.checkpoint import Checkpoints
        from pgce.logger import Logger

        alone = processes.rank() == 0  # with the files, and the word
        silent: dict[str, Any] = {} if alone else {"quiet": True, "json": False, "track": False}
        self.settings = settings = dataclasses.replace(settings, **silent)
        self.result: dict[str, Any] = {}
        self.model: Any = None
        self._seconds = 0.0
        self.spent: dict[str, float] = {}
        self._profiler: Any = None
        self._since: float | None = None
        self._stops = Stops()
        self._lock: Lock | None = None
        self._before: dict[str, bytes] = {}
        self.path, self.attempt = Path(), 1
        told: dict[str, Any] = {}
        try:
            if alone:
                self._begin(subject, also)
                told = {"path": str(self.path), "attempt": self.attempt}
        except BaseException as error:
            self._release()
            told = {"error": str(error)}
            raise
        finally:  # the others wait for it
            told = processes.share(told)
        if not alone:
            if "error" in told:
                raise ValueError(told["error"])
            self.path, self.attempt = Path(told["path"]), told["attempt"]
            self.checkpoints = Checkpoints(Path(os.devnull) / "none", settings.checkpoint_every)
            self.logger = Logger(None)
        self.checkpoints.final = settings.run is not None
        with self.or_released():
            self.checkpoints.together()

    def _begin(self, subject: str, also: Also | None) -> None:
        """Take the folder, look for a checkpoint in it, and write what the run is."""
        from pgce.logger import Logger

        settings = self.settings
        root = Path(settings.runs_dir)
        path = None if settings.run is None else named(root, settings.run)
        if settings.resume == "must" and (path is None or not (path / "checkpoints").exists()):
            told = "no run is named" if path is None else f"there is no checkpoint in {str(path)!r}"
            raise ValueError(f"resume is must, and {told}")
        self.path = path or stamped(root, f"{subject}__{settings.learner}__{settings.seed}")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path)
        attempts = self._resumed()
        self.attempt = len(attempts) + 1
        files = [self.path / name for name in _TELLS]
        self._before = {file.name: file.read_bytes() for file in files if file.exists()}
        self.write("config.json", settings.configuration)
        self.write("versions.json", _versions())
        (self.path / "command.txt").write_text(settings.command() + "\n")
        found = self.checkpoints.found
        began = -1 if found is None else found.step
        self.write("attempts.json", [*attempts, {"step": max(began, 0), "command": settings.command()}])
        config = dataclasses.asdict(settings)
        shown = {key: value for key, value in config.items() if key not in UNSHOWN}
        self.logger = Logger(self.path if settings.track else None, shown, began if attempts else None, also)
        if not attempts:
            rows = "".join(f"| {name} | {value} |\n" for name, value in shown.items())
            self.logger.text("run/settings", f"    {settings.command()}\n\n| setting | |\n|---|---|\n{rows}")

    def _resumed(self) -> list[Any]:
        """Find the checkpoint to go on from; earlier attempts."""
        from pgce.checkpoint import CheckpointError, Checkpoints

        settings, folder = self.settings, self.path / "checkpoints"
        attempts: list[Any] = read_json(self.path / "attempts.json", [])
        if settings.resume == "never" and attempts:
            raise ValueError(f"resume is never, and there is a run in {str(self.path)!r}")
        now = json.loads(json.dumps(settings.configuration))
        if not attempts:
            begun = read_json(self.path / "config.json", now)
            ours = isinstance(begun, dict) and differences(begun, now).keys() <= MAY_CHANGE
            if folder.exists() or not ours:  # one that was killed right after it began is
                raise ValueError(f"what is in {str(self.path)!r} is no run that can be resumed")
            self.checkpoints = Checkpoints(folder, settings.checkpoint_every)
            return []
        now |= _versions()
        older = {name: now.get(name) for name in ("class", "own_model")}  # which they do not tell
        config, versions = (read_json(self.path / name, {}) for name in ("config.json", "versions.json"))
        before = {**older, **config, **versions}
        found = {name: change for name, change in differences(before, now).items() if name not in MAY_CHANGE}
        if many := found.get("processes"):
            raise ValueError(
                f"a run is resumed by as many processes as it had; in {str(self.path)!r}: processes {many}"
            )
        refused = [f"{name} {change}" for name, change in found.items() if name not in settings.allow_change]
        if refused:
            raise ValueError(
                f"a run is resumed with its own settings; in {str(self.path)!r} differ: {'; '.join(refused)} "
                f"(--allow-change {' '.join(found)} permits it)"
            )
        try:
            self.checkpoints = Checkpoints(folder, settings.checkpoint_every)
        except CheckpointError as error:
            raise ValueError(f"no checkpoint in {str(folder)!r} can be resumed: {error}") from error
        if settings.resume == "must" and self.checkpoints.found is None:
            raise ValueError(f"resume is must, and there is no checkpoint in {str(self.path)!r}")
        return attempts

    @contextmanager
    def or_released(self) -> Iterator[None]:
        """Let go of the folder if what is inside fails."""
        try:
            yield
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def restored(self, seconds: float, spent: Mapping[str, float]) -> None:
        """Take up the clocks of the attempt before."""
        self._seconds, self.spent = seconds, dict(spent)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *exception: object) -> None:
        from pgce.checkpoint import CheckpointError

        self.logger.close()
        if kind is not None and issubclass(kind, CheckpointError):  # what is there is of other settings
            for name, content in self._before.items():
                write_file(self.path / name, content)
        self._stops.restore()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file into the run's folder."""
        if processes.rank() == 0:
            write_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def say(self, **facts: str) -> None:
        """Print facts, a line each, unless the run is quiet."""
        if not self.settings.quiet:
            for name, fact in facts.items():
                print(f"{name:>9}  {fact}", flush=True)

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def training(self, total: int, unit: str) -> Iterator[None]:
        """Count the time inside as training, show progress, and let a signal to stop end it cleanly.

        Args:
            total: where the bar ends.
            unit: what it counts.
        """
        from pgce.logger import Bar

        if processes.rank() == 0:
            (self.path / "result.json").unlink(missing_ok=True)  # of the attempt before
        with ExitStack() as stack:
            self.bar = stack.enter_context(Bar(total, unit, quiet=self.settings.quiet))
            self._stops.catch()
            if self.settings.profile and processes.rank() == 0:
                self._profiler = stack.enter_context(_profiler(self.path / "trace"))
            self._since = time.perf_counter()
            try:
                yield
            finally:
                self._seconds, self._since = self.seconds, None
                if self._stops.seen is None:  # else one of the same moment may still come, while all is saved
                    self._stops.restore()

    def ended_round(self) -> None:
        """Tell the profiler, if there is one, that a round has ended."""
        if self._profiler is not None:
            self._profiler.step()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside to what was `spent` on `name`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

    @property
    def interrupted(self) -> str:
        """Whether a signal to stop came while training: "interrupt" (Ctrl-C), "terminate", or else ""."""
        seen = processes.sum_of([number == self._stops.seen for number in STOPS.values()])
        return next((stop for stop, times in zip(STOPS, seen, strict=True) if times), "")

    @property
    def waited(self) -> float:
        """Seconds since a signal to stop came to this process while training; 0 if none did."""
        return self._stops.waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside, of evaluation, out of `training`."""
        self._seconds, self._since = self.seconds, None
        try:
            with self.part("evaluate"):
                yield
        finally:
            self._since = time.perf_counter()

    def finish(self, model: Any, result: Mapping[str, Any], summary: str) -> None:
        """Save the network and the result, and tell where to look.

        Args:
            model: a network; or an estimator, which whoever trained it has saved.
            result: what is told of the run, by name.
            summary: the same in a line.
        """
        from torch import nn

        from pgce.checkpoint import save_tensors

        self.model = model
        if self.spent:
            told = {"learn": self.seconds - sum(self.spent.get(name, 0.0) for name in ("collect", "log"))}
            result = {**result, "spent": {k: round(v, 3) for k, v in (self.spent | told).items()}}
        self.logger.close()
        if isinstance(model, nn.Module) and processes.rank() == 0:
            save_tensors(self.path / "model.safetensors", model.state_dict())
        self.result = {
            "run": str(self.path),
            "learner": self.settings.learner,
            "seed": self.settings.seed,
            "train_seconds": round(self.seconds, 3),
            **result,
            "dropped_events": self.logger.dropped,
            "failed_saves": self.checkpoints.failed,
        }
        self.write("result.json", self.result)
        if self.settings.track:
            self._draw()
        self.say(result=summary, model=str(self.path / "model.safetensors"))
        if self.settings.track:
            self.say(dashboard=shlex.join([*_tensorboard(), "--logdir", str(self.path)]))
        if self.settings.json:
            print(json.dumps(self.result) + "\n", end="", flush=True)  # at once: other runs write there too

    def _draw(self) -> None:
        """Write the learning curve as a picture, if there is one."""
        from PIL import Image

        from pgce.pictures import learning_curves

        try:
            record = Record.read(self.path)
            curve = record.curve()
        except ValueError:  # of the first round, no episode or epoch had ended
            return
        picture = learning_curves({record.subject: {record.learner: [curve]}})
        (self.path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).save(self.path / "pictures" / "learning_curve.png", optimize=True)


def main(
    learner: type[Any], description: str | None, words: Sequence[str] | None = None, prog: str | None = None
) -> None:
    """The command line of a learner: its settings as flags, then its run, or one a seed.

    Exits with 0; 130 after Ctrl-C and 143 after SIGTERM, with everything saved; 2 for a bad setting or
    environment, 70 for training that stopped being finite or an environment that failed, 74 for an
    input/output error, also of a checkpoint while training went on. Of several runs, the first that fails is
    the last.

    Args:
        learner: the dataclass of its settings.
        description: for `--help`.
        words: of the command line; those of this process if not given.
        prog: the program's name, for `--help`.
    """
    words = sys.argv[1:] if words is None else words
    flags: Any = dataclasses.make_dataclass(learner.__name__, [], bases=(learner, Several), kw_only=True)
    default = flags.from_words(words) if hasattr(flags, "from_words") else None
    config = value_of(words, "--config")
    if config is not None:
        try:
            default = flags(**vars(from_config(learner, config)))
        except (ValueError, OSError) as error:
            refuse(error)
    given = parse(flags, words, prog=prog, description=description, default=default)
    settings = learner(**{field.name: getattr(given, field.name) for field in dataclasses.fields(learner)})
    if given.seeds or given.jobs != 1:
        train_each(settings, given.seeds, given.jobs)
    else:
        train_or_exit(settings)


def _profiler(folder: Path) -> Any:
    """Torch's, which looks at rounds 4 to 6."""
    from torch import profiler

    return profiler.profile(
        schedule=profiler.schedule(wait=2, warmup=1, active=3, repeat=1),
        on_trace_ready=profiler.tensorboard_trace_handler(str(folder)),
        record_shapes=True,
    )


def _versions() -> dict[str, Any]:
    """What a run's numbers depend on beside its settings."""
    import torch

    versions: dict[str, Any] = {"python": sys.version.split()[0], "torch": str(torch.__version__)}
    versions["processes"] = processes.size()
    return versions | {package: version(package) for package in ("numpy", "gymnasium", "tensorboard")}


def _tensorboard() -> list[str]:
    """The words of the command to type: the one on the path, or the one of this environment."""
    beside = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    if found is not None and Path(found) == beside:
        return ["tensorboard"]
    return [os.path.relpath(beside)] if beside.exists() else [sys.executable, "-m", "tensorboard.main"]
