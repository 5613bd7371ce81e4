"""What all vector environments of `pgce.envs` promise alike: modes, limits, masks, seeds, refusals."""

from __future__ import annotations

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from pgce.envs import make, reset
from pgce.envs.vector_base import NumpyVectorEnv, SingleEnv

OURS = [
    "pgce/ProbeValue-v0",
    "pgce/ProbeDiscount-v0",
    "pgce/ProbeTruncation-v0",
    "pgce/ProbeAction-v0",
    "pgce/ProbeMemory-v0",
    "pgce/ProbeMask-v0",
    "pgce/Copy-v0",
    "pgce/Reverse-v0",
    "pgce/Addition-v0",
]
THEIRS = [
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "CliffWalking-v1",
    "CliffWalkingSlippery-v1",
    "Taxi-v4",
    "Blackjack-v1",
]
every_id = pytest.mark.parametrize("env_id", OURS + THEIRS)
every_mode = pytest.mark.parametrize("mode", AutoresetMode)


def rows(observation, mask=...):
    """The observations in the mask as one array."""
    columns = observation if isinstance(observation, tuple) else (observation,)
    return np.stack([column[mask].reshape(-1) for column in columns])


def flat(step):
    """All numbers of a step, those in its info too."""
    found = []
    for part in step:
        if isinstance(part, dict):
            found += flat(part.values())
        elif isinstance(part, tuple):
            found += flat(part)
        else:
            found.append(part.tolist())
    return found


def play(envs, seed, steps=12):
    reset(envs, seed)
    envs.action_space.seed(seed)
    played = []
    for _ in range(steps):
        played.append(envs.step(envs.action_space.sample()))
        if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
            done = played[-1][2] | played[-1][3]
            if done.any():
                played.append(envs.reset(options={"reset_mask": done}))
    return [flat(step) for step in played]


@every_id
@every_mode
def test_everything_has_the_type_shape_and_keys_of_gymnasium_s_sync(env_id, mode):
    n = 6
    envs = make(env_id, n, autoreset_mode=mode, max_episode_steps=2)
    sync = make(env_id, n, autoreset_mode=mode, max_episode_steps=2, vectorization="sync")
    assert isinstance(envs, NumpyVectorEnv)
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(envs, name) == getattr(sync, name), name
    assert envs.metadata["autoreset_mode"] is mode
    assert envs.spec.reward_threshold == gym.spec(env_id).reward_threshold
    assert envs.spec.max_episode_steps == gym.spec(env_id).max_episode_steps

    def alike(mine, reference):
        assert type(mine) is type(reference)
        if isinstance(mine, dict):
            assert mine.keys() == reference.keys()
            for key in mine:
                if key not in ("final_obs", "prob"):  # object there; int of its first 1
                    alike(mine[key], reference[key])
        elif isinstance(mine, tuple):
            for a, b in zip(mine, reference, strict=True):
                alike(a, b)
        else:
            assert mine.dtype == reference.dtype
            assert mine.shape == reference.shape

    alike(reset(envs, 0), reset(sync, 0))
    action = envs.action_space.sample()
    for _ in range(2):
        mine, reference = envs.step(action), sync.step(action)
        assert mine[0] in envs.observation_space
        # An episode of one step differs from one of two by chance.
        if (mine[2].any(), mine[3].any()) == (reference[2].any(), reference[3].any()):
            alike(mine, reference)
        if mode is AutoresetMode.DISABLED and (mine[2] | mine[3]).any():
            break


@every_id
@every_mode
def test_a_seed_decides_everything(env_id, mode):
    envs = make(env_id, 16, autoreset_mode=mode, max_episode_steps=3)
    first = play(envs, 1)
    assert play(envs, 1) == first
    assert play(make(env_id, 16, autoreset_mode=mode, max_episode_steps=3), 1) == first


