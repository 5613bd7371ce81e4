"""What logits mean: each head turns a network's output into a distribution p and scores a target under it.

A head has no parameters. Distribution parameters lie on the trailing axes of `logits`, the axes before them
count examples, and `event_dims` trailing axes of the target together make up one example (their
cross-entropies add). Half precision is computed in float32; float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from pgce.softmax import class_id_error, cross_entropy_of_ids, cross_entropy_of_rows, p_and_p_log_p
from pgce.tapes import once

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Head",
    "Laplace",
    "Poisson",
    "PolicyHead",
    "Transformed",
    "logit_adjusted",
    "noisy",
    "plain",
    "tempered",
]

_LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Head(Protocol):
    """What the trainer asks of a head; any object with these methods is one."""

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples that `logits` describes."""

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """H(target, p) in nats, one value an example."""

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse target values that have no meaning under the head (reads the data: synchronises a GPU)."""

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw from p an example."""

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable outcome of each example."""

    def mean(self, logits: Tensor) -> Tensor:
        """The expected target: probabilities where outcomes are classes, else the expected value."""


class PolicyHead(Head, Protocol):
    """A head whose entropy has a closed form, as an agent's bonus needs it."""

    def entropy(self, logits: Tensor) -> Tensor:
        """H(p) in nats, one value an example."""

    def entropy_target(self, logits: Tensor) -> Tensor:
        """The constant target whose cross-entropy has the gradient of the entropy H(p)."""


@dataclass(frozen=True)
class Categorical:
    """One of K classes; logits (..., K) are unnormalised log-probabilities.

    Targets are class ids (...) of an integer type, or a dense row (..., K): probabilities, or any signed
    values (then the gradient on the logits is Σy · p − y). A logit of −inf forbids its class.

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, float("-inf")]])
        >>> Categorical().cross_entropy(logits, torch.tensor([1, 0]))
        tensor([1.0986, 0.6931])
        >>> Categorical().entropy(logits)
        tensor([1.0986, 0.6931])
        >>> Categorical().mode(torch.tensor([[0.1, 0.7, 0.2]]))
        tensor([1])
    """

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape (...) of the examples in logits (..., K)."""
        if logits.ndim == 0 or logits.shape[-1] == 0:
            raise ValueError(
                f"logits end in the axis of K >= 1 classes: logits has shape {tuple(logits.shape)}"
            )
        return logits.shape[:-1]

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """−Σ_k y_k log p_k in nats, shape (...).

        Args:
            logits: (..., K), floating.
            target: class ids (...), integer; or dense values (..., K), floating.

        Raises:
            ValueError: a shape, type or device that does not fit, or (on CPU) a class id outside 0..K−1.
        """
        examples = self.examples(logits)
        _check_logits(logits, target)
        logits = _widened(logits)
        if target.shape == examples and not target.is_floating_point():
            if target.dtype == torch.bool or target.is_complex():
                raise ValueError(f"class ids are integers: target has dtype {target.dtype}")
            return cross_entropy_of_ids(logits, target)
        if target.shape == logits.shape and target.is_floating_point():
            return cross_entropy_of_rows(logits, target.to(logits.dtype))
        raise ValueError(
            f"a target is integer class ids of shape {tuple(examples)} or floating rows of shape "
            f"{tuple(logits.shape)}: target has dtype {target.dtype} and shape {tuple(target.shape)}"
        )

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse class ids outside 0..K−1 (some devices would compute with them)."""
        if target.is_floating_point() or target.dtype == torch.bool or target.numel() == 0:
            return
        low, high = torch.stack(torch.aminmax(target)).tolist()
        if low < 0 or high >= logits.shape[-1]:
            raise class_id_error(low, high, logits.shape[-1])

    def entropy(self, logits: Tensor) -> Tensor:
        """−Σ_k p_k log p_k in nats, shape (...); forbidden classes count 0."""
        return -p_and_p_log_p(_widened(logits))[1].sum(-1)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """p ∘ (log p + H), shape (..., K): signed, sums to 0, and its cross-entropy has the gradient of H.

        (The detached p itself would have gradient zero.)
        """
        p, p_log_p = p_and_p_log_p(_widened(logits.detach()))
        return p_log_p - p * p_log_p.sum(-1, keepdim=True)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Class ids (...) drawn from p, int64, by the exponential race (argmax of p_k / E_k)."""
        logits = _widened(logits)
        race = _room(logits).exponential_(generator=generator)
        return (logits - race.log_()).argmax(-1)

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable class ids (...), int64."""
        return logits.argmax(-1)

    def mean(self, logits: Tensor) -> Tensor:
        """The probabilities p, shape (..., K)."""
        return F.softmax(_widened(logits), -1)


