"""Recorded behaviour: from arrays, files, runs and Minari data sets, into behaviour cloning."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

import pgce
from pgce.agents import BC, PPO
from pgce.demonstrations import Recorder, demonstrations
from pgce.envs.guard import GuardedSyncVectorEnv
from pgce.networks import mlp
from pgce.rollout import Collector, evaluate
from pgce.spaces import actions, encode_actions

QUICK = {"quiet": True, "track": False, "device": "cpu"}


def balanced(episodes=20, seed=0):
    """Observations and actions of a controller that balances CartPole for 500 steps."""
    envs = Recorder(pgce.envs.make("CartPole-v1", 10), episodes)

    def policy(x):
        return torch.stack((torch.zeros(len(x)), 100 * (x @ torch.tensor([0.1, 0.5, 3.0, 1.0]))), -1)

    returns, lengths = evaluate(envs, policy, episodes, seed=seed, greedy=True)
    assert returns.mean() > 475
    arrays = envs.arrays()
    assert len(arrays["actions"]) == lengths.sum()
    return arrays


def collector(observation_space, action_space, **kwargs):
    return Collector(SyncVectorEnv([lambda: Any(observation_space, action_space)]), mlp(1, 1), 1, seed=0)


class Any(gym.Env):
    """Random observations, a mask of actions if there is to be one, and episodes of three steps."""

    def __init__(self, observation_space, action_space, mask=False):
        self.observation_space, self.action_space = observation_space, action_space
        self.masked = mask

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1000)))
        self.t = 0
        return self.observation_space.sample(), self.info()

    def info(self):
        mask = self.np_random.integers(0, 2, 3).astype(bool)
        mask[self.np_random.integers(3)] = True
        return {"action_mask": mask} if self.masked else {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 3, False, self.info()


def test_cartpole_is_cloned_from_a_file_and_a_mapping_in_seconds(tmp_path):
    arrays = balanced()
    np.savez(tmp_path / "expert.npz", **arrays)
    where = {"runs_dir": str(tmp_path / "runs"), **QUICK}
    agent = BC(data=str(tmp_path / "expert.npz"), norm_obs=True, eval_greedy=True, **where)
    run = agent.train("CartPole-v1", total_timesteps=100_000)
    assert run.result["eval_mean"] >= 475
    assert run.result["steps"] <= 100_000
    normalize = run.model.normalize
    torch.testing.assert_close(normalize.mean, torch.from_numpy(arrays["observations"].mean(0)))
    assert normalize.count == len(arrays["actions"]), "fitted once"
    settings = {"norm_obs": True, "eval_greedy": True}
    same = BC(**settings, **where).train("CartPole-v1", 100_000, data=arrays)
    assert same.result["eval_mean"] == run.result["eval_mean"]
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, same.model.state_dict()[name])
    # What a clone is can be where PPO begins.
    start = PPO(init=str(run.path), norm_obs=True, learning_rate=1e-9, num_steps=64, **where)
    again = start.train("CartPole-v1", total_timesteps=1_024)
    assert again.result["eval_mean"] > 400


def test_a_continuous_controller_is_cloned(tmp_path):
    """MountainCarContinuous is solved by pushing the way the car moves."""
    envs = Recorder(pgce.envs.make("MountainCarContinuous-v0", 10), 20)

    def policy(x):
        return torch.stack((x[:, 1:].sign(), torch.full((len(x), 1), -5.0)), -1)

    assert evaluate(envs, policy, 20, seed=0, greedy=True)[0].mean() > 85
    agent = BC(norm_obs=True, eval_greedy=True, runs_dir=str(tmp_path), **QUICK)
    run = agent.train("MountainCarContinuous-v0", 100_000, data=envs.arrays())
    assert run.result["eval_mean"] >= 85


def test_rounds_are_epochs_and_the_budget_counts_examples(tmp_path):
    arrays = {"observations": np.zeros((600, 4), np.float32), "actions": np.zeros(600, np.int64)}
    settings = {"batch_size": 100, "runs_dir": str(tmp_path), "eval_episodes": 1, **QUICK}
    seen = []

    class Counted(BC):
        def batches(self, batch, generator):
            for part in super().batches(batch, generator):
                seen.append(len(part))
                yield part

    result = Counted(**settings).train("CartPole-v1", 1_550, data=arrays).result
    assert result["steps"] == 1_500
    assert seen == [100] * 16, "the last did not fit"
    assert BC(**settings).train("CartPole-v1", 10, data=arrays).result["steps"] == 100


SPACES = {
    "discrete": (Discrete(3, start=2), Discrete(4, start=-1)),
    "vector": (Box(-1, 1, (2, 2)), Box(-1, 1, (3,))),
    "image": (Box(0, 255, (9, 9, 3), np.uint8), MultiDiscrete([2, 3], start=[1, 5])),
    "nested": (
        Dict(a=Tuple((Discrete(3), Box(-1, 1, (2,)))), b=MultiBinary(2)),
        Dict(
            x=Discrete(2, start=7),
            y=Tuple((Box(0, 1, (2,)), MultiBinary((1, 2)), Box(-2, 2, (2,), np.int64))),
        ),
    ),
}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("name", SPACES)
def test_what_is_recorded_is_what_was_collected(name, mode, tmp_path):
    """In every space and autoreset mode: the file's rows are the rollout's transitions, encoded alike."""
    spaces = SPACES[name]
    envs = Recorder(SyncVectorEnv([lambda: Any(*spaces)] * 2, autoreset_mode=mode), 4)
    how = actions(spaces[1])
    torch.manual_seed(0)
    logits = torch.randn(2, *how.logits_shape)
    collected = Collector(envs, lambda x: logits, 9, seed=1)
    rollout = collected.collect()
    envs.save(tmp_path / "played.npz")
    batch = demonstrations(tmp_path / "played.npz", collected)
    assert len(batch) == 12
    batched = rollout.batch({})
    first = kept(rollout, batched)
    assert torch.equal(batch.input, batched.input[first])
    arrays = envs.arrays()
    assert arrays["rewards"].tolist() == [1.0] * 12
    assert arrays["terminations"].tolist() == 4 * [False, False, True], "an episode's rows follow each other"
    assert arrays["truncations"].tolist() == 12 * [False]
    recorded = how.decode(batch["action"])
    for one, other in zip(flat(recorded), flat(how.decode(batched["action"][first])), strict=True):
        np.testing.assert_array_equal(one, other)


def kept(rollout, batched, episodes=4):
    """The rows of the first episodes that ended, episode after episode."""
    episode = torch.where(batched.mask, rollout.episode.flatten(), -1)
    order = episode.argsort(stable=True)
    return order[(episode[order] >= 0) & (episode[order] < episodes)]


def flat(value):
    if isinstance(value, dict):
        value = tuple(value.values())
    return [leaf for part in value for leaf in flat(part)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("space", [space for _, space in SPACES.values()])
def test_actions_are_encoded_as_their_head_samples_them(space):
    how = actions(space)
    logits = torch.zeros(50, *how.logits_shape)
    drawn = how.head.sample(logits, torch.Generator().manual_seed(0))
    decoded = how.decode(drawn)
    encoded = encode_actions(space, decoded)
    assert encoded.dtype == drawn.dtype
    for one, other in zip(flat(how.decode(encoded)), flat(decoded), strict=True):
        np.testing.assert_array_equal(one, other)
    assert how.head.cross_entropy(logits, encoded).shape == (50,)
    batch = batch_space(space, 50)
    batch.seed(0)
    sample = batch.sample()
    for one, other in zip(flat(how.decode(encode_actions(space, sample))), flat(sample), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_masks_are_recorded_and_learned_with(mode):
    make = [lambda: Any(Box(-1, 1, (2,)), Discrete(3), mask=True)] * 2
    envs = Recorder(SyncVectorEnv(make, autoreset_mode=mode), 4)
    policy = pgce.spaces.Masked(torch.nn.Linear(2, 3), 2, pgce.heads.Categorical())
    collected = Collector(envs, policy, 9, seed=1)
    rollout = collected.collect()
    arrays = envs.arrays()
    assert arrays["action_mask"].shape == (12, 3)
    batch = demonstrations(arrays, collected)
    every = rollout.batch({})
    assert torch.equal(batch.input, every.input[kept(rollout, every)])
    without = demonstrations({k: v for k, v in arrays.items() if k != "action_mask"}, collected)
    assert (without.input[:, 2:] == 1).all()
    row = int((~arrays["action_mask"]).any(1).argmax())
    arrays["actions"][row] = arrays["action_mask"][row].argmin()
    with pytest.raises(ValueError, match=f"the mask forbids that of row {row}"):
        demonstrations(arrays, collected)
    with pytest.raises(ValueError, match=r"of shape \(12, 3\) here: .* \(12, 2\)"):
        demonstrations({**arrays, "action_mask": np.ones((12, 2), bool)}, collected)


GOOD = {"observations": np.zeros((5, 4), np.float32), "actions": np.zeros(5, np.int64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "actions missing, there are observations$"),
        ({"observations": None, "obs": GOOD["observations"]}, "observations missing, there are actions, obs"),
        ({"actions": np.zeros(4, np.int64)}, "one row of actions an observation, 5: there are 4"),
        (
            {"observations": np.zeros((5, 3))},
            r"observations have shape \(5, 4\), .* shape \(5, 3\)",
        ),
        ({"observations": np.full((5, 4), np.nan)}, "observations are finite: row 0 has nan"),
        ({"actions": np.zeros(5)}, "actions are whole numbers, .* dtype float64"),
        ({"actions": np.array([0, 0, 0, -1, 5])}, "actions lie in 0 to 1: row 3 has -1"),
        ({"actions": np.array(["a"] * 5)}, "actions are numbers: they have dtype <U1"),
        ({"observations": np.zeros((0, 4))}, r"one row or more: they have shape \(0, 4\)"),
        ({"observations": np.float32(0)}, r"one row or more: they have shape \(\)"),
        ({"action_mask": np.ones((5, 2), bool)}, r"an action mask is .* \(5, 0\) here"),
    ],
)
def test_bad_arrays_are_refused_before_there_is_a_folder(changes, message, tmp_path):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    agent = BC(runs_dir=str(tmp_path / "runs"), **QUICK)
    with pytest.raises(ValueError, match=message):
        agent.train("CartPole-v1", data=arrays)
    assert not (tmp_path / "runs").exists()


def test_bad_nested_arrays_are_refused():
    seen, acted = SPACES["nested"]
    many = batch_space(seen, 4).sample(), batch_space(acted, 4).sample()
    good = {"observations": many[0], "actions": many[1]}
    one = collector(seen, acted)
    assert len(demonstrations(good, one)) == 4
    lacking = {**good, "observations": {"a": many[0]["a"]}}
    with pytest.raises(ValueError, match="observations/b is missing"):
        demonstrations(lacking, one)
    wrong = {**good, "actions": {**many[1], "y": (np.full((4, 2), np.inf), *many[1]["y"][1:])}}
    with pytest.raises(ValueError, match="actions/y/0 are finite: row 0 has inf"):
        demonstrations(wrong, one)
    paths = {"observations": many[0], "actions/x": many[1]["x"], "actions/y": many[1]["y"]}
    assert torch.equal(demonstrations(paths, one)["action"], demonstrations(good, one)["action"])
    with pytest.raises(ValueError, match="actions/y/2 is missing"):
        demonstrations(
            {"observations": many[0], "actions/x": many[1]["x"], "actions/y/0": 0, "actions/y/1": 0}, one
        )
    box = collector(Box(-1, 1, (2,)), Box(-1, 1, (1,)))
    outside = {"observations": np.zeros((1, 2)), "actions": np.array([[1.5]])}
    assert demonstrations(outside, box)["action"].item() == 1.5
    with pytest.raises(ValueError, match=r"1\.5"):
        demonstrations(outside, box, "tanh")
    image = collector(*SPACES["image"])
    with pytest.raises(ValueError, match="observations are whole numbers"):
        demonstrations({"observations": np.zeros((1, 9, 9, 3)), "actions": np.array([[1, 5]])}, image)
    with pytest.raises(ValueError, match="actions lie in 5 to 7: row 0 has 4"):
        demonstrations({"observations": np.zeros((1, 9, 9, 3), int), "actions": np.array([[1, 4]])}, image)


def test_bad_files_and_settings_are_refused(tmp_path):
    where = {"runs_dir": str(tmp_path / "runs"), **QUICK}
    (tmp_path / "text.npz").write_text("no zip")
    np.savez(tmp_path / "objects.npz", observations=np.array([{}]), actions=np.zeros(1))
    for data, error, message in (
        ("text.npz", ValueError, "what numpy.savez writes"),
        ("objects.npz", ValueError, "Object arrays"),
        ("nowhere.npz", ValueError, "nowhere.npz"),
    ):
        with pytest.raises(error, match=message):
            BC(data=str(tmp_path / data), **where).train("CartPole-v1")
    with pytest.raises(ValueError, match="or from data: expert is 'a', data 'b'"):
        BC(expert="a", data="b", **where).train("CartPole-v1")
    with pytest.raises(ValueError, match="batch_size is at least 1: it is 0"):
        BC(data="b", batch_size=0, **where).train("CartPole-v1")
    with pytest.raises(ValueError, match=r"what can fall over the run is .*: it is 'beta'"):
        BC(data="b", beta=0.3, schedules={"beta": "linear"}, **where).train("CartPole-v1")
    assert not (tmp_path / "runs").exists()


def test_an_expert_s_logits_are_read_as_they_are(tmp_path):
    settings = {"num_envs": 2, "num_steps": 16, "eval_episodes": 2, "runs_dir": str(tmp_path), **QUICK}
    expert = PPO(continuous="beta", **settings).train("Pendulum-v1", 32)
    clone = BC(expert=str(expert.path), **settings)
    with pytest.raises(ValueError, match="own distribution, beta: gaussian is asked for"):
        clone.train("Pendulum-v1", 32)
    with pytest.raises(ValueError, match="the spaces are alike: action_space of Pendulum-v1"):
        clone.train("CartPole-v1", 32)
    assert replace(clone, continuous="beta").train("Pendulum-v1", 32).result["steps"] == 32


def test_a_run_records_what_it_does(tmp_path):
    where = {"runs_dir": str(tmp_path), **QUICK}
    run = PPO.preset("Taxi-v4", num_envs=8, num_steps=16, eval_episodes=1, **where).train(total_timesteps=128)
    agent = pgce.load(run.path)
    with pytest.raises(ValueError, match=r"ends in .npz: it is 'played'"):
        agent.record("played")
    returns = agent.record(tmp_path / "made for it" / "played.npz", episodes=3, seed=4)
    with np.load(tmp_path / "made for it" / "played.npz") as file:
        arrays = dict(file)
    outcome = ["rewards", "terminations", "truncations"]
    assert sorted(arrays) == ["action_mask", "actions", "observations", *outcome]
    ends = np.flatnonzero(arrays["terminations"] | arrays["truncations"])
    each = np.split(arrays["rewards"], ends[:-1] + 1)
    assert [float(part.sum()) for part in each] == returns.tolist(), "in the order of the episodes"
    # The same agent's choice in each of the states, and the same episodes as an evaluation's.
    for t in range(0, len(arrays["actions"]), 50):
        mask = arrays["action_mask"][t]
        assert agent.act(arrays["observations"][t], action_mask=mask) == arrays["actions"][t]
    np.testing.assert_array_equal(returns, agent.evaluate(3, seed=4))
    learned = BC(data=str(tmp_path / "made for it" / "played.npz"), eval_episodes=1, **where)
    assert learned.train("Taxi-v4", total_timesteps=1_000).result["stopped"] == "budget"


class Counting(gym.Env):
    """Observation (episode, step); pays the step; ends after the episode's number + 2, cut if that is odd."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,)), Discrete(2)
    episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.seen(), self.info()

    def seen(self):
        return np.array([self.episode, self.t], np.float32)

    def info(self):
        return {"action_mask": np.array([True, self.t % 2 == 0])}

    def step(self, action):
        self.t += 1
        over, odd = self.t == self.episode + 2, self.episode % 2 == 1
        return self.seen(), float(self.t), over and not odd, over and odd, self.info()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_episodes_of_several_lengths_are_whole(mode):
    """Two environments, of which the second is an episode ahead; what has not ended is left out."""

    def ahead():
        env = Counting()
        env.episode = 0
        return env

    envs = Recorder(SyncVectorEnv([Counting, ahead], autoreset_mode=mode), 5)  # three and two
    policy = pgce.spaces.Masked(torch.nn.Linear(2, 2), 2, pgce.heads.Categorical())
    collected = Collector(envs, policy, 13, seed=0)
    collected.collect()
    arrays = envs.arrays()
    expected = [(0, 2), (1, 3), (1, 3), (2, 4), (2, 4)]
    assert arrays["observations"].tolist() == [[e, t] for e, many in expected for t in range(many)]
    assert arrays["rewards"].tolist() == [t + 1 for _, many in expected for t in range(many)]
    assert arrays["action_mask"].tolist() == [[True, t % 2 == 0] for _, many in expected for t in range(many)]
    last = [(e, t == many - 1) for e, many in expected for t in range(many)]
    assert arrays["terminations"].tolist() == [over and e != 1 for e, over in last]
    assert arrays["truncations"].tolist() == [over and e == 1 for e, over in last]
    unfinished = Recorder(SyncVectorEnv([Counting, ahead], autoreset_mode=mode), 5)
    Collector(unfinished, policy, 4, seed=0).collect()
    assert unfinished.arrays()["rewards"].tolist() == [1, 2, 1, 2, 3]
    # The return to go by hand.
    gammas = 0.5 ** np.arange(4)
    returns = [(np.arange(t, many) + 1) @ gammas[: many - t] for _, many in expected for t in range(many)]
    found = demonstrations(arrays, collected, gamma=0.5)["return"]
    np.testing.assert_allclose(found, returns, rtol=1e-6)
    assert "return" not in demonstrations(arrays, collected).columns


