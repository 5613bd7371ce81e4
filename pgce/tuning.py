"""A search for an agent's settings on an environment, by Optuna.

    python -m pgce.tuning ppo --trials 20 --env-id CartPole-v1 -n 50_000

Flags of the agent are passed on, and what they set is not searched. Needs `pip install "pgce[tune]"`.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from pgce import agents
from pgce.disk import write_file
from pgce.envs.guard import EnvironmentFault
from pgce.flags import parse
from pgce.folders import stamped
from pgce.policy_gradient import Agent
from pgce.records import STOPS
from pgce.run import train_or_exit

__all__ = ["SPACE", "Between", "Tuned", "tune"]


class Between(NamedTuple):
    """A real number between two, uniform, or uniform in its logarithm."""

    low: float
    high: float
    log: bool = False


Search = Between | tuple[Any, ...]
"""A range, or choices."""

SPACE: dict[str, Search] = {
    "learning_rate": Between(1e-4, 2e-2, log=True),
    "gamma": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999),
    "gae_lambda": (0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
    "num_steps": (16, 32, 64, 128, 256, 512),
    "num_envs": (8, 16, 32, 64),
    "ent_coef": Between(1e-6, 0.1, log=True),
    "update_epochs": (1, 2, 4, 8, 16),
    "num_minibatches": (1, 2, 4, 8, 16, 32),
    "clip_coef": (0.1, 0.2, 0.3),
    "norm_obs": (False, True),
}
"""Where settings are searched, by name; those that an agent has not are left out."""


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        agent: with the best settings; `agent.command()` is the command line that trains it.
        score: its mean return, over the repeats their interquartile mean.
        result: all trials, as tuning.json in the folder holds them.
        path: the folder, in which every trial's runs lie.
    """

    agent: Agent
    score: float
    result: dict[str, Any]
    path: Path


def tune(
    agent_class: type[Agent],
    env_id: str,
    trials: int = 20,
    *,
    repeats: int = 1,
    space: Mapping[str, Search] | None = None,
    sampler_seed: int = 0,
    **settings: Any,
) -> Tuned:
    """The best settings of some trials: TPE draws them, and trials that lag behind the median are pruned.

    A trial's score is the mean return of the evaluation at the end of its budget (which no threshold cuts
    short, unless `stop_at_threshold` says so); of several repeats, each on a seed of its own, the
    interquartile mean. Only the first repeat is pruned, after one of its evaluations. Trials whose settings
    do not go together are pruned too; those that stop being finite, or whose environment fails, fail. A
    signal to stop ends the search, with the best of the trials that were complete.

    Args:
        agent_class: such as `pgce.agents.PPO`.
        env_id: what it is trained on.
        trials: how many settings are tried.
        repeats: runs a trial, on seeds that follow each other.
        space: what is searched; None is `SPACE`, as far as the agent has it.
        sampler_seed: of the search.
        settings: of the agent, beside its preset; they are not searched.

    Raises:
        ValueError: fewer than one trial or repeat, a name that is no setting, or no trial came to its end.
        ImportError: optuna is not installed.

    Example:
        >>> import pytest
        >>> _ = pytest.importorskip("optuna")
        >>> import tempfile, pgce
        >>> from pgce.tuning import Between, tune
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tuned = tune(
        ...         pgce.agents.Reinforce,
        ...         "CartPole-v1",
        ...         trials=2,
        ...         space={"learning_rate": Between(1e-3, 1e-2, log=True)},
        ...         total_timesteps=2_048,
        ...         runs_dir=folder,
        ...         quiet=True,
        ...     )
        >>> 1e-3 <= tuned.agent.learning_rate <= 1e-2
        True

    References:
        Akiba et al. (2019), Optuna: a next-generation hyperparameter optimization framework.
    """
    for name, number in (("trials", trials), ("repeats", repeats)):
        if number < 1:
            raise ValueError(f"{name} is at least 1: it is {number}")
    known = {field.name for field in dataclasses.fields(agent_class)}
    if unknown := (settings.keys() | (space or {}).keys()) - known:
        raise ValueError(f"{', '.join(sorted(unknown))}: no setting of {agent_class.__name__}")
    searched = {k: v for k, v in (space or SPACE).items() if k in known and k not in settings}
    if not searched:
        raise ValueError(f"one setting or more is searched: {', '.join(space or SPACE)} are given or unknown")
    try:
        import optuna
    except ImportError as error:
        raise ImportError('a search needs optuna: pip install "pgce[tune]"') from error

    from pgce.metrics import interquartile_mean

    start = agent_class.preset(env_id, **{"stop_at_threshold": False, **settings})
    start.check()
    path = stamped(Path(start.runs_dir), f"{env_id}__tune-{start.learner}__{start.seed}")
    quiet: dict[str, Any] = {"runs_dir": str(path), "quiet": True, "json": False, "track": False}
    quiet["run"] = None  # each trial has a folder of its own
    stopped = ""
    fault: EnvironmentFault | None = None  # the last

    def score(trial: optuna.Trial) -> float:
        nonlocal stopped, fault
        drawn = {name: _suggest(trial, name, search) for name, search in searched.items()}
        agent = dataclasses.replace(start, **drawn, **quiet)
        try:
            agent.check()
        except ValueError as error:
            raise optuna.TrialPruned(str(error)) from error

        def behind(steps: int, mean: float) -> bool:
            trial.report(mean, steps // agent.eval_freq)
            return bool(trial.should_prune())

        scores = []
        for repeat in range(repeats):
            each = dataclasses.replace(agent, seed=start.seed + repeat)
            try:
                result = each.train(after=behind if repeat == 0 else None).result
            except EnvironmentFault as error:
                fault = error
                raise
            if result["stopped"] in STOPS:
                stopped = result["stopped"]
                trial.study.stop()
            if result["stopped"] in ("after", *STOPS):
                raise optuna.TrialPruned(f"stopped ({result['stopped']}) after {result['steps']} steps")
            scores.append(result["eval_mean"])
        return float(interquartile_mean(np.array(scores))[0])

    def tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        value = "no score" if trial.value is None else f"{trial.value:.1f}"
        if trial.state != optuna.trial.TrialState.COMPLETE:
            value += f" ({trial.state.name.lower()})"  # the score of the last evaluation
        drawn = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items())
        print(f"{trial.number:>9}  {value}: {', '.join(drawn)}", flush=True)

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=sampler_seed),
            pruner=optuna.pruners.MedianPruner(),
        )
        catch, told = (FloatingPointError, EnvironmentFault), [] if start.quiet else [tell]
        study.optimize(score, trials, catch=catch, callbacks=told)
    finally:
        optuna.logging.set_verbosity(verbosity)
    states = [trial.state.name.lower() for trial in study.trials]
    if "complete" not in states:
        if stopped:  # there is nothing to tell: as if nobody had handled it
            signal.raise_signal(STOPS[stopped])
        if fault is not None:
            raise fault
        raise ValueError(f"one trial or more comes to its end: the {len(states)} were {', '.join(states)}")
    best = dataclasses.replace(start, **study.best_params)
    result = {
        "learner": start.learner,
        "env_id": env_id,
        "stopped": stopped or "budget",
        "score": study.best_value,
        "settings": study.best_params,
        "command": best.command(),
        "trials": [
            {"score": trial.value, "state": state, "settings": trial.params}
            for trial, state in zip(study.trials, states, strict=True)
        ],
    }
    write_file(path / "tuning.json", (json.dumps(result, indent=2) + "\n").encode())
    return Tuned(best, study.best_value, result, path)


