"""What `make`, `reset` and `spawn_seeds` promise beyond the common cases in tests/test_envs.py."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from pgce.envs import ClassificationBandit, VectorClassificationBandit, make, reset, spawn_seeds
from pgce.envs.classic_control import AcrobotVectorEnv, CartPoleVectorEnv, MountainCarVectorEnv
from pgce.envs.toy_text import FrozenLakeVectorEnv
from pgce.envs.vector_base import NumpyVectorEnv


class Silent(VectorClassificationBandit):
    """A vector environment that doesn't say how it resets."""

    closed_count = 0

    def __init__(self, num_envs=1):
        super().__init__(num_envs, data="iris")
        self.metadata = {}

    def close_extras(self, **kwargs):
        Silent.closed_count += 1


@pytest.fixture
def register(monkeypatch):
    """Register for one test."""

    def add(name, **options):
        env_id = f"pgce-test/{name}-v0"
        monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, **options))
        return env_id

    return add


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
def test_a_mode_may_be_given_by_its_value(mode, vectorization):
    envs = make("CartPole-v1", 2, vectorization=vectorization, autoreset_mode=mode.value)
    envs.close()
    assert envs.metadata["autoreset_mode"] is mode
    assert isinstance(envs, CartPoleVectorEnv) == (vectorization == "auto")


@pytest.mark.parametrize(
    ("vectorization", "vector_type", "mode"),
    [
        ("auto", VectorClassificationBandit, AutoresetMode.SAME_STEP),
        ("vector_entry_point", VectorClassificationBandit, AutoresetMode.SAME_STEP),
        ("sync", SyncVectorEnv, AutoresetMode.NEXT_STEP),
    ],
)
def test_no_mode_is_the_environment_s_own_default(vectorization, vector_type, mode):
    envs = make("pgce/DigitsBandit-v0", 2, vectorization=vectorization)
    assert isinstance(envs, vector_type)
    assert envs.metadata["autoreset_mode"] is mode


def test_keywords_reach_the_environment():
    for vectorization in ("vector_entry_point", "sync"):
        envs = make("CartPole-v1", 2, vectorization=vectorization, max_episode_steps=3)
        reset(envs, 0)
        truncated = [envs.step(np.array([t % 2, t % 2]))[3].all() for t in range(3)]
        assert truncated == [False, False, True]


@pytest.mark.parametrize("vectorization", ["auto", "vector_entry_point"])
def test_a_vector_version_that_hides_its_mode_is_refused_and_closed(vectorization, register):
    env_id = register("Silent", vector_entry_point=Silent)
    before = Silent.closed_count
    with (
        pytest.warns(UserWarning, match="missing AutoresetMode metadata"),
        pytest.raises(ValueError, match=r'metadata\["autoreset_mode"\].*it has None, any was asked for'),
    ):
        make(env_id, 2, vectorization=vectorization)
    assert Silent.closed_count == before + 1


def test_a_vector_version_that_ignores_the_mode_asked_for_is_refused(register):
    def deaf(num_envs, autoreset_mode=None):
        return VectorClassificationBandit(num_envs, data="iris")

    env_id = register("Deaf", vector_entry_point=deaf)
    with pytest.raises(ValueError, match=r"it has <AutoresetMode\.SAME_STEP.*DISABLED was asked for"):
        make(env_id, 2, autoreset_mode="Disabled")
    assert make(env_id, 2, autoreset_mode="SameStep").num_envs == 2


def test_where_there_is_only_a_vector_version_nothing_else_is_tried(register):
    env_id = register("Own", vector_entry_point=Silent)
    for options in ({"vectorization": "sync"}, {"vectorization": "async"}, {"autoreset_mode": "Disabled"}):
        with pytest.raises(ValueError, match=r"Own-v0 has only a vector version of its own"):
            make(env_id, 2, **options)


@pytest.mark.parametrize("mode", ["next_step", "", 1])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(ValueError, match=r"None or one of NextStep, SameStep, Disabled: it is "):
        make("CartPole-v1", 2, autoreset_mode=mode)


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, "2", None, True])
def test_a_wrong_number_of_environments_is_shown(num_envs):
    with pytest.raises(ValueError, match=rf"num_envs is a whole number, at least 1: it is {num_envs!r}"):
        make("CartPole-v1", num_envs)


def test_a_module_runs_only_when_allowed(tmp_path, monkeypatch):
    (tmp_path / "runs_when_imported.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Imported-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"'runs_when_imported:Imported-v0' names a module, whose code would"
    ):
        make("runs_when_imported:Imported-v0", 2)
    assert "runs_when_imported" not in sys.modules
    try:
        assert make("runs_when_imported:Imported-v0", 2, allow_import=True).num_envs == 2
    finally:
        gym.registry.pop("Imported-v0", None)
        sys.modules.pop("runs_when_imported", None)


def test_closing_async_ends_its_processes():
    envs = make("CartPole-v1", 2, vectorization="async", env_workers=2)
    reset(envs, 0)
    processes = envs.processes
    assert all(process.is_alive() for process in processes)
    envs.close()
    assert [process.exitcode for process in processes] == [0, 0]


