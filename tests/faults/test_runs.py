"""The folder of a run: signals, its lock, its name, and what it refuses to go on with."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgce.agents import PPO, Supervised, VTrace
from pgce.checkpoint import load_checkpoint
from pgce.run import train_or_exit

FORK = multiprocessing.get_context("fork")
SHORT = {"quiet": True, "device": "cpu", "num_envs": 4, "num_steps": 32, "eval_episodes": 4, "run": "it",
         "total_timesteps": 3_000, "checkpoint_every": 0.0, "stop_at_threshold": False}  # fmt: skip


def agent(folder, **settings):
    return PPO(**{**SHORT, "runs_dir": str(folder), **settings})


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    agent(tmp_path_factory.mktemp("warm"), total_timesteps=1).train()


def started(settings, errors=os.devnull):
    """A child process with that run."""

    def work():
        os.setpgid(0, 0)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
        train_or_exit(settings)

    child = FORK.Process(target=work)
    child.start()
    return child


def saved(folder, child, limit=60):
    """Wait for the first checkpoint."""
    last, until = folder / "it" / "checkpoints" / "last", time.monotonic() + limit
    while not last.exists():
        assert child.is_alive()
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("vectorization", ["auto", "async"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_saves_what_was_logged_last(number, code, vectorization, tmp_path):
    """To the whole group, as Ctrl-C does: processes of environments are no casualties."""
    child = started(agent(tmp_path, total_timesteps=10**7, vectorization=vectorization))
    saved(tmp_path, child)
    os.killpg(child.pid, number)
    child.join(30)
    assert child.exitcode == code
    result = json.loads((tmp_path / "it" / "result.json").read_text())
    found = load_checkpoint(tmp_path / "it" / "checkpoints")
    events = EventAccumulator(str(tmp_path / "it"), size_guidance={"scalars": 0})
    events.Reload()
    last = events.Scalars("objective/loss")[-1].step
    assert found.step == last == result["steps"] > 0
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_signals_of_one_moment_are_one(tmp_path):
    child = started(agent(tmp_path, total_timesteps=10**7))
    saved(tmp_path, child)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(child.pid, number)
        time.sleep(0.02)
    child.join(30)
    assert child.exitcode == 143
    result = json.loads((tmp_path / "it" / "result.json").read_text())
    assert load_checkpoint(tmp_path / "it" / "checkpoints").step == result["steps"]


ENDLESS = """
import gymnasium as gym
import numpy as np

class Endless(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

gym.register("Endless-v0", Endless)
"""


def test_a_signal_ends_an_endless_evaluation(repository, tmp_path):
    """All was saved before it; and a script finds a module of the folder that it is started in."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    words = ["--allow-import", "--env-id", "endless:Endless-v0", "--run", "it", "-n", "64", "--num-envs", "2"]
    script = [sys.executable, str(repository / "agents" / "ppo.py"), *words, "--num-steps", "32"]
    child = subprocess.Popen([*script, "--quiet", "--device", "cpu"], cwd=tmp_path)
    try:
        folder = tmp_path / "runs" / "it"
        until = time.monotonic() + 60
        while not (folder / "checkpoints" / "last").exists():
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        child.terminate()
        assert child.wait(30) == 143
    finally:
        child.kill()
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["stopped"]) == (64, "terminate")
    assert result["eval_mean"] is None
    assert (folder / "model.safetensors").exists()
    assert load_checkpoint(folder / "checkpoints").step == 64


def test_a_second_signal_does_not_wait(tmp_path, monkeypatch):
    """Here saving takes for ever; what is on the disk is whole."""
    from pgce import checkpoint

    run = agent(tmp_path, total_timesteps=10**7, checkpoint_every=0.05)
    child = started(run)
    saved(tmp_path, child)
    child.kill()
    child.join()
    before = load_checkpoint(tmp_path / "it" / "checkpoints").step
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *_: time.sleep(3600))
    child = started(run)
    time.sleep(1.5)
    os.kill(child.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    child.join(5)
    assert child.exitcode == -signal.SIGTERM
    assert load_checkpoint(tmp_path / "it" / "checkpoints").step == before
    assert not [path for path in (tmp_path / "it").rglob("*") if path.name.endswith(".tmp")]


def test_one_run_at_a_time(tmp_path, capfd):
    child = started(agent(tmp_path, total_timesteps=10**7))
    saved(tmp_path, child)
    listing = sorted(path.name for path in (tmp_path / "it").iterdir())
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            train_or_exit(agent(tmp_path, total_timesteps=10**7))
        assert ended.value.code == 2
        assert f"is that of process {child.pid} on" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "it").iterdir()) == listing
    child.kill()  # frees the folder
    child.join()
    run = agent(tmp_path, total_timesteps=10**7, allow_change=("total_timesteps",))
    run.total_timesteps = load_checkpoint(tmp_path / "it" / "checkpoints").step + 200
    assert run.train().attempt == 2


