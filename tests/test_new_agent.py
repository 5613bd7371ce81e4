"""Agents of one's own: which hooks are called, on what, and what is refused."""

from __future__ import annotations

import importlib
import json
import math
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

import pgce
from pgce import explaining
from pgce.agents import BC, PPO
from pgce.command import main as command_line
from pgce.flags import from_config
from pgce.networks import Value
from pgce.policy_gradient import Agent

QUICK = {"quiet": True, "device": "cpu", "stop_at_threshold": False, "eval_episodes": 4}
SMALL = {**QUICK, "num_envs": 4, "num_steps": 16}
FEW = {"num_minibatches": 4, "update_epochs": 4}


def recorded(rows=200):
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(rows, 4)).astype(np.float32)
    return {"observations": seen, "actions": rng.integers(0, 2, rows)}


@dataclass(kw_only=True)
class Falling(BC):
    """Behaviour cloning, whose hooks tell what they see."""

    tau: float = 1.0
    """Falls over the run."""

    def examples(self, collector):
        self.seen = Falling.last = []
        return super().examples(collector)

    def batches(self, batch, generator):
        for each in super().batches(batch, generator):
            self.seen.append(self.tau)
            yield each


def test_batches_of_recorded_examples_see_schedules_and_what_hooks_kept(tmp_path):
    agent = Falling(schedules={"tau": "linear"}, runs_dir=str(tmp_path), **QUICK)
    agent.train("CartPole-v1", 2_000, data=recorded())
    assert Falling.last[:10] == pytest.approx([1 - n / 10 for n in range(10)])


def test_a_run_of_less_than_an_epoch_learns_from_all_that_it_counts(tmp_path):
    settings = {"batch_size": 50, "runs_dir": str(tmp_path), "seed": 1, **QUICK}
    short, longer = (BC(**settings).train("CartPole-v1", n, data=recorded()) for n in (100, 160))
    assert (short.result["steps"], longer.result["steps"]) == (100, 150)
    assert not same(short.model.state_dict(), longer.model.state_dict())


@dataclass(kw_only=True)
class Remembering(PPO):
    """PPO whose advantages depend on all that it has seen so far."""

    def prepare(self, rollout, model):
        if not hasattr(self, "total"):
            self.total, self.rounds = torch.zeros(()), 0
        self.total, self.rounds = self.total + rollout.reward.sum(), self.rounds + 1
        advantage = rollout.reward * self.total / self.rounds
        batch = super().prepare(rollout, model)
        return pgce.Batch(batch.input, {**batch.columns, "advantage": advantage.flatten()}, batch.mask)


class Saved(Remembering):
    """The same, which says what of it is to be saved."""

    def state_dict(self):
        return {"total": self.total, "rounds": self.rounds}

    def load_state_dict(self, state):
        self.total, self.rounds = state["total"], state["rounds"]


def stopped_and_resumed(kind, folder):
    """The model of a run in one go, and of one that is ended after a checkpoint and goes on."""
    settings = {**SMALL, "env_id": "CartPole-v1", "total_timesteps": 1_024, "eval_freq": 10**6}
    settings |= {"checkpoint_every": 0.0, "runs_dir": str(folder), "resume": "auto", "seed": 3}
    whole = kind(run="whole", **settings).train()

    def fails(step, values):
        if step > 500:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        kind(run="parts", **settings).train(metrics=fails)
    settings["quiet"] = False
    parts = kind(run="parts", **settings).train()
    return whole.model.state_dict(), parts.model.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_what_an_agent_keeps_is_saved_or_named_when_it_is_resumed(tmp_path, capsys):
    whole, parts = stopped_and_resumed(Saved, tmp_path / "saved")
    assert same(whole, parts)
    assert "2. attempt; exactly as if it had not been stopped" in capsys.readouterr().out
    whole, parts = stopped_and_resumed(Remembering, tmp_path / "not")
    assert not same(whole, parts)
    said = capsys.readouterr().out
    assert "2. attempt; without rounds, total, which Remembering.state_dict does not give" in said


SCRIPT = '''
from dataclasses import dataclass
import pgce.agents.ppo
from pgce.run import main

@dataclass(kw_only=True)
class PPO(pgce.agents.ppo.PPO):
    """An agent with the name of another."""

    def weight(self):
        return lambda cross_entropy, batch: -batch["advantage"]

class Plus(PPO):
    """An agent with a name of its own."""

if __name__ == "__main__":
    main({kind}, None)
'''
FLAGS = "--env-id CartPole-v1 -n 128 --num-envs 4 --num-steps 16 --eval-episodes 4 --quiet --no-track"