@dataclass(frozen=True)
class Bernoulli:
    """Yes or no under a sigmoid; logits have the target's shape.

    Targets are booleans, integers 0 and 1, or floating probabilities (signed values allowed).

    Args:
        event_dims: trailing axes that make up one example, 0 for one yes-or-no an example.

    Example:
        >>> import torch
        >>> from pgce.heads import Bernoulli
        >>> Bernoulli().cross_entropy(torch.zeros(2), torch.tensor([True, False]))
        tensor([0.6931, 0.6931])
        >>> Bernoulli(event_dims=1).cross_entropy(torch.zeros(1, 3), torch.ones(1, 3))
        tensor([2.0794])
    """

    event_dims: int = 0

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples in `logits`: all its axes but the last `event_dims`."""
        return _without_event(logits.shape, self.event_dims)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """−y log p − (1 − y) log(1 − p) in nats, added over the event.

        Raises:
            ValueError: logits and target differ in shape or device.
        """
        logits, y = _paired("one target a logit", logits, target, self.event_dims)
        each = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return _sum_event(each, self.event_dims)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse integers other than 0 and 1."""
        if target.is_floating_point() or target.dtype == torch.bool or target.numel() == 0:
            return
        low, high = (int(edge) for edge in torch.aminmax(target))
        if low < 0 or high > 1:
            raise ValueError(f"yes-or-no targets are 0 or 1: target holds values from {low} to {high}")

    def entropy(self, logits: Tensor) -> Tensor:
        """H(p) in nats, added over the event."""
        logits = _widened(logits)
        each = F.softplus(logits) - logits * logits.sigmoid()
        return _sum_event(each, self.event_dims)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """p + p(1 − p) · logit: its cross-entropy has the gradient of H."""
        logits = _widened(logits.detach())
        p = logits.sigmoid()
        return p + p * (1 - p) * logits

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones drawn from p, int64, in the shape of `logits`."""
        return torch.bernoulli(_widened(logits).sigmoid().contiguous(), generator=generator).long()

    def mode(self, logits: Tensor) -> Tensor:
        """1 where p > ½, else 0, int64."""
        return (logits > 0).long()

    def mean(self, logits: Tensor) -> Tensor:
        """The probability p of each yes, in the shape of `logits`."""
        return _widened(logits).sigmoid()


@dataclass(frozen=True)
class Gaussian:
    """A real value with Gaussian noise; logits hold the mean, and log σ where the scale is learned.

    With `scale=1.0` the cross-entropy is ½(y − μ)² + ½ log 2π: MSE = 2 (CE − ½ log 2π).

    Args:
        scale: σ > 0 in the target's unit, the same for all, with logits of the target's shape; or "learned",
            with logits (..., 2): mean and log σ on the last axis.
        event_dims: trailing axes of the target that make up one example, 1 for an action vector (N, D).

    Raises:
        ValueError: `scale` is neither a positive finite number nor "learned".

    Example:
        >>> import torch
        >>> from pgce.heads import Gaussian
        >>> Gaussian().cross_entropy(torch.tensor([0.0]), torch.tensor([2.0]))
        tensor([2.9189])
        >>> logits = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # one action of two components, σ = 1
        >>> Gaussian("learned", event_dims=1).mode(logits)
        tensor([[1., 3.]])
        >>> Gaussian("learned", event_dims=1).entropy(logits)
        tensor([2.8379])
    """

    scale: float | Literal["learned"] = 1.0
    event_dims: int = 0

    def __post_init__(self) -> None:
        if self.scale != "learned" and not (
            isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf
        ):
            raise ValueError(f'scale is a positive finite number or "learned": scale is {self.scale!r}')

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples in `logits`."""
        return _without_event(self._parameters(logits)[0].shape, self.event_dims)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """½((y − μ)/σ)² + log σ + ½ log 2π in nats, added over the event.

        Raises:
            ValueError: target and mean differ in shape, or logits and target in device.
        """
        _check_logits(logits, target)
        mean, log_scale = self._parameters(_widened(logits))
        _same_shape("one target a mean", "the mean", mean.shape, target)
        target = target.to(mean.dtype)
        if isinstance(log_scale, Tensor):
            error = target - mean
            each = 0.5 * (error * (-log_scale).exp()).square() + log_scale + 0.5 * _LOG_2PI
        else:
            squared = F.mse_loss(mean, target, reduction="none")
            each = (0.5 / math.exp(2 * log_scale)) * squared + (log_scale + 0.5 * _LOG_2PI)
        return _sum_event(each, self.event_dims)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Every real target has a meaning here."""

    def entropy(self, logits: Tensor) -> Tensor:
        """½ log 2πe + log σ in nats, added over the event."""
        mean, log_scale = self._parameters(_widened(logits))
        each = torch.zeros_like(mean) + log_scale + 0.5 * (1 + _LOG_2PI)
        return _sum_event(each, self.event_dims)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """The mean: its cross-entropy log σ + ½ log 2π has the gradient of H."""
        return self._parameters(_widened(logits.detach()))[0]

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """μ + σ · ε with ε drawn from N(0, 1), in the shape of the mean."""
        mean, log_scale = self._parameters(_widened(logits))
        scale = log_scale.exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)
        return mean + scale * _room(mean).normal_(generator=generator)

    def mean(self, logits: Tensor) -> Tensor:
        """The mean μ, which is the mode too."""
        return self._parameters(logits)[0]

    mode = mean

    def _parameters(self, logits: Tensor) -> tuple[Tensor, Tensor | float]:
        if self.scale != "learned":
            return logits, math.log(self.scale)
        if logits.ndim == 0 or logits.shape[-1] != 2:
            raise ValueError(
                "a learned scale needs mean and log scale on the last axis, logits (..., 2): "
                f"logits has shape {tuple(logits.shape)}"
            )
        mean, log_scale = logits.movedim(-1, 0).unbind()  # whose gradient is laid out as they are
        return mean, log_scale


@dataclass(frozen=True)
class Laplace:
    """A real value with Laplace noise; logits hold its location μ, the median, in the target's shape.

    The cross-entropy is |y − μ|/b + log 2b: the absolute error, in units of b and up to a constant.

    Args:
        scale: b > 0 in the target's unit.
        event_dims: trailing axes of the target that make up one example.

    Raises:
        ValueError: `scale` is not a positive finite number.

    Example:
        >>> import torch
        >>> from pgce.heads import Laplace
        >>> Laplace().cross_entropy(torch.tensor([0.0]), torch.tensor([2.0]))
        tensor([2.6931])
    """

    scale: float = 1.0
    event_dims: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.scale, (int, float)) and 0 < self.scale < math.inf):
            raise ValueError(f"scale is a positive finite number: scale is {self.scale!r}")

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples in `logits`: all its axes but the last `event_dims`."""
        return _without_event(logits.shape, self.event_dims)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """|y − μ|/b + log 2b in nats, added over the event.

        Raises:
            ValueError: target and logits differ in shape or device.
        """
        logits, y = _paired("one target a location", logits, target, self.event_dims)
        each = (y - logits).abs() / self.scale + math.log(2 * self.scale)
        return _sum_event(each, self.event_dims)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Every real target has a meaning here."""

    def entropy(self, logits: Tensor) -> Tensor:
        """1 + log 2b in nats, added over the event."""
        each = torch.full_like(_widened(logits), 1 + math.log(2 * self.scale))
        return _sum_event(each, self.event_dims)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """The location: the entropy does not depend on it, and its cross-entropy there has gradient 0."""
        return _widened(logits.detach())

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """μ plus Laplace noise (the difference of two exponential draws), in the shape of `logits`."""
        logits = _widened(logits)
        first, second = (_room(logits).exponential_(generator=generator) for _ in range(2))
        return logits + self.scale * (first - second)

    def mean(self, logits: Tensor) -> Tensor:
        """The location μ, which is the mode too."""
        return logits

    mode = mean


@dataclass(frozen=True)
class Poisson:
    """A count; logits hold the logarithm of its expected value λ, in the target's shape.

    (Its entropy has no closed form: it is no head of a policy.)

    Args:
        event_dims: trailing axes of the target that make up one example.

    Example:
        >>> import torch
        >>> from pgce.heads import Poisson
        >>> Poisson().cross_entropy(torch.tensor([0.0]), torch.tensor([2]))
        tensor([1.6931])
        >>> Poisson().mean(torch.tensor([0.0]))
        tensor([1.])
    """

    event_dims: int = 0

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples in `logits`: all its axes but the last `event_dims`."""
        return _without_event(logits.shape, self.event_dims)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """λ − y log λ + log y! in nats, added over the event.

        Raises:
            ValueError: target and logits differ in shape or device.
        """
        logits, y = _paired("one target a rate", logits, target, self.event_dims)
        return _sum_event(logits.exp() - y * logits + torch.lgamma(y + 1), self.event_dims)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse negative counts."""
        if target.numel() and bool(target.min() < 0):
            raise ValueError(f"counts are 0 or more: target holds {target.min().item():g}")

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Counts drawn from p, floating, in the shape of `logits`."""
        return torch.poisson(_widened(logits).exp().contiguous(), generator=generator)

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable count ⌊λ⌋, floating."""
        return _widened(logits).exp().floor()

    def mean(self, logits: Tensor) -> Tensor:
        """The expected count λ."""
        return _widened(logits).exp()


@dataclass(frozen=True)
class Transformed:
    """A head that scores targets through a transform of the logits, and predicts without it.

    Temperature (`tempered`), logit adjustment (`logit_adjusted`) and forward noise correction (`noisy`) are
    such transforms.

    Args:
        transform: logits -> logits of the same shape.
        head: what both mean.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from pgce.heads import Transformed, logit_adjusted
        >>> rare = Transformed(partial(logit_adjusted, prior=torch.tensor([0.99, 0.01])))
        >>> logits = torch.zeros(1, 2)
        >>> rare.cross_entropy(logits, torch.tensor([1]))  # as if p(1) were 0.01
        tensor([4.6052])
        >>> rare.mean(logits)
        tensor([[0.5000, 0.5000]])
    """

    transform: Callable[[Tensor], Tensor]
    head: Head = Categorical()

    def examples(self, logits: Tensor) -> torch.Size:
        """As the head."""
        return self.head.examples(logits)

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """H(target, p) in nats, with p from the transformed logits."""
        return self.head.cross_entropy(self.transform(_widened(logits)), target)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """As the head."""
        self.head.check(logits, target)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As the head, without the transform."""
        return self.head.sample(logits, generator)

    def mode(self, logits: Tensor) -> Tensor:
        """As the head, without the transform."""
        return self.head.mode(logits)

    def mean(self, logits: Tensor) -> Tensor:
        """As the head, without the transform."""
        return self.head.mean(logits)


