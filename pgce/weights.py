"""Rules for w, and what rules are made of. Pure functions.

A rule is (cross_entropy, batch) -> weight; further arguments are given with `functools.partial`. It sees
the detached cross-entropy −log p(y), the columns of the batch and, as columns "logits" and "y", what the head
read and scored. Rules multiply: `product(a, b)` weighs each example by both.

Many losses φ(−log p) are nothing but a weight: their gradient is that of w · H with w = φ′(−log p). What is
reported as the loss is then w · H, not the published value. Class C, losses that no target and weight can
express, are left out: z-loss (it moves all logits together), sparsemax, entmax and hinge losses (no softmax),
Dice, Lovász and AUC losses (no mean over examples), learned weights (here weights are constants).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pgce import processes
from pgce.tapes import once

__all__ = [
    "Columns",
    "Product",
    "asymmetric",
    "clipped",
    "effective_number",
    "expectile",
    "exponential",
    "focal",
    "gce",
    "group_standardised",
    "huber",
    "inverse_frequency",
    "leave_one_out",
    "mae",
    "one",
    "per_class",
    "pinball",
    "poly1",
    "positive",
    "product",
    "symmetric",
    "whiten",
]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


AnyRule = Callable[[Tensor, Any], Tensor | None]


class Columns(Protocol):
    """What a rule asks of a batch: its columns by name."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The column `name`."""


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
    counted = value if mask is None else value.masked_select(mask)
    (number,) = processes.sum_of([counted.numel()])
    if number == 0:
        return value
    centered = value - processes.mean(counted) if center else value
    if number == 1:
        return centered
    spread = processes.std(counted)
    return torch.where(spread > floor, centered / (spread + 1e-8), 0.0)


@dataclass(frozen=True)
class Product:
    """The rule that multiplies the weights of `rules`: what `product` makes."""

    rules: tuple[str | AnyRule, ...]

    def __call__(self, cross_entropy: Tensor, batch: Columns) -> Tensor | None:
        """The product, in the shape of `cross_entropy`; None where every weight is 1."""
        total: Tensor | None = None
        for rule in self.rules:
            weight = batch[rule] if isinstance(rule, str) else rule(cross_entropy, batch)
            if weight is None:
                continue
            if weight.ndim < cross_entropy.ndim:  # of an example: the same for its labels or steps
                weight = weight[(...,) + (None,) * (cross_entropy.ndim - weight.ndim)]
            if weight.shape[0] != cross_entropy.shape[0]:
                raise ValueError(
                    f"one weight an example: {rule} gives shape {tuple(weight.shape)}, "
                    f"cross_entropy has shape {tuple(cross_entropy.shape)}"
                )
            total = weight if total is None else total * weight
        return None if total is None else total.expand_as(cross_entropy)


def product(*rules: str | AnyRule) -> Product:
    """The rule that multiplies weights; a string names a column.

    A product means that each factor corrects what the others leave: class weights times sample weights is
    the loss of a population in which both hold. Two corrections of one thing (balanced sampling and class
    weights) are one too many. A weight (B,) holds for all labels of an example (B, L).

    Example:
        >>> import torch
        >>> from pgce.weights import mae, product
        >>> batch = {"sample_weight": torch.tensor([2.0, 1.0])}
        >>> product("sample_weight", mae)(torch.tensor([0.0, 0.6931]), batch)
        tensor([2.0000, 0.5000])
    """
    return Product(rules)


def inverse_frequency(number: Tensor) -> Tensor:
    """N/(K · n_c) for each class, (K,): with them every class has the same total weight, and the mean is 1.

    Args:
        number: n_c (K,), how many examples each class has (`torch.bincount(label, minlength=K)`).

    Raises:
        ValueError: a class has no example.

    Example:
        >>> import torch
        >>> from pgce.weights import inverse_frequency
        >>> inverse_frequency(torch.tensor([3, 1]))
        tensor([0.6667, 2.0000])

    References:
        King and Zeng (2001), Logistic regression in rare events data.
    """
    number = _every_class(number)
    return number.sum() / (len(number) * number)


