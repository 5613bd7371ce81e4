"""Numbers that are logged, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pgce.agents import PPO
from pgce.heads import Categorical, Gaussian
from pgce.logger import TAGS
from pgce.metrics import (
    LOWER_IS_BETTER,
    accuracy,
    calibration,
    classification,
    entropy,
    explained_variance,
    factors,
    interquartile_mean,
    multilabel,
    regression,
    summary,
)
from pgce.trainer import Batch, Report, Term


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


def test_explained_variance_is_of_returns_where_values_are_clipped():
    agent, value = PPO(clip_vloss=True), torch.tensor([1.0, 2.0, 3.0])
    batch = Batch(value, {"value": torch.zeros(3), "return": torch.tensor([3.0, -1.0, 2.0])})
    seen = {"value": replace(report(value, agent.value_target(value, batch)), batch=batch)}
    terms = {"value": Term(Gaussian(), agent.value_target)}
    expected = explained_variance(report(value, batch["return"]))
    assert summary(seen, terms)["train/explained_variance"] == expected < 0


def problem(classes, size=300):
    g = torch.Generator().manual_seed(0)
    p = torch.randn(size, classes, generator=g).mul(2).softmax(-1)
    return torch.multinomial(p, 1, generator=g)[:, 0], p


@pytest.mark.parametrize("classes", [2, 4, 8])
def test_classification_by_hand(classes):
    y, p = problem(classes)
    scores = classification(y, p)
    guess = p.argmax(1)
    assert scores["accuracy"] == pytest.approx((guess == y).double().mean().item())
    recall = [(guess[y == k] == k).double().mean().item() for k in range(classes)]
    assert scores["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert scores["log_loss"] == pytest.approx(
        -p.double()[torch.arange(300), y].log().mean().item(), rel=1e-5
    )
    error = (p - torch.nn.functional.one_hot(y, classes)).square()
    brier = error[:, 1].mean() if classes == 2 else error.sum(1).mean()
    assert scores["brier"] == pytest.approx(brier.item(), rel=1e-4)
    assert ("top_5_accuracy" in scores) == (classes > 5)
    assert 0.5 < scores["roc_auc"] < 1


def test_a_class_that_neither_occurs_nor_is_guessed_has_no_score():
    y, p = torch.tensor([0, 0, 1, 1]), torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    assert classification(y, p)["f1_macro"] == classification(y, p)["balanced_accuracy"] == 1
    assert classification(y, torch.eye(3)[torch.tensor([0, 0, 1, 2])])["f1_macro"] == pytest.approx(5 / 9)


def test_the_calibration_error_by_hand():
    y, p = problem(4)
    confidence, right = p.max(1).values.double(), (p.argmax(1) == y).double()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += (confidence[inside].mean() - right[inside].mean()).abs() * inside.double().mean()
    assert classification(y, p)["ece"] == pytest.approx(float(expected), abs=1e-9)
    assert calibration(y, p)[2].sum() == 300
    sure = torch.eye(4)[y]
    assert classification(y, sure)["ece"] == 0


def test_of_one_class_there_is_no_probability_to_judge():
    expected = {"accuracy": 1, "balanced_accuracy": 1, "f1_macro": 1, "ece": 0}
    assert classification(torch.zeros(3).long(), torch.ones(3, 1)) == expected


def test_a_class_that_does_not_occur_leaves_the_roc_curve_out():
    scores = classification(torch.tensor([0, 1, 1]), torch.eye(3)[[0, 1, 2]])
    assert "roc_auc" not in scores
    assert scores["balanced_accuracy"] == 0.75


def test_multilabel_and_regression():
    y, p = torch.tensor([[1, 0], [1, 1], [0, 1]]), torch.tensor([[0.9, 0.2], [0.8, 0.4], [0.3, 0.7]])
    scores = multilabel(y, p)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["label_accuracy"] == pytest.approx(5 / 6)
    assert scores["average_precision"] == scores["roc_auc"] == 1
    assert "roc_auc" not in multilabel(torch.ones(3, 2), p)
    assert regression(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])) == {
        "mse": 0.5,
        "mae": 0.5,
        "r2": 0.5,
    }


def test_every_metric_has_a_tag_and_a_direction():
    names = {*classification(*problem(8)), *regression(torch.ones(2), torch.ones(2)), "loss"}
    names |= set(multilabel(torch.tensor([[1, 0], [0, 1]]), torch.eye(2)))
    assert {f"eval/{name}" for name in names} <= TAGS.keys()
    assert names >= LOWER_IS_BETTER


def test_the_interquartile_mean_is_scipy_s():
    scores = np.random.default_rng(1).normal(size=(11, 3))
    mean, low, high = interquartile_mean(scores)
    np.testing.assert_allclose(mean, stats.trim_mean(scores, 0.25))
    for column in range(3):  # each by itself
        alone = interquartile_mean(scores[:, column])
        assert alone == pytest.approx((mean[column], low[column], high[column]))
    draws = stats.bootstrap(
        (scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(2), batch=1_000,
    )  # fmt: skip
    np.testing.assert_allclose(low, draws.confidence_interval.low, atol=0.1)
    np.testing.assert_allclose(high, draws.confidence_interval.high, atol=0.1)
    assert (low < mean).all()
    assert (mean < high).all()
    assert interquartile_mean(np.array([7.0])) == (7.0, 7.0, 7.0)
