"""What agents share: presets, normalisation, groups, masks, images, and trained agents that act."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import tyro
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

import pgce
from pgce.agents import A2C, AWR, BC, GRPO, PPO, RLOO, Reinforce, VTrace
from pgce.networks import ActorCritic, Normalize, RewardScale, Value, mlp
from pgce.rollout import Collector, mask_size
from pgce.run import Run

QUICK = {"quiet": True, "track": False, "device": "cpu"}
_TRANSFORMER = {"env_id": "pgce/Copy-v0", "network": "transformer"}


def test_a_preset_is_the_default_of_the_command_line_and_can_be_overridden(tmp_path):
    words = ["--env-id", "CartPole-v1", "--gamma", "0.99", "--runs-dir", str(tmp_path), "--quiet"]
    agent = tyro.cli(PPO, args=words, default=PPO.from_words(words))
    assert agent.num_envs == 64
    assert agent.gamma == 0.99, "the generic default, given on purpose"
    assert PPO.from_words(["--env=Acrobot-v1"]).norm_obs
    assert PPO.from_words(["-n", "5"]).env_id == "CartPole-v1"
    assert PPO.preset("Unknown-v0").num_envs == PPO().num_envs
    # The command that is written down gives the same settings again.
    falling = PPO(schedules={"ent_coef": "linear", "clip_coef": "cosine"})
    others = (
        falling,
        PPO.preset("Acrobot-v1", norm_obs=False),
        PPO(
            env_id="Acrobot-v1",
            env_kwargs={"max_episode_steps": 7, "name": "8x8", "level": "3", "on": False, "off": "false"},
        ),
        PPO(
            env_id="Acrobot-v1", env_kwargs={"far": math.inf, "near": -math.inf, "word": "inf", "sign": "-x"}
        ),
        PPO(),
        PPO(env_id="Taxi-v4"),
    )
    for settings in (agent, *others):
        words = shlex.split(settings.command())[3:]
        assert tyro.cli(PPO, args=words, default=PPO.from_words(words)) == settings
    for kind in (PPO, RLOO, GRPO):
        for env_id, preset in kind.PRESETS.items():
            assert kind.preset(env_id, seed=3).seed == 3
            assert set(preset) <= set(kind.__dataclass_fields__), env_id
        for task in ("Copy-v0", "Reverse-v0", "Reverse8x10-v0"):  # as docs/results.md says
            assert kind.preset(f"pgce/{task}").network == "transformer"


def test_normalisation_is_that_of_all_observations_seen():
    g = torch.Generator().manual_seed(0)
    seen = [100 + 5 * torch.randn(n, 3, generator=g) for n in (7, 1, 300, 50)]
    normalize = Normalize(3)
    for part in seen:
        normalize.update(part)
    normalize.update(torch.empty(0, 3))
    every = torch.cat(seen).double()
    torch.testing.assert_close(normalize.mean, every.mean(0).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(normalize.variance, every.var(0, correction=0).float(), rtol=1e-4, atol=0)
    assert normalize(torch.full((1, 3), 1e9)).tolist() == [[10, 10, 10]]
    copy = Normalize(3)
    copy.load_state_dict(normalize.state_dict())
    assert torch.equal(copy(seen[0]), normalize(seen[0]))


def test_a_feature_whose_variance_float32_does_not_hold_stays_finite():
    normalize, largest = Normalize(1), torch.finfo(torch.float32).max
    for _ in range(2):
        normalize.update(torch.tensor([[1.0], [largest]]))
        assert normalize.variance.isfinite().all()
    assert normalize(torch.tensor([[1.0], [largest]])).tolist() == [[-10], [10]]


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6])
def test_features_and_rewards_of_any_size_are_brought_to_1(size):
    seen = size * torch.randn(300, 1, generator=torch.Generator().manual_seed(0))
    normalize, scale, no = Normalize(1), RewardScale(1, gamma=0.0), torch.zeros(300, 1, dtype=torch.bool)
    normalize.update(seen)
    assert normalize(seen).std().item() == pytest.approx(1, rel=0.01)
    assert scale(seen, no, ~no).std().item() == pytest.approx(1, rel=0.01)
    assert not scale(torch.zeros(5, 1), no[:5], ~no[:5]).any()


def test_a_feature_that_never_differed_is_0_until_it_does():
    normalize = Normalize(1)
    for _ in range(3):
        normalize.update(torch.full((7, 1), 0.1))
    assert normalize(torch.tensor([[0.1], [0.2], [-1e38]])).tolist() == [[0], [10], [-10]]


def test_what_differs_by_rounding_alone_is_no_signal():
    normalize, angle = Normalize(1), torch.linspace(0, 6, 1_000)
    ones = (angle.sin().square() + angle.cos().square()).unsqueeze(1)
    assert len(ones.unique()) > 1
    normalize.update(ones)
    assert normalize(ones).abs().max() < 0.2


def test_rewards_are_scaled_by_the_spread_of_their_discounted_sum():
    """Across rollouts, with sums cut at episodes' ends and rows that are no transition left out."""
    g = torch.Generator().manual_seed(0)
    reward = 3 * torch.randn(40, 2, generator=g)
    done, valid = torch.rand(2, 40, 2, generator=g) < torch.tensor([0.1, 0.9]).view(2, 1, 1)
    scale = RewardScale(2, gamma=0.9)
    first = scale(reward[:25], done[:25], valid[:25])
    last = scale(reward[25:], done[25:], valid[25:])
    sums, running, counts = [], np.zeros(2), valid.numpy()
    for t in range(40):
        running = 0.9 * running + np.where(counts[t], reward[t], 0)
        sums.append(running.copy())
        running = np.where(done[t], 0, running)
    sums = np.array(sums)
    for part, rows in ((first, slice(0, 25)), (last, slice(25, 40))):
        until = sums[: rows.stop][counts[: rows.stop]]
        np.testing.assert_allclose(part, reward[rows] / until.std(), rtol=1e-4)


