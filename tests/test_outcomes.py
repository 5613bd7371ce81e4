"""What comes of runs: exit codes, and what those of several seeds reach together."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_run import run_command, same

from pgce.agents import Supervised
from pgce.metrics import interquartile_mean
from pgce.run import main, train_or_exit


def test_a_search_that_ended_well_exits_with_0():
    """Its result tells of no checkpoints."""

    class Search:
        def train(self):
            return SimpleNamespace(result={"stopped": "budget"})

    train_or_exit(Search())


def test_a_run_for_each_seed(repository, tmp_path, monkeypatch, capsys):
    """One after the other and in processes: the same results, each in its folder; and what they mean."""
    flags = ["--data", "iris", "--epochs", 2, "--no-track", "--json", "--seeds", 3, 1, 2, "--runs-dir"]
    words = [str(word) for word in flags]
    monkeypatch.setattr(sys, "argv", ["supervised", *words, str(tmp_path / "alone")])
    main(Supervised, None)
    said, summary = capsys.readouterr()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    alone = [json.loads(line) for line in lines]
    assert said.splitlines()[-1] == lines[-1], "the last line is a result"
    assert [result["seed"] for result in alone] == [3, 1, 2]
    scores = [result["test_accuracy"] for result in alone]
    mean, low, high = interquartile_mean(np.array(scores))
    assert f"interquartile mean {mean:.4g}, 95 % interval [{low:.4g}, {high:.4g}]" in summary
    for result in alone:
        single = Supervised(data="iris", epochs=2, seed=result["seed"], quiet=True, track=False,
                            runs_dir=str(tmp_path / "single")).train()  # fmt: skip
        assert same(single.result) == same(result)
        command = shlex.split((Path(result["run"]) / "command.txt").read_text())
        assert "--seeds" not in command
        assert ("--seed" in command) == (result["seed"] != 1), "1 is the default"
        assert "seeds" not in json.loads((Path(result["run"]) / "config.json").read_text())

    flags[flags.index(2, 7)] = "--jobs=2"  # in place of the last seed
    apart = run_command("agents/supervised.py", *flags, tmp_path / "apart", cwd=repository)
    assert apart.returncode == 0, apart.stderr
    by_seed = {result["seed"]: result for result in map(json.loads, apart.stdout.splitlines())}
    assert [same(by_seed[seed]) for seed in (3, 1)] == [same(result) for result in alone[:2]]
    assert "interquartile mean" in apart.stderr.splitlines()[-1]
    assert len(list((tmp_path / "apart").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--epochs", "0", "--seeds", "1", "2"], 2, "epochs is 0"),
        (["--learning-rate", "1e30", "--data", "diabetes", "--seeds", "1", "2"], 70, "must be finite"),
        (["--learning-rate", "1e30", "--data", "diabetes", "--seeds", "1", "2", "--jobs", "2"], 70, "finite"),
        (["--seeds", "1", "2", "1"], 2, "seeds that differ: jobs 1, seeds 1 2 1"),
        (["--jobs", "2"], 2, "jobs 2, seeds none"),
        (["--jobs", "0", "--seeds", "1"], 2, "jobs 0, seeds 1"),
    ],
)
def test_several_runs_keep_the_exit_codes(flags, code, message, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["supervised", *flags, "--runs-dir", str(tmp_path), "--quiet"])
    with pytest.raises(SystemExit) as caught:
        main(Supervised, None)
    assert caught.value.code == code
    output, errors = capfd.readouterr()
    assert message in errors
    assert "Traceback" not in errors
    assert "interquartile" not in output
    if flags[-2:] == ["1", "2"]:
        assert not list(tmp_path.glob("*__2__*")), "the first that fails is the last"


def test_of_several_processes_the_first_tells_what_seeds_reach(tmp_path, monkeypatch, capsys):
    """Each trains one seed after the other, since all share each run."""
    words = ["--data", "iris", "--epochs", "1", "--json", "--seeds", "1", "2", "--runs-dir", str(tmp_path)]
    told = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        main(Supervised, None, words)
        told.append("interquartile mean" in capsys.readouterr().err)
    assert told == [True, False]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        main(Supervised, None, [*words, "--jobs", "2"])
    assert "jobs 2, processes 2" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="a signal at the death of a parent")
@pytest.mark.parametrize(
    ("number", "whom", "code", "stopped"),
    [
        (signal.SIGINT, os.killpg, 130, "interrupt"),
        (signal.SIGTERM, os.kill, -signal.SIGTERM, "terminate"),
        pytest.param(signal.SIGKILL, os.kill, -signal.SIGKILL, "terminate", marks=pytest.mark.slow),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGKILL"],
)
def test_a_signal_ends_all_runs_of_several_seeds(number, whom, code, stopped, tmp_path):
    flags = ["--seeds", 1, 2, 3, 4, "--jobs", 2, "-n", 10**9, "--no-stop-at-threshold"]
    words = map(str, [*flags, "--runs-dir", tmp_path])
    process = subprocess.Popen(
        [sys.executable, "-m", "pgce.agents.reinforce", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, all of which a terminal's Ctrl-C reaches
        # A job in the background ignores Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    watchdog = threading.Timer(100, lambda: os.killpg(process.pid, signal.SIGKILL))
    watchdog.start()
    while process.poll() is None:
        events = [event.stat().st_size for event in tmp_path.glob("*/*tfevents*")]
        if len(events) == 2 and min(events) > 5_000:
            break
        time.sleep(0.05)
    whom(process.pid, number)
    output, errors = process.communicate()  # when the last of them has ended
    watchdog.cancel()
    assert process.returncode == code, errors
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert [result["stopped"] for result in results] == [stopped] * 2
    assert len(list(tmp_path.iterdir())) == 2, "no further run began"
    assert "interquartile" not in output