def effective_number(number: Tensor, beta: float = 0.999) -> Tensor:
    """(1 − β)/(1 − β^n_c) for each class, scaled to sum K, (K,): from 1 (β = 0) to inverse frequency (β → 1).

    Args:
        number: n_c (K,), how many examples each class has (`torch.bincount(label, minlength=K)`).
        beta: β in [0, 1); 1/(1 − β) examples of a class are as good as all.

    Raises:
        ValueError: a class has no example, or β lies outside [0, 1).

    Example:
        >>> import torch
        >>> from pgce.weights import effective_number
        >>> effective_number(torch.tensor([3, 1]), beta=0.5)
        tensor([0.7273, 1.2727])

    References:
        Cui et al. (2019), Class-balanced loss based on effective number of samples.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta lies in [0, 1): it is {beta}")
    number = _every_class(number)
    weight = -1 / torch.expm1(number * math.log(beta)) if beta else torch.ones_like(number)
    return weight * (len(number) / weight.sum())


def per_class(
    cross_entropy: Tensor, batch: Columns, *, class_weight: Tensor, label: str = "target"
) -> Tensor:
    """The rule w = v_c, the weight of the label's class; of a target row (B, K), Σ_k v_k y_k.

    Args:
        cross_entropy: (B,).
        batch: with a column of class ids (B,) or rows (B, K).
        class_weight: v (K,).
        label: the column's name.

    Example:
        >>> import torch
        >>> from pgce.weights import per_class
        >>> per_class(torch.ones(2), {"target": torch.tensor([1, 0])}, class_weight=torch.tensor([1.0, 3.0]))
        tensor([3., 1.])
    """
    y = batch[label]
    weight = class_weight.to(cross_entropy)
    return y.to(weight.dtype) @ weight if y.is_floating_point() else weight[y]


def focal(
    cross_entropy: Tensor, batch: object = None, *, gamma: float = 2.0, detached: bool = False
) -> Tensor:
    """The rule of the focal loss −(1 − p)^γ log p: w = (1 − p)^γ − γ p (1 − p)^(γ − 1) log p.

    p = exp(−cross-entropy) is the probability of the label; of each label under a sigmoid, whose head then
    has `event_dims=0`.

    Args:
        cross_entropy: any shape.
        batch: not read.
        gamma: γ >= 0; 0 is plain cross-entropy.
        detached: w = (1 − p)^γ alone, as if that factor were a constant of the loss.

    Raises:
        ValueError: γ is negative.

    Example:
        >>> import torch
        >>> from pgce.weights import focal
        >>> focal(torch.tensor([0.1054, 2.3026]))  # p = 0.9 and 0.1
        tensor([0.0290, 1.2245])

    References:
        Lin et al. (2017), Focal loss for dense object detection.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma is 0 or more: it is {gamma}")
    if gamma == 0:
        return torch.ones_like(cross_entropy)
    miss = -torch.expm1(-cross_entropy)
    weight = miss**gamma
    if detached:
        return weight
    # (1 − p)^(γ − 1) · H is finite at p = 1 (H ≈ 1 − p there), where for γ < 1 its factors are not.
    rest = torch.where(miss > 0, weight * (cross_entropy / miss), 0.0)
    return weight + gamma * (-cross_entropy).exp() * rest.masked_fill(cross_entropy.isinf(), 0)


