"""The deep cross-entropy method: the weight w is 1 for the actions of the best episodes, else 0.

    python agents/cem.py --env-id CartPole-v1

No return enters the weight but by its rank: classification of the elite's actions. Actions of episodes that
have not ended do not count.

De Boer et al. (2005), A tutorial on the cross-entropy method; Lapan (2018), Deep reinforcement learning
hands-on, for its use with a network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pgce import processes
from pgce.policy_gradient import Minibatched
from pgce.run import main

if TYPE_CHECKING:
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch


@dataclass(kw_only=True)
class CEM(Minibatched):
    """Settings of the cross-entropy method.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.CEM(quiet=True, runs_dir=folder).train("CartPole-v1", total_timesteps=9_000)
        >>> run.result["stopped"]
        'budget'
    """

    num_envs: int = 32
    """Environments stepped together (N)."""
    num_steps: int = 256
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 1e-2
    """Step size."""
    elite: float = 0.3
    """Share of the episodes, the best, that are imitated; not the worst, however many they are."""
    num_minibatches: int = 1
    """Steps a pass."""

    PRESETS = {"CartPole-v1": {"total_timesteps": 300_000, "num_envs": 16, "num_steps": 512, "elite": 0.2}}

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not 0 < self.elite < 1:
            raise ValueError(f"elite is a share between 0 and 1: it is {self.elite}")

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The column "advantage": 1 for the actions of an elite episode, else 0."""
        total = rollout.reward.new_tensor(rollout.episode_return)
        rollout = replace(rollout, valid=rollout.valid & (rollout.episode >= 0))
        everyones = [each for part in processes.everyones(total.tolist()) for each in part]
        if not everyones:
            return rollout.batch({"advantage": rollout.reward})  # of which no row counts
        every = total.new_tensor(everyones)
        bar = every.quantile(1 - self.elite)
        # Where a reward is seldom found, most did worst: they are no elite.
        elite = total > bar if bar == every.min() < every.max() else total >= bar
        return rollout.batch({"advantage": rollout.spread(elite.to(total.dtype))})


if __name__ == "__main__":
    main(CEM, __doc__)
