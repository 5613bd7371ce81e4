"""What comes of a run, or of one for each seed: the process's exit code, and what they reach together."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pgce import processes
from pgce.envs.guard import EnvironmentFault
from pgce.records import SCORES

__all__ = ["Several", "refuse", "train_each", "train_or_exit"]


@dataclass(kw_only=True)
class Several:
    """What the command line takes beside a learner's settings."""

    seeds: tuple[int, ...] = ()
    """Train with each of these seeds, in place of one, and tell the interquartile mean of what they reach."""
    jobs: int = 1
    """How many of those runs at once, each quietly in a process of its own."""
    config: str | None = None
    """Begin with the settings in the config.json of a run, given as the file or the run's folder."""


def refuse(why: object) -> NoReturn:
    """End as a bad setting does."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def train_or_exit(settings: Any) -> None:
    """Train, and turn the outcome into the process's exit code."""
    code, _ = _outcome(settings)
    if code:
        sys.exit(code)


def _outcome(settings: Any) -> tuple[int, dict[str, Any]]:
    """Train: the exit code, and the result."""
    try:
        run = settings.train()
    except KeyboardInterrupt:  # before training or after it, or for the second time
        return 130, {}
    except (ValueError, ImportError, FloatingPointError, OSError, EnvironmentFault) as error:
        print(f"error: {error}\n{getattr(error, 'trace', '')}".rstrip(), file=sys.stderr)
        failed = isinstance(error, (FloatingPointError, EnvironmentFault))
        return 70 if failed else 74 if isinstance(error, OSError) else 2, {}
    stopped = {"interrupt": 130, "terminate": 143}.get(run.result["stopped"], 0)
    return stopped or (74 if run.result.get("failed_saves") else 0), run.result


def train_each(settings: Any, seeds: tuple[int, ...], jobs: int) -> None:
    """A run for each seed; then the interquartile mean of their last evaluations."""
    rank, many = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")  # by torchrun
    if many != "1" and jobs > 1:
        refuse(f"several processes train one seed after the other: jobs {jobs}, processes {many}")
    if len(set(seeds)) < max(len(seeds), 1) or jobs < 1:
        given = " ".join(map(str, seeds)) or "none"
        refuse(f"jobs (at least 1) share seeds that differ: jobs {jobs}, seeds {given}")
    alone = jobs == 1
    runs = [
        dataclasses.replace(
            settings,
            seed=seed,
            quiet=settings.quiet or not alone,
            run=None if settings.run is None else f"{settings.run}-{seed}",
        )
        for seed in seeds
    ]
    out = sys.stderr if settings.json else sys.stdout  # where the last line is a result
    scores: list[float] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        for code, result in map(_outcome, runs) if alone else pool.map(_in_a_process, runs):
            if code:
                sys.exit(code)
            score = next(name for name in SCORES if name in result)
            scores.append(result[score])
            if not (alone or settings.quiet):
                told = f"{result['seed']}: {score} {result[score]:.4g}, {result['run']}"
                print(f"{'seed':>9}  {told}", file=out, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:  # runs that go on in their processes got Ctrl-C too, and end cleanly
        pool.shutdown(cancel_futures=True)
    if rank == "0" and not settings.quiet:
        from pgce.metrics import interquartile_mean

        mean, low, high = interquartile_mean(np.array(scores))
        each = ", ".join(f"{value:.4g}" for value in scores)
        print(f"{'seeds':>9}  {score} {each}", file=out)
        print(
            f"{'together':>9}  interquartile mean {mean:.4g}, 95 % interval [{low:.4g}, {high:.4g}]", file=out
        )


def _in_a_process(settings: Any) -> tuple[int, dict[str, Any]]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_followed, settings).result()


def _followed(settings: Any) -> tuple[int, dict[str, Any]]:
    """The outcome, for the process that started this one, if that is still there."""
    parent = os.getppid()
    processes.follow()
    outcome = _outcome(settings)
    if os.getppid() != parent:  # nobody ends this process
        os._exit(outcome[0])
    return outcome
