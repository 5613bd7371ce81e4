"""What the runs of all packages share: the clock, the judge, the line that is printed."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

THRESHOLD = 475.0


class Clock:
    """Seconds of training: it stands still while an evaluation is made.

    Args:
        act: observations (100, 4) -> sampled actions (100,).
        every: environment steps between evaluations; 0 makes none.
    """

    def __init__(self, act: Callable[[np.ndarray], np.ndarray] | None = None, every: int = 0) -> None:
        self.act, self.every = act, every
        self.steps, self.seconds, self.last, self.score = 0, 0.0, 0, 0.0
        self.since = time.perf_counter()

    def solved(self, steps: int) -> bool:
        """Evaluate if it is time: whether 100 episodes average 475, twice in a row."""
        self.steps = steps
        if self.act is None or steps - self.last < self.every:
            return False
        self.seconds += time.perf_counter() - self.since
        self.last = steps
        scores = [self._evaluate() for _ in range(2)]
        self.score = min(scores)
        self.since = time.perf_counter()
        return self.score >= THRESHOLD

    def _evaluate(self) -> float:
        envs = gym.make_vec("CartPole-v1", 100, "vector_entry_point")
        observation, _ = envs.reset(seed=self.steps)
        total, going = np.zeros(100), np.ones(100, bool)
        while going.any():
            observation, reward, terminated, truncated, _ = envs.step(self.act(observation))
            total += reward * going
            going &= ~(terminated | truncated)
        return float(total.mean())

    def tell(self) -> None:
        """Stop, and print the line."""
        self.seconds += time.perf_counter() - self.since
        tell(self.seconds, self.steps, self.score)


def tell(seconds: float, steps: int, score: float, **more: float) -> None:
    """Print what a run came to, with its largest memory in MiB, as a line of JSON."""
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "steps": steps, "score": score, "mib": mib, **more}), flush=True)


def work() -> tuple[str, int]:
    """What the command line asks for: a kind of work, and a seed."""
    return sys.argv[1], int(sys.argv[2])
