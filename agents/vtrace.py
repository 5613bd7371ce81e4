"""V-trace: actions taken by an older policy; the weight is min(ρ̄, ρ) · A, what they are worth to this one.

    python agents/vtrace.py --env-id CartPole-v1

The policy that acts is brought up to date every `policy_lag` rounds only, as if it ran in another process.
ρ = π(a|s)/π_old(a|s) corrects both the values that the critic learns and the weight.

Espeholt et al. (2018), IMPALA: scalable distributed deep-RL with importance weighted actor-learner
architectures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pgce
from pgce.choices import Schedule
from pgce.policy_gradient import Agent
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch


@dataclass(kw_only=True)
class VTrace(Agent):
    """Settings of the V-trace actor–critic.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.VTrace(quiet=True, runs_dir=folder).train(
        ...         "CartPole-v1", total_timesteps=4_000
        ...     )
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 32
    """Steps in each environment a rollout (T)."""
    policy_lag: int = 4
    """Rounds after which the policy that acts is brought up to date."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""
    max_grad_norm: float | None = 0.5
    """Limit of the gradient's Euclidean norm."""
    trace_lambda: float = 0.95
    """λ of the trace."""
    max_rho: float = 1.0
    """ρ̄: cap of the ratio in the weight and in each step's error."""
    max_c: float = 1.0
    """c̄: cap of the ratio along the trace."""

    critic = True
    PRESETS = {"CartPole-v1": {"ent_coef": 0.01}}

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not 0 <= self.trace_lambda <= 1:
            raise ValueError(f"trace_lambda lies in [0, 1]: it is {self.trace_lambda}")
        if not (self.max_rho > 0 and self.max_c >= 0):
            raise ValueError(
                f"max_rho is positive, max_c 0 or more: they are {self.max_rho} and {self.max_c}"
            )

    @property
    def lag(self) -> int:
        """Rounds after which the policy that acts is brought up to date."""
        return self.policy_lag

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The columns "return" v, and "advantage" min(ρ̄, ρ) · (r + γ v′ − V)."""
        assert model.value is not None
        old, now = rollout.cross_entropy, rollout.cross_entropy_under(model.policy)
        ratio = (old - now).exp()
        value, next_value = rollout.values(model.value)
        reward, terminated, truncated = rollout.reward, rollout.terminated, rollout.truncated
        correction = pgce.returns.vtrace(
            ratio, reward, terminated, truncated, value, next_value, self.gamma, self.trace_lambda,
            self.max_rho, self.max_c,
        )  # fmt: skip
        target = value + correction  # v
        following = next_value.clone()  # v′: the corrected value where the episode goes on in the rollout
        goes_on = ~rollout.done[:-1]
        following[:-1] = target[1:].where(goes_on, next_value[:-1])
        error = reward + self.gamma * following.masked_fill(terminated, 0.0) - value
        advantage = self.standardised(ratio.clamp(max=self.max_rho) * error, target, rollout.valid)
        return rollout.batch({"return": target, "advantage": advantage, "cross_entropy": old})


if __name__ == "__main__":
    main(VTrace, __doc__)
