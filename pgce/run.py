"""One run of a learner: its settings, its folder under runs/, its loop, and the result that it ends with."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from pgce.choices import Activation, OptimizerName, Schedule

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    from torch import nn

    from pgce.optimizer import Optimizer

__all__ = ["Learner", "Run", "cpu_threads", "main", "train_or_exit"]


_SCORES = "eval_mean", "test_accuracy", "test_r2"
"""What a result is judged by: the first of these that it has."""


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
    threads: int = 1
    """CPU threads of torch. One is fastest for small networks, and a seed then gives the same run on machines
    with more cores."""
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
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    """After each hidden layer."""
    runs_dir: str = "runs"
    """Folder in which the run gets a folder of its own."""
    track: bool = True
    """Write TensorBoard events."""
    quiet: bool = False
    """Print nothing but errors."""
    json: bool = False
    """Print the result as one JSON object, on the last line of standard output."""

    @property
    def learner(self) -> str:
        """Name of the learner, as its file is called."""
        return type(self).__name__.lower()

    def command(self) -> str:
        """The command line that repeats this run: every setting that is not the default."""
        words = ["python", "-m", f"pgce.agents.{self.learner}"]
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
                if isinstance(value, dict):
                    values = tuple(word for pair in value.items() for word in pair)
                words += [f"--{flag}", *map(str, values)]
        return shlex.join(words)

    def defaults(self) -> Learner:
        """What the settings are if no flag is given but those that say on what to train."""
        return type(self)()

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """What the optimizer stack is made with, as `pgce.fit` names it."""
        return {
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "schedule": self.lr_schedule,
            "warmup_steps": self.warmup_steps,
            "max_grad_norm": self.max_grad_norm,
            **({} if self.weight_decay is None else {"weight_decay": self.weight_decay}),
        }

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer stack of these settings over the model's parameters."""
        from pgce.optimizer import Optimizer

        settings = self.optimizer_settings
        return Optimizer(model.parameters(), settings.pop("optimizer"), **settings)

    def at_least_one(self, *names: str) -> None:
        """Refuse settings of these names that are below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1: it is {getattr(self, name)}")


class Run:
    """One run of a learner: folder, logger, console, clock. Ends with a result.

    Attributes:
        path: the folder runs/{subject}__{learner}__{seed}__{time}.
        result: what came of it, the same as `--json` prints; empty until the end.
        model: the trained model.
    """

    def __init__(self, settings: Learner, subject: str, metrics: list[str]) -> None:
        import torch

        from pgce.logger import Logger

        self.settings = settings
        self.result: dict[str, Any] = {}
        self.model: Any = None
        self._seconds = 0.0
        self._since: float | None = None
        self._interrupt = threading.Event()
        subject = re.sub(r"[^A-Za-z0-9._-]", "-", subject)  # an id may hold a slash or a colon
        name = f"{subject}__{settings.learner}__{settings.seed}"
        self.path = _new_folder(Path(settings.runs_dir), name)
        config = dataclasses.asdict(settings)
        versions = {"python": sys.version.split()[0], "torch": str(torch.__version__)}
        versions |= {package: version(package) for package in ("numpy", "gymnasium", "tensorboard")}
        self.write("config.json", {"learner": settings.learner, **config})
        self.write("versions.json", versions)
        (self.path / "command.txt").write_text(settings.command() + "\n")
        shown = {key: value for key, value in config.items() if key not in ("json", "quiet", "runs_dir")}
        self.logger = Logger(self.path if settings.track else None, shown, metrics)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the run's folder."""
        from pgce.checkpoint import write_file

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
        """Count the time inside as training, show progress, and let Ctrl-C end it cleanly.

        Args:
            total: where the bar ends.
            unit: what it counts.
        """
        from pgce.logger import Bar

        with Bar(total, unit, quiet=self.settings.quiet) as self.bar, _interruptible(self._interrupt):
            self._since = time.perf_counter()
            try:
                yield
            finally:
                self._seconds, self._since = self.seconds, None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed while training."""
        return self._interrupt.is_set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside `training` out: evaluation, say."""
        self._seconds, self._since = self.seconds, None
        try:
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
        self.logger.close()
        if isinstance(model, nn.Module):
            save_tensors(self.path / "model.safetensors", model.state_dict())
        self.result = {
            "run": str(self.path),
            "learner": self.settings.learner,
            "seed": self.settings.seed,
            "train_seconds": round(self.seconds, 3),
            **result,
            "dropped_events": self.logger.dropped,
        }
        self.write("result.json", self.result)
        self.say(result=summary, model=str(self.path / "model.safetensors"))
        if self.settings.track:
            self.say(dashboard=f"{_tensorboard()} --logdir {self.path}")
        if self.settings.json:
            print(json.dumps(self.result), flush=True)


