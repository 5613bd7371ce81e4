"""The networks of an agent: what its environments' spaces and its settings make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from gymnasium.spaces import Box
from torch import nn

from pgce.choices import Network, check_type
from pgce.networks import (
    SMALLEST,
    ActorCritic,
    Columns,
    Convolutional,
    Normalize,
    Recurrent,
    RewardScale,
    Torso,
    Transformer,
    Value,
    hidden_layers,
    impala,
    linear,
    nature,
)
from pgce.perceptrons import Perceptron
from pgce.rollout import mask_size
from pgce.spaces import Masked, Observations, actions, observations

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from pgce.choices import Activation, Continuous, Memory, Std

__all__ = ["Settings", "actor_critic"]


class Settings(Protocol):
    """What is read of an agent's settings, which tells what each means.

    Example:
        >>> from pgce.agents import PPO
        >>> from pgce.policies import Settings
        >>> settings: Settings = PPO()
    """

    gamma: float
    norm_obs: bool
    norm_reward: bool
    hidden_sizes: tuple[int, ...]
    activation: Activation
    network: Network
    shared_torso: bool
    memory: Memory | None
    memory_size: int
    continuous: Continuous
    std: Std
    log_std_init: float

    @property
    def critic(self) -> bool:
        """Whether a value is learned beside the policy."""


def actor_critic(
    agent: Settings, envs: VectorEnv[Any, Any, Any], *, critic: bool | None = None
) -> ActorCritic:
    """Policy and, for a critic, value: apart from each other, or with the torso that `agent` tells.

    Args:
        agent: its settings name the networks.
        envs: tell the spaces, and whether there is an action mask; they are reset.
        critic: whether there is one; the agent says so if not given.

    Raises:
        ValueError: a space that is not supported, or does not fit the network.

    Example:
        >>> import pgce, torch
        >>> from pgce.policies import actor_critic
        >>> model = actor_critic(pgce.agents.PPO(), pgce.envs.make("CartPole-v1", 2))
        >>> {name: output.shape for name, output in model(torch.zeros(8, 4)).items()}
        {'policy': torch.Size([8, 2]), 'value': torch.Size([8])}
    """
    check_type("network", agent.network, Network)
    seen = observations(envs.single_observation_space)
    action = actions(envs.single_action_space, agent.continuous, agent.std)
    masked = mask_size(envs) > 0
    with_critic = agent.critic if critic is None else critic
    numbers = seen.vector if agent.network != "transformer" else 0  # whose tokens are names
    normalize = Normalize(numbers) if agent.norm_obs and numbers else None
    first = None if normalize is None else Torso([normalize], seen.vector)
    body = partial(_body, agent, envs.single_observation_space, seen)
    torso, width, parts = first, seen.size, 1
    if agent.memory is not None or agent.shared_torso:
        networks: list[nn.Module] = []
        parts = 2 if with_critic and not agent.shared_torso else 1
        for _ in range(parts):
            network, width = body()
            if first is not None:
                network = nn.Sequential(first, network)
            if agent.memory is not None:
                network = Recurrent(network, width, agent.memory_size, agent.memory)
                width = agent.memory_size
            networks.append(network)
        torso = Torso(networks, seen.size)

    def head(outputs: int, gain: float, part: int) -> nn.Module:
        if torso is first:
            network, last = body()
            return Perceptron(network, linear(last, outputs, gain))
        layer = linear(width, outputs, gain)
        if parts == 1 and not masked:
            return layer
        return nn.Sequential(Columns(part * width, (part + 1) * width), layer)

    actor = action.wrap(head(action.size, 0.01, 0), agent.log_std_init, learned=agent.std != "fixed")
    if masked:
        actor = Masked(actor, parts * width, action.head)
    value = None
    if with_critic:
        value = head(1, 1.0, parts - 1)
        if masked and torso is first:
            value = nn.Sequential(Columns(0, width), value)
        # The standard deviation of a discounted sum of independent rewards of variance 1.
        unit = 1.0 if agent.norm_reward else (1 - min(agent.gamma, 0.9999) ** 2) ** -0.5
        value = Value(value, unit)
    scale = RewardScale(envs.num_envs, agent.gamma) if agent.norm_reward else None
    return ActorCritic(actor, value, torso, normalize, scale)


def _body(agent: Settings, space: Any, seen: Observations) -> tuple[nn.Module, int]:
    """All layers but the last, features (B, D) -> (B, width), and that width."""
    hidden: Sequence[int] = agent.hidden_sizes
    small = agent.network == "auto" and seen.image is not None and min(seen.image[1:]) < SMALLEST
    if seen.image is not None and not small:
        network, width = (impala if agent.network == "impala" else nature)(seen.image)
        if not seen.vector:
            return Convolutional(network, seen.image), width
        beside = hidden_layers(seen.vector, hidden, agent.activation)
        both = [seen.vector, *hidden][-1] + width
        joint = linear(both, width, math.sqrt(2))
        return nn.Sequential(Convolutional(network, seen.image, beside), joint, nn.ReLU()), width
    if agent.network == "impala":
        raise ValueError(f"the IMPALA network reads images, uint8 Boxes of three axes: the space is {space}")
    if agent.network == "transformer":
        if len(set(hidden)) != 1:
            raise ValueError(f"a transformer's layers are of one width: hidden_sizes is {hidden}")
        return Transformer(_tokens(space), seen.size, hidden[0], len(hidden)), hidden[0]
    return hidden_layers(seen.size, hidden, agent.activation), [seen.size, *hidden][-1]


def _tokens(space: Any) -> int:
    """How many different tokens a space of them has."""
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.integer) or space.low.min() != 0:
        raise ValueError(f"a transformer reads tokens, a Box of integers from 0: the space is {space}")
    return int(space.high.max()) + 1