@pytest.mark.parametrize("vectorization", ["sync", "auto"])
def test_groups_begin_alike_and_play_one_episode(vectorization):
    envs = pgce.envs.make("CartPole-v1", 6, vectorization=vectorization)
    torch.manual_seed(0)
    collector = Collector(envs, mlp(4, 2), 250, seed=0)
    collector.reset(5, group_size=3)
    rollout = collector.collect()
    start = rollout.observation[0]
    assert torch.equal(start[0], start[1])
    assert torch.equal(start[3], start[5])
    assert not torch.equal(start[0], start[3])
    first = rollout.first_episode
    done = (rollout.terminated | rollout.truncated) & rollout.valid
    steps = len(done)  # until the first episode of each has ended
    assert done.any(0).all()
    assert not done[:-1].any(0).all()
    assert rollout.observation.shape == (steps + 1, 6, 4)
    assert rollout.action.shape == rollout.logits.shape[:2] == rollout.reward.shape == (steps, 6)
    assert rollout.episode_length.sum() <= rollout.steps
    for n in range(6):
        end = int(done[:, n].nonzero()[0])
        assert first[: end + 1, n].all()
        assert not first[end + 1 :, n].any()
    theirs = pgce.envs.make("CartPole-v1", 6, sutton_barto_reward=True)  # Gymnasium's own version
    native = Collector(theirs, mlp(4, 2), 5, seed=0)
    for each, size in ((collector, 4), (native, 2)):
        with pytest.raises(ValueError, match=f"groups of {size} environments"):
            each.reset(1, size)


def test_groups_take_all_steps_of_what_does_not_end_and_with_a_memory():
    envs = pgce.envs.make("Pendulum-v1", 4)
    collector = Collector(envs, mlp(3, 2), 20, seed=0)
    collector.reset(1, 2)
    assert len(collector.collect().reward) == 20
    agent = pgce.agents.GRPO(group=2, memory="gru")
    envs = pgce.envs.make("CartPole-v1", 4)
    collector = Collector(envs, agent.build_model(envs).policy, 150, seed=0)
    collector.reset(1, 2)
    rollout = collector.collect()
    assert rollout.done.any(0).all()
    assert len(rollout.reward) == 150


def test_episodes_are_numbered_as_their_returns_are():
    rollout = Collector(pgce.envs.make("CartPole-v1", 5), mlp(4, 2), 120, seed=0).collect()
    episode = rollout.episode
    assert episode.max() == len(rollout.episode_return) - 1
    for number, (total, length) in enumerate(
        zip(rollout.episode_return, rollout.episode_length, strict=True)
    ):
        rows = (episode == number) & rollout.valid
        assert int(rows.sum()) == length
        assert rollout.reward[rows].sum() == total


