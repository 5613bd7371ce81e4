"""Rules for y: labels turned into the target rows (..., K) of a cross-entropy. Pure functions.

A target row is a distribution over labels, and the loss is the expected loss of a label drawn from it. So the
rules compose: annotators' confidence, then class weights (`reweighted`), then smoothing, then mixup.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgce.heads import tempered
from pgce.tapes import once

__all__ = [
    "checked_noise",
    "confidence",
    "cutmix",
    "denoised",
    "distilled",
    "draw",
    "mixup",
    "noise_matrix",
    "one_hot",
    "reweighted",
    "smooth",
    "soften",
]


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
    with once():
        low, high = torch.stack(torch.aminmax(label)).tolist() if label.numel() else (0, 0)
        if low < 0 or high >= classes:
            raise ValueError(f"labels lie in 0..{classes - 1}: label holds values from {low} to {high}")
    rows = torch.zeros(*label.shape, classes, dtype=dtype, device=label.device)
    return rows.scatter_(-1, label.long().unsqueeze(-1), 1)


def smooth(target: Tensor, epsilon: float) -> Tensor:
    """Label smoothing: (1 − ε) · y + ε/K · Σ_k y_k, rows (..., K).

    Args:
        target: rows (..., K), such as `one_hot` gives, which sum to 1; any others keep their sum, too.
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
    return (1 - epsilon) * target + epsilon * target.sum(-1, keepdim=True) / target.shape[-1]


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


def confidence(
    label: Tensor, classes: int, sure: Tensor | float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uncertain labels: rows (..., K) = c · one-hot + (1 − c)/K, for an annotator as sure as c.

    Args:
        label: class ids (...), integers in 0..K−1.
        classes: K >= 1.
        sure: c in [0, 1]; one for all, or (...) one a label.
        dtype: floating type of the result.

    Raises:
        ValueError: as `one_hot`, or a confidence outside [0, 1] or of another shape.

    Example:
        >>> import torch
        >>> from pgce.targets import confidence
        >>> confidence(torch.tensor([0, 1]), 2, sure=torch.tensor([1.0, 0.5]))
        tensor([[1.0000, 0.0000],
                [0.2500, 0.7500]])
    """
    c = torch.as_tensor(sure, dtype=dtype, device=label.device)
    if c.ndim and c.shape != label.shape:
        raise ValueError(
            f"one confidence a label: sure has shape {tuple(c.shape)}, label {tuple(label.shape)}"
        )
    with once():
        if not bool(((c >= 0) & (c <= 1)).all()):
            raise ValueError(
                f"a confidence lies in [0, 1]: sure spans {c.min().item():g} to {c.max().item():g}"
            )
    c = c.unsqueeze(-1)
    return c * one_hot(label, classes, dtype) + (1 - c) / classes


def noise_matrix(classes: int, epsilon: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """T (K, K) of uniform label noise: with probability ε the label is drawn among all K classes.

    Row i is the distribution of the label given where the true class is i.

    Raises:
        ValueError: ε lies outside [0, 1].

    Example:
        >>> from pgce.targets import noise_matrix
        >>> noise_matrix(2, epsilon=0.2)
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]])
    """
    return smooth(torch.eye(classes, dtype=dtype), epsilon)


def draw(label: Tensor, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Noisy labels (...): each drawn from its class's row of the noise matrix.

    Drawn anew at every step with `noise_matrix(K, ε)` this is label smoothing in expectation.

    Args:
        label: class ids (...), integers in 0..K−1.
        noise: T (K, K), rows of probabilities.
        generator: of random numbers.

    Raises:
        ValueError: the matrix is not one of probabilities, or a label lies outside 0..K−1.

    Example:
        >>> import torch
        >>> from pgce.targets import draw, noise_matrix
        >>> label = torch.zeros(10_000, dtype=torch.int64)
        >>> drawn = draw(label, noise_matrix(4, epsilon=0.4), torch.Generator().manual_seed(0))
        >>> (drawn == 0).float().mean()  # 1 − ε + ε/K
        tensor(0.70)

    References:
        Xie et al. (2016), DisturbLabel: regularizing CNN on the loss layer.
    """
    classes = len(checked_noise(noise))
    rows = one_hot(label, classes, noise.dtype).reshape(-1, classes) @ noise
    return torch.multinomial(rows, 1, generator=generator).view(label.shape)


