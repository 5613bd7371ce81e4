"""The `pgce` command as users type it: what it prints, what it writes, what it says of a mistake."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pgce
from pgce import explaining
from pgce.agents import BC, GRPO, PPO, RLOO, Reinforce, Supervised
from pgce.checkpoint import save_tensors
from pgce.command import AGENTS, COMMANDS, main
from pgce.policy_gradient import Agent
from pgce.records import MAY_CHANGE, Record, groups, runs

SHORT = {"quiet": True, "device": "cpu", "eval_episodes": 10, "stop_at_threshold": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two agents on three seeds each, and of a classifier."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3):
        PPO(
            runs_dir=str(root), run=f"ppo-{seed}", seed=seed, total_timesteps=20_000, num_envs=8, **SHORT
        ).train()
        Reinforce(
            runs_dir=str(root), run=f"reinforce-{seed}", seed=seed, total_timesteps=5_000, **SHORT
        ).train()
    Supervised(runs_dir=str(root), run="iris", epochs=5, quiet=True, device="cpu").train("iris")
    return root


def said(capsys, *words):
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_help_names_every_command_without_torch():
    code = "import sys; from pgce.command import main; main(['--help']); print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert f"  {name} " in output
    assert output.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "words", [["train", "ppo"], ["classify"], ["tune"], ["plot"], ["evaluate"]], ids=" ".join
)
def test_help_of_a_command_without_torch(words):
    code = f"""
import sys
from pgce.command import main
try:
    main({[*words, "--help"]!r})
except SystemExit as ended:
    assert not ended.code
print('torch' in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"usage: pgce {words[0]}" in output
    assert output.splitlines()[-1] == "False"


def test_trains_evaluates_and_exports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["train", "ppo", "-n", "4_000", "--quiet", "--json", "--run", "mine", "--eval-episodes", "10"])
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == os.path.join("runs", "mine")
    shown = json.loads(said(capsys, "evaluate", "runs/mine", "--episodes", "20", "--json"))
    assert shown["mean"] == pgce.load("runs/mine").evaluate(20).mean()
    assert said(capsys, "export", "runs/mine", "policy.pt2").strip() == "policy.pt2"
    assert (tmp_path / "policy.pt2").stat().st_size > 0


def test_classifies(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["classify", "iris", "--epochs", "3", "--quiet", "--json"])
    assert json.loads(capsys.readouterr().out)["data"] == "iris"


def test_a_saved_config_is_given_back(folder, tmp_path, capsys):
    how = ["--quiet", "--json", "--runs-dir", tmp_path]
    main(list(map(str, ["train", "ppo", "--config", folder / "ppo-2", "--eval-episodes", "12", *how])))
    again = json.loads(capsys.readouterr().out)
    assert again["train_seconds"] > 0
    before, now = Record.read(folder / "ppo-2").config, Record.read(again["run"]).config
    changed = {name for name in now if now[name] != before[name]}
    assert changed == {"eval_episodes", "json", "run", "runs_dir"}
    assert "settings of ppo" in refused(capsys, "train", "a2c", "--config", folder / "ppo-2")


def test_lists_runs(folder, capsys):
    lines = said(capsys, "runs", folder).splitlines()
    assert len(lines) == 1 + 7
    assert [record.path.name for record in runs(folder)] == [line.split()[0] for line in lines[1:]]
    best = Record.read(folder / "iris").result["test_accuracy"]
    assert f"test_accuracy {best:.4g}" in lines[-1]
    assert "finished (budget)" in lines[1]


