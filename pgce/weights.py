"""Rules for w, and what rules are made of. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one", "whiten"]


def one(cross_entropy: Tensor, batch: object) -> None:
    """The rule w = 1: plain cross-entropy (None stands for it, so that nothing is multiplied)."""


def whiten(
    value: Tensor, mask: Tensor | None = None, *, center: bool = True, floor: float | Tensor = 0.0
) -> Tensor:
    """Values scaled to standard deviation 1 and mean 0, in the shape of `value`.

    Args:
        value: any shape, floating.
        mask: the same shape, bool, True where a row counts for the statistics; None counts all.
        center: subtract the mean; without it only the scale changes, and no sign.
        floor: a standard deviation up to this is rounding, not a difference: it gives 0, where scaling it to
            1 would turn it into noise as strong as any signal.

    Returns:
        (value − mean) / (std + 1e-8). One row that counts has no standard deviation and is not divided.

    Example:
        >>> import torch
        >>> from pgce.weights import whiten
        >>> whiten(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))[:2]
        tensor([-0.7071,  0.7071])
        >>> whiten(torch.tensor([100.0, 100.00001]), floor=1e-3)
        tensor([0., 0.])
    """
    counted = value if mask is None else value[mask]
    if counted.numel() == 0:
        return value
    centered = value - counted.mean() if center else value
    if counted.numel() == 1:
        return centered
    spread = counted.std()
    return torch.where(spread > floor, centered / (spread + 1e-8), 0.0)
