"""A recurrent layer over a sequence, and its gradient, are torch's own."""

import weakref
from functools import partial

import pytest
import torch
from torch import nn

from pgce.memories import GRU, LSTM, scan
from pgce.networks import Recurrent


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_a_sequence_and_its_gradients_are_those_of_torch_s_cell(kind):
    torch.manual_seed(0)
    cell = (nn.GRUCell if kind is GRU else nn.LSTMCell)(3, 4, dtype=torch.float64)
    weights = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
    x = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    start = torch.randn(5, 4 if kind is GRU else 8, dtype=torch.float64, requires_grad=True)
    kept = (torch.rand(5, 7, 1) < 0.7).double()

    mine = scan(kind, x @ cell.weight_ih.t() + cell.bias_ih, kept, start, cell.weight_hh, cell.bias_hh)
    state, states = start, []
    for t in range(7):
        state = state * kept[:, t]
        after = cell(x[:, t], state if kind is GRU else tuple(state.chunk(2, -1)))
        state = after if kind is GRU else torch.cat(after, -1)
        states.append(state)
    theirs = torch.stack(states, 1)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    seen = torch.randn_like(mine)
    found = (torch.autograd.grad((every * seen).sum(), (x, start, *weights)) for every in (mine, theirs))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_a_lower_precision_is_that_of_the_products_before(kind):
    """What is carried from step to step keeps all its digits."""
    torch.manual_seed(0)
    gates = 3 if kind is GRU else 4
    x, weight = torch.randn(2, 5, gates * 4).bfloat16(), torch.randn(gates * 4, 4, requires_grad=True)
    how = torch.ones(2, 5, 1), torch.zeros(2, 4 if kind is GRU else 8), weight, torch.zeros(gates * 4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = scan(kind, x, *how)
    assert torch.equal(inside, scan(kind, x.float(), *how))
    inside.sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def by_cell(memory, x, first, state):
    """What a memory gives, by torch's cell step by step."""
    encoded, states = memory.encoder(x), []
    own = nn.LSTMCell if isinstance(memory.cell, nn.LSTMCell) else nn.GRUCell
    for t in range(x.shape[1]):
        state = state * ~first[:, t : t + 1]
        given = tuple(state.chunk(2, -1)) if own is nn.LSTMCell else state
        after = own.forward(memory.cell, encoded[:, t], given)
        state = torch.cat(after, -1) if own is nn.LSTMCell else after
        states.append(state)
    return torch.stack(states, 1)


def memory_of(kind):
    """A memory, its weights, and two sequences with a state before each."""
    torch.manual_seed(0)
    memory = Recurrent(nn.Linear(3, 4), 4, 5, kind).double()
    x, first = torch.randn(2, 6, 3, dtype=torch.float64), torch.rand(2, 6) < 0.3
    return memory, x, first, torch.randn(2, memory.state_size, dtype=torch.float64)


KINDS = pytest.mark.parametrize("kind", ["gru", "lstm"])


@KINDS
def test_there_are_second_derivatives(kind):
    memory, x, first, state = memory_of(kind)
    found = []
    for function in (lambda *given: memory(*given)[1], partial(by_cell, memory)):
        (wanted,) = torch.autograd.grad(
            function(seen := x.clone().requires_grad_(), first, state).square().sum(), seen, create_graph=True
        )
        found.append(torch.autograd.grad(wanted.square().sum(), [seen, *memory.parameters()]))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)


@KINDS
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself calls
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's own cell
def test_transforms_of_functions_are_torch_s(kind):
    """Those of torch.func, and gradients of many directions at once."""
    memory, x, first, state = memory_of(kind)

    def each(function):
        yield torch.func.grad(lambda seen: function(seen, first, state).square().sum())(x)
        yield torch.func.jacfwd(lambda seen: function(seen, first, state).sum((0, 1)))(x)
        sums = partial(torch.sum, dim=(0, 1))
        jacobian = torch.autograd.functional.jacobian
        yield jacobian(lambda seen: sums(function(seen, first, state)), x, vectorize=True)

    found = each(lambda *given: memory(*given)[1]), each(partial(by_cell, memory))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)
    one_by_one = torch.func.vmap(lambda *row: memory(*(part[None] for part in row))[1][0])
    torch.testing.assert_close(one_by_one(x, first, state), memory(x, first, state)[1], rtol=0, atol=1e-9)


@KINDS
def test_a_gradient_may_be_asked_for_again_and_leaves_nothing_behind(kind, monkeypatch):
    memory, x, first, state = memory_of(kind)
    parts = []
    step = (LSTM if kind == "lstm" else GRU).step

    def watched(*given):
        after, made = step(*given)
        parts.extend(map(weakref.ref, made))
        return after, made

    monkeypatch.setattr(LSTM if kind == "lstm" else GRU, "step", staticmethod(watched))
    loss = memory(x, first, state)[1].square().sum()
    once, again = (torch.autograd.grad(loss, [*memory.parameters()], retain_graph=True) for _ in range(2))
    for own, other in zip(once, again, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)
        assert not other.requires_grad
    loss.backward()
    assert not any(part() is not None for part in parts), "of a loss that somebody keeps"
