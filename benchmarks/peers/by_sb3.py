"""Stable-Baselines3, or SBX where it is installed: python benchmarks/peers/by_sb3.py ppo --seed 1."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import EPISODES, LATER, SAME, Clock, Solving, arguments, tell
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecNormalize

try:
    from sbx import PPO
except ImportError:
    from stable_baselines3 import PPO

TWO = {
    "net_arch": {"pi": [SAME.hidden, SAME.hidden], "vf": [SAME.hidden, SAME.hidden]},
    "activation_fn": torch.nn.Tanh,
}


class Evaluating(BaseCallback):
    """Ends training when it is solved; looks between an update and the next rollout."""

    def __init__(self, solving: Solving) -> None:
        super().__init__()
        self.solving = solving

    def _on_rollout_start(self) -> None:
        self.solving(self.num_timesteps)

    def _on_step(self) -> bool:
        return not self.solving.solved

    def _on_training_end(self) -> None:
        self.solving(self.num_timesteps, last=True)


class NumpyEnvs(VecEnv):
    """Gymnasium's NumPy CartPole-v1; that it resets itself in a step of its own is not looked at."""

    def __init__(self, env_id: str, number: int) -> None:
        self.envs = gym.make_vec(env_id, number, vectorization_mode="vector_entry_point")
        super().__init__(number, self.envs.single_observation_space, self.envs.single_action_space)

    def reset(self) -> Any:
        return self.envs.reset()[0]

    def step_async(self, actions: Any) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        observation, reward, terminated, truncated, _ = self.envs.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for n in np.flatnonzero(truncated):
            infos[n] = {"TimeLimit.truncated": True, "terminal_observation": observation[n]}
        return observation, reward, terminated | truncated, infos

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def ppo(given: Namespace) -> None:
    """RL Baselines3 Zoo's settings for CartPole-v1."""
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", 8, seed=given.seed), n_steps=32, batch_size=256, n_epochs=20,
        gae_lambda=0.8, gamma=0.98, ent_coef=0.0, learning_rate=lambda left: left * 1e-3,
        clip_range=lambda left: left * 0.2, seed=given.seed, device="cpu",
    )  # fmt: skip
    solving = Solving(lambda observation: model.predict(observation)[0], given.seed)
    model.learn(given.total or 100_000, Evaluating(solving))
    solving.tell()


def steps(given: Namespace) -> None:
    """PPO with the numbers that all have."""
    if given.vectorization == "vector_entry_point":
        envs: VecEnv = NumpyEnvs(given.env_id, given.num_envs)
    else:
        envs = make_vec_env(given.env_id, given.num_envs, seed=given.seed)
    learn(same_numbers(PPO, "MlpPolicy", envs, given), given.total)


def masked(given: Namespace) -> None:
    """Those of an environment that tells which actions are allowed, as Taxi does in its info."""
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.wrappers import ActionMasker

    def mask(env: Any) -> Any:
        return env.unwrapped.action_mask(env.unwrapped.s)

    how = {"wrapper_class": ActionMasker, "wrapper_kwargs": {"action_mask_fn": mask}}
    envs = make_vec_env(given.env_id, given.num_envs, seed=given.seed, **how)
    learn(same_numbers(MaskablePPO, "MlpPolicy", envs, given), given.total)


def remembering(given: Namespace) -> None:
    """Those with an LSTM for the policy and one for the value."""
    from sb3_contrib import RecurrentPPO

    envs = make_vec_env(given.env_id, given.num_envs, seed=given.seed)
    model = same_numbers(RecurrentPPO, "MlpLstmPolicy", envs, given, lstm_hidden_size=SAME.hidden)
    learn(model, given.total)


def same_numbers(kind: type[Any], policy: str, envs: Any, given: Namespace, **networks: Any) -> Any:
    """An agent with them."""
    return kind(
        policy, envs, n_steps=SAME.steps, batch_size=given.num_envs * SAME.steps // SAME.minibatches,
        n_epochs=SAME.epochs, learning_rate=SAME.rate, gamma=SAME.gamma, gae_lambda=SAME.gae_lambda,
        clip_range=SAME.clip, vf_coef=SAME.value, max_grad_norm=SAME.norm, policy_kwargs={**TWO, **networks},
        seed=given.seed, device="cpu",
    )  # fmt: skip


def robots(given: Namespace) -> None:
    """The numbers of pgce's presets of these environments."""
    lander = given.env_id == "LunarLander-v3"
    number, length, epochs, minibatches = (64, 64, 4, 4) if lander else (64, 64, 10, 8)
    several = given.vectorization == "async"
    how = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if several else {}
    envs = VecNormalize(make_vec_env(given.env_id, number, seed=given.seed, **how))
    model = PPO(
        "MlpPolicy", envs, n_steps=length, batch_size=number * length // minibatches, n_epochs=epochs,
        learning_rate=3e-3 if lander else 1e-3, gamma=0.999 if lander else 0.99,
        gae_lambda=0.98 if lander else 0.95, ent_coef=0.01 if lander else 0.0, policy_kwargs=TWO,
        seed=given.seed, device="cpu",
    )  # fmt: skip
    learn(model, given.total)


def defaults(given: Namespace) -> None:
    """PPO with no setting but the steps, and what it then reaches."""
    model = PPO("MlpPolicy", given.env_id, seed=given.seed, device="cpu")
    envs = make_vec_env(given.env_id, 10, seed=LATER + given.seed)
    learn(
        model, given.total,
        greedy=lambda: evaluate_policy(model, envs, EPISODES, deterministic=True)[0],
        sampled=lambda: evaluate_policy(model, envs, EPISODES, deterministic=False)[0],
    )  # fmt: skip


def learn(model: Any, total: int, **after: Callable[[], Any]) -> None:
    """Train, and tell, with what is measured after."""
    clock = Clock()
    model.learn(total)
    seconds = clock.seconds
    tell(seconds=seconds, steps=model.num_timesteps, **{name: float(f()) for name, f in after.items()})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given = arguments()
    programs = ppo, steps, masked, remembering, robots, defaults
    {program.__name__: program for program in programs}[given.what](given)