class Allowed(gym.Env):
    """Only one action is allowed at a time, which the info tells; any other ends with −1."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._see()

    def _see(self):
        self.allowed = int(self.np_random.integers(3))
        return np.zeros(2, np.float32), {"action_mask": np.arange(3) == self.allowed}

    def step(self, action):
        wrong = action != self.allowed
        self.t += 1
        observation, info = self._see()
        if wrong or self.t == 7:
            info = {"action_mask": np.zeros(3, bool)}  # nothing is allowed after the end
        return observation, -1.0 if wrong else 1.0, bool(wrong), self.t == 7, info


@pytest.mark.parametrize("mode", AutoresetMode)
def test_forbidden_actions_are_never_taken(mode):
    envs = SyncVectorEnv([Allowed] * 3, autoreset_mode=mode)
    assert mask_size(envs) == 3
    policy = pgce.spaces.Masked(nn.Linear(2, 3), 2, pgce.heads.Categorical())
    rollout = Collector(envs, policy, 50, seed=0).collect()
    assert (rollout.reward[rollout.valid] == 1).all()
    assert rollout.observation.shape == (51, 3, 5)
    assert set(rollout.episode_length) == {7}
    assert rollout.cross_entropy[rollout.valid].abs().max() == 0


def test_an_agent_learns_taxi_with_its_mask(tmp_path):
    """Taxi tells in its info which actions change anything."""
    agent = PPO(env_id="Taxi-v4", num_envs=32, num_steps=32, runs_dir=str(tmp_path), **QUICK)
    run = agent.train(total_timesteps=40_000)
    assert run.result["eval_mean"] > -150, "a random policy has −770"
    trained = pgce.load(run.path)
    env = gym.make("Taxi-v4")
    observation, info = env.reset(seed=0)
    for _ in range(20):
        action = trained.act(observation, action_mask=info["action_mask"])
        assert info["action_mask"][action]
        observation, *_, info = env.step(action)


@pytest.mark.parametrize("kind", [PPO, A2C, RLOO, GRPO, Reinforce])
def test_a_rollout_in_which_nothing_counts_changes_nothing(kind, tmp_path):
    """Episodes longer than the rollout: RLOO has none that ended."""
    more = {"group": 2} if kind is GRPO else {}
    agent = kind(env_id="Pendulum-v1", num_envs=4, num_steps=8, runs_dir=str(tmp_path), **QUICK, **more)
    run = agent.train(total_timesteps=64)
    assert run.result["stopped"] == "budget"
    if kind is RLOO:
        assert run.result["steps"] == 64


def test_from_an_expert_to_its_pupil_to_another_agent(tmp_path):
    """PPO, behaviour cloning from it, and PPO again from the clone."""
    where = {"runs_dir": str(tmp_path), **QUICK}
    expert = PPO.preset("CartPole-v1", **where).train()
    pupil = BC(expert=str(expert.path), **where).train("CartPole-v1", total_timesteps=20_000)
    assert pupil.result["eval_mean"] > 450
    start = PPO(init=str(pupil.path), learning_rate=1e-9, num_steps=64, **where)
    again = start.train("CartPole-v1", total_timesteps=1_024)
    assert again.result["eval_mean"] > 450
    with pytest.raises(ValueError, match="learns from an expert"):
        BC(**where).train("CartPole-v1")
    with pytest.raises(FileNotFoundError):
        pgce.load(tmp_path)
    (expert.path / "config.json").write_text('{"env_id": 3, "agent": "x"}')
    with pytest.raises((ValueError, TypeError, AttributeError)):
        pgce.load(expert.path)


@pytest.mark.parametrize("kind", [A2C, AWR, PPO])
def test_n_steps_replace_the_generalised_estimate(kind):
    """The columns are those of `returns.n_step`; one step is λ = 0."""
    torch.manual_seed(0)
    model = ActorCritic(mlp(4, 2), Value(mlp(4, 1)))
    rollout = Collector(pgce.envs.make("CartPole-v1", 4), model.policy, 40, seed=1).collect()

    def columns(**settings):
        return kind(norm_adv=False, **settings).prepare(rollout, model).columns

    value, next_value = rollout.values(model.value)
    ends = rollout.terminated, rollout.truncated
    returns = pgce.returns.n_step(rollout.reward, *ends, next_value, 0.99, 5)
    five = columns(n_step=5)
    torch.testing.assert_close(five["return"], returns.flatten())
    advantage = (returns - value).flatten()
    if kind is AWR:
        advantage = pgce.weights.exponential(advantage, 0.3, 20.0)
    torch.testing.assert_close(five["advantage"], advantage)
    assert not torch.allclose(five["return"], columns()["return"])
    torch.testing.assert_close(columns(n_step=1)["return"], columns(gae_lambda=0.0)["return"])


class Watched(PPO):
    """Keeps what each round saw: the share of the run before it, and the columns and reports after it."""

    def prepare(self, rollout, model):
        if not hasattr(self, "taken"):
            self.taken, self.rounds, self.model_value = 0, [], model.value
        batch = super().prepare(rollout, model)
        value, next_value = rollout.values(model.value)
        self.rounds.append({"progress": self.taken / self.total_timesteps, "return": batch["return"]})
        self.rounds[-1]["gae"] = lambda gae_lambda: (
            value + pgce.returns.gae(rollout.reward, rollout.terminated, rollout.truncated, value,
                                     next_value, self.gamma, gae_lambda)
        ).flatten()  # fmt: skip
        self.taken += rollout.steps
        return batch

    def stop(self, reports):
        self.rounds[-1]["reports"] = reports
        type(self).last = self
        return False


def test_scheduled_coefficients_reach_the_terms_and_columns(tmp_path):
    """In every round; by an agent that keeps a state from round to round."""
    fall = {"ent_coef": "linear", "vf_coef": "constant", "clip_coef": "cosine", "gae_lambda": "linear"}
    agent = Watched(schedules=fall, ent_coef=0.1, clip_coef=0.05, runs_dir=str(tmp_path), **QUICK)
    run = agent.train("CartPole-v1", total_timesteps=20_000)
    rounds = Watched.last.rounds
    assert Watched.last.taken == run.result["steps"], "the state went on"
    assert len(rounds) >= 9
    for this in rounds:
        linear, cosine = 1 - this["progress"], (1 + np.cos(np.pi * this["progress"])) / 2
        reports = this["reports"]
        entropy, value, policy = reports["entropy"], reports["value"], reports["policy"]
        assert entropy.loss / entropy.cross_entropy.mean() == pytest.approx(-0.1 * linear, rel=1e-4)
        assert value.loss / value.cross_entropy.mean() == pytest.approx(0.5, rel=1e-2)
        clipped = pgce.weights.clipped(policy.cross_entropy, policy.batch, clip_coef=0.05 * cosine)
        torch.testing.assert_close(policy.weight, clipped)
        torch.testing.assert_close(this["return"], this["gae"](0.95 * linear))
    assert rounds[-1]["progress"] > 0.8
    assert (agent.ent_coef, agent.clip_coef) == (0.1, 0.05), "the settings are those at the start"


def test_environments_are_made_with_their_arguments(tmp_path):
    """In training, evaluation, and from what was saved."""
    agent = PPO(env_kwargs={"max_episode_steps": 7}, runs_dir=str(tmp_path), **QUICK)
    run = agent.train("CartPole-v1", total_timesteps=2_048)
    assert run.result["eval_mean"] == 7
    trained = pgce.load(run.path)
    assert trained.env_kwargs == {"max_episode_steps": 7}
    assert trained.evaluate(4).tolist() == [7.0] * 4
    with pytest.raises(ValueError, match="episodes is a whole number, at least 1: it is 0"):
        trained.evaluate(0)
    with pytest.raises(ValueError, match=r"the spaces are alike: .* of Acrobot-v1 Discrete"):
        trained.evaluate(4, env_id="Acrobot-v1")
    with pytest.raises(ValueError, match=r"one observation of .*: .*wrong shape"):
        trained.act(np.zeros(99))


class Late(gym.Env):
    """Holds what cannot be saved, but not from the first."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self):
        self.total, self.known = 0, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time, self.total = self.time + 1, self.total + 1
        self.known = {self.time} if self.total > 90 else None
        return np.zeros(1, np.float32), 1.0, self.time == 5, False, {}


