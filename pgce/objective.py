"""The one objective: mean(w · H(y, p)). Everything the package trains minimises it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pgce.heads import Categorical, Head

__all__ = ["Reduction", "objective", "weighted", "weighted_cross_entropy"]

Reduction = Literal["mean", "weighted_mean", "sum", "none"] | float


def weighted(cross_entropy: Tensor, weight: Tensor | None) -> Tensor:
    """w · H, one value an example: the one place where a weight meets a cross-entropy.

    Args:
        cross_entropy: H(y, p) in nats, any shape.
        weight: a constant of the same shape, signed; None is 1. No gradient flows into it.

    Returns:
        The products, 0 where the weight is 0 even if the cross-entropy is infinite.

    Raises:
        ValueError: the shapes or devices differ (nothing is broadcast), or the weight is not real.

    Example:
        >>> import torch
        >>> from pgce.objective import weighted
        >>> weighted(torch.tensor([1.0, 2.0, float("inf")]), torch.tensor([1.0, -1.0, 0.0]))
        tensor([ 1., -2.,  0.])
    """
    if weight is None:
        return cross_entropy
    if weight.shape != cross_entropy.shape:
        raise ValueError(
            f"one weight per example: weight has shape {tuple(weight.shape)}, "
            f"cross_entropy has shape {tuple(cross_entropy.shape)}"
        )
    if weight.is_complex():
        raise ValueError(f"weights are real: weight has dtype {weight.dtype}")
    if weight.device != cross_entropy.device:
        raise ValueError(
            "weight and cross_entropy lie on one device: "
            f"weight is on {weight.device}, cross_entropy on {cross_entropy.device}"
        )
    weight = weight.detach().to(cross_entropy.dtype)
    # Selected, not multiplied: 0 × ∞ is NaN.
    return weight * cross_entropy.masked_fill(weight == 0, 0)


def objective(cross_entropy: Tensor, weight: Tensor | None, divisor: Tensor | float) -> Tensor:
    """L = Σ w · H / divisor, a scalar; the sum over no example is 0, with zero gradient.

    Args:
        cross_entropy: H(y, p) in nats of the examples that count.
        weight: one constant an example, signed; None is 1.
        divisor: n of the whole batch, also where `cross_entropy` is a piece of it.

    Example:
        >>> import torch
        >>> from pgce.objective import objective
        >>> objective(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0]), divisor=2)
        tensor(2.5000)
    """
    return weighted(cross_entropy, weight).sum() / divisor


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    head: Head | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Weighted cross-entropy w · H(y, p), reduced to a scalar (or (...) with "none").

    With a softmax head the gradient on one example's logits is w · (p − y) over the divisor. Target and
    weight are constants: no gradient flows into them.

    Args:
        logits: (..., K), or whatever the head reads. Half precision is computed in float32, float64 stays.
        target: class ids (...), dense rows (..., K) that may be signed, or real values: what the head scores.
        weight: (...), one number an example, of either sign; None is 1.
        head: what logits mean (`pgce.heads`); None is `Categorical()`.
        mask: (...), bool, True where an example counts. The others are left out before anything is computed,
            so they may hold anything.
        reduction: "mean" divides by the number of examples that count; "weighted_mean" by Σw (refused unless
            w >= 0 and Σw > 0); "sum" by 1; "none" returns w · H an example, 0 where masked; a number is the
            caller's own divisor, which makes pieces of one batch add up exactly.

    Returns:
        The loss in nats. A batch in which no example counts gives 0 with zero gradient.

    Raises:
        ValueError: a shape, type, device, class id or divisor that breaks a rule, or a loss that is not
            finite; the message gives the rule and the values found. (On a GPU this look at the values
            waits for the device; inside `torch.compile` it is left out.)
        TypeError: an argument is no tensor.

    Example:
        >>> import torch, pgce
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
        >>> action, advantage = torch.tensor([0, 1]), torch.tensor([1.0, -2.0])
        >>> loss = pgce.weighted_cross_entropy(logits, action, advantage)
        >>> loss
        tensor(-0.6297, grad_fn=<DivBackward0>)
        >>> loss.backward()
        >>> logits.grad  # w · (p − y) / 2
        tensor([[-0.0596,  0.0596],
                [-0.5000,  0.5000]])

    References:
        Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement
        learning: with the action taken as target and its return as weight this is REINFORCE.
    """
    given = {"logits": logits, "target": target, "weight": weight, "mask": mask}
    for name, value in given.items():
        optional = name in ("weight", "mask")
        if not (isinstance(value, Tensor) or (optional and value is None)):
            raise TypeError(f"{name} is a tensor: {name} is {type(value).__name__}")
    head = Categorical() if head is None else head
    examples = head.examples(logits)
    if weight is not None and weight.shape != examples:
        raise ValueError(
            f"one weight per example: weight has shape {tuple(weight.shape)}, "
            f"logits describe examples of shape {tuple(examples)}"
        )
    if mask is not None:
        _check_mask(mask, logits, target, examples)
        logits, target = logits[mask], target[mask]
        weight = None if weight is None else weight[mask]
    target = target.detach()
    cross_entropy = head.cross_entropy(logits, target)
    if reduction == "none":
        loss = weighted(cross_entropy, weight)
    else:
        loss = objective(cross_entropy, weight, _divisor(reduction, cross_entropy, weight))
    if not torch.compiler.is_compiling():
        head.check(logits, target)
        if not bool(loss.isfinite().all()):
            raise _not_finite(logits, target, weight, cross_entropy)
    if reduction == "none" and mask is not None:
        return loss.new_zeros(examples).masked_scatter(mask, loss)
    return loss


