"""Rollouts of a scripted environment, in all three autoreset modes; test_buffers.py has their numbers."""

from __future__ import annotations

import itertools
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

import pgce.envs
from pgce.envs.guard import EnvironmentFault, GuardedSyncVectorEnv
from pgce.networks import ActorCritic, Columns, Recurrent, Torso, Value, mlp
from pgce.policies import actor_critic
from pgce.rollout import Collector, evaluate, told_mask

NEXT_STEP = AutoresetMode.NEXT_STEP


class Scripted(gym.Env):
    """Observes (episode, step), pays 10 · episode + step, and ends as its script says."""

    observation_space = gym.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gym.spaces.Discrete(3, start=5)

    def __init__(self, script="t2 c3 t9"):
        self.script = [(word[0], int(word[1:])) for word in script.split()]  # t terminates, c cuts
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return self._observation(), {}

    def step(self, action):
        assert action in (5, 6, 7), action
        self.time += 1
        kind, length = self.script[self.episode]
        end = self.time == length
        reward = 10.0 * self.episode + self.time
        return self._observation(), reward, end and kind == "t", end and kind == "c", {}

    def _observation(self):
        return np.array([self.episode, self.time], np.float32)


def policy(observation):
    return torch.zeros(len(observation), 3)


def collector(mode, steps, scripts):
    envs = SyncVectorEnv([lambda s=s: Scripted(s) for s in scripts], autoreset_mode=mode)
    return Collector(envs, policy, steps, seed=0, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 6])
def test_two_rollouts_go_on_where_one_would(mode, cut):
    """Wherever the border falls: on an end, on a reset row, inside an episode."""
    scripts = ("t2 c3 t9", "c1 t1 t1 c4 t9")
    whole = collector(mode, 7, scripts).collect()
    parts = collector(mode, cut, scripts)
    first = parts.collect()
    parts.num_steps = 7 - cut
    second = parts.collect()
    for name in ("reward", "terminated", "truncated", "valid"):
        joined = torch.cat((getattr(first, name), getattr(second, name)))
        assert torch.equal(joined, getattr(whole, name)), name
    joined = torch.cat((first.observation[:-1], second.observation))
    assert torch.equal(joined, whole.observation)
    for name in ("episode_return", "episode_length", "episode_env"):
        joined = np.concatenate((getattr(first, name), getattr(second, name)))
        assert joined.tolist() == getattr(whole, name).tolist(), name
    final = torch.cat((first.final_observation, second.final_observation))
    assert torch.equal(final, whole.final_observation)


def test_the_batch_leaves_out_what_is_no_transition():
    rollout = collector(NEXT_STEP, 7, ("t2 c3 t9", "c1 t1 t1 c4 t9")).collect()
    batch = rollout.batch({"reward": rollout.reward})
    assert len(batch) == 14
    assert batch.count == rollout.steps == int(rollout.valid.sum()) < 14
    counted = batch.counted()
    assert (counted["reward"] > 0).all()
    assert torch.equal(counted.input[:2], torch.zeros(2, 2))
    assert counted["action"].dtype == torch.int64
    assert int(counted["action"].max()) <= 2, "stored as class ids, whatever the space starts at"


def test_episode_statistics_of_cartpole_are_gymnasium_s():
    """CartPole pays 1 a step: return equals length, and lengths add up to the steps taken."""
    envs = pgce.envs.make("CartPole-v1", 6)
    collect = Collector(envs, mlp(4, 2), 50, seed=3)
    lengths, steps = 0, 0
    for _ in range(10):
        rollout = collect.collect()
        assert rollout.episode_return.tolist() == rollout.episode_length.tolist()
        lengths += rollout.episode_length.sum()
        steps += rollout.steps
    assert lengths + collect._length.sum() == steps < 6 * 500