def gce(cross_entropy: Tensor, batch: object = None, *, q: float = 0.7) -> Tensor:
    """The rule of generalised cross-entropy (1 − p^q)/q: w = p^q. Robust to wrong labels.

    Args:
        cross_entropy: any shape.
        batch: not read.
        q: in [0, 1]: 0 is cross-entropy, 1 the mean absolute error.

    Raises:
        ValueError: q lies outside [0, 1].

    Example:
        >>> import torch
        >>> from pgce.weights import gce
        >>> gce(torch.tensor([0.0, 2.3026]), q=0.5)
        tensor([1.0000, 0.3162])

    References:
        Zhang and Sabuncu (2018), Generalized cross entropy loss for training deep neural networks with noisy
        labels.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q lies in [0, 1]: it is {q}")
    return (-q * cross_entropy).exp()


def mae(cross_entropy: Tensor, batch: object = None) -> Tensor:
    """The rule of the mean absolute error 1 − p (half of |e_y − p|₁): w = p.

    Example:
        >>> import torch
        >>> from pgce.weights import mae
        >>> mae(torch.tensor([0.0, 2.3026]))
        tensor([1.0000, 0.1000])

    References:
        Ghosh, Kumar and Sastry (2017), Robust loss functions under label noise for deep neural networks.
    """
    return gce(cross_entropy, q=1.0)


def symmetric(
    cross_entropy: Tensor,
    batch: object = None,
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    log_zero: float = math.log(1e-4),
) -> Tensor:
    """The rule of symmetric cross-entropy α H(y, p) + β H(p, y): w = α − A β p, with A for log 0 in H(p, y).

    Args:
        cross_entropy: any shape.
        batch: not read.
        alpha: α >= 0, of the cross-entropy.
        beta: β >= 0, of the reverse cross-entropy −A (1 − p).
        log_zero: A < 0.

    Raises:
        ValueError: one of them is out of its range.

    Example:
        >>> import torch
        >>> from pgce.weights import symmetric
        >>> symmetric(torch.tensor([0.0, 2.3026]))
        tensor([9.3103, 1.0210])

    References:
        Wang et al. (2019), Symmetric cross entropy for robust learning with noisy labels.
    """
    if not (alpha >= 0 and beta >= 0 and log_zero < 0):
        raise ValueError(
            f"alpha and beta are 0 or more, log_zero is negative: they are {alpha}, {beta} and {log_zero}"
        )
    return alpha - log_zero * beta * mae(cross_entropy)


def poly1(cross_entropy: Tensor, batch: object = None, *, epsilon: float = 1.0) -> Tensor:
    """The rule of Poly-1 −log p + ε(1 − p): w = 1 + ε p.

    Args:
        cross_entropy: any shape.
        batch: not read.
        epsilon: ε >= −1; of less the loss is least at a p below 1.

    Raises:
        ValueError: ε is less than −1.

    Example:
        >>> import torch
        >>> from pgce.weights import poly1
        >>> poly1(torch.tensor([0.0, 2.3026]))
        tensor([2.0000, 1.1000])

    References:
        Leng et al. (2022), PolyLoss: a polynomial expansion perspective of classification loss functions.
    """
    if not epsilon >= -1:
        raise ValueError(f"epsilon is -1 or more: it is {epsilon}")
    return 1 + epsilon * mae(cross_entropy)


def asymmetric(
    cross_entropy: Tensor,
    batch: Columns,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    clip: float = 0.05,
) -> Tensor:
    """The rule of the asymmetric loss for multi-label problems: easy negatives count little, or not at all.

    Each label is an example of its own (`Bernoulli()`, so `cross_entropy` is (B, L)): positives weigh as in
    `focal` with γ₊; negatives with γ₋ and their probability p lowered by the clip.

    Args:
        cross_entropy: (B, L).
        batch: with a column "y" of zeros and ones (B, L).
        gamma_positive: γ₊ >= 0.
        gamma_negative: γ₋ >= 0.
        clip: negatives with p below this weigh 0; in [0, 1).

    Raises:
        ValueError: a γ is negative, or the clip lies outside [0, 1).

    Example:
        >>> import torch
        >>> from pgce.weights import asymmetric
        >>> batch = {"y": torch.tensor([[1.0, 0.0, 0.0]])}
        >>> asymmetric(torch.tensor([[0.6931, 3.0, 0.01]]), batch)
        tensor([[1.0000, 0.6625, 0.0000]])

    References:
        Ridnik et al. (2021), Asymmetric loss for multi-label classification.
    """
    if not 0 <= clip < 1:
        raise ValueError(f"the clip lies in [0, 1): it is {clip}")
    missed = (-cross_entropy).exp()  # 1 − p, where the label is 0
    shifted = (missed + clip).clamp(max=1)
    negative = torch.where(shifted < 1, focal(-shifted.log(), gamma=gamma_negative) * missed / shifted, 0.0)
    return torch.where(batch["y"] > 0.5, focal(cross_entropy, gamma=gamma_positive), negative)


def positive(cross_entropy: Tensor, batch: Columns, *, pos_weight: Tensor | float) -> Tensor:
    """The rule w = c where the label is 1, else 1: torch's `pos_weight`, for labels that are 0 or 1.

    Args:
        cross_entropy: (B,) or (B, L), each label an example of its own.
        batch: with a column "y" of zeros and ones in the same shape.
        pos_weight: c, one for all or (L,).

    Example:
        >>> import torch
        >>> from pgce.weights import positive
        >>> positive(torch.ones(3), {"y": torch.tensor([1.0, 0.0, 1.0])}, pos_weight=5.0)
        tensor([5., 1., 5.])
    """
    c = torch.as_tensor(pos_weight, dtype=cross_entropy.dtype, device=cross_entropy.device)
    return torch.where(batch["y"] > 0.5, c, 1.0)


def huber(cross_entropy: Tensor, batch: Columns | None = None, *, delta: Tensor | float = 1.0) -> Tensor:
    """The rule of the Huber loss under `Gaussian()`: w = min(1, δ/|e|), e the error of each number.

    Args:
        cross_entropy: ½e² + ½ log 2π, any shape (`event_dims=0`).
        batch: with columns "y" and "logits" (the mean μ), in the same shape. Without one |e| is read from the
            cross-entropy, in which errors below 0.001 are lost to rounding.
        delta: δ > 0, in the target's unit: larger errors count linearly. One for all, or one a component.

    Raises:
        ValueError: δ is not positive.

    Example:
        >>> import torch
        >>> from pgce.heads import Gaussian
        >>> from pgce.weights import huber
        >>> huber(Gaussian().cross_entropy(torch.zeros(2), torch.tensor([0.5, 4.0])))
        tensor([1.0000, 0.2500])

    References:
        Huber (1964), Robust estimation of a location parameter. Holland and Welsch (1977), Robust regression
        using iteratively reweighted least-squares, for the weights.
    """
    limit = torch.as_tensor(delta, dtype=cross_entropy.dtype, device=cross_entropy.device)
    with once():
        if not bool((limit > 0).all()):
            raise ValueError(f"delta is positive: it is {delta}")
    if batch is None:
        error = (2 * (cross_entropy - _HALF_LOG_2PI)).clamp(min=0).sqrt()
    else:
        error = (batch["y"] - batch["logits"]).abs().to(cross_entropy.dtype)
    return (limit / error).clamp(max=1)


def expectile(cross_entropy: Tensor, batch: Columns, *, tau: float) -> Tensor:
    """The rule of expectile regression under `Gaussian()`: w = 2 |τ − 1[y < μ]|; τ = ½ is the mean.

    Args:
        cross_entropy: any shape.
        batch: with columns "y" and "logits" (the mean μ), in the same shape.
        tau: τ in (0, 1).

    Raises:
        ValueError: τ lies outside (0, 1).

    Example:
        >>> import torch
        >>> from pgce.weights import expectile
        >>> batch = {"y": torch.tensor([1.0, -1.0]), "logits": torch.zeros(2)}
        >>> expectile(torch.ones(2), batch, tau=0.9)
        tensor([1.8000, 0.2000])

    References:
        Newey and Powell (1987), Asymmetric least squares estimation and testing.
    """
    return 2 * pinball(cross_entropy, batch, tau=tau)


def pinball(cross_entropy: Tensor, batch: Columns, *, tau: float) -> Tensor:
    """The rule of quantile regression under `Laplace()`: w = |τ − 1[y < μ]|; μ is then the quantile τ.

    Args:
        cross_entropy: any shape.
        batch: with columns "y" and "logits" (the location μ), in the same shape.
        tau: τ in (0, 1).

    Raises:
        ValueError: τ lies outside (0, 1).

    Example:
        >>> import torch
        >>> from pgce.weights import pinball
        >>> batch = {"y": torch.tensor([1.0, -1.0]), "logits": torch.zeros(2)}
        >>> pinball(torch.ones(2), batch, tau=0.9)
        tensor([0.9000, 0.1000])

    References:
        Koenker and Bassett (1978), Regression quantiles.
    """
    if not 0 < tau < 1:
        raise ValueError(f"tau lies in (0, 1): it is {tau}")
    below = batch["y"] < batch["logits"]
    return torch.full_like(cross_entropy, tau).masked_fill(below, 1 - tau)


def clipped(
    cross_entropy: Tensor, batch: Columns, *, clip_coef: float = 0.2, dual_clip: float | None = None
) -> Tensor:
    """The rule of PPO's clipped surrogate: w = A · ρ, 0 where the surrogate is flat.

    ρ = π(a|s)/π_old(a|s) = exp(H_old − H), since the cross-entropy of an action is −log π(a|s). Flat is
    where ρ has left [1 − ε, 1 + ε] on the side that A > 0 or A < 0 pushes it to.

    Args:
        cross_entropy: H of the policy now, (B,).
        batch: with columns "advantage" A and "cross_entropy" H_old, (B,) each.
        clip_coef: ε > 0.
        dual_clip: c > 1: also flat where A < 0 and ρ > c.

    Example:
        >>> import torch
        >>> from pgce.weights import clipped
        >>> batch = {"advantage": torch.tensor([2.0, 2.0, -2.0]), "cross_entropy": torch.ones(3)}
        >>> clipped(torch.tensor([1.0, 0.5, 0.5]), batch)
        tensor([ 2.0000,  0.0000, -3.2974])

    References:
        Schulman et al. (2017), Proximal policy optimization algorithms. Ye et al. (2020), Mastering complex
        control in MOBA games with deep reinforcement learning, for the dual clip.
    """
    advantage = batch["advantage"]
    ratio = (batch["cross_entropy"] - cross_entropy).exp()
    active = torch.where(advantage >= 0, ratio <= 1 + clip_coef, ratio >= 1 - clip_coef)
    if dual_clip is not None:
        active &= (advantage >= 0) | (ratio <= dual_clip)
    return torch.where(active, advantage * ratio, 0.0)


def leave_one_out(value: Tensor) -> Tensor:
    """Each value less the mean of the others, (E,); one alone gives 0.

    Example:
        >>> import torch
        >>> from pgce.weights import leave_one_out
        >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]))
        tensor([-3.0000, -1.5000,  4.5000])

    References:
        Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free! Ahmadian et al.
        (2024), Back to basics: revisiting REINFORCE style optimization.
    """
    (number,) = processes.sum_of([len(value)])
    if number < 2:
        return torch.zeros_like(value)
    return (value - processes.mean(value)) * (number / (number - 1))


def group_standardised(value: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Each value less the mean of its group, divided by the group's standard deviation, (..., G).

    A group without a difference gives 0, and so does one of one.

    Args:
        value: (..., G), the last axis a group.
        epsilon: added to the standard deviation (n − 1 in its divisor).

    Example:
        >>> import torch
        >>> from pgce.weights import group_standardised
        >>> group_standardised(torch.tensor([[1.0, 1.0, 2.0], [5.0, 5.0, 5.0]]))
        tensor([[-0.5773, -0.5773,  1.1545],
                [ 0.0000,  0.0000,  0.0000]])

    References:
        Shao et al. (2024), DeepSeekMath: pushing the limits of mathematical reasoning in open language
        models.
    """
    if value.shape[-1] < 2:
        return torch.zeros_like(value)
    return (value - value.mean(-1, keepdim=True)) / (value.std(-1, keepdim=True) + epsilon)


def exponential(advantage: Tensor, beta: float = 1.0, cap: float = 20.0) -> Tensor:
    """min(exp(A/β), cap): the weight of advantage-weighted regression, never negative.

    Args:
        advantage: A, any shape.
        beta: temperature β > 0, in units of A.
        cap: largest weight.

    Raises:
        ValueError: β or the cap is not positive.

    Example:
        >>> import torch
        >>> from pgce.weights import exponential
        >>> exponential(torch.tensor([0.0, 1.0, 99.0]))
        tensor([ 1.0000,  2.7183, 20.0000])

    References:
        Peng et al. (2019), Advantage-weighted regression: simple and scalable off-policy reinforcement
        learning.
    """
    if not (beta > 0 and cap > 0):
        raise ValueError(f"beta and cap are positive: they are {beta} and {cap}")
    return (advantage / beta).clamp(max=math.log(cap)).exp()


def _every_class(number: Tensor) -> Tensor:
    """The numbers of examples (K,), floating, none of them 0."""
    if number.ndim != 1 or not bool((number > 0).all()):
        missing = (number <= 0).nonzero().flatten().tolist()
        raise ValueError(f"every class has an example: there is none of {missing}, of K = {len(number)}")
    return number if number.is_floating_point() else number.float()
