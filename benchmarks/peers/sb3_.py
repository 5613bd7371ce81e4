"""Stable-Baselines3, with the preset of its Zoo, or the same numbers for all.

python sb3_.py WORK SEED
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import Clock, work
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

WHAT, SEED = work()
torch.set_num_threads(1)


class Native(VecEnv):
    """Gymnasium's NumPy CartPole for SB3, which has no vector environment of its own that is as fast."""

    def __init__(self, number: int) -> None:
        self.many = gym.make_vec("CartPole-v1", number, "vector_entry_point")
        super().__init__(number, self.many.single_observation_space, self.many.single_action_space)
        self.infos: list[dict[str, Any]] = [{}] * number

    def reset(self) -> np.ndarray:
        return self.many.reset(seed=SEED)[0]

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, _ = self.many.step(self.actions)
        return observation, reward.astype(np.float32), terminated | truncated, self.infos

    def close(self) -> None:
        self.many.close()

    def env_is_wrapped(self, *_: Any, **__: Any) -> list[bool]:
        return [False] * self.num_envs

    def get_attr(self, *_: Any) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, *_: Any) -> None: ...

    def env_method(self, *_: Any, **__: Any) -> list[Any]:
        return [None] * self.num_envs


class Judge(BaseCallback):
    """Stops training when the clock says that it is solved."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if CLOCK.solved(self.num_timesteps):
            raise StopIteration


ZOO = {
    "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
    "learning_rate": lambda left: 1e-3 * left, "clip_range": lambda left: 0.2 * left,
}  # fmt: skip
SAME = {"n_steps": 32, "n_epochs": 4, "policy_kwargs": {"net_arch": [64, 64]}}
if WHAT == "ppo":
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8, seed=SEED), seed=SEED, device="cpu", **ZOO)
    budget = 100_000
else:
    number = int(WHAT.split()[1])
    many = Native(number) if WHAT.startswith("steps") else make_vec_env("CartPole-v1", number, seed=SEED)
    model = PPO("MlpPolicy", many, seed=SEED, device="cpu", batch_size=number * 32 // 4, **SAME)
    budget = 200_000 if number == 64 else 500_000
CLOCK = Clock(lambda obs: model.predict(obs, deterministic=False)[0], every=5_000 if WHAT == "ppo" else 0)
with suppress(StopIteration):
    model.learn(budget, callback=Judge())
CLOCK.steps = model.num_timesteps
CLOCK.tell()