def _suggest(trial: Any, name: str, search: Search) -> Any:
    if isinstance(search, Between):
        return trial.suggest_float(name, search.low, search.high, log=search.log)
    return trial.suggest_categorical(name, search)


@dataclass
class Tuning:
    """A search for an agent's settings. All other flags are the agent's; what they set is not searched."""

    agent: tyro.conf.Positional[
        Literal["a2c", "awr", "bc", "cem", "grpo", "ppo", "reinforce", "rloo", "vtrace"]
    ]
    """Whose settings."""
    trials: int = 20
    """How many settings are tried."""
    repeats: int = 1
    """Runs a trial, on seeds that follow each other."""
    sampler_seed: int = 0
    """Seed of the search."""
    words: tyro.conf.Suppress[tuple[str, ...]] = ()

    def train(self) -> Tuned:
        """Search, and print the command line of what was best."""
        (kind,) = (getattr(agents, name) for name in agents.__all__ if name.lower() == self.agent)
        given: Agent = parse(kind, self.words, default=kind.from_words(self.words))
        flags = [word.partition("=")[0] for word in self.words if word.startswith("--")]
        names = {flag[2:].replace("-", "_") for flag in flags}
        settings = {
            field.name: getattr(given, field.name)
            for field in dataclasses.fields(given)
            if field.name != "env_id" and names & {field.name, f"no_{field.name}"}
        }
        settings["total_timesteps"] = given.total_timesteps
        options: dict[str, Any] = {"repeats": self.repeats, "sampler_seed": self.sampler_seed}
        tuned = tune(kind, given.env_id, self.trials, **options, **settings)
        if given.json:
            print(json.dumps(tuned.result), flush=True)
        elif not given.quiet:
            print(f"     best  {tuned.score:.1f}, as {tuned.path / 'tuning.json'} tells")
            print(f"  command  {tuned.agent.command()}", flush=True)
        return tuned


def main(words: Sequence[str] | None = None, prog: str | None = None) -> None:
    """The command line of the search, whose exit codes are those of `pgce.run.main`.

    Args:
        words: of the command line; those of this process if not given.
        prog: the program's name, for `--help`.
    """
    words = sys.argv[1:] if words is None else words
    tuning, others = parse(Tuning, words, prog=prog, description=__doc__, unknown=True)
    train_or_exit(dataclasses.replace(tuning, words=tuple(others)))


if __name__ == "__main__":
    main()
