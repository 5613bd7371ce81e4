"""The one objective: mean(w · H(y, p)). Everything the package trains minimises it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pgce.heads import Categorical, Head, check_device
from pgce.targets import smooth

__all__ = ["Reduction", "linear_cross_entropy", "objective", "weighted", "weighted_cross_entropy"]

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
    weight = _constant(weight, cross_entropy)
    # Selected, not multiplied: 0 × ∞ is NaN.
    return weight * cross_entropy.masked_fill(weight == 0, 0)


def _constant(weight: Tensor, cross_entropy: Tensor) -> Tensor:
    """The weight without its gradient, in the type of the cross-entropy."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weights are a tensor: they are {type(weight).__name__}")
    if weight.shape != cross_entropy.shape:
        raise ValueError(
            f"one weight per example: weight has shape {tuple(weight.shape)}, "
            f"cross_entropy has shape {tuple(cross_entropy.shape)}"
        )
    if weight.is_complex():
        raise ValueError(f"weights are real: weight has dtype {weight.dtype}")
    check_device("weight", weight, "cross_entropy", cross_entropy)
    weight = weight.detach()
    # Asked for, since a call that changes nothing takes longer.
    return weight if weight.dtype == cross_entropy.dtype else weight.to(cross_entropy.dtype)


def objective(
    cross_entropy: Tensor, weight: Tensor | None, divisor: Tensor | float, *, looks: bool = True
) -> Tensor:
    """L = Σ w · H / divisor, a scalar; the sum over no example is 0, with zero gradient.

    Args:
        cross_entropy: H(y, p) in nats of the examples that count.
        weight: one constant an example, signed; None is 1.
        divisor: n of the whole batch, also where `cross_entropy` is a piece of it.
        looks: whether the sum may be looked at on a CPU: where an H is infinite whose weight is 0, it has to
            be taken another way.

    Example:
        >>> import torch
        >>> from pgce.objective import objective
        >>> objective(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0]), divisor=2)
        tensor(2.5000)
    """
    loss = None if weight is None else _dot(cross_entropy, weight, divisor, looks=looks)
    return weighted(cross_entropy, weight).sum() / divisor if loss is None else loss


def _dot(
    cross_entropy: Tensor, weight: Tensor, divisor: Tensor | float, *, waits: bool = False, looks: bool = True
) -> Tensor | None:
    """The same by one dot product; None where that is slower, or if it is not finite, by 0 × ∞ say.

    On a GPU only if it `waits` for the device. Without `looks` it is not asked whether it is finite.
    """
    few = cross_entropy.numel() <= _FEW and (waits or cross_entropy.is_cpu)
    if not few or torch.compiler.is_compiling():
        return None
    constant = _constant(weight, cross_entropy) / divisor
    if cross_entropy.ndim != 1:
        constant, cross_entropy = constant.flatten(), cross_entropy.flatten()
    loss = torch.dot(constant, cross_entropy)
    return loss if not looks or math.isfinite(loss.item()) else None


