"""Heads of the actions that agents take: several choices at once, bounded reals, and any mixture of these.

As in `pgce.heads`, a head has no parameters, the axes of `logits` before the distribution's own count
examples, half precision is computed in float32 and float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgce.heads import _LOG_2PI, Categorical, PolicyHead, _check_logits, _room, _widened
from pgce.softmax import cross_entropy_of_ids, cross_entropy_of_rows, p_and_p_log_p

__all__ = ["Beta", "Joint", "MultiCategorical", "SquashedGaussian"]

Bound = float | tuple[float, ...]
"""One number for all components, or one each."""

# E f(ε) for ε ~ N(0, 1) as Σ w f(node), by the trapezoid rule: for a smooth f it converges as fast as
# Gauss–Hermite does, and its even spacing stands a steep tanh (a large σ) far better.
_NODES = torch.linspace(-6, 6, 65, dtype=torch.float64)
_NODE_WEIGHTS = torch.softmax(-0.5 * _NODES.square(), 0)


@dataclass(frozen=True)
class MultiCategorical:
    """C choices at once, independent given the logits: component c is one of K_c classes.

    Logits (..., ΣK) hold the components' unnormalised log-probabilities one after another; a logit of −inf
    forbids its class. Targets are class ids (..., C) of an integer type, or dense rows (..., ΣK), floating:
    probabilities or any signed values, laid out as the logits. Entropies and cross-entropies add over the
    components. (Neighbours of equal size are computed together: sort the sizes where you are free to.)

    Args:
        sizes: K_c of each component.

    Raises:
        ValueError: no component, or one without a class.

    Example:
        >>> import torch
        >>> from pgce.action_heads import MultiCategorical
        >>> head = MultiCategorical((2, 3))
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, float("-inf")]])
        >>> head.cross_entropy(logits, torch.tensor([[1, 0]]))  # log 2 + log 2
        tensor([1.3863])
        >>> head.mode(torch.tensor([[0.1, 0.7, 0.2, 0.0, 0.9]]))
        tensor([[1, 2]])

    References:
        Tavakoli, Pardo and Kormushev (2018), Action branching architectures for deep reinforcement learning;
        Delalleau et al. (2019), Discrete and continuous action representation for practical reinforcement
        learning in video games.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if min(self.sizes, default=0) < 1:
            raise ValueError(f"one or more components of K >= 1 classes each: sizes is {self.sizes}")

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape (...) of the examples in logits (..., ΣK)."""
        if logits.ndim == 0 or logits.shape[-1] != sum(self.sizes):
            raise ValueError(
                f"logits end in the {sum(self.sizes)} classes of sizes {self.sizes}: "
                f"logits has shape {tuple(logits.shape)}"
            )
        return logits.shape[:-1]

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """−Σ_c log p_c(y_c) in nats, shape (...).

        Args:
            logits: (..., ΣK), floating.
            target: class ids (..., C), integer; or dense values (..., ΣK), floating.

        Raises:
            ValueError: a shape, type or device that does not fit, or (on CPU) a class id outside 0..K_c − 1
                of its component.
        """
        examples = self.examples(logits)
        _check_logits(logits, target)
        blocks = self._blocks(_widened(logits))
        ids = (*examples, len(self.sizes))
        if target.shape == ids and not (target.is_floating_point() or target.is_complex()):
            if target.dtype == torch.bool:
                raise ValueError(f"class ids are integers: target has dtype {target.dtype}")
            parts = target.split([block.shape[-2] for block in blocks], -1)
            return _added(each.sum(-1) for each in map(cross_entropy_of_ids, blocks, parts))
        if target.shape == logits.shape and target.is_floating_point():
            rows = self._blocks(target.to(blocks[0].dtype))
            return _added(each.sum(-1) for each in map(cross_entropy_of_rows, blocks, rows))
        raise ValueError(
            f"a target is integer class ids of shape {ids} or floating rows of shape {tuple(logits.shape)}: "
            f"target has dtype {target.dtype} and shape {tuple(target.shape)}"
        )

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse class ids outside 0..K_c − 1 of their component."""
        if target.is_floating_point() or target.dtype == torch.bool or target.numel() == 0:
            return
        ids = target.reshape(-1, len(self.sizes))
        low, high = ids.amin(0).tolist(), ids.amax(0).tolist()
        for c, size in enumerate(self.sizes):
            if low[c] < 0 or high[c] >= size:
                raise ValueError(
                    f"class ids of component {c} lie in 0..{size - 1}: "
                    f"target holds ids from {low[c]} to {high[c]}"
                )

    def entropy(self, logits: Tensor) -> Tensor:
        """Σ_c H(p_c) in nats, shape (...); forbidden classes count 0."""
        blocks = self._blocks(_widened(logits))
        return _added(-p_and_p_log_p(block)[1].sum((-2, -1)) for block in blocks)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """p ∘ (log p + H_c), shape (..., ΣK): signed, and its cross-entropy has the gradient of H."""
        return _side_by_side(Categorical().entropy_target(block) for block in self._blocks(logits))

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Class ids (..., C) drawn from p, int64, by the exponential race (argmax of p_k / E_k)."""
        logits = _widened(logits)
        race = _room(logits).exponential_(generator=generator)
        return self.mode(logits - race.log_())

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable class ids (..., C), int64."""
        return torch.cat([block.argmax(-1) for block in self._blocks(logits)], -1)

    def mean(self, logits: Tensor) -> Tensor:
        """The probabilities p of each component, shape (..., ΣK)."""
        return _side_by_side(Categorical().mean(block) for block in self._blocks(logits))

    def _blocks(self, flat: Tensor) -> list[Tensor]:
        """(..., ΣK) -> views (..., n, K), one for each run of n neighbours of equal size K."""
        runs = [(len(list(run)), size) for size, run in groupby(self.sizes)]
        parts = flat.split([n * size for n, size in runs], -1)
        return [part.unflatten(-1, run) for part, run in zip(parts, runs, strict=True)]