class InNumbers(gym.vector.VectorWrapper):
    """Ends of episodes as 0 and 1."""

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated.astype(np.uint8), truncated.astype(np.int64), info


@pytest.mark.parametrize("mode", AutoresetMode)
def test_ends_in_numbers_are_recorded_as_ends(mode):
    policy = pgce.spaces.Masked(torch.nn.Linear(2, 2), 2, pgce.heads.Categorical())
    several = []
    for wrapper in (InNumbers, lambda envs: envs):
        envs = Recorder(wrapper(SyncVectorEnv([Counting] * 2, autoreset_mode=mode)), 5)
        assert len(evaluate(envs, policy, 5, seed=0)[0]) == 5
        several.append(envs.arrays())
    for name, array in several[1].items():
        assert several[0][name].dtype == array.dtype
        if name != "actions":  # which are drawn
            np.testing.assert_array_equal(several[0][name], array)


OUTCOME = {"rewards": np.ones(5), "terminations": np.zeros(5, bool), "truncations": np.zeros(5, bool)}


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("at", [3, 5])
def test_the_step_in_which_an_environment_fails_is_not_recorded(mode, at):
    fails = iter([step == at for step in range(99)])

    class Failing(Counting):
        def step(self, action):
            if next(fails):
                raise OSError("the port is in use")
            return super().step(action)

        def info(self):
            return {}

    envs = GuardedSyncVectorEnv([Failing], "Failing-v0", autoreset_mode=mode, restarts=1)
    recorder = Recorder(envs, episodes=4)
    with pytest.warns(RuntimeWarning, match="made anew"):
        _, lengths = evaluate(recorder, lambda x: torch.zeros(len(x), 2), episodes=4, seed=1)
    arrays = recorder.arrays()
    ends = (arrays["terminations"] | arrays["truncations"]).nonzero()[0] + 1
    assert np.diff(ends, prepend=0).tolist() == lengths.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "rewards missing, there are observations, actions, terminations, truncations"),
        ({"rewards": np.ones(4)}, r"finite numbers, one a row, \(5,\): .* float64, shape \(4,\)"),
        ({"rewards": np.full(5, np.nan)}, "rewards are finite numbers"),
        ({"rewards": np.array(["a"] * 5)}, "dtype <U1"),
        ({"truncations": np.full(5, 0.5)}, "truncations are true or false"),
        ({"beta": 0.0}, "beta and cap are positive: they are 0.0"),
        ({"max_weight": -1.0}, "beta and cap are positive"),
        ({"gamma": 1.5}, r"gamma lies in \[0, 1\]: gamma is 1\.5"),
    ],
)
def test_bad_outcomes_are_refused_where_returns_are_asked_for(changes, message, tmp_path):
    settings = {"beta": 1.0, **{k: v for k, v in changes.items() if k not in OUTCOME}}
    arrays = {**GOOD, **OUTCOME, **{k: v for k, v in changes.items() if k in OUTCOME}}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    agent = BC(runs_dir=str(tmp_path / "runs"), **settings, **QUICK)
    with pytest.raises(ValueError, match=message):
        agent.train("CartPole-v1", data=arrays)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"not an expert that acts: beta is 1\.0"):
        BC(expert="a", beta=1.0, **QUICK).train("CartPole-v1")


