"""Environments that raise, hang, die or give nonsense: named, never learned from, nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from pgce.envs import make, reset, spawn_seeds
from pgce.envs.guard import EnvironmentFault, GuardedSyncVectorEnv
from pgce.envs.state import get_state, one_step, set_state
from pgce.envs.workers import GuardedAsyncVectorEnv
from pgce.rollout import Collector

SEED = 7
SEEDS = spawn_seeds(SEED, 3)
ID = "pgce-test/Faulty-v0"  # as `faulty` registers it
KINDS = ["sync", "async"]


class NoArray:
    """As a tensor of a GPU, or one that requires a gradient, tells NumPy."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert")

    def __repr__(self):
        return "NoArray"


# What an environment gives, where, and how that is told.
VALUES = {
    "shape (8,)": (0, np.zeros(8, np.float32), r"an observation of shape \(8,\): \(4,\) is expected"),
    "shape (1,)": (0, np.zeros(1, np.float32), r"an observation of shape \(1,\): \(4,\) is expected"),
    "shape (2, 2)": (0, np.zeros((2, 2), np.float32), r"an observation of shape \(2, 2\): \(4,\) is"),
    "list": (0, [0.0] * 4, r"an observation \[0.0, 0.0, 0.0, 0.0\] of type list: an array of shape \(4,\)"),
    "none": (0, None, "an observation None of type NoneType: an array"),
    "no array": (0, NoArray(), "an observation NoArray of type NoArray: an array of shape"),
    "complex": (0, np.zeros(4, complex), "an observation of complex128: float32 is expected"),
    "strings": (0, np.array(["0"] * 4), "an observation of <U1: float32 is expected"),
    "float64": (0, np.array([0.0, 1e300, 0.0, 0.0]), "not finite in float32: it has 1e[+]300"),
    "nan": (0, np.array([0.0, np.nan, 0.0, 0.0], np.float32), "not finite in float32: it has nan"),
    "inf": (0, np.array([0.0, 0.0, 0.0, -np.inf], np.float32), "not finite in float32: it has -inf"),
    "reward text": (1, "1.0", "a reward '1.0' of type str: a number is expected"),
    "reward none": (1, None, "a reward None of type NoneType: a number is expected"),
    "reward array": (1, np.ones(1), r"a reward array\(\[1\.\]\) of type ndarray: a number"),
    "reward nan": (1, float("nan"), "a reward that is not finite in float32: nan"),
    "reward inf": (1, np.float64("inf"), "a reward that is not finite in float32: .*inf"),
    "reward 10^400": (1, 10**400, r"a reward that is not finite in float32: 1000000"),
    "reward 1e300": (1, 1e300, r"a reward that is not finite in float32: 1e\+300"),
    "terminated text": (2, "False", "terminated 'False' of type str: a bool is expected"),
    "terminated one": (2, 1, "terminated 1 of type int: a bool is expected"),
    "truncated none": (3, None, "truncated None of type NoneType: a bool is expected"),
}


class Faulty(gym.Env):
    """Counts; the environment with the second seed does something wrong, once, and notes that it did."""

    observation_space = spaces.Box(-99, 99, (4,))
    action_space = spaces.Discrete(2)

    def __init__(self, what="", at=5, journal=os.devnull):
        self.what, self.at, self.journal, self.bad = what, at, journal, False
        if what == "worker" and multiprocessing.current_process().name != "MainProcess":
            raise LookupError("no licence for this process")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad = self.bad if seed is None else seed == SEEDS[1]
        self.time = 0
        return self.see(), {}

    def see(self):
        return np.full(4, self.time, np.float32)

    def step(self, action):
        self.time += 1
        outcome = [self.see(), 1.0, self.time == 8, False, {}]
        if self.what and self.bad and self.time == self.at:
            with open(self.journal, "a") as file:
                file.write(f"{self.time}\n")
            match self.what:
                case "raise":
                    raise ZeroDivisionError("the world ends")
                case "hang":
                    time.sleep(3600)
                case "deaf":
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                    time.sleep(3600)
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(3)
                case name:
                    field, value, _ = VALUES[name]
                    outcome[field] = value
        return tuple(outcome)