def test_a_list_that_nobody_reads_to_its_end_is_no_error(tmp_path):
    words = [sys.executable, "-m", "pgce", "runs", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listing:
        listing.stdout.close()
        assert listing.stderr.read() == ""
    assert listing.returncode == 141


def test_what_a_command_warns_of_is_heard(capsys, monkeypatch):
    def command(number: int = 1) -> None:
        print(f"warning {number}", file=sys.stderr)
        sys.exit(3)

    monkeypatch.setitem(COMMANDS, "doctor", command)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--number", "2"])
    assert ended.value.code == 3
    assert capsys.readouterr().err == "warning 2\n"


def test_states_of_a_run(tmp_path, monkeypatch):
    from pgce.folders import Lock

    (tmp_path / "config.json").write_text(json.dumps({"learner": "ppo"}))
    assert Record.read(tmp_path).state == "unfinished"
    lock = Lock(tmp_path)
    assert Record.read(tmp_path).state == "running"
    moment = threading.Timer(0.1, lock.release)
    moment.start()
    Lock(tmp_path).release()  # one that looks at a state has it for a moment, and ends no run that begins
    moment.join()
    (tmp_path / "checkpoints" / "last").mkdir(parents=True)
    assert Record.read(tmp_path).state == "resumable"


def test_plots(folder, tmp_path, capsys):
    agents = [folder / f"{name}-{seed}" for name in ("ppo", "reinforce") for seed in (1, 2, 3)]
    out = tmp_path / "pictures" / "curves.png"
    beside = tmp_path / "README.md"  # which runs/* names too
    beside.touch()
    assert "2 curves of 6 runs" in said(capsys, "plot", beside, *agents, "--out", out)
    two = np.asarray(Image.open(out))
    said(capsys, "plot", *agents[:3], "--out", out)
    one = np.asarray(Image.open(out))
    orange = np.abs(two.astype(int) - [255, 127, 14]).sum(2) < 30  # of the second learner
    assert orange.sum() > 20
    assert (np.abs(one.astype(int) - [255, 127, 14]).sum(2) < 30).sum() == 0
    assert "it has eval/mean_ep_length" in refused(capsys, "plot", *agents, "--tag", "nothing", "--out", out)


def test_a_curve_that_ends_as_its_shortest_run_is_told(tmp_path, capsys):
    for seed, last in enumerate((400, 980, 1_000)):
        run = tmp_path / str(seed)
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"learner": "ppo", "env_id": "x", "seed": seed}))
        rows = [json.dumps({"step": step, "rollout/ep_rew_mean": 1.0}) for step in (100, last)]
        (run / "metrics.jsonl").write_text("\n".join(rows))
    runs = [str(tmp_path / str(seed)) for seed in range(3)]
    main(["plot", *runs, "--out", str(tmp_path / "curves.png")])
    assert capsys.readouterr().err == "cut short: ppo on x ends as its shortest run, 400 of 1,000 steps\n"
    main(["plot", *runs[1:], "--out", str(tmp_path / "curves.png")])
    assert capsys.readouterr().err == ""


def test_curves_are_those_of_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "ppo-1"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    assert len(tags) > 10
    for tag in tags:
        if not tag.startswith("_hparams_"):
            steps, values = Record.read(folder / "ppo-1").curve(tag)
            seen = events.Scalars(tag)
            assert [event.step for event in seen] == steps.tolist()
            np.testing.assert_array_equal(np.float32(values), np.float32([event.value for event in seen]))


def test_compares(folder, capsys):
    agents = [folder / f"{name}-{seed}" for name in ("ppo", "reinforce") for seed in (1, 2, 3)]
    again = os.path.relpath(agents[0])  # counts once
    words = ["compare", pgce.__file__, *agents, again, "--json"]  # a file beside them, as runs/* names too
    rows = [json.loads(line) for line in said(capsys, *words).splitlines()]
    assert [row["learner"] for row in rows] == ["ppo", "reinforce"]
    assert [row["runs"] for row in rows] == [3, 3]
    scores = [
        [Record.read(folder / f"{name}-{seed}").score[1] for seed in (1, 2, 3)]
        for name in ("ppo", "reinforce")
    ]
    assert rows[0]["iqm"] == pytest.approx(pgce.metrics.interquartile_mean(np.array(scores[0]))[0])
    pairs = [(x > y) + 0.5 * (x == y) for x in scores[0] for y in scores[1]]
    assert rows[1]["improves"][0] == pytest.approx(np.mean(pairs))
    assert "IQM" in said(capsys, "compare", *agents)


def test_runs_without_numbers_are_left_out_and_told(folder, tmp_path, capsys):
    """One was killed before it logged, another has curves and no result yet."""
    ended, young, going = folder / "ppo-1", tmp_path / "young", tmp_path / "going"
    for path, name in ((young, "config.json"), (going, "config.json"), (going, "metrics.jsonl")):
        path.mkdir(exist_ok=True)
        shutil.copy(ended / name, path)
    (young / "metrics.jsonl").write_text('{"step": 1')
    main(["plot", str(young), str(ended), str(going), "--out", str(tmp_path / "a.png")])
    told = capsys.readouterr()
    assert "1 curves of 2 runs" in told.out
    assert told.err.startswith(f"left out: {young} has no numbers")
    assert "has no numbers" in refused(capsys, "plot", young, "--out", tmp_path / "a.png")
    main(["compare", str(young), str(ended), str(going), "--json"])
    told = capsys.readouterr()
    assert json.loads(told.out)["runs"] == 1
    lines = [f"left out: {path} has no score (unfinished)" for path in (young, going)]
    assert told.err.splitlines() == lines
    cut = shutil.copytree(ended, tmp_path / "cut")
    (cut / "result.json").write_text(json.dumps({**Record.read(ended).result, "stopped": "terminate"}))
    main(["compare", str(cut), str(ended)])
    assert capsys.readouterr().err == f"counted: {cut} was stopped by a signal (finished (terminate))\n"
    assert "of 2 none has" in refused(capsys, "compare", young, going)


