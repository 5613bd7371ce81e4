"""The bandit's two forms against Gymnasium's rules, where tests/test_envs.py doesn't reach."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from pgce.envs import ClassificationBandit, VectorClassificationBandit, datasets, make, reset

# Row i begins with i, so an observation tells which example it is.
FEATURES = np.stack([np.arange(6), np.arange(6) ** 2], 1).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0, 2])


def vector(num_envs, mode=AutoresetMode.SAME_STEP):
    return VectorClassificationBandit(num_envs, mode, features=FEATURES, labels=LABELS)


@pytest.mark.parametrize("data", ["digits", "iris", "wine", "breast_cancer", "moons"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_data_set_passes_gymnasium_s_checker(data, split):
    check_env(ClassificationBandit(data=data, split=split), skip_render_check=True)


def test_the_label_of_the_example_shown_is_what_pays():
    env = ClassificationBandit(FEATURES, LABELS)
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        for action in range(3):
            final, reward, terminated, truncated, info = env.step(action)
            assert reward == (action == LABELS[int(observation[0])])
            assert (final == observation).all()
            assert (terminated, truncated, info) == (True, False, {})


@pytest.mark.parametrize("mode", AutoresetMode)
def test_vector_rewards_follow_the_observation_before_the_step(mode):
    envs = vector(50, mode)
    generator = np.random.default_rng(0)
    observation, info = envs.reset(seed=3)
    assert info == {}
    over = np.zeros(50, np.bool_)
    paid = 0.0
    for _ in range(20):
        action = generator.integers(3, size=50)
        shown = observation
        observation, reward, terminated, truncated, info = envs.step(action)
        assert reward.dtype == np.float64
        assert terminated.dtype == truncated.dtype == np.bool_
        assert observation in envs.observation_space
        assert (reward == np.where(over, 0.0, action == LABELS[shown[:, 0].astype(int)])).all()
        assert (terminated == ~over).all()
        assert not truncated.any()
        if mode is AutoresetMode.SAME_STEP:
            assert (info["final_obs"] == shown).all()
            assert info["_final_obs"].all()
            assert (observation != shown).any()
        else:
            assert info == {}
            assert ((observation == shown).all(1) | over).all()
        if mode is AutoresetMode.NEXT_STEP:
            over = terminated
        elif mode is AutoresetMode.DISABLED:
            observation, _ = envs.reset(options={"reset_mask": terminated})
        paid += reward.sum()
    assert paid > 0


@pytest.mark.parametrize("mode", AutoresetMode)
def test_info_has_the_keys_that_gymnasium_gives(mode):
    ours, theirs = (
        vector(2, mode),
        SyncVectorEnv([lambda: ClassificationBandit(FEATURES, LABELS)] * 2, autoreset_mode=mode),
    )
    for envs in (ours, theirs):
        envs.reset(seed=0)
    mine, reference = (envs.step(np.zeros(2, np.int64))[4] for envs in (ours, theirs))
    assert mine.keys() == reference.keys()
    if reference:
        assert mine["final_info"] == reference["final_info"] == {}
        assert (mine["_final_info"] == reference["_final_info"]).all()
        assert mine["final_obs"].shape == (2, 2)


def test_what_was_returned_does_not_change_later():
    envs = vector(8)
    observation, _ = envs.reset(seed=0)
    first = envs.step(np.zeros(8, np.int64))
    kept = [observation.copy(), first[0].copy(), first[4]["final_obs"].copy(), first[4]["_final_obs"].copy()]
    observation[:] = -1
    second = envs.step(np.zeros(8, np.int64))
    assert (second[4]["final_obs"] == kept[1]).all()
    assert (first[0] == kept[1]).all()
    assert (first[4]["final_obs"] == kept[2]).all()
    assert (first[4]["_final_obs"] == kept[3]).all()

    features = FEATURES.copy()
    env = ClassificationBandit(features, LABELS)
    features[:] = np.nan
    env.reset(seed=0)[0][:] = np.nan
    assert np.isfinite(env.step(0)[0]).all()


def test_only_the_environments_of_the_mask_are_reset():
    envs = vector(100, AutoresetMode.DISABLED)
    before, _ = envs.reset(seed=1)
    mask = np.arange(100) < 60
    after, _ = envs.reset(options={"reset_mask": mask})
    assert (after[~mask] == before[~mask]).all()
    assert (after[mask] != before[mask]).any()
    envs.step(np.zeros(100, np.int64))
    envs.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match=r"reset before its next step: \[60 61 [\s\S]* 99\] are not"):
        envs.step(np.zeros(100, np.int64))


@pytest.mark.parametrize(
    "mask",
    [np.array([0, 0, 1]), np.array([True]), np.zeros(3, np.bool_), np.ones((3, 1), np.bool_)],
    ids=["integers", "short", "nowhere", "column"],
)
def test_a_wrong_reset_mask_is_refused_and_changes_nothing(mask):
    envs = vector(3, AutoresetMode.DISABLED)
    before, _ = envs.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"a reset mask is boolean, of shape \(3,\), and True somewhere: it is"
    ):
        envs.reset(seed=1, options={"reset_mask": mask})
    assert (envs.step(np.zeros(3, np.int64))[0] == before).all()
    assert envs.np_random_seed == 0


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_full_reset_forgets_what_was_pending(mode):
    envs = vector(4, mode)
    envs.reset(seed=0)
    envs.step(np.zeros(4, np.int64))
    envs.reset(seed=0)
    assert envs.step(np.zeros(4, np.int64))[2].all()


def test_the_same_seed_gives_the_same_stream():
    def stream(seed):
        envs = vector(5)
        observations = [reset(envs, seed)[0]]
        observations += [envs.step(np.zeros(5, np.int64))[0] for _ in range(20)]
        return np.array(observations)[..., 0]

    assert (stream(0) == stream(0)).all()
    assert (stream(0) != stream(1)).any()
    columns = stream(0).T
    assert len(np.unique(columns, axis=0)) == 5


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((3, 1), np.int64), r"one action an environment: \(3, 1\) is not \(3,\)"),
        (np.zeros(2, np.int64), r"one action an environment: \(2,\) is not \(3,\)"),
        (0, r"one action an environment: \(\) is not \(3,\)"),
    ],
)
def test_actions_of_another_shape_are_refused(actions, message):
    envs = vector(3)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.step(actions)


@pytest.mark.parametrize("action", [3, -1, 7, 0.5])
def test_an_action_that_is_no_class_is_refused_by_both(action):
    env, envs = ClassificationBandit(FEATURES, LABELS), vector(1)
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=rf"actions are in Discrete\(3\): it is {action}"):
        env.step(action)
    with pytest.raises(ValueError, match=r"actions (are )?in Discrete\(3\)"):
        envs.step(np.array([action]))
    assert env.step(np.int64(0))[1:3] == env.step(np.array(0))[1:3]


def test_actions_that_are_ignored_may_be_anything():
    envs = vector(2, AutoresetMode.NEXT_STEP)
    envs.reset(seed=0)
    envs.step(np.zeros(2, np.int64))
    assert (envs.step(np.full(2, 99))[1] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "it got nothing"),
        ({"labels": LABELS}, "it got labels"),
        ({"features": FEATURES, "labels": LABELS, "data": "iris"}, "it got features and labels and data"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, r"shapes \(0, 2\) and \(0,\)"),
        ({"features": FEATURES, "labels": LABELS[:, None]}, r"shapes \(6, 2\) and \(6, 1\)"),
        ({"features": FEATURES, "labels": np.array(list("abcabc"))}, "their dtype is <U1"),
        ({"features": FEATURES.astype(float) * 1e300, "labels": LABELS}, "float32: 10 of 12 are not"),
        ({"features": np.where(FEATURES == 5, np.nan, FEATURES), "labels": LABELS}, "1 of 12 are not"),
        ({"data": "iris", "split": "Train"}, "it is 'Train'"),
    ],
)
def test_what_does_not_fit_is_refused_by_both(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassificationBandit(**arguments)
    with pytest.raises(ValueError, match=message):
        VectorClassificationBandit(2, **arguments)


def test_a_wrong_number_or_mode_is_refused():
    with pytest.raises(ValueError, match="num_envs is a whole number, at least 1: it is 0"):
        vector(0)
    with pytest.raises(ValueError, match="'sometimes' is not a valid AutoresetMode"):
        vector(2, "sometimes")


def test_the_spaces_are_those_of_the_data():
    single, envs = ClassificationBandit(FEATURES, LABELS), vector(3)
    assert single.observation_space == envs.single_observation_space
    assert single.observation_space == gym.spaces.Box(0, 25, (2,), np.float32)
    assert single.action_space == envs.single_action_space == gym.spaces.Discrete(3)
    assert envs.observation_space.shape == (3, 2)
    assert envs.action_space == gym.spaces.MultiDiscrete([3, 3, 3])


def test_the_splits_are_different_examples():
    shown = {}
    for split in ("train", "test"):
        data = datasets.load("iris")
        inputs = data.train_inputs if split == "train" else data.test_inputs
        envs = VectorClassificationBandit(5000, data="iris", split=split)
        shown[split] = np.unique(envs.reset(seed=0)[0], axis=0)
        assert (shown[split] == np.unique(inputs, axis=0)).all()
    assert shown["train"].shape != shown["test"].shape


def test_gymnasium_s_statistics_count_episodes_of_one_step():
    envs = RecordEpisodeStatistics(make("pgce/DigitsBandit-v0", 4))
    reset(envs, 0)
    for _ in range(3):
        _, reward, _, _, info = envs.step(envs.action_space.sample())
        assert (info["episode"]["r"] == reward).all()
        assert (info["episode"]["l"] == 1).all()
