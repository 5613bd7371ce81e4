"""RLOO: the action taken is the target y, its episode's return less the mean of the others is the weight w.

    python agents/rloo.py --env-id CartPole-v1

No critic, no discount: of the episodes that end in a rollout, each is the baseline of the others. Actions of
episodes that have not ended do not count.

Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free! Ahmadian et al. (2024),
Back to basics: revisiting REINFORCE style optimization for learning from human feedback.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pgce
from pgce.choices import Schedule
from pgce.policy_gradient import Agent
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch

# fmt: off
# All environments begin together and again after L + 1 steps, one of which resets: no episode is cut.
_TOKENS = {"total_timesteps": 1_000_000, "num_envs": 256, "num_steps": 5, "learning_rate": 6e-3,
           "ent_coef": 0.05, "network": "transformer", "hidden_sizes": (32,), "eval_episodes": 1_000}
PRESETS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("pgce/Copy-v0", "pgce/Reverse-v0"), _TOKENS),
    "pgce/Reverse8x10-v0": {**_TOKENS, "num_steps": 9},
    "Acrobot-v1": {"total_timesteps": 500_000},
}
# fmt: on


@dataclass(kw_only=True)
class RLOO(Agent):
    """Settings of RLOO.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.RLOO(quiet=True, runs_dir=folder).train(
        ...         "CartPole-v1", total_timesteps=9_000
        ...     )
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 256
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 1e-2
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""

    PRESETS = PRESETS

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The column "advantage": the same for every action of an episode."""
        total = rollout.reward.new_tensor(rollout.episode_return)
        rollout = replace(rollout, valid=rollout.valid & (rollout.episode >= 0))
        advantage = rollout.spread(pgce.weights.leave_one_out(total))
        advantage = self.standardised(advantage, rollout.spread(total), rollout.valid, center=False)
        return rollout.batch({"advantage": advantage})


if __name__ == "__main__":
    main(RLOO, __doc__)