class Recorded(SyncVectorEnv):
    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed, options=options)


def test_each_environment_is_given_its_seed_also_inside_a_wrapper():
    envs = Recorded([lambda: ClassificationBandit(data="iris")] * 3)
    observation, info = reset(VectorWrapper(envs), 5)
    assert envs.seed == spawn_seeds(5, 3)
    assert observation.shape == (3, 4)
    assert info == {}
    alone = [ClassificationBandit(data="iris").reset(seed=seed)[0] for seed in spawn_seeds(5, 3)]
    assert (observation == alone).all()


@pytest.mark.parametrize("wrap", [lambda envs: envs, VectorWrapper])
def test_one_generator_is_given_one_seed(wrap):
    envs = VectorClassificationBandit(3, data="iris")
    reset(wrap(envs), 5)
    assert envs.np_random_seed == spawn_seeds(5, 1)[0] != 5


def test_vectorised_one_after_the_other_or_in_processes_is_the_same():
    first = [make("CartPole-v1", 3, vectorization=v, autoreset_mode="SameStep") for v in ("sync", "async")]
    observations = [reset(envs, 11)[0] for envs in first]
    for t in range(40):
        assert (observations[0] == observations[1]).all()
        observations = [envs.step(np.full(3, t % 2))[0] for envs in first]
    for envs in first:
        envs.close()


def test_seeds_are_those_of_numpy_s_spawn():
    """Pinned: other seeds would change every published result without a word."""
    assert spawn_seeds(0, 3) == [
        int(np.random.SeedSequence(0, spawn_key=(i,)).generate_state(1)[0]) for i in range(3)
    ]
    assert spawn_seeds(np.int64(7), 2) == spawn_seeds(7, 2)
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in spawn_seeds(1, 100))


@pytest.mark.parametrize("seed", [-1, None, 1.5, True, [1, 2]])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"a seed is an integer of at least 0: it is "):
        spawn_seeds(seed, 2)
    with pytest.raises(ValueError, match=r"a seed is an integer of at least 0: it is "):
        reset(make("CartPole-v1", 2), seed)


