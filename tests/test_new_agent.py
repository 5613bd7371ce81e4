"""Agents of one's own: which hooks are called, on what, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from pgce.agents import BC

QUICK = {"quiet": True, "device": "cpu", "stop_at_threshold": False, "eval_episodes": 4}
SMALL = {**QUICK, "num_envs": 4, "num_steps": 16}


def recorded(rows=200):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(rows, 4)).astype(np.float32)
    return {"observations": seen, "actions": rng.integers(0, 2, rows)}


@dataclass(kw_only=True)
class Falling(BC):
    """Behaviour cloning, whose hooks tell what they see."""

    tau: float = 1.0
    """Falls over the run."""

    def examples(self, collector):
        self.seen = Falling.last = []
        return super().examples(collector)

    def batches(self, batch, generator):
        for each in super().batches(batch, generator):
            self.seen.append(self.tau)
            yield each


def test_batches_of_recorded_examples_see_schedules_and_what_hooks_kept(tmp_path):
    agent = Falling(schedules={"tau": "linear"}, runs_dir=str(tmp_path), **QUICK)
    agent.train("CartPole-v1", 2_000, data=recorded())
    assert Falling.last[:10] == pytest.approx([1 - n / 10 for n in range(10)])
