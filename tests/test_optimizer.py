"""The optimizer stack against torch's optimizers, and its refusals."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from pgce.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
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


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("adamw", torch.optim.AdamW, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("sgd", torch.optim.SGD, {}),
    ],
)
def test_settings_and_states_that_someone_changes_count_at_once(name, theirs, options):
    """Also where a CPU replays its updates."""
    ours_model, their_model = network(), network()
    ours = Optimizer(ours_model.parameters(), name, learning_rate=0.05, **options)
    other = theirs(their_model.parameters(), lr=0.05, **options)
    for n in range(12):
        ours.base_learning_rate = other.param_groups[0]["lr"] = 0.05 / (1 + n // 2)
        if n == 4:
            ours.torch_optimizer.param_groups[0]["weight_decay"] = 0.3
            other.param_groups[0]["weight_decay"] = 0.3
        if n == 8:
            ours.load_state_dict(ours.state_dict())
        ours_model(INPUT).square().sum().backward()
        ours.step()
        other.zero_grad()
        their_model(INPUT).square().sum().backward()
        other.step()
        if n == 10:
            assert ours._play is not None
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_models_of_half_precision_learn_by_sgd(momentum, dtype):
    ours_model, their_model = network(dtype), network(dtype)
    ours = Optimizer(ours_model.parameters(), "sgd", learning_rate=0.05, momentum=momentum)
    other = torch.optim.SGD(their_model.parameters(), lr=0.05, momentum=momentum)
    for _ in range(5):
        ours_model(INPUT.to(dtype)).float().square().mean().backward()
        ours.step()
        other.zero_grad()
        their_model(INPUT.to(dtype)).float().square().mean().backward()
        other.step()
    assert not torch.equal(ours_model[0].weight, network(dtype)[0].weight)
    for a, b in zip(ours_model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=0.005)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.5}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9}),
    ],
)
def test_what_is_frozen_meanwhile_does_not_move(name, theirs, options):
    ours_model, their_model = network(), network()
    ours = Optimizer(ours_model.parameters(), name, learning_rate=0.01, **options)
    other = theirs(their_model.parameters(), lr=0.01, **options)
    for n in range(8):
        for model in (ours_model, their_model):
            model[0].requires_grad_(n < 4)
        frozen = ours_model[0].weight.detach().clone()
        ours_model(INPUT).square().sum().backward()
        ours.step()
        assert torch.equal(ours_model[0].weight, frozen) == (n >= 4)
        other.zero_grad()
        their_model(INPUT).square().sum().backward()
        other.step()
    for a, b in zip(ours_model.parameters(), their_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


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


def test_parameters_that_someone_put_elsewhere_still_learn():
    model = network()
    optimizer = Optimizer(model.parameters(), "sgd", learning_rate=0.1)
    for _ in range(2):
        moved = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
        nn.utils.vector_to_parameters(moved, model.parameters())
        model(INPUT).sum().backward()
        optimizer.step()
        assert torch.equal(model[2].bias, torch.full((2,), -1.6, dtype=torch.float64))
    model.float()
    with pytest.raises(
        ValueError, match=r"one was \(8, 3\) of torch.float64 on cpu, it is .* of torch.float32"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copied", "pickled"]
)
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_copies_go_on_alike(name, copied):
    model = network()
    optimizer = Optimizer(model.parameters(), name, learning_rate=0.1, ema_decay=0.9)

    def step(model, optimizer):
        model(INPUT).square().sum().backward()
        optimizer.step()

    step(model, optimizer)
    other_model, other = copied((model, optimizer))
    for _ in range(3):
        step(model, optimizer)
    kept = copy.deepcopy(other_model.state_dict())
    for _ in range(3):
        step(other_model, other)
    for key, value in model.state_dict().items():
        assert torch.equal(other_model.state_dict()[key], value)
        assert not torch.equal(kept[key], value)


def test_updates_left_out_in_a_row_are_counted_on():
    def skip(optimizer, model):
        model[0].weight.grad.fill_(math.nan)
        optimizer.step()

    model = network()
    optimizer = Optimizer(model.parameters(), "sgd", max_skips=2)
    for _ in range(2):
        skip(optimizer, model)
    other = network()
    resumed = Optimizer(other.parameters(), "sgd", max_skips=2)
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.raises(FloatingPointError, match="3 times in a row"):
        skip(resumed, other)
    older = {name: value for name, value in optimizer.state_dict().items() if name != "in_a_row"}
    resumed.load_state_dict(older)
    skip(resumed, other)


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
    moved, told = [], []
    for progress in (0.0, 0.0, 0.0, 0.0, 0.5):
        before = model.weight.item()
        optimizer.progress = progress
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        moved.append(before - model.weight.item())
        told.append(optimizer.last_rate)
    assert moved == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5], abs=1e-6)
    assert told == [0.25, 0.5, 0.75, 1.0, 0.5]


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


STACKS = [
    ("sgd", {}),
    ("sgd", {"momentum": 0.9}),
    ("adam", {"amsgrad": True}),
    ("adamw", {}),
    ("rmsprop", {"momentum": 0.5, "centered": True}),
    ("adadelta", {"learning_rate": 1.0}),
]


def stack(name, options):
    """A model of two dtypes and all that a stack can have."""
    model = network(torch.float32)
    model[2].double()
    settings = {"learning_rate": 0.05, "schedule": "cosine", "warmup_steps": 7, "max_grad_norm": 0.5}
    return model, Optimizer(model.parameters(), name, ema_decay=0.9, **{**settings, **options})


def train(model, optimizer, steps):
    for n in steps:
        optimizer.progress = n / 10
        rows = INPUT[n : n + 4].float()
        optimizer.scaled(model[2](model[1](model[0](rows)).double()).square().sum()).backward()
        optimizer.step()


def content(model, optimizer):
    """Parameters, averaged parameters and the optimizer's state, to be compared bit by bit."""
    with optimizer.averaged():
        averaged = copy.deepcopy(model.state_dict())
    return copy.deepcopy(model.state_dict()), averaged, optimizer.state_dict(), optimizer.learning_rate


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("name", "options"), STACKS)
@pytest.mark.parametrize("k", [0, 4])
def test_an_interrupted_training_goes_on_bit_equal(name, options, k, tmp_path):
    straight = stack(name, options)
    train(*straight, range(10))
    model, optimizer = stack(name, options)
    train(model, optimizer, range(k))
    save_checkpoint(tmp_path, k, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(k, k + 2))  # what is lost in the crash changes nothing of what was saved
    state = load_checkpoint(tmp_path).state
    resumed = stack(name, options)
    with torch.no_grad():
        for parameter in resumed[0].parameters():
            parameter.fill_(7.0)  # nothing comes from the same seed
    resumed[0].load_state_dict(state["model"])
    forgetful = stack(name, options)  # the control: weights alone are not enough
    forgetful[0].load_state_dict(state["model"])
    resumed[1].load_state_dict(state["optimizer"])
    train(*resumed, range(k, 10))
    assert same(content(*resumed), content(*straight))
    train(*forgetful, range(k, 10))
    assert k == 0 or not same(content(*forgetful), content(*straight))


