"""TorchRL, which has the parts of PPO but no loop: python benchmarks/peers/by_torchrl.py steps."""

from __future__ import annotations

import warnings

import gymnasium as gym
import torch
from common import SAME, Clock, arguments, tell
from gymnasium.vector import AutoresetMode
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE


def main() -> None:
    """PPO with the numbers that all have."""
    given = arguments()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    rows = given.num_envs * SAME.steps
    again = {"autoreset_mode": AutoresetMode.SAME_STEP}  # TorchRL has no other
    envs = gym.make_vec(given.env_id, given.num_envs, "sync", vector_kwargs=again)
    env = GymWrapper(envs, categorical_action_encoding=True)
    sizes = {"in_features": 4, "num_cells": [SAME.hidden, SAME.hidden], "activation_class": nn.Tanh}
    actor = ProbabilisticActor(
        TensorDictModule(MLP(out_features=2, **sizes), ["observation"], ["logits"]),
        in_keys=["logits"], distribution_class=torch.distributions.Categorical, return_log_prob=True,
    )  # fmt: skip
    critic = ValueOperator(MLP(out_features=1, **sizes), in_keys=["observation"])
    advantage = GAE(gamma=SAME.gamma, lmbda=SAME.gae_lambda, value_network=critic)
    loss = ClipPPOLoss(
        actor, critic, clip_epsilon=SAME.clip, entropy_bonus=False, critic_coeff=SAME.value,
        loss_critic_type="l2", normalize_advantage=True,
    )  # fmt: skip
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=SAME.rate)
    total = max(1, given.total // rows) * rows
    clock = Clock()
    collector = Collector(env, actor, frames_per_batch=rows, total_frames=total)
    for rollout in collector:
        with torch.no_grad():
            advantage(rollout)
        flat = rollout.reshape(-1)
        for _ in range(SAME.epochs):
            for picked in torch.randperm(rows).split(rows // SAME.minibatches):
                losses = loss(flat[picked])
                optimizer.zero_grad()
                (losses["loss_objective"] + losses["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(parameters, SAME.norm)
                optimizer.step()
    tell(seconds=clock.seconds, steps=total)
    collector.shutdown()


if __name__ == "__main__":
    main()