def by_script(kind, folder, *flags):
    """A run of a script in a folder."""
    (folder / f"{kind.lower()}_of_mine.py").write_text(SCRIPT.replace("{kind}", kind))
    words = [sys.executable, f"{kind.lower()}_of_mine.py", *FLAGS.split(), *flags]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "it"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("PPO", []),
        pytest.param("PPO", ["--seeds", "1", "2", "--jobs", "2"], marks=pytest.mark.slow),
        pytest.param("Plus", [], marks=pytest.mark.slow),
    ],
)
def test_an_agent_of_ones_own_is_not_taken_for_another(kind, more, tmp_path, monkeypatch, capsys):
    run = by_script(kind, tmp_path, "--run", "it", *more)
    run = run.with_name("it-1") if more else run
    file = f"{kind.lower()}_of_mine"
    assert json.loads((run / "config.json").read_text())["class"] == f"{file}:{kind}"
    command = shlex.split((run / "command.txt").read_text())
    assert command[:2] == ["python", f"{file}.py"]
    monkeypatch.chdir(tmp_path)
    settings = PPO(**{**SMALL, "run": run.name, "total_timesteps": 128, "track": False})
    if kind == "PPO":
        with pytest.raises(ValueError, match=f"class '{file}:PPO' -> 'pgce.agents.ppo:PPO'"):
            settings.train()
        with pytest.raises(ValueError, match=f"of the class {file}:PPO: these are of pgce.agents.ppo:PPO"):
            from_config(PPO, run)
    with pytest.raises(SystemExit) as caught:
        command_line(["explain", str(run)])
    assert caught.value.code == 2
    assert f"runs of pgce's own agents are explained: {run} is of {file}:{kind}" in capsys.readouterr().err
    observation = np.zeros(4, np.float32)
    assert pgce.load(run).act(observation) in (0, 1), "which its networks do"
    if not more:  # it goes on by its command, and by the class once imported
        done = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        monkeypatch.syspath_prepend(tmp_path)
        own = from_config(getattr(importlib.import_module(file), kind), run)
        assert own.command().startswith(f"python -m {file} ")
        assert replace(own, run="it").train().attempt == 3


def test_the_class_of_an_older_run_is_not_asked_for(tmp_path):
    settings = PPO(**SMALL, run="it", runs_dir=str(tmp_path), total_timesteps=128)
    file = settings.train().path / "config.json"
    config = json.loads(file.read_text())
    del config["class"]
    file.write_text(json.dumps(config))
    assert settings.train().attempt == 2
    file.write_text(json.dumps(config))
    assert from_config(PPO, file).num_envs == 4
    assert "w · (p − y)" in explaining.run(file.parent)


class Foreseeing(nn.Module):
    """One body that policy, value and the guess of the next observation read."""

    def __init__(self, observations, actions, width):
        super().__init__()
        self.normalize = self.reward_scale = None
        self.body = nn.Sequential(nn.Linear(observations, width), nn.LayerNorm(width), nn.SiLU())
        self.actor, self.following = nn.Linear(width, actions), nn.Linear(width, observations)
        self.critic = Value(nn.Linear(width, 1), unit=5.0)

    @property
    def policy(self):
        return nn.Sequential(self.body, self.actor)

    @property
    def value(self):
        return nn.Sequential(self.body, self.critic)

    def forward(self, x):
        hidden = self.body(x)
        return {"policy": self.actor(hidden), "value": self.critic(hidden), "next": self.following(hidden)}


@dataclass(kw_only=True)
class Foresight(PPO):
    """PPO that also predicts the next observation, with networks of its own."""

    width: int = 64
    """Units of the body."""

    def build_model(self, envs):
        action = pgce.spaces.actions(envs.single_action_space)
        seen = pgce.spaces.observations(envs.single_observation_space)
        return Foreseeing(seen.size, action.size, self.width)

    def terms(self, head):
        following = pgce.Term(pgce.heads.Gaussian(event_dims=1), target="next", output="next")
        return {**super().terms(head), "next": following}

    def prepare(self, rollout, model):
        following = rollout.observation[1:].flatten(0, 1).clone()
        following[rollout.final_index] = rollout.final_observation
        return super().prepare(rollout, model).with_columns(next=following)


def test_an_agent_with_networks_of_its_own_is_trained_saved_and_loaded(tmp_path, capsys):
    where = {**QUICK, "runs_dir": str(tmp_path), "run": "it", "eval_freq": 10**6}
    agent = Foresight.preset("CartPole-v1", total_timesteps=30_000, **where)
    run = agent.train()
    assert run.result["eval_mean"] > 80, "by chance 22"
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    errors = [row["train/next_loss"] - 2 * math.log(2 * math.pi) for row in rows if "train/next_loss" in row]
    assert 0 < errors[-1] < 0.8 * errors[0], "½ log 2π a number is the cross-entropy of what is certain"
    with pytest.raises(ValueError, match=r"pgce.load\(run, agent=...\): .* is of test_new_agent:Foresight"):
        pgce.load(run.path)
    with pytest.raises(SystemExit):
        command_line(["evaluate", str(run.path)])
    assert "is loaded with its class" in capsys.readouterr().err
    loaded = pgce.load(run.path, agent=Foresight)
    assert same(run.model.state_dict(), loaded.model.state_dict())
    assert loaded.evaluate(4).mean() > 80
    (tmp_path / "policy").mkdir()
    assert loaded.export(tmp_path / "policy" / "it.pt2").exists()
    again = replace(agent, total_timesteps=33_000, allow_change=("total_timesteps",)).train()
    assert again.attempt == 2
    assert again.result["steps"] > run.result["steps"]