@pytest.mark.parametrize(
    "env_id",
    sorted({*OURS, *THEIRS} - {"pgce/ProbeDiscount-v0", "pgce/ProbeTruncation-v0", "CliffWalking-v1"}),
)
def test_seeds_differ_in_what_is_drawn(env_id):
    kwargs = {"max_episode_steps": 20}
    first, other = make(env_id, 32, **kwargs), make(env_id, 32, **kwargs)
    seen = [flat(reset(first, 0)), flat(reset(other, 1))]
    for _ in range(3):
        action = first.action_space.sample()
        seen[0] += flat(first.step(action))
        seen[1] += flat(other.step(action))
    assert seen[0] != seen[1]


@every_id
def test_each_environment_may_have_its_own_seed(env_id):
    """Groups of the same seed begin alike, whatever is beside them; what follows is decided, too."""
    envs = make(env_id, 6, max_episode_steps=3)
    first, _ = envs.reset(seed=[5, 5, 5, 8, 9, 5])
    table = rows(first).reshape(-1, 6) if isinstance(first, tuple) else first.reshape(6, -1).T
    assert (table[:, [0, 1, 2, 5]] == table[:, [0]]).all()
    action = [envs.action_space.sample() for _ in range(8)]
    played = [flat(envs.step(a)) for a in action]
    other = make(env_id, 6, max_episode_steps=3)
    assert flat(other.reset(seed=[5, 5, 5, 8, 9, 5])[:1]) == flat([first])
    assert [flat(other.step(a)) for a in action] == played


@pytest.mark.parametrize("env_id", OURS)
def test_the_single_version_begins_alike_from_the_same_seed(env_id):
    envs, sync = make(env_id, 4), make(env_id, 4, vectorization="sync")
    seeds = [3, 1, 4, 1]
    mine, reference = envs.reset(seed=seeds), sync.reset(seed=seeds)
    assert flat(mine) == flat(reference)
    mask = np.array([True, False, False, True])
    seeds = [9, 9, 9, 9]
    mine = envs.reset(seed=seeds, options={"reset_mask": mask.copy()})
    reference = sync.reset(seed=seeds, options={"reset_mask": mask.copy()})
    assert (mine[0] == reference[0]).all()


def test_a_seed_may_be_numpy_s():
    envs = make("CartPole-v1", 3)
    assert flat(envs.reset(seed=np.int64(5))) == flat(envs.reset(seed=5))


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3, 4], [], [1, -2, 3]])
def test_seeds_that_are_not_one_each_are_refused(seeds):
    with pytest.raises(ValueError, match=r"a seed is an integer of at least 0, for all or for each of 3 "):
        make("pgce/Copy-v0", 3).reset(seed=seeds)


@every_id
@every_mode
def test_the_limit_truncates_and_the_next_episode_has_it_all(env_id, mode):
    envs = make(env_id, 8, autoreset_mode=mode, max_episode_steps=4)
    reset(envs, 0)
    length = np.zeros(8, int)
    over = np.zeros(8, np.bool_)
    truncations = 0
    for _ in range(30):
        _, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
        length = np.where(over, 0, length + 1)
        assert (truncated == (length == 4)).all()
        assert (reward[over] == 0).all()
        assert not terminated[over].any()
        truncations += truncated.sum()
        done = terminated | truncated
        if mode is AutoresetMode.NEXT_STEP:
            over = done
        else:
            length[done] = 0
            if mode is AutoresetMode.DISABLED and done.any():
                envs.reset(options={"reset_mask": done})
    one_step = env_id in ("pgce/ProbeValue-v0", "pgce/ProbeAction-v0")
    short = env_id in ("pgce/ProbeDiscount-v0", "pgce/ProbeMemory-v0", "pgce/Addition-v0", "Blackjack-v1")
    assert truncations > 0 or one_step or short


def test_an_end_at_the_limit_is_both():
    for vectorization in ("vector_entry_point", "sync"):
        envs = make("pgce/Copy-v0", 3, vectorization=vectorization, length=2, max_episode_steps=2)
        reset(envs, 0)
        assert not np.any(envs.step(np.zeros(3, int))[2:4])
        assert np.all(envs.step(np.zeros(3, int))[2:4])


