"""REINFORCE: the action taken is the target y, the return that followed it is the weight w.

    python agents/reinforce.py --env-id CartPole-v1

The return to go G is discounted, less a baseline. Where an episode is cut, by a time limit or by the end of
the rollout, the rest of its return is unknown: the baseline stands in for it (the critic's value of the next
observation, or the mean return); without a baseline it counts 0, which is biased low near the cut.

Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pgce
from pgce.choices import Schedule
from pgce.policy_gradient import Agent
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch


@dataclass(kw_only=True)
class Reinforce(Agent):
    """Settings of REINFORCE.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     agent = pgce.agents.Reinforce(baseline="critic", quiet=True, runs_dir=folder)
        ...     run = agent.train("CartPole-v1", total_timesteps=4_000)
        >>> 1_000 < run.result["steps"] <= 4_000
        True
    """

    baseline: Literal["none", "mean", "critic"] = "mean"
    """What is subtracted from the return: nothing, its mean over the rollout, or a learned value."""
    num_envs: int = 8
    """Environments stepped together (N)."""
    num_steps: int = 256
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 5e-3
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""

    PRESETS = {"CartPole-v1": {"gamma": 0.998}, "Acrobot-v1": {"total_timesteps": 500_000}}

    @property
    def critic(self) -> bool:
        """Whether a value is learned beside the policy."""
        return self.baseline == "critic"

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The columns "return" and, less the baseline, "advantage"; once a rollout."""
        discounted, valid, reward = pgce.returns.discounted, rollout.valid, rollout.reward
        ends = rollout.terminated, rollout.truncated, self.gamma
        if model.value is not None:
            value, next_value = rollout.values(model.value)
            returns = discounted(reward, *ends, next_value)
        else:
            value = reward.new_zeros(())
            returns = discounted(reward, *ends)
        if self.baseline == "mean":
            # rest is the discount γ^k from a step to the cut of its episode, 0 if it terminates.
            rest = discounted(reward.new_zeros(reward.shape), *ends, reward.new_ones(reward.shape))
            value = pgce.returns.mean_baseline(returns[valid], rest[valid])
            returns = returns + rest * value
        advantage = returns - value
        advantage = self.standardised(advantage, returns, valid, center=self.baseline != "none")
        return rollout.batch({"return": returns, "advantage": advantage})


if __name__ == "__main__":
    main(Reinforce, __doc__)
