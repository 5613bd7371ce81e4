"""Rewards turned into what an action is worth. Pure functions over (T, N): T steps of N environments."""

from __future__ import annotations

import torch
from torch import Tensor

from pgce import processes

__all__ = ["discounted", "gae", "mean_baseline", "n_step", "vtrace"]


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
    next_value = torch.zeros_like(reward) if next_value is None else next_value
    _check(reward, gamma, terminated=terminated, truncated=truncated, next_value=next_value)
    end = torch.where(truncated, gamma * next_value, 0.0).masked_fill(terminated, 0.0)
    # γ where the episode goes on, else 0; of the rewards' dtype, which γ times a mask would not be
    carry = torch.full_like(reward, gamma).masked_fill(terminated | truncated, 0.0)
    return _accumulated(reward + end, carry, next_value[-1].masked_fill(carry[-1] == 0, 0.0))


def gae(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    value: Tensor,
    next_value: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimate Â (T, N), in units of reward.

        δ_t = r_t + γ · next_value_t · (1 − terminated_t) − value_t
        Â_t = δ_t + γ λ · Â_{t+1}, where the episode goes on

    The value of the observation is Â + value; λ = 1 is the return to go less the value, λ = 0 one step.

    Args:
        reward: (T, N), floating.
        terminated: (T, N), bool: the episode reached a true end.
        truncated: (T, N), bool: the episode was cut: the trace ends, the value goes on.
        value: (T, N), estimated value of each observation.
        next_value: (T, N), estimated value of each true next observation.
        gamma: discount γ in [0, 1] a step.
        gae_lambda: λ in [0, 1].

    Raises:
        ValueError: shapes differ, or γ or λ lies outside [0, 1].

    Example:
        >>> import torch
        >>> from pgce.returns import gae
        >>> one, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
        >>> gae(one, no, no, value=0 * one, next_value=one, gamma=0.5, gae_lambda=1.0).T
        tensor([[2.2500, 1.5000]])

    References:
        Schulman et al. (2016), High-dimensional continuous control using generalized advantage estimation.
    """
    return vtrace(
        torch.ones_like(reward), reward, terminated, truncated, value, next_value, gamma, gae_lambda
    )


def mean_baseline(returns: Tensor, rest: Tensor) -> Tensor:
    """The constant b () that is the mean of the returns it completes: b = mean(G + rest · b).

    Args:
        returns: G up to the cut, (B,).
        rest: what multiplies the value past the cut, 0 where there is none: γ^k, (B,).

    Example:
        >>> import torch
        >>> from pgce.returns import mean_baseline
        >>> mean_baseline(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.5]))
        tensor(2.6667)
    """
    return processes.mean(returns) / (1 - processes.mean(rest)).clamp(min=1e-3)


def n_step(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    next_value: Tensor,
    gamma: float,
    n: int,
) -> Tensor:
    """Return of n steps G (T, N), in units of reward: n rewards, and the value of what follows them.

        G_t = r_t + … + γ^(k−1) · r_{t+k−1} + γ^k · next_value_{t+k−1}

    k is n, or less where the episode is cut before that: truncated, or the last of the T steps. Where it
    terminated, no value follows. n = 1 is one reward and the next value, n ≥ T is `discounted`.

    Args:
        reward: (T, N), floating.
        terminated: (T, N), bool: the episode reached a true end.
        truncated: (T, N), bool: the episode was cut: the rewards end, the value goes on.
        next_value: (T, N), estimated value of each true next observation.
        gamma: discount γ in [0, 1] a step.
        n: most rewards that are added up, at least 1.

    Raises:
        ValueError: shapes differ, γ lies outside [0, 1], or n is below 1.

    Example:
        >>> import torch
        >>> from pgce.returns import n_step
        >>> one, no = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.bool)
        >>> n_step(one, no, no, next_value=8 * one, gamma=0.5, n=2).T
        tensor([[3.5000, 3.5000, 5.0000]])

    References:
        Sutton and Barto (2018), Reinforcement Learning, §7.1; Mnih et al. (2016), Asynchronous methods for
        deep reinforcement learning.
    """
    _check(reward, gamma, terminated=terminated, truncated=truncated, next_value=next_value)
    if n < 1:
        raise ValueError(f"n is at least 1: it is {n}")
    one_step = reward + gamma * next_value.masked_fill(terminated, 0.0)
    goes_on = ~(terminated | truncated)[:-1]
    result = one_step.clone()
    for _ in range(min(n, len(reward)) - 1):  # from the return of k steps to that of k + 1
        result[:-1] = (reward[:-1] + gamma * result[1:]).where(goes_on, one_step[:-1])
    return result


def vtrace(
    ratio: Tensor,
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    value: Tensor,
    next_value: Tensor,
    gamma: float,
    trace_lambda: float = 1.0,
    max_rho: float = 1.0,
    max_c: float = 1.0,
) -> Tensor:
    """How much V-trace corrects the value of each observation, v − value, (T, N); GAE where every ratio is 1.

        δ_t = min(ρ̄, ratio_t) · (r_t + γ · next_value_t · (1 − terminated_t) − value_t)
        (v − value)_t = δ_t + γ λ min(c̄, ratio_t) · (v − value)_{t+1}, where the episode goes on

    Args:
        ratio: (T, N), π(a|s)/μ(a|s) of the policy now to the one that acted.
        reward: (T, N), floating, as the next five: see `gae`.
        terminated: (T, N), bool.
        truncated: (T, N), bool.
        value: (T, N).
        next_value: (T, N).
        gamma: γ in [0, 1].
        trace_lambda: λ in [0, 1].
        max_rho: ρ̄, cap of the ratio that weighs δ.
        max_c: c̄, cap of the ratio that cuts the trace.

    Raises:
        ValueError: shapes differ, or γ or λ lies outside [0, 1].

    Example:
        >>> import torch
        >>> from pgce.returns import vtrace
        >>> one, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
        >>> vtrace(0.5 * one, one, no, no, value=0 * one, next_value=one, gamma=0.5).T
        tensor([[0.9375, 0.7500]])

    References:
        Espeholt et al. (2018), IMPALA: scalable distributed deep-RL with importance weighted actor-learner
        architectures.
    """
    columns = {"terminated": terminated, "truncated": truncated, "value": value, "next_value": next_value}
    _check(reward, gamma, ratio=ratio, **columns)
    if not 0 <= trace_lambda <= 1:
        raise ValueError(f"lambda lies in [0, 1]: it is {trace_lambda}")
    delta = reward + gamma * next_value.masked_fill(terminated, 0.0) - value
    carry = gamma * trace_lambda * ratio.clamp(max=max_c) * ~(terminated | truncated)
    return _accumulated(ratio.clamp(max=max_rho) * delta, carry, torch.zeros_like(value[-1]))


def _accumulated(each: Tensor, carry: Tensor, after: Tensor) -> Tensor:
    """x_t = each_t + carry_t · x_{t+1}, with x_T = after (N,); overwrites `each`."""
    follows = after
    for x, c in zip(reversed(each.unbind(0)), reversed(carry.unbind(0)), strict=True):
        follows = x.addcmul_(c, follows)
    return each


def _check(reward: Tensor, gamma: float, **columns: Tensor) -> None:
    for name, value in columns.items():
        if value.shape != reward.shape or reward.ndim != 2:
            raise ValueError(
                f"all are (T, N): reward has shape {tuple(reward.shape)}, {name} {tuple(value.shape)}"
            )
        if name in ("terminated", "truncated") and value.dtype != torch.bool:
            raise ValueError(f"ends are told by bool: {name} has dtype {value.dtype}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma lies in [0, 1]: gamma is {gamma}")
