"""What Gymnasium's spaces are to a network: observations in, actions out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from pgce.action_heads import Beta, Bound, Joint, MultiCategorical, SquashedGaussian
from pgce.choices import Continuous, Std, check_type
from pgce.heads import Bernoulli, Categorical, Gaussian, Head, PolicyHead, check_device
from pgce.networks import Scaled, WithScale

__all__ = ["Actions", "Masked", "Observations", "actions", "apply_mask", "encode_actions", "observations"]

Encoder = Callable[[Any], NDArray[np.float32]]
Vector = tuple[int, Encoder]  # its width, and what makes it of an observation
Image = tuple[tuple[int, int, int], Encoder]  # its channels, height and width, and likewise

_MOST_INTEGERS = 256  # values of one component of an integer Box, which become as many classes
_LOG_SCALES = (-5.0, 2.0)  # of a σ that depends on the observation
_OWN = 0.0, 1.0  # the unit of a logit that is what the network gives
_UNBOUNDED = 1e30  # half the distance of bounds that mean there are none
_NEVER = -1e4  # a logit of a Bernoulli: exp(−10⁴) is 0 in every floating type, and −inf · 0 would be NaN


class Observations(NamedTuple):
    """How a batch of observations becomes the input of a network.

    Attributes:
        size: D, features of one observation, pixels included.
        encode: what the environments return, with N observations on the first axis of every array ->
            (N, D), float32. An image comes last, flattened, in [0, 1].
        image: (C, H, W), or None where no part of the space is an image.
        mask: what the environments return -> which actions are allowed, (N, K), bool; None where the space
            has no mask. `apply_mask` takes it.
    """

    size: int
    encode: Encoder
    image: tuple[int, int, int] | None
    mask: Callable[[Any], NDArray[np.bool_] | None]

    @property
    def vector(self) -> int:
        """How many of the features are no pixels: the first ones."""
        return self.size - (0 if self.image is None else math.prod(self.image))


class Actions(NamedTuple):
    """How a network's output becomes a batch of actions.

    Attributes:
        head: what the policy's logits mean.
        size: width of the network's last layer: K classes, D means, or the sum over the parts.
        decode: sampled actions (N, ...) -> what the environments' `step` takes.
        logits_shape: of one example's logits, as the head reads them.
        constant: which of these logits, flattened, do not depend on the observation: the log σ of Gaussian
            components, unless the network gives them too. All others come from the network, in this order.
        scale: which of the logits are a log σ.
        unit: what a 0 and what a difference of 1 of the network stand for in these logits, two numbers each.

    Example:
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from pgce.spaces import actions
        >>> action = actions(Box(-1, 1, shape=(3,)))
        >>> action.size, action.logits_shape
        (3, (3, 2))
        >>> action.wrap(torch.nn.Linear(4, action.size))(torch.zeros(8, 4)).shape
        torch.Size([8, 3, 2])
    """

    head: PolicyHead
    size: int
    decode: Callable[[Tensor], Any]
    logits_shape: tuple[int, ...]
    constant: tuple[bool, ...]
    scale: tuple[bool, ...]
    unit: tuple[tuple[float, float], ...]

    def wrap(self, network: nn.Module, initial_log_scale: float = 0.0, *, learned: bool = True) -> nn.Module:
        """A network (B, ...) -> (B, size) as a policy (B, ...) -> (B, *logits_shape).

        It adds the constant logits, all log σ, which begin at `initial_log_scale`, and gives all their
        unit. Where there is nothing to add, it is the network itself.

        Args:
            network: (B, ...) -> (B, size).
            initial_log_scale: log σ at the start, counted as `actions` tells; what the network adds to, where
                σ depends on the input.
            learned: whether the constants are parameters.
        """
        if self.logits_shape == (self.size,) and not any(self.scale):
            return network
        policy: nn.Module
        if self.logits_shape == (self.size, 2) and self.constant == (False, True) * self.size:
            policy = WithScale(network, self.size, initial_log_scale, learned=learned)
        else:
            policy = _Policy(network, self, initial_log_scale, learned=learned)
        if all(unit == _OWN for unit in self.unit):
            return policy
        shift, unit = torch.tensor(self.unit).T
        return Scaled(policy, shift.reshape(self.logits_shape), unit.reshape(self.logits_shape))


def observations(space: gym.Space[Any]) -> Observations:
    """The encoder of a single environment's observation space.

    A uint8 Box of three axes is an image: it gets its channels first (they are the shorter of the first and
    the last axis; the last if both are equal) and is divided by the greatest value that the space allows.
    Several images of one height and width are stacked by their channels. All else comes before it, in the
    space's own order: Box and MultiBinary are flattened, Discrete and MultiDiscrete become one-hot, Dict
    and Tuple are what their entries are.

    A Dict of "observation" and "action_mask" (with or without more) carries a mask of actions, a Box or
    MultiBinary of zeros and ones or a Tuple of these, which is no part of the observation.

    Raises:
        ValueError: the space or one in it is of another kind, such as Text, Sequence, Graph or OneOf; it has
            nothing to observe; or images differ in height or width.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box, Dict, Discrete
        >>> from pgce.spaces import observations
        >>> observations(Discrete(3)).encode(np.array([2, 0]))
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
        >>> seen = observations(Dict(camera=Box(0, 255, (64, 48, 3), np.uint8), speed=Box(-1, 1, (2,))))
        >>> seen.size, seen.image
        (9218, (3, 64, 48))
        >>> seen.encode({"camera": np.zeros((5, 64, 48, 3), np.uint8), "speed": np.zeros((5, 2))}).shape
        (5, 9218)

    References:
        Huang and Ontañón (2022), A closer look at invalid action masking in policy gradient algorithms, for
        masks; Towers et al. (2024), Gymnasium: a standard interface for reinforcement learning environments.
    """
    masked = isinstance(space, spaces.Dict) and {"observation", "action_mask"} <= space.spaces.keys()
    flat = _mask(space["action_mask"]) if isinstance(space, spaces.Dict) and masked else None

    def mask(observation: Any) -> NDArray[np.bool_] | None:
        return None if flat is None else flat(observation["action_mask"])

    vectors, images = _leaves(space, without="action_mask" if masked else None)
    size = sum(width for width, _ in vectors)
    if len({shape[1:] for shape, _ in images}) > 1:
        shapes = " and ".join(str(shape) for shape, _ in images)
        raise ValueError(f"images have one height and width: they are {shapes} (C, H, W) in {space}")
    if not (size or images):
        raise ValueError(f"an observation has one or more numbers: there are none in {space}")

    encoders = [encoder for _, encoder in (*vectors, *images)]

    def together(observation: Any) -> NDArray[np.float32]:
        return np.concatenate([encoder(observation) for encoder in encoders], -1)

    encode = encoders[0] if len(encoders) == 1 else together
    if not images:
        return Observations(size, encode, None, mask)
    channels, (_, height, width) = sum(shape[0] for shape, _ in images), images[0][0]
    return Observations(size + channels * height * width, encode, (channels, height, width), mask)


def actions(space: gym.Space[Any], continuous: Continuous = "gaussian", std: Std = "learned") -> Actions:
    """The head and decoder of a single environment's action space.

    - Discrete: a Categorical over its K actions, counted from 0; MultiDiscrete: a MultiCategorical.
    - MultiBinary: a Bernoulli, one logit an entry.
    - floating Box, any shape and bounds, D components: a "gaussian" sample is stored as drawn, and clipped to
      the bounds only for the environment. Its mean begins midway between two bounds and is counted, as is σ,
      in half their distance; without bounds, from 0 in units of 1. "tanh" and "beta" need bounds and stay
      inside them: a Gaussian through tanh, and a Beta whose two parameters both come from the network. The σ
      of a Gaussian is a constant, unless `std` is "state": then log σ, −5 to 2, comes from the network.
    - integer Box: a MultiCategorical, where every component is bounded and has at most 256 values.
    - Dict and Tuple of these, also nested: a Joint head, its parts in the space's own order.

    Raises:
        ValueError: the space or one in it is of another kind, has no component, or does not fit `continuous`.

    Example:
        >>> import torch
        >>> from gymnasium.spaces import Box, Dict, Discrete
        >>> from pgce.networks import mlp
        >>> from pgce.spaces import actions
        >>> actions(Box(-1, 1, shape=(2,))).decode(torch.tensor([[0.5, 7.0]]))
        array([[0.5, 1. ]], dtype=float32)
        >>> action = actions(Dict(gear=Discrete(5, start=-1), wheel=Box(-1, 1)), continuous="tanh")
        >>> policy = action.wrap(mlp(4, action.size))
        >>> logits = policy(torch.zeros(8, 4))
        >>> logits.shape
        torch.Size([8, 7])
        >>> drawn = action.decode(action.head.sample(logits))
        >>> drawn["gear"].shape, drawn["wheel"].shape
        ((8,), (8, 1))

    References:
        Towers et al. (2024), Gymnasium: a standard interface for reinforcement learning environments.
    """
    check_type("continuous", continuous, Continuous)
    check_type("std", std, Std)
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _joint(space, continuous, std)
    if isinstance(space, spaces.Discrete):
        start, integer, many = int(space.start), space.dtype, int(space.n)
        return _from_network(
            Categorical(), lambda action: (_array(action) + start).astype(integer, copy=False), many
        )
    if (
        isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box))
        and math.prod(space.shape) == 0
    ):
        raise ValueError(f"an action has one or more components: this space has none, {space}")
    if isinstance(space, spaces.MultiDiscrete):
        return _choices(space.nvec.ravel().tolist(), space.start, space)
    if isinstance(space, spaces.MultiBinary):
        shape, binary, many = space.shape, space.dtype, math.prod(space.shape)
        return _from_network(
            Bernoulli(event_dims=1),
            lambda action: _array(action).reshape(-1, *shape).astype(binary, copy=False),
            many,
        )
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            return _reals(space, continuous, std)
        # Python's integers: the difference of two int64 may overflow.
        edges = zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)
        sizes = [int(high) - int(low) + 1 for low, high in edges]
        if max(sizes) > _MOST_INTEGERS:
            raise ValueError(
                f"a component of an integer Box has at most {_MOST_INTEGERS} values, which become classes: "
                f"one has {max(sizes)} in {space}"
            )
        return _choices(sizes, space.low, space)
    raise ValueError(
        f"actions are a Discrete, MultiDiscrete, MultiBinary, Box, Dict or Tuple space: this one is {space}"
    )


def encode_actions(space: gym.Space[Any], action: Any) -> Tensor:
    """Actions as `step` takes N of them -> as the head samples them: what `Actions.decode` undoes.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Dict, Discrete, MultiBinary
        >>> from pgce.spaces import encode_actions
        >>> encode_actions(Discrete(3, start=5), np.array([5, 7]))
        tensor([0, 2])
        >>> encode_actions(
        ...     Dict(a=Discrete(2), b=MultiBinary(2)), {"a": np.array([1]), "b": np.array([[0, 1]])}
        ... )
        tensor([[1, 0, 1]])
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = [encode_actions(entry, action[key]) for key, entry in entries(space)]
        return torch.cat([part.reshape(len(part), -1) for part in parts], -1)
    array = np.asarray(action)
    if isinstance(space, spaces.Discrete):
        return torch.from_numpy(array.astype(np.int64) - int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return torch.from_numpy(array.reshape(len(array), -1).astype(np.float32))
    low: Any = 0
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete)):
        low = (space.low if isinstance(space, spaces.Box) else space.start).astype(np.int64)
    return torch.from_numpy((array.astype(np.int64) - low).reshape(len(array), -1))