def test_networks_of_ones_own_go_on_as_if_they_had_not_been_stopped(tmp_path):
    assert same(*stopped_and_resumed(Foresight, tmp_path))


class Normed(Foresight):
    """The same, with layers that are others when they are trained."""

    def build_model(self, envs):
        model = super().build_model(envs)
        model.body.insert(1, nn.BatchNorm1d(self.width))
        model.body.append(nn.Dropout(0.5))
        return model


def test_evaluations_are_in_evaluation_mode_and_change_nothing(tmp_path):
    models = []
    for eval_freq in (64, 10**6):
        where = {"runs_dir": str(tmp_path), "eval_freq": eval_freq}
        models.append(Normed(**SMALL | FEW | where).train("CartPole-v1", 320).model)
        assert all(module.training for module in models[-1].modules())
    assert same(*(model.state_dict() for model in models))


class Counting(PPO):
    """PPO that logs how often it did so."""

    def metrics(self, reports):
        self.logged = getattr(self, "logged", 0) + 1
        return {"logged": self.logged, "rows": torch.tensor(len(reports["policy"].cross_entropy))}


def test_terms_and_numbers_of_ones_own_are_logged(tmp_path):
    seen = []
    agent = Counting(**SMALL, **FEW, ent_coef=0.01, runs_dir=str(tmp_path))
    agent.train("CartPole-v1", 320, metrics=lambda step, values: seen.append(values))
    rounds = [values for values in seen if "objective/loss" in values]
    assert [values["train/own/logged"] for values in rounds] == [1, 2, 3, 4, 5]
    for values in rounds:
        assert 12 <= values["train/own/rows"] <= 16
        assert {"train/value_loss", "train/entropy_loss"} <= values.keys()


class Unnamed(Foreseeing):
    """Networks that give but the logits."""

    def __init__(self):
        super().__init__(4, 2, 8)

    def forward(self, x):
        return self.policy(x)


def changed(**hooks):
    return type("Changed", (PPO,), hooks)


def aux(output):
    term = pgce.Term(pgce.heads.Gaussian(), target="return", output=output)
    return changed(terms=lambda self, head: {**PPO.terms(self, head), "aux": term})


def of_examples(rows, **hooks):
    columns = {"action": torch.zeros(rows).long(), "advantage": torch.ones(rows)}
    return changed(examples=lambda *_: pgce.Batch(torch.zeros(rows, 4), columns), **hooks)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (aux("nope"), "reads an output of the model by its name, of policy, value: that of aux is 'nope'"),
        (aux(None), "that of aux is None"),
        (aux(0), "that of aux is 0"),
        (changed(build_model=lambda *_: Unnamed()), "by its name, of none: that of policy is 'policy'"),
        (changed(prepare=lambda *_: None), "prepare gives a Batch, as rollout.batch does: it gave None"),
        (changed(prepare=lambda self, rollout, model: rollout), "it gave Rollout"),
        (changed(batches=lambda *_: None), "batches gives batches, one a step: it gave NoneType"),
        (changed(batches=lambda self, batch, generator: batch), "one a step: it gave Batch"),
        (changed(batches=lambda *_: [3]), "one a step: it gave int"),
        (of_examples(9, batches=lambda *_: None), "one a step: it gave NoneType"),
        (changed(build_model=lambda *_: None), "a module with policy, .*, reward_scale: it gave NoneType"),
        (changed(build_model=lambda *_: nn.Linear(4, 2)), "reward_scale: Linear has no policy"),
        (changed(acting=lambda *_: None), "acting gives the module that acts: it gave NoneType"),
        (changed(metrics=lambda *_: None), "metrics gives numbers by name: it gave None"),
        (changed(metrics=lambda *_: {"x": "high"}), r"metrics gives numbers by name: it gave {'x': 'high'}"),
        (changed(metrics=lambda *_: {"x": torch.ones(2)}), "metrics gives numbers by name: it gave"),
        (changed(examples=lambda *_: {}), "a Batch with rows that count, or None: it gave dict"),
        (of_examples(0), "a Batch with rows that count, or None: it gave none"),
        (of_examples(9, batches=lambda *_: []), "steps of an epoch: it gave no row of the examples"),
        (Agent, r"an agent has a method prepare\(rollout, model\): Agent has none"),
    ],
)
def test_what_a_hook_must_give_is_said(kind, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        kind(**SMALL, runs_dir=str(tmp_path)).train("CartPole-v1", 320)