def test_of_behaviour_good_and_bad_the_good_is_cloned_by_its_returns(tmp_path):
    """A controller that balances CartPole, and twice as much that pushes the other way."""
    good, many = balanced(10), 2
    envs = Recorder(pgce.envs.make("CartPole-v1", 10), 1_400)

    def worst(x):
        return torch.stack((torch.zeros(len(x)), -100 * (x @ torch.tensor([0.1, 0.5, 3.0, 1.0]))), -1)

    evaluate(envs, worst, 1_400, seed=0, greedy=True)
    bad = envs.arrays()
    rows = slice(many * len(good["actions"]))
    assert len(bad["actions"][rows]) == rows.stop
    arrays = {name: np.concatenate((good[name], bad[name][rows])) for name in good}
    seen = []

    class Spy(BC):
        def examples(self, collector):
            seen.append(super().examples(collector))
            return seen[-1]

    settings = {"norm_obs": True, "eval_greedy": True, "runs_dir": str(tmp_path), **QUICK}
    alike = BC(**settings).train("CartPole-v1", 100_000, data=arrays)
    weighed = Spy(beta=0.3, **settings).train("CartPole-v1", 100_000, data=arrays)
    assert alike.result["eval_mean"] < 100 < 400 < weighed.result["eval_mean"]
    returns = seen[0]["return"].double().numpy()
    expected = np.minimum(np.exp((returns - returns.mean()) / returns.std(ddof=1) / 0.3), 20)
    np.testing.assert_allclose(seen[0]["weight"], expected, rtol=1e-4)


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Plays episodes by `policy` and makes a Minari data set of them; gives what was seen and done."""
    minari = pytest.importorskip("minari", reason='needs minari: pip install "pgce[minari]"')
    pytest.importorskip("jax", reason='a data set is made with jax: pip install "minari[create]"')
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))

    def collect(dataset_id, env, policy, episodes):
        collector = minari.DataCollector(env)
        rows = []
        for seed in range(episodes):
            observation, _ = collector.reset(seed=seed)
            over = False
            while not over:
                rows.append((observation, policy(observation)))
                observation, _, terminated, truncated, _ = collector.step(rows[-1][1])
                over = terminated or truncated
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a data set might tell besides
            collector.create_dataset(dataset_id)
        collector.close()
        collector._tmp_dir.cleanup()
        return rows

    return collect


def test_a_minari_data_set_is_learned_from(collect, tmp_path):
    def policy(observation):
        return int(observation @ np.array([0.1, 0.5, 3.0, 1.0]) > 0)

    rows = collect("cartpole/expert-v0", gym.make("CartPole-v1"), policy, 10)
    where = {"runs_dir": str(tmp_path / "runs"), **QUICK}
    agent = BC(data="cartpole/expert-v0", norm_obs=True, eval_greedy=True, **where)
    run = agent.train("CartPole-v1", total_timesteps=100_000)
    assert run.model.normalize.count == len(rows)
    assert run.result["eval_mean"] >= 475
    with pytest.raises(FileNotFoundError, match="other-v0"):
        BC(data="cartpole/other-v0", **where).train("CartPole-v1")


def test_nested_spaces_come_from_minari(collect):
    spaces = SPACES["nested"]
    rows = collect("any/nested-v0", Any(*spaces), lambda observation: spaces[1].sample(), 2)
    one = collector(*spaces)
    batch = demonstrations("any/nested-v0", one, gamma=1.0)
    assert batch["return"].tolist() == [3, 2, 1] * 2
    expected = torch.cat([one.encode(one._stacked([observation])) for observation, _ in rows])
    assert torch.equal(batch.input, expected)
    assert actions(spaces[1]).decode(batch["action"])["x"].tolist() == [action["x"] for _, action in rows]


def test_rewards_and_ends_come_from_minari_too(monkeypatch):
    """Whose episodes have an observation more than actions."""

    class Episode:
        infos = None

        def __init__(self, many):
            self.observations, self.actions = np.ones((many + 1, 4)), np.zeros(many, np.int64)
            self.rewards, self.terminations = np.ones(many), np.zeros(many, bool)
            self.truncations = np.arange(many) == many - 1

        def __len__(self):
            return len(self.actions)

    episodes = [Episode(2), Episode(3)]
    minari = SimpleNamespace(load_dataset=lambda name: SimpleNamespace(iterate_episodes=lambda: episodes))
    monkeypatch.setitem(sys.modules, "minari", minari)
    one = Collector(pgce.envs.make("CartPole-v1", 1), mlp(4, 2), 1, seed=0)
    assert demonstrations("any/data-v0", one, gamma=1.0)["return"].tolist() == [2, 1, 3, 2, 1]


def test_without_minari_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "pgce\[minari\]"'):
        BC(data="cartpole/expert-v0", **QUICK).train("CartPole-v1")
