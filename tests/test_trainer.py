"""The step against losses written out by hand, what rules see, and the loop."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pgce import Batch, Term, Trainer, heads, processes, train
from pgce.networks import ActorCritic, Value, mlp
from pgce.optimizer import Optimizer
from pgce.trainer import count

DOUBLE = torch.float64


def actor_critic():
    torch.manual_seed(0)
    value = Value(mlp(4, 1))
    return ActorCritic(mlp(4, 3), value).double()


def rollout_batch(size=20, mask=None):
    g = torch.Generator().manual_seed(1)
    columns = {
        "action": torch.randint(3, (size,), generator=g),
        "advantage": torch.randn(size, generator=g, dtype=DOUBLE),
        "return": torch.randn(size, generator=g, dtype=DOUBLE),
    }
    return Batch(torch.randn(size, 4, generator=g, dtype=DOUBLE), columns, mask)


HEAD = heads.Categorical()
TERMS = {
    "policy": Term(HEAD, "action", "advantage", output="policy"),
    "value": Term(heads.Gaussian(), "return", coefficient=0.5, output="value"),
    "entropy": Term(HEAD, lambda z, b: HEAD.entropy_target(z), coefficient=-0.01, output="policy"),
}


def trainer_of(model, terms=TERMS, learning_rate=0.1):
    return Trainer(model, terms, Optimizer(model.parameters(), "sgd", learning_rate=learning_rate))


def textbook(model, batch):
    """Actor–critic as textbooks write it: −mean(A log π) + ½ · ½ MSE − β mean(H)."""
    outputs = model(batch.input)
    policy = torch.distributions.Categorical(logits=outputs["policy"])
    return (
        -(batch["advantage"] * policy.log_prob(batch["action"])).mean()
        + 0.5 * 0.5 * F.mse_loss(outputs["value"], batch["return"])
        - 0.01 * policy.entropy().mean()
    )


def assert_equal_models(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_three_terms_step_as_the_textbook_loss(masked):
    mask = torch.arange(20) % 3 != 0 if masked else None
    batch = rollout_batch(mask=mask)
    ours, theirs = actor_critic(), actor_critic()
    trainer, sgd = trainer_of(ours), torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(5):
        trainer.step(batch)
        sgd.zero_grad()
        textbook(theirs, batch.counted()).backward()
        sgd.step()
    assert_equal_models(ours, theirs)


def test_masked_rows_may_hold_anything():
    mask = torch.arange(20) % 3 != 0
    clean, rotten = rollout_batch(mask=mask), rollout_batch(mask=mask)
    rotten.input[~mask] = math.nan
    rotten["action"][~mask] = 99
    rotten["advantage"][~mask] = math.inf
    a, b = actor_critic(), actor_critic()
    trainer_of(a).step(clean)
    trainer_of(b).step(rotten)
    assert_equal_models(a, b)


def test_reports_are_constants_of_the_rows_that_count():
    mask = torch.arange(20) % 2 == 0
    model = actor_critic()
    batch = rollout_batch(mask=mask)
    with torch.no_grad():
        logits = model(batch.input)["policy"][mask]
    report = trainer_of(model).step(batch)["policy"]
    torch.testing.assert_close(report.logits, logits)
    assert torch.equal(report.target, batch["action"][mask])
    torch.testing.assert_close(report.cross_entropy, F.cross_entropy(logits, report.target, reduction="none"))
    assert torch.equal(report.weight, batch["advantage"][mask])
    expected = (report.weight * report.cross_entropy).mean()
    torch.testing.assert_close(report.loss, expected)
    for tensor in (report.logits, report.target, report.cross_entropy, report.weight, report.loss):
        assert not tensor.requires_grad


def test_rules_see_constants_and_only_rows_that_count():
    seen = {}

    def target(logits, batch):
        seen["logits"] = logits
        return batch["action"]

    def weight(cross_entropy, batch):
        seen["cross_entropy"] = cross_entropy
        seen["rows"] = len(batch)
        return (1 - (-cross_entropy).exp()) ** 2  # focal, detached

    terms = {"policy": Term(HEAD, target, weight, output="policy")}
    trainer_of(actor_critic(), terms).step(rollout_batch(mask=torch.arange(20) < 7))
    assert seen["rows"] == len(seen["logits"]) == len(seen["cross_entropy"]) == 7
    assert not seen["logits"].requires_grad
    assert not seen["cross_entropy"].requires_grad


@pytest.mark.parametrize("rule", ["target", "weight"])
def test_rules_that_write_into_what_they_are_given_are_refused(rule):
    def writes(given, batch):
        given.div_(2)
        return batch["action" if rule == "target" else "advantage"]

    network = mlp(4, 3).double()
    term = Term(HEAD, **{"target": "action", "weight": "advantage", rule: writes})
    with pytest.raises(ValueError, match="rules write into nothing that they are given: one of the term own"):
        Trainer(network, {"own": term}, Optimizer(network.parameters())).step(rollout_batch())


def test_a_divisor_of_the_whole_makes_pieces_exact():
    batch = rollout_batch()
    whole, pieces = actor_critic(), actor_critic()
    term = TERMS["policy"]
    reports = trainer_of(whole, {"policy": term}).step(batch)
    halves = Term(HEAD, "action", "advantage", output="policy", divisor=lambda _: 20)
    losses = [
        trainer_of(copy.deepcopy(pieces), {"policy": halves}).step(batch.rows(part))["policy"].loss
        for part in torch.arange(20).split([3, 17])
    ]
    torch.testing.assert_close(sum(losses), reports["policy"].loss)


def test_sequences_with_a_mask_of_two_axes():
    """(B, L) examples: the model sees whole sequences, the objective only the steps that count."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    mask = torch.rand(5, 6) < 0.6
    x, label = torch.randn(5, 6, 4, dtype=DOUBLE), torch.randint(3, (5, 6))
    expected = F.cross_entropy(model(x)[mask], label[mask])
    report = trainer_of(model, {"label": Term(HEAD)}).step(Batch(x, {"target": label}, mask))
    torch.testing.assert_close(report["label"].loss, expected.detach())
    assert len(report["label"].batch) == int(mask.sum()) == count(Batch(x, {}, mask))


