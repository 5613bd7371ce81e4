"""Classic control in NumPy against Gymnasium's own environments, step by step from the same states."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from pgce.envs import make, reset
from pgce.envs.classic_control import (
    AcrobotVectorEnv,
    CartPoleVectorEnv,
    MountainCarContinuousVectorEnv,
    MountainCarVectorEnv,
    PendulumVectorEnv,
)

VERSIONS = {
    "Acrobot-v1": AcrobotVectorEnv,
    "CartPole-v1": CartPoleVectorEnv,
    "MountainCar-v0": MountainCarVectorEnv,
    "MountainCarContinuous-v0": MountainCarContinuousVectorEnv,
    "Pendulum-v1": PendulumVectorEnv,
}
# Least and greatest state: wide enough for walls, goals, speed limits and full turns.
RANGES = {
    "Acrobot-v1": ([-np.pi, -np.pi, -12.5, -28], [np.pi, np.pi, 12.5, 28]),
    "CartPole-v1": ([-2.4, -3, -0.2095, -3], [2.4, 3, 0.2095, 3]),
    "MountainCar-v0": ([-1.2, -0.07], [0.5, 0.07]),
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.45, 0.07]),
    "Pendulum-v1": ([-10, -8], [10, 8]),
}


def pair(env_id, n, mode=AutoresetMode.NEXT_STEP, **kwargs):
    ours = make(env_id, n, autoreset_mode=mode, **kwargs)
    assert type(ours) is VERSIONS[env_id]
    theirs = gym.make_vec(env_id, n, "sync", vector_kwargs={"autoreset_mode": mode}, **kwargs)
    reset(ours, 0)
    reset(theirs, 0)
    return ours, theirs


def spread(env_id, envs, seed=0):
    """Put the environments anywhere."""
    low, high = (np.array(bound)[:, None] for bound in RANGES[env_id])
    envs._state[:] = np.random.default_rng(seed).uniform(low, high, (len(low), envs.num_envs))


def copy_state(ours, theirs, rows):
    for i in rows:
        theirs.envs[i].unwrapped.state = ours._state[:, i].copy()


def sample(envs, generator):
    space = envs.single_action_space
    if isinstance(space, gym.spaces.Discrete):
        return generator.integers(space.n, size=envs.num_envs)
    # Also beyond the bounds, which Gymnasium clips.
    return generator.uniform(1.5 * space.low, 1.5 * space.high, (envs.num_envs, 1)).astype(np.float32)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env_id", VERSIONS)
def test_every_step_is_gymnasium_s(env_id, mode):
    """In all modes, with ends of both kinds; what is drawn at a reset is copied from ours to theirs."""
    n = 100
    ours, theirs = pair(env_id, n, mode, max_episode_steps=5)
    spread(env_id, ours)
    copy_state(ours, theirs, range(n))
    generator = np.random.default_rng(1)
    over = np.zeros(n, np.bool_)
    ends = np.zeros(3, int)
    for _ in range(33):
        action = sample(ours, generator)
        mine, reference = ours.step(action), theirs.step(action)
        for name, a, b in zip(("reward", "terminated", "truncated"), mine[1:4], reference[1:4], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=name)
            assert a.dtype == b.dtype
        done = mine[2] | mine[3]
        begun = (
            over
            if mode is AutoresetMode.NEXT_STEP
            else done
            if mode is AutoresetMode.SAME_STEP
            else ~done & False
        )
        np.testing.assert_allclose(mine[0][~begun], reference[0][~begun], rtol=1e-5, atol=2e-6)
        assert mine[0].dtype == reference[0].dtype == np.float32
        assert mine[0].shape == reference[0].shape
        assert mine[4].keys() == reference[4].keys()
        if "final_obs" in mine[4]:
            assert (mine[4]["_final_obs"] == reference[4]["_final_obs"]).all()
            assert (mine[4]["_final_info"] == reference[4]["_final_info"]).all()
            assert mine[4]["final_info"] == reference[4]["final_info"] == {}
            for i in done.nonzero()[0]:
                np.testing.assert_allclose(
                    mine[4]["final_obs"][i], reference[4]["final_obs"][i], rtol=1e-5, atol=2e-6
                )
        if mode is AutoresetMode.NEXT_STEP:
            over = done
        elif mode is AutoresetMode.DISABLED and done.any():
            begun = done
            for envs in (ours, theirs):
                observation, info = envs.reset(options={"reset_mask": done})
                assert info == {}
                np.testing.assert_allclose(observation[~done], mine[0][~done], rtol=1e-5, atol=2e-6)
        if begun.any():  # into other places than the usual starts
            kept = ours._state.copy()
            spread(env_id, ours, int(generator.integers(1 << 30)))
            ours._state[:, ~begun] = kept[:, ~begun]
            copy_state(ours, theirs, begun.nonzero()[0])
        ends += [mine[2].sum(), mine[3].sum(), (mine[2] & mine[3]).sum()]
    assert ends[1] > 0
    assert (ends[[0, 2]] > 0).all() or env_id == "Pendulum-v1"


@pytest.mark.parametrize("env_id", VERSIONS)
def test_a_whole_trajectory_is_gymnasium_s(env_id):
    """From the usual starts, with nothing copied on the way: rounding must not grow, nor a bias hide."""
    ours, theirs = pair(env_id, 8)
    copy_state(ours, theirs, range(8))
    generator = np.random.default_rng(2)
    for t in range(100):
        action = sample(ours, generator)
        mine, reference = ours.step(action), theirs.step(action)
        assert (mine[2] == reference[2]).all()
        if mine[2].any():  # begins anew, elsewhere; CartPole falls
            assert t > 7
            break
        np.testing.assert_allclose(mine[0], reference[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(mine[1], reference[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Pendulum-v1", {"g": 9.81}),
        ("MountainCar-v0", {"goal_velocity": 0.06}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.06}),
    ],
)
def test_arguments_mean_what_they_mean_to_gymnasium(env_id, kwargs):
    (ours, theirs), plain = pair(env_id, 400, **kwargs), make(env_id, 400)
    reset(plain, 0)
    for envs in (ours, plain):
        spread(env_id, envs)
    copy_state(ours, theirs, range(400))
    action = sample(ours, np.random.default_rng(0))
    mine, reference, other = ours.step(action), theirs.step(action), plain.step(action)
    np.testing.assert_allclose(mine[0], reference[0], rtol=1e-5, atol=2e-6)
    assert (mine[2] == reference[2]).all()
    assert (mine[0] != other[0]).any() or (mine[2] != other[2]).any()


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_a_car_in_the_wall_stands_still(env_id):
    ours, theirs = pair(env_id, 2)
    ours._state[:] = np.array([[-1.19, -1.2], [-0.07, 0.0]])
    copy_state(ours, theirs, range(2))
    for _ in range(3):
        action = np.zeros(2, int) if env_id == "MountainCar-v0" else np.full((2, 1), -1, np.float32)
        mine, reference = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(mine[0], reference[0], rtol=1e-6)
    assert ours._state[0].max() < -1.19


def test_angles_that_turn_several_times_in_a_step_come_back_as_gymnasium_s_do():
    ours, theirs = pair("Acrobot-v1", 200)
    ours._state[:] = np.random.default_rng(0).uniform(-1, 1, (4, 200)) * [[3.1], [3.1], [40], [60]]
    copy_state(ours, theirs, range(200))
    ours.step(np.ones(200, int))
    theirs.step(np.ones(200, int))
    states = np.array([env.unwrapped.state for env in theirs.envs]).T
    np.testing.assert_allclose(ours._state, states, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("env_id", VERSIONS)
def test_the_starts_are_gymnasium_s(env_id):
    """Mean and spread of each number of the first observation, of 4000 against 4000."""
    ours, theirs = make(env_id, 4000), gym.make(env_id)
    mine, _ = reset(ours, 0)
    reference = np.array([theirs.reset(seed=seed)[0] for seed in range(2000)])
    assert mine.dtype == reference.dtype
    error = mine.std(0) / np.sqrt(2000) + 1e-7
    assert (abs(mine.mean(0) - reference.mean(0)) < 6 * error).all()
    np.testing.assert_allclose(mine.std(0), reference.std(0), rtol=0.1)
    np.testing.assert_allclose(np.ptp(mine, 0), np.ptp(reference, 0), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("env_id", "options", "column", "low", "high"),
    [
        ("Acrobot-v1", {"low": 0.5, "high": 1.5}, 4, 0.5, 1.5),
        ("MountainCar-v0", {"low": 0.1, "high": 0.2}, 0, 0.1, 0.2),
        ("MountainCarContinuous-v0", {"low": 0.1}, 0, None, None),
        ("MountainCarContinuous-v0", {"low": -0.9, "high": -0.8}, 0, -0.9, -0.8),
        ("Pendulum-v1", {"x_init": 0.1, "y_init": 5}, 2, -5, 5),
    ],
)
def test_options_bound_the_starts_of_one_reset(env_id, options, column, low, high):
    n = 500
    ours = make(env_id, n, autoreset_mode="SameStep", max_episode_steps=1)
    if low is None:
        with pytest.raises(ValueError, match=r"low is at most high: they are 0\.1 and -0\.4"):
            ours.reset(seed=0, options=options)
        return
    first = ours.reset(seed=0, options=options)[0][:, column]
    width = (high - low) / 50
    assert low <= first.min() < low + width
    assert high - width < first.max() <= high
    # As in Gymnasium, the next episodes begin as usual.
    following = ours.step(np.zeros((n, *ours.single_action_space.shape), int))[0][:, column]
    assert max(abs(following.min() - low), abs(following.max() - high)) > width


@pytest.mark.parametrize("value", ["a lot", None, np.nan, np.inf])
def test_options_that_are_no_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"low is a finite number: it is "):
        make("Acrobot-v1", 2).reset(options={"low": value})
