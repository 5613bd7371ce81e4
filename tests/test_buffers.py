"""Rollouts and what is made of them, equal to numbers computed by hand and to a loop over single episodes.

The environments are stepped one after the other, in processes, and by a native vector version, in all three
autoreset modes.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import pgce.envs
from pgce.envs.vector_base import NumpyVectorEnv
from pgce.returns import discounted, gae, n_step, vtrace
from pgce.rollout import Collector

NEXT_STEP = AutoresetMode.NEXT_STEP
ENDS = np.array([2, 9, 3, 4, 1])  # at which step an episode terminates; the limit cuts it at 4
LIMIT = 4
SPACE = Box(-1e6, 1e6, (3,), np.float32)


class Ladder(gym.Env):
    """Observes (which, episode, step) and pays 10 · episode + step + action/4.

    Episodes 0, 1, 2, … of environment 0 end: terminated at 2, cut at 4, terminated at 3, both at 4,
    terminated at 1; environment `which` begins later in that list.
    """

    observation_space = SPACE
    action_space = Discrete(3)

    def __init__(self, which=0):
        self.which, self.episode = which, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        terminated = self.time == int(ENDS[(self.which + self.episode) % 5])
        reward = 10.0 * self.episode + self.time + action / 4
        return self._observation(), reward, terminated, False, {}

    def _observation(self):
        return np.array([self.which, self.episode, self.time], np.float32)


class VectorLadder(NumpyVectorEnv):
    def __init__(self, num_envs, autoreset_mode="NextStep"):
        super().__init__(num_envs, autoreset_mode, LIMIT, SPACE, Ladder.action_space)
        self.which, self.episode = np.arange(num_envs), np.full(num_envs, -1)
        self.time = np.zeros(num_envs, np.int64)

    def _begin(self, rows, options):
        self.episode[rows] += 1
        self.time[rows] = 0

    def _advance(self, actions):
        self.time += 1
        reward = 10.0 * self.episode + self.time + actions / 4
        return reward, self.time == ENDS[(self.which + self.episode) % 5]

    def _observe(self):
        return np.stack([self.which, self.episode, self.time], 1).astype(np.float32)


@pytest.fixture(params=["sync", "async", "native"])
def make(request):
    """Vector environments by (N, mode), which are closed."""
    made = []
    gym.register("Ladder-v0", vector_entry_point=VectorLadder)

    def vector(n, mode):
        if request.param == "native":
            made.append(pgce.envs.make("Ladder-v0", n, autoreset_mode=mode))
        else:
            kind = SyncVectorEnv if request.param == "sync" else AsyncVectorEnv
            single = [lambda i=i: gym.wrappers.TimeLimit(Ladder(i), LIMIT) for i in range(n)]
            made.append(kind(single, autoreset_mode=mode))
        assert made[-1].metadata["autoreset_mode"] == mode
        return made[-1]

    yield vector
    for envs in made:
        envs.close()
    del gym.registry["Ladder-v0"]


def first_action(observation):
    return torch.tensor([0.0, -1.0, -1.0]).expand(len(observation), 3)


# Eight transitions of environment 0: an episode that terminates after 2 steps, one that is cut after 4, and
# two steps of one that goes on; γ = λ = ½, V = 8 · episode + 4 · step.
OBSERVATION = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]
REWARD = [1, 2, 11, 12, 13, 14, 21, 22]
VALUE = [0, 4, 8, 12, 16, 20, 16, 20]
NEXT_VALUE = [4, 8, 12, 16, 20, 24, 20, 24]  # row 1 terminated: its 8 is never read
# δ = r + ½ · next value − V    3  −2   9   8   7   6  15  14
RETURN = [1 + 1, 2, 11 + 12.5, 12 + 13, 13 + 13, 14 + 12, 21 + 17, 22 + 12]
ADVANTAGE = [3 - 0.5, -2, 9 + 2.53125, 8 + 2.125, 7 + 1.5, 6, 15 + 3.5, 14]
TWO_STEPS = [1 + 1, 2, 11 + 6 + 4, 12 + 6.5 + 5, 13 + 7 + 6, 14 + 12, 21 + 11 + 6, 22 + 12]
RATIO = [0.5, 4.0] * 4  # of which ρ = c = ½, 1, ½, 1, …
CORRECTION = [1.5 - 0.5, -2, 4.5 + 2.625, 8 + 2.5, 3.5 + 1.5, 6, 7.5 + 3.5, 14]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_numbers_by_hand(make, mode):
    resets = [2, 7] if mode == NEXT_STEP else []  # rows in which the environment only begins anew
    steps = 8 + len(resets)
    rollout = Collector(make(1, mode), first_action, steps, seed=0, greedy=True).collect()
    rows = [t for t in range(steps) if t not in resets]
    seen = [tuple(map(int, row)) for row in rollout.observation[:, 0, 1:].tolist()]
    assert [seen[t] for t in rows] == OBSERVATION
    assert [seen[t] for t in resets] == ([(0, 2), (1, 4)] if resets else [])
    assert seen[-1] == (2, 2)
    assert rollout.valid[:, 0].nonzero()[:, 0].tolist() == rows
    assert rollout.steps == 8
    assert rollout.reward[rows, 0].tolist() == REWARD
    assert rollout.reward[resets, 0].tolist() == [0] * len(resets)
    assert rollout.action[:, 0].tolist() == [0] * steps
    assert rollout.terminated[:, 0].nonzero()[:, 0].tolist() == [rows[1]]
    assert rollout.truncated[:, 0].nonzero()[:, 0].tolist() == [rows[5]]
    assert rollout.final_index.tolist() == ([] if resets else [1, 5])
    assert rollout.final_observation.tolist() == ([] if resets else [[0, 0, 2], [0, 1, 4]])
    assert rollout.episode_return.tolist() == [1 + 2, 11 + 12 + 13 + 14]
    assert rollout.episode_length.tolist() == [2, 4]

    value, next_value = rollout.values(lambda observation: observation @ torch.tensor([0.0, 8.0, 4.0]))
    assert value[rows, 0].tolist() == VALUE
    assert next_value[rows, 0].tolist() == NEXT_VALUE
    ratio = torch.ones(steps, 1)
    ratio[rows, 0] = torch.tensor(RATIO)
    columns = rollout.reward, rollout.terminated, rollout.truncated
    for result, expected in (
        (discounted(*columns, 0.5, next_value), RETURN),
        (gae(*columns, value, next_value, 0.5, 0.5), ADVANTAGE),
        (n_step(*columns, next_value, 0.5, 2), TWO_STEPS),
        (vtrace(ratio, *columns, value, next_value, 0.5), CORRECTION),
    ):
        assert result[rows, 0].tolist() == expected


class ByEpisodes:
    """Plays one environment by itself, episode by episode, and tells what a buffer of it must hold."""

    def __init__(self, which, mode):
        self.env, self.mode, self.over = Ladder(which), mode, False
        self.seen, _ = self.env.reset()

    def play(self, actions):
        """The rows, (observation, reward, terminated, truncated), None where none; the next observation."""
        rows, segments = [], [[]]  # a segment: (row, observation, reward, terminated, next observation)
        for t, action in enumerate(actions):
            if self.over:
                rows.append((self.seen, 0.0, False, False, False))
                self.seen, _ = self.env.reset()
                self.over = False
                continue
            before = self.seen
            self.seen, reward, terminated, *_ = self.env.step(action)
            truncated = self.env.time == LIMIT
            rows.append((before, reward, terminated, truncated, True))
            segments[-1].append((t, before, reward, terminated, self.seen))
            if terminated or truncated:
                segments.append([])
                if self.mode == NEXT_STEP:
                    self.over = True
                else:
                    self.seen, _ = self.env.reset()
        return rows, [segment for segment in segments if segment]


WORTH = np.array([0.5, -0.25, 0.75])
GAMMA, LAMBDA, STEPS, MAX_RHO, MAX_C = 0.9, 0.8, 3, 1.25, 1.0


def of_segment(segment, ratio):
    """Return to go, n-step return, advantage and V-trace correction by their definitions, as sums."""
    value = [WORTH @ observation for _, observation, *_ in segment]
    after = [0.0 if terminated else WORTH @ following for *_, terminated, following in segment]
    reward = [r for _, _, r, *_ in segment]
    delta = [r + GAMMA * v - u for r, v, u in zip(reward, after, value, strict=True)]
    rho, c = np.minimum(ratio, MAX_RHO), np.minimum(ratio, MAX_C)
    end, result = len(segment), []
    for t in range(end):
        stop = min(t + STEPS, end)
        result.append(
            (
                sum(GAMMA ** (k - t) * reward[k] for k in range(t, end)) + GAMMA ** (end - t) * after[-1],
                sum(GAMMA ** (k - t) * reward[k] for k in range(t, stop))
                + GAMMA ** (stop - t) * after[stop - 1],
                sum((GAMMA * LAMBDA) ** (k - t) * delta[k] for k in range(t, end)),
                sum((GAMMA * LAMBDA) ** (k - t) * np.prod(c[t:k]) * rho[k] * delta[k] for k in range(t, end)),
            )
        )
    return result


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("lengths", [(21,), (7, 7, 7), (1, 2, 4, 14)], ids=str)
def test_episodes_by_themselves(make, mode, lengths):
    """Six environments, actions as drawn, episodes that go on across rollouts."""
    n, rng = 6, np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    collector = Collector(make(n, mode), lambda o: 0.1 * o.sin(), 1, seed=0, generator=generator)
    references = [ByEpisodes(i, mode) for i in range(n)]
    ends = np.zeros(3, np.int64)
    for length in lengths:
        collector.num_steps = length
        rollout = collector.collect()
        assert rollout.cross_entropy.shape == rollout.action.shape == (length, n)
        ratio = rng.uniform(0.3, 2.0, (length, n)).astype(np.float32)
        value, next_value = rollout.values(lambda o: o @ torch.tensor(WORTH, dtype=torch.float32))
        columns = rollout.reward, rollout.terminated, rollout.truncated
        results = (
            discounted(*columns, GAMMA, next_value),
            n_step(*columns, next_value, GAMMA, STEPS),
            gae(*columns, value, next_value, GAMMA, LAMBDA),
            vtrace(torch.tensor(ratio), *columns, value, next_value, GAMMA, LAMBDA, MAX_RHO, MAX_C),
        )
        for i, reference in enumerate(references):
            rows, segments = reference.play(rollout.action[:, i].tolist())
            observation, *rest = map(np.array, zip(*rows, strict=True))
            np.testing.assert_array_equal(rollout.observation[:-1, i], observation)
            np.testing.assert_array_equal(rollout.observation[-1, i], reference.seen)
            for name, expected in zip(("reward", "terminated", "truncated", "valid"), rest, strict=True):
                np.testing.assert_array_equal(getattr(rollout, name)[:, i], expected, name)
            assert sum(map(len, segments)) == rollout.valid[:, i].sum()
            for segment in segments:
                where = [t for t, *_ in segment]
                for ours, expected in zip(
                    results, zip(*of_segment(segment, ratio[where, i]), strict=True), strict=True
                ):
                    np.testing.assert_allclose(ours[where, i], expected, rtol=2e-5, atol=2e-5)
            done = [row[2:4] for row in rows]
            ends += [done.count(kind) for kind in ((True, False), (False, True), (True, True))]
    assert (ends >= 4).all(), "terminated, cut, and both at once"
    assert len(set(rollout.action.flatten().tolist())) == 3


@pytest.fixture
def envpool():
    """EnvPool, whose wheels are of Linux and macOS, and of Python 3.11 and later."""
    return pytest.importorskip("envpool", reason="EnvPool is not installed: pip install envpool")


def test_envpool_s_episodes_are_gymnasium_s(envpool):
    """CartPole, cut after 30 steps: every episode is played again by a single environment of Gymnasium."""
    envs = pgce.envs.make("CartPole-v1", 4, vectorization="envpool", max_episode_steps=30)
    assert envs.metadata["autoreset_mode"] == NEXT_STEP
    assert envs.observation_space.shape == (4, 4)
    generator = torch.Generator().manual_seed(0)
    collector = Collector(
        envs, lambda o: torch.stack([-o[:, 2], o[:, 2]], 1) * 9, 70, seed=5, generator=generator
    )
    rollouts = [collector.collect(), collector.collect()]
    single, ends = gym.make("CartPole-v1", max_episode_steps=30), []
    for i in range(4):
        state = None  # at the start, and after an end
        for rollout in rollouts:
            for t in range(70):
                if not rollout.valid[t, i]:
                    assert state is None
                    assert rollout.reward[t, i] == 0
                    continue
                if state is None:
                    single.reset()
                    single.unwrapped.state = tuple(rollout.observation[t, i].double().tolist())
                action = int(rollout.action[t, i])
                state, reward, terminated, truncated, _ = single.step(action)
                np.testing.assert_allclose(rollout.observation[t + 1, i], state, atol=1e-4)
                assert rollout.reward[t, i] == reward
                assert rollout.truncated[t, i] == truncated
                assert rollout.terminated[t, i] == (terminated and not truncated)
                if terminated or truncated:
                    ends.append(truncated)
                    state = None
    assert 4 < sum(ends) < len(ends) - 4
    ended = sum(len(rollout.episode_length) for rollout in rollouts)
    assert ended == len(ends)
    first = rollouts[0].observation[0]
    assert len(first[:, 0].unique()) == 4
    assert torch.equal(torch.from_numpy(pgce.envs.reset(envs, 5)[0]), first)
    assert not torch.equal(torch.from_numpy(pgce.envs.reset(envs, 6)[0])[:-1], first[1:])
    envs.close()
    with pytest.raises(ValueError, match="EnvPool's own: it has no 'Ladder-v0'"):
        pgce.envs.make("Ladder-v0", 2, vectorization="envpool")
    with pytest.raises(ValueError, match=r"it has .*NEXT_STEP"):
        pgce.envs.make("CartPole-v1", 2, vectorization="envpool", autoreset_mode="SameStep")


def test_an_agent_learns_on_envpool(envpool, tmp_path):
    settings = {"vectorization": "envpool", "quiet": True, "track": False, "runs_dir": str(tmp_path)}
    run = pgce.agents.PPO.preset("CartPole-v1", **settings).train()
    assert run.result["eval_mean"] > 400
    assert pgce.load(run.path).evaluate(10).mean() > 400


def test_envpool_is_asked_for_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match="vectorization envpool needs EnvPool, pip install envpool"):
        pgce.envs.make("CartPole-v1", 2, vectorization="envpool")