class Pointer(gym.Env):
    """Pays for the distance to a point; remembers the actions that reached it."""

    observation_space = gym.spaces.Discrete(2, start=3)

    def __init__(self):
        self.action_space = gym.spaces.Box(-0.5, 0.25, (2, 1), np.float64)
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 4, {}

    def step(self, action):
        self.received.append(action)
        return 3, 0.0, False, False, {}


def test_box_actions_are_stored_as_drawn_and_clipped_for_the_environment():
    envs = SyncVectorEnv([Pointer])
    rollout = Collector(envs, lambda obs: torch.zeros(len(obs), 2, 2), 200, seed=0).collect()
    received = np.array(envs.envs[0].received)
    assert received.shape == (200, 2, 1)
    assert received.dtype == np.float64
    assert received.min() == -0.5
    assert received.max() == 0.25
    drawn = rollout.action[:, 0].numpy()
    assert drawn.shape == (200, 2)
    assert drawn.min() < -1
    np.testing.assert_allclose(received[:, :, 0], drawn.clip(-0.5, 0.25), atol=1e-7)
    assert rollout.observation[:2, 0].tolist() == [[0, 1], [1, 0]]


def test_evaluation_gives_every_environment_its_share():
    """Environment 0 has short episodes; counting the first to finish would favour them."""
    envs = SyncVectorEnv([lambda: Scripted("t1 " * 99), lambda: Scripted("c30 " * 9)])
    returns, lengths = evaluate(envs, policy, 5, seed=0)
    assert sorted(lengths.tolist()) == [1, 1, 1, 30, 30]
    assert sorted(returns.tolist())[:3] == [1.0, 11.0, 21.0]


def test_returns_are_of_the_rewards_as_they_were_paid():
    class Tenths(Scripted):
        def step(self, action):
            observation, _, *ends = super().step(action)
            return observation, 0.1, *ends

    returns, _ = evaluate(SyncVectorEnv([lambda: Tenths("t9 " * 9)]), policy, 1, seed=0)
    assert returns[0] == pytest.approx(0.9, rel=1e-12), "in float32 0.90000001"


def test_an_evaluation_that_waits_for_an_end_says_so(monkeypatch):
    monkeypatch.setattr("pgce.rollout._LONG", 20)
    envs = SyncVectorEnv([lambda: Scripted("t1 " * 99), lambda: Scripted("c60 " * 9)])
    with pytest.warns(RuntimeWarning, match="after 20 steps: a limit .* max_episode_steps") as told:
        evaluate(envs, policy, 2, seed=0)
    assert len(told) == 1


def test_greedy_takes_the_mode():
    envs = SyncVectorEnv([lambda: Scripted("t2 c3 t9")] * 2)
    logits = torch.tensor([0.0, 0.1, 0.0])
    rollout = Collector(envs, lambda obs: logits.expand(len(obs), 3), 5, seed=0, greedy=True).collect()
    assert rollout.action.unique().tolist() == [1]


class Broken(Scripted):
    def __init__(self, what):
        super().__init__("t99")
        self.what = what

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.time == 4:
            if self.what == "reward":
                reward = np.inf
            else:
                observation[1] = np.nan
        return observation, reward, *rest


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_numbers_that_are_not_finite_are_refused(what):
    envs = SyncVectorEnv([lambda: Scripted("t99"), lambda: Broken(what)])
    with pytest.raises(EnvironmentFault, match=f"environment 1 of .* gave an? {what} .* at step 3"):
        Collector(envs, policy, 8, seed=0).collect()


def test_refuses_spaces_and_environments_without_a_mode():
    class Odd(Scripted):
        action_space = gym.spaces.Text(3)

    with pytest.raises(ValueError, match=r"Text"):
        Collector(SyncVectorEnv([Odd]), policy, 2, seed=0)
    Odd.action_space, Odd.observation_space = Scripted.action_space, gym.spaces.Text(3)
    with pytest.raises(ValueError, match=r"Text"):
        Collector(SyncVectorEnv([Odd]), policy, 2, seed=0)
    envs = SyncVectorEnv([Scripted])
    envs.metadata = {}
    with pytest.raises(ValueError, match="has None"):
        Collector(envs, policy, 2, seed=0)