def denoised(label: Tensor, noise: Tensor) -> Tensor:
    """Backward noise correction: rows (..., K) of T⁻¹, signed; their expected loss is the clean label's.

    Args:
        label: noisy class ids (...), integers in 0..K−1.
        noise: T (K, K), invertible; row i the distribution of the label given where the true class is i.

    Raises:
        ValueError: the matrix is not one of probabilities or not invertible, or a label lies outside 0..K−1.

    Example:
        >>> import torch
        >>> from pgce.targets import denoised, noise_matrix
        >>> denoised(torch.tensor([0]), noise_matrix(2, epsilon=0.2))
        tensor([[ 1.1250, -0.1250]])

    References:
        Patrini et al. (2017), Making deep neural networks robust to label noise.
    """
    inverse, failed = torch.linalg.inv_ex(checked_noise(noise))
    with once():
        if bool(failed) or not bool(inverse.isfinite().all()):
            raise ValueError(f"backward correction needs an invertible noise matrix: it is {noise.tolist()}")
    rows: Tensor = inverse[one_hot(label, len(noise)).argmax(-1)]
    return rows


def distilled(teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """The teacher's probabilities softmax(z/T), rows (..., K).

    Distillation scores them through the same temperature, with coefficient T²: a
    `Term(Transformed(partial(tempered, temperature=T)), target=…, coefficient=T**2)`.

    Args:
        teacher: logits (..., K) of a trained model.
        temperature: T > 0.

    Raises:
        ValueError: T is not positive and finite.

    Example:
        >>> import torch
        >>> from pgce.targets import distilled
        >>> distilled(torch.tensor([[2.0, 0.0]]), temperature=2.0)
        tensor([[0.7311, 0.2689]])

    References:
        Hinton, Vinyals and Dean (2015), Distilling the knowledge in a neural network.
    """
    return F.softmax(tempered(teacher, temperature), -1)


def reweighted(target: Tensor, class_weight: Tensor) -> Tensor:
    """y ∘ v / Σ y ∘ v, rows (..., K): what class weights v make of a target that is not one-hot.

    A label drawn from y and weighted v has the expected loss Σ_k v_k y_k (−log p_k). That is a weight
    Σ y ∘ v (`weights.per_class` gives it) times the cross-entropy of this row. One-hot rows stay.

    Args:
        target: rows (..., K), not negative.
        class_weight: v (K,), positive.

    Raises:
        ValueError: `class_weight` is not one positive number a class.

    Example:
        >>> import torch
        >>> from pgce.targets import reweighted
        >>> reweighted(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([1.0, 3.0]))
        tensor([[0.2500, 0.7500],
                [1.0000, 0.0000]])
    """
    with once():
        if class_weight.shape != target.shape[-1:] or not bool((class_weight > 0).all()):
            raise ValueError(
                f"one positive weight a class: target rows have {target.shape[-1]} entries, "
                f"class_weight is {class_weight.tolist()}"
            )
    y = target * class_weight.to(target)
    return y / y.sum(-1, keepdim=True)


def mixup(
    inputs: Tensor, target: Tensor, generator: torch.Generator | None = None, *, alpha: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each mixed with those of another example: λ · own + (1 − λ) · other.

    Args:
        inputs: (B, ...), floating.
        target: rows (B, K), as `one_hot` gives, or real values (B, ...).
        generator: of random numbers, on the CPU.
        alpha: λ is drawn from Beta(α, α), one for the whole batch; α > 0.

    Returns:
        The mixed inputs and targets, in the shapes given.

    Raises:
        ValueError: integer inputs or targets cannot be mixed, or α is not positive.

    Example:
        >>> import torch
        >>> from pgce.targets import mixup
        >>> x, y = mixup(torch.eye(4), torch.eye(4), torch.Generator().manual_seed(0), alpha=1.0)
        >>> y.sum(-1)
        tensor([1., 1., 1., 1.])
        >>> torch.equal(x, y)
        True

    References:
        Zhang et al. (2018), mixup: beyond empirical risk minimization.
    """
    share, other = _mixing(inputs, target, generator, alpha)
    return share * inputs + (1 - share) * inputs[other], share * target + (1 - share) * target[other]


def cutmix(
    inputs: Tensor, target: Tensor, generator: torch.Generator | None = None, *, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Images with a rectangle of another's pasted in, and targets mixed by the area left.

    Args:
        inputs: images (B, ..., H, W).
        target: rows (B, K), as `one_hot` gives.
        generator: of random numbers, on the CPU.
        alpha: the area kept is drawn from Beta(α, α), one rectangle for the whole batch; α > 0.

    Returns:
        The mixed images and targets, in the shapes given.

    Raises:
        ValueError: inputs are no images, integer targets, or α is not positive.

    Example:
        >>> import torch
        >>> from pgce.targets import cutmix
        >>> images = torch.arange(4.0).view(4, 1, 1).expand(4, 8, 8)
        >>> x, y = cutmix(images, torch.eye(4), torch.Generator().manual_seed(1))
        >>> torch.allclose(x.mean((1, 2)), y @ torch.arange(4.0))
        True

    References:
        Yun et al. (2019), CutMix: regularization strategy to train strong classifiers.
    """
    if inputs.ndim < 3:
        raise ValueError(f"CutMix takes images (B, ..., H, W): inputs have shape {tuple(inputs.shape)}")
    share, other = _mixing(inputs, target, generator, alpha)
    height, width = inputs.shape[-2:]
    centre = torch.rand(2, generator=generator).tolist()
    half = 0.5 * (1 - share) ** 0.5  # of the rectangle's sides, as a share of the image's
    top, bottom = (_edge(centre[0] + sign * half, height) for sign in (-1, 1))
    left, right = (_edge(centre[1] + sign * half, width) for sign in (-1, 1))
    mixed = inputs.clone()
    mixed[..., top:bottom, left:right] = inputs[other][..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)  # the rectangle was cut at the borders
    return mixed, share * target + (1 - share) * target[other]


def _mixing(
    inputs: Tensor, target: Tensor, generator: torch.Generator | None, alpha: float
) -> tuple[float, Tensor]:
    """λ from Beta(α, α), and the example that each is mixed with."""
    if not (inputs.is_floating_point() and target.is_floating_point()):
        raise ValueError(
            "what is mixed is floating (turn labels into rows with one_hot): inputs have dtype "
            f"{inputs.dtype}, target has dtype {target.dtype}"
        )
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha is positive and finite: it is {alpha}")
    # torch's own Beta takes no generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return share, torch.randperm(len(inputs), generator=generator).to(inputs.device)


def _edge(share: float, size: int) -> int:
    return min(max(round(share * size), 0), size)


def checked_noise(noise: Tensor) -> Tensor:
    """The matrix, if its rows are distributions over as many classes as it has rows.

    Args:
        noise: T (K, K), floating.

    Raises:
        ValueError: it is none, with its shape and the sums of its rows.

    Example:
        >>> import torch
        >>> from pgce.targets import checked_noise
        >>> checked_noise(torch.full((2, 2), 0.5))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    square = noise.ndim == 2 and noise.shape[0] == noise.shape[1] and noise.is_floating_point()
    with once():
        if not square or not bool((noise >= 0).all()) or not bool(((noise.sum(-1) - 1).abs() < 1e-4).all()):
            raise ValueError(
                "a noise matrix is (K, K) and its rows are probabilities: it has shape "
                f"{tuple(noise.shape)} and row sums {noise.sum(-1).flatten().tolist()}"
            )
    return noise