def plain(head: Head) -> Head:
    """The head by which predictions are made, without transforms.

    Example:
        >>> from pgce.heads import Categorical, Transformed, plain
        >>> plain(Transformed(lambda logits: logits / 2, Categorical()))
        Categorical()
    """
    return plain(head.head) if isinstance(head, Transformed) else head


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """z/T: p is flatter for T > 1.

    Args:
        logits: (..., K).
        temperature: T > 0.

    Raises:
        ValueError: T is not positive and finite.

    Example:
        >>> import torch
        >>> from pgce.heads import tempered
        >>> tempered(torch.tensor([4.0, 0.0]), temperature=2.0)
        tensor([2., 0.])

    References:
        Hinton, Vinyals and Dean (2015), Distilling the knowledge in a neural network.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"a temperature is positive and finite: it is {temperature}")
    return logits / temperature


def logit_adjusted(logits: Tensor, prior: Tensor, tau: float = 1.0) -> Tensor:
    """z + τ log π: trained so, z itself is the logit under equally frequent classes (for τ = 1).

    Args:
        logits: (..., K).
        prior: π (K,), frequencies of the classes in the training data, positive.
        tau: τ, strength of the adjustment.

    Raises:
        ValueError: `prior` is not K positive numbers.

    Example:
        >>> import torch
        >>> from pgce.heads import logit_adjusted
        >>> logit_adjusted(torch.zeros(2), prior=torch.tensor([0.5, 0.5]))
        tensor([-0.6931, -0.6931])

    References:
        Menon et al. (2021), Long-tail learning via logit adjustment.
    """
    with once():
        if prior.shape != logits.shape[-1:] or not bool((prior > 0).all()):
            raise ValueError(
                f"a prior has one positive number for each of {logits.shape[-1]} classes: it has shape "
                f"{tuple(prior.shape)}" + (f", smallest {prior.min().item():g}" if prior.numel() else "")
            )
    return logits + tau * prior.to(logits).log()


def noisy(logits: Tensor, noise: Tensor, *, zeros: bool = False) -> Tensor:
    """log(Tᵀ p): logits of the noisy label, where `logits` are those of the clean one (forward correction).

    Args:
        logits: (..., K).
        noise: T (K, K), row i the distribution of the label given where the true class is i.
        zeros: T may have zeros: computed from log p, in K times the memory, for a label's p may round to 0.

    Raises:
        ValueError: `noise` is not (K, K).

    Example:
        >>> import torch
        >>> from pgce.heads import noisy
        >>> noisy(torch.tensor([100.0, 0.0]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])).exp()
        tensor([0.9000, 0.1000])

    References:
        Patrini et al. (2017), Making deep neural networks robust to label noise.
    """
    if noise.shape != (logits.shape[-1],) * 2:
        raise ValueError(
            f"a noise matrix is (K, K) for K = {logits.shape[-1]} classes: it has shape {tuple(noise.shape)}"
        )
    noise = noise.to(logits)
    if not zeros:
        return (F.softmax(logits, -1) @ noise).log()
    return torch.logsumexp(F.log_softmax(logits, -1).unsqueeze(-1) + noise.log(), -2)


def _widened(logits: Tensor) -> Tensor:
    """Logits in at least float32: a bfloat16 log-softmax is off by 0.02 nats."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _room(like: Tensor) -> Tensor:
    """Memory of a tensor's shape to draw into, row by row: what is drawn does not depend on how it lies."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _without_event(shape: torch.Size, event_dims: int) -> torch.Size:
    if len(shape) < event_dims:
        raise ValueError(
            f"an event of {event_dims} axes needs as many: the logits describe shape {tuple(shape)}"
        )
    return shape[: len(shape) - event_dims]


def _sum_event(each: Tensor, event_dims: int) -> Tensor:
    return each.flatten(-event_dims).sum(-1) if event_dims else each


def _paired(rule: str, logits: Tensor, target: Tensor, event_dims: int) -> tuple[Tensor, Tensor]:
    """Logits and a target of their shape, in the type that is computed in."""
    _without_event(logits.shape, event_dims)
    _check_logits(logits, target)
    _same_shape(rule, "logits", logits.shape, target)
    logits = _widened(logits)
    return logits, target.to(logits.dtype)


def _same_shape(rule: str, name: str, shape: torch.Size, target: Tensor) -> None:
    if target.shape != shape:
        raise ValueError(f"{rule}: target has shape {tuple(target.shape)}, {name} has shape {tuple(shape)}")
    if target.is_complex():
        raise ValueError(f"targets are real: target has dtype {target.dtype}")


def _check_logits(logits: Tensor, target: Tensor) -> None:
    if not logits.is_floating_point():
        raise ValueError(f"logits are floating: logits has dtype {logits.dtype}")
    check_device("logits", logits, "target", target)


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse tensors that lie on two devices."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} and {other_name} lie on one device: {name} is on {tensor.device}, "
            f"{other_name} on {other.device}"
        )
