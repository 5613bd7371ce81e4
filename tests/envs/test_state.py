"""States of environments that are saved, restored, and tried."""

from __future__ import annotations

from collections import deque
from enum import Enum, Flag, IntEnum
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode

from pgce.checkpoint import load_checkpoint, save_checkpoint
from pgce.envs import make, state
from pgce.envs.guard import GuardedSyncVectorEnv
from pgce.envs.state import exactness, get_state, set_state

START = np.array([3.0, 4.0], np.float32)
TABLE = np.arange(6, dtype=np.float32).reshape(3, 2)


class Place(NamedTuple):
    x: int
    y: int


class Walk(gym.Env):
    """Holds what real ones do: constants that it starts from, views, tuples by which it looks things up."""

    observation_space, action_space = Box(-1e6, 1e6, (2,)), Discrete(2)

    def __init__(self, limit=100):
        self.limit = limit
        self.origin = np.zeros(2, np.float32)
        self.memory = np.zeros(4, np.float32)
        self.half = self.memory[:2]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.at, self.since = 0, START, self.origin
        self.goal, self.hole = TABLE[1], TABLE[2]
        self.board = self.seen = np.zeros(2, np.float32)
        self.memory[:] = 0
        self.place, self.visited, self.last = Place(0, 0), [(0, 0)], deque([(0, 0)], maxlen=3)
        return self.at + self.half, {}

    def step(self, action):
        self.time += 1
        self.at, self.since = self.at + action, self.since + 1
        self.memory += 1
        self.goal, self.hole = self.hole, self.goal + 1
        self.board += self.seen + 1
        x, y = self.np_random.integers(6, size=2).tolist()
        known = (x, y) in self.visited
        if not known:
            self.visited.append((x, y))
        self.place = Place(self.place.y, x)
        self.last.append((x, y))
        reward = known + self.place.x + ((0, 0) in self.last) + self.since[0] + self.goal[0] + self.seen[0]
        return self.at + self.half, float(reward), self.time >= self.limit, False, {}


def walks(limit=100):
    return GuardedSyncVectorEnv([lambda: Walk(limit)] * 2, "Walk")


@pytest.mark.parametrize("steps", [3, 30])
def test_an_environment_goes_on_from_a_file_as_it_would_have(steps, tmp_path):
    envs, others = walks(40), walks(40)
    envs.reset(seed=1)
    others.reset(seed=2)
    actions = np.random.default_rng(0).integers(0, 2, (100, 2))
    for action in actions[:steps]:
        envs.step(action)
    save_checkpoint(tmp_path, steps, {"envs": get_state(envs)})
    set_state(others, load_checkpoint(tmp_path).state["envs"])
    for action in actions[steps:]:  # across a reset
        assert repr(envs.step(action)) == repr(others.step(action))


def test_a_trial_leaves_other_environments_as_they_are():
    assert exactness(walks) == "exact"
    assert START.tolist() == [3, 4]
    assert TABLE.ravel().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_time_that_episodes_take_is_none_of_their_state(mode):
    def make():
        walks = [lambda: gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(Walk(), 3))] * 2
        return GuardedSyncVectorEnv(walks, "Walk", autoreset_mode=mode)

    assert exactness(make) == "exact"


def test_a_trial_of_slow_environments_is_a_short_one(monkeypatch):
    monkeypatch.setattr(state, "_PATIENCE", 0.0)
    steps = []

    def make():
        walks = GuardedSyncVectorEnv([Walk] * 2, "Walk")
        step = walks.step
        walks.step = lambda action: steps.append(0) or step(action)
        return walks

    assert exactness(make) == "exact"
    assert len(steps) == 3, "one before, and one of each after"


class Strict(Walk):
    """Raises where an action is not the one that it allows."""

    def step(self, action):
        assert action == self.time % 2, "not allowed"
        return super().step(action)


def test_an_environment_that_fails_a_trial_is_not_exact():
    assert exactness(lambda: GuardedSyncVectorEnv([Strict] * 2, "Strict")) == "reseeded"


@pytest.mark.parametrize("where", ["make", "reset"])
def test_an_environment_that_cannot_be_had_twice_is_not_exact(where):
    made = []

    class Single(Walk):
        def __init__(self):
            super().__init__()
            made.append(self)
            self.fails = len(made) > 1
            if self.fails and where == "make":
                raise OSError("the port is in use")

        def reset(self, **kwargs):
            if self.fails:
                raise OSError("the port is in use")
            return super().reset(**kwargs)

    assert exactness(lambda: GuardedSyncVectorEnv([Single], "Single")) == "reseeded"


class Phase(Enum):
    DAY, NIGHT = (6, 18), (18, 6)


class Gear(IntEnum):
    FIRST, SECOND = 1, 2


class Found(Flag):
    NOTHING, KEY, LAMP = 0, 1, 2


class Seasons(gym.Env):
    """What it is in changes after many episodes only, which no trial sees."""

    observation_space, action_space = Box(-1e6, 1e6, (1,)), Discrete(2)

    def __init__(self):
        self.episodes, self.phase, self.gears, self.found = 0, Phase.DAY, [Gear.FIRST] * 2, Found.NOTHING

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        if self.episodes == 100:
            self.phase, self.gears[1], self.found = Phase.NIGHT, Gear.SECOND, Found.KEY | Found.LAMP
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = sum(self.gears) + 10 * (self.phase is Phase.NIGHT) + 100 * (Found.LAMP in self.found)
        return np.zeros(1, np.float32), float(reward), True, False, {}


def test_members_of_an_enum_are_saved(tmp_path):
    def seasons():
        return GuardedSyncVectorEnv([Seasons] * 2, "Seasons")

    assert exactness(seasons) == "exact"
    envs, others = seasons(), seasons()
    envs.reset(seed=1)
    others.reset(seed=2)
    for _ in range(200):
        envs.step([0, 0])
    save_checkpoint(tmp_path, 1, {"envs": get_state(envs)})
    set_state(others, load_checkpoint(tmp_path).state["envs"])
    assert envs.step([0, 0])[1].tolist() == others.step([0, 0])[1].tolist() == [113, 113]
    assert others.envs[0].gears == [Gear.FIRST, Gear.SECOND]
    assert isinstance(others.envs[0].gears[1], Gear)
    others.envs[0].phase = None
    with pytest.raises(ValueError, match=r"place of another: .*phase is NoneT"):
        set_state(others, get_state(envs))


@pytest.mark.parametrize("kinds", [("sync", "auto"), ("auto", "sync")])
def test_the_state_of_environments_that_are_stepped_otherwise_is_refused(kinds):
    """With a ValueError, by which a run that goes on in them begins new episodes."""
    one, other = (make("CartPole-v1", 2, vectorization=kind) for kind in kinds)
    one.reset(seed=1)
    other.reset(seed=1)
    with pytest.raises(ValueError, match="the state is of another environment"):
        set_state(other, get_state(one))


class Drawn(Walk):
    """Saves itself, but not what its resets draw, which a trial shorter than its episodes does not see."""

    def get_state(self):
        return {"time": self.time}

    def set_state(self, state):
        self.time = state["time"]

    def reset(self, *, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.time = 0
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(2, self.time, np.float32), 0.0, False, False, {}


def test_what_only_a_reset_draws_is_tried_too():
    assert exactness(lambda: GuardedSyncVectorEnv([Drawn] * 2, "Drawn")) == "reseeded"


def test_what_wrappers_normalise_by_is_saved():
    def make():
        normal = gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward
        return GuardedSyncVectorEnv([lambda: normal[1](normal[0](Walk()))] * 2, "Walk")

    assert exactness(make) == "exact"