def test_the_import_takes_no_heavy_package_and_can_be_repeated():
    """Also with Gymnasium's registry as it was left by a first import."""
    code = (
        "import sys, pgce.envs\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'pandas', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "of_pgce = {name for name in sys.modules if name.startswith('pgce.')}\n"
        "assert all(name.startswith('pgce.envs') for name in of_pgce), of_pgce\n"
        "for name in of_pgce: del sys.modules[name]\n"
        "import pgce.envs\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_digits_are_registered_with_the_reward_that_solves_them():
    for env_id, split in (("pgce/DigitsBandit-v0", "train"), ("pgce/DigitsBanditTest-v0", "test")):
        spec = gym.spec(env_id)
        assert spec.reward_threshold == 0.95
        assert spec.kwargs == {"data": "digits", "split": split}
        assert isinstance(gym.make(env_id).unwrapped, ClassificationBandit)


VERSIONS = {
    "Acrobot-v1": "AcrobotVectorEnv",
    "MountainCar-v0": "MountainCarVectorEnv",
    "MountainCarContinuous-v0": "MountainCarContinuousVectorEnv",
    "Pendulum-v1": "PendulumVectorEnv",
    "FrozenLake-v1": "FrozenLakeVectorEnv",
    "FrozenLake8x8-v1": "FrozenLakeVectorEnv",
    "CliffWalking-v1": "CliffWalkingVectorEnv",
    "CliffWalkingSlippery-v1": "CliffWalkingVectorEnv",
    "Taxi-v4": "TaxiVectorEnv",
    "Blackjack-v1": "BlackjackVectorEnv",
}


@pytest.mark.parametrize("vectorization", ["auto", "vector_entry_point"])
@pytest.mark.parametrize("env_id", VERSIONS)
def test_gymnasium_s_single_environments_have_a_vector_version_here(env_id, vectorization):
    registered = repr(gym.spec(env_id))
    envs = make(env_id, 3, vectorization=vectorization)
    assert isinstance(envs, NumpyVectorEnv)
    assert repr(envs) == f"{VERSIONS[env_id]}({env_id}, num_envs=3)"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.spec.id == env_id
    assert envs.spec.reward_threshold == gym.spec(env_id).reward_threshold
    assert repr(gym.spec(env_id)) == registered
    assert isinstance(gym.make_vec(env_id, 2), SyncVectorEnv), "others are served as before"
    again = gym.make_vec(envs.spec)
    assert type(again) is type(envs)
    assert again.num_envs == 3


def test_limits_are_those_registered_or_asked_for():
    for kwargs, limit in (({}, 200), ({"max_episode_steps": 7}, 7)):
        envs = make("MountainCar-v0", 2, **kwargs)
        reset(envs, 0)
        truncated = [envs.step(np.ones(2, int))[3].all() for _ in range(limit)]
        assert truncated == [False] * (limit - 1) + [True]


@pytest.mark.parametrize(
    ("env_id", "kwargs", "name"),
    [
        ("Acrobot-v1", {"render_mode": "rgb_array"}, "render_mode='rgb_array'"),
        ("FrozenLake-v1", {"map_name": None}, "map_name=None"),
        ("Taxi-v4", {"fickle_passenger": True}, "fickle_passenger=True"),
    ],
)
def test_arguments_that_ours_do_not_know_take_sync(env_id, kwargs, name):
    assert isinstance(make(env_id, 2, **kwargs), SyncVectorEnv)
    with pytest.raises(
        ValueError, match=rf"{env_id}'s vector version in pgce\.envs takes no {name}: take sync"
    ):
        make(env_id, 2, vectorization="vector_entry_point", **kwargs)


def test_what_a_vector_version_does_not_know_takes_sync(register):
    def vector(num_envs, data="iris"):
        return VectorClassificationBandit(num_envs, data=data)

    def single(data="iris", noise=0.0):
        return ClassificationBandit(data=data)

    both = {"entry_point": single, "vector_entry_point": vector}
    env_id, reward = (
        register("Both", **both),
        WrapperSpec("R", "gymnasium.wrappers:TransformReward", {"func": abs}),
    )
    wrapped = register("Wrapped", **both, additional_wrappers=(reward,))
    assert isinstance(make(env_id, 2, data="iris"), VectorClassificationBandit)
    assert isinstance(make(env_id, 2, noise=0.5), SyncVectorEnv)
    assert isinstance(make(wrapped, 2), SyncVectorEnv)
    with pytest.raises(ValueError, match="unexpected keyword argument 'noise'"):
        make(env_id, 2, vectorization="vector_entry_point", noise=0.5)


@pytest.mark.parametrize(
    ("env_id", "kwargs", "version"),
    [
        ("Acrobot-v1", {"render_mode": None}, AcrobotVectorEnv),
        ("FrozenLake-v1", {"desc": None}, FrozenLakeVectorEnv),
        ("FrozenLake-v1", {"desc": ["SG"], "is_slippery": False}, FrozenLakeVectorEnv),
        ("MountainCar-v0", {"goal_velocity": 0.01}, MountainCarVectorEnv),
    ],
)
def test_arguments_that_ours_know_do_not(env_id, kwargs, version):
    assert type(make(env_id, 2, **kwargs)) is version


def test_an_unknown_argument_is_refused():
    for env_id in ("Pendulum-v1", "pgce/DigitsBandit-v0"):  # one by one, and all at once
        with pytest.raises(ValueError, match=rf"{env_id} cannot be made with .*keyword argument 'gravity'"):
            make(env_id, 2, gravity=3)
    with pytest.raises(ValueError, match=r"Pendulum-v1's vector version in pgce\.envs takes no gravity=3"):
        make("Pendulum-v1", 2, vectorization="vector_entry_point", gravity=3)


def test_another_registration_of_the_same_environment_has_the_vector_version_too(register):
    lake = "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv"
    env_id = register("Lake", entry_point=lake, kwargs={"desc": ["SFG"]}, max_episode_steps=9)
    envs = make(env_id, 2)
    assert type(envs) is FrozenLakeVectorEnv
    assert envs.single_observation_space.n == 3
    env_id = register("RandomLake", entry_point=lake, kwargs={"map_name": None})
    assert isinstance(make(env_id, 2), SyncVectorEnv)


def test_another_environment_under_a_known_name_has_not(monkeypatch):
    spec = EnvSpec("Acrobot-v1", entry_point="gymnasium.envs.classic_control.pendulum:PendulumEnv")
    monkeypatch.setitem(gym.registry, "Acrobot-v1", spec)
    assert make("Acrobot-v1", 2).single_observation_space.shape == (3,)
    monkeypatch.setitem(gym.registry, "Acrobot-v1", EnvSpec("Acrobot-v1", entry_point=ClassificationBandit))
    assert isinstance(make("Acrobot-v1", 2, data="iris"), SyncVectorEnv)


def test_without_a_vector_version_there_is_sync_or_an_error(register):
    env_id = register("Single", entry_point="pgce.envs.bandit:ClassificationBandit", kwargs={"data": "iris"})
    assert isinstance(make(env_id, 2), SyncVectorEnv)
    with pytest.raises(ValueError, match=r"Single-v0 has no vector version of its own: take sync or async"):
        make(env_id, 2, vectorization="vector_entry_point")


def test_wrappers_of_a_registration_are_kept(register):
    clip = WrapperSpec("Clip", "gymnasium.wrappers:ClipReward", {"min_reward": -0.5, "max_reward": 0.0})
    env_id = register(
        "Wrapped",
        entry_point="gymnasium.envs.classic_control.mountain_car:MountainCarEnv",
        additional_wrappers=(clip,),
    )
    envs = make(env_id, 2)
    assert isinstance(envs, SyncVectorEnv)
    reset(envs, 0)
    assert (envs.step(np.zeros(2, int))[1] == -0.5).all()
    with pytest.raises(ValueError, match=r"Wrapped-v0 has wrappers for single environments"):
        make(env_id, 2, vectorization="vector_entry_point")