@dataclass(frozen=True)
class _Bounded:
    """Heads of real actions between bounds, with two numbers a component: logits (..., D, 2)."""

    low: Bound = -1.0
    high: Bound = 1.0

    _reads: ClassVar[str]
    """What the two numbers are."""

    def __post_init__(self) -> None:
        """Check the bounds, and keep them as plain numbers, two or two a component: heads compare by them."""
        given = self.low, self.high
        several = [len(bound) for bound in given if not isinstance(bound, (int, float))]
        lows, highs = (
            (float(bound),) * max([1, *several])
            if isinstance(bound, (int, float))
            else tuple(map(float, bound))
            for bound in given
        )
        if len(lows) != len(highs) or not lows:
            raise ValueError(
                f"low and high have one number a component: they have {len(lows)} and {len(highs)}"
            )
        for least, greatest in zip(lows, highs, strict=True):
            apart, float32 = greatest - least, torch.finfo(torch.float32)
            if not float32.eps * max(abs(least), abs(greatest)) < apart <= float32.max:
                raise ValueError(
                    "bounds are finite and low < high, by an amount that float32 can tell: "
                    f"low is {least:g}, high is {greatest:g}"
                )
        object.__setattr__(self, "low", lows if several else lows[0])
        object.__setattr__(self, "high", highs if several else highs[0])

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape (...) of the examples in logits (..., D, 2)."""
        wanted = str(len(self.low)) if isinstance(self.low, tuple) else "D"
        fits = logits.ndim >= 2 and logits.shape[-1] == 2
        if not fits or (isinstance(self.low, tuple) and logits.shape[-2] != len(self.low)):
            raise ValueError(
                f"logits hold {self._reads} of {wanted} components, (..., {wanted}, 2): "
                f"logits has shape {tuple(logits.shape)}"
            )
        return logits.shape[:-2]

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse actions outside the bounds."""
        if target.numel() == 0 or _is_statistics(logits, target):
            return
        real = target.double()
        low, high = (_bound(bound, real).to(target).double() for bound in (self.low, self.high))
        if bool((outside := (real < low) | (real > high)).any()):
            raise ValueError(
                f"actions lie between the bounds, low {self.low} and high {self.high}: "
                f"target holds {target[outside][0].item():g}"
            )

    def _width(self, like: Tensor) -> Tensor:
        return _bound(self.high, like) - _bound(self.low, like)

    def _log_fractions(self, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """log x and log(1 − x) of actions low + (high − low) · x, x at least the epsilon of `dtype` inside.

        Both distances are taken from the action itself: 1 − x would lose digits near the upper bound.
        """
        target = target.to(torch.promote_types(target.dtype, dtype))
        low, high, width = _bound(self.low, target), _bound(self.high, target), self._width(target)
        edge = torch.finfo(dtype).eps
        parts = (target - low) / width, (high - target) / width
        below, above = (part.clamp(edge, 1 - edge).log().to(dtype) for part in parts)
        return below, above

    def _action(self, x: Tensor) -> Tensor:
        """low + (high − low) · x, strictly inside the bounds whatever rounding does."""
        least, greatest, edge = _bound(self.low, x), _bound(self.high, x), torch.finfo(x.dtype).eps
        action = least + (greatest - least) * x.clamp(edge, 1 - edge)
        # By NumPy, so that they are constants of an exported program: ONNX has no nextafter.
        real = np.float64 if x.dtype == torch.float64 else np.float32
        a, b = np.asarray(self.low, real), np.asarray(self.high, real)
        return action.clamp(_bound(np.nextafter(a, b).tolist(), x), _bound(np.nextafter(b, a).tolist(), x))


@dataclass(frozen=True)
class SquashedGaussian(_Bounded):
    """Real actions between bounds: low + (high − low) · (1 + tanh u)/2 with u ~ N(μ, σ²).

    Logits (..., D, 2) hold μ and log σ of u. Targets are actions (..., D) in the bounds' own unit, and the
    density is that of the action itself, Jacobian included. At a bound u would be infinite: an action nearer
    to one than ε of the width is scored as if it lay that far inside, where ε is the machine epsilon of the
    logits' type (1.2 · 10⁻⁷ in float32, |u| <= 8.0; 2.2 · 10⁻¹⁶ in float64, |u| <= 18.0), and samples keep
    that distance (or what their own rounding needs).

    A target (..., D, 2) holds the mean and the variance (signed) of u instead: then the cross-entropy is that
    of N(μ, σ²), without the Jacobian, which is a constant. The entropy's gradient needs two numbers a
    component, where an action is only one.

    Args:
        low: the least action, one number for all D components or one each.
        high: the greatest, likewise.

    Raises:
        ValueError: the bounds are not finite, not low < high, or so near or far apart that float32 fails.

    Example:
        >>> import torch
        >>> from pgce.action_heads import SquashedGaussian
        >>> head = SquashedGaussian(low=0.0, high=10.0)
        >>> logits = torch.tensor([[[0.0, -1.0]]])  # one action of one component
        >>> head.mode(logits)
        tensor([[5.]])
        >>> head.cross_entropy(logits, torch.tensor([[5.0]]))  # log σ + ½ log 2π + log 5
        tensor([1.5284])

    References:
        Haarnoja et al. (2018), Soft actor-critic: off-policy maximum entropy deep reinforcement learning with
        a stochastic actor, appendix C.
    """

    _reads = "mean and log σ"

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """−log p(y) in nats, added over the D components.

        Args:
            logits: (..., D, 2), floating.
            target: actions (..., D); or the mean and variance of u, (..., D, 2).

        Raises:
            ValueError: a shape or device that does not fit.
        """
        self.examples(logits)
        _check_logits(logits, target)
        mean, log_scale = _widened(logits).unbind(-1)
        if _is_statistics(logits, target):
            u, variance = target.to(mean.dtype).unbind(-1)
            jacobian = torch.zeros_like(u)
        else:
            below, above = self._log_fractions(target, mean.dtype)
            u, variance = 0.5 * (below - above), torch.zeros_like(mean)
            jacobian = below + above + self._width(mean).log() + math.log(2)
        squares = ((u - mean).square() + variance) * (-2 * log_scale).exp()
        return (0.5 * squares + log_scale + 0.5 * _LOG_2PI + jacobian).sum(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """H(p) in nats, added over the D components.

        The Gaussian's entropy, exact, and the expected log-Jacobian by quadrature: off by less than 10⁻⁷ nats
        a component for σ <= 2, by less than 10⁻³ for σ <= 7. Its gradient is that of the same sum.
        """
        self.examples(logits)
        mean, log_scale = _widened(logits).unbind(-1)
        u, _, weight = _nodes(mean, log_scale)
        # log(1 − tanh² u), in the form that neither overflows nor cancels
        slope = 2 * (math.log(2) - u - F.softplus(-2 * u))
        half = (0.5 * self._width(mean)).log()
        return ((slope * weight).sum(-1) + log_scale + 0.5 * (1 + _LOG_2PI) + half).sum(-1)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """Mean and variance of u (..., D, 2) whose cross-entropy has the gradient of `entropy`.

        With gradients g of H on μ and h on log σ: mean μ − σ²g, second moment about μ σ²(1 − h).
        """
        mean, log_scale = _widened(logits.detach()).unbind(-1)
        u, deviation, weight = _nodes(mean, log_scale)
        slope = -2 * u.tanh() * weight
        by_mean, by_log_scale = slope.sum(-1), 1 + (slope * deviation).sum(-1)
        variance = (2 * log_scale).exp()
        shift = -variance * by_mean
        return torch.stack((mean + shift, variance * (1 - by_log_scale) - shift.square()), -1)

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions (..., D) drawn from p, strictly inside the bounds; differentiable in the logits."""
        mean, log_scale = _widened(logits).unbind(-1)
        u = mean + log_scale.exp() * _room(mean).normal_(generator=generator)
        return self._action(torch.sigmoid(2 * u))

    def mode(self, logits: Tensor) -> Tensor:
        """The squashed mean (..., D): the median of p, and its mode before squashing.

        (The density of the action itself has its peaks near the bounds where σ is large.)
        """
        return self._action(torch.sigmoid(2 * _widened(logits)[..., 0]))

    def mean(self, logits: Tensor) -> Tensor:
        """The expected action (..., D), by quadrature."""
        u, _, weight = _nodes(*_widened(logits).unbind(-1))
        return self._action((torch.sigmoid(2 * u) * weight).sum(-1))


@dataclass(frozen=True)
class Beta(_Bounded):
    """Real actions between bounds: low + (high − low) · x with x ~ Beta(α, β), α = 1 + softplus of a logit.

    Logits (..., D, 2) give α and β, both above 1, so that p has one peak and vanishes at the bounds. Targets
    are actions (..., D) in the bounds' own unit; one nearer to a bound than the machine epsilon times the
    width is scored as if it lay that far inside. A target (..., D, 2) holds the sufficient statistics log x
    and log(1 − x) instead (or any signed numbers in their place), in which the cross-entropy is linear.

    Args:
        low: the least action, one number for all D components or one each.
        high: the greatest, likewise.

    Raises:
        ValueError: the bounds are not finite, not low < high, or so near or far apart that float32 fails.

    Example:
        >>> import torch
        >>> from pgce.action_heads import Beta
        >>> head = Beta(low=0.0, high=10.0)
        >>> logits = torch.full((1, 1, 2), 0.5413)  # α = β = 2: density 6 x (1 − x) / 10
        >>> head.mode(logits)
        tensor([[5.]])
        >>> head.cross_entropy(logits, torch.tensor([[5.0]]))  # −log 0.15
        tensor([1.8971])

    References:
        Chou, Maturana and Scherer (2017), Improving stochastic policy gradients in continuous control with
        deep reinforcement learning using the beta distribution.
    """

    _reads = "the logits of α and β"

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """−log p(y) in nats, added over the D components.

        Args:
            logits: (..., D, 2), floating.
            target: actions (..., D); or log x and log(1 − x), (..., D, 2).

        Raises:
            ValueError: a shape or device that does not fit.
        """
        self.examples(logits)
        _check_logits(logits, target)
        excess = F.softplus(_widened(logits))  # α − 1 and β − 1
        if _is_statistics(logits, target):
            statistics = target.to(excess.dtype)
        else:
            statistics = torch.stack(self._log_fractions(target, excess.dtype), -1)
        each = _log_beta(1 + excess) - (excess * statistics).sum(-1)
        return (each + self._width(each).log()).sum(-1)

    def entropy(self, logits: Tensor) -> Tensor:
        """H(p) in nats, added over the D components."""
        self.examples(logits)
        excess = F.softplus(_widened(logits))
        alpha = 1 + excess
        both = alpha.sum(-1)
        expected = torch.digamma(alpha) - torch.digamma(both).unsqueeze(-1)  # of log x and log(1 − x)
        each = _log_beta(alpha) - (excess * expected).sum(-1)
        return (each + self._width(each).log()).sum(-1)

    def entropy_target(self, logits: Tensor) -> Tensor:
        """Statistics (..., D, 2) whose cross-entropy has the gradient of H.

        ψ(α) − ψ(α + β) + (α − 1) ψ′(α) − (α + β − 2) ψ′(α + β), and the same with β: the expected statistics
        alone would have gradient zero.
        """
        excess = F.softplus(_widened(logits.detach()))
        alpha = 1 + excess
        both = alpha.sum(-1, keepdim=True)
        return (
            torch.digamma(alpha)
            - torch.digamma(both)
            + excess * torch.polygamma(1, alpha)
            - excess.sum(-1, keepdim=True) * torch.polygamma(1, both)
        )

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions (..., D) drawn from p, strictly inside the bounds."""
        gamma = torch._standard_gamma((1 + F.softplus(_widened(logits))).contiguous(), generator=generator)
        return self._action(gamma[..., 0] / gamma.sum(-1))

    def mode(self, logits: Tensor) -> Tensor:
        """The most probable actions (..., D): x = (α − 1) / (α + β − 2)."""
        log_excess = F.softplus(_widened(logits)).clamp_min(torch.finfo(torch.float32).tiny).log()
        return self._action(torch.sigmoid(log_excess[..., 0] - log_excess[..., 1]))

    def mean(self, logits: Tensor) -> Tensor:
        """The expected actions (..., D): x = α / (α + β)."""
        alpha = 1 + F.softplus(_widened(logits))
        return self._action(alpha[..., 0] / alpha.sum(-1))


@dataclass(frozen=True)
class _Block:
    """Where a part lies in the flat tensors, and in which shape its head reads and gives it."""

    logits: tuple[int, ...]
    action: tuple[int, ...]
    statistics: tuple[int, ...]
    class_ids: bool  # what arrives as floating numbers are class ids


@dataclass(frozen=True)
class Joint:
    """Several heads side by side, independent given the logits, for Dict and Tuple spaces.

    Logits (..., L) hold the parts' logits one after another, each flattened. Targets come in one of two
    layouts, told apart by their width:

    - actions (..., A): what the parts' `sample` gives, flattened, one after another. They share one type, the
      widest of the parts': int64 where all are class ids or yes-or-no, else floating, in which class ids
      stand as whole numbers (exact up to 2²⁴ in float32) and the parts read them as integers again.
    - statistics (..., S): what the parts' `entropy_target` gives, laid out likewise.

    Where the two have one width (A = S), every part reads both alike. Cross-entropies and entropies add.

    Args:
        parts: a head and the shape of one example's logits, each.

    Raises:
        ValueError: no part, or a shape that does not fit its head.

    Example:
        >>> import torch
        >>> from pgce.action_heads import Joint
        >>> from pgce.heads import Categorical, Gaussian
        >>> head = Joint(((Categorical(), (3,)), (Gaussian("learned", event_dims=1), (2, 2))))
        >>> logits = torch.zeros(1, 3 + 4)
        >>> head.cross_entropy(logits, torch.tensor([[2.0, 0.0, 0.0]]))  # log 3 + log 2π
        tensor([2.9365])
        >>> head.split(head.mode(logits))
        [tensor([0]), tensor([[0., 0.]])]
        >>> head.entropy_target(logits).shape
        torch.Size([1, 5])

    References:
        Delalleau et al. (2019), Discrete and continuous action representation for practical reinforcement
        learning in video games.
    """

    parts: tuple[tuple[PolicyHead, tuple[int, ...]], ...]
    _blocks: tuple[_Block, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a joint head has one or more parts: parts is empty")
        object.__setattr__(self, "parts", tuple((head, tuple(shape)) for head, shape in self.parts))
        blocks = []
        for head, shape in self.parts:
            example = torch.zeros(shape, device="cpu")
            if head.examples(example) != ():
                raise ValueError(
                    "a part's logits are those of one example: "
                    f"{head} reads {tuple(head.examples(example))} examples in shape {shape}"
                )
            action, statistics = head.mode(example), head.entropy_target(example)
            # Yes-or-no is scored as floating numbers; only ids have another shape than their statistics.
            ids = not action.is_floating_point() and action.shape != statistics.shape
            blocks.append(_Block(shape, tuple(action.shape), tuple(statistics.shape), ids))
        object.__setattr__(self, "_blocks", tuple(blocks))

    def examples(self, logits: Tensor) -> torch.Size:
        """Shape (...) of the examples in logits (..., L)."""
        width = self._width("logits")
        if logits.ndim == 0 or logits.shape[-1] != width:
            raise ValueError(
                f"logits end in the {width} numbers of {len(self.parts)} parts: "
                f"logits has shape {tuple(logits.shape)}"
            )
        return logits.shape[:-1]

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Σ of the parts' cross-entropies in nats, shape (...).

        Args:
            logits: (..., L), floating.
            target: actions (..., A) or statistics (..., S).

        Raises:
            ValueError: a shape, type or device that does not fit.
        """
        _check_logits(logits, target)
        rows = zip(self._heads(logits), self._targets(self.examples(logits), target), strict=True)
        return _added(head.cross_entropy(own, y) for (head, own), y in rows)

    def check(self, logits: Tensor, target: Tensor) -> None:
        """Refuse what a part refuses, and class ids that are no whole numbers."""
        targets = self._targets(self.examples(logits), target)
        if target.shape[-1] == self._width("action"):
            for y, given in zip(targets, self._cut(target, "action"), strict=True):
                if bool((odd := y != given).any()):
                    raise ValueError(f"class ids are whole numbers: target holds {given[odd][0].item():g}")
        for (head, own), y in zip(self._heads(logits), targets, strict=True):
            head.check(own, y)

    def split(self, target: Tensor) -> list[Tensor]:
        """Flat actions (..., A) as the parts' own, shaped as their heads sample them; class ids are int64."""
        return [
            part.long() if block.class_ids else part
            for part, block in zip(self._cut(target, "action"), self._blocks, strict=True)
        ]

    def entropy(self, logits: Tensor) -> Tensor:
        """Σ of the parts' entropies in nats, shape (...)."""
        return _added(head.entropy(own) for head, own in self._heads(logits))

    def entropy_target(self, logits: Tensor) -> Tensor:
        """Statistics (..., S) whose cross-entropy has the gradient of H."""
        return _flat(logits, [head.entropy_target(own) for head, own in self._heads(logits)])

    def sample(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions (..., A) drawn from p."""
        return _flat(logits, [head.sample(own, generator) for head, own in self._heads(logits)])

    def mode(self, logits: Tensor) -> Tensor:
        """The parts' modes, (..., A)."""
        return _flat(logits, [head.mode(own) for head, own in self._heads(logits)])

    def mean(self, logits: Tensor) -> Tensor:
        """The parts' means, flattened, one after another: probabilities where outcomes are classes."""
        return _flat(logits, [head.mean(own) for head, own in self._heads(logits)])

    def _width(self, layout: str) -> int:
        return sum(math.prod(getattr(block, layout)) for block in self._blocks)

    def _cut(self, flat: Tensor, layout: str) -> list[Tensor]:
        """(..., width of the layout) -> each part's (..., *shape)."""
        shapes = [getattr(block, layout) for block in self._blocks]
        parts = flat.split([math.prod(shape) for shape in shapes], -1)
        return [part.reshape((*flat.shape[:-1], *shape)) for part, shape in zip(parts, shapes, strict=True)]

    def _heads(self, logits: Tensor) -> list[tuple[PolicyHead, Tensor]]:
        self.examples(logits)
        heads = (head for head, _ in self.parts)
        # Widened here, since the parts share one type: bfloat16 holds class ids up to 256 only.
        return list(zip(heads, self._cut(_widened(logits), "logits"), strict=True))

    def _targets(self, examples: torch.Size, target: Tensor) -> list[Tensor]:
        if target.is_complex():
            raise ValueError(f"targets are real: target has dtype {target.dtype}")
        if target.shape == (*examples, self._width("action")):
            return self.split(target)
        if target.shape == (*examples, self._width("statistics")):
            return self._cut(target, "statistics")
        raise ValueError(
            f"a target is actions of shape {(*examples, self._width('action'))} or statistics of shape "
            f"{(*examples, self._width('statistics'))}: target has shape {tuple(target.shape)}"
        )


def _added(values: Iterable[Tensor]) -> Tensor:
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def _side_by_side(blocks: Iterable[Tensor]) -> Tensor:
    """Blocks (..., n, K) -> (..., ΣK), one after another."""
    return torch.cat([block.flatten(-2) for block in blocks], -1)


def _flat(logits: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Parts (..., *shape) of the examples of logits (..., L) side by side, in the widest of their types."""
    axes = logits.ndim - 1
    return torch.cat([part.unsqueeze(-1) if part.ndim == axes else part.flatten(axes) for part in parts], -1)


def _is_statistics(logits: Tensor, target: Tensor) -> bool:
    if target.is_complex() or target.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"a target is real actions of shape {tuple(logits.shape[:-1])} or statistics of shape "
            f"{tuple(logits.shape)}: target has dtype {target.dtype} and shape {tuple(target.shape)}"
        )
    return target.shape == logits.shape


def _bound(bound: Bound | list[float], like: Tensor) -> Tensor:
    return torch.tensor(bound, dtype=like.dtype, device=like.device)


def _nodes(mean: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u and u − μ at the quadrature's nodes (..., D, 65), and the nodes' weights (65,)."""
    deviation = log_scale.exp().unsqueeze(-1) * _NODES.to(mean)
    return mean.unsqueeze(-1) + deviation, deviation, _NODE_WEIGHTS.to(mean)


def _log_beta(alpha: Tensor) -> Tensor:
    """log B(α, β) of (..., 2)."""
    return torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha.sum(-1))
