"""What Gymnasium's spaces are to a network: observations in, actions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pgce.heads import Categorical, Gaussian, PolicyHead

__all__ = ["Actions", "Observations", "actions", "observations"]


class Observations(NamedTuple):
    """How a batch of observations becomes the input of a network.

    Attributes:
        size: D, features of one observation.
        encode: the environments' array (N, ...) -> (N, D), float32.
    """

    size: int
    encode: Callable[[NDArray[Any]], NDArray[np.float32]]


class Actions(NamedTuple):
    """How a network's output becomes a batch of actions.

    Attributes:
        head: what the policy's logits mean.
        size: K classes or D components: the width of the policy network.
        decode: sampled actions (N, ...) -> what the environments' `step` takes.
    """

    head: PolicyHead
    size: int
    decode: Callable[[Tensor], NDArray[Any]]


def observations(space: gym.Space[Any]) -> Observations:
    """The encoder of a single environment's observation space.

    Box is flattened, Discrete becomes one-hot.

    Raises:
        ValueError: the space is of another kind.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Discrete
        >>> from pgce.spaces import observations
        >>> observations(Discrete(3)).encode(np.array([2, 0]))
        array([[0., 0., 1.],
               [1., 0., 0.]], dtype=float32)
    """
    if isinstance(space, gym.spaces.Box):
        size = int(np.prod(space.shape))
        return Observations(size, lambda array: np.asarray(array, np.float32).reshape(-1, size))
    if isinstance(space, gym.spaces.Discrete):
        rows, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return Observations(len(rows), lambda array: rows[np.asarray(array) - start])
    raise ValueError(f"observations are a Box or Discrete space: this one is {space}")


def actions(space: gym.Space[Any]) -> Actions:
    """The head and decoder of a single environment's action space.

    Discrete is a Categorical over its K actions. Box is a Gaussian with learned σ over its D components;
    a sample is stored as drawn, and clipped to the bounds only for the environment.

    Raises:
        ValueError: the space is of another kind.

    Example:
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from pgce.spaces import actions
        >>> actions(Box(-1, 1, shape=(2,))).decode(torch.tensor([[0.5, 7.0]]))
        array([[0.5, 1. ]], dtype=float32)
    """
    if isinstance(space, gym.spaces.Discrete):
        start, integer = int(space.start), space.dtype
        return Actions(
            Categorical(),
            int(space.n),
            lambda action: (action.cpu().numpy() + start).astype(integer, copy=False),
        )
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high, shape, real = space.low, space.high, space.shape, space.dtype

        def decode(action: Tensor) -> NDArray[Any]:
            return action.cpu().numpy().reshape(-1, *shape).clip(low, high).astype(real, copy=False)

        return Actions(Gaussian("learned", event_dims=1), int(np.prod(shape)), decode)
    raise ValueError(f"actions are a Discrete or floating Box space: this one is {space}")
