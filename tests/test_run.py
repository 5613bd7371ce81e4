"""Learners as users run them: by script, as a module, from Python; and what a run leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pgce
from pgce.agents import Reinforce, Supervised
from pgce.checkpoint import load_checkpoint, load_model, load_tensors
from pgce.folders import stamped
from pgce.logger import TAGS
from pgce.records import Record
from pgce.run import main, train_or_exit

PROJECTOR = ["eval_penultimate.tsv", "eval_penultimate_labels.tsv", "projector_config.pbtxt"]
CLASSIFIER_FILES = ["estimator.json", "manifest.json", *PROJECTOR]
FILES = [
    "attempts.json",
    "command.txt",
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "pictures",
    "result.json",
    "run.lock",
    "versions.json",
]


def run_command(*words, **options):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def same(result):
    """What two runs of one seed share."""
    return {k: v for k, v in result.items() if k not in ("run", "train_seconds", "spent")}


def test_script_module_and_python_give_the_same_result(repository, tmp_path):
    flags = ["--env", "CartPole-v1", "-n", 8_000, "--eval-episodes", 20, "--runs-dir", tmp_path]
    script = run_command("agents/reinforce.py", *flags, "--json", cwd=repository)
    module = run_command("-m", "pgce.agents.reinforce", *flags, "--json", "--quiet", cwd=tmp_path)
    assert script.returncode == module.returncode == 0, script.stderr + module.stderr
    by_script, by_module = (json.loads(r.stdout.splitlines()[-1]) for r in (script, module))
    agent = Reinforce(eval_episodes=20, quiet=True, runs_dir=str(tmp_path))
    by_python = agent.train("CartPole-v1", total_timesteps=8_000).result
    assert same(by_script) == same(by_module) == same(by_python)
    assert by_python["steps"] <= 8_000
    assert by_python["eval_episodes"] == 20
    assert len(module.stdout.splitlines()) == 1, "quiet"
    said = script.stdout
    assert "reinforce on CartPole-v1, seed 1" in said
    assert f"--logdir {by_script['run']}" in said
    assert "8,000 steps at most" in said
    assert "steps · return" in script.stderr


def test_supervised_by_script_and_from_python(repository, tmp_path):
    flags = ["--data", "iris", "--epochs", 5, "--runs-dir", tmp_path, "--json"]
    script = run_command("agents/supervised.py", *flags, cwd=repository)
    assert script.returncode == 0, script.stderr
    by_script = json.loads(script.stdout.splitlines()[-1])
    run = Supervised(epochs=5, quiet=True, runs_dir=str(tmp_path)).train("iris")
    assert same(by_script) == same(run.result)
    assert run.result["examples"] == 5 * 112
    data = pgce.envs.datasets.load("iris")
    right = run.model.predict(data.test_inputs) == data.test_labels
    assert right.mean() == run.result["test_accuracy"]


def check_folder(run, learner, model, files):
    assert sorted(f.name for f in run.path.iterdir() if "tfevents" not in f.name) == sorted(files)
    assert len(list(run.path.glob("*tfevents*"))) == 1
    assert json.loads((run.path / "result.json").read_text()) == run.result
    assert json.loads((run.path / "config.json").read_text())["seed"] == 3
    assert json.loads((run.path / "versions.json").read_text())["torch"] == torch.__version__
    words = shlex.split((run.path / "command.txt").read_text())
    assert words[:3] == ["python", "-m", f"pgce.agents.{learner}"]
    saved, state = load_tensors(run.path / "model.safetensors"), model.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[k], state[k]) for k in saved)
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) <= set(TAGS)
    return events, words


def test_the_folder_of_an_agent(tmp_path):
    agent = Reinforce(
        seed=3, baseline="critic", hidden_sizes=(32,), quiet=True, runs_dir=str(tmp_path),
        eval_freq=6_000, ent_coef=0.01,
    )  # fmt: skip
    run = agent.train("CartPole-v1", total_timesteps=12_000)
    assert run.path.name.startswith("CartPole-v1__reinforce__3__")
    events, words = check_folder(run, "reinforce", run.model, FILES)
    assert {"objective/weight_mean", "objective/cross_entropy", "rollout/ep_rew_mean"} <= set(
        events.Tags()["scalars"]
    )
    drawn = sorted(file.name for file in (run.path / "pictures").iterdir())
    assert drawn == ["learning_curve.png", "rows.png"]
    steps = [event.step for event in events.Scalars("objective/loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == run.result["steps"] <= 12_000
    assert len(events.Scalars("eval/mean_reward")) == 2
    assert events.Scalars("eval/mean_reward")[-1].value == pytest.approx(run.result["eval_mean"])
    for event in events.Scalars("objective/weight_std"):
        assert event.value == pytest.approx(1.0, abs=1e-3), "whitened once over the rollout"
    # The command that was written down repeats the run.
    again = run_command(*words[1:], "--json", cwd=tmp_path)
    assert same(json.loads(again.stdout.splitlines()[-1])) == same(run.result)


def test_the_folder_of_a_classifier(tmp_path):
    settings = Supervised(seed=3, epochs=4, label_smoothing=0.1, quiet=True, runs_dir=str(tmp_path))
    run = settings.train("wine")
    events, _ = check_folder(run, "supervised", run.model.module_, [*FILES, *CLASSIFIER_FILES])
    accuracy = events.Scalars("eval/accuracy")
    assert [event.step for event in accuracy] == [133, 266, 399, 532]
    assert accuracy[-1].value == pytest.approx(run.result["test_accuracy"])
    assert {"eval/confusion_matrix", "eval/reliability"} <= set(events.Tags()["images"])
    curves = {f"eval/pr_curve/class_{k}" for k in range(3)}
    assert {tag for tag in events.Tags()["tensors"] if tag.startswith("eval/pr_curve")} == curves
    X, classifier = pgce.envs.datasets.load("wine").test_inputs, pgce.load(run.path)
    assert (classifier.predict_proba(X) == run.model.predict_proba(X)).all()
    assert classifier.get_params()["label_smoothing"] == 0.1


@pytest.mark.parametrize("stops", [False, True])
def test_scores_of_several_labels_are_all_written_down(stops, tmp_path):
    """Those of the test, and last, also where every epoch tells others of what early stopping holds out."""
    settings = Supervised(epochs=1, early_stopping=stops, quiet=True, runs_dir=str(tmp_path))
    run = settings.train("multilabel_classification")
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    written = {tag.removeprefix("eval/"): value for line in lines for tag, value in line.items()}
    scores = {n.removeprefix("test_"): v for n, v in run.result.items() if n.startswith("test_")}
    assert {"accuracy", "label_accuracy"} < scores.keys()
    assert {name: written[name] for name in scores} == pytest.approx(scores)


def test_an_environment_of_one_s_own_module(tmp_path, monkeypatch):
    """`--allow-import module:Env-v0`, a folder with a space in its name, and the command that repeats it."""
    (tmp_path / "corridor.py").write_text(CORRIDOR, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "my runs"
    agent = Reinforce(allow_import=True, num_steps=32, quiet=True, runs_dir=str(folder), eval_episodes=10)
    run = agent.train("corridor:Corridor-v0", total_timesteps=8_000)
    assert run.path.name.startswith("corridor-Corridor-v0__reinforce__1__")
    assert run.result["eval_mean"] > -4.5, "three steps to the right is -3"
    words = shlex.split((run.path / "command.txt").read_text())
    again = run_command(*words[1:], "--json", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert same(json.loads(again.stdout.splitlines()[-1])) == same(run.result)


CORRIDOR = """
import gymnasium as gym


