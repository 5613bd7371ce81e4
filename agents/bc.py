"""Behaviour cloning: the expert's action is the target y, every weight w is 1. A classifier of observations.

    python agents/bc.py --env-id CartPole-v1 --expert runs/CartPole-v1__ppo__1__...

The expert is a trained agent, which acts; what is evaluated is the one that learns from it. Its run can be
the start of another: `--init`.

Pomerleau (1991), Efficient training of artificial neural networks for autonomous navigation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pgce
from pgce.policy_gradient import Minibatched, TrainedAgent
from pgce.run import main

if TYPE_CHECKING:
    from torch import nn

    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
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
    num_envs: int = 16
    """Environments that the expert steps together (N)."""
    num_steps: int = 64
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 3e-3
    """Step size."""
    update_epochs: int = 10
    """Passes over a rollout."""

    def acting(self, model: ActorCritic) -> nn.Module:
        """The expert's policy."""
        if not self.expert:
            raise ValueError("behaviour cloning learns from an expert: expert is the folder of its run")
        return TrainedAgent(self.expert).model.policy

    def weight(self) -> str | Rule:
        """Every action counts alike."""
        return pgce.weights.one

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The expert's observations and actions."""
        return rollout.batch({})


if __name__ == "__main__":
    main(BC, __doc__)
