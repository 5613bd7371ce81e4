"""The optimizer stack against torch's optimizers, and its refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pgce.optimizer import Optimizer, resolve_device


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


INPUT = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-5}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9}),
        ("adadelta", torch.optim.Adadelta, {}),
    ],
)
def test_equals_torch_with_clipping(name, theirs, options):
    ours_model, their_model = network(), network()
    ours = Optimizer(ours_model.parameters(), name, learning_rate=0.05, max_grad_norm=0.5, **options)
    other = theirs(their_model.parameters(), lr=0.05, **options)
    clipped = 0
    for _ in range(20):
        ours_model(INPUT).square().sum().backward()
        ours.step()
        other.zero_grad()
        their_model(INPUT).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(their_model.parameters(), 0.5)
        other.step()
        clipped += int(norm > 0.5)
        assert ours.grad_norm == pytest.approx(norm.item(), rel=1e-9)
    assert clipped > 0, "clipping was to be tested"
    for a, b in zip(ours_model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_frozen_parameters_and_two_dtypes():
    model = network()
    model[0].weight.requires_grad_(False)
    model[2].float()
    before = copy.deepcopy(model.state_dict())
    optimizer = Optimizer(model.parameters(), "sgd", learning_rate=0.1)
    model[2](model[1](model[0](INPUT)).float()).sum().backward()
    optimizer.step()
    after = model.state_dict()
    assert torch.equal(before["0.weight"], after["0.weight"])
    for name in ("0.bias", "2.weight", "2.bias"):
        assert not torch.equal(before[name], after[name])
        assert before[name].dtype == after[name].dtype


def test_gradients_that_someone_dropped_or_replaced_still_count():
    ours, same = network(), network()
    a, b = (Optimizer(m.parameters(), "sgd", learning_rate=0.1) for m in (ours, same))
    for _ in range(3):
        ours.zero_grad()  # sets them to None, as torch users do
        for model, optimizer in ((ours, a), (same, b)):
            model(INPUT).sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), same.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_copied_model_is_independent():
    model = network()
    optimizer = Optimizer(model.parameters(), "sgd", learning_rate=0.1)
    twin = copy.deepcopy(model)
    before = copy.deepcopy(twin.state_dict())
    model(INPUT).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, twin[0].weight)
    assert all(torch.equal(before[k], v) for k, v in twin.state_dict().items())


@pytest.mark.parametrize(("schedule", "halfway"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedule(schedule, halfway):
    optimizer = Optimizer(network().parameters(), learning_rate=2.0, schedule=schedule)
    assert optimizer.learning_rate == 2.0
    optimizer.progress = 0.5
    assert optimizer.learning_rate == pytest.approx(2.0 * halfway)
    optimizer.progress = 0.25
    expected = {"constant": 1.0, "linear": 0.75, "cosine": (1 + math.sqrt(0.5)) / 2}
    assert optimizer.learning_rate == pytest.approx(2.0 * expected[schedule])


def test_the_schedule_reaches_the_update():
    model = nn.Linear(1, 1, bias=False)
    optimizer = Optimizer(model.parameters(), "sgd", learning_rate=1.0, schedule="linear", warmup_steps=4)
    moved = []
    for progress in (0.0, 0.0, 0.0, 0.0, 0.5):
        before = model.weight.item()
        optimizer.progress = progress
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        moved.append(before - model.weight.item())
    assert moved == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5], abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_bad_gradient_changes_nothing(bad):
    model = network(torch.float32)
    optimizer = Optimizer(model.parameters(), "adam", max_grad_norm=1.0)
    model(INPUT.float()).sum().backward()
    optimizer.step()

    def state():
        moments = optimizer.torch_optimizer.state[optimizer._flat[0]]
        return [*model.state_dict().values(), *moments.values()]

    before = copy.deepcopy(state())
    (bad * model(INPUT.float()).sum()).backward()
    with pytest.raises(FloatingPointError, match="the gradient must be finite"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    model(INPUT.float()).sum().backward()
    optimizer.step()
    assert optimizer.steps == 2
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adamax"}, "optimizer is one of adam, .*: it is 'adamax'"),
        ({"schedule": "step"}, "schedule is one of .*: it is 'step'"),
        ({"learning_rate": 0.0}, "it is 0.0"),
        ({"learning_rate": math.nan}, "it is nan"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"max_grad_norm": 0.0}, "it is 0.0"),
        ({"max_grad_norm": math.nan}, "it is nan"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Optimizer(network().parameters(), **change)


def test_refuses_a_misspelt_option_and_nothing_to_train():
    with pytest.raises(TypeError, match="momentun"):
        Optimizer(network().parameters(), "sgd", momentun=0.9)
    with pytest.raises(ValueError, match="nothing to train"):
        Optimizer(network().requires_grad_(False).parameters())


def test_device():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="it is 'gpu'"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'cuda' is not at hand"):
            resolve_device("cuda")
