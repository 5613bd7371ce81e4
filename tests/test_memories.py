"""A recurrent layer over a sequence, and its gradient, are torch's own."""

import pytest
import torch
from torch import nn

from pgce.memories import GRU, LSTM, scan


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
