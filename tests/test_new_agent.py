"""Agents of one's own: which hooks are called, on what, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import pgce
from pgce.agents import BC, PPO

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


@dataclass(kw_only=True)
class Remembering(PPO):
    """PPO whose advantages depend on all that it has seen so far."""

    def prepare(self, rollout, model):
        if not hasattr(self, "total"):
            self.total, self.rounds = torch.zeros(()), 0
        self.total, self.rounds = self.total + rollout.reward.sum(), self.rounds + 1
        advantage = rollout.reward * self.total / self.rounds
        batch = super().prepare(rollout, model)
        return pgce.Batch(batch.input, {**batch.columns, "advantage": advantage.flatten()}, batch.mask)


class Saved(Remembering):
    """The same, which says what of it is to be saved."""

    def state_dict(self):
        return {"total": self.total, "rounds": self.rounds}

    def load_state_dict(self, state):
        self.total, self.rounds = state["total"], state["rounds"]


def stopped_and_resumed(kind, folder):
    """The model of a run in one go, and of one that is ended after a checkpoint and goes on."""
    settings = {**SMALL, "env_id": "CartPole-v1", "total_timesteps": 1_024, "eval_freq": 10**6}
    settings |= {"checkpoint_every": 0.0, "runs_dir": str(folder), "resume": "auto", "seed": 3}
    whole = kind(run="whole", **settings).train()

    def fails(step, values):
        if step > 500:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        kind(run="parts", **settings).train(metrics=fails)
    settings["quiet"] = False
    parts = kind(run="parts", **settings).train()
    return whole.model.state_dict(), parts.model.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_what_an_agent_keeps_is_saved_or_named_when_it_is_resumed(tmp_path, capsys):
    whole, parts = stopped_and_resumed(Saved, tmp_path / "saved")
    assert same(whole, parts)
    assert "2. attempt; exactly as if it had not been stopped" in capsys.readouterr().out
    whole, parts = stopped_and_resumed(Remembering, tmp_path / "not")
    assert not same(whole, parts)
    said = capsys.readouterr().out
    assert "2. attempt; without rounds, total, which Remembering.state_dict does not give" in said
    stopped_and_resumed(PPO, tmp_path / "settings alone")
    assert "exactly as if it had not been stopped" in capsys.readouterr().out
