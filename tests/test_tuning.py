"""The search for settings: what is searched, scored, pruned, and told."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tyro

from pgce.agents import A2C, GRPO, PPO, Reinforce
from pgce.envs.guard import EnvironmentFault
from pgce.policy_gradient import Agent
from pgce.tuning import SPACE, Between, main, tune

TINY = {"quiet": True, "device": "cpu", "total_timesteps": 1_024, "eval_freq": 256, "eval_episodes": 2}


def finished(**result):
    """What the run of a trial is, without one."""
    return SimpleNamespace(result=result)


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason='needs optuna: pip install "pgce[tune]"')


def test_the_best_trial_is_found_and_told(optuna, tmp_path):
    """A learning rate of 0 against one that learns; the command that is told gives the same settings."""
    settings = {"num_envs": 16, "total_timesteps": 16_000, "eval_freq": 8_000, "eval_episodes": 20}
    space = {"learning_rate": (1e-12, 1e-2), "gamma": Between(0.97, 0.99)}
    tuned = tune(Reinforce, "CartPole-v1", 6, space=space, runs_dir=str(tmp_path), **{**TINY, **settings})
    assert tuned.agent.learning_rate == 1e-2
    told = json.loads((tuned.path / "tuning.json").read_text())
    assert told == tuned.result
    assert told["settings"]["learning_rate"] == 1e-2
    scores = [trial["score"] for trial in told["trials"] if trial["state"] == "complete"]
    assert tuned.score == told["score"] == max(scores)
    assert len(told["trials"]) == 6
    assert {trial["settings"]["learning_rate"] for trial in told["trials"]} == {1e-12, 1e-2}
    words = shlex.split(told["command"])[3:]
    assert tyro.cli(Reinforce, args=words, default=Reinforce.from_words(words)) == tuned.agent
    again = tuned.agent.train()
    assert again.result["eval_mean"] == tuned.score
    # The same seed draws the same trials.
    same = tune(Reinforce, "CartPole-v1", 6, space=space, runs_dir=str(tmp_path), **{**TINY, **settings})
    assert same.result["trials"] == told["trials"]


def test_a_trial_that_lags_behind_is_pruned(optuna, tmp_path, monkeypatch):
    """Five trials that score 0 to 4, then worse ones: these end at their first evaluation."""
    trained = []

    def train(self, env_id=None, total_timesteps=None, *, after=None):
        trained.append(self)
        score = 10.0 if len(trained) <= 5 else 0.0
        for steps in (300, 700):
            if after is not None and after(steps, score):
                return finished(stopped="after", steps=steps, eval_mean=score)
        return finished(stopped="budget", steps=1_024, eval_mean=score)

    monkeypatch.setattr(Agent, "train", train)
    tuned = tune(PPO, "CartPole-v1", 8, runs_dir=str(tmp_path), **TINY)
    assert [trial["state"] for trial in tuned.result["trials"]] == ["complete"] * 5 + ["pruned"] * 3
    assert all(agent.stop_at_threshold is False for agent in trained)
    trained.clear()
    tuned = tune(PPO, "CartPole-v1", 1, repeats=3, runs_dir=str(tmp_path), **TINY)
    assert [agent.seed for agent in trained] == [1, 2, 3]


def test_a_run_ends_where_after_says_so(tmp_path):
    seen = []

    def after(steps, mean):
        seen.append((steps, mean))
        return len(seen) == 2

    settings = {**TINY, "eval_freq": 1_000, "total_timesteps": 20_000, "track": False}
    agent = Reinforce(runs_dir=str(tmp_path), **settings)
    result = agent.train("CartPole-v1", after=after).result
    assert result["stopped"] == "after"
    assert len(seen) == 2
    assert seen[-1] == (result["steps"], result["eval_mean"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_search_with_the_best_trial_so_far(optuna, number, code, tmp_path, monkeypatch):
    trained = []

    def train(self, env_id=None, total_timesteps=None, *, after=None):
        trained.append(self)
        assert self.run is None, "each has a folder of its own"
        ends = "budget" if len(trained) < 3 else "terminate" if number == signal.SIGTERM else "interrupt"
        return finished(stopped=ends, steps=1, eval_mean=float(len(trained)))

    monkeypatch.setattr(Agent, "train", train)
    words = ["ppo", "--trials", "9", "--runs-dir", str(tmp_path), "--quiet", "--run", "it"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == code
    assert len(trained) == 3
    (file,) = tmp_path.glob("*/tuning.json")
    told = json.loads(file.read_text())
    assert told["score"] == 2.0, "of the trials that were complete"
    # Where none was, there is nothing to tell.
    seen = []
    monkeypatch.setattr(signal, "raise_signal", lambda number: seen.append(number) or sys.exit(1))
    with pytest.raises(SystemExit):
        main(words)
    assert (len(trained), seen) == (4, [number])


def test_settings_that_do_not_go_together_are_pruned(optuna, tmp_path):
    space = {"num_envs": (12, 16)}
    tuned = tune(GRPO, "CartPole-v1", 6, space=space, runs_dir=str(tmp_path), **TINY)
    states = {trial["settings"]["num_envs"]: trial["state"] for trial in tuned.result["trials"]}
    assert states == {12: "pruned", 16: "complete"}
    with pytest.raises(ValueError, match="comes to its end: the 2 were pruned, pruned"):
        tune(GRPO, "CartPole-v1", 2, space={"num_envs": (12, 13)}, runs_dir=str(tmp_path), **TINY)


def test_an_environment_that_fails_in_a_trial_does_not_end_the_search(optuna, tmp_path, monkeypatch):
    trained = []

    def train(self, env_id=None, total_timesteps=None, *, after=None):
        trained.append(self)
        if len(trained) % 2 == 0:
            raise EnvironmentFault("environment 3 raised")
        return finished(stopped="budget", steps=1, eval_mean=float(len(trained)))

    monkeypatch.setattr(Agent, "train", train)
    tuned = tune(PPO, "CartPole-v1", 4, runs_dir=str(tmp_path), **TINY)
    assert [trial["state"] for trial in tuned.result["trials"]] == ["complete", "fail"] * 2
    assert tuned.score == 3
    trained.append(None)  # so that the next trial fails, and none is complete
    with pytest.raises(EnvironmentFault, match="environment 3 raised"):
        tune(PPO, "CartPole-v1", 1, runs_dir=str(tmp_path), **TINY)


def test_the_space_is_of_settings():
    for kind in (PPO, A2C, Reinforce):
        assert {"learning_rate", "gamma", "num_steps"} <= SPACE.keys() & kind.__dataclass_fields__.keys()
    assert SPACE.keys() <= PPO.__dataclass_fields__.keys()
    assert "update_epochs" not in Reinforce.__dataclass_fields__
    for name, search in SPACE.items():  # around what PPO begins with; only ent_coef may be as good as off
        low, high = search[:2] if isinstance(search, Between) else (min(search), max(search))
        assert low <= getattr(PPO(), name) <= high or name == "ent_coef", name


def test_what_a_flag_sets_is_not_searched_but_what_its_value_names_is(monkeypatch):
    given = {}

    def found(kind, env_id, trials, **settings):
        given.update(settings)
        raise ValueError("it is not searched here")

    monkeypatch.setattr("pgce.tuning.tune", found)
    words = "ppo --clip_coef=0.3 --no-norm-obs --schedules ent_coef linear --env-kwargs gamma 0.5"
    with pytest.raises(SystemExit):
        main(shlex.split(words))
    assert given.keys() >= {"clip_coef", "norm_obs", "schedules", "env_kwargs"}
    assert not given.keys() & {"ent_coef", "gamma", "learning_rate"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials is at least 1: it is 0"),
        ({"repeats": 0}, "repeats is at least 1: it is 0"),
        ({"space": {"gama": (0.9, 1.0)}}, "gama: no setting of PPO"),
        ({"learning_rat": 0.1}, "learning_rat: no setting of PPO"),
        ({"space": {"gamma": (0.9, 1.0)}, "gamma": 0.9}, "one setting or more is searched"),
    ],
)
def test_bad_searches_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune(PPO, "CartPole-v1", **{"runs_dir": str(tmp_path / "runs"), **changes})
    assert not (tmp_path / "runs").exists()


def test_without_optuna_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "pgce\[tune\]"'):
        tune(PPO, "CartPole-v1", runs_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_by_command(optuna, tmp_path):
    flags = ["--env-id", "CartPole-v1", "-n", "1_024", "--gamma", "0.9", "--no-norm-adv", "--seed", "5"]
    where = ["--eval-episodes", "2", "--runs-dir", str(tmp_path)]
    command = [sys.executable, "-m", "pgce.tuning", "a2c", "--trials", "2", *flags, *where]
    done = subprocess.run([*command, "--run", "it"], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
    (found,) = tmp_path.glob("CartPole-v1__tune-a2c__5__*/tuning.json")
    told = json.loads(found.read_text())
    assert told["command"] in done.stdout
    assert "--gamma 0.9 " in told["command"] + " "
    assert "--no-norm-adv" in told["command"]
    assert "--seed 5" in told["command"]
    assert "gamma" not in told["settings"]
    assert {"learning_rate", "gae_lambda", "num_envs"} <= told["settings"].keys()
    refused = subprocess.run([*command, "--gama", "1"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "gama" in refused.stderr + refused.stdout