@pytest.mark.parametrize("limit", [None, -1])
def test_without_a_limit_nothing_is_cut(limit):
    envs = make("pgce/ProbeTruncation-v0", 2, max_episode_steps=limit)
    reset(envs, 0)
    assert not any(envs.step(np.zeros(2, int))[3].any() for _ in range(50))


@every_id
def test_only_the_environments_of_the_mask_begin_anew(env_id):
    envs = make(env_id, 60, autoreset_mode="Disabled", max_episode_steps=3)
    reset(envs, 1)
    before, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
    mask = terminated | truncated | (np.arange(60) < 30)
    after, info = envs.reset(options={"reset_mask": mask})
    assert (rows(after, ~mask) == rows(before, ~mask)).all()
    for key, value in info.items():
        assert (info[f"_{key}"] == mask).all() if not key.startswith("_") else value.dtype == np.bool_
        assert not value[~mask].any()


def test_the_limit_counts_from_each_one_s_own_reset():
    envs = make("pgce/ProbeTruncation-v0", 4, autoreset_mode="Disabled", max_episode_steps=3)
    reset(envs, 0)
    mask = np.array([True, False, True, False])
    envs.step(np.zeros(4, int))
    envs.reset(options={"reset_mask": mask})
    cut = [envs.step(np.zeros(4, int))[3].tolist() for _ in range(2)]
    assert cut == [[False] * 4, [False, True, False, True]]


@every_id
@every_mode
def test_what_was_returned_does_not_change_later(env_id, mode):
    envs = make(env_id, 5, autoreset_mode=mode, max_episode_steps=2)
    returned, kept = [], []
    returned.append(reset(envs, 0))
    kept.append(copy.deepcopy(flat(returned[-1])))
    for _ in range(8):
        step = envs.step(envs.action_space.sample())
        returned.append(step)
        kept.append(copy.deepcopy(flat(step)))
        done = step[2] | step[3]
        if mode is AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})
    assert [flat(step) for step in returned] == kept
    for column in step[0] if isinstance(step[0], tuple) else step[:4]:
        column[...] = 1  # the caller's now
    twin = make(env_id, 5, autoreset_mode=mode, max_episode_steps=2)
    assert play(envs, 3) == play(twin, 3)


@every_id
@every_mode
def test_a_full_reset_forgets_what_was_pending(env_id, mode):
    envs = make(env_id, 4, autoreset_mode=mode, max_episode_steps=1)
    reset(envs, 0)
    envs.step(envs.action_space.sample())
    reset(envs, 0)
    assert envs.step(envs.action_space.sample())[3].all()


@every_id
def test_a_pickled_copy_goes_on_alike(env_id):
    envs = make(env_id, 4, autoreset_mode="SameStep", max_episode_steps=3)
    reset(envs, 0)
    envs.step(envs.action_space.sample())
    twin = pickle.loads(pickle.dumps(envs))
    for _ in range(6):
        action = envs.action_space.sample()
        assert flat(envs.step(action)) == flat(twin.step(action))


@every_mode
@pytest.mark.parametrize("env_id", ["pgce/ProbeMask-v0", "Taxi-v4", "Acrobot-v1", "Blackjack-v1"])
def test_gymnasium_s_statistics_agree_with_rewards(env_id, mode):
    envs = RecordEpisodeStatistics(make(env_id, 5, autoreset_mode=mode, max_episode_steps=3))
    reset(envs, 0)
    total, ended = 0.0, 0.0
    for _ in range(20):
        _, reward, terminated, truncated, info = envs.step(envs.action_space.sample())
        total += reward.sum()
        done = terminated | truncated
        if done.any():
            ended += info["episode"]["r"][info["_episode"]].sum()
            if mode is AutoresetMode.DISABLED:
                envs.reset(options={"reset_mask": done})
    unfinished = envs.episode_returns[~done].sum() if mode is not AutoresetMode.SAME_STEP else None
    assert unfinished is None or ended + unfinished == pytest.approx(total)


