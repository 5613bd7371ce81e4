"""Vector environments, their seeds, and the bandit against Gymnasium's own vectorisation."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from pgce.envs import (
    ClassificationBandit,
    VectorClassificationBandit,
    datasets,
    make,
    reset,
    spawn_seeds,
)

FEATURES, LABELS = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 1])


def test_make_takes_the_environment_s_own_vector_version():
    assert type(make("CartPole-v1", 3).unwrapped).__name__ == "CartPoleVectorEnv"
    assert isinstance(make("CartPole-v1", 3, vectorization="sync"), SyncVectorEnv)
    assert type(make("Acrobot-v1", 3).unwrapped).__name__ == "AcrobotVectorEnv"
    envs = make("CartPole-v1", 2, vectorization="async")
    assert isinstance(envs, AsyncVectorEnv)
    envs.close()


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "pgce/DigitsBandit-v0"])
def test_make_gives_the_autoreset_mode_asked_for(env_id, mode):
    envs = make(env_id, 2, autoreset_mode=mode)
    assert envs.metadata["autoreset_mode"] == mode
    own = isinstance(envs, VectorClassificationBandit)
    assert own == (env_id == "pgce/DigitsBandit-v0")


def test_environments_have_seeds_of_their_own():
    for vectorization in ("vector_entry_point", "sync", "async"):
        envs = make("CartPole-v1", 4, vectorization=vectorization)
        first, _ = reset(envs, 7)
        again, _ = reset(envs, 7)
        other, _ = reset(envs, 8)
        envs.close()
        assert len(np.unique(first[:, 0])) == 4
        assert (first == again).all()
        assert (first != other).all()


def test_neighbouring_seeds_share_no_environment():
    seeds = [s for seed in range(20) for s in spawn_seeds(seed, 20)]
    assert len(set(seeds)) == 400
    assert spawn_seeds(3, 2) == spawn_seeds(3, 5)[:2]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("CartPole-v1", 0), {}, "num_envs is a whole number, at least 1: it is 0"),
        (("CartPole-v1", 2.0), {}, "at least 1: it is 2.0"),
        (("CartPole-v1", True), {}, "at least 1: it is True"),
        (("CartPole-v1", 2), {"vectorization": "ray"}, "it is 'ray'"),
        (("CartPol-v1", 2), {}, "Did you mean: `CartPole`"),
        (("os:CartPole-v1", 2), {}, "names a module, whose code would be run"),
        (
            ("CartPole-v1", 2),
            {
                "vectorization": "vector_entry_point",
                "autoreset_mode": AutoresetMode.DISABLED,
                "sutton_barto_reward": True,
            },
            "resets by AutoresetMode.NEXT_STEP: AutoresetMode.DISABLED was asked for",
        ),
    ],
)
def test_make_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments, **options)


def test_a_missing_module_is_named():
    with pytest.raises(ImportError, match="no_such_module"):
        make("no_such_module:Env-v0", 2, allow_import=True)


def test_a_missing_package_is_named(monkeypatch):
    def missing():
        raise gym.error.DependencyNotInstalled("Box2D is not installed, you can install it by ...")

    monkeypatch.setitem(
        gym.registry,
        "pgce-test/Missing-v0",
        gym.envs.registration.EnvSpec("pgce-test/Missing-v0", entry_point=missing),
    )
    with pytest.raises(ImportError, match=r"Missing-v0 needs a package .* Box2D is not installed"):
        make("pgce-test/Missing-v0", 2)


def test_the_single_bandit_passes_gymnasium_s_checker():
    check_env(ClassificationBandit(FEATURES, LABELS), skip_render_check=True)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_vector_bandit_behaves_as_sync_does(mode):
    """Same rows in the same order: rewards, ends, what is observed when, and info, step by step."""
    n = 3
    ours = VectorClassificationBandit(n, mode, features=FEATURES, labels=LABELS)
    theirs = SyncVectorEnv([lambda: ClassificationBandit(FEATURES, LABELS)] * n, autoreset_mode=mode)
    draws = np.random.default_rng(0).integers(4, size=(40, n))
    # Both draw from the same list instead of from their generators.
    ours.np_random = Drawn(draws)
    for i, env in enumerate(theirs.envs):
        env.unwrapped.np_random = Drawn(draws[:, i : i + 1])
    observation, _ = ours.reset()
    expected, _ = theirs.reset()
    assert (observation == expected).all()
    rewards = 0.0
    for t in range(12):
        action = np.arange(t, t + n) % 3
        mine, reference = ours.step(action), theirs.step(action)
        for a, b in zip(mine[:4], reference[:4], strict=True):
            assert (a == b).all()
            assert a.shape == b.shape
        rewards += mine[1].sum()
        assert ("final_obs" in mine[4]) == ("final_obs" in reference[4])
        if "final_obs" in mine[4]:
            assert (mine[4]["_final_obs"] == reference[4]["_final_obs"]).all()
            assert (mine[4]["final_obs"] == np.stack(reference[4]["final_obs"])).all()
        if mode == AutoresetMode.DISABLED:
            mask = np.ones(n, np.bool_)
            new, _ = ours.reset(options={"reset_mask": mask})
            assert (new == theirs.reset(options={"reset_mask": mask})[0]).all()
    assert rewards > 0


class Drawn:
    """Stands in for a generator: gives the rows of a list, one after the other."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def integers(self, high, size=None):
        if size == 0:
            return np.zeros(0, np.int64)
        row = next(self.rows)
        return int(row[0]) if size is None else row[:size]