@pytest.mark.parametrize("made", ["a file", "a full path"])
def test_a_folder_that_cannot_be_made(made, tmp_path, capfd):
    """Told before an environment is started, let alone trained in."""
    place = tmp_path / "runs"
    place.write_text("this is no folder")
    folder = place if made == "a file" else place / "deeper"
    begun = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(folder))
    assert ended.value.code == 74
    assert str(place) in capfd.readouterr().err
    assert time.monotonic() - begun < 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone who may not write")
def test_a_folder_that_one_may_not_write(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o755)

    def work():
        os.setuid(65534)
        train_or_exit(agent(folder))

    child = FORK.Process(target=work)
    child.start()
    child.join(30)
    assert child.exitcode == 74
    assert not list(folder.iterdir())


CHANGES = {
    "gamma": ({"gamma": 0.5}, "gamma 0.99 -> 0.5"),
    "num_envs": ({"num_envs": 8}, "num_envs 4 -> 8"),
    "seed": ({"seed": 7}, "seed 1 -> 7"),
    "env_id": ({"env_id": "Acrobot-v1"}, "env_id 'CartPole-v1' -> 'Acrobot-v1'"),
    "device": ({"device": "auto"}, "device 'cpu' -> 'auto'"),
    "threads": ({"threads": 2}, "threads 1 -> 2"),
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    agent(folder).train()
    return folder


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_of_other_settings_is_refused(name, done, capfd):
    settings, told = CHANGES[name]
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (done / "it").iterdir())
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(done, **settings))
    assert ended.value.code == 2
    message = capfd.readouterr().err
    assert told in message
    assert f"--allow-change {name}" in message
    after = sorted((path.name, path.stat().st_mtime_ns) for path in (done / "it").iterdir())
    assert [each for each in after if each[0] != "run.lock"] == [
        each for each in before if each[0] != "run.lock"
    ]


def test_another_version_or_learner_is_refused(tmp_path, capfd):
    agent(tmp_path).train()
    versions = tmp_path / "it" / "versions.json"
    versions.write_text(versions.read_text().replace('"numpy": "', '"numpy": "0.'))
    with pytest.raises(SystemExit):
        train_or_exit(agent(tmp_path))
    assert "numpy '0." in capfd.readouterr().err
    with pytest.raises(SystemExit):
        train_or_exit(Supervised(runs_dir=str(tmp_path), run="it", quiet=True))
    assert "learner 'ppo' -> 'supervised'" in capfd.readouterr().err


def test_a_change_that_is_allowed_is_remembered(tmp_path):
    agent(tmp_path).train()
    run = agent(tmp_path, gamma=0.9, total_timesteps=5_000, allow_change=("gamma", "total_timesteps")).train()
    first, second = json.loads((tmp_path / "it" / "attempts.json").read_text())
    assert first["step"] == 0
    assert second["step"] > 2_000
    assert "--gamma 0.9 " in second["command"]
    assert "--gamma 0.9 " not in first["command"]
    assert 4_000 < run.result["steps"] <= 5_000


@pytest.mark.parametrize("learner", ["ppo", "supervised"])
def test_a_change_that_does_not_fit_leaves_the_folder_as_it_was(learner, tmp_path):
    def run(**settings):
        if learner == "ppo":
            return agent(tmp_path, **settings).train()
        how = {"quiet": True, "device": "cpu", "runs_dir": str(tmp_path), "run": "it", "epochs": 2}
        return Supervised(**{**how, **settings}).train("iris")

    def told():
        files = (tmp_path / "it").iterdir()
        return {file.name: file.read_bytes() for file in files if file.suffix in (".json", ".jsonl", ".txt")}

    run()
    before = told()
    assert {"config.json", "result.json", "command.txt"} <= before.keys()
    with pytest.raises(ValueError, match="does not fit"):
        run(hidden_sizes=(8,), allow_change=("hidden_sizes",))
    assert told() == before
    assert run().attempt == 2


