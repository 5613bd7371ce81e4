"""skrl with its own trainer, on Gymnasium's vector environments: python benchmarks/peers/by_skrl.py ppo."""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import skrl
import torch
from common import SAME, Clock, Solving, arguments, tell
from gymnasium.vector import AutoresetMode
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

# The numbers that all have; an episode that is cut is completed by the value of its last observation.
NUMBERS = {
    "rollouts": SAME.steps, "learning_epochs": SAME.epochs, "mini_batches": SAME.minibatches,
    "learning_rate": SAME.rate, "discount_factor": SAME.gamma, "gae_lambda": SAME.gae_lambda,
    "ratio_clip": SAME.clip, "value_clip": 0.0, "value_loss_scale": SAME.value, "grad_norm_clip": SAME.norm,
    "time_limit_bootstrap": True,
}  # fmt: skip
QUIET = {"write_interval": 0, "checkpoint_interval": 0}


class Policy(CategoricalMixin, Model):
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = perceptron(self.num_observations, self.num_actions)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = perceptron(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def perceptron(features: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, SAME.hidden), nn.Tanh(), nn.Linear(SAME.hidden, SAME.hidden), nn.Tanh(),
        nn.Linear(SAME.hidden, outputs),
    )  # fmt: skip


class Solved(Exception):
    """Ends training."""


class Evaluated(PPO):
    """Looks after an update whether training may end."""

    solving: Solving

    def update(self, *, timestep: int, timesteps: int) -> None:
        super().update(timestep=timestep, timesteps=timesteps)
        steps, last = (timestep + 1) * self.memory.num_envs, timestep + self.cfg.rollouts >= timesteps
        if self.solving(steps, last):
            raise Solved


def trainer(kind: type[PPO], envs: gym.vector.VectorEnv, total: int, **settings: Any) -> SequentialTrainer:
    """What trains an agent for so many environment steps, and writes nothing."""
    env, cfg = wrap_env(envs), PPO_CFG(experiment=QUIET, **settings)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": "cpu"}
    models = {"policy": Policy(**spaces), "value": Value(**spaces)}
    memory = RandomMemory(memory_size=cfg.rollouts, num_envs=env.num_envs, device="cpu")
    rounds = max(1, total // (env.num_envs * cfg.rollouts))
    how = {"timesteps": rounds * cfg.rollouts, "headless": True, "disable_progressbar": True}
    return SequentialTrainer(env=env, agents=kind(models=models, memory=memory, cfg=cfg, **spaces), cfg=how)


def solve(given: Namespace) -> None:
    """Its default settings, 8 environments."""
    again = {"autoreset_mode": AutoresetMode.SAME_STEP}  # it would learn from a step that only resets
    envs = gym.make_vec("CartPole-v1", 8, "sync", vector_kwargs=again)
    trains = trainer(Evaluated, envs, given.total or 200_000)
    agent = trains.agents

    def act(observation: np.ndarray) -> Any:
        with torch.no_grad():
            return agent.policy.act({"observations": torch.from_numpy(observation)}, role="policy")[0].numpy()

    agent.solving = Solving(act, given.seed)
    with suppress(Solved):
        trains.train()
    agent.solving.tell()


def steps(given: Namespace) -> None:
    """PPO with the numbers that all have."""
    envs = gym.make_vec(given.env_id, given.num_envs, "vector_entry_point")  # resets in steps of their own
    trains = trainer(PPO, envs, given.total, **NUMBERS)
    clock = Clock()
    trains.train()
    tell(seconds=clock.seconds, steps=trains.cfg.timesteps * given.num_envs)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    skrl.logger.setLevel(logging.WARNING)
    torch.set_num_threads(1)
    given = arguments()
    set_seed(given.seed)
    if given.what == "ppo":
        solve(given)
    else:
        steps(given)