def test_the_bandit_draws_every_example_alike():
    envs = VectorClassificationBandit(1000, features=FEATURES, labels=LABELS)
    observation, _ = envs.reset(seed=0)
    counts = sum(envs.step(np.zeros(1000, np.int64))[0].sum(0) for _ in range(40)) + observation.sum(0)
    assert counts.sum() == 41_000
    assert (abs(counts - 10_250) < 5 * np.sqrt(41_000 * 3 / 16)).all()


def test_a_finished_bandit_is_reset_before_its_next_step():
    envs = VectorClassificationBandit(2, "Disabled", features=FEATURES, labels=LABELS)
    envs.reset(seed=0)
    envs.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"\[0 1\] are not"):
        envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "features and labels, or the name"),
        ({"features": FEATURES}, "features and labels, or the name"),
        ({"features": FEATURES, "labels": LABELS, "data": "iris"}, "features and labels, or the name"),
        ({"features": FEATURES, "data": "iris"}, "features and labels, or the name"),
        ({"data": "iris", "split": "all"}, "it is 'all'"),
        ({"data": "mnist"}, "it is 'mnist'"),
        ({"data": "diabetes"}, "one class an example: 'diabetes' is for regression"),
        ({"features": FEATURES, "labels": LABELS[:3]}, r"shapes \(4, 4\) and \(3,\)"),
        ({"features": FEATURES[0], "labels": LABELS}, r"shapes \(4,\) and \(4,\)"),
        ({"features": FEATURES * np.nan, "labels": LABELS}, "features are finite"),
        ({"features": FEATURES, "labels": LABELS - 1}, "the least -1"),
        ({"features": FEATURES, "labels": LABELS / 2}, "dtype is float64"),
    ],
)
def test_the_bandit_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassificationBandit(**arguments)


def test_data_sets_are_split_once_and_for_all():
    for name in ("digits", "iris", "wine", "breast_cancer"):
        data = datasets.load(name)
        assert data.train_inputs.dtype == data.test_inputs.dtype == np.float32
        assert data.train_labels.dtype == data.test_labels.dtype == np.int64
        for labels in (data.train_labels, data.test_labels):
            assert set(labels) == set(range(data.classes))
        share = len(data.test_labels) / (len(data.train_labels) + len(data.test_labels))
        assert abs(share - 0.25) < 0.01
        per_class = np.bincount(data.test_labels) / np.bincount(data.train_labels)
        assert (abs(per_class - 1 / 3) < 0.06).all(), "stratified"
        assert (data.train_inputs == datasets.load(name).train_inputs).all()
    digits = datasets.load("digits")
    assert digits.train_inputs.max() == 1.0
    assert digits.train_labels[:10].tolist() == [7, 3, 6, 6, 7, 6, 7, 9, 2, 9]


def test_importing_twice_registers_once():
    assert gym.spec("pgce/DigitsBandit-v0").kwargs["split"] == "train"
    assert gym.spec("pgce/DigitsBanditTest-v0").kwargs["split"] == "test"