def test_a_run_goes_on_with_a_policy_that_lags_behind(tmp_path):
    def run(**settings):
        return VTrace(**{**SHORT, "runs_dir": str(tmp_path), "policy_lag": 1, **settings}).train()

    run()
    allowed = "policy_lag", "total_timesteps"
    assert run(policy_lag=4, total_timesteps=4_000, allow_change=allowed).result["steps"] > 3_000


def test_resume_must_or_never(tmp_path, done):
    for run, told in (("other", "no checkpoint in"), (None, "no run is named")):
        with pytest.raises(ValueError, match=f"resume is must, and .*{told}"):
            agent(tmp_path, resume="must", run=run).train()
    assert not [path for path in tmp_path.iterdir() if path.name == "other" or "__" in path.name]
    with pytest.raises(ValueError, match="resume is never"):
        agent(done, resume="never").train()
    with pytest.raises(ValueError, match="resume is"):
        agent(tmp_path, resume="sometimes").train()


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "a\0b", "a" * 300, "a\nb", ".hidden", "", "a/b", "-rf", "ü"]
)
def test_a_name_is_a_name(name, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(tmp_path / "runs", run=name))
    assert ended.value.code == 2
    assert "a run's name is" in capfd.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.name != "runs"]


def test_a_link_is_no_folder_of_one_s_own(tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "it").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(tmp_path / "runs"))
    assert ended.value.code == 2
    assert "is a link or a file" in capfd.readouterr().err
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("film", [False, True])
def test_an_id_does_not_run_a_module(film, tmp_path, monkeypatch, capfd):
    (tmp_path / "evilmod.py").write_text("open('marker', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(tmp_path / "runs", env_id="evilmod:CartPole-v1", capture_video=film))
    assert ended.value.code == 2
    assert "names a module" in capfd.readouterr().err
    assert not (tmp_path / "marker").exists()


def test_a_run_that_has_not_ended_acts_as_its_last_checkpoint(done, tmp_path):

    import pgce

    copy = shutil.copytree(done / "it", tmp_path / "it")
    whole = pgce.load(copy).evaluate(5)
    (copy / "model.safetensors").unlink()
    assert (pgce.load(copy).evaluate(5) == whole).all()
    (copy / "checkpoints" / "last" / "model.safetensors").write_bytes(b"torn")
    before = pgce.load(copy)  # the one before
    assert before.model is not None
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(FileNotFoundError):
        pgce.load(copy)


def test_a_start_from_other_networks_is_refused(done, tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(tmp_path, init=str(done / "it"), hidden_sizes=(32,)))
    assert ended.value.code == 2
    assert (
        "as a start does not fit: 'actor.0.0.weight' has shape (64, 4), not (32, 4)" in capfd.readouterr().err
    )
    with pytest.raises(SystemExit) as ended:
        train_or_exit(agent(tmp_path, init=str(tmp_path / "nowhere")))
    assert ended.value.code == 2


def test_a_run_that_goes_on_does_not_need_what_it_began_from(done, tmp_path):
    start = shutil.copytree(done / "it", tmp_path / "start")
    agent(tmp_path, init=str(start)).train()
    shutil.rmtree(start)
    assert agent(tmp_path, init=str(start)).train().attempt == 2
    with pytest.raises(ValueError, match="No such file"):
        agent(tmp_path, init=str(start), run="new").train()
    assert not (tmp_path / "new").exists()
    shutil.rmtree(tmp_path / "it" / "checkpoints")
    with pytest.raises(ValueError, match="No such file"):
        agent(tmp_path, init=str(start)).train()


def test_a_run_goes_on_in_as_many_processes(done, tmp_path):
    copy = shutil.copytree(done / "it", tmp_path / "it")
    versions = json.loads((copy / "versions.json").read_text())
    (copy / "versions.json").write_text(json.dumps({**versions, "processes": 2}))
    for allowed in ((), ("processes",)):
        with pytest.raises(ValueError, match=r"as many processes as it had; .* processes 2 -> 1"):
            agent(tmp_path, allow_change=allowed).train()