def test_the_seed_decides_the_rollout():
    def observation(seed):
        envs = pgce.envs.make("CartPole-v1", 4)
        generator = torch.Generator().manual_seed(0)
        collect = Collector(envs, lambda o: torch.zeros(len(o), 2), 8, seed=seed, generator=generator)
        return collect.collect().observation

    assert torch.equal(observation(1), observation(1))
    assert not torch.equal(observation(1), observation(2))


def test_a_state_of_another_kind_of_device_is_gone_on_from():
    """Its generator is of that device: actions are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    collect = Collector(pgce.envs.make("CartPole-v1", 4), policy, 8, seed=1, generator=generator)
    before = generator.get_state()
    of_a_gpu = torch.zeros(16, dtype=torch.uint8)
    collect.load_state_dict({**collect.state_dict(), "generator": of_a_gpu}, reseed=3)
    assert not torch.equal(generator.get_state(), before)


def with_memory(kind="lstm", seed=0):
    """Policy and value with memories of their own, of the scripted environments."""
    torch.manual_seed(seed)
    networks = [Recurrent(mlp(2, 4), 4, 5, kind) for _ in range(2)]
    torso = Torso(networks, features=2).double()
    actor = nn.Sequential(Columns(0, 5), nn.Linear(5, 3)).double()
    critic = Value(nn.Sequential(Columns(5, 10), nn.Linear(5, 1)).double())
    return ActorCritic(actor, critic, torso)


class Widened(nn.Module):
    """A policy in float64, so that what is remembered is exact."""

    def __init__(self, policy):
        super().__init__()
        self.policy, self.state_size = policy, policy.state_size

    def step(self, x, first, state):
        return self.policy.step(x.double(), first, state.double())

    def forward(self, x):
        return self.policy({**x, "observation": x["observation"].double(), "state": x["state"].double()})


class Stuck(Scripted):
    """After its first step no class of the second choice is allowed."""

    ends = False
    action_space = gym.spaces.MultiDiscrete([2, 3])  # type: ignore[assignment]

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {"action_mask": np.ones(5, np.bool_)}

    def step(self, action):
        self.time += 1
        mask = np.arange(5) < (5, 2)[self.time == 1]
        return self._observation(), 0.0, self.ends and self.time == 1, False, {"action_mask": mask}


class Stops(Stuck):
    """Its episode has ended then."""

    ends = True


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_mask_that_leaves_a_choice_nothing_is_refused_where_an_action_is_waited_for(mode):
    for kind in (Stops, Stuck):
        envs = SyncVectorEnv([kind] * 2, autoreset_mode=mode)
        collect = Collector(envs, actor_critic(pgce.agents.PPO(), envs).policy, 4, seed=0)
        if kind is Stops:
            collect.collect()
            continue
        with pytest.raises(ValueError, match="one action or more: it forbids all of component 1 in row"):
            collect.collect()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_memory_is_that_of_the_episode_alone(mode, kind):
    """Logits, values and next values equal those of each episode, played through from its start."""
    model = with_memory(kind)
    collect = collector(mode, 5, ("t2 c3 t9 t9", "c1 t1 t1 c4 t9"))
    collect.policy, collect.state_size = Widened(model.policy), model.policy.state_size
    collect.reset(0)
    memory = [None, None]  # what each environment's episode has left, replayed apart
    for _ in range(3):
        rollout = collect.collect()
        value, next_value = rollout.values(Widened(model.value))
        final = dict(zip(rollout.final_index.tolist(), rollout.final_observation, strict=True))
        for t, n in itertools.product(range(5), range(2)):
            if not rollout.valid[t, n]:
                memory[n] = None
                continue
            fresh = torch.tensor([memory[n] is None])
            before = torch.zeros(1, model.torso.state_size).double() if fresh else memory[n]
            seen = rollout.observation[t, n][None].double()
            hidden, memory[n] = model.torso.step(seen, fresh, before)
            torch.testing.assert_close(rollout.logits[t, n][None], model.actor(hidden), rtol=0, atol=1e-12)
            torch.testing.assert_close(value[t, n][None], model.critic(hidden), rtol=0, atol=1e-12)
            following = final.get(t * 2 + n, rollout.observation[t + 1, n])[None].double()
            after, _ = model.torso.step(following, torch.tensor([False]), memory[n])
            torch.testing.assert_close(next_value[t, n][None], model.critic(after), rtol=0, atol=1e-12)
            if mode != NEXT_STEP and (rollout.terminated | rollout.truncated)[t, n]:
                memory[n] = None


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_last_values_are_remembered_by_the_network_that_tells_them(mode):
    """Not by the one that acted, which may be older: V-trace's, or one that had not normalised yet."""
    acted, model = with_memory(), with_memory(seed=1)
    collect = collector(mode, 7, ("t2 c3 t9 t9", "c1 t1 t1 c4 t9"))
    collect.policy, collect.state_size = Widened(acted.policy), acted.policy.state_size
    collect.reset(0)
    rollout = collect.collect()
    _, next_value = rollout.values(Widened(model.value))
    final = dict(zip(rollout.final_index.tolist(), rollout.final_observation, strict=True))
    memory = rollout.state[0].double()
    for t in range(7):
        _, memory = model.torso.step(rollout.observation[t].double(), rollout.first[t], memory)
        for n in range(2):
            following = final.get(t * 2 + n, rollout.observation[t + 1, n])[None].double()
            after, _ = model.torso.step(following, torch.tensor([False]), memory[n][None])
            torch.testing.assert_close(next_value[t, n][None], model.critic(after), rtol=0, atol=1e-12)