_FEW = 2**16  # numbers, of which a dot product is exact enough, and worth its while


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
        tensor(-0.6297, grad_fn=<DotBackward0>)
        >>> loss.backward()
        >>> logits.grad  # w · (p − y) / 2
        tensor([[-0.0596,  0.0596],
                [-0.5000,  0.5000]])

    References:
        Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement
        learning: with the action taken as target and its return as weight this is REINFORCE.
    """
    _check_tensors({"logits": logits, "target": target}, {"weight": weight, "mask": mask})
    head = Categorical() if head is None else head
    examples = head.examples(logits)
    _check_weight(weight, examples)
    if mask is not None:
        _check_mask(mask, logits, target, examples)
        logits, target = logits[mask], target[mask]
        weight = None if weight is None else weight[mask]
    target = target.detach()
    ids = isinstance(head, Categorical) and not target.is_floating_point()
    if ids and not logits.is_cpu and not torch.compiler.is_compiling():
        head.check(logits, target)  # before: a GPU that computes with such ids fails for good
    cross_entropy = head.cross_entropy(logits, target)
    if reduction == "none":
        loss = weighted(cross_entropy, weight)
    else:
        divisor = _divisor(reduction, cross_entropy, weight)
        product = None if weight is None else _dot(cross_entropy, weight, divisor, waits=True)
        if product is not None and isinstance(head, Categorical):  # all is finite, and it hides nothing
            return product
        loss = weighted(cross_entropy, weight).sum() / divisor if product is None else product
    if not torch.compiler.is_compiling():
        if not ids:  # which were checked already, on a CPU by the cross-entropy
            head.check(logits, target)
        finite = math.isfinite(loss.item()) if loss.ndim == 0 else bool(loss.isfinite().all())
        if not finite or _hides(head, logits, target, weight, cross_entropy):
            raise _not_finite(logits=logits, target=target, weight=weight, cross_entropy=cross_entropy)
    if reduction == "none" and mask is not None:
        return loss.new_zeros(examples).masked_scatter(mask, loss)
    return loss


def linear_cross_entropy(
    hidden: Tensor,
    vocabulary_weight: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    chunk_size: int | None = None,
) -> Tensor:
    """`weighted_cross_entropy` of logits hidden · vocabulary_weightᵀ + bias that are never held at once.

    For a large vocabulary: value and gradients are those of
    `weighted_cross_entropy(F.linear(hidden, vocabulary_weight, bias), target, weight)`, in the memory of a
    few rows of logits (where all of them are few, that form is faster). A scalar loss computes its gradients
    in the forward pass, while a chunk's logits are there: weights are constants, so what backward brings is
    one factor. "none", float16 and a second backward through one loss (`retain_graph=True`) compute the
    logits again in backward.

    Args:
        hidden: (..., D), floating.
        vocabulary_weight: (K, D), one row a class, of the type of `hidden`. Under `torch.autocast` the matrix
            products run in its type. The softmax is computed in float32 (float64 stays), and gradients of
            half precision are added up in float32.
        target: class ids (...), or dense rows (..., K) that may be signed, where they fit.
        weight: (...), one number an example, of either sign; None is 1.
        bias: (K,), of the type of `hidden`; −inf forbids a class.
        mask: (...), bool, True where an example counts. The others are left out before anything is computed.
        reduction: as in `weighted_cross_entropy`.
        label_smoothing: ε in [0, 1]: the target becomes (1 − ε) · y + ε/K.
        chunk_size: examples whose logits are held at a time (about two tensors of that size on a CPU, four
            elsewhere). None takes as many as have 2²⁴ logits together, 64 MiB in float32 (on a GPU four times
            as many), but no fewer than 64: each chunk goes once over the whole matrix and its gradient.

    Returns:
        The loss in nats. A batch in which no example counts gives 0 with zero gradient.

    Raises:
        ValueError: as `weighted_cross_entropy`, or hidden, vocabulary_weight and bias do not fit together.
        TypeError: an argument is no tensor.
        RuntimeError: backward is called with create_graph=True (there is no second derivative).

    Example:
        >>> import torch
        >>> from pgce.objective import linear_cross_entropy
        >>> hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> vocabulary_weight = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, -1.0]], requires_grad=True)
        >>> token, advantage = torch.tensor([0, 2]), torch.tensor([1.0, -2.0])
        >>> loss = linear_cross_entropy(hidden, vocabulary_weight, token, advantage)
        >>> loss
        tensor(-1.7421, grad_fn=<_LinearCrossEntropyBackward>)
        >>> loss.backward()
        >>> vocabulary_weight.grad
        tensor([[-0.1065, -0.4223],
                [ 0.0533, -0.4223],
                [ 0.0533,  0.8446]])

    References:
        Hsu et al. (2024), Liger kernel: efficient Triton kernels for LLM training (gradients by the chunk, in
        the forward pass). Wijmans et al. (2024), Cut your losses in large-vocabulary language models.
    """
    # Not built upon F.linear_cross_entropy of torch 2.13: it weights classes, so that a weight a row needs
    # its "none", more than twice as slow as this (benchmarks/linear_cross_entropy.py); and for smoothed or
    # dense targets it holds all logits.
    linear = {"hidden": hidden, "vocabulary_weight": vocabulary_weight}
    optional = {"bias": bias, "weight": weight, "mask": mask}
    _check_tensors(linear | {"target": target}, optional)
    dtype = _check_linear(hidden, vocabulary_weight, bias)
    for name, value in ({"target": target} | optional).items():
        if value is not None:
            check_device("hidden", hidden, name, value)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing lies in [0, 1]: label_smoothing is {label_smoothing}")
    examples, classes = hidden.shape[:-1], len(vocabulary_weight)
    if chunk_size is None:
        chunk_size = max(64, 2 ** (26 if hidden.is_cuda else 24) // classes)
    elif not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise ValueError(f"chunk_size is a whole number >= 1 or None: chunk_size is {chunk_size!r}")
    _check_weight(weight, examples)
    if mask is not None:
        _check_mask(mask, hidden, target, examples)
    target = target.detach()
    head = Categorical()
    dense = target.is_floating_point()
    shape = (*examples, classes) if dense else examples
    if target.shape != shape or target.dtype == torch.bool or target.is_complex():
        # The head refuses it and says why, of tensors that hold nothing.
        head.cross_entropy(torch.empty((*examples, classes), device="meta"), target.to("meta"))

    rows = target.reshape(-1, classes) if dense else target.reshape(-1)
    kept = None
    if mask is not None:
        hidden, weight = hidden[mask], None if weight is None else weight[mask]
        kept = mask.flatten().nonzero().squeeze(1)
        if not dense:  # dense rows are as large as the logits: taken from the caller's tensor by the chunk
            rows, kept = rows[kept], None
    if not dense:
        head.check(vocabulary_weight.T, rows)  # reads K, the length of the last axis

    def score(logits: Tensor, chunk: slice) -> Tensor:
        y = rows[chunk] if kept is None else rows[kept[chunk]]
        if label_smoothing and dense:
            y = smooth(y, label_smoothing)
        cross_entropy = head.cross_entropy(logits, y)
        if label_smoothing and not dense:  # (1 − ε) · H(y) + ε · H(uniform), without making rows of the ids
            z = logits.to(cross_entropy.dtype)
            z_y = z.gather(1, y.long().unsqueeze(1)).squeeze(1)
            cross_entropy = cross_entropy + label_smoothing * (z_y - z.mean(1))
        return cross_entropy

    ones = hidden.new_ones(hidden.shape[:-1], dtype=torch.promote_types(dtype, torch.float32))
    coefficient = None
    if reduction != "none":  # L = Σ c · H with the constants c = w / divisor
        coefficient = (weighted(ones, weight) / _divisor(reduction, ones, weight)).flatten()
    if not torch.is_grad_enabled():  # which ctx.needs_input_grad does not know
        hidden, vocabulary_weight = hidden.detach(), vocabulary_weight.detach()
        bias = None if bias is None else bias.detach()
    loss: Tensor
    cross_entropy: Tensor
    loss, cross_entropy = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.reshape(-1, hidden.shape[-1]), vocabulary_weight, bias, coefficient, score, chunk_size, dtype
    )
    cross_entropy = cross_entropy.view_as(ones)
    if reduction == "none":
        loss = weighted(cross_entropy, weight)
    if not bool(loss.isfinite().all()):
        raise _not_finite(
            hidden=hidden,
            vocabulary_weight=vocabulary_weight,
            bias=bias,
            target=target if mask is None else target[mask],
            weight=weight,
            cross_entropy=cross_entropy,
        )
    if reduction == "none" and mask is not None:
        return loss.new_zeros(examples).masked_scatter(mask, loss)
    return loss


_Score = Callable[[Tensor, slice], Tensor]


class _LinearCrossEntropy(torch.autograd.Function):
    """(Σ c · H, H) of rows hidden (N, D); without the coefficients c (N,) the sum is 0, and H differentiable.

    `score(logits, rows)` is H of a chunk of rows from its logits, `dtype` the type of the matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, bias: Tensor | None, coefficient: Tensor | None, *how: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.how, ctx.coefficient = how, coefficient
        ctx.save_for_backward(hidden, matrix, bias)
        # float16 waits for backward: without the factor of a gradient scaler, small gradients would be 0.
        ahead = any(ctx.needs_input_grad) and how[-1] != torch.float16
        needs = ctx.needs_input_grad[:3]
        cross_entropy, ctx.gradients = _by_chunks(
            hidden, matrix, bias, coefficient if ahead else None, needs, *how
        )
        if coefficient is None:
            return cross_entropy.new_zeros(()), cross_entropy
        ctx.mark_non_differentiable(cross_entropy)
        return objective(cross_entropy, coefficient, 1.0), cross_entropy

    @staticmethod
    def backward(ctx: Any, on_loss: Tensor, on_cross_entropy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable would return constants where the loss is the root
            raise RuntimeError(
                "linear_cross_entropy is differentiated once: create_graph is True "
                "(weighted_cross_entropy has second derivatives)"
            )
        # Handed out, not kept: the gradients become the caller's, and a second backward computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(on_loss)
        else:
            upstream = on_cross_entropy if ctx.coefficient is None else ctx.coefficient * on_loss
            hidden, matrix, bias = ctx.saved_tensors
            needs = ctx.needs_input_grad[:3]
            _, gradients = _by_chunks(hidden, matrix, bias, upstream, needs, *ctx.how)
        return (*gradients, None, None, None, None)


def _by_chunks(
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    coefficient: Tensor | None,
    needs: tuple[bool, ...],
    score: _Score,
    chunk_size: int,
    dtype: torch.dtype,
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """H of every row and, if c is given, the gradients of Σ c · H on hidden, matrix and bias where needed."""
    given = (hidden, matrix, bias)
    wide = torch.promote_types(dtype, torch.float32)
    cross_entropy = hidden.new_empty(len(hidden), dtype=wide)
    sums = [
        torch.zeros_like(value, dtype=wide)
        if value is not None and need and coefficient is not None
        else None
        for value, need in zip(given, needs, strict=True)
    ]
    on_hidden, on_matrix, on_bias = sums
    x, matrix = hidden.detach().to(dtype), matrix.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    # The types are chosen already, and backward may run outside the caller's autocast.
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(x), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = F.linear(x[rows], matrix, bias)
            with torch.set_grad_enabled(coefficient is not None):
                chunk = score(logits.requires_grad_(coefficient is not None), rows)
            cross_entropy[rows] = chunk.detach()
            if coefficient is None:
                continue
            (on_logits,) = torch.autograd.grad(chunk, logits, coefficient[rows])
            if on_hidden is not None:
                on_hidden[rows] = on_logits @ matrix
            if on_matrix is not None and dtype == wide:
                on_matrix.addmm_(on_logits.T, x[rows])
            elif on_matrix is not None:
                on_matrix += on_logits.T @ x[rows]
            if on_bias is not None:
                on_bias += on_logits.sum(0, dtype=wide)
            del logits, chunk, on_logits  # before the next chunk's are made
    if coefficient is None:
        return cross_entropy, None
    return cross_entropy, tuple(
        None if total is None or value is None else total.to(value.dtype)
        for total, value in zip(sums, given, strict=True)
    )


def _check_linear(hidden: Tensor, matrix: Tensor, bias: Tensor | None) -> torch.dtype:
    """The type of the products hidden · matrixᵀ + bias, of which shapes, types and devices fit together."""
    values = {"hidden": hidden, "vocabulary_weight": matrix} | ({} if bias is None else {"bias": bias})
    shapes = ", ".join(f"{name} has shape {tuple(value.shape)}" for name, value in values.items())
    if hidden.ndim == 0 or matrix.ndim != 2 or len(matrix) == 0 or hidden.shape[-1] != matrix.shape[1]:
        raise ValueError(f"hidden is (..., D) and vocabulary_weight (K, D) with K >= 1 classes: {shapes}")
    if bias is not None and bias.shape != matrix.shape[:1]:
        raise ValueError(f"bias is (K,), one number a class: {shapes}")
    if len({value.device for value in values.values()}) > 1:
        devices = ", ".join(f"{name} is on {value.device}" for name, value in values.items())
        raise ValueError(f"{', '.join(values)} lie on one device: {devices}")
    types = {value.dtype for value in values.values()}
    device = hidden.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        types = {low if t.is_floating_point and t != torch.float64 else t for t in types}
    if len(types) > 1 or not hidden.is_floating_point():
        found = ", ".join(f"{name} has dtype {value.dtype}" for name, value in values.items())
        raise ValueError(f"{', '.join(values)} have one floating type: {found}")
    return types.pop()


def _check_tensors(given: dict[str, Tensor], optional: dict[str, Tensor | None]) -> None:
    for name, value in {**given, **optional}.items():
        if not (isinstance(value, Tensor) or (value is None and name in optional)):
            raise TypeError(f"{name} is a tensor: {name} is {type(value).__name__}")


def _check_weight(weight: Tensor | None, examples: torch.Size) -> None:
    if weight is not None and weight.shape != examples:
        raise ValueError(
            f"one weight per example: weight has shape {tuple(weight.shape)}, "
            f"logits describe examples of shape {tuple(examples)}"
        )


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
    check_device("logits", logits, "mask", mask)
    if target.shape[: len(examples)] != examples:
        raise ValueError(
            f"one target per example: target has shape {tuple(target.shape)}, "
            f"logits describe examples of shape {tuple(examples)}"
        )


def _hides(head: Head, logits: Tensor, target: Tensor, weight: Tensor | None, cross_entropy: Tensor) -> bool:
    """Whether a product with 0 hides from the loss what would still make the gradient NaN."""
    if bool(cross_entropy.isnan().any()):
        return True
    if isinstance(head, Categorical):
        return False  # a softmax hides nothing
    if target.is_floating_point() and not bool(target.isfinite().all()):
        return True
    nothing = cross_entropy == 0
    if weight is not None:
        nothing |= weight == 0
    if not bool(nothing.any()):
        return False
    seen = logits[nothing]
    return bool((seen.isnan() | (seen == math.inf)).any())


def _not_finite(**values: Tensor | None) -> ValueError:
    """The error that names the first value to blame for a loss that is NaN or infinite."""
    for name, value in values.items():
        if value is None:
            continue
        good = value.isfinite()
        if name in ("logits", "bias"):
            good |= value == -math.inf  # forbids a class
        if not bool(good.all()):
            index = tuple((~good).nonzero()[0].tolist())
            found = value[index].item()
            why = ""
            if name == "cross_entropy" and found == math.inf:
                why = ": the target has probability 0 under the logits"
            elif name == "cross_entropy":
                why = ": its logits overflow, or all are −inf"
            return ValueError(f"the loss must be finite: {name} is {found} at {index}{why}")
    return ValueError("the loss must be finite: weight × cross_entropy overflows")