def test_seeds_of_one_experiment_may_differ_in_what_is_written():
    records = [
        Record(Path(), {"learner": "ppo", "env_id": "x", "seed": seed, name: value}, {})
        for name in MAY_CHANGE
        for seed, value in enumerate((False, True))
    ]
    assert list(groups(records)) == [("x", "ppo")]


def test_settings_that_are_written_otherwise_do_not_differ():
    written = [{"gamma": 1, "env_kwargs": {"a": 1, "b": 2}}, {"gamma": 1.0, "env_kwargs": {"b": 2, "a": 1}}]
    records = [Record(Path(), {"learner": "ppo", "env_id": "x", **config}, {}) for config in written]
    assert list(groups(records)) == [("x", "ppo")]


def test_watches(folder, tmp_path, capsys):
    pytest.importorskip("pygame")
    film = tmp_path / "film.gif"
    told = said(capsys, "watch", folder / "ppo-1", "--out", film)
    total = float(told.split("return ")[1].split()[0])
    with Image.open(film) as pictures:
        assert pictures.n_frames > 5
        assert pictures.size == (400, 266)
        first = np.asarray(pictures.convert("RGB"))
        pictures.seek(pictures.n_frames - 1)
        assert (np.asarray(pictures.convert("RGB")) != first).any()
    assert total > 5


@pytest.mark.parametrize(
    ("length", "told"),
    [(1_000, "return 1000.0\n"), (1_001, "return 1000.0 so far: it is left after 1,000 steps\n")],
)
def test_a_long_episode_that_is_left_is_told(length, told, folder, capsys, monkeypatch):
    def play(agent, env_id, env_kwargs, *, most=1_000, **how):
        for t in range(min(length, most) + 1):
            yield np.zeros((2, 2, 3), np.uint8), float(t), t == length

    monkeypatch.setattr("pgce.films.play", play)
    assert said(capsys, "watch", folder / "ppo-1", "--out", folder / "a.gif").startswith(f"episode 1: {told}")


def test_explains_a_run(folder, capsys):
    assert "rows is at least 1: it is 0" in refused(capsys, "explain", folder / "ppo-1", "--rows", "0")
    lines = said(capsys, "explain", folder / "ppo-1", "--rows", "4").splitlines()
    assert len(lines) == 5
    for line in lines[1:]:  # two actions: w · (p − y) of the table's own numbers
        _, _, _, _, y, p0, p1, w, h, g0, g1 = line.split()
        assert float(h) == pytest.approx(-np.log([float(p0), float(p1)][int(y)]), abs=0.02)
        assert float(g0) == pytest.approx(float(w) * (float(p0) - (y == "0")), abs=0.02)
        assert float(g0) == pytest.approx(-float(g1), abs=0.011)
    before = sorted(path.stat().st_mtime for path in (folder / "iris").iterdir())
    assert len(said(capsys, "explain", folder / "iris").splitlines()) == 7
    assert sorted(path.stat().st_mtime for path in (folder / "iris").iterdir()) == before


def test_explains_a_classifier_as_it_is(tmp_path):
    agent = Supervised(runs_dir=str(tmp_path), epochs=2, learning_rate=0.1, quiet=True, device="cpu")
    run = agent.train("iris")
    report, head = explaining._learned(Record.read(run.path))
    p = pgce.load(run.path).predict_proba(report.batch.input.numpy())
    assert head.mean(report.logits).numpy() == pytest.approx(p, abs=1e-6)


def test_explains_groups_that_begin_alike(tmp_path, capsys):
    short = {**SHORT, "runs_dir": str(tmp_path), "total_timesteps": 60, "num_steps": 4}
    said(capsys, "explain", GRPO(group=3, num_envs=9, **short).train("CartPole-v1").path)
    lines = said(
        capsys, "explain", GRPO(group=4, num_envs=8, **short).train("pgce/Copy-v0").path
    ).splitlines()
    assert len({line[:19] for line in lines[1:5]}) == 1, "one prompt"