def test_environments_that_cannot_be_saved_any_more_are_reset_by_a_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "Late-v0", EnvSpec("Late-v0", entry_point=Late))
    settings = {**QUICK, "num_envs": 4, "num_steps": 32, "checkpoint_every": 0.0, "quiet": False}
    settings |= {"eval_episodes": 2}
    for steps in (512, 640):
        agent = PPO(env_id="Late-v0", runs_dir=str(tmp_path), run="late", total_timesteps=steps, **settings)
        agent.allow_change = ("total_timesteps",)
        run = agent.train()
        assert run.result["steps"] > steps - 128
    assert "2. attempt; with new episodes and seeds" in " ".join(capsys.readouterr().out.split())


def test_sums_of_rewards_end_with_episodes_that_are_left(tmp_path, monkeypatch):
    """Groups begin anew every rollout, and environments that could not be saved after a resume."""
    monkeypatch.setitem(gym.registry, "Late-v0", EnvSpec("Late-v0", entry_point=Late))
    settings = {**QUICK, "env_id": "Late-v0", "num_envs": 4, "norm_reward": True, "gamma": 1.0}
    settings |= {"eval_episodes": 2, "runs_dir": str(tmp_path)}
    run = GRPO(num_steps=3, group=2, total_timesteps=120, **settings).train()
    assert run.model.reward_scale.statistics.mean.item() == pytest.approx(2), "1, 2 and 3 in every rollout"
    before, forward = [], RewardScale.forward
    seen = lambda self, *rows: before.append(self.running.tolist()) or forward(self, *rows)  # noqa: E731
    monkeypatch.setattr(RewardScale, "forward", seen)
    for steps in (512, 640):
        agent = PPO(num_steps=32, run="late", checkpoint_every=0.0, total_timesteps=steps, **settings)
        agent.allow_change = ("total_timesteps",)
        rounds = len(before)
        agent.train()
    assert any(map(any, before[:rounds]))
    assert before[rounds] == [0] * 4