class Corridor(gym.Env):
    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return self.place, {}

    def step(self, action):
        self.place = max(0, self.place + (1 if action == 1 else -1))
        return self.place, -1.0, self.place == 3, False, {}


gym.register("Corridor-v0", entry_point=Corridor, max_episode_steps=50)
"""


def test_a_folder_named_after_a_path_is_not_hidden(tmp_path):
    names = [stamped(tmp_path, f"{path}__supervised__1").name for path in ("./my.csv", "/a/b.npz", "x" * 300)]
    assert [name.rpartition("__")[0] for name in names[:2]] == [
        "my.csv__supervised__1",
        "a-b.npz__supervised__1",
    ]
    assert "x__supervised__1__" in names[2]


def test_two_runs_of_one_second_have_two_folders(tmp_path):
    settings = Supervised(epochs=1, quiet=True, runs_dir=str(tmp_path), track=False)
    folders = {settings.train("iris").path for _ in range(4)}
    assert len(folders) == 4
    assert not list(tmp_path.rglob("*tfevents*")), "track=False"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("learner", "number", "stopped", "code"),
    [("reinforce", signal.SIGINT, "interrupt", 130), ("supervised", signal.SIGTERM, "terminate", 143)],
)
def test_a_signal_ends_a_run_cleanly(learner, number, stopped, code, tmp_path):
    budget = {"reinforce": ["-n", 10**9, "--no-stop-at-threshold"], "supervised": ["--epochs", 10**6]}
    words = [sys.executable, "-u", "-m", f"pgce.agents.{learner}", "--json", "--runs-dir", str(tmp_path)]
    process = subprocess.Popen(
        [*words, *map(str, budget[learner])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    folder = None
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    for line in process.stdout:
        if line.split()[:1] == ["folder"]:
            folder = line.split()[1]
            break
    assert folder is not None, process.stderr.read()
    events = None
    while process.poll() is None and not (events and os.path.getsize(events[0]) > 5_000):
        events = [f for f in os.scandir(folder) if "tfevents" in f.name]
        events = [f.path for f in events]
    process.send_signal(number)
    output, errors = process.communicate()
    watchdog.cancel()
    assert process.returncode == code, errors
    result = json.loads(output.splitlines()[-1])
    assert result["stopped"] == stopped
    assert "Traceback" not in errors
    files = [*FILES, "checkpoints"]
    if learner == "supervised":
        files += [*CLASSIFIER_FILES, "eval_penultimate.png"]
    assert sorted(f for f in os.listdir(folder) if "tfevents" not in f) == sorted(files)


@pytest.mark.parametrize(
    ("learner", "flags", "message"),
    [
        (Reinforce, ["--env-id", "CartPol-v1"], "Did you mean: `CartPole`"),
        (Reinforce, ["--env-id", "os:CartPole-v1"], "names a module"),
        (Reinforce, ["--num-envs", "0"], "num_envs is at least 1: it is 0"),
        (Reinforce, ["--gamma", "1.5"], "gamma is 1.5"),
        (Reinforce, ["--device", "tpu"], "it is 'tpu'"),
        (Reinforce, ["--threads", "0"], "threads is at least 1: it is 0"),
        (Reinforce, ["--checkpoint-every", "-1"], "checkpoint_every is at least 0: it is -1.0"),
        (Reinforce, ["--vf-coef", "-1"], "vf_coef is at least 0: it is -1.0"),
        (Reinforce, ["--learning-rate", "-1"], "it is -1"),
        (Reinforce, ["--hidden-sizes", "64", "0"], "the widths are [4, 64, 0]"),
        (Reinforce, ["--continuous", "student"], "student"),
        (Supervised, ["--data", "mnist"], "it is 'mnist'"),
        (Supervised, ["--device", "tpu"], "it is 'tpu'"),
        (Supervised, ["--epochs", "0"], "epochs is 0"),
        (Supervised, ["--label-smoothing", "2"], "label_smoothing lies in [0, 1]: it is 2.0"),
        (Supervised, ["--confidence", ".9", "--soft-labels", ".9", ".1"], "exclude each other: confidence"),
        (Supervised, ["--huber-delta", "1"], "huber_delta: not a rule of classification"),
        (Supervised, ["--data", "diabetes", "--focal-gamma", "1"], "focal_gamma: not a rule of regression"),
        (Supervised, ["--data", "digit"], "did you mean"),
        (Supervised, ["--pos-weight", "2"], "several labels a row, y has one: pos_weight"),
        (Supervised, ["--soft-labels", ".1", ".9"], "on is 0.1, off is 0.9"),
        (Supervised, ["--learning-rate", "nan"], "it is nan"),
    ],
)
def test_bad_settings_end_with_2_and_leave_no_folder(learner, flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_or_exit(tyro.cli(learner, args=[*flags, "--runs-dir", str(tmp_path), "--quiet"]))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_threads_are_set_for_the_run_and_given_back(tmp_path):
    torch.set_num_threads(2)
    try:
        seen = []

        class Spy(Supervised):
            def estimator(self, task):
                seen.append(torch.get_num_threads())
                return super().estimator(task)

        Spy(epochs=1, quiet=True, runs_dir=str(tmp_path)).train("iris")
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("learner", [Reinforce, Supervised])
def test_no_flag_at_all_takes_the_defaults(learner, monkeypatch):
    begun = []
    monkeypatch.setattr("pgce.run.train_or_exit", begun.append)
    monkeypatch.setattr(sys, "argv", ["script"])
    main(learner, None)
    assert begun == [learner().defaults()]


def test_what_an_attempt_before_left_is_not_that_of_a_run_that_goes_on(tmp_path):
    """It ended, went on with a larger budget, and was killed: it is resumable, with its newest weights."""
    short = {"runs_dir": str(tmp_path), "run": "it", "quiet": True, "device": "cpu", "eval_episodes": 1}
    short |= {"num_envs": 8, "num_steps": 8, "checkpoint_every": 0, "allow_change": ("total_timesteps",)}
    path = Reinforce(total_timesteps=64, **short).train().path
    first = load_model(path)
    states = []

    def killed(step, values):
        states.append(Record.read(path).state)
        if step >= 500:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Reinforce(total_timesteps=1_000, **short).train(metrics=killed)
    assert set(states) == {"running"}
    assert Record.read(path).state == "resumable"
    newest, found = load_model(path), load_checkpoint(path / "checkpoints")
    assert found.step > 64
    for name, value in newest.items():
        assert torch.equal(value, found.state["model"][name])
    assert any(not torch.equal(newest[name], first[name]) for name in first)


def test_the_dashboard_s_command_can_be_typed(tmp_path, capsys):
    where = tmp_path / "my runs"
    run = Supervised(data="iris", epochs=1, device="cpu", runs_dir=str(where)).train()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--logdir" in line)
    assert shlex.split(line)[-2:] == ["--logdir", str(run.path)]


def test_a_run_that_was_killed_as_it_began_begins_again(tmp_path):
    """Between config.json and attempts.json; a folder of something else is left alone."""
    agent = Reinforce(
        runs_dir=str(tmp_path), run="it", quiet=True, device="cpu", total_timesteps=64, eval_episodes=1
    )
    folder = tmp_path / "it"
    folder.mkdir()
    for other in ([1], {"mine": 1}, {**agent.configuration, "gamma": 0.5}):
        (folder / "config.json").write_text(json.dumps(other))
        with pytest.raises(ValueError, match="is no run that can be resumed"):
            agent.train()
        assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(other))
    (folder / "config.json").write_text(json.dumps({**agent.configuration, "quiet": False}))
    assert agent.train().result["stopped"] == "budget"


def test_an_unknown_flag_is_refused(tmp_path):
    done = run_command("-m", "pgce.agents.reinforce", "--gama", "0.9", cwd=tmp_path)
    assert done.returncode == 2
    assert "--gama" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_loads_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['reinforce', '--help']\n"
        "from pgce.agents.reinforce import *\n"
        "try: main(Reinforce, None)\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_command("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("--env-id", "--total-timesteps", "--baseline", "--vf-coef", "--json", "--seeds", "--jobs"):
        assert name in done.stdout


@pytest.mark.parametrize("baseline", ["none", "mean", "critic"])
def test_reinforce_learns_a_tiny_bandit(baseline, tmp_path):
    """Digits as a bandit: from 10 % by chance to 80 % greedy in a few seconds."""
    agent = Reinforce(
        baseline=baseline, eval_env_id="pgce/DigitsBanditTest-v0", eval_greedy=True, eval_episodes=450,
        num_envs=256, num_steps=1, gamma=0.0, learning_rate=3e-3, quiet=True, track=False,
        runs_dir=str(tmp_path),
    )  # fmt: skip
    result = agent.train("pgce/DigitsBandit-v0", total_timesteps=60_000).result
    assert result["eval_mean"] > 0.8


def test_reinforce_learns_continuous_actions(tmp_path):
    """A Box environment of one step: the mean moves to the point that pays most."""
    import gymnasium as gym
    import numpy as np

    class Point(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Box(-2, 2, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action):
            distance = float(((action - [0.5, -1.0]) ** 2).sum())
            return np.zeros(1, np.float32), -distance, True, False, {}

    gym.register("pgce-test/Point-v0", entry_point=Point)
    agent = Reinforce(
        num_envs=8, num_steps=32, quiet=True, track=False, runs_dir=str(tmp_path), eval_greedy=True,
        log_std_init=-0.7,
    )  # fmt: skip
    run = agent.train("pgce-test/Point-v0", total_timesteps=40_000)
    assert run.result["eval_mean"] > -0.1, "2.25 at the start"


def test_a_csv_a_teacher_and_regression_by_script(tmp_path):
    pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    species = np.where(x[:, 0] > 0, "cat", "dog")
    lines = [f"{a},{b},{s}" for (a, b), s in zip(x, species, strict=True)]
    (tmp_path / "pets.csv").write_text("\n".join(["weight,length,species", *lines]))
    settings = {"quiet": True, "runs_dir": str(tmp_path / "runs"), "epochs": 20}
    source = str(tmp_path / "pets.csv")
    teacher = Supervised(target="species", class_weight="balanced", **settings).train(source)
    assert teacher.result["test_accuracy"] > 0.9
    assert teacher.model.predict(pgce.envs.datasets.load(source, "species").test_inputs).shape == (50,)
    student = Supervised(target="species", teacher=str(teacher.path), teacher_share=1.0, **settings)
    assert student.train(source).result["test_accuracy"] > 0.9
    regression = {"hidden_sizes": (), "learning_rate": 0.02, "early_stopping": True}
    run = Supervised(huber_delta=30.0, **regression, **settings).train("diabetes")
    assert run.result["test_r2"] > 0.2
    assert run.result["examples"] <= 20 * 297 < 20 * 331, "a tenth is held out for early stopping"


def test_images_are_mixed_as_images(tmp_path):
    run = Supervised(cutmix=1.0, epochs=2, quiet=True, runs_dir=str(tmp_path)).train("digits")
    assert run.model.predict(pgce.envs.datasets.load("digits").test_inputs.reshape(-1, 8, 8)).shape == (450,)
