"""Tianshou's REINFORCE, with the numbers of its own test.

python tianshou_.py reinforce SEED
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from common import Clock, work
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, Reinforce
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from tianshou.utils.torch_utils import policy_within_training_step, torch_train_mode

_, SEED = work()
torch.set_num_threads(1)
torch.manual_seed(SEED)
np.random.seed(SEED)

envs = DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(8)])
envs.seed(SEED)
env = gym.make("CartPole-v1")
spaces = {"action_space": env.action_space, "observation_space": env.observation_space}
net = Net(
    state_shape=env.observation_space.shape,
    action_shape=env.action_space.n,
    hidden_sizes=[64, 64],
    softmax=True,
)
for layer in net.modules():
    if isinstance(layer, torch.nn.Linear):
        torch.nn.init.orthogonal_(layer.weight, 2**0.5)
        torch.nn.init.zeros_(layer.bias)
policy = DiscreteActorPolicy(
    actor=net, dist_fn=torch.distributions.Categorical, deterministic_eval=False, **spaces
)
algorithm = Reinforce(
    policy=policy, optim=AdamOptimizerFactory(lr=1e-3), gamma=0.95, return_standardization=True
)
collector = Collector(algorithm, envs, VectorReplayBuffer(20_000, 8))
collector.reset()


def act(observation: np.ndarray) -> np.ndarray:
    """Sampled actions."""
    with torch.no_grad():
        return torch.distributions.Categorical(net(observation)[0]).sample().numpy()


clock, steps = Clock(act, every=2_000), 0
while steps < 200_000 and not clock.solved(steps):
    with policy_within_training_step(policy):
        steps += collector.collect(n_episode=8).n_collected_steps
        with torch_train_mode(algorithm):
            algorithm.update(collector.buffer, batch_size=64, repeat=2)
    collector.reset_buffer(keep_statistics=True)
clock.tell()