class Longer(Late):
    """Has longer episodes the more there have been, whatever seed a reset has."""

    episodes = 0

    def reset(self, **kwargs):
        self.episodes += 1
        return super().reset(**kwargs)

    def step(self, action):
        observation, reward, *_ = super().step(action)
        self.known = None
        return observation, reward, self.time > self.episodes, False, {}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_evaluations_go_on_in_their_environments(vectorization, tmp_path, monkeypatch):
    monkeypatch.setitem(gym.registry, "Longer-v0", EnvSpec("Longer-v0", entry_point=Longer))
    settings = {**QUICK, "env_id": "Longer-v0", "num_envs": 2, "num_steps": 16, "checkpoint_every": 0.0}
    settings |= {"eval_episodes": 4, "eval_freq": 60, "runs_dir": str(tmp_path)}
    agent = PPO(total_timesteps=320, vectorization=vectorization, **settings)
    whole, curve = replace(agent, run="whole"), []
    whole.train(after=lambda steps, score: curve.append((steps, score)))
    parts, seen = replace(agent, run="parts"), []

    def killed(steps, score):
        seen.append((steps, score))
        if len(seen) == 3:
            raise KeyError

    with pytest.raises(KeyError):
        parts.train(after=killed)
    parts.train(after=lambda steps, score: seen.append((steps, score)))
    assert len(seen) > 4
    assert dict(seen) == dict(curve)


def test_after_sees_every_evaluation(tmp_path, monkeypatch):
    entry = gym.spec("CartPole-v1").entry_point
    monkeypatch.setitem(gym.registry, "Easy-v0", EnvSpec("Easy-v0", entry, reward_threshold=1.0))
    seen = []
    settings = {"num_envs": 2, "num_steps": 16, "eval_episodes": 2, "eval_freq": 16, **QUICK}
    agent = PPO(runs_dir=str(tmp_path), run="easy", **settings)
    run = agent.train("Easy-v0", 640, after=lambda steps, score: seen.append((steps, score)))
    assert run.result["stopped"] == "threshold"
    assert seen == [(run.result["steps"], run.result["eval_mean"])]
    assert agent.train("Easy-v0", 640).result["steps"] == run.result["steps"]
    longer = replace(agent, stop_at_threshold=False, allow_change=("stop_at_threshold",))
    assert longer.train("Easy-v0", 640).result["steps"] > run.result["steps"]


def test_a_start_has_all_of_a_policy(tmp_path):
    where = {"num_envs": 2, "num_steps": 16, "eval_episodes": 2, "runs_dir": str(tmp_path), **QUICK}
    start = PPO(**where).train("CartPole-v1", 32).path
    with pytest.raises(ValueError, match=r"normalize\.count is only in .*ppo"):
        PPO(init=str(start), norm_obs=False, **where).train("CartPole-v1", 32)
    deep = PPO(init=str(start), hidden_sizes=(64, 64, 64), **where)
    with pytest.raises(ValueError, match=r"actor\.0\.4\.bias is only in the new one"):
        deep.train("CartPole-v1", 32)
    for name, other in (("activation", "relu"), ("continuous", "tanh")):
        with pytest.raises(ValueError, match=f"of the same {name}: .*, here {other}"):
            PPO(init=str(start), **{name: other}, **where).train("CartPole-v1", 32)
    alone = Reinforce(init=str(start), norm_obs=True, **where)
    assert alone.train("CartPole-v1", 32).result["steps"] > 0


