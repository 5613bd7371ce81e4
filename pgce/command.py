"""The `pgce` command. Every subcommand is a function here; what it needs is imported when it is called."""

from __future__ import annotations

import dataclasses
import inspect
import json as json_
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import tyro

from pgce.flags import nearest, parse

__all__ = ["main"]

AGENTS = {
    name.lower(): name for name in ("PPO", "A2C", "Reinforce", "RLOO", "GRPO", "AWR", "VTrace", "CEM", "BC")
}
"""Learners of `pgce train`, with the class of each."""
OPTIONAL = {
    "robots and walkers": ("gymnasium[box2d,mujoco]", "Box2D", "mujoco"),
    "drawing environments": ("gymnasium[classic-control]", "pygame"),
    "videos": ("pgce[video]", "imageio", "imageio_ffmpeg"),
    "tuning": ("pgce[tune]", "optuna"),
    "ONNX": ("pgce[export]", "onnx", "onnxscript"),
    "recorded data": ("pgce[minari]", "minari"),
    "tables": ("pgce[tables]", "pandas", "pyarrow"),
    "EnvPool": ("envpool", "envpool"),
}
"""What a part is for, how it is installed, and the modules that it needs."""

_ALIKE = 0.9
"""Share of the longest run's steps that a curve may end at, as its shortest does, without a word."""

Run = Annotated[str, tyro.conf.Positional]
Runs = Annotated[tuple[str, ...], tyro.conf.Positional]


def train(words: Sequence[str]) -> None:
    """Train an agent: pgce train ppo --env-id LunarLander-v3."""
    if not words or words[0] in ("-h", "--help"):
        print(
            f"usage: pgce train AGENT [flags]\n\nAGENT is one of {', '.join(AGENTS)}.\n"
            "pgce train AGENT --help lists its flags."
        )
        return
    name = nearest(words[0], AGENTS, "an agent")
    _learner(AGENTS[name], words[1:], f"pgce train {name}")


