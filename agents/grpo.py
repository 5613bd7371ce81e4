"""GRPO: several episodes from one initial state; the weight is ρ · the return, standardised in that group.

    python agents/grpo.py --env-id CartPole-v1

Environments in a row begin every rollout alike, each plays one episode; the rollout ends with the last. The
ratio ρ is clipped as in PPO, there is no critic. What has not ended after `num_steps` counts with its return
until then.

Shao et al. (2024), DeepSeekMath: pushing the limits of mathematical reasoning in open language models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pgce
from pgce.choices import Schedule
from pgce.envs.vectorize import Vectorization
from pgce.policy_gradient import Minibatched
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch, Rule

# fmt: off
_TOKENS = {"total_timesteps": 500_000, "num_envs": 256, "num_steps": 4, "group": 16, "vectorization": "auto",
           "ent_coef": 0.02, "network": "transformer", "hidden_sizes": (32,), "eval_episodes": 1_000}
PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"total_timesteps": 300_000, "vectorization": "auto", "update_epochs": 16,
                    "num_minibatches": 8},
    **dict.fromkeys(("pgce/Copy-v0", "pgce/Reverse-v0"), _TOKENS),
    "pgce/Reverse8x10-v0": {**_TOKENS, "num_steps": 8},
}
# fmt: on


@dataclass(kw_only=True)
class GRPO(Minibatched):
    """Settings of GRPO.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.GRPO(quiet=True, runs_dir=folder).train(
        ...         "CartPole-v1", total_timesteps=16_000
        ...     )
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 32
    """Environments stepped together (N)."""
    num_steps: int = 500
    """Steps in each environment a rollout (T), at most; an episode that is longer is cut."""
    group: int = 8
    """Environments that begin in the same state (G)."""
    vectorization: Vectorization = "sync"
    """How environments are stepped together; groups need environments with a seed each."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""
    max_grad_norm: float | None = 0.5
    """Limit of the gradient's Euclidean norm."""
    clip_coef: float = 0.2
    """ε: the weight is 0 where ρ has left [1 − ε, 1 + ε] on the side it is pushed to."""

    PRESETS = PRESETS

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not self.clip_coef > 0:
            raise ValueError(f"clip_coef is positive: it is {self.clip_coef}")

    @property
    def group_size(self) -> int:
        """Environments in a row that begin every rollout in the same state."""
        return self.group

    def weight(self) -> str | Rule:
        """The clipped ratio times the advantage."""
        return partial(pgce.weights.clipped, clip_coef=self.clip_coef)

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The column "advantage": the same for every action of an episode."""
        rollout = replace(rollout, valid=rollout.first_episode)
        total = (rollout.reward * rollout.valid).sum(0)  # (N,)
        advantage = pgce.weights.group_standardised(total.view(-1, self.group)).flatten()
        columns = {"advantage": advantage.expand_as(rollout.reward), "cross_entropy": rollout.cross_entropy}
        return rollout.batch(columns)


if __name__ == "__main__":
    main(GRPO, __doc__)
