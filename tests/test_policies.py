"""Every space, memory and mask under agents that learn, where nothing else would do."""

from __future__ import annotations

import math
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import pgce
from pgce.agents import A2C, BC, PPO, RLOO
from pgce.policies import actor_critic
from pgce.spaces import actions

QUICK = {"quiet": True, "track": False, "device": "cpu", "eval_freq": 1_000, "eval_episodes": 40}
FEWER = {"update_epochs": 4, "num_minibatches": 4, "norm_obs": False, "norm_reward": False}
LEARNERS = {
    PPO: {"num_steps": 32, "learning_rate": 3e-3, "log_std_init": -1.0, **FEWER},
    A2C: {"num_steps": 16, "learning_rate": 5e-3, "log_std_init": -1.0},
    RLOO: {"num_steps": 32, "learning_rate": 1e-2, "log_std_init": -1.0},
}
SLOWER = {"learning_rate": 1e-3, "update_epochs": 1, "ent_coef": 0.02}  # of PPO on images
# Memory, and whether actions are masked: the others are slow tests.
QUICKER = (PPO, "gru", True), (A2C, "gru", False), (RLOO, "lstm", False), (PPO, "lstm", False)
PIXELS = Box(0, 255, (8, 8, 1), np.uint8)


def picture(bit):
    image = np.full((8, 8, 1), 40, np.uint8)
    image[:, 4 * bit : 4 * bit + 4] = 200
    return image


# Space, and what of it is shown for the two bits a and b.
OBSERVATIONS = {
    "box": (Box(-1, 1, (2, 1)), lambda a, b: np.array([[2 * a - 1], [2 * b - 1]], np.float32)),
    "integers": (Box(0, 9, (2,), np.int32), lambda a, b: np.array([a, 2 * b], np.int32)),
    "discrete": (Discrete(4, start=3), lambda a, b: 3 + 2 * a + b),
    "multi-discrete": (MultiDiscrete([2, 3]), lambda a, b: np.array([a, 2 * b])),
    "bits": (MultiBinary(3), lambda a, b: np.array([1, a, b], np.int8)),
    "dict": (
        Dict(a=Discrete(2), b=Box(-1, 1, ())),
        lambda a, b: {"a": a, "b": np.array(2 * b - 1, np.float32)},
    ),
    "tuple": (Tuple((MultiBinary(1), Discrete(2))), lambda a, b: (np.array([a], np.int8), b)),
    "nested": (
        Dict(x=Tuple((Discrete(2), Dict(y=MultiDiscrete([2, 2]))))),
        lambda a, b: {"x": (a, {"y": np.array([b, 0])})},
    ),
    "few pixels": (
        Dict(eye=Box(0, 255, (5, 5, 1), np.uint8), b=Discrete(2)),
        lambda a, b: {"eye": picture(a)[:5, 2:7], "b": b},
    ),
    "image": (Box(0, 255, (8, 8, 2), np.uint8), lambda a, b: np.concatenate((picture(a), picture(b)), 2)),
    "image and vector": (Dict(eye=PIXELS, b=Discrete(2)), lambda a, b: {"eye": picture(a), "b": b}),
}
# Space, and what an action earns, at most 1, where the two bits are a and b.
ACTIONS = {
    "discrete": (Discrete(4, start=-1), lambda x, a, b: float(x == 2 * a + b - 1)),
    "multi-discrete": (MultiDiscrete([2, 3]), lambda x, a, b: (int(x[0] == a) + int(x[1] == 2 * b)) / 2),
    "bits": (MultiBinary(2), lambda x, a, b: (int(x[0] == a) + int(x[1] == b)) / 2),
    "scalar": (Box(-2, 3, ()), lambda x, a, b: 1 - abs(float(x) - (a + b / 2))),
    "wide": (Box(-3000, 2000, ()), lambda x, a, b: 1 - abs(float(x) / 1000 - (a + b / 2))),
    "box": (Box(-2, 3, (2,)), lambda x, a, b: 1 - (abs(x[0] - a) + abs(x[1] - b)) / 2),
    "integers": (Box(0, 3, (), np.int64), lambda x, a, b: float(x == 2 * a + b)),
    "dict": (
        Dict(a=Discrete(2), b=Box(-1, 2)),
        lambda x, a, b: ((x["a"] == a) + 1 - abs(float(x["b"][0]) - b)) / 2,
    ),
    "tuple": (Tuple((MultiBinary(1), Discrete(2))), lambda x, a, b: (int(x[0][0] == a) + int(x[1] == b)) / 2),
}