def test_an_empty_batch_changes_nothing():
    model = actor_critic()
    before = copy.deepcopy(model)
    reports = trainer_of(model).step(rollout_batch(mask=torch.zeros(20, dtype=torch.bool)))
    assert reports["policy"].loss.item() == 0
    assert_equal_models(model, before)


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing():
    model = actor_critic()
    before = copy.deepcopy(model)
    batch = rollout_batch()
    batch["return"][3] = math.nan
    with pytest.raises(FloatingPointError, match=r"losses: policy \S+, value nan, entropy"):
        trainer_of(model).step(batch)
    assert_equal_models(model, before)


def test_a_dict_of_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return self.linear(torch.cat((x["a"], x["b"]), -1))

    batch = Batch({"a": torch.randn(6, 1), "b": torch.randn(6, 2)}, {"target": torch.arange(6) % 2})
    assert len(batch.rows(torch.tensor([0, 3]))) == 2
    assert trainer_of(Two(), {"label": Term(HEAD)}).step(batch)["label"].loss.isfinite()


def test_shuffled_parts_hold_every_row_that_counts_once():
    mask = torch.arange(20) % 3 != 0
    batch = rollout_batch(mask=mask)
    batch = Batch(batch.input, {"row": torch.arange(20)}, mask)
    parts = list(batch.shuffled(4, torch.Generator().manual_seed(0)))
    rows = torch.cat([part["row"] for part in parts])
    assert [len(part) for part in parts] == [4, 3, 3, 3]
    assert sorted(rows.tolist()) == mask.nonzero().flatten().tolist()
    assert rows.tolist() != sorted(rows.tolist())
    assert [len(p) for p in batch.rows(torch.arange(2)).shuffled(5)] == [1]


@pytest.mark.parametrize(
    ("every", "totals"),
    [([7, 11, 6], [6, 6, 6, 6]), ([2, 2], [1, 1, 1, 1]), ([0, 3, 6], [3, 2, 2, 2]), ([1, 2], [1, 1, 1])],
)
def test_shuffled_parts_are_of_nearly_equal_size_in_all_processes_together(every, totals, monkeypatch):
    monkeypatch.setattr(processes, "everyones", lambda own: every)
    sizes = []
    for rank, rows in enumerate(every):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts = [*Batch(torch.zeros(rows), {}).shuffled(4, passes=2)]
        assert [part.total for part in parts] == 2 * totals
        sizes.append([len(part) for part in parts])
        assert sum(sizes[-1]) == 2 * rows
    assert [sum(each) for each in zip(*sizes, strict=True)] == 2 * totals
    assert sizes[0][-1] or not every[0], "the last part, which the first process logs"


def test_shuffled_parts_of_a_large_batch_are_random_ones():
    batch = Batch(torch.zeros(10_000), {"row": torch.arange(10_000)})
    first, second, *_ = parts = [part["row"] for part in batch.shuffled(4, passes=2)]
    for whole in (parts[:4], parts[4:]):
        assert sorted(torch.cat(whole).tolist()) == list(range(10_000))
    assert all(4_500 < part.float().mean() < 5_500 for part in parts)
    assert not torch.equal(first, second)
    assert len(set(first.tolist()) & set(parts[4].tolist())) < 1_000  # of 2,500: 625 by chance


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batch(torch.zeros(3, 2), {"a": torch.zeros(2)}), r"input has 3, a has shape (2,)"),
        (lambda: Batch(torch.zeros(3), {"a": torch.zeros(())}), "a has shape ()"),
        (lambda: Batch(torch.zeros(3), {}, torch.ones(3)), "it has dtype torch.float32"),
        (lambda: Batch(torch.zeros(3), {}, torch.ones(2) > 0), "mask has shape (2,)"),
        (lambda: next(Batch(torch.zeros(3), {}).shuffled(0)), "parts is 0"),
        (lambda: trainer_of(nn.Linear(1, 1), {}), "terms is empty"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_missing_column_is_named():
    with pytest.raises(KeyError, match="no column 'target': it has action, advantage, return"):
        rollout_batch()["target"]


def test_the_loop_stops_rounds_and_training():
    trainer = trainer_of(actor_critic())
    batch = rollout_batch()
    seen = []

    def after(n, reports):
        seen.append((n, trainer.optimizer.steps, sorted(reports)))
        return n == 2

    train(
        trainer,
        ([batch] * 5 for _ in range(10)),
        stop=lambda reports: trainer.optimizer.steps % 3 == 0,
        after=after,
    )
    assert [(n, steps) for n, steps, _ in seen] == [(0, 3), (1, 6), (2, 9)]
    assert seen[0][2] == ["entropy", "policy", "value"]
    train(trainer, [[]], after=lambda n, reports: seen.append((n, reports)))
    assert seen[-1] == (0, {})
