"""Behaviour cloning: the expert's action is the target y, the weight w is 1. A classifier of observations.

    python agents/bc.py --env-id CartPole-v1 --expert runs/CartPole-v1__ppo__1__...
    python agents/bc.py --env-id CartPole-v1 --data demonstrations.npz

The expert is a trained agent, which acts; or what any expert did was recorded: arrays in a file, or a Minari
data set. What is evaluated is the one that learns from it. Its run can be the start of another: `--init`.
With `--beta` a recorded action has the weight w = min(exp(A/β), cap), A the return to go that followed, less
the mean of all: of behaviour good and bad the good counts more (return-weighted regression).

Pomerleau (1991), Efficient training of artificial neural networks for autonomous navigation.
Peters and Schaal (2007), Reinforcement learning by reward-weighted regression for operational space control.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pgce
from pgce.policy_gradient import Minibatched
from pgce.run import Run, main

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pgce.networks import ActorCritic
    from pgce.policy_gradient import After
    from pgce.rollout import Collector, Rollout
    from pgce.run import Also
    from pgce.trainer import Batch, Rule


@dataclass(kw_only=True)
class BC(Minibatched):
    """Settings of behaviour cloning.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     expert = pgce.agents.PPO.preset("CartPole-v1", quiet=True, runs_dir=folder).train()
        ...     agent = pgce.agents.BC(expert=str(expert.path), quiet=True, runs_dir=folder)
        ...     run = agent.train("CartPole-v1", total_timesteps=20_000)
        >>> run.result["eval_mean"] > 400
        True
    """

    expert: str = ""
    """Run of the agent that is learned from."""
    data: str = ""
    """Recorded behaviour instead: an .npz file with observations and actions, else the id of a Minari data
    set. Then total_timesteps and eval_freq count examples seen."""
    beta: float | None = None
    """Weigh recorded actions by exp(A/β), A the discounted return to go, standardised (as it is, without
    `norm_adv`); None weighs all alike. The data then has rewards and ends of episodes."""
    max_weight: float = 20.0
    """Largest such weight."""
    batch_size: int = 256
    """Examples a step, of recorded behaviour."""
    num_steps: int = 64
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 3e-3
    """Step size."""
    norm_obs: bool = True
    """Normalise observations, but for images and tokens, by running statistics, saved with the policy."""
    update_epochs: int = 10
    """Passes over a rollout."""

    arrays: ClassVar[Mapping[str, Any] | None] = None  # of `train`, in place of `data`
    READ_ONCE = Minibatched.READ_ONCE | {"beta", "gamma", "max_weight"}

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        self.at_least_one("batch_size")
        if bool(self.expert) + (bool(self.data) or self.arrays is not None) != 1:
            raise ValueError(
                f"BC learns from an expert, or from data: expert is {self.expert!r}, data {self.data!r}"
            )
        if self.beta is not None and self.expert:
            raise ValueError(f"beta weighs recorded behaviour, not an expert that acts: beta is {self.beta}")

    def train(
        self,
        env_id: str | None = None,
        total_timesteps: int | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        after: After | None = None,
        metrics: Also | None = None,
    ) -> Run:
        """Train with these settings.

        Args:
            env_id: replaces the setting of that name.
            total_timesteps: likewise, in environment steps or recorded examples.
            data: arrays as `pgce.demonstrations` takes them, in place of the setting of that name. (The
                command that is written down cannot repeat them.)
            after: called after every evaluation with the steps and the mean return; True ends the run.
            metrics: called with every step at which numbers are logged, and the numbers by tag.
        """
        if data is None:
            return super().train(env_id, total_timesteps, after=after, metrics=metrics)
        agent = copy.copy(self)
        vars(agent)["arrays"] = data
        return super(BC, agent).train(env_id, total_timesteps, after=after, metrics=metrics)

    def examples(self, collector: Collector) -> Batch | None:
        """The recorded observations and actions, if there are any."""
        from pgce.demonstrations import demonstrations

        if self.expert:
            return None
        source = self.data if self.arrays is None else self.arrays
        if self.beta is None:
            return demonstrations(source, collector, self.continuous)
        batch = demonstrations(source, collector, self.continuous, self.gamma)
        returns = batch["return"]
        advantage = self.standardised(returns, returns, returns.isfinite())
        return batch.with_columns(weight=pgce.weights.exponential(advantage, self.beta, self.max_weight))

    def acting(self, model: ActorCritic) -> nn.Module:
        """The expert's policy."""
        from pgce.trained import TrainedAgent

        if not self.expert:
            return model.policy
        return TrainedAgent(self.expert, allow_import=self.allow_import).policy_for(self)

    def batches(self, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
        """Minibatches of the rollout, epoch after epoch; or of one epoch of the data."""
        if self.expert:
            return super().batches(batch, generator)
        return batch.shuffled(math.ceil(len(batch) / self.batch_size), generator)

    def weight(self) -> str | Rule:
        """Every action counts alike, or by the return that followed it."""
        return pgce.weights.one if self.beta is None else "weight"

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The expert's observations and actions."""
        return rollout.batch({})


if __name__ == "__main__":
    main(BC, __doc__)
