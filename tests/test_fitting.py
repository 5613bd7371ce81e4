"""`fit` against a torch loop written by hand, and what it refuses before the first step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pgce
from pgce.data import as_batch
from pgce.heads import Bernoulli, Gaussian

DOUBLE = torch.float64


def digits():
    data = pgce.envs.datasets.load("digits")
    return torch.from_numpy(data.train_inputs).double(), torch.from_numpy(data.train_labels)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()


@pytest.mark.parametrize(("name", "optimizer"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
@pytest.mark.parametrize("seed", [1, 2])
def test_parameters_equal_a_hand_written_loop_s(name, optimizer, seed):
    """Three epochs on digits in float64: the same to 1e-10."""
    inputs, labels = digits()
    ours, theirs = network(seed), network(seed)
    pgce.fit(
        ours,
        (inputs, labels),
        optimizer=name,
        learning_rate=1e-2,
        epochs=3,
        batch_size=50,
        seed=seed,
        device="cpu",
    )
    stepper = optimizer(theirs.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for rows in torch.randperm(len(inputs), generator=generator).split(50):
            stepper.zero_grad()
            F.cross_entropy(theirs(inputs[rows]), labels[rows]).backward()
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    untrained = next(network(seed).parameters())
    assert (next(ours.parameters()) - untrained).abs().max() > 1e-2


def test_history_validation_and_stopping():
    inputs, labels = digits()
    seen = []

    def after(row, report):
        seen.append(row)
        assert len(report.batch) == 1347 % 128
        return len(seen) == 3

    history = pgce.fit(
        network(0),
        (inputs, labels),
        validation=(inputs[:100], labels[:100]),
        epochs=9,
        after=after,
        device="cpu",
    )
    assert history["epoch"] == [1, 2, 3]
    assert history["examples"] == [1347, 2694, 4041]
    assert history["loss"][2] < history["loss"][0] < math.log(10) + 0.1
    assert history["val_accuracy"][2] > history["val_accuracy"][0]
    assert seen == history.epochs


def test_the_schedule_runs_to_its_end():
    rates = pgce.fit(
        network(0), digits(), epochs=4, schedule="linear", learning_rate=1.0, optimizer="sgd",
        max_grad_norm=1e-6, device="cpu",
    )["learning_rate"]  # fmt: skip
    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx(0.5, abs=0.03)
    assert 0 < rates[-1] < 0.03


def test_sample_weight_zero_leaves_an_example_out():
    inputs, labels = digits()
    wrong = labels.clone()
    weight = torch.ones(len(labels), dtype=DOUBLE)
    wrong[::2], weight[::2] = 0, 0.0
    ours, clean = network(0), network(0)
    options = {"epochs": 1, "batch_size": len(labels), "optimizer": "sgd", "device": "cpu"}
    pgce.fit(ours, (inputs, wrong, weight), weight="sample_weight", learning_rate=2.0, **options)
    pgce.fit(clean, (inputs[1::2], labels[1::2]), learning_rate=1.0, **options)
    # w = 0 counts in n: 1347 rows instead of 673
    for a, b in zip(ours.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)


def test_regression_and_yes_or_no():
    torch.manual_seed(0)
    inputs = torch.randn(300, 3)
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    slope = torch.tensor([1.0, -2.0, 0.5])
    pgce.fit(model, (inputs, inputs @ slope), head=Gaussian(), epochs=60, learning_rate=0.05, device="cpu")
    torch.testing.assert_close(model[0].weight[0], slope, rtol=0, atol=1e-3)
    assert "accuracy" not in pgce.evaluate(model, (inputs, inputs @ slope), head=Gaussian())
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    yes = inputs[:, 0] > 0
    pgce.fit(model, (inputs, yes), head=Bernoulli(), epochs=60, learning_rate=0.1, device="cpu")
    assert (pgce.predict(model, inputs, head=Bernoulli()) == yes).float().mean() > 0.97


def test_numpy_predicts_in_evaluation_mode_and_leaves_the_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    inputs = np.random.default_rng(0).normal(size=(50, 4))
    model.train()
    first, second = pgce.predict(model, inputs), pgce.predict(model, inputs)
    assert torch.equal(first, second)
    assert model.training
    batch = as_batch((inputs, np.arange(50)))
    assert batch.input.dtype == torch.float32
    assert batch["target"].dtype == torch.int64


X, Y = torch.randn(6, 64, dtype=DOUBLE), torch.arange(6)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X[:0], Y[:0]), {}, "at least one example"),
        ((X, Y[:5]), {}, r"input has 6, target has shape \(5,\)"),
        ((X,), {}, "there are 1"),
        ((X, Y + 5), {}, r"data: class ids lie in 0\.\.9: target holds ids from 5 to 10"),
        ((X, Y.double()), {}, "data: a target is integer class ids"),
        ((X, Y), {"validation": (X, Y - 1)}, "validation: class ids .* from -1 to 4"),
        ((X * math.nan, Y), {}, "data: inputs, targets and weights are finite"),
        ((X, Y, torch.full((6,), math.inf)), {}, "data: inputs, targets and weights are finite"),
        ((X, Y), {"epochs": 0}, "epochs is 0"),
        ((X, Y), {"batch_size": 0}, "batch_size is 0"),
        ((X, Y), {"optimizer": "sdg"}, "it is 'sdg'"),
    ],
)
def test_fit_refuses_before_the_first_step(data, options, message):
    model = network(0)
    with pytest.raises(ValueError, match=message):
        pgce.fit(model, data, device="cpu", **options)
    for a, b in zip(model.parameters(), network(0).parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="momentun"):
        pgce.fit(network(0), (X, Y), optimizer="sgd", momentun=0.9, device="cpu")