class Masked(nn.Module):
    """A policy that reads an action mask after its features: (B, D + K) -> logits with forbidden actions.

    Args:
        policy: (B, D) -> logits (B, K).
        features: D.
        head: what the logits mean, as `apply_mask` takes it.

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> from pgce.spaces import Masked
        >>> policy = Masked(torch.nn.Linear(2, 3), 2, Categorical())
        >>> Categorical().mean(policy(torch.tensor([[0.5, 0.5, 0.0, 1.0, 0.0]])))
        tensor([[0., 1., 0.]], grad_fn=<SoftmaxBackward0>)
    """

    def __init__(self, policy: nn.Module, features: int, head: Head) -> None:
        super().__init__()
        self.policy = policy
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The logits, −inf where the last K entries are 0."""
        logits: Tensor = self.policy(x[..., : self.features])
        return apply_mask(logits, x[..., self.features :] > 0.5, self.head, looks=False)


def apply_mask(logits: Tensor, mask: Tensor, head: Head, *, looks: bool = True) -> Tensor:
    """Logits under which no forbidden action is ever drawn, nor counted in the entropy.

    A Categorical's mask (..., K) and a MultiCategorical's (..., ΣK), the components one after another, say
    which classes are allowed: the others get −inf. A Bernoulli's mask has the shape of its logits and says
    where 1 is allowed: elsewhere the logit is −10⁴, under which p is 0 exactly (0 is always allowed).

    Args:
        logits: what `head` reads.
        mask: of the shape of `logits`, bool, True where allowed.
        head: Categorical, MultiCategorical or Bernoulli.
        looks: whether the mask may be looked at, for which a GPU is waited for. Nobody does so inside
            `torch.compile`.

    Raises:
        ValueError: another head, a mask of another shape, type or device, or, seen where the mask is looked
            at, a choice of which every class is forbidden: its logits would all be −inf.

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> from pgce.spaces import apply_mask
        >>> logits = apply_mask(torch.zeros(1, 3), torch.tensor([[True, False, True]]), Categorical())
        >>> Categorical().mean(logits)
        tensor([[0.5000, 0.0000, 0.5000]])

    References:
        Huang and Ontañón (2022), A closer look at invalid action masking in policy gradient algorithms.
    """
    if mask.shape != logits.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"a mask is boolean and has the shape of the logits, {tuple(logits.shape)}: "
            f"it has dtype {mask.dtype} and shape {tuple(mask.shape)}"
        )
    check_device("logits", logits, "mask", mask)
    if isinstance(head, Bernoulli):
        return logits.masked_fill(~mask, _NEVER)
    if isinstance(head, MultiCategorical):
        head.examples(logits)
        components = mask.split(head.sizes, -1)
    elif isinstance(head, Categorical):
        components = (mask,)
    else:
        raise ValueError(
            f"masks are for Categorical, MultiCategorical and Bernoulli heads: this one is {head}"
        )
    if looks and not torch.compiler.is_compiling():
        for c, component in enumerate(components):
            if bool((stuck := ~component.any(-1)).any()):
                row = tuple(stuck.nonzero()[0].tolist())
                which = f" of component {c}" if len(components) > 1 else ""
                raise ValueError(f"a mask allows one action or more: it forbids all{which} in row {row}")
    return logits.masked_fill(~mask, -math.inf)


class _Policy(nn.Module):
    """A network's outputs and constants, each where the head reads it; see `Actions.wrap`."""

    order: Tensor
    scale: Tensor
    offset: Tensor
    log_scale: Tensor

    def __init__(
        self, network: nn.Module, actions: Actions, initial_log_scale: float, *, learned: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.shape = actions.logits_shape
        constants = torch.full((sum(actions.constant),), initial_log_scale)
        if learned:
            self.log_scale = nn.Parameter(constants)
        else:
            self.register_buffer("log_scale", constants)
        # Outputs and constants side by side are sorted by what they are: this undoes it.
        order = torch.tensor(actions.constant).int().argsort(stable=True).argsort()
        self.register_buffer("order", order, persistent=False)
        scale = torch.tensor(actions.scale) & ~torch.tensor(actions.constant)
        self.varies = bool(scale.any())
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offset", initial_log_scale * scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The logits, (B, *logits_shape)."""
        output: Tensor = self.network(x)
        constants = self.log_scale.to(output.dtype).expand(*output.shape[:-1], -1)
        logits = torch.cat((output, constants), -1).index_select(-1, self.order)
        if self.varies:  # a network must not make a policy certain, nor blind
            logits = torch.where(self.scale, (logits + self.offset).clamp(*_LOG_SCALES), logits)
        return logits.view(*output.shape[:-1], *self.shape)


def _leaves(
    space: gym.Space[Any],
    at: Callable[[Any], Any] = lambda observation: observation,
    without: str | None = None,
) -> tuple[list[Vector], list[Image]]:
    """The vectors and the images in a space, in its own order.

    Args:
        space: of one environment.
        at: finds the space's part of an observation.
        without: an entry of a Dict to leave out.
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        vectors, images = [], []
        for key, entry in entries(space):
            if key == without:
                continue
            more = _leaves(entry, lambda observation, key=key: at(observation)[key])  # type: ignore[misc]
            vectors += more[0]
            images += more[1]
        return vectors, images
    if isinstance(space, spaces.Discrete):
        return [_one_hot([int(space.n)], np.array([space.start]), at)], []
    if isinstance(space, spaces.MultiDiscrete):
        return [_one_hot(space.nvec.ravel().tolist(), space.start.ravel(), at)], []
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        return [], [_image(space, at)]
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        width = math.prod(space.shape)

        def flat(observation: Any) -> NDArray[np.float32]:
            array = np.asarray(at(observation), np.float32)
            return array.reshape(len(array), width)  # which may be 0

        return [(width, flat)], []
    raise ValueError(
        "observations are a Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple space: "
        f"this one is {space}"
    )


def entries(space: spaces.Dict | spaces.Tuple[Any]) -> list[tuple[Any, gym.Space[Any]]]:
    """The parts of a space, by name or number."""
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _one_hot(sizes: Sequence[int], start: NDArray[Any], at: Callable[[Any], Any]) -> Vector:
    """Components of several values each as one-hot rows side by side."""
    width, most = sum(sizes), np.array(sizes, np.int64)
    first, begin = start.astype(np.int64), np.cumsum(most) - most

    def encode(observation: Any) -> NDArray[np.float32]:
        ids = np.asarray(at(observation), np.int64).reshape(-1, len(most)) - first
        if (odd := (ids < 0) | (ids >= most)).any():
            raise ValueError(
                f"a discrete observation is one of {most.tolist()} values from {first.tolist()}: "
                f"it is {(ids + first)[odd.any(-1)][0].tolist()}"
            )
        rows = np.zeros((len(ids), width), np.float32)
        rows[np.arange(len(ids))[:, None], ids + begin] = 1
        return rows

    return width, encode


def _image(space: spaces.Box, at: Callable[[Any], Any]) -> Image:
    height, width, last = space.shape
    channels_first = height < last
    shape = (height, width, last) if channels_first else (last, height, width)
    axes = (0, 1, 2, 3) if channels_first else (0, 3, 1, 2)
    greatest = np.float32(max(1, int(space.high.max(initial=0))))

    def encode(observation: Any) -> NDArray[np.float32]:
        # In C order, which the axes' own would not be.
        image: NDArray[np.uint8] = np.asarray(at(observation)).transpose(axes)
        scaled: NDArray[np.float32] = np.divide(image, greatest, dtype=np.float32, order="C")
        return scaled.reshape(len(scaled), -1)

    return shape, encode


def _mask(space: gym.Space[Any]) -> Callable[[Any], NDArray[np.bool_]]:
    """What the environments return as a mask -> (N, K), bool, True where not 0."""
    if isinstance(space, spaces.Tuple) and space.spaces:
        parts = [_mask(part) for part in space.spaces]
        return lambda mask: np.concatenate([part(own) for part, own in zip(parts, mask, strict=True)], -1)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        width = math.prod(space.shape)
        return lambda mask: np.asarray(mask).reshape(-1, width) != 0
    raise ValueError(
        f"an action mask is a Box or MultiBinary space, or a Tuple of these: this one is {space}"
    )


def _array(action: Tensor) -> NDArray[Any]:
    # numpy has no bfloat16
    return (action.float() if action.dtype == torch.bfloat16 else action).numpy(force=True)


def _choices(sizes: Sequence[int], start: NDArray[Any], space: gym.Space[Any]) -> Actions:
    """Components of several classes each, counted from `start`, in the space's own shape and type."""
    shape, integer = start.shape, space.dtype

    def decode(action: Tensor) -> NDArray[Any]:
        return (_array(action).reshape(-1, *shape) + start.astype(np.int64)).astype(integer, copy=False)

    return _from_network(MultiCategorical(tuple(sizes)), decode, sum(sizes))


def _from_network(head: PolicyHead, decode: Callable[[Tensor], Any], *shape: int) -> Actions:
    """Actions of whose logits the network gives all, and none is a log σ."""
    size = math.prod(shape)
    return Actions(head, size, decode, shape, (False,) * size, (False,) * size, (_OWN,) * size)


def _reals(space: spaces.Box, continuous: Continuous, std: Std) -> Actions:
    low, high, shape, real = space.low, space.high, space.shape, space.dtype
    many = math.prod(shape)

    def decode(action: Tensor) -> NDArray[Any]:
        return _array(action).reshape(-1, *shape).clip(low, high).astype(real, copy=False)

    head: PolicyHead
    unit = (_OWN,) * 2 * many
    if continuous == "gaussian":
        head = Gaussian("learned", event_dims=1)
        edges = zip(low.ravel().tolist(), high.ravel().tolist(), strict=True)
        unit = tuple(each for bounds in edges for each in _units(*bounds))
    else:
        try:
            bounds = _bounds(low), _bounds(high)
            head = SquashedGaussian(*bounds) if continuous == "tanh" else Beta(*bounds)
        except ValueError as error:
            raise ValueError(f"{continuous} actions need bounds: {error} in {space}") from None
    if continuous == "beta":
        return _from_network(head, decode, many, 2)
    scale = (False, True) * many
    if std == "state":
        return Actions(head, 2 * many, decode, (many, 2), (False,) * 2 * many, scale, unit)
    return Actions(head, many, decode, (many, 2), scale, scale, unit)


def _units(low: float, high: float) -> tuple[tuple[float, float], ...]:
    """Of the mean and the log σ of a component: what 0 and what a difference of 1 stand for."""
    half = high / 2 - low / 2
    if not 0 < half < _UNBOUNDED:
        return _OWN, _OWN
    return (low + half, half), (math.log(half), 1.0)


def _bounds(bound: NDArray[Any]) -> Bound:
    """One number where all are equal, with which a head prints short."""
    numbers = tuple(float(number) for number in bound.ravel())
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _joint(space: spaces.Dict | spaces.Tuple[Any], continuous: Continuous, std: Std) -> Actions:
    if not space.spaces:
        raise ValueError(f"an action has one or more components: this space has none, {space}")
    names = [name for name, _ in entries(space)]
    parts = [actions(entry, continuous, std) for _, entry in entries(space)]
    head = Joint(tuple((part.head, part.logits_shape) for part in parts))
    constant = tuple(each for part in parts for each in part.constant)
    scale = tuple(each for part in parts for each in part.scale)
    unit = tuple(each for part in parts for each in part.unit)
    named = isinstance(space, spaces.Dict)

    def decode(action: Tensor) -> Any:
        rows = [part.decode(own) for part, own in zip(parts, head.split(action.cpu()), strict=True)]
        return dict(zip(names, rows, strict=True)) if named else tuple(rows)

    return Actions(head, sum(part.size for part in parts), decode, (len(constant),), constant, scale, unit)
