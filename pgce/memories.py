"""What a recurrent layer computes over a sequence, and its gradient: torch's GRU and LSTM, step by step.

Autograd would make a gradient of the weights at every step, and add them up. Here one product makes it, of
what all steps leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pgce.perceptrons import is_direct

__all__ = ["GRU", "LSTM", "scan"]

_tanh_backward, _sigmoid_backward = torch.ops.aten.tanh_backward, torch.ops.aten.sigmoid_backward


class GRU:
    """h′ = n + z ∘ (h − n), with r, z = σ(x + V h) and n = tanh(x + r ∘ V h); the state is h, (B, H)."""

    @staticmethod
    def step(x: Tensor, h: Tensor, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The state after a step, and what its gradient is made of.

        Args:
            x: (B, 3 H), what the inputs give to the gates.
            h: (B, H), the state before.
            hidden: (B, 3 H), V h.
        """
        size = h.shape[-1]
        gates = (x[:, : 2 * size] + hidden[:, : 2 * size]).sigmoid()
        (reset, update), new = gates.chunk(2, -1), hidden[:, 2 * size :]
        candidate = torch.addcmul(x[:, 2 * size :], reset, new).tanh()
        return candidate.lerp(h, update), (h, gates, new, candidate)

    @staticmethod
    def gradients(weight: Tensor, grad: Tensor, *step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those on x, on V h and on the state before, of that on the state after a step, and its parts."""
        (h, gates, new, candidate), (reset, update) = step, step[1].chunk(2, -1)
        kept = grad * update
        last = _tanh_backward(grad - kept, candidate)
        both = _sigmoid_backward(torch.cat((last * new, grad * (h - candidate)), -1), gates)
        hidden = torch.cat((both, last * reset), -1)
        return torch.cat((both, last), -1), hidden, torch.addmm(kept, hidden, weight)


class LSTM:
    """c′ = f ∘ c + i ∘ g and h′ = o ∘ tanh c′, all gates of x + V h; the state is h and c, (B, 2 H)."""

    @staticmethod
    def step(x: Tensor, state: Tensor, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `GRU.step`, of (B, 4 H) and the state (B, 2 H)."""
        size, cell = state.shape[-1] // 2, state.chunk(2, -1)[1]
        both, new, output = (x + hidden).split((2 * size, size, size), -1)
        gates, new, output = both.sigmoid(), new.tanh(), output.sigmoid()
        add, keep = gates.chunk(2, -1)
        after = torch.addcmul(keep * cell, add, new)
        shown = after.tanh()
        return torch.cat((output * shown, after), -1), (cell, gates, new, output, shown)

    @staticmethod
    def gradients(weight: Tensor, grad: Tensor, *step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `GRU.gradients`."""
        (cell, gates, new, output, shown), (h, after) = step, grad.chunk(2, -1)
        add, keep = gates.chunk(2, -1)
        after = after + _tanh_backward(h * output, shown)
        both = _sigmoid_backward(torch.cat((after * new, after * cell), -1), gates)
        rest = _tanh_backward(after * add, new), _sigmoid_backward(h * shown, output)
        hidden = torch.cat((both, *rest), -1)
        return hidden, hidden, torch.cat((hidden @ weight, after * keep), -1)


def _steps(
    kind: type[GRU | LSTM], x: Tensor, kept: Tensor, state: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...]]]:
    """Of each step what is multiplied by V, the state after it, and what its gradient is made of."""
    for inputs, keeps in zip(x.unbind(1), kept.unbind(1), strict=True):
        state = state * keeps
        hidden = state[:, : weight.shape[1]]
        state, step = kind.step(inputs, state, torch.addmm(bias, hidden, weight.t()))
        yield hidden, state, step


def _by_steps(kind: type[GRU | LSTM], *given: Tensor) -> Tensor:
    """As `scan`, by operations of torch alone."""
    return torch.stack([state for _, state, _ in _steps(kind, *given)], 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: type[GRU | LSTM], *given: Tensor) -> Tensor:
        before, states, steps = zip(*_steps(kind, *given), strict=True)
        ctx.kind, ctx.steps = kind, steps
        ctx.save_for_backward(*given, *before)
        return torch.stack(states, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, state, weight, bias, *before = ctx.saved_tensors
        steps, ctx.steps = ctx.steps, None  # not there any more, if asked for again
        again = torch.is_grad_enabled()  # it is to be differentiated
        if again or steps is None or not is_direct(grad):
            with torch.enable_grad():
                own = [value.view_as(value) for value in (x, kept, state, weight, bias)]  # without hooks
                needs = ctx.needs_input_grad[1:]
                wanted = [value for value, needed in zip(own, needs, strict=True) if needed]
                found = iter(torch.autograd.grad(_by_steps(ctx.kind, *own), wanted, grad, create_graph=again))
            return None, *(next(found) if needed else None for needed in needs)
        last = torch.zeros_like(grad[:, 0])
        on_x, on_hidden = [], []
        for each, keeps, step in [*zip(grad.unbind(1), kept.unbind(1), steps, strict=True)][::-1]:
            x, hidden, last = ctx.kind.gradients(weight, each + last, *step)
            last = last * keeps
            on_x.append(x)
            on_hidden.append(hidden)
        every = torch.cat(on_hidden[::-1])
        weights = every.t() @ torch.cat(before), every.sum(0)
        return None, torch.stack(on_x[::-1], 1), None, last, *weights


def scan(
    kind: type[GRU | LSTM], x: Tensor, kept: Tensor, state: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The state after every step, (B, L, S).

    Args:
        kind: GRU or LSTM.
        x: (B, L, G), what the inputs give to the gates, G = 3 H of a GRU and 4 H of an LSTM.
        kept: (B, L, 1), 0 where nothing before the step is remembered, else 1.
        state: (B, S), before the first step.
        weight: V (G, H), of torch's `weight_hh`.
        bias: (G,), added to V h.

    Example:
        >>> import torch
        >>> from pgce.memories import GRU, scan
        >>> x, kept, weight = torch.zeros(1, 3, 6), torch.ones(1, 3, 1), torch.zeros(6, 2)
        >>> scan(GRU, x, kept, torch.ones(1, 2), weight, torch.zeros(6))[0, :, 0]  # z = 1/2, n = 0
        tensor([0.5000, 0.2500, 0.1250])

    References:
        Cho et al. (2014), Learning phrase representations using RNN encoder–decoder for statistical machine
        translation; Hochreiter and Schmidhuber (1997), Long short-term memory.
    """
    with torch.autocast(x.device.type, enabled=False):  # what is carried on keeps all its digits
        given = x.to(state), kept, state, weight, bias
        if not torch.is_grad_enabled() or not is_direct(x):
            return _by_steps(kind, *given)
        every: Tensor = _Scan.apply(kind, *given)  # type: ignore[no-untyped-call]
    return every
