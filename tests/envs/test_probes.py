"""The probes' rules, each written down once more; the vector API is tested in test_vector_base.py."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from pgce.envs import make, reset
from pgce.envs.probes import DiscountProbe, MaskProbe, MaskProbeVectorEnv, MemoryProbe, MemoryProbeVectorEnv

ZEROS = np.zeros(200, int)


def episodes(env_id, act, n=400, seed=0, **kwargs):
    """Returns (n,) of one episode in each environment, all of one length; act(observation, info)."""
    envs = make(env_id, n, autoreset_mode="Disabled", **kwargs)
    observation, info = reset(envs, seed)
    total, done = np.zeros(n), np.zeros(n, np.bool_)
    while not done.any():
        observation, reward, terminated, truncated, info = envs.step(act(observation, info))
        total += reward
        done = terminated | truncated
    assert done.all()
    return total


def anything(observation, info):
    return np.random.default_rng(0).integers(2, size=len(observation))


@pytest.mark.parametrize("action", [0, 1])
def test_the_value_probe_pays_what_it_shows(action):
    envs = make("pgce/ProbeValue-v0", 200, autoreset_mode="SameStep")
    observation, _ = reset(envs, 0)
    shown = set()
    for _ in range(5):
        following, reward, terminated, truncated, info = envs.step(ZEROS + action)
        assert (reward == observation[:, 0]).all()
        assert (info["final_obs"] == observation).all()
        assert terminated.all()
        assert not truncated.any()
        shown |= set(reward.tolist())
        observation = following
    assert shown == {-1.0, 1.0}


@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_discount_probe_pays_at_the_end(length):
    env = DiscountProbe(length=length)
    observation, _ = env.reset(seed=0)
    for t in range(length):
        assert observation.tolist() == [float(i == t) for i in range(length)]
        observation, reward, terminated, truncated, _ = env.step(t % 2)
        assert (reward, terminated, truncated) == (float(t == length - 1), t == length - 1, False)
    assert not observation.any()


def test_the_truncation_probe_is_cut_but_never_ends():
    envs = make("pgce/ProbeTruncation-v0", 3, autoreset_mode="SameStep")
    reset(envs, 0)
    for t in range(6):
        observation, reward, terminated, truncated, _ = envs.step(ZEROS[:3])
        assert observation.all()
        assert reward.all()
        assert not terminated.any()
        assert (truncated == t % 2).all()
    assert gym.spec("pgce/ProbeTruncation-v0").max_episode_steps == 2


def test_the_action_probe_pays_for_the_sign():
    assert (episodes("pgce/ProbeAction-v0", lambda obs, info: (obs[:, 0] > 0).astype(int)) == 1).all()
    assert (episodes("pgce/ProbeAction-v0", lambda obs, info: (obs[:, 0] < 0).astype(int)) == -1).all()
    for blind in (0, 1):
        total = episodes("pgce/ProbeAction-v0", lambda obs, info, blind=blind: np.full(len(obs), blind))
        assert abs(total.mean()) < 5 / np.sqrt(400)


@pytest.mark.parametrize("delay", [1, 2, 7])
def test_the_memory_probe_pays_who_remembers(delay):
    class Remembers:
        def __call__(self, observation, info):
            if observation[:, 0].any():
                self.cue = observation[:, 0]
                assert set(self.cue) == {-1.0, 1.0}
            self.asked = observation[:, 1]
            return (self.cue > 0).astype(int)

    policy = Remembers()
    assert (episodes("pgce/ProbeMemory-v0", policy, delay=delay) == 1).all()
    assert policy.asked.all()
    assert abs(episodes("pgce/ProbeMemory-v0", anything, delay=delay).mean()) < 5 / np.sqrt(400)


def test_the_memory_probe_shows_the_cue_once_and_asks_once():
    env = MemoryProbe(delay=3)
    observation, _ = env.reset(seed=1)
    assert abs(observation[0]) == 1
    assert observation[1] == 0
    steps = [env.step(0) for _ in range(4)]
    assert [step[0].tolist() for step in steps] == [[0, 0], [0, 0], [0, 1], [0, 0]]
    assert [step[1] for step in steps[:3]] == [0, 0, 0]
    assert [step[2] for step in steps] == [False, False, False, True]
    assert steps[3][1] == -observation[0]


@pytest.mark.parametrize("actions", [2, 4, 9])
def test_the_mask_probe_pays_who_obeys(actions):
    kwargs = {"actions": actions, "length": 5}
    assert (episodes("pgce/ProbeMask-v0", lambda obs, i: i["action_mask"].argmax(1), **kwargs) == 5).all()
    assert (episodes("pgce/ProbeMask-v0", lambda obs, i: i["action_mask"].argmin(1), **kwargs) == -5).all()
    for blind in (0, actions - 1):
        total = episodes("pgce/ProbeMask-v0", lambda obs, i, blind=blind: np.full(len(obs), blind), **kwargs)
        assert abs(total.mean()) < 5 * np.sqrt(5 / 400)


def test_masks_allow_something_but_not_all():
    envs = MaskProbeVectorEnv(200, "SameStep", actions=3, length=2)
    _, info = envs.reset(seed=0)
    seen = set()
    for _ in range(20):
        mask = info["action_mask"]
        assert mask.dtype == np.int8
        assert set(mask.sum(1)) <= {1, 2}
        seen |= {tuple(row) for row in mask.tolist()}
        *_, terminated, _, info = envs.step(ZEROS)
        if terminated.any():
            final = info["final_info"]["action_mask"]
            assert (final != info["action_mask"]).any()
    assert len(seen) == 6
    env = MaskProbe()
    _, info = env.reset(seed=0)
    assert list(info) == ["action_mask"]
    assert env.action_space.sample(info["action_mask"]) in np.flatnonzero(info["action_mask"])


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("pgce/ProbeDiscount-v0", {"length": 0}, "length is a whole number, at least 1: it is 0"),
        ("pgce/ProbeMemory-v0", {"delay": 1.5}, r"delay is a whole number, at least 1: it is 1\.5"),
        ("pgce/ProbeMemory-v0", {"delay": True}, "delay is a whole number, at least 1: it is True"),
        ("pgce/ProbeMask-v0", {"actions": 1}, "actions is a whole number, at least 2: it is 1"),
        ("pgce/ProbeMask-v0", {"length": "4"}, "length is a whole number, at least 1: it is '4'"),
    ],
)
def test_what_makes_no_probe_is_refused(env_id, kwargs, message):
    for vectorization in ("vector_entry_point", "sync"):
        with pytest.raises(ValueError, match=message):
            make(env_id, 2, vectorization=vectorization, **kwargs)


def test_cues_are_balanced():
    envs = MemoryProbeVectorEnv(10_000)
    assert abs(envs.reset(seed=0)[0][:, 0].mean()) < 0.05