def test_a_run_shorter_than_a_rollout_takes_one(tmp_path):
    agent = A2C(num_envs=4, num_steps=16, runs_dir=str(tmp_path), **QUICK)
    assert 32 < agent.train("CartPole-v1", 32).result["steps"] <= 64


def test_a_run_goes_on_in_another_number_of_environments(tmp_path):
    settings = {"run": "wider", "norm_reward": True, "num_steps": 16, "runs_dir": str(tmp_path), **QUICK}
    agent = PPO(num_envs=2, eval_episodes=2, **settings)
    agent.train("CartPole-v1", 64)
    wider = replace(agent, num_envs=4, allow_change=("num_envs", "total_timesteps"))
    with pytest.warns(RuntimeWarning, match="new episodes begin in the environments"):
        assert wider.train("CartPole-v1", 256).result["steps"] > 192


@pytest.mark.parametrize("vectorization", ["auto", "sync"])
def test_a_run_goes_on_in_environments_of_other_arguments(vectorization, tmp_path):
    """The state that was saved would make them what they were."""
    settings = {"run": "other", "runs_dir": str(tmp_path), "vectorization": vectorization, **QUICK}
    agent = PPO(num_envs=2, num_steps=16, eval_episodes=2, env_kwargs={"max_episode_steps": 3}, **settings)
    assert agent.train("CartPole-v1", 64).result["eval_mean"] == 3
    agent = replace(agent, env_kwargs={"max_episode_steps": 5})
    agent.allow_change = ("env_kwargs", "total_timesteps")
    seen = []
    with pytest.warns(RuntimeWarning, match='new episodes begin .* made by .*"max_episode_steps": 3'):
        run = agent.train("CartPole-v1", 256, metrics=lambda step, values: seen.append(values))
    assert run.result["eval_mean"] == 5
    assert max(values.get("rollout/ep_rew_max", 0) for values in seen) == 5


@pytest.mark.parametrize("memory", [None, "gru"])
def test_a_run_with_a_buffer_goes_on_in_rollouts_of_another_length(memory, tmp_path):
    settings = {"run": "longer", "memory": memory, "keep_rollouts": 2, "runs_dir": str(tmp_path), **QUICK}
    agent = AWR(num_envs=2, num_steps=16, eval_episodes=2, **settings)
    agent.train("CartPole-v1", 64)
    longer = replace(agent, num_steps=24, allow_change=("num_steps", "total_timesteps"))
    assert longer.train("CartPole-v1", 256).result["steps"] > 192


def test_a_run_goes_on_with_more_episodes_an_evaluation(tmp_path):
    """In as many environments, which cannot have the state of fewer."""
    settings = {"run": "more", "num_envs": 2, "num_steps": 16, "runs_dir": str(tmp_path), **QUICK}
    agent = PPO(eval_episodes=2, **settings)
    agent.train("CartPole-v1", 64)
    more = replace(agent, eval_episodes=4, allow_change=("eval_episodes", "total_timesteps"))
    with pytest.warns(RuntimeWarning, match="new environments: the state is of 2 environments: there are 4"):
        assert more.train("CartPole-v1", 128).result["eval_episodes"] == 4


def test_an_evaluation_that_a_signal_cut_short_is_made_as_it_would_have_been(tmp_path, monkeypatch):
    settings = {"num_envs": 2, "num_steps": 16, "eval_episodes": 4, "runs_dir": str(tmp_path), **QUICK}
    agent = PPO(env_id="CartPole-v1", total_timesteps=64, **settings)
    whole = replace(agent, run="whole").train()
    parts = replace(agent, run="parts")
    with monkeypatch.context() as patched:
        patched.setattr(Run, "waited", 10.0)
        assert parts.train().result["eval_mean"] is None
    assert parts.train().result["eval_mean"] == whole.result["eval_mean"]