def faulty(kind, what, journal=os.devnull, at=5, entry_point=Faulty, **options):
    name = f"pgce-test/{entry_point.__name__}-v0"
    gym.registry[name] = EnvSpec(name, entry_point=entry_point, disable_env_checker=True)
    options = {"env_workers": 3, **options}
    envs = make(name, 3, vectorization=kind, what=what, at=at, journal=str(journal), **options)
    assert reset(envs, SEED)[0].shape == (3, 4)
    return envs


def until_fault(envs, limit=30):
    """The steps that went well, and the fault."""
    for t in range(limit):
        try:
            observation = envs.step(np.zeros(3, int))[0]
        except EnvironmentFault as fault:
            return t, fault
        assert (observation == observation[:1]).all(), "all count alike until the fault"
    raise AssertionError("no fault")


def closed_quickly(envs):
    begun = time.monotonic()
    envs.close()
    assert time.monotonic() - begun < 5
    assert multiprocessing.active_children() == []


def shared():
    """What Python has left in shared memory, but for what another program uses: tests in other processes."""
    left = {}
    for path in Path("/dev/shm").glob("[ps][yse]m[-_.]*"):
        with suppress(OSError):  # it is gone
            left[path.stat().st_ino] = path.name
    for path in Path("/proc").glob("[0-9]*/maps") if left else ():
        if path.parent.name != str(os.getpid()):
            with suppress(OSError):  # it has ended
                for line in path.read_text().splitlines():
                    if "/dev/shm/" in line:
                        left.pop(int(line.split()[4]), None)  # by inode: a semaphore's name is another there
    return set(left.values())


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def members(group):
    """Processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(path.parent.name)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = shared()
    yield
    assert multiprocessing.active_children() == []
    if shared() - before:  # of another program, for a moment
        time.sleep(0.5)
    assert shared() - before == set()


@pytest.fixture
def alone():
    """Run one of the functions below in a process group of its own, within a limit."""

    def start(function, *arguments):
        code = f"import test_environments as t; t.{function.__name__}(*{arguments!r})"
        folder = str(Path(__file__).parent)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        started.append(process)
        return process

    def run(function, *arguments, limit=25):
        process = start(function, *arguments)
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"still running after {limit} s:\n{output}")
        assert process.returncode == 0, output
        assert members(process.pid) == []
        return output

    started = []
    run.start = start
    yield run
    for process in started:
        if members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", VALUES)
def test_what_the_spaces_do_not_allow_is_refused_at_its_step(kind, what, tmp_path):
    envs = faulty(kind, what, tmp_path / "journal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps, fault = until_fault(envs)
    assert steps == 4
    assert (tmp_path / "journal").read_text() == "5\n"
    place = rf"environment 1 of {ID} \(seed {SEEDS[1]}, episode 1, step 5\) gave "
    assert re.match(place + ".*" + VALUES[what][2], str(fault)), fault
    assert fault.index == 1
    with pytest.raises(EnvironmentFault, match="after a fault are of no more use"):
        envs.step(np.zeros(3, int))
    with pytest.raises(EnvironmentFault, match="after a fault are of no more use"):
        reset(envs, SEED)
    closed_quickly(envs)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_told_with_its_place_and_traceback(kind, mode, tmp_path):
    envs = faulty(kind, "raise", tmp_path / "journal", at=6, autoreset_mode=mode)
    steps, fault = until_fault(envs)
    assert steps == 5
    assert (tmp_path / "journal").read_text() == "6\n"
    told = (
        f"environment 1 of {ID} (seed {SEEDS[1]}, episode 1, step 6) raised ZeroDivisionError: the world ends"
    )
    assert str(fault) == told
    assert (fault.index, fault.seed, fault.episode, fault.step) == (1, SEEDS[1], 1, 6)
    assert "in step" in fault.trace
    assert "ZeroDivisionError: the world ends" in fault.trace
    assert fault.__cause__ is not None, "the traceback is shown with the fault"
    closed_quickly(envs)


class Unlucky(gym.Env):
    """Fails in one of its methods."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, fails):
        self.fails = fails
        if fails == "init":
            raise KeyError("no display")

    def reset(self, *, seed=None, options=None):
        if self.fails == "reset":
            sys.exit(0)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        if self.fails == "step":
            sys.exit(0)
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def close(self):
        if self.fails == "close":
            raise KeyError("no display")


@pytest.fixture
def unlucky(monkeypatch):
    spec = EnvSpec("pgce-test/Unlucky-v0", entry_point=Unlucky, disable_env_checker=True)
    monkeypatch.setitem(gym.registry, spec.id, spec)
    return lambda fails, how="sync": make(spec.id, 2, vectorization=how, fails=fails)