@every_id
@pytest.mark.parametrize("actions", ["short", "column", "scalar", "strings"])
def test_actions_of_another_shape_or_kind_are_refused(env_id, actions):
    envs = make(env_id, 3)
    reset(envs, 0)
    shape = envs.action_space.shape
    wrong, message = {
        "short": (np.zeros((2, *shape[1:]), int), r"one action an environment: "),
        "column": (np.zeros((*shape, 1), int), r"one action an environment: "),
        "scalar": (0, r"one action an environment: \(\) is not \(3,"),
        "strings": (np.full(shape, "a"), r"actions in .* are .*: their dtype is <U1"),
    }[actions]
    with pytest.raises(ValueError, match=message):
        envs.step(wrong)


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "Taxi-v4", "pgce/Copy-v0"])
@pytest.mark.parametrize("dtype", [np.float64, np.bool_])
def test_discrete_actions_are_integers(env_id, dtype):
    envs = make(env_id, 3)
    reset(envs, 0)
    with pytest.raises(ValueError, match=r"actions in Discrete.* are integers: their dtype is "):
        envs.step(np.ones(3, dtype))
    for integer in (np.uint8, np.int32):
        envs.step(np.ones(3, integer))


@every_id
def test_actions_out_of_range_are_shown_and_nothing_moves(env_id):
    envs, twin = make(env_id, 3), make(env_id, 3)
    reset(envs, 0)
    reset(twin, 0)
    good = envs.action_space.sample()
    space = envs.single_action_space
    for value in (-1, space.n) if isinstance(space, Discrete) else (np.nan, np.inf):
        bad = good.copy()
        bad[1] = value
        with pytest.raises(ValueError, match=rf"actions are in .*: environments \[1\] got .*{value}"):
            envs.step(bad)
    assert flat(envs.step(good)) == flat(twin.step(good))


def test_of_many_actions_out_of_range_a_few_are_shown():
    envs = make("CartPole-v1", 1_000)
    reset(envs, 0)
    few = r"environments \[0 1 2 3 4 5 6 7\] got 2, 2, 2, 2, 2, 2, 2, 2, and 992 others likewise$"
    with pytest.raises(ValueError, match=few):
        envs.step(np.full(1_000, 2))


@every_id
def test_actions_that_are_ignored_may_be_anything(env_id):
    envs = make(env_id, 3, autoreset_mode="NextStep", max_episode_steps=1)
    reset(envs, 0)
    envs.step(envs.action_space.sample())
    bad = np.full(envs.action_space.shape, 99 if isinstance(envs.single_action_space, Discrete) else np.nan)
    bad = bad.astype(envs.action_space.dtype)
    kept = bad.copy()
    observation, reward, *_ = envs.step(bad)
    assert (reward == 0).all()
    assert observation in envs.observation_space
    np.testing.assert_array_equal(bad, kept)


@every_id
def test_a_step_needs_a_reset(env_id):
    envs = make(env_id, 2, autoreset_mode="Disabled", max_episode_steps=1)
    with pytest.raises(
        ValueError, match=r"reset before their first step: \w+\(.*-v\d, num_envs=2\) have not"
    ):
        envs.step(envs.action_space.sample())
    with pytest.raises(ValueError, match=r"the first reset is of all environments"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    reset(envs, 0)
    envs.step(envs.action_space.sample())
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"reset before its next step: \[1\] are not"):
        envs.step(envs.action_space.sample())


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "pgce/Copy-v0"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mask": np.array([0, 0, 1])}, "a reset mask is boolean"),
        ({"reset_mask": np.array([True])}, "a reset mask is boolean"),
        ({"reset_mask": np.zeros(3, np.bool_)}, "a reset mask is boolean"),
        ({"reset_mask": None}, "a reset mask is boolean"),
        ({"lo": 1}, "options of reset are .*: there is no lo"),
    ],
)
def test_wrong_options_are_refused_and_change_nothing(env_id, options, message):
    envs, twin = make(env_id, 3), make(env_id, 3)
    for vector in (envs, twin):
        reset(vector, 0)
    with pytest.raises(ValueError, match=message):
        envs.reset(seed=1, options=options)
    action = envs.action_space.sample()
    assert flat(envs.step(action)) == flat(twin.step(action))