def test_sequences_are_a_batch_whose_parts_are_whole():
    model = with_memory()
    collect = collector(NEXT_STEP, 7, ("t2 c3 t9", "c1 t1 t1 c4 t9", "t3 t3 t9"))
    collect.policy, collect.state_size = Widened(model.policy), model.policy.state_size
    collect.reset(0)
    collect.collect()
    rollout = collect.collect()
    batch = rollout.batch({"cross_entropy": rollout.cross_entropy})
    assert (len(batch), batch.count) == (3, rollout.steps)
    logits = Widened(model.policy)(batch.input)[batch.mask]
    torch.testing.assert_close(logits, rollout.logits.transpose(0, 1)[rollout.valid.T], rtol=0, atol=1e-12)
    assert torch.equal(batch.counted()["action"], rollout.action.T[rollout.valid.T])
    parts = list(batch.shuffled(2, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [2, 1]
    assert sum(part.count for part in parts) == batch.count
    again = rollout.cross_entropy_under(Widened(model.policy))
    torch.testing.assert_close(again, rollout.cross_entropy, rtol=0, atol=1e-12)


class Counting(nn.Module):
    """A policy that keeps something in itself, which no copy may get instead."""

    def __init__(self):
        super().__init__()
        self.network, self.calls = mlp(4, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.network(x)


def test_policies_of_another_s_making_are_called_themselves():
    policy = Counting()
    Collector(pgce.envs.make("CartPole-v1", 3), policy, 7, seed=1).collect()
    assert policy.calls == 7


def test_the_policy_s_weights_are_those_of_now():
    policy = mlp(4, 2)
    collector = Collector(pgce.envs.make("CartPole-v1", 3), policy, 7, seed=1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.5
        rollout = collector.collect()
        with torch.no_grad():
            logits = policy(rollout.observation[:-1].flatten(0, 1)).view_as(rollout.logits)
        torch.testing.assert_close(rollout.logits, logits)
        assert not rollout.logits.is_inference()
        assert not rollout.action.is_inference()


@pytest.mark.parametrize("memory", [None, "gru"])
def test_columns_are_tensors_of_steps_and_environments(memory):
    """(N, T) has as many numbers as (T, N): they would weigh other actions."""
    envs = pgce.envs.make("CartPole-v1", 4)
    policy = actor_critic(pgce.agents.PPO(memory=memory), envs).policy
    rollout = Collector(envs, policy, 6, seed=0).collect()
    assert rollout.batch({"advantage": rollout.reward, "two": torch.zeros(6, 4, 2)}).count
    shape = "a column has shape (T, N, ...), here (6, 4): 'advantage' has shape "
    for column, message in (
        (rollout.reward.T, f"{shape}(4, 6)"),
        (rollout.reward.flatten(), f"{shape}(24,)"),
        (rollout.reward.sum(), f"{shape}()"),
        (rollout.reward.numpy(), "a column is a tensor: 'advantage' is of type ndarray"),
        (None, "'advantage' is of type NoneType"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            rollout.batch({"advantage": column})


def test_masks_are_told_in_any_form_and_not_at_every_step():
    listed = np.array([[1, 0, 1], None], object)
    assert told_mask({"action_mask": listed}).tolist() == [[True, False, True], [True] * 3]
    assert told_mask({"action_mask": listed, "_action_mask": np.zeros(2, bool)}) is None
    of_two = np.fromiter([(np.array([1, 0]), np.array([0, 1, 1]))], np.dtype(object))
    assert told_mask({"action_mask": of_two}).tolist() == [[True, False, False, True, True]]
    cube = np.fromiter([np.arange(8).reshape(2, 2, 2) % 3], np.dtype(object))
    assert told_mask({"action_mask": cube}).tolist() == [[False, True, True] * 2 + [False, True]]


class Doubled(Scripted):
    """What it observes, twice."""

    def __init__(self, script, kind):
        super().__init__(script)
        self.kind, one = kind, Scripted.observation_space
        spaces = gym.spaces.Tuple([one] * 2), gym.spaces.Dict(a=one, b=one)
        self.observation_space = spaces[0 if kind is tuple else 1]

    def _observation(self):
        seen = super()._observation()
        return (seen, -seen) if self.kind is tuple else {"a": seen, "b": -seen}


class Batched(SyncVectorEnv):
    """Tells last observations as it tells all others: a batch."""

    def step(self, actions):
        *step, info = super().step(actions)
        if "final_obs" in info:
            space = self.single_observation_space
            rows = [seen or space.sample() for seen in info["final_obs"]]
            empty = gym.vector.utils.create_empty_array(space, self.num_envs)
            info["final_obs"] = gym.vector.utils.concatenate(space, rows, empty)
        return *step, info


@pytest.mark.parametrize("kind", [tuple, dict])
def test_last_observations_may_be_a_batch(kind):
    rollouts = []
    for of in (SyncVectorEnv, Batched):
        fns = [lambda s=s: Doubled(s, kind) for s in ("t2 c3 t9", "c1 t1 t1 c4 t9")]
        envs = of(fns, autoreset_mode=AutoresetMode.SAME_STEP)
        generator = torch.Generator().manual_seed(0)
        rollouts.append(Collector(envs, policy, 7, seed=0, generator=generator).collect())
    assert len(rollouts[0].final_index) == 6
    assert torch.equal(rollouts[0].final_observation, rollouts[1].final_observation)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_an_episode_that_fails_in_its_first_step_is_none(mode):
    fails = iter([False, False, False, True] + [False] * 20)

    class Failing(Scripted):
        def step(self, action):
            if next(fails):
                raise OSError("the port is in use")
            return super().step(action)

    script = "t3 " * 9
    envs = GuardedSyncVectorEnv([lambda: Failing(script)], "Failing-v0", autoreset_mode=mode, restarts=1)
    acting = Collector(envs, policy, 12, seed=0, generator=torch.Generator().manual_seed(0))
    with pytest.warns(RuntimeWarning, match="made anew"):
        rollout = acting.collect()
    assert set(rollout.episode_length.tolist()) == {3}
