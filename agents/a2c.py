"""A2C: the action taken is the target y, its advantage over the critic's value is the weight w.

    python agents/a2c.py --env-id CartPole-v1

The advantage is the generalised estimate, or with `--n-step` that of n steps. One step a rollout.

Mnih et al. (2016), Asynchronous methods for deep reinforcement learning.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgce.choices import Schedule
from pgce.policy_gradient import ActorCriticAgent
from pgce.run import main


@dataclass(kw_only=True)
class A2C(ActorCriticAgent):
    """Settings of A2C.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.A2C(quiet=True, runs_dir=folder).train("CartPole-v1", total_timesteps=4_000)
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 16
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""
    max_grad_norm: float | None = 0.5
    """Limit of the gradient's Euclidean norm."""

    PRESETS = {
        "CartPole-v1": {"learning_rate": 2e-3, "gamma": 0.995},
        "Acrobot-v1": {"total_timesteps": 500_000, "norm_obs": True},
    }


if __name__ == "__main__":
    main(A2C, __doc__)
