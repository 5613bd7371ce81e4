"""Rewards turned into what an action is worth. Pure functions over (T, N): T steps of N environments."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["discounted"]


def discounted(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    next_value: Tensor | None = None,
) -> Tensor:
    """Discounted return to go G (T, N), in units of reward.

        G_t = r_t                        where the episode terminated: nothing follows
        G_t = r_t + γ · next_value_t     where it was cut: truncated, or the last of the T steps
        G_t = r_t + γ · G_{t+1}          elsewhere

    Args:
        reward: (T, N), floating.
        terminated: (T, N), bool: the episode reached a true end.
        truncated: (T, N), bool: the episode was cut, by a time limit say.
        gamma: discount γ in [0, 1] a step.
        next_value: (T, N), estimated value of the true next observation, read at the cuts only; None is 0,
            which is biased low at every cut.

    Raises:
        ValueError: shapes differ, or γ lies outside [0, 1].

    Example:
        >>> import torch
        >>> from pgce.returns import discounted
        >>> reward = torch.tensor([[1.0], [1.0], [1.0]])
        >>> terminated = torch.tensor([[False], [True], [False]])
        >>> truncated = torch.zeros(3, 1, dtype=torch.bool)
        >>> discounted(reward, terminated, truncated, gamma=0.5, next_value=torch.full((3, 1), 8.0)).T
        tensor([[1.5000, 1.0000, 5.0000]])

    References:
        Sutton and Barto (2018), Reinforcement Learning, §3.3; Pardo et al. (2018), Time limits in
        reinforcement learning, for the value at a truncation.
    """
    if next_value is None:
        next_value = torch.zeros_like(reward)
    for name, value in (
        ("terminated", terminated),
        ("truncated", truncated),
        ("next_value", next_value),
    ):
        if value.shape != reward.shape or reward.ndim != 2:
            raise ValueError(
                f"all are (T, N): reward has shape {tuple(reward.shape)}, {name} {tuple(value.shape)}"
            )
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma lies in [0, 1]: gamma is {gamma}")
    end = torch.where(truncated, gamma * next_value, 0.0).masked_fill(terminated, 0.0)
    carry = gamma * ~(terminated | truncated)  # γ where the episode goes on, else 0
    result = reward + end
    for t in reversed(range(len(reward))):
        follows = result[t + 1] if t + 1 < len(reward) else next_value[t]  # (N,)
        result[t].addcmul_(carry[t], follows)
    return result