class Parted(Late):
    """Has two arrays in one memory, but not for long."""

    def __init__(self):
        super().__init__()
        self.whole = np.zeros(2)
        self.half = self.whole[:1]

    def step(self, action):
        result = super().step(action)
        self.known, self.half = None, self.half + 1 if self.total > 90 else self.half
        return result


def test_a_state_that_cannot_be_restored_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gym.registry, "Parted-v0", EnvSpec("Parted-v0", entry_point=Parted))
    settings = {**QUICK, "num_envs": 4, "num_steps": 32, "checkpoint_every": 0.0, "quiet": False}
    settings |= {"eval_episodes": 2, "runs_dir": str(tmp_path), "run": "parted", "env_id": "Parted-v0"}
    first = PPO(total_timesteps=512, **settings).train()
    with pytest.warns(RuntimeWarning, match="new episodes begin in the environments: .* saved as"):
        run = PPO(total_timesteps=640, allow_change=("total_timesteps",), **settings).train()
    assert run.result["steps"] > first.result["steps"]
    assert "2. attempt; with new episodes and seeds" in " ".join(capsys.readouterr().out.split())


def test_a_resume_that_is_refused_leaves_the_result(tmp_path, monkeypatch):
    settings = {**QUICK, "num_envs": 4, "num_steps": 32, "runs_dir": str(tmp_path), "run": "kept"}
    run = PPO(total_timesteps=512, **settings).train("CartPole-v1")
    told = (run.path / "result.json").read_text()
    monkeypatch.setattr("pgce.checkpoint.check_like", None)  # so that nothing is taken from the checkpoint
    monkeypatch.setattr("pgce.training.check_like", None)
    with pytest.raises(TypeError):
        PPO(total_timesteps=640, allow_change=("total_timesteps",), **settings).train("CartPole-v1")
    assert (run.path / "result.json").read_text() == told


