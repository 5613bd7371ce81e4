"""Rules for y: labels turned into the target rows (..., K) of a cross-entropy. Pure functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["one_hot", "smooth", "soften"]


def one_hot(label: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows (..., K) with 1 at the label and 0 elsewhere.

    Args:
        label: class ids (...), integers in 0..K−1.
        classes: K >= 1.
        dtype: floating type of the result.

    Raises:
        ValueError: labels are not integers, or one lies outside 0..K−1.

    Example:
        >>> import torch
        >>> from pgce.targets import one_hot
        >>> one_hot(torch.tensor([2, 0]), classes=3)
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    if classes < 1:
        raise ValueError(f"there is at least one class: classes is {classes}")
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ValueError(f"labels are integers: label has dtype {label.dtype}")
    if label.numel() and not (0 <= int(label.min()) and int(label.max()) < classes):
        raise ValueError(
            f"labels lie in 0..{classes - 1}: label holds values from {int(label.min())} "
            f"to {int(label.max())}"
        )
    return F.one_hot(label.long(), classes).to(dtype)


def smooth(target: Tensor, epsilon: float) -> Tensor:
    """Label smoothing: (1 − ε) · y + ε/K, rows (..., K).

    Args:
        target: rows (..., K), such as `one_hot` gives; rows that sum to 1 stay so.
        epsilon: ε in [0, 1], the share given to the uniform distribution over all K classes.

    Raises:
        ValueError: target is not floating, or ε lies outside [0, 1].

    Example:
        >>> import torch
        >>> from pgce.targets import one_hot, smooth
        >>> smooth(one_hot(torch.tensor([1]), classes=4), epsilon=0.2)
        tensor([[0.0500, 0.8500, 0.0500, 0.0500]])

    References:
        Szegedy et al. (2016), Rethinking the inception architecture for computer vision.
    """
    if not target.is_floating_point() or target.ndim == 0:
        raise ValueError(
            f"smoothing takes floating rows (..., K), as one_hot gives: target has dtype {target.dtype}"
            f" and shape {tuple(target.shape)}"
        )
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon lies in [0, 1]: epsilon is {epsilon}")
    return (1 - epsilon) * target + epsilon / target.shape[-1]


def soften(
    label: Tensor,
    classes: int,
    on: float = 0.9,
    off: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Soft labels: rows (..., K) with `on` at the label and `off` elsewhere.

    The rows need not sum to 1: under a softmax the gradient on the logits is then Σy · p − y.

    Args:
        label: class ids (...), integers in 0..K−1.
        classes: K >= 1.
        on: value at the label.
        off: value at every other class.
        dtype: floating type of the result.

    Raises:
        ValueError: as `one_hot`, or `on` is not greater than `off`.

    Example:
        >>> import torch
        >>> from pgce.targets import soften
        >>> soften(torch.tensor([1]), classes=3)
        tensor([[0.1000, 0.9000, 0.1000]])
    """
    if not on > off:
        raise ValueError(f"the label's own value is the greater: on is {on}, off is {off}")
    return off + (on - off) * one_hot(label, classes, dtype)