@dataclass(kw_only=True)
class _Several:
    """What the command line takes beside a learner's settings."""

    seeds: tuple[int, ...] = ()
    """Train with each of these seeds, in place of one, and tell the interquartile mean of what they reach."""
    jobs: int = 1
    """How many of those runs at once, each quietly in a process of its own."""


def main(learner: type[Any], description: str | None) -> None:
    """The command line of a learner: its settings as flags, then its run, or one a seed.

    Exits with 0; 130 after Ctrl-C; 2 for a bad setting or environment, 70 for training that stopped being
    finite, 74 for an input/output error. Of several runs, the first that fails is the last.
    """
    flags: Any = dataclasses.make_dataclass(learner.__name__, [], bases=(learner, _Several), kw_only=True)
    default = flags.from_words(sys.argv[1:]) if hasattr(flags, "from_words") else None
    given = tyro.cli(flags, description=description, default=default)
    settings = learner(**{field.name: getattr(given, field.name) for field in dataclasses.fields(learner)})
    if given.seeds or given.jobs != 1:
        _train_each(settings, given.seeds, given.jobs)
    else:
        train_or_exit(settings)


def train_or_exit(settings: Any) -> None:
    """Train, and turn the outcome into the process's exit code."""
    code, _ = _outcome(settings)
    if code:
        sys.exit(code)


def _outcome(settings: Any) -> tuple[int, dict[str, Any]]:
    """Train: the exit code, and the result."""
    try:
        run = settings.train()
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 70 if isinstance(error, FloatingPointError) else 74 if isinstance(error, OSError) else 2, {}
    return 130 if run.result["stopped"] == "interrupt" else 0, run.result


def _train_each(settings: Any, seeds: tuple[int, ...], jobs: int) -> None:
    """A run for each seed; then the interquartile mean of their last evaluations."""
    if len(set(seeds)) < max(len(seeds), 1) or jobs < 1:
        given = " ".join(map(str, seeds)) or "none"
        print(
            f"error: jobs (at least 1) share seeds that differ: jobs {jobs}, seeds {given}", file=sys.stderr
        )
        sys.exit(2)
    alone = jobs == 1
    runs = [dataclasses.replace(settings, seed=seed, quiet=settings.quiet or not alone) for seed in seeds]
    out = sys.stderr if settings.json else sys.stdout  # where the last line is a result
    scores: list[float] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for code, result in map(_outcome, runs) if alone else pool.map(_in_a_process, runs):
            if code:
                sys.exit(code)
            score = next(name for name in _SCORES if name in result)
            scores.append(result[score])
            if not (alone or settings.quiet):
                told = f"{result['seed']}: {score} {result[score]:.4g}, {result['run']}"
                print(f"{'seed':>9}  {told}", file=out, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:  # runs that go on in their processes got Ctrl-C too, and end cleanly
        pool.shutdown(cancel_futures=True)
    if not settings.quiet:
        from pgce.metrics import interquartile_mean

        mean, low, high = interquartile_mean(np.array(scores))
        each = ", ".join(f"{value:.4g}" for value in scores)
        print(f"{'seeds':>9}  {score} {each}", file=out)
        print(
            f"{'together':>9}  interquartile mean {mean:.4g}, 95 % interval [{low:.4g}, {high:.4g}]", file=out
        )


def _in_a_process(settings: Any) -> tuple[int, dict[str, Any]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_outcome, settings).result()


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Let torch use so many CPU threads inside."""
    import torch

    if number < 1:
        raise ValueError(f"there is at least one thread: threads is {number}")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible(event: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set the event, so that a run can end cleanly; the second raises as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _new_folder(root: Path, name: str) -> Path:
    """A folder that did not exist: two runs that start in the same second get two."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = root / f"{name}__{stamp}{suffix}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"1000 runs began this second in {root}")


def _tensorboard() -> str:
    """The command to type: the one on the path, or the one of this environment."""
    beside = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    if found is not None and Path(found) == beside:
        return "tensorboard"
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m tensorboard.main"
