"""Linear layers with an activation between them, as a CPU computes them fastest by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

__all__ = ["Perceptron", "has_hooks", "is_direct", "is_plain", "linear_tanh"]


_PIECE = 1_024  # rows for each thread whose outputs of a layer, of 64 units say, stay in its core's cache
_FEW = 16  # outputs, of which fewer take longer row by row
_ROW_BY_ROW = nn.Linear, nn.ReLU, nn.SiLU, nn.Tanh, partial


class Perceptron(nn.Sequential):
    """Layers, in order; on a CPU a linear one and tanh are computed together, by `linear_tanh`.

    Many rows are computed by pieces, which stay in its cache. Layers with hooks run one by one, as do all on
    other devices, under autocast and in a compiler.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pgce.perceptrons import Perceptron
        >>> layers = nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 1)
        >>> x = torch.randn(64, 2)
        >>> bool((Perceptron(*layers)(x) - nn.Sequential(*layers)(x)).abs().max() < 1e-5)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        if not is_plain(x) or x.ndim != 2 or torch.is_autocast_enabled("cpu") or _has_any_global_hook():
            return _passed(x, self._modules.values())
        layers = self._joined(x.dtype)
        piece = _PIECE * torch.get_num_threads()
        if len(x) < 4 * piece or not all(map(_is_row_by_row, layers)):
            return _passed(x, layers)
        last: Any = layers[-1]
        if _is_plain_linear(last, x.dtype) and last.out_features < _FEW:
            layers[-1] = partial(_narrow, weight=last.weight, bias=last.bias)
        return torch.cat([_passed(rows, layers) for rows in x.split(piece)])

    def _joined(self, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        """The layers, with those of layers that are layers, and a linear one and tanh as one."""
        found: list[Any] = []
        for layer in self._modules.values():
            last: Any = found[-1] if found else None
            if has_hooks(layer):
                found.append(layer)
            elif type(layer) is Perceptron:
                found += layer._joined(dtype)
            elif type(layer) is nn.Tanh and _is_plain_linear(last, dtype):
                found[-1] = partial(linear_tanh, weight=last.weight, bias=last.bias)
            else:
                found.append(layer)
        return found


def _passed(x: Tensor, layers: Iterable[Any]) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _narrow(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of few outputs, which are had sooner one after the other, each for all rows."""
    return torch.addmm(bias.unsqueeze(1), weight, x.t()).t()


def _is_plain_linear(layer: Any, dtype: torch.dtype) -> bool:
    """Whether it is a linear layer with biases, and nobody looks on."""
    is_linear = type(layer) is nn.Linear and layer.bias is not None
    return is_linear and layer.weight.dtype == layer.bias.dtype == dtype and not has_hooks(layer)


def _is_row_by_row(layer: Any) -> bool:
    """Whether a layer computes each row by itself, and nobody looks on."""
    return type(layer) in _ROW_BY_ROW and (type(layer) is partial or not has_hooks(layer))


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh(x · wᵀ + b), (B, D) -> (B, H), by torch's tanh where that is fast, else as 2σ(2z) − 1.

    On processors other than Intel's that takes a third of the time; it differs by rounding, 2e-7 at most in
    float32.

    Args:
        x: (B, D).
        weight: (H, D).
        bias: (H,).

    Example:
        >>> import torch
        >>> from pgce.perceptrons import linear_tanh
        >>> linear_tanh(torch.ones(1, 2), torch.tensor([[0.5, 0.25]]), torch.zeros(1))
        tensor([[0.6351]])
    """
    if not torch.is_grad_enabled():
        return _linear_tanh(x, weight, bias)
    result: Tensor = _LinearTanh.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


# It is MKL's, which is slow on other makers' processors. Told by name: measured, runs would not repeat.
_TOLD: Any = getattr(torch.cpu, "get_capabilities", dict)()  # which older releases of torch lack
_HAS_FAST_TANH = torch.backends.mkl.is_available() and "Intel" in str(_TOLD.get("cpu_name"))


def _linear_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if _HAS_FAST_TANH or x.dtype.itemsize < 4:  # halves have too few digits for 2σ − 1 near 0
        return torch.mm(x, weight.t()).add_(bias).tanh_()  # sooner than addmm, which writes biases before
    s = torch.addmm(bias, x, weight.t(), beta=2, alpha=2).sigmoid_()
    return torch.add(s.new_tensor(-1.0), s, alpha=2)


class _LinearTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = _linear_tanh(x, weight, bias)
        ctx.save_for_backward(x, weight, h)
        return h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, h = ctx.saved_tensors
        g = torch.ops.aten.tanh_backward(gradient, h)
        on_weight = x.t().mm(g).t() if x.shape[1] < g.shape[1] else g.t().mm(x)  # the faster way round
        return g.mm(weight) if ctx.needs_input_grad[0] else None, on_weight, g.sum(0)


def is_plain(x: Tensor) -> bool:
    """Whether a CPU computes, and nobody looks at every operation or changes it.

    Example:
        >>> import torch
        >>> from pgce.perceptrons import is_plain
        >>> is_plain(torch.zeros(2, 2))
        True
    """
    return x.device.type == "cpu" and is_direct(x)


def is_direct(x: Tensor) -> bool:
    """Whether torch computes, and nobody looks at every operation or changes it.

    Example:
        >>> import torch
        >>> from pgce.perceptrons import is_direct
        >>> torch.func.vmap(lambda row: row * is_direct(row))(torch.ones(2, 2)).sum()
        tensor(0.)
    """
    return (
        type(x) is Tensor
        and x.layout is torch.strided
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of `is_grads_batched`
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody is called when the module is, or instead of its class's forward, as if it is compiled.

    Example:
        >>> from torch import nn
        >>> from pgce.perceptrons import has_hooks
        >>> has_hooks(nn.ReLU())
        False
    """
    own = module.__dict__  # sooner told than attributes
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
    )