def _divisor(reduction: Reduction, cross_entropy: Tensor, weight: Tensor | None) -> Tensor | float:
    count = cross_entropy.numel()
    if reduction == "sum":
        return 1.0
    if reduction == "mean" or (reduction == "weighted_mean" and (weight is None or count == 0)):
        return max(count, 1)
    if reduction == "weighted_mean" and weight is not None:
        total = weight.detach().to(cross_entropy.dtype).sum()
        if bool((weight < 0).any()) or not bool(total > 0):
            raise ValueError(
                'reduction "weighted_mean" needs weights >= 0 with a positive sum: the smallest is '
                f'{weight.min().item():g}, the sum {total.item():g} (signed weights take "mean")'
            )
        return total
    if isinstance(reduction, (int, float)) and not isinstance(reduction, bool) and 0 < reduction < math.inf:
        return reduction
    raise ValueError(
        'reduction is "mean", "weighted_mean", "sum", "none" or a positive finite number: '
        f"reduction is {reduction!r}"
    )


def _check_mask(mask: Tensor, logits: Tensor, target: Tensor, examples: torch.Size) -> None:
    if mask.dtype != torch.bool or mask.shape != examples:
        raise ValueError(
            f"one boolean per example: mask has dtype {mask.dtype} and shape {tuple(mask.shape)}, "
            f"logits describe examples of shape {tuple(examples)}"
        )
    if mask.device != logits.device:
        raise ValueError(
            f"logits and mask lie on one device: logits is on {logits.device}, mask on {mask.device}"
        )
    if target.shape[: len(examples)] != examples:
        raise ValueError(
            f"one target per example: target has shape {tuple(target.shape)}, "
            f"logits describe examples of shape {tuple(examples)}"
        )


def _not_finite(logits: Tensor, target: Tensor, weight: Tensor | None, cross_entropy: Tensor) -> ValueError:
    """The error that names the first value to blame for a loss that is NaN or infinite."""
    allowed_logit = logits.isfinite() | (logits == -math.inf)  # −inf forbids a class
    blame = {"logits": (logits, allowed_logit), "target": (target, target.isfinite())}
    if weight is not None:
        blame["weight"] = (weight, weight.isfinite())
    blame["cross_entropy"] = (cross_entropy, cross_entropy.isfinite())
    for name, (values, good) in blame.items():
        if not bool(good.all()):
            index = tuple((~good).nonzero()[0].tolist())
            why = ": the target has probability 0 under the logits" if name == "cross_entropy" else ""
            return ValueError(f"the loss must be finite: {name} is {values[index].item()} at {index}{why}")
    return ValueError("the loss must be finite: the sum of weight × cross_entropy overflows")
