"""Perceptrons give what torch's own layers give, however they are computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pgce import perceptrons
from pgce.networks import ActorCritic, Value, WithScale, hidden_layers, mlp
from pgce.perceptrons import Perceptron

NETWORKS = {
    "tanh": lambda: mlp(5, 3, (16, 8)),
    "relu": lambda: mlp(5, 3, (16, 8), "relu"),
    "silu": lambda: mlp(5, 3, (16, 8), "silu"),
    "one layer": lambda: mlp(5, 3, ()),
    "wide inputs": lambda: mlp(5, 3, (2,)),
    "hidden only": lambda: hidden_layers(5, (16, 8)),
    "nested": lambda: Perceptron(hidden_layers(5, (16, 8)), nn.Linear(8, 3)),
    "without bias": lambda: Perceptron(nn.Linear(5, 8, bias=False), nn.Tanh(), nn.Linear(8, 3)),
    "two linear": lambda: Perceptron(nn.Linear(5, 8), nn.Linear(8, 8), nn.ReLU()),
    "two kinds": lambda: Perceptron(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU()),
}


def by_torch(network):
    """The same layers, called by torch."""
    return nn.Sequential(*(by_torch(m) if isinstance(m, nn.Sequential) else m for m in network))


def gradients(outputs, network, x):
    generator = torch.Generator().manual_seed(3)
    losses = [(y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs]
    return torch.autograd.grad(sum(losses), [x, *network.parameters()])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_those_of_torch(name, rows, fast, monkeypatch):
    monkeypatch.setattr(perceptrons, "_HAS_FAST_TANH", fast)  # by either way, on any processor
    monkeypatch.setattr(perceptrons, "_PIECE", 8)  # for each thread: 300 are many
    torch.manual_seed(1)
    network = NETWORKS[name]().double()
    x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    own, theirs = network(x), by_torch(network)(x)
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)
    for mine, other in zip(*(gradients([y], network, x) for y in (own, theirs)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_many_rows_without_gradients_are_what_they_are_with_them(name):
    network, x = NETWORKS[name](), torch.randn(9_000, 5)
    with torch.no_grad():
        own = network(x)
        torch.testing.assert_close(own, by_torch(network)(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own, network(x).detach(), rtol=1e-5, atol=1e-6)


def test_many_rows_are_one_batch_to_layers_that_look_at_all():
    network, x = Perceptron(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh()), torch.randn(9_000, 5)
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(y, by_torch(network)(x))
    torch.testing.assert_close(y.atanh().mean(0), torch.zeros(8), rtol=0, atol=1e-5)


def test_actor_and_critic_are_what_each_is():
    model = ActorCritic(WithScale(mlp(5, 2), 2), Value(mlp(5, 1), unit=3.0))
    x = torch.randn(64, 5)
    outputs = model(x)
    assert torch.equal(outputs["policy"], model.policy(x))
    assert torch.equal(outputs["value"], model.value(x))


def test_gradients_add_up_and_flow_on():
    network, x = mlp(5, 3), torch.randn(64, 5)
    once = torch.autograd.grad(network(x).sum(), [*network.parameters()])
    for _ in range(2):
        network(x).sum().backward()
    for parameter, gradient in zip(network.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_what_it_gives_may_be_changed_in_place():
    network, x = mlp(5, 3), torch.randn(64, 5, requires_grad=True)
    own, theirs = (gradients([y], network, x) for y in (network(x).mul_(2), 2 * by_torch(network)(x)))
    for mine, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_change_before_the_gradient_is_refused():
    network = mlp(5, 3)
    loss = network(torch.randn(64, 5)).sum()
    with torch.no_grad():
        network[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_numbers_that_are_not_finite_pass_through():
    network, x = mlp(5, 3), torch.full((2, 5), float("inf"))
    (0 * network(x)).sum().backward()
    assert network[0].weight.grad.isnan().any()


INPUTS = {"width": torch.ones(3, 4), "type": torch.ones(3, 5).double(), "one": torch.ones(5)}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_other_inputs_are_what_torch_says(x):
    network = mlp(5, 3)
    outcomes = []
    for model in (network, by_torch(network)):
        try:
            outcomes.append(model(x).shape)
        except RuntimeError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("fast", [False, True])
def test_biases_of_another_type_are_refused(fast, monkeypatch):
    monkeypatch.setattr(perceptrons, "_HAS_FAST_TANH", fast)
    network = mlp(5, 3)
    network[0].bias.data = network[0].bias.data.double()
    with pytest.raises(RuntimeError, match="must have the same dtype"):
        network(torch.ones(3, 5))


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_tanh_by_the_logistic_function_differs_by_rounding(shift, monkeypatch):
    monkeypatch.setattr(perceptrons, "_HAS_FAST_TANH", False)
    x, bias = torch.linspace(-12, 12, 200_001)[:, None], torch.tensor([shift])
    error = perceptrons.linear_tanh(x, torch.ones(1, 1), bias).double() - (x + bias).double().tanh()
    assert error.abs().max() < 2e-7


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_halves_near_0_are_not_lost(kind, monkeypatch):
    monkeypatch.setattr(perceptrons, "_HAS_FAST_TANH", False)
    x = torch.tensor([[1e-3], [-2e-2]], dtype=kind)
    one, none = torch.ones(1, 1, dtype=kind), torch.zeros(1, dtype=kind)
    torch.testing.assert_close(perceptrons.linear_tanh(x, one, none), x.tanh())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")  # which torch says of its own
@pytest.mark.parametrize("kind", ["sparse", "sparse_csr", "mkldnn"])
def test_many_rows_may_be_laid_out_in_other_ways(kind):
    network, x = mlp(5, 3), torch.randn(9_000, 5)
    with torch.no_grad():
        y = network(getattr(x, f"to_{kind}")())
        y = y.to_dense() if y.is_mkldnn else y
        torch.testing.assert_close(y, network(x), rtol=1e-5, atol=1e-6)


def test_without_gradients_the_input_may_want_some():
    network, x = mlp(5, 3), torch.randn(64, 5, requires_grad=True)
    with torch.no_grad():
        assert not network(x).requires_grad
        assert torch.equal(network(x), network(x.detach()))


def test_there_are_second_derivatives():
    network, x = mlp(5, 3).double(), torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(network, x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself calls
def test_derivatives_are_taken_forwards():
    network, x = mlp(5, 3), torch.randn(64, 5)
    changes = []
    with torch.autograd.forward_ad.dual_level():
        for model in (network, by_torch(network)):
            y = model(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            changes.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*changes)


@pytest.mark.parametrize("rows", [64, 5_000])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_hooks_are_called_once_without_gradients(layer, rows):
    network, seen = mlp(5, 3), []
    network[layer].register_forward_hook(lambda *_: seen.append("one"))
    with torch.no_grad(), nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m)):
        network(torch.randn(rows, 5))
        assert seen == [*network[: layer + 1], "one", *network[layer + 1 :], network]
        del seen[:]
    with torch.no_grad():
        network(torch.randn(rows, 5))
    assert seen == ["one"]


def test_a_forward_of_its_own_is_called():
    network = Perceptron(hidden_layers(5, (8,)), nn.Linear(8, 3))
    for layer in (network[0][0], network[0]):
        layer.forward = lambda x, layer=layer: 2 * type(layer).forward(layer, x)
    x = torch.randn(64, 5)
    expected = network[1](2 * (2 * nn.functional.linear(x, *network[0][0].parameters())).tanh())
    torch.testing.assert_close(network(x), expected)


def test_a_part_that_is_compiled_is_called_so():
    seen = []
    network = Perceptron(hidden_layers(5, (8,)), nn.Linear(8, 3))
    network[0].compile(backend=lambda graph, _: seen.append(graph) or graph.forward)
    network(torch.randn(64, 5))
    assert seen


@pytest.mark.parametrize("layer", [True, False])
def test_hooks_are_called(layer):
    network, seen = mlp(5, 3), []
    where = network[0] if layer else network
    where.register_forward_hook(lambda *_: seen.append("forward"))
    where.register_full_backward_hook(lambda *_: seen.append("backward"))
    network(torch.randn(64, 5, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]


def test_autocast_and_transforms_are_torchs():
    network, x = mlp(5, 3), torch.randn(64, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    torch.testing.assert_close(torch.func.vmap(lambda row: network(row[None])[0])(x), network(x))