class Strict(Late):
    """Raises at actions that its mask forbids."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], {"action_mask": np.array([1, 0])}

    def step(self, action):
        assert action == 0, "not allowed"
        return *super().step(action)[:-1], {"action_mask": np.array([1, 0])}


def test_a_trial_of_what_can_be_saved_restarts_no_environment(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(gym.registry, "Strict-v0", EnvSpec("Strict-v0", entry_point=Strict))
    settings = {**QUICK, "num_envs": 4, "num_steps": 32, "checkpoint_every": 0.0, "eval_episodes": 2}
    agent = PPO(env_id="Strict-v0", runs_dir=str(tmp_path), env_restarts=3, total_timesteps=128, **settings)
    assert agent.train().result["steps"] > 0
    assert not [warning for warning in recwarn if "made anew" in str(warning.message)]


@pytest.mark.parametrize("kind", [A2C, PPO])
def test_a_constant_schedule_changes_nothing(kind, tmp_path):
    fields = {"ent_coef": 0.01, "norm_reward": False, "runs_dir": str(tmp_path), **QUICK}
    names = ("ent_coef", "vf_coef", "gamma", "gae_lambda")
    runs = [
        kind(schedules=schedules, **fields).train("CartPole-v1", total_timesteps=6_000)
        for schedules in ({}, dict.fromkeys(names, "constant"), {"ent_coef": "linear"})
    ]
    plain, constant, linear = (run.model.state_dict() for run in runs)
    assert all(torch.equal(plain[name], constant[name]) for name in plain)
    assert not all(torch.equal(plain[name], linear[name]) for name in plain)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (PPO, {"gamma": 0.0, "gae_lambda": 0.0, "vf_coef": 0.0}),
        (PPO, {"gamma": 1.0, "gae_lambda": 1.0, "clip_coef": 1e-6, "dual_clip": 1.1, "target_kl": 1e-6}),
        (VTrace, {"trace_lambda": 0.0, "max_c": 0.0, "max_rho": 0.1}),
        (VTrace, {"trace_lambda": 1.0}),
        (AWR, {"beta": 0.1, "max_weight": 0.5}),
        (GRPO, {"clip_coef": 1e-6}),
        (A2C, {"n_step": 1}),
    ],
)
def test_settings_at_the_ends_of_their_ranges_are_taken(kind, settings):
    kind(**settings).check()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PPO, {"gae_lambda": 1.5}, "gae_lambda lies in .* it is 1.5"),
        (PPO, {"gamma": -0.1}, "gamma is -0.1"),
        (PPO, {"gamma": 1.1}, "gamma is 1.1"),
        (PPO, {"schedules": {"learning_rate": "linear"}}, "the schedule of learning_rate is lr_schedule"),
        (PPO, {"schedules": {"num_envs": "linear"}}, "clip_coef.*: it is 'num_envs'"),
        (PPO, {"schedules": {"clip_coeff": "linear"}}, "it is 'clip_coeff'"),
        (PPO, {"schedules": {"max_grad_norm": "linear"}}, "it is 'max_grad_norm'"),
        (PPO, {"schedules": {"step_timeout": "linear"}}, "it is 'step_timeout'"),
        (PPO, {"schedules": {"clip_vloss": "linear"}}, "it is 'clip_vloss'"),
        (A2C, {"schedules": {"clip_coef": "linear"}}, "it is 'clip_coef'"),
        (PPO, {"schedules": {"clip_coef": "step"}}, "the schedule of clip_coef is one of .* it is 'step'"),
        (PPO, {"schedules": {"gamma": "linear"}, "norm_reward": True}, "gamma stays: schedules has it"),
        (PPO, {"log_std_init": math.inf}, r"log_std_init lies in \[-20, 20\]: it is inf"),
        (PPO, {"schedules": {"target_kl": "linear"}}, "target_kl is None"),
        (PPO, {"schedules": {"ent_coef": "linear"}}, "ent_coef is 0.0"),
        (
            PPO,
            {"schedules": {"dual_clip": "linear"}, "dual_clip": 2.0, "num_steps": 2, "num_envs": 2},
            "in the last round, by schedules: .* 0.008",
        ),
        (PPO, {"schedules": {"gae_lambda": "linear"}, "n_step": 3}, "n_step replaces GAE"),
        (A2C, {"n_step": 0}, "n_step is at least 1: it is 0"),
        (PPO, {"clip_coef": 0.0}, "clip_coef is positive"),
        (PPO, {"dual_clip": 0.5}, "dual_clip above 1"),
        (PPO, {"num_minibatches": 0}, "num_minibatches is at least 1: it is 0"),
        (PPO, {"continuous": "student"}, "it is 'student'"),
        (PPO, {**_TRANSFORMER, "hidden_sizes": (32, 64)}, r"one width: hidden_sizes is \(32, 64\)"),
        (PPO, {**_TRANSFORMER, "hidden_sizes": (30,)}, "there are 1, of width 30"),
        (PPO, {"network": "transformer"}, "a transformer reads tokens"),
        (GRPO, {"num_envs": 9}, "num_envs is 9, a group has 8"),
        (GRPO, {"group": 0}, "group_size is at least 1: it is 0"),
        (GRPO, {"clip_coef": -0.2}, r"clip_coef is positive: it is -0\.2"),
        (AWR, {"keep_rollouts": 0}, "kept is at least 1: it is 0"),
        (AWR, {"beta": 0.0}, r"they are 0\.0 and 20\.0"),
        (VTrace, {"policy_lag": 0}, "lag is at least 1: it is 0"),
        (AWR, {"max_weight": 0.0}, r"they are .* and 0\.0"),
        (VTrace, {"max_rho": 0.0}, r"they are 0\.0 and 1\.0"),
        (VTrace, {"max_c": -1.0}, r"they are 1\.0 and -1\.0"),
        (VTrace, {"trace_lambda": 2.0}, r"trace_lambda lies in \[0, 1\]: it is 2\.0"),
        (PPO, {"target_kl": 0.0}, r"target_kl is positive, or None: it is 0\.0"),
        (PPO, {"ent_coef": math.nan}, "ent_coef is a number: it is nan"),
        (PPO, {"env_kwargs": {"num_envs": 3}}, "env_kwargs has num_envs"),
        (PPO, {"env_kwargs": {"gravity": QUICK.keys()}}, "env_kwargs is plain data"),
        (PPO, {"env_kwargs": {"gravity": 9.8}}, "CartPole-v1 cannot be made with {'gravity': 9.8}"),
        (PPO, {"env_id": "Pendulum-v1", "init": "nowhere"}, "No such file"),
        (BC, {"expert": "nowhere"}, "No such file"),
        (BC, {"data": "nowhere.npz"}, "No such file"),
    ],
)
def test_bad_settings_leave_no_folder(kind, settings, message, tmp_path):
    agent = kind(runs_dir=str(tmp_path / "runs"), **{**QUICK, **settings})
    with pytest.raises(ValueError, match=message):
        agent.train(total_timesteps=1_000)
    assert not (tmp_path / "runs").exists()