class Match(gym.Env):
    """Two bits are shown, and a step later asked for. With `delay` they are shown only at first."""

    def __init__(self, observation="box", action="discrete", delay=0, masked=False):
        self.observation_space, self.show = OBSERVATIONS[observation]
        self.action_space, self.earned = ACTIONS[action]
        self.delay, self.masked = delay, masked

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bits = [int(bit) for bit in self.np_random.integers(2, size=2)]
        self.time = 0
        return self._see()

    def _see(self):
        shown = self.show(*self.bits) if self.time == 0 else self.show(0, 0)
        if not self.masked:
            return shown, {}
        # One wrong action is forbidden; and at the question half of what was allowed before.
        self.allowed = np.ones(4, bool)
        self.allowed[(2 * self.bits[0] + self.bits[1] + 1 + self.np_random.integers(3)) % 4] = False
        return shown, {"action_mask": self.allowed}

    def step(self, action):
        if self.masked and not self.allowed[action + 1]:
            raise RuntimeError(f"action {action} is forbidden")
        over = self.time == self.delay
        reward = self.earned(action, *self.bits) if over else 0.0
        self.time += 1
        return *self._see()[:1], float(reward), over, False, self._info()

    def _info(self):
        return {"action_mask": self.allowed} if self.masked else {}


@contextmanager
def match(*options, threshold=0.9, **more):
    """The environment, in which training stops as soon as actions that are drawn earn the threshold."""
    gym.register("Match-v0", entry_point=lambda: Match(*options, **more), reward_threshold=threshold)
    try:
        yield
    finally:
        del gym.registry["Match-v0"]


def trained(kind, steps, folder, **settings):
    agent = kind(env_id="Match-v0", runs_dir=str(folder), **{**QUICK, **LEARNERS[kind], **settings})
    return pgce.load(agent.train(total_timesteps=steps).path)


def each_with(spaces):
    """Every space under PPO, and one under the others; all of them by the slow tests."""
    return [
        pytest.param(kind, space, marks=[pytest.mark.slow] * (kind is not PPO and space != "box"))
        for space in spaces
        for kind in LEARNERS
    ]


@pytest.mark.parametrize(("kind", "observation"), each_with(OBSERVATIONS))
def test_every_observation_space(kind, observation, tmp_path):
    slower = SLOWER if kind is PPO else {"learning_rate": 1e-3}
    with match(observation):
        agent = trained(kind, 8_000, tmp_path, **(slower if "image" in observation else {}))
        assert agent.evaluate(40).mean() > 0.95, "by chance 0.25"


@pytest.mark.parametrize(("kind", "action"), each_with(ACTIONS))
def test_every_action_space(kind, action, tmp_path):
    with match("box", action, threshold=0.75):
        agent = trained(kind, 10_000, tmp_path)
        assert agent.evaluate(40).mean() > 0.85, "by chance 0.5 or less"


@pytest.mark.parametrize(
    ("kind", "memory", "masked"),
    [
        pytest.param(kind, memory, masked, marks=[pytest.mark.slow] * ((kind, memory, masked) not in QUICKER))
        for kind in LEARNERS
        for memory in ("gru", "lstm")
        for masked in (False, True)
    ],
)
def test_memory_and_mask(kind, memory, masked, tmp_path):
    """Of four answers, one is right and another forbidden; what was asked is seen two steps before."""
    with match("box", "discrete", delay=2, masked=masked):
        fewer = {"update_epochs": 2} if kind is PPO else {}
        agent = trained(kind, 15_000, tmp_path, memory=memory, memory_size=32, **fewer)
        assert agent.evaluate(40).mean() > 0.95, "without memory a quarter, or a third"
        env = Match(delay=2, masked=masked)
        for seed in range(8):  # by hand, a step at a time
            (observation, info), over = env.reset(seed=seed), False
            agent.reset()
            while not over:
                action = agent.act(observation, action_mask=info.get("action_mask"))
                observation, reward, over, _, info = env.step(action)
            assert reward == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"shared_torso": True},
        {"shared_torso": True, "memory": "gru", "norm_obs": True},
        {"norm_obs": True},
        {"observation": "image", "network": "impala", "learning_rate": 5e-4, "ent_coef": 0.05},
        {"observation": "image and vector", "norm_obs": True, "shared_torso": True, **SLOWER},
        pytest.param({"action": "box", "continuous": "tanh", "log_std_init": -1.0}, marks=pytest.mark.slow),
        pytest.param({"action": "box", "continuous": "beta"}, marks=pytest.mark.slow),
        {"action": "box", "std": "state"},
        {"action": "box", "std": "state", "continuous": "tanh"},
        {"action": "box", "std": "fixed", "log_std_init": -1.0},
        {"action": "dict", "std": "state", "log_std_init": -0.5},
        {"action": "dict", "continuous": "beta"},
    ],
    ids=str,
)
def test_every_network(settings, tmp_path):
    settings = dict(settings)
    observation, action = settings.pop("observation", "box"), settings.pop("action", "discrete")
    with match(observation, action, threshold=0.9 if action == "discrete" else 0.8):
        agent = trained(PPO, 8_000, tmp_path, **settings)
        assert agent.evaluate(40).mean() > (0.95 if action == "discrete" else 0.8)
    torso = agent.model.torso
    assert (torso is not None) == bool(settings.keys() & {"shared_torso", "memory", "norm_obs"})
    if settings.get("std") == "fixed":
        assert agent.model.actor.network.log_scale.tolist() == [-1.0, -1.0]


