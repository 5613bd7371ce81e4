"""Numbers that are logged, by hand."""

from __future__ import annotations

import math

import torch

from pgce.heads import Categorical
from pgce.metrics import accuracy, entropy, explained_variance, factors
from pgce.trainer import Batch, Report


def report(logits, target, cross_entropy=None, weight=None):
    cross_entropy = torch.ones(len(target)) if cross_entropy is None else cross_entropy
    return Report(logits, target, cross_entropy, weight, cross_entropy.mean(), Batch(logits, {}))


def test_factors():
    values = factors(
        report(torch.eye(3), torch.arange(3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([-1.0, 0, 4]))
    )
    assert values["objective/cross_entropy"] == 3
    assert values["objective/weight_mean"] == 1
    assert abs(values["objective/weight_std"] - math.sqrt(7)) < 1e-6
    plain = factors(report(torch.eye(3), torch.arange(3)))
    assert (plain["objective/weight_mean"], plain["objective/weight_std"]) == (1, 0)


def test_accuracy_of_class_ids_and_rows():
    logits, label = torch.eye(4), torch.tensor([0, 1, 0, 0])
    assert accuracy(report(logits, label), Categorical()) == 0.5
    rows = torch.full((4, 4), 0.1)
    rows[torch.arange(4), label] = 0.9
    assert accuracy(report(logits, rows), Categorical()) == 0.5


def test_entropy_and_explained_variance():
    assert abs(entropy(report(torch.zeros(2, 4), torch.zeros(2)), Categorical()) - math.log(4)) < 1e-6
    value = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(report(value, value)) == 1
    assert explained_variance(report(torch.zeros(3), value)) == 0
    assert explained_variance(report(value + 5, value)) == 1, "a constant error varies nothing"
    assert math.isnan(explained_variance(report(value, torch.ones(3))))