def classify(words: Sequence[str]) -> None:
    """Train a classifier or regressor on data: pgce classify digits --label-smoothing 0.1."""
    data = [] if not words or words[0].startswith("-") else ["--data", words[0]]
    _learner("Supervised", [*data, *words[len(data) // 2 :]], "pgce classify DATA")


def tune(words: Sequence[str]) -> None:
    """Search an agent's settings: pgce tune ppo --env-id CartPole-v1 --trials 20."""
    import_module("pgce.tuning").main(words, "pgce tune")


def evaluate(
    run: Run,
    /,
    *,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = True,
    env_id: str | None = None,
    allow_import: bool = False,
    json: bool = False,
) -> None:
    """Tell how well the agent of a run does on fresh episodes.

    Args:
        run: its folder.
        episodes: how many.
        seed: of environments and actions.
        greedy: take the most probable actions, instead of drawing them.
        env_id: another environment with the same spaces.
        allow_import: permit ids of the form module:Env-v0, whose module is imported and so run.
        json: print one JSON object.
    """
    returns = _agent(run, allow_import).evaluate(episodes, env_id=env_id, seed=seed, greedy=greedy)
    result = {
        "run": run,
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "episodes": len(returns),
    }
    if json:
        print(json_.dumps(result))
    else:
        print(
            f"mean return {result['mean']:.1f} ± {result['std']:.1f} over {len(returns)} episodes, "
            f"{result['min']:.1f} to {result['max']:.1f}"
        )


def watch(
    run: Run,
    /,
    *,
    out: str | None = None,
    episodes: int = 1,
    seed: int = 0,
    greedy: bool = True,
    allow_import: bool = False,
) -> None:
    """Watch the agent of a run: in a window, or as a film where there is no screen.

    An episode of more than 1,000 steps is left there.

    Args:
        run: its folder.
        out: write a film, .gif or .mp4, instead of opening a window.
        episodes: how many, one after the other.
        seed: of the first.
        greedy: take the most probable actions, instead of drawing them.
        allow_import: permit ids of the form module:Env-v0, whose module is imported and so run.
    """
    from pgce import films

    agent = _agent(run, allow_import)
    screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if out is None and not screen:
        out = str(Path(run) / "film.gif")

    def frames() -> Iterator[Any]:
        """The pictures of all episodes, as they are played; in a window there are none."""
        for episode in range(episodes):
            mode = "human" if out is None else "rgb_array"
            how: dict[str, Any] = {"mode": mode, "seed": seed + episode, "greedy": greedy}
            for step in films.play(agent, agent.env_id, agent.env_kwargs, **how):
                if step[0] is not None:
                    yield step[0]
            _, total, ended = step
            left = "" if ended else f" so far: it is left after {films.LONGEST:,} steps"
            print(f"episode {episode + 1}: return {total:.1f}{left}")

    if out is None:
        list(frames())
    else:
        print(f"film: {films.save(out, frames())}")


def plot(runs: Runs, /, *, out: str = "curves.png", tag: str | None = None) -> None:
    """Draw the learning curves of runs: interquartile mean over seeds with interval, a panel an environment.

    A curve ends where the shortest of its runs does.

    Args:
        runs: their folders; runs/* for all.
        out: the picture, .png.
        tag: of the curve, train/entropy say; if not given the return, or the accuracy.
    """
    from PIL import Image

    from pgce.pictures import learning_curves
    from pgce.records import Record, groups

    panels: dict[str, dict[str, Any]] = {}
    chosen = [Record.read(run) for run in _some(runs)]
    without = []
    for (subject, learner), records in groups(chosen).items():
        for record in records:
            try:
                curve = record.curve(tag)
            except ValueError as error:  # of a run that was killed before its first numbers, say
                without.append(str(error))
            else:
                panels.setdefault(subject, {}).setdefault(learner, []).append(curve)
    if not panels:
        raise ValueError(without[0])
    for each in without:
        print(f"left out: {each}", file=sys.stderr)
    for subject, learners in panels.items():
        for learner, seeds in learners.items():
            ends = [steps[-1] for steps, _ in seeds]
            if min(ends) < _ALIKE * max(ends):
                far = f"{min(ends):,.0f} of {max(ends):,.0f} steps"
                print(f"cut short: {learner} on {subject} ends as its shortest run, {far}", file=sys.stderr)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(learning_curves(panels)).save(out)
    print(f"{sum(map(len, panels.values()))} curves of {len(chosen) - len(without)} runs: {out}")


def compare(runs: Runs, /, *, json: bool = False) -> None:
    """Compare runs by their last evaluation: interquartile mean, interval, and who probably does better.

    Args:
        runs: their folders, several seeds of each learner.
        json: print one JSON object a line.
    """
    import numpy as np

    from pgce.metrics import interquartile_mean, probability_of_improvement
    from pgce.records import STOPS, Record, groups

    scores: dict[str, dict[str, Any]] = {}
    chosen = [Record.read(run) for run in _some(runs)]
    ended = [record for record in chosen if record.score is not None]
    if not ended:
        raise ValueError(f"runs that have ended are compared: of {len(chosen)} none has")
    for record in chosen:
        if record.score is None:
            print(f"left out: {record.path} has no score ({record.state})", file=sys.stderr)
        elif record.result.get("stopped") in STOPS:
            print(f"counted: {record.path} was stopped by a signal ({record.state})", file=sys.stderr)
    for (subject, learner), records in groups(ended).items():
        scores.setdefault(subject, {})[learner] = np.array([each.score[1] for each in records if each.score])
    rows = []
    for subject, learners in scores.items():
        best = max(learners, key=lambda name: float(interquartile_mean(learners[name])[0]))
        for learner, values in sorted(learners.items()):
            mean, low, high = (float(value) for value in interquartile_mean(values))
            row: dict[str, Any] = {"on": subject, "learner": learner, "runs": len(values)}
            row |= {"iqm": mean, "low": low, "high": high}
            if learner != best:
                row["best"] = best
                row["improves"] = probability_of_improvement(learners[best], values)
            rows.append(row)
    if json:
        for row in rows:
            print(json_.dumps(row))
        return
    table = [["on", "learner", "runs", "IQM", "95 % interval", "probability that the best one does better"]]
    for row in rows:
        better = "best"
        if "improves" in row:
            chance, low, high = row["improves"]
            better = f"{chance:.2f} [{low:.2f}, {high:.2f}]"
        interval = f"{row['low']:.4g} to {row['high']:.4g}"
        table.append([row["on"], row["learner"], str(row["runs"]), f"{row['iqm']:.4g}", interval, better])
    _print(table)


def runs(folder: Annotated[str, tyro.conf.Positional] = "runs", /) -> None:
    """List the runs in a folder, with their state and what came of them.

    Args:
        folder: in which they lie.
    """
    from pgce import records

    table = [["run", "learner", "on", "seed", "state", "steps", "result"]]
    for record in records.runs(folder):
        score = "" if record.score is None else f"{record.score[0]} {record.score[1]:.4g}"
        seed, steps = str(record.config.get("seed", "")), str(record.result.get("steps", ""))
        what = [record.path.name, record.learner, record.subject, seed]
        table.append([*what, record.state, steps, score])
    _print(table)


def export(run: Run, file: Annotated[str, tyro.conf.Positional], /, *, allow_import: bool = False) -> None:
    """Write the policy of a run, with its normaliser, as a program that needs no pgce.

    Args:
        run: its folder.
        file: .pt2 for torch.export, .onnx for ONNX.
        allow_import: permit ids of the form module:Env-v0, whose module is imported and so run.
    """
    print(_agent(run, allow_import).export(file))


def explain(
    what: Annotated[str, tyro.conf.Positional], /, *, rows: int = 6, allow_import: bool = False
) -> None:
    """Explain a learner or a rule, or one batch of a run: input, target y, p, weight w, gradient w·(p − y).

    Args:
        what: ppo, focal, ...; or the folder of a run.
        rows: of the batch.
        allow_import: permit ids of the form module:Env-v0, whose module is imported and so run.
    """
    from pgce import explaining

    if Path(what).is_dir():
        print(explaining.run(what, rows, allow_import=allow_import))
    else:
        print(explaining.name(what))


def doctor() -> None:
    """Tell versions, devices, and which optional parts are installed."""
    from importlib.util import find_spec

    import torch

    table = [["python", sys.version.split()[0], ""]]
    packages = "pgce", "torch", "gymnasium", "numpy", "tensorboard", "scikit-learn", "safetensors", "tyro"
    for package in packages:
        try:
            table.append([package, version(package), ""])
        except PackageNotFoundError:
            table.append([package, "not installed as a package", ""])
    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    table.append(["devices", ", ".join(["cpu", *devices]), f"{os.cpu_count()} processors"])
    for part, (how, *modules) in OPTIONAL.items():
        missing = [module for module in modules if find_spec(module) is None]
        table.append([part, "missing" if missing else "there", f'pip install "{how}"' if missing else ""])
    _print(table)


COMMANDS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (train, classify, evaluate, watch, plot, compare, runs, tune, export, explain, doctor)
}
_OF_WORDS = {"train", "classify", "tune"}


def main(words: Sequence[str] | None = None) -> None:
    """The command line. Exit codes are those of `pgce.run.main`; 2 for what does not exist.

    Example:
        >>> import tempfile
        >>> from pgce.command import main
        >>> main(["runs", tempfile.mkdtemp()])
        run  learner  on  seed  state  steps  result
    """
    words = sys.argv[1:] if words is None else list(words)
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: pgce COMMAND ...\n\n{__import__('pgce').__doc__}\n")
        _print([[f"  {name}", str(each.__doc__).splitlines()[0]] for name, each in COMMANDS.items()])
        print("\npgce COMMAND --help tells more. Shell completion: source <(pgce completion bash), or zsh.")
        return
    try:
        if words[0] == "completion":
            _completion(words[1:])
            return
        name = nearest(words[0], COMMANDS, "a command")
        if name in _OF_WORDS:
            COMMANDS[name](words[1:])
        else:
            parse(COMMANDS[name], words[1:], prog=f"pgce {name}")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(141)  # as a program that SIGPIPE ends
    except RuntimeError as error:
        from pgce.envs.guard import EnvironmentFault  # which costs half a second

        if not isinstance(error, EnvironmentFault):
            raise
        print(f"error: {error}\n{error.trace}".rstrip(), file=sys.stderr)
        sys.exit(70)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, FileNotFoundError) else 74)