def test_gaussian_actions_begin_in_the_middle_and_in_the_unit_of_their_bounds():
    low, high = np.array([-1.0, 0.0, -2.0, 5.0, 3.0]), np.array([1.0, 1000.0, np.inf, 3.4028235e38, 3.0])
    space = Box(low.astype(np.float32), high.astype(np.float32))
    for std in ("learned", "state"):
        action = actions(Tuple((Discrete(2), space)), std=std)
        policy = action.wrap(torch.nn.Linear(1, action.size), -1.0)
        torch.nn.init.zeros_(policy.network.network.weight), torch.nn.init.zeros_(policy.network.network.bias)
        mean, log_scale = policy(torch.ones(4, 1))[:, 2:].unflatten(-1, (5, 2)).unbind(-1)
        assert mean[0].tolist() == [0, 500, 0, 0, 0]
        assert log_scale[0].exp().tolist() == pytest.approx(
            [math.exp(-1) * unit for unit in (1, 500, 1, 1, 1)]
        )


def test_sigma_from_the_network_begins_where_it_is_told_and_is_limited():
    envs = pgce.envs.make("Pendulum-v1", 2)
    policy = actor_critic(PPO(env_id="Pendulum-v1", std="state", log_std_init=-1.0), envs).policy
    logits = policy(torch.randn(100, 3))
    assert logits.shape == (100, 1, 2)
    assert (logits[..., 1] + 1 - math.log(2)).abs().max() < 0.1, "torques lie in ±2"
    assert logits[..., 1].std() > 0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1e4)
    log_scale = policy(torch.randn(100, 3))[..., 1]
    limits = torch.tensor([-5.0, 2.0]) + math.log(2)
    assert torch.equal(torch.stack((log_scale.min(), log_scale.max())), limits)
    assert policy(torch.randn(100, 3))[..., 0].abs().max() > 100, "the mean is not"


def test_actor_and_critic_have_memories_of_their_own_unless_they_share():
    envs = pgce.envs.make("CartPole-v1", 2)
    sizes = [
        actor_critic(agent, envs).torso.state_size
        for agent in (
            PPO(memory="gru", memory_size=8),
            PPO(memory="lstm", memory_size=8),
            PPO(memory="lstm", memory_size=8, shared_torso=True),
            RLOO(memory="gru", memory_size=8),
        )
    ]
    assert sizes == [16, 32, 16, 8]
    model = actor_critic(PPO(memory="gru"), envs)
    sequence = {
        "observation": torch.randn(3, 5, 4),
        "first": torch.zeros(3, 5, dtype=torch.bool),
        "state": torch.randn(3, 5, model.torso.state_size),
    }
    model(sequence)["value"].sum().backward()
    cores = [
        sum(p.grad.abs().sum() for p in core.parameters() if p.grad is not None)
        for core in model.torso.networks
    ]
    assert cores[0] == 0
    assert cores[1] > 0


@pytest.mark.parametrize(
    ("env_id", "settings", "message"),
    [
        ("CartPole-v1", {"network": "impala"}, "reads images"),
        ("CartPole-v1", {"network": "transformer"}, "reads tokens"),
        ("CartPole-v1", {"memory": "rnn"}, "memory is one of gru, lstm or None: it is 'rnn'"),
        ("CartPole-v1", {"memory_size": 0}, "memory_size is at least 1: it is 0"),
        ("Pendulum-v1", {"std": "wide"}, "std is one of learned, state, fixed: it is 'wide'"),
    ],
)
def test_refuses(env_id, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        PPO(env_id=env_id, runs_dir=str(tmp_path / "runs"), **QUICK, **settings).train()
    assert not (tmp_path / "runs").exists()


def test_a_memory_needs_to_see_what_it_remembers(tmp_path):
    """An expert that acts for a pupil with a memory has none, or another."""
    how = {"runs_dir": str(tmp_path), **QUICK, "num_envs": 2, "num_steps": 8}
    for expert in (PPO(**how), RLOO(memory="gru", **how)):
        path = expert.train("CartPole-v1", total_timesteps=16).path
        with pytest.raises(ValueError, match="another policy acts here"):
            BC(expert=str(path), memory="gru", **how).train("CartPole-v1", total_timesteps=16)