def test_the_gradient_scaler_goes_on(tmp_path):
    def half():
        torch.manual_seed(0)
        model = nn.Linear(2, 1)
        return model, Optimizer(model.parameters(), "sgd", learning_rate=0.01, precision="float16")

    model, optimizer = half()
    optimizer.scaled(model(torch.full((1, 2), 1e36)).sum()).backward()  # times the scale it overflows
    optimizer.step()
    assert (optimizer.skipped, optimizer.steps, optimizer.grad_norm) == (1, 0, math.inf)
    save_checkpoint(tmp_path, 0, {"optimizer": optimizer.state_dict()})
    resumed = half()[1]
    resumed.load_state_dict(load_checkpoint(tmp_path).state["optimizer"])
    assert resumed.state_dict() == optimizer.state_dict()
    assert resumed.state_dict()["scaler"]["scale"] == half()[1].state_dict()["scaler"]["scale"] / 2
    with pytest.raises(CheckpointError, match="precision is float32 here"):
        Optimizer(model.parameters(), "sgd").load_state_dict(optimizer.state_dict())
    bad = optimizer.state_dict()
    bad["scaler"]["scale"] = math.nan
    with pytest.raises(CheckpointError, match="a gradient scaler's numbers are finite"):
        half()[1].load_state_dict(bad)


def test_a_scale_of_one_is_not_to_blame_for_a_gradient_that_is_not_finite():
    model = nn.Linear(2, 1)
    optimizer = Optimizer(model.parameters(), "sgd", precision="float16", max_skips=2)

    def step(x):
        optimizer.scaled(model(torch.full((1, 2), x)).sum()).backward()
        optimizer.step()

    for _ in range(16 + 2):  # from a scale of 2 ** 16 on, and two that may be left out
        step(math.nan)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="the gradient must be finite: its norm is nan"):
            step(math.nan)
    step(1.0)
    assert (optimizer.steps, optimizer.skipped) == (1, 20)
    assert optimizer.state_dict()["scaler"]["scale"] == 1


def change(state, path, value):
    """The state with another value at a path of keys; None takes the key out."""
    state = copy.deepcopy(state)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value(inner.get(path[-1]))
    return state


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("torch", "0", "exp_avg"), lambda t: t[1:], r"state 0 does not fit: 'exp_avg' has shape \(31"),
        (("torch", "0", "exp_avg"), torch.Tensor.double, "'exp_avg' is of torch.float64, not torch.float32"),
        (("torch", "0", "exp_avg_sq"), lambda t: t * math.nan, "'exp_avg_sq' is not finite"),
        (("torch", "0", "step"), None, "'step' is missing"),
        (("torch", "0", "velocity"), lambda t: torch.zeros(1), "'velocity' is unexpected"),
        (("torch", "0", "exp_avg"), lambda t: [0.0], "'exp_avg' is no tensor but list"),
        (("torch", "1"), None, r"has parts \['0', '1'\] here: it has \['0'\]"),
        (("average", "1"), lambda t: t * math.inf, "averaged weights does not fit: '1' is not finite"),
        (("average", "1"), None, "averaged weights does not fit: '1' is missing"),
        (("progress",), lambda _: math.nan, r"progress of training lies in \[0, 1\]: it is nan"),
        (("steps",), lambda _: -1, "a count is a whole number: it is -1"),
        (("steps",), lambda _: True, "a count is a whole number: it is True"),
        (("steps",), None, "this is no optimizer's state: KeyError"),
        (("name",), lambda _: "sgd", "the state of 'sgd' does not fit the optimizer 'adam'"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(path, value, message):
    model, optimizer = stack("adam", {})
    train(model, optimizer, range(3))
    before = content(model, optimizer)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(change(optimizer.state_dict(), path, value))
    assert same(content(model, optimizer), before)


def test_no_compiler_is_imported():
    code = (
        "import sys, torch, pgce; from pgce.optimizer import Optimizer\n"
        "model = torch.nn.Linear(2, 1)\n"
        "optimizer = Optimizer(model.parameters())\n"
        "model(torch.ones(2)).sum().backward()\n"
        "optimizer.step()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "assert optimizer.steps == 1 and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