def test_an_environment_that_cannot_be_made_is_named(unlucky):
    with pytest.raises(EnvironmentFault, match="Unlucky-v0 cannot be made: KeyError: 'no display'") as told:
        unlucky("init")
    assert "raise KeyError" in told.value.trace


def test_those_that_were_made_are_closed_where_one_cannot_be():
    closed = []

    class Counted(Unlucky):
        def close(self):
            closed.append(self)
            raise KeyError("no display")

    makes = [lambda: Counted("nothing"), lambda: Counted("nothing"), lambda: Unlucky("init")]
    with pytest.raises(KeyError, match="no display"):
        GuardedSyncVectorEnv(makes, "Unlucky-v0")
    assert len(closed) == 2


@pytest.mark.parametrize("where", ["reset", "step"])
def test_an_environment_does_not_end_the_program(unlucky, where):
    envs = unlucky(where)
    if where == "step":
        envs.reset(seed=1)
    with pytest.raises(EnvironmentFault, match="raised SystemExit: 0"):
        envs.reset(seed=1) if where == "reset" else envs.step(np.zeros(2, np.int64))


def test_what_cannot_be_closed_is_warned_of(unlucky):
    envs = unlucky("close")
    with pytest.warns(RuntimeWarning, match="environment [01] of .*Unlucky-v0 cannot be closed: KeyError"):
        envs.close()
    envs = unlucky("close", "async")
    envs.reset(seed=1)
    envs.close()


