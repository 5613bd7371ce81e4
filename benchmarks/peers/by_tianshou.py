"""Tianshou: python benchmarks/peers/by_tianshou.py reinforce --seed 1."""

from __future__ import annotations

import warnings
from argparse import Namespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from common import SAME, Clock, Solving, arguments, tell
from tianshou.algorithm import PPO, Reinforce
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from torch import nn


def environments(number: int, seed: int) -> Any:
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")] * number)
    envs.seed(seed)
    return envs


def orthogonal(*networks: nn.Module, gain: float) -> None:
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain)
                nn.init.zeros_(layer.bias)


def learn(algorithm: Any, envs: Any, size: int, total: int, **settings: Any) -> None:
    collector = Collector(algorithm, envs, VectorReplayBuffer(size, len(envs)))
    params = OnPolicyTrainerParams(
        training_collector=collector, max_epochs=1, epoch_num_steps=total, show_progress=False, verbose=False,
        **settings,
    )  # fmt: skip
    algorithm.run_training(params)


class Solved(Exception):
    """Ends training."""


def solve(given: Namespace) -> None:
    """The settings of Tianshou's own test of Reinforce on CartPole-v1."""
    envs = environments(8, given.seed)
    net = Net(state_shape=(4,), action_shape=2, hidden_sizes=[64, 64], softmax=True)
    policy = ProbabilisticActorPolicy(
        actor=net,
        dist_fn=torch.distributions.Categorical,
        action_space=gym.spaces.Discrete(2),
        action_scaling=False,
    )
    algorithm = Reinforce(
        policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.95, return_standardization=True
    )
    orthogonal(net, gain=np.sqrt(2))

    def act(observation: np.ndarray) -> Any:
        with torch.no_grad():
            return policy(Batch(obs=observation, info={})).act.numpy()

    solving, done = Solving(act, given.seed), [0]

    def look(epoch: int, steps: int) -> None:
        done[0] = steps
        if solving(steps):
            raise Solved

    try:
        learn(
            algorithm, envs, 20_000, given.total or 400_000, training_fn=look, update_step_num_repetitions=2,
            batch_size=64, collection_step_num_episodes=8, collection_step_num_env_steps=None,
        )  # fmt: skip
        solving(done[0], last=True)
    except Solved:
        pass
    solving.tell()


def steps(given: Namespace) -> None:
    """PPO with the numbers that all have."""
    rows = given.num_envs * SAME.steps
    torso = {"state_shape": (4,), "hidden_sizes": [SAME.hidden, SAME.hidden], "activation": nn.Tanh}
    actor = DiscreteActor(preprocess_net=Net(**torso), action_shape=2, softmax_output=False)
    critic = DiscreteCritic(preprocess_net=Net(**torso))
    policy = DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(2))
    algorithm = PPO(
        policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=SAME.rate), gamma=SAME.gamma,
        gae_lambda=SAME.gae_lambda, eps_clip=SAME.clip, vf_coef=SAME.value, ent_coef=0.0,
        max_grad_norm=SAME.norm, max_batchsize=rows,
    )  # fmt: skip
    envs = environments(given.num_envs, given.seed)
    clock, total = Clock(), max(1, given.total // rows) * rows
    learn(
        algorithm, envs, rows, total, update_step_num_repetitions=SAME.epochs,
        batch_size=rows // SAME.minibatches, collection_step_num_env_steps=rows,
    )  # fmt: skip
    tell(seconds=clock.seconds, steps=total)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    given = arguments()
    np.random.seed(given.seed)  # noqa: NPY002 - what its collector draws from
    torch.manual_seed(given.seed)
    if given.what == "reinforce":
        solve(given)
    else:
        steps(given)
