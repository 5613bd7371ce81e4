"""Rules for which examples an epoch sees: (batch, generator) -> row numbers, in the order of the steps."""

from __future__ import annotations

import torch
from torch import Tensor

from pgce.trainer import Batch

__all__ = ["balanced", "shuffled", "weighted"]


def shuffled(batch: Batch, generator: torch.Generator) -> Tensor:
    """Every example once, in random order, (B,).

    Example:
        >>> import torch
        >>> from pgce import Batch
        >>> from pgce.samplers import shuffled
        >>> shuffled(Batch(torch.eye(4), {}), torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3])
    """
    return torch.randperm(len(batch), generator=generator)


def balanced(batch: Batch, generator: torch.Generator) -> Tensor:
    """B draws, uniform over the classes that there are and then over the examples of the class, (B,).

    In expectation this is `weights.inverse_frequency` with every example once; both together are one
    correction too many.

    Args:
        batch: with a column "target" of class ids (B,).
        generator: of random numbers, on the CPU.

    Raises:
        ValueError: the targets are not class ids.

    Example:
        >>> import torch
        >>> from pgce import Batch
        >>> from pgce.samplers import balanced
        >>> label = (torch.arange(1000) >= 990).long()
        >>> order = balanced(Batch(torch.zeros(1000, 1), {"target": label}), torch.Generator().manual_seed(0))
        >>> label[order].float().mean()
        tensor(0.51)
    """
    label = batch["target"].cpu()
    if label.ndim != 1 or label.is_floating_point():
        raise ValueError(
            f"balanced sampling needs class ids (B,): the targets have shape {tuple(label.shape)} "
            f"and dtype {label.dtype}"
        )
    rows, number = label.argsort(stable=True), label.unique(return_counts=True)[1]
    first = number.cumsum(0) - number
    drawn = torch.randint(len(number), (len(label),), generator=generator)
    within = torch.rand(len(label), generator=generator, dtype=torch.float64) * number[drawn]
    return rows[first[drawn] + within.long()]


def weighted(batch: Batch, generator: torch.Generator, *, weight: str = "sample_weight") -> Tensor:
    """B draws with replacement, in proportion to a column of weights, (B,).

    Args:
        batch: with that column, (B,).
        generator: of random numbers, on the CPU.
        weight: the column's name.

    Raises:
        ValueError: a weight is negative, or all are 0.

    Example:
        >>> import torch
        >>> from pgce import Batch
        >>> from pgce.samplers import weighted
        >>> batch = Batch(torch.eye(3), {"sample_weight": torch.tensor([0.0, 1.0, 0.0])})
        >>> weighted(batch, torch.Generator().manual_seed(0))
        tensor([1, 1, 1])
    """
    share = batch[weight].cpu().double()
    if not bool((share >= 0).all()) or not bool(share.sum() > 0):
        raise ValueError(
            f"sampling weights are >= 0 with a positive sum: {weight} spans {share.min().item():g} to "
            f"{share.max().item():g}"
        )
    edges = share.cumsum(0)  # not torch.multinomial, which takes no more than 2^24 of them
    point = torch.rand(len(share), generator=generator, dtype=torch.float64) * edges[-1]
    return torch.searchsorted(edges, point, right=True)
