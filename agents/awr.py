"""AWR: regression on the actions of the last rollouts; the weight is w = min(exp(A/β), cap), never negative.

    python agents/awr.py --env-id CartPole-v1

The actions need not be the policy's own: the last `keep_rollouts` rollouts are learned from, with advantages
of the critic as it is now.

Peng et al. (2019), Advantage-weighted regression: simple and scalable off-policy reinforcement learning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pgce
from pgce.choices import Schedule
from pgce.policy_gradient import ActorCriticAgent, Minibatched
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch


@dataclass(kw_only=True)
class AWR(Minibatched, ActorCriticAgent):
    """Settings of AWR.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.AWR(quiet=True, runs_dir=folder).train("CartPole-v1", total_timesteps=4_000)
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 32
    """Environments stepped together (N)."""
    num_steps: int = 32
    """Steps in each environment a rollout (T)."""
    keep_rollouts: int = 1
    """Rollouts that are learned from, the last ones."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""
    beta: float = 0.3
    """Temperature β, in standard deviations of the advantage (or in its unit, without `norm_adv`)."""
    max_weight: float = 20.0
    """Largest weight."""

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not (self.beta > 0 and self.max_weight > 0):
            raise ValueError(f"beta and max_weight are positive: they are {self.beta} and {self.max_weight}")

    @property
    def kept(self) -> int:
        """How many rollouts are learned from, the last ones."""
        return self.keep_rollouts

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The column "advantage" becomes the weight exp(A/β), capped."""
        batch = super().prepare(rollout, model)
        weight = pgce.weights.exponential(batch["advantage"], self.beta, self.max_weight)
        return pgce.Batch(batch.input, {**batch.columns, "advantage": weight}, batch.mask)


if __name__ == "__main__":
    main(AWR, __doc__)
