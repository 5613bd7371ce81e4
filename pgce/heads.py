"""What logits mean: each head turns a network's output into a distribution p and scores a target under it.

A head has no parameters. Distribution parameters lie on the trailing axes of `logits`, the axes before them
count examples, and `event_dims` trailing axes of the target together make up one example (their
cross-entropies add). Half precision is computed in float32; float64 stays float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Head"]

_LOG_2PI = math.log(2 * math.pi)
_NO_IGNORED_CLASS = torch.iinfo(torch.int64).min  # torch would silently skip class -100


class Head(Protocol):
    """What the trainer asks of a head; any object with these methods is one."""

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape of the examples that `logits` describes."""
        ...

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """H(target, p) in nats, one value an example."""
        ...

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse target values that have no meaning under the head (reads the data: synchronises a GPU)."""
        ...

    def entropy(self, logits: Tensor) -> Tensor:
        """H(p) in nats, one value an example."""
        ...

    def entropy_target(self, logits: Tensor) -> Tensor:
        """The constant target whose cross-entropy has the gradient of the entropy H(p)."""
        ...

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw from p an example."""
        ...

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable outcome of each example."""
        ...


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
        examples, classes = self.examples(logits), logits.shape[-1]
        _same_device(logits, target)
        logits = _widened(logits)
        if target.shape == examples and not target.is_floating_point():
            if target.dtype == torch.bool or target.is_complex():
                raise ValueError(f"class ids are integers: target has dtype {target.dtype}")
            try:
                return F.cross_entropy(
                    logits.reshape(-1, classes),
                    target.reshape(-1).long(),
                    reduction="none",
                    ignore_index=_NO_IGNORED_CLASS,
                ).view(examples)
            except IndexError:
                low, high = (int(edge) for edge in torch.aminmax(target))
                raise _class_id_error(low, high, classes) from None
        if target.shape == logits.shape and target.is_floating_point():
            log_p = F.log_softmax(logits, -1)
            target = target.to(log_p.dtype)
            # Selected, not multiplied: 0 · log 0 is 0, where 0 × −∞ is NaN.
            return -(target * log_p.masked_fill(target == 0, 0)).sum(-1)
        raise ValueError(
            f"a target is integer class ids of shape {tuple(examples)} or floating rows of shape "
            f"{tuple(logits.shape)}: target has dtype {target.dtype} and shape {tuple(target.shape)}"
        )

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse class ids outside 0..K−1 (some devices would compute with them)."""
        if target.is_floating_point() or target.dtype == torch.bool or target.numel() == 0:
            return
        low, high = (int(edge) for edge in torch.aminmax(target))
        if low < 0 or high >= logits.shape[-1]:
            raise _class_id_error(low, high, logits.shape[-1])

    def entropy(self, logits: Tensor) -> Tensor:
        """−Σ_k p_k log p_k in nats, shape (...); forbidden classes count 0."""
        log_p = F.log_softmax(_widened(logits), -1)
        p = log_p.exp()
        return -(p * log_p.masked_fill(p == 0, 0)).sum(-1)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """p ∘ (log p + H), shape (..., K): signed, sums to 0, and its cross-entropy has the gradient of H.

        (The detached p itself would have gradient zero.)
        """
        log_p = F.log_softmax(_widened(logits.detach()), -1)
        p = log_p.exp()
        p_log_p = p * log_p.masked_fill(p == 0, 0)
        return p_log_p - p * p_log_p.sum(-1, keepdim=True)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Class ids (...) drawn from p, int64, by the exponential race (argmax of p_k / E_k)."""
        race = torch.empty_like(logits).exponential_(generator=generator)
        return (logits - race.log_()).argmax(-1)

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable class ids (...), int64."""
        return logits.argmax(-1)


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
        self.examples(logits)
        _same_device(logits, target)
        _same_shape("one target a logit", "logits", logits.shape, target)
        logits = _widened(logits)
        each = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
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
        return torch.bernoulli(_widened(logits).sigmoid(), generator=generator).long()

    def mode(self, logits: Tensor) -> Tensor:
        """1 where p > ½, else 0, int64."""
        return (logits > 0).long()


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
        _same_device(logits, target)
        mean, log_scale = self._parameters(_widened(logits))
        _same_shape("one target a mean", "the mean", mean.shape, target)
        error = target.to(mean.dtype) - mean
        if isinstance(log_scale, Tensor):
            each = 0.5 * (error * (-log_scale).exp()).square() + log_scale + 0.5 * _LOG_2PI
        else:
            each = (0.5 / math.exp(2 * log_scale)) * error.square() + (log_scale + 0.5 * _LOG_2PI)
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
        mean, log_scale = self._parameters(logits)
        scale = log_scale.exp() if isinstance(log_scale, Tensor) else math.exp(log_scale)
        return mean + scale * torch.empty_like(mean).normal_(generator=generator)

    def mode(self, logits: Tensor) -> Tensor:
        """The mean."""
        return self._parameters(logits)[0]

    def _parameters(self, logits: Tensor) -> tuple[Tensor, Tensor | float]:
        if self.scale != "learned":
            return logits, math.log(self.scale)
        if logits.ndim == 0 or logits.shape[-1] != 2:
            raise ValueError(
                "a learned scale needs mean and log scale on the last axis, logits (..., 2): "
                f"logits has shape {tuple(logits.shape)}"
            )
        mean, log_scale = logits.unbind(-1)
        return mean, log_scale


def _widened(logits: Tensor) -> Tensor:
    """Logits in at least float32: a bfloat16 log-softmax is off by 0.02 nats."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _without_event(shape: torch.Size, event_dims: int) -> torch.Size:
    if len(shape) < event_dims:
        raise ValueError(
            f"an event of {event_dims} axes needs as many: the logits describe shape {tuple(shape)}"
        )
    return shape[: len(shape) - event_dims]


def _sum_event(each: Tensor, event_dims: int) -> Tensor:
    return each.flatten(-event_dims).sum(-1) if event_dims else each


def _same_shape(rule: str, name: str, shape: torch.Size, target: Tensor) -> None:
    if target.shape != shape:
        raise ValueError(f"{rule}: target has shape {tuple(target.shape)}, {name} has shape {tuple(shape)}")
    if target.is_complex():
        raise ValueError(f"targets are real: target has dtype {target.dtype}")


def _same_device(logits: Tensor, target: Tensor) -> None:
    if not logits.is_floating_point():
        raise ValueError(f"logits are floating: logits has dtype {logits.dtype}")
    if logits.device != target.device:
        raise ValueError(
            f"logits and target lie on one device: logits is on {logits.device}, target on {target.device}"
        )


def _class_id_error(low: int, high: int, classes: int) -> ValueError:
    return ValueError(
        f"class ids lie in 0..{classes - 1}: target holds ids from {low} to {high}"
        " (leave rows out with mask=, not with a marker id)"
    )
