"""PPO: REINFORCE on the same actions several times; the weight A · ρ is 0 where the policy has moved enough.

    python agents/ppo.py --env-id CartPole-v1

A is the generalised advantage estimate, ρ = π(a|s)/π_old(a|s) the ratio to the policy that acted, which the
cross-entropy tells: H = −log π(a|s). The weight is the exact gradient of the clipped surrogate.

Schulman et al. (2017), Proximal policy optimization algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pgce
from pgce.choices import Schedule
from pgce.policy_gradient import ActorCriticAgent, Minibatched
from pgce.run import main

if TYPE_CHECKING:
    from torch import Tensor

    from pgce.trainer import Batch, Reports, Rule, TargetRule

# fmt: off
_FEW = {"update_epochs": 4, "num_minibatches": 4}
_ROBOT = {"total_timesteps": 1_000_000, "num_envs": 64, "num_steps": 32}
_LANDER = {"total_timesteps": 1_000_000, "num_steps": 256, "gamma": 0.999, "gae_lambda": 0.98,
           "ent_coef": 0.01, **_FEW}
_TOKENS = {"total_timesteps": 500_000, "num_envs": 256, "num_steps": 9, "learning_rate": 3e-3, "gamma": 1.0,
           "ent_coef": 0.02, "network": "transformer", "hidden_sizes": (32,), "eval_episodes": 1_000, **_FEW}
PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"total_timesteps": 150_000, "num_envs": 64, "num_steps": 32, "learning_rate": 3e-3,
                    "gamma": 0.995, **_FEW},
    "Acrobot-v1": {"total_timesteps": 500_000, "num_steps": 256, "learning_rate": 2e-3, "gamma": 0.995,
                   "gae_lambda": 0.94, "norm_reward": False, **_FEW},
    "MountainCar-v0": {"total_timesteps": 1_000_000, "num_steps": 64, "learning_rate": 1e-3,
                       "gae_lambda": 0.98, "norm_reward": False, **_FEW},
    "MountainCarContinuous-v0": {"total_timesteps": 100_000, "num_steps": 256, "learning_rate": 1e-3,
                                 "gamma": 0.9999, "gae_lambda": 0.9, "clip_coef": 0.1, "log_std_init": 0.0,
                                 **_FEW},
    "Pendulum-v1": {"total_timesteps": 100_000, "num_envs": 4, "num_steps": 256, "learning_rate": 1e-3,
                    "gamma": 0.95, "activation": "relu", "num_minibatches": 16, "log_std_init": 0.0},
    "LunarLander-v3": {**_LANDER, "num_envs": 64, "num_steps": 64, "learning_rate": 3e-3},
    "LunarLanderContinuous-v3": {**_LANDER, "num_steps": 1024, "learning_rate": 1e-3, "num_minibatches": 256,
                                 "log_std_init": 0.0},
    "HalfCheetah-v5": {**_ROBOT, "num_steps": 64, "learning_rate": 1e-3, "num_minibatches": 8},
    "BipedalWalker-v3": {"total_timesteps": 1_000_000, "gamma": 0.999},
    **dict.fromkeys(("Hopper-v5", "InvertedDoublePendulum-v5"), _ROBOT),
    "Walker2d-v5": {**_ROBOT, "num_envs": 8, "num_steps": 64, "learning_rate": 5e-5,
                    "lr_schedule": "constant", "clip_coef": 0.1, "ent_coef": 6e-4, "vf_coef": 1.7,
                    "max_grad_norm": 1.0, "update_epochs": 20, "num_minibatches": 16, "log_std_init": 0.0},
    "Swimmer-v5": {**_ROBOT, "num_envs": 4, "num_steps": 1024, "learning_rate": 6e-4, "gamma": 0.9999,
                   "gae_lambda": 0.98, "num_minibatches": 16, "log_std_init": 0.0},
    **dict.fromkeys(("pgce/Copy-v0", "pgce/Reverse-v0", "pgce/Reverse8x10-v0"), _TOKENS),
}
# fmt: on


@dataclass(kw_only=True)
class PPO(Minibatched, ActorCriticAgent):
    """Settings of PPO.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     agent = pgce.agents.PPO.preset("CartPole-v1", quiet=True, runs_dir=folder)
        ...     run = agent.train(total_timesteps=8_192)
        >>> run.result["steps"] > 4_096
        True
    """

    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 128
    """Steps in each environment a rollout (T)."""
    learning_rate: float = 3e-4
    """Step size."""
    lr_schedule: Schedule = "linear"
    """How the learning rate falls over the run."""
    max_grad_norm: float | None = 0.5
    """Limit of the gradient's Euclidean norm."""
    update_epochs: int = 10
    """Passes over a rollout."""
    num_minibatches: int = 32
    """Steps a pass."""
    norm_obs: bool = True
    """Normalise observations, but for images and tokens, by running statistics, saved with the policy."""
    norm_reward: bool = True
    """Scale rewards by the running standard deviation of their discounted sum."""
    log_std_init: float = -0.5
    """Logarithm of a Gaussian policy's σ at the start, in half the distance of an action's bounds; in units
    of 1 where there are none, and before tanh."""
    clip_coef: float = 0.2
    """ε: the weight is 0 where ρ has left [1 − ε, 1 + ε] on the side it is pushed to."""
    dual_clip: float | None = None
    """c > 1: the weight is also 0 where A < 0 and ρ > c."""
    clip_vloss: bool = False
    """Keep the value within ε of what it was."""
    target_kl: float | None = None
    """End the passes over a rollout when the policy has moved more than 1.5 times this far, in nats."""

    PRESETS = PRESETS

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not self.clip_coef > 0 or (self.dual_clip is not None and not self.dual_clip > 1):
            raise ValueError(
                f"clip_coef is positive, dual_clip above 1: they are {self.clip_coef} and {self.dual_clip}"
            )
        if self.target_kl is not None and not self.target_kl > 0:
            raise ValueError(f"target_kl is positive, or None: it is {self.target_kl}")

    def weight(self) -> str | Rule:
        """The clipped ratio times the advantage."""
        return partial(pgce.weights.clipped, clip_coef=self.clip_coef, dual_clip=self.dual_clip)

    @property
    def value_target(self) -> str | TargetRule:
        """The return; with `clip_vloss` the value itself where the clipped error is the larger."""
        return self._clipped_value if self.clip_vloss else "return"

    def _clipped_value(self, value: Tensor, batch: Batch) -> Tensor:
        moved = (value - batch["value"]).clamp(-self.clip_coef, self.clip_coef)
        clipped_error = (batch["value"] + moved - batch["return"]).abs()
        flat = (clipped_error > (value - batch["return"]).abs()) & (moved.abs() == self.clip_coef)
        return value.where(flat, batch["return"])

    def stop(self, reports: Reports) -> bool | None:
        """Whether the policy has moved further than `target_kl`; None where there is no such limit."""
        if self.target_kl is None:
            return None
        rows = len(reports["policy"].cross_entropy)
        change = pgce.metrics.policy_change(reports["policy"])["train/approx_kl"] if rows else 0.0
        total, number = pgce.processes.sum_of([rows * change, float(rows)])  # of all processes
        return total > 1.5 * self.target_kl * number


if __name__ == "__main__":
    main(PPO, __doc__)