def test_the_options_given_are_left_as_they_are():
    options = {"reset_mask": np.array([True, False])}
    envs = make("Acrobot-v1", 2)
    reset(envs, 0)
    envs.reset(options=options)
    assert list(options) == ["reset_mask"]


@every_id
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs is a whole number, at least 1: it is 0"),
        ({"num_envs": 2.0}, r"num_envs is a whole number, at least 1: it is 2\.0"),
        ({"num_envs": True}, "num_envs is a whole number, at least 1: it is True"),
        ({"max_episode_steps": 0}, r"max_episode_steps \(None or -1 is no limit\) .* at least 1: it is 0"),
        ({"max_episode_steps": 2.5}, r"max_episode_steps .* is a whole number, at least 1: it is 2\.5"),
        ({"max_episode_steps": "9"}, "max_episode_steps .* is a whole number, at least 1: it is '9'"),
        ({"autoreset_mode": "sometimes"}, "'sometimes' is not a valid AutoresetMode"),
    ],
)
def test_wrong_arguments_are_refused(env_id, arguments, message):
    version = type(make(env_id, 1))
    with pytest.raises(ValueError, match=message):
        version(**arguments)


@pytest.mark.parametrize("env_id", OURS)
def test_single_versions_pass_gymnasium_s_checker(env_id):
    env = gym.make(env_id)
    assert isinstance(env.unwrapped, SingleEnv)
    check_env(env.unwrapped, skip_render_check=True)


def state(envs):
    return {name: value for name, value in vars(envs).items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("env_id", OURS)
@every_mode
def test_single_versions_one_after_the_other_do_the_same(env_id, mode):
    """SyncVectorEnv over the single versions, into which each reset of ours is copied."""
    n = 7
    ours = make(env_id, n, autoreset_mode=mode, max_episode_steps=3)
    theirs = make(env_id, n, autoreset_mode=mode, max_episode_steps=3, vectorization="sync")
    generator = np.random.default_rng(0)

    def copy_state():
        for i, env in enumerate(theirs.envs):
            for name, value in state(ours).items():
                if name not in ("_over", "_elapsed"):
                    getattr(env.unwrapped._vector, name)[:] = value[i : i + 1]

    reset(ours, 0)
    reset(theirs, 0)
    copy_state()
    over = np.zeros(n, np.bool_)
    for _ in range(20):
        action = generator.integers(ours.single_action_space.n, size=n)
        mine, reference = ours.step(action), theirs.step(action)
        for a, b in zip(mine[1:4], reference[1:4], strict=True):
            assert (a == b).all()
        done = mine[2] | mine[3]
        begun = {AutoresetMode.NEXT_STEP: over, AutoresetMode.SAME_STEP: done}.get(
            mode, np.zeros(n, np.bool_)
        )
        assert (mine[0][~begun] == reference[0][~begun]).all()
        assert mine[4].keys() == reference[4].keys()
        if "final_obs" in mine[4]:
            assert (mine[4]["_final_obs"] == reference[4]["_final_obs"]).all()
            for i in done.nonzero()[0]:
                assert (mine[4]["final_obs"][i] == reference[4]["final_obs"][i]).all()
        over = done
        if mode is AutoresetMode.DISABLED and done.any():
            for envs in (ours, theirs):
                envs.reset(options={"reset_mask": done})
        copy_state()