@pytest.mark.parametrize(
    ("content", "told"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("def f(:", "SyntaxError: invalid syntax")],
)
def test_a_module_that_fails_is_told(tmp_path, monkeypatch, content, told):
    (tmp_path / "unsound_module.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(EnvironmentFault, match=rf"unsound_module:It-v0 cannot be made: {told}"):
        make("unsound_module:It-v0", allow_import=True)


class Vector(gym.vector.VectorEnv):
    """Two environments whose numbers have other shapes, or which tell less than they should."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space, single_action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    num_envs = 2

    def __init__(self, **given):
        self.given = {"reward": np.zeros(2), "terminated": np.zeros(2, bool), "info": {}, **given}
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, 2)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, 2)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions):
        told = self.given
        return (
            np.zeros((2, 2), np.float32),
            told["reward"],
            told["terminated"],
            np.zeros(2, bool),
            told["info"],
        )


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"reward": 1.0}, EnvironmentFault, r"one reward an environment, \(2,\): .* gave the shape \(\)"),
        ({"reward": np.zeros(1)}, EnvironmentFault, r"one reward an environment, \(2,\): .* shape \(1,\)"),
        ({"terminated": np.zeros((2, 1), bool)}, EnvironmentFault, r"one terminated .* shape \(2, 1\)"),
        (
            {"terminated": np.ones(2, bool)},
            EnvironmentFault,
            r'info\["final_obs"\] has the last observations',
        ),
        (
            {"info": {"action_mask": np.ones((2, 2))}},
            ValueError,
            "give action masks do so from their reset on",
        ),
    ],
)
def test_vector_environments_that_would_be_misread(given, error, told):
    collector = Collector(Vector(**given), lambda x: x, 4, seed=1)
    with pytest.raises(error, match=told):
        collector.collect()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_fault_of_a_later_episode_has_its_number(kind, mode):
    class Later(Faulty):
        def reset(self, *, seed=None, options=None):
            self.episodes = 1 if seed is not None else self.episodes + 1
            observation, info = super().reset(seed=seed)
            return observation[: 4 if self.episodes < 3 else 1], info

    gym.registry["pgce-test/Later-v0"] = EnvSpec(
        "pgce-test/Later-v0", entry_point=Later, disable_env_checker=True
    )
    envs = make("pgce-test/Later-v0", 3, vectorization=kind, autoreset_mode=mode)
    reset(envs, SEED)
    steps, fault = until_fault(envs)
    assert steps == (17 if mode is AutoresetMode.NEXT_STEP else 15)
    assert fault.index == 0
    if mode is AutoresetMode.NEXT_STEP:
        assert (fault.episode, fault.step) == (3, 0)
    closed_quickly(envs)
    del gym.registry["pgce-test/Later-v0"]


@pytest.mark.parametrize("what", VALUES)
def test_where_all_environments_are_alike_at_fault_it_is_seen_too(what):
    faulty("sync", "").close()
    envs = make(ID, 1, vectorization="sync", what=what)
    envs.reset(seed=[SEEDS[1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            envs.step(np.zeros(1, int))
        with pytest.raises(EnvironmentFault, match=VALUES[what][2]):
            envs.step(np.zeros(1, int))


def test_doubles_are_to_be_finite_in_float32_and_no_lists(monkeypatch):
    monkeypatch.setattr(Faulty, "observation_space", spaces.Box(-np.inf, np.inf, (4,), np.float64))
    monkeypatch.setattr(Faulty, "see", lambda self: np.full(4, self.time, np.float64))
    for what in ("list", "float64", "nan"):
        faulty("sync", what)
        envs = make(ID, 1, vectorization="sync", what=what)
        envs.reset(seed=[SEEDS[1]])
        for _ in range(4):
            assert envs.step(np.zeros(1, int))[0].dtype == np.float64
        with pytest.raises(EnvironmentFault, match=r"of type list|not finite in float32"):
            envs.step(np.zeros(1, int))


@pytest.mark.parametrize("kind", KINDS)
def test_actions_are_refused_before_they_reach_an_environment(kind):
    envs = faulty(kind, "")
    for actions, told in (
        ([0, 1, 2], r"they are in Discrete\(2\): \[0, 1, 2\]"),
        ([0, -1, 0], "they are in"),
        ([0, 1], r"they have shape \(2,\)"),
        ([0.0, np.nan, 1.0], "they are integers: they are of float64"),
        ([[0], [1], [0]], r"they have shape \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=f"actions of {ID}: .*{told}"):
            envs.step(np.array(actions))
    assert (envs.step(np.zeros(3, int))[0] == 1).all(), "none of them was a step"
    closed_quickly(envs)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_without_a_fault_all_is_as_by_gymnasium(mode):
    def single():
        return gym.make("CartPole-v1", max_episode_steps=30)

    ours = [make("CartPole-v1", 3, vectorization=k, autoreset_mode=mode, max_episode_steps=30) for k in KINDS]
    every = [
        SyncVectorEnv([single] * 3, autoreset_mode=mode),
        AsyncVectorEnv([single] * 3, autoreset_mode=mode),
        *ours,
    ]
    generator = np.random.default_rng(0)
    first, *others = [reset(envs, 3) for envs in every]
    ends = 0
    for _ in range(120):
        for other in others:
            np.testing.assert_equal(other[:-1], first[:-1])
            assert repr(sorted(other[-1].items())) == repr(sorted(first[-1].items()))
        actions = generator.integers(0, 2, 3)
        first, *others = [envs.step(actions) for envs in every]
        done = first[2] | first[3]
        ends += done.sum()
        if mode is AutoresetMode.DISABLED and done.any():
            first, *others = [envs.reset(options={"reset_mask": done}) for envs in every]
    assert ends > 5
    for envs in every:
        assert envs.metadata["autoreset_mode"] is mode
        envs.close()


def test_async_gives_attributes_and_raises_the_errors_of_calls():
    envs = faulty("async", "")
    assert envs.get_attr("at") == (5, 5, 5)
    envs.set_attr("at", [1, 2, 3])
    assert envs.call("at") == (1, 2, 3)
    with pytest.raises(AttributeError, match="nothing"):
        envs.call("nothing")
    assert envs.step(np.zeros(3, int))[0][0, 0] == 1, "still in use"
    closed_quickly(envs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_one_restart_truncates_the_episode_and_the_next_fault_is_raised(kind, mode, tmp_path):
    envs = faulty(kind, "raise", tmp_path / "journal", autoreset_mode=mode, env_restarts=1)
    for _ in range(4):
        envs.step(np.zeros(3, int))
    with pytest.warns(RuntimeWarning, match="the world ends: made anew, 0 restarts left"):
        observation, reward, terminated, truncated, info = envs.step(np.zeros(3, int))
    assert envs.restarts == 1
    assert reward.tolist() == [1, 0, 1]
    assert truncated.tolist() == [False, True, False]
    assert not terminated.any()
    assert info["env_restarted"].tolist() == [False, True, False]
    if mode is AutoresetMode.SAME_STEP:
        assert observation[:, 0].tolist() == [5, 0, 5]
        assert (info["final_obs"][1] == 4).all(), "where it was last seen"
    else:
        assert observation[:, 0].tolist() == [5, 4, 5]
        if mode is AutoresetMode.DISABLED:
            observation, _ = envs.reset(options={"reset_mask": truncated})
        else:
            observation = envs.step(np.zeros(3, int))[0]
        assert observation[1, 0] == 0
    reset(envs, SEED)  # the fault again, of which there may be no more
    steps, fault = until_fault(envs)
    assert (steps, fault.index) == (4, 1)
    assert (tmp_path / "journal").read_text() == "5\n5\n"
    closed_quickly(envs)


@pytest.mark.parametrize("kind", KINDS)
def test_restarts_that_are_allowed_are_not_those_of_a_state(kind):
    """Whoever goes on with a run that ended by a fault allows more of them."""
    spent, more = (faulty(kind, "raise", env_restarts=restarts) for restarts in (1, 2))
    for envs in (spent, more):
        if envs is more:
            set_state(more, get_state(spent))
            reset(more, SEED)
        with pytest.warns(RuntimeWarning, match="0 restarts left"):
            assert [envs.step(np.zeros(3, int)) for _ in range(6)], "the last resets it"
    assert (spent.restarts, more.restarts) == (1, 2)
    spent.close()
    closed_quickly(more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("what", ["raise", "nan"])
def test_nothing_is_learned_from_the_step_of_a_restart(kind, mode, what):
    import torch

    from pgce.returns import gae
    from pgce.rollout import Collector

    envs = faulty(kind, what, autoreset_mode=mode, env_restarts=1)
    collector = Collector(envs, lambda x: torch.zeros(len(x), 2), 16, seed=SEED)
    with pytest.warns(RuntimeWarning, match="made anew"):
        rollout = collector.collect()
    assert not rollout.valid[4, 1]
    assert rollout.truncated[:5, 1].tolist() == [False] * 3 + [True, False]
    assert rollout.valid[:5].sum() == 14
    assert rollout.reward[4, 1] == 0
    lengths = {env: rollout.episode_length[rollout.episode_env == env].tolist() for env in range(3)}
    assert lengths[0][0] == lengths[2][0] == 8
    assert lengths[1][:1] == [4]
    assert rollout.episode.max() + 1 == len(rollout.episode_length)
    assert rollout.first_episode.sum(0).tolist() == [8, 4, 8]
    value, following = rollout.values(lambda x: x[:, 0])
    assert following[3, 1] == value[4, 1] == 4
    ends = rollout.terminated, rollout.truncated
    advantage = gae(rollout.reward, *ends, value, following, gamma=0.5, gae_lambda=0.5)
    assert advantage[3, 1] == rollout.reward[3, 1] + 0.5 * 4 - 3
    closed_quickly(envs)


def fault_of_a_process(what, told, limit, restarts=0, workers=3):
    """In a process of its own: the fault within the limit, no further use, nothing left."""
    envs = faulty("async", what, step_timeout=1.0, env_restarts=restarts, env_workers=workers)
    assert len(envs.processes) == workers
    lost = {3: [1], 2: [1, 2], 1: [0, 1, 2]}[workers]  # with the second, by whom they share a process
    begun = time.monotonic()
    if restarts:
        steps = [envs.step(np.zeros(3, int)) for _ in range(12)]
        assert envs.restarts == 1
        assert [step[3].any() for step in steps].index(True) == 4
        assert steps[4][3].nonzero()[0].tolist() == lost
        assert steps[4][4]["env_restarted"].nonzero()[0].tolist() == lost
        assert steps[4][1].tolist() == [float(i not in lost) for i in range(3)]
        assert steps[4][0][1:, 0].tolist() == [4, 4 if 2 in lost else 5], "where they were last seen"
        for i in lost:
            assert [step[0][i, 0] for step in steps[5:]] == [0, 1, 2, 3, 4, 5, 6]
    else:
        steps, fault = until_fault(envs)
        assert (steps, fault.index, fault.step) == (4, 1, 5), str(fault)
        assert told in str(fault), str(fault)
        if "hangs" in told:
            assert "in step" in str(fault), "the line where it hangs"
            assert "time.sleep" in fault.trace or "line" in fault.trace
        for use in (lambda: envs.step(np.zeros(3, int)), lambda: reset(envs, 0), lambda: envs.call("at")):
            with pytest.raises(EnvironmentFault, match="of no more use"):
                use()
    assert time.monotonic() - begun < limit
    closed_quickly(envs)


@pytest.mark.parametrize(
    ("what", "told", "limit"),
    [
        ("hang", "hangs: no answer in 1 s (step_timeout), in File ", 5),
        ("deaf", "hangs: no answer in 1 s (step_timeout), in File ", 5),
        ("die", "died: its process was killed by signal 9 (SIGKILL)", 2),
        ("exit", "died: its process ended with exit code 3", 2),
    ],
)
@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_process_that_hangs_or_dies_is_told_in_time(alone, what, told, limit, restarts, workers):
    alone(fault_of_a_process, what, told, limit, restarts, workers)


class Reuses(gym.Env):
    """Observations are one array, rewards another, counting the steps of an episode of three.

    Its own infos have a key of the vector environment's.
    """

    observation_space, action_space = gym.spaces.Box(0, 9, (4,)), gym.spaces.Discrete(2)

    def __init__(self, **options):
        self.array, self.reward = np.zeros(4, np.float32), np.zeros(())

    def reset(self, *, seed=None, options=None):
        self.array[:], self.reward[...] = 0, 0
        return self.array, {"final_obs": "of the first season"}

    def step(self, action):
        self.array += 1
        self.reward += 1
        return self.array, self.reward, bool(self.array[0] == 3), False, {}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_last_step_outlives_a_reset_in_the_same_arrays(kind):
    envs = faulty(kind, "", entry_point=Reuses, autoreset_mode=AutoresetMode.SAME_STEP)
    for t in range(1, 7):
        observation, reward, *_, info = envs.step(np.zeros(3, int))
        assert (observation == t % 3).all()
        assert (reward == (t - 1) % 3 + 1).all()
        assert ("final_obs" in info) == (t % 3 == 0)
        if t % 3 == 0:
            assert (np.stack(info["final_obs"]) == 3).all()
    closed_quickly(envs)


class Slow(Faulty):
    """Every step takes a while."""

    def step(self, action):
        time.sleep(0.3)
        return super().step(action)


def waits_for_each():
    envs = faulty("async", "", step_timeout=0.6, env_workers=1, entry_point=Slow)
    assert (envs.step(np.zeros(3, int))[0] == 1).all(), "0.9 s in one process, 0.3 s each"
    closed_quickly(envs)


def test_the_limit_is_that_of_one_environment(alone):
    alone(waits_for_each)


def dies_between_steps():
    envs = faulty("async", "", env_restarts=1, env_workers=2)
    envs.step(np.zeros(3, int))
    os.kill(envs.processes[1].pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match=r"environment 1 of .* died: its process was killed"):
        _, reward, _, truncated, info = envs.step(np.zeros(3, int))
    assert reward.tolist() == [1, 0, 0]
    assert truncated.tolist() == info["env_restarted"].tolist() == [False, True, True]
    assert envs.step(np.zeros(3, int))[0][:, 0].tolist() == [3, 0, 0]
    os.kill(envs.processes[0].pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match=r"environment 0 of .* died"):
        envs.step(np.zeros(3, int))
    closed_quickly(envs)


def test_a_process_that_dies_between_steps_is_replaced_once(alone):
    alone(dies_between_steps)


class Informed(Faulty):
    """Tells much, each time something else."""

    def step(self, action):
        observation, *outcome, _ = super().step(action)
        infos = [
            {"x": 1.5, "n": self.time, "name": "a", "array": np.arange(3), "in": {"y": True}},
            {"x": np.float64(self.time), "array": np.arange(3) + self.time, "yes": np.bool_(True)},
            {},
            {"x": 2.5, "n": 7, "name": None, "in": {"y": False, "z": 1.0}},
        ]
        return observation, *outcome, infos[(self.time + int(self.bad)) % 4]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_infos_are_told_as_by_gymnasium(workers):
    envs = faulty("async", "", env_workers=workers, entry_point=Informed)
    own, theirs = faulty("sync", "", entry_point=Informed), SyncVectorEnv([Informed] * 3)
    theirs.reset(seed=SEEDS)
    for _ in range(20):
        expected = theirs.step(np.zeros(3, int))[-1]
        for each in (envs, own):
            infos = each.step(np.zeros(3, int))[-1]
            assert infos.keys() == expected.keys()
            for key, value in expected.items():
                assert repr(infos[key]) == repr(value), key
    closed_quickly(envs)


class Unlike(gym.Env):
    """Tells by one name what no array of one type and shape holds."""

    observation_space, action_space = spaces.Discrete(1), spaces.Discrete(2)

    def __init__(self, index):
        self.index = index

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        told = {
            "path": np.arange(self.index),
            "goal": [None, 2, "far"][self.index],
            "distance": [1, 2.5, np.float32(3)][self.index],
            "car": [None, {"gear": 1}, {"gear": "R"}][self.index],
            "in": {"hit": [1.5, None, "wall"][self.index]},
        }
        return 0, told if self.index else {"some": 1, **told}


@pytest.mark.parametrize("workers", [None, 1, 2, 3])
def test_infos_that_are_not_alike_are_told_as_they_are(workers):
    makes = [partial(Unlike, i) for i in range(3)]
    envs = (
        GuardedSyncVectorEnv(makes, "U")
        if workers is None
        else GuardedAsyncVectorEnv(makes, "U", workers=workers)
    )
    info = envs.reset(seed=0)[1]
    assert [path.tolist() for path in info["path"]] == [[], [0], [0, 1]]
    assert info["goal"].tolist() == [None, 2, "far"]
    assert info["distance"].tolist() == [1.0, 2.5, 3.0]
    assert info["car"].tolist() == [None, {"gear": 1}, {"gear": "R"}]
    assert info["in"]["hit"].tolist() == [1.5, None, "wall"]
    assert info["_some"].tolist() == [True, False, False]
    assert all(info[f"_{key}"].all() for key in ("path", "goal", "distance", "car", "in"))
    envs.close()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_states_are_the_same_in_one_process_and_in_several(mode):
    made = {"autoreset_mode": mode, "max_episode_steps": 30}
    one, other, late = (make("CartPole-v1", 3, vectorization=k, **made) for k in ("sync", "async", "async"))
    actions = np.random.default_rng(0).integers(0, 2, (60, 3))
    for envs in (one, other):
        reset(envs, 1)
        for action in actions[:20]:
            one_step(envs, action)
    reset(late, 2)
    set_state(late, get_state(one))
    set_state(one, get_state(other))
    for action in actions[20:]:
        expected = repr(one_step(other, action))
        assert repr(one_step(one, action)) == repr(one_step(late, action)) == expected
    with pytest.raises(ValueError, match="the state is of 3 environments: there are 2"):
        set_state(make("CartPole-v1", 2, vectorization="sync"), get_state(one))
    other.close()
    closed_quickly(late)


class Opaque(Faulty):
    """Holds what is no plain data."""

    def __init__(self, **how):
        super().__init__(**how)
        self.engine = object()


def test_what_is_no_plain_data_cannot_be_saved_from_processes():
    envs = faulty("async", "", entry_point=Opaque)
    with pytest.raises(ValueError, match=r"only plain data can be saved: .*engine is object"):
        get_state(envs)
    assert envs.step(np.zeros(3, int))[0][0, 0] == 1, "still in use"
    closed_quickly(envs)


@pytest.mark.parametrize(("entry_point", "kind"), [(Slow, AsyncVectorEnv), (Faulty, SyncVectorEnv)])
def test_auto_takes_what_is_faster(entry_point, kind, monkeypatch):
    monkeypatch.setattr("pgce.envs.workers.cores", lambda: 3)
    monkeypatch.setattr("pgce.envs.vectorize.cores", lambda: 3)
    monkeypatch.setattr(Slow, "step", lambda self, action: (time.sleep(0.01), Faulty.step(self, action))[1])
    envs = faulty("auto", "", entry_point=entry_point)
    assert isinstance(envs, kind)
    assert envs.spec.kwargs["vectorization_mode"] == ("async" if kind is AsyncVectorEnv else "sync")
    closed_quickly(envs)


def test_alone_on_a_core_auto_is_sync(monkeypatch):
    monkeypatch.setattr("pgce.envs.vectorize.cores", lambda: 1)
    assert isinstance(faulty("auto", "", entry_point=Slow), SyncVectorEnv)


def constructor_that_fails_in_the_worker():
    with pytest.raises(EnvironmentFault, match="raised LookupError: no licence for this process") as caught:
        faulty("async", "worker")
    assert caught.value.index == 0
    assert "in __init__" in caught.value.trace
    assert multiprocessing.active_children() == []


def test_a_constructor_that_fails_only_in_a_process_is_told(alone):
    alone(constructor_that_fails_in_the_worker)


def waits_for_ever():
    envs = faulty("async", "deaf", at=1, step_timeout=None)
    print(*(process.pid for process in envs.processes), flush=True)
    envs.step(np.zeros(3, int))


def test_processes_end_with_a_trainer_that_is_killed(alone):
    process = alone.start(waits_for_ever)
    workers = process.stdout.readline().split()
    assert len(workers) == 3, workers
    time.sleep(0.3)  # until one hangs
    assert not any(map(gone, workers))
    assert process.poll() is None
    process.kill()
    deadline = time.monotonic() + 3
    while not all(map(gone, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, workers))


def handlers_of_a_trainer(first):
    """Handlers that set a flag: signals to all leave the processes be, and a hung one can be closed."""
    seen = []

    def handle():
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))

    if first:
        handle()
    envs = faulty("async", "hang", at=3, step_timeout=None)
    if not first:
        handle()
    envs.step(np.zeros(3, int))
    os.killpg(0, signal.SIGINT)
    os.killpg(0, signal.SIGTERM)
    assert (envs.step(np.zeros(3, int))[0] == 2).all(), "a step after the signals"
    assert seen == [signal.SIGINT, signal.SIGTERM]
    envs.step_async(np.zeros(3, int))
    time.sleep(0.3)
    begun = time.monotonic()
    envs.close(terminate=True)
    assert time.monotonic() - begun < 5
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("first", [True, False])
def test_signals_to_the_trainer_leave_the_processes_be(alone, first):
    alone(handlers_of_a_trainer, first)


def left_open():
    global envs  # until the very end
    envs = faulty("async", "deaf", at=3, step_timeout=None)
    envs.step(np.zeros(3, int))
    envs.step(np.zeros(3, int))
    envs.step_async(np.zeros(3, int))
    time.sleep(0.2)


def test_a_trainer_that_forgets_to_close_ends(alone):
    alone(left_open)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_out_of_range_are_refused(kind):
    with pytest.raises(ValueError, match="step_timeout is above 0, in seconds, or None: it is 0"):
        make("CartPole-v1", 2, vectorization=kind, step_timeout=0)
    with pytest.raises(ValueError, match="env_restarts is a whole number, at least 0: it is -1"):
        make("CartPole-v1", 2, vectorization=kind, env_restarts=-1)
    with pytest.raises(ValueError, match="env_workers is a whole number, at least 1, or None: it is 0"):
        make("CartPole-v1", 2, vectorization=kind, env_workers=0)


OF_A_MODULE = """
import gymnasium as gym, numpy as np

class Bad(gym.Env):
    observation_space = gym.spaces.Box(-9, 9, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 40:
            %s
        return observation, 1.0, False, False, {}

gym.register("Bad-v0", Bad)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "does", "told"),
    [
        ("sync", "raise KeyError('lost')", "raised KeyError: 'lost'"),
        ("async", "raise KeyError('lost')", "raised KeyError: 'lost'"),
        (
            "sync",
            "return np.full(2, np.nan, np.float32), 1.0, False, False, {}",
            "not finite in float32: it has nan",
        ),
        ("async", "return np.zeros(1, np.float32), 1.0, False, False, {}", "of shape (1,): (2,) is expected"),
    ],
)
def test_by_script_a_fault_ends_with_70_and_says_where(repository, tmp_path, kind, does, told):
    source = OF_A_MODULE.replace("return observation", "return np.zeros(2, np.float32)") % does
    (tmp_path / "bad_module.py").write_text(source)
    path = os.pathsep.join([str(tmp_path), str(repository)])
    command = [sys.executable, str(repository / "agents/ppo.py"), "--env", "bad_module:Bad-v0"]
    flags = ["--allow-import", "--num-envs", "2", "--vectorization", kind, "--quiet", "--no-track"]
    done = subprocess.run(
        [*command, *flags, "--runs-dir", str(tmp_path / "runs")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 70, done.stderr
    assert "error: environment 0 of Bad-v0 (seed " in done.stderr
    assert "episode 1, step 40) " in done.stderr
    assert told in done.stderr
