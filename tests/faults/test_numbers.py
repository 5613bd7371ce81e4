"""Learning that misbehaves: a gradient that is not finite changes nothing, or ends the run."""

from __future__ import annotations

import math

import pytest
import torch

import pgce
from pgce import heads, weights
from pgce.agents import PPO
from pgce.checkpoint import load_checkpoint
from pgce.optimizer import Optimizer
from pgce.trainer import Batch, Term, Trainer


def everything(trainer):
    """All that an update changes, but the count of those left out."""
    state = trainer.optimizer.state_dict()
    tensors = [*trainer.model.state_dict().values(), *state["average"].values()]
    tensors += [value for entries in state["torch"].values() for value in entries.values()]
    return state["steps"], [tensor.clone() for tensor in tensors]


def made(**how):
    torch.manual_seed(0)
    model = pgce.networks.mlp(4, 3, hidden=(8,), activation="relu")
    stack = Optimizer(model.parameters(), "adam", learning_rate=0.01, ema_decay=0.9, **how)
    trainer = Trainer(model, {"label": Term(heads.Categorical(), weight="w")}, stack)
    batch = Batch(torch.randn(16, 4), {"target": torch.arange(16) % 3, "w": torch.ones(16)})
    for _ in range(3):
        trainer.step(batch)
    return trainer, batch


def weighted(batch, weight):
    return Batch(batch.input, {**batch.columns, "w": torch.tensor(weight)})


BAD = {
    "logits of infinity": lambda batch: Batch(batch.input * 3e38, batch.columns),
    "a weight of infinity": lambda batch: weighted(batch, [math.inf] * 16),
    "weights of 1e30, whose squares are infinite": lambda batch: weighted(batch, [1e30] * 16),
    "one weight of NaN": lambda batch: weighted(batch, [math.nan] + 15 * [1.0]),
}


@pytest.mark.parametrize("spoilt", BAD.values(), ids=BAD)
def test_an_update_is_left_out(spoilt):
    trainer, batch = made(max_skips=2)
    before = everything(trainer)
    trainer.step(spoilt(batch))
    assert not math.isfinite(trainer.optimizer.grad_norm)
    after = everything(trainer)
    assert after[0] == before[0]
    assert all(torch.equal(x, y) for x, y in zip(after[1], before[1], strict=True))
    assert trainer.optimizer.skipped == 1
    trainer.step(batch)
    assert trainer.optimizer.steps == before[0] + 1
    assert math.isfinite(trainer.optimizer.grad_norm)


def test_too_many_in_a_row_end_training():
    trainer, batch = made(max_skips=2)
    bad = BAD["a weight of infinity"](batch)
    for _ in range(2):
        trainer.step(bad)
        trainer.step(bad)
        trainer.step(batch)  # one that is finite: counting begins anew
    before = everything(trainer)
    trainer.step(bad)
    trainer.step(bad)
    with pytest.raises(FloatingPointError, match="3 times in a row"):
        trainer.step(bad)
    after = everything(trainer)
    assert all(torch.equal(x, y) for x, y in zip(after[1], before[1], strict=True))
    assert trainer.optimizer.skipped == 7


def test_the_first_ends_training_unless_told():
    trainer, batch = made()
    with pytest.raises(FloatingPointError, match="must be finite"):
        trainer.step(BAD["one weight of NaN"](batch))


def test_a_huge_gradient_is_clipped():
    trainer, batch = made(max_grad_norm=1.0)
    before = everything(trainer)
    trainer.step(weighted(batch, [1e15] * 16))
    assert trainer.optimizer.grad_norm > 1e13
    after = everything(trainer)
    assert after[0] == before[0] + 1
    assert all(tensor.isfinite().all() for tensor in after[1])


def test_advantages_that_are_all_the_same_or_only_one():
    assert weights.whiten(torch.tensor([3.0])).tolist() == [0.0]
    assert weights.whiten(torch.tensor([3.0, 3.0, 3.0])).tolist() == [0.0, 0.0, 0.0]
    value = torch.tensor([3.0, 8.0])
    assert weights.whiten(value, torch.tensor([True, False]))[0] == 0.0
    assert torch.equal(weights.whiten(value, torch.tensor([False, False])), value)


@pytest.mark.parametrize("skips", [0, 3])
def test_a_run(skips, tmp_path, monkeypatch):
    """One bad batch in the middle: the run goes on, and tells; or ends, with the last good checkpoint."""
    step, calls = Trainer.step, []

    def spoilt(self, batch):
        calls.append(1)
        if len(calls) == 50:
            batch = Batch(
                batch.input, {**batch.columns, "advantage": batch["advantage"] * math.inf}, batch.mask
            )
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", spoilt)
    agent = PPO(total_timesteps=40_000, num_envs=8, num_steps=64, quiet=True, device="cpu", run="it",
                runs_dir=str(tmp_path), checkpoint_every=0, eval_episodes=4, max_skips=skips, update_epochs=4,
                num_minibatches=4)  # fmt: skip
    if skips:
        assert agent.train().result["skipped_updates"] == 1
    else:
        with pytest.raises(FloatingPointError):
            agent.train()
    assert len(calls) >= 50
    state = load_checkpoint(tmp_path / "it" / "checkpoints").state
    assert state["steps"] > 0
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_fit_tells_of_what_was_left_out():
    data = Batch(torch.randn(64, 4), {"target": torch.arange(64) % 3, "number": torch.arange(64)})
    model = pgce.networks.mlp(4, 3)

    def weight(cross_entropy, batch):
        return torch.where(batch["number"] == 60, math.inf, 1.0)

    history = pgce.fit(model, data, weight=weight, batch_size=8, epochs=2, max_skips=1, device="cpu")
    assert history["skipped"] == [1.0, 2.0]
    assert all(map(math.isfinite, history["loss"]))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