def _learner(name: str, words: Sequence[str], prog: str) -> None:
    from pgce.run import main as run

    module = import_module(f"pgce.agents.{name.lower()}")
    run(getattr(module, name), module.__doc__, words, prog)


def _agent(run: str, allow_import: bool) -> Any:
    from pgce.records import Record
    from pgce.trained import TrainedAgent

    record = Record.read(run)
    if "env_id" not in record.config:
        raise ValueError(f"an agent's run is asked for: {run!r} is that of a {record.learner} learner")
    return TrainedAgent(run, allow_import=allow_import)


def _some(runs: Sequence[str]) -> Sequence[str]:
    """The folders among those named, each once: runs/* names the files beside them too."""
    folders = [*{Path(run).resolve(): run for run in runs if not Path(run).is_file()}.values()]
    if not folders:
        raise ValueError("at least one run is given, as its folder: there is none (pgce runs lists them)")
    return folders


def _print(table: list[list[str]]) -> None:
    """A table in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _completion(words: list[str]) -> None:
    """Print the script that bash sources, or zsh after bashcompinit: commands, agents and all their flags."""
    if words in (["-h"], ["--help"]):
        print("usage: pgce completion {bash,zsh}\n\n" + str(_completion.__doc__))
        return
    nearest(words[0] if words else "", ["bash", "zsh"], "a shell")
    cases = {
        "": [*COMMANDS, "completion"],
        "train": list(AGENTS),
        "tune": list(AGENTS),
        "completion": ["bash", "zsh"],
    }
    for name, command in COMMANDS.items():
        parameters = inspect.signature(command).parameters.values()
        cases.setdefault(name, [_flag(each.name) for each in parameters if each.kind == each.KEYWORD_ONLY])
    for name, kind in [
        *((f"{c} {agent}", k) for c in ("train", "tune") for agent, k in AGENTS.items()),
        ("classify", "Supervised"),
    ]:
        learner = getattr(import_module("pgce.agents"), kind)
        cases[name] = [_flag(field.name) for field in dataclasses.fields(learner)]
    print("_pgce() {\n  local words\n  case ${COMP_WORDS[*]:1:COMP_CWORD-1} in")
    for name, choices in sorted(cases.items(), key=lambda case: -len(case[0])):
        pattern = '""' if name == "" else f'"{name}"*'
        print(f"    {pattern}) words='{' '.join(choices)}' ;;")
    print('  esac\n  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n}')
    if words[0] == "zsh":
        print("autoload -U bashcompinit && bashcompinit")
    print("complete -o default -F _pgce pgce")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
