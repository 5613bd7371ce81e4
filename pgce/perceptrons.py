"""Linear layers with an activation between them, as a CPU computes them fastest by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Perceptron", "has_hooks", "is_plain", "linear_tanh"]


class Perceptron(nn.Sequential):
    """Layers, in order; on a CPU a linear one and tanh are computed together, by `linear_tanh`.

    Layers with hooks run one by one, as do all on other devices, under autocast and in a compiler.

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
        layers = [*self._modules.values()]
        plain = is_plain(x) and x.ndim == 2 and not torch.is_autocast_enabled("cpu")
        n = 0
        while n < len(layers):
            layer: Any = layers[n]
            if plain and n + 1 < len(layers) and _is_pair(x, layer, layers[n + 1]):
                x = linear_tanh(x, layer.weight, layer.bias)
                n += 2
            else:
                x = layer(x)
                n += 1
        return x


def linear_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """tanh(x · wᵀ + b), (B, D) -> (B, H), by torch's tanh where that is fast, else as 2σ(2z) − 1.

    On processors other than Intel's that takes a third of the time; it differs by rounding, 1e-7 at most in
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
    result: Tensor = _LinearTanh.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


# It is MKL's, which is slow on other makers' processors. Told by name: measured, runs would not repeat.
_TOLD: Any = getattr(torch.cpu, "get_capabilities", dict)()  # which older releases of torch lack
_HAS_FAST_TANH = torch.backends.mkl.is_available() and "Intel" in str(_TOLD.get("cpu_name"))


class _LinearTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if _HAS_FAST_TANH:
            h = torch.addmm(bias, x, weight.t()).tanh_()
        else:
            s = torch.addmm(bias, x, weight.t(), beta=2, alpha=2).sigmoid_()
            h = torch.add(s.new_tensor(-1.0), s, alpha=2)
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
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(x)  # of `is_grads_batched`
        and torch.autograd.forward_ad._current_level < 0
        and torch._C._get_tracing_state() is None
    )


def _is_pair(x: Tensor, linear: nn.Module, tanh: nn.Module) -> bool:
    """Whether these are a linear layer that reads x and tanh, and nobody looks between them."""
    return (
        type(linear) is nn.Linear
        and type(tanh) is nn.Tanh
        and linear.bias is not None
        and x.shape[1] == linear.weight.shape[1]
        and x.dtype == linear.weight.dtype
        and not has_hooks(linear)
        and not has_hooks(tanh)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody is called when the module is.

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
    )
