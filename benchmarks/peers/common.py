"""What the runners of `benchmarks/speed.py` share, in every environment: needs NumPy only."""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

EVERY, GOAL = 5_000, 475.0
EPISODES, LATER = 100, 10_000  # of an evaluation after training, on other seeds
# The numbers of PPO that all have: rollouts of `steps` in each environment, two perceptrons.
SAME = SimpleNamespace(
    steps=32, epochs=4, minibatches=4, hidden=64, rate=1e-3, gamma=0.98, gae_lambda=0.9, clip=0.2, value=0.5,
    norm=0.5,
)  # fmt: skip


def arguments() -> argparse.Namespace:
    """What the command line asks a runner for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--vectorization", default="auto")
    parser.add_argument("--memory", choices=["lstm"])
    parser.add_argument("--total", type=int, help="environment steps, at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long, where there are no such")
    parser.add_argument(
        "--batch", type=int, default=128, help="rows of a batch, where there is no environment"
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def tell(**values: Any) -> None:
    """Print what was measured as one line, with the most memory that the process had."""
    scale = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    print(json.dumps({**values, "peak_mib": round(peak / 2**20, 1)}), flush=True)


class Clock:
    """Training time, which stands still while an agent is evaluated."""

    def __init__(self) -> None:
        self._begun, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return time.perf_counter() - self._begun - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside out."""
        begun = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begun


class Solving:
    """Evaluates every 5,000 steps until 100 sampled episodes average 475 twice in a row, as pgce does.

    Args:
        act: actions (N,) for observations (N, 4), sampled.
        seed: of the episodes.
    """

    def __init__(self, act: Callable[[np.ndarray], Any], seed: int) -> None:
        self.clock = Clock()
        self.solved, self.steps, self.seconds = False, 0, math.nan
        self._act, self._seeds = act, np.random.SeedSequence(seed)

    def __call__(self, steps: int, last: bool = False) -> bool:
        """Evaluate if it is time; say whether training may end."""
        if self.solved or (steps < self.steps + EVERY and not last):
            return self.solved
        with self.clock.paused():
            self.steps = steps
            self.solved = all(
                cartpole(self._act, np.random.default_rng(self._seeds.spawn(1)[0])) >= GOAL for _ in range(2)
            )
        self.seconds = self.clock.seconds
        return self.solved

    def tell(self, **more: Any) -> None:
        """Print the result."""
        tell(seconds=self.seconds, steps=self.steps, solved=self.solved, **more)


def cartpole(act: Callable[[np.ndarray], Any], generator: np.random.Generator, episodes: int = 100) -> float:
    """Mean return of episodes of CartPole-v1, with Gymnasium's physics."""
    state = generator.uniform(-0.05, 0.05, (4, episodes))
    alive, total = np.ones(episodes, bool), 0.0
    for _ in range(500):
        action = np.asarray(act(state.T.astype(np.float32))).reshape(episodes)
        _, speed, angle, turning = state
        force, cosine, sine = np.where(action == 1, 10.0, -10.0), np.cos(angle), np.sin(angle)
        push = (force + 0.05 * turning**2 * sine) / 1.1
        twist = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        state = state + 0.02 * np.stack([speed, push - 0.05 * twist * cosine / 1.1, turning, twist])
        total += alive.sum()  # the step that ends an episode counts
        alive &= (np.abs(state[0]) <= 2.4) & (np.abs(state[2]) <= math.radians(12))
        if not alive.any():
            break
    return float(total) / episodes
