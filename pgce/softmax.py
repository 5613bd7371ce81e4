"""The cross-entropy of a softmax and its gradient, as a CPU computes them fastest by torch.

Logits are in the type that is computed in, and every example counts: what they may be is for heads to check.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgce.perceptrons import is_plain

__all__ = ["cross_entropy_of_ids", "cross_entropy_of_rows", "p_and_p_log_p"]

_EACH: Any = {"reduction": "none", "ignore_index": torch.iinfo(torch.int64).min}  # it would skip class -100
_REGISTER = 64 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 32  # bytes
_MANY = 1_500  # numbers, which one by one take longer than the way to another axis and back
_LARGE = 2**16  # numbers, from which on a gradient made in place saves more than its function in Python takes


def cross_entropy_of_ids(logits: Tensor, target: Tensor) -> Tensor:
    """−log p_y in nats, (...), of logits (..., K) and class ids (...).

    Raises:
        ValueError: a class id outside 0..K−1, on a CPU.

    Example:
        >>> import torch
        >>> from pgce.softmax import cross_entropy_of_ids
        >>> cross_entropy_of_ids(torch.zeros(2, 4), torch.tensor([1, 3]))
        tensor([1.3863, 1.3863])
    """
    if logits.ndim != 2:
        flat = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
        return cross_entropy_of_ids(*flat).view(target.shape)
    try:
        ids = target if target.dtype == torch.int64 else target.long()
        if _classes_first(logits):
            return _of_log_p(_log_softmax(logits), ids)
        if logits.numel() >= _LARGE and _has_gradient(logits):
            return _in_place(logits, ids)
        return F.cross_entropy(logits, ids, **_EACH)
    except IndexError:
        low, high = (int(edge) for edge in torch.aminmax(target))
        raise class_id_error(low, high, logits.shape[-1]) from None


def cross_entropy_of_rows(logits: Tensor, target: Tensor) -> Tensor:
    """−Σ_k y_k log p_k in nats, (...), of logits and rows (..., K) of the same type.

    Example:
        >>> import torch
        >>> from pgce.softmax import cross_entropy_of_rows
        >>> cross_entropy_of_rows(torch.zeros(1, 2), torch.tensor([[0.5, 1.5]]))
        tensor([1.3863])
    """
    if target.requires_grad:
        log_p = _log_softmax(logits)  # of which 0 · log 0 has no gradient, where 0 × −∞ has NaN
        return _of_log_p(log_p.masked_fill((target == 0) & (log_p == -math.inf), 0), target)
    if not _has_gradient(logits):
        return _of_log_p(_log_softmax(logits), target)
    if logits.ndim == 2:
        return _in_place(logits, target)
    classes = logits.shape[-1]
    return _in_place(logits.reshape(-1, classes), target.reshape(-1, classes)).view(target.shape[:-1])


def p_and_p_log_p(logits: Tensor) -> tuple[Tensor, Tensor]:
    """p and p ∘ log p of logits, (..., K) each; a forbidden class has 0 of both.

    Example:
        >>> import torch
        >>> from pgce.softmax import p_and_p_log_p
        >>> p_and_p_log_p(torch.tensor([0.0, 0.0, float("-inf")]))
        (tensor([0.5000, 0.5000, 0.0000]), tensor([-0.3466, -0.3466,  0.0000]))
    """
    log_p = _log_softmax(logits)
    p = log_p.exp()
    return p, p * log_p.masked_fill(p == 0, 0)  # 0 · log 0 is 0


def class_id_error(low: int, high: int, classes: int) -> ValueError:
    """What is wrong with class ids from `low` to `high`."""
    return ValueError(
        f"class ids lie in 0..{classes - 1}: target holds ids from {low} to {high}"
        " (leave rows out with mask=, not with a marker id)"
    )


def _log_softmax(logits: Tensor) -> Tensor:
    """log p_k of logits (..., K), in nats."""
    if not _classes_first(logits):
        return F.log_softmax(logits, -1)
    log_p = F.log_softmax(logits.flatten(0, -2).t(), 0).t()
    return log_p if logits.ndim == 2 else log_p.view(logits.shape)


def _classes_first(logits: Tensor) -> bool:
    """Whether the log-softmax of logits (..., K) is sooner had along another axis than the last.

    A CPU takes classes one by one if they do not fill a register, which costs up to five times as much (10
    classes with AVX-512).
    """
    few = logits.shape[-1] * logits.element_size() < _REGISTER
    return few and logits.is_cpu and logits.numel() >= _MANY


def _of_log_p(log_p: Tensor, target: Tensor) -> Tensor:
    """−Σ_k y_k log p_k of log p (..., K) and ids (N,) or rows (..., K); NaN where one of them holds NaN."""
    if not target.is_floating_point():
        return F.nll_loss(log_p, target, **_EACH)
    # 0 · log 0 is 0, where 0 × −∞ is NaN. Any other NaN is told by the row's first log p, or by Σ y.
    products = (target * log_p).nan_to_num(0.0, math.inf, -math.inf)
    return log_p.detach()[..., 0].clamp(0, 0) + target.sum(-1) * 0 - products.sum(-1)


def _has_gradient(logits: Tensor) -> bool:
    """Whether `_in_place` can be taken, and will be asked for its gradient."""
    return torch.is_grad_enabled() and logits.requires_grad and is_plain(logits)


def _in_place(logits: Tensor, target: Tensor) -> Tensor:
    """H of logits (N, K), and ids (N,) or rows (N, K): its gradient is made where log p was."""
    cross_entropy: Tensor = _InPlace.apply(logits, target)  # type: ignore[no-untyped-call]
    return cross_entropy


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.log_p = log_p = _log_softmax(logits)
        if target.ndim == 1 or target.numel() <= _LARGE:
            return _of_log_p(log_p, target)
        rows = max(1, _LARGE // target.shape[1])  # of which products stay in the cache
        return torch.cat([*map(_of_log_p, log_p.split(rows), target.split(rows))])

    @staticmethod
    def backward(ctx: Any, on_each: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(on_each):  # it is to be differentiated, or one of many
            with torch.enable_grad():
                z = logits.view_as(logits)  # whose gradient calls no hooks: those of the logits come after
                cross_entropy = _of_log_p(_log_softmax(z), target)
                return torch.autograd.grad(cross_entropy, z, on_each, create_graph=True)[0], None
        log_p, ctx.log_p = ctx.log_p, None  # not there any more, if asked for again
        p = (_log_softmax(logits) if log_p is None else log_p).exp_()
        on_each = on_each.unsqueeze(1)
        if target.ndim == 1:
            return p.mul_(on_each).scatter_add_(1, target.unsqueeze(1), -on_each), None
        return p.mul_(on_each * target.sum(1, keepdim=True)).addcmul_(target, on_each, value=-1), None