def test_explains_what_an_expert_does(folder, tmp_path, capsys):
    agent = BC(expert=str(folder / "ppo-1"), runs_dir=str(tmp_path), total_timesteps=1, **SHORT)
    run = agent.train()
    last = run.model.actor[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([50.0, -50.0])  # so that it would do 0 only
    save_tensors(run.path / "model.safetensors", run.model.state_dict())
    lines = said(capsys, "explain", run.path, "--rows", "40").splitlines()
    assert {line.split()[4] for line in lines[1:]} == {"0", "1"}


def test_explains_rows_that_count(tmp_path, capsys):
    short = {**SHORT, "runs_dir": str(tmp_path), "total_timesteps": 1}
    run = RLOO(num_steps=4, num_envs=2, **short).train("CartPole-v1")  # in which no episode ends
    assert len(said(capsys, "explain", run.path).splitlines()) > 1
    run = RLOO(num_steps=1, num_envs=2, env_kwargs={"max_episode_steps": 150}, **short).train("Pendulum-v1")
    assert "of 100 rollouts of 1 steps none does" in refused(capsys, "explain", run.path)


def test_explains_images_that_are_cut_and_pasted(tmp_path, capsys):
    run = Supervised(cutmix=1.0, epochs=1, runs_dir=str(tmp_path), quiet=True, device="cpu").train("digits")
    assert len(said(capsys, "explain", run.path).splitlines()) == 7


@pytest.mark.parametrize("name", [*AGENTS, "supervised", "focal", "smooth", "gae", "Categorical", "balanced"])
def test_explains_names(name, capsys):
    told = said(capsys, "explain", name)
    assert len(told.splitlines()) > 4
    assert inspect.getdoc(Agent.weight) not in told, "which is that of no learner in particular"


def test_doctor_and_completion(capsys):
    assert "torch" in said(capsys, "doctor")
    assert "{bash,zsh}" in said(capsys, "completion", "--help")
    script = said(capsys, "completion", "bash")
    ask = "COMP_WORDS=(pgce train ppo --clip); COMP_CWORD=3; _pgce; echo ${COMPREPLY[*]}"
    found = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["--clip-coef", "--clip-vloss"]
    ask = "COMP_WORDS=(pgce tr); COMP_CWORD=1; _pgce; echo ${COMPREPLY[*]}"
    found = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["train"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "did you mean train?"),
        (["train", "pop"], "did you mean ppo?"),
        (["train", "ppo", "--gama", "0.9"], "--gamma"),
        (["train", "ppo", "--num-envs", "x"], "--num-envs INT"),
        (["train", "ppo", "--activation", "tan"], "'tanh'"),
        (["train", "ppo", "--env", "CartPol-v1"], "Did you mean: `CartPole`"),
        (["train", "ppo", "--env", "evil:CartPole-v1"], "allow_import=True"),
        (["train", "ppo", "--config", "nothing.json"], "nothing.json"),
        (["classify", "digit"], "digits"),
        (["classify", "nothing.csv"], "nothing.csv"),
        (["classify", "data.csv", "--target", "speces"], "species"),
        (["evaluate", "nowhere"], "config.json"),
        (["evaluate"], "Missing from pgce evaluate: STR its folder. (required)"),
        (["export", "run"], "(required)\nFor full helptext, run: pgce export --help"),
        (["plot"], "at least one run"),
        (["compare"], "at least one run"),
        (["compare", pgce.__file__], "at least one run"),
        (["runs", "nowhere"], "'nowhere'"),
        (["explain", "focla"], "did you mean focal?"),
        (["export", "nowhere", "a.pt2"], "config.json"),
        (["completion", "fish"], "bash, zsh"),
        (["tune", "pop"], "'ppo'"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_told_in_three_lines(words, part, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("length,species\n1,a\n2,b\n3,a\n4,b\n")
    message = refused(capsys, *words)
    assert part in message
    assert message.startswith("error: ")
    assert len(message.splitlines()) <= 3


def test_an_environment_that_fails_ends_an_evaluation_with_70(folder, capsys, monkeypatch):
    from pgce.envs.guard import EnvironmentFault

    def fails(self, *args, **kwargs):
        raise EnvironmentFault("environment 0 raised", trace="Traceback of it")

    monkeypatch.setattr("pgce.trained.TrainedAgent.evaluate", fails)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder / "ppo-1")])
    assert ended.value.code == 70
    assert capsys.readouterr().err == "error: environment 0 raised\nTraceback of it\n"
