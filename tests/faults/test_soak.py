"""Two minutes of training in which something fails every second or so: in the end as if nothing had."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest
from test_resume import outcome

from pgce.agents import Reinforce
from pgce.checkpoint import load_checkpoint
from pgce.run import train_or_exit

FORK = multiprocessing.get_context("fork")
SECONDS = 120


def agent(folder):
    return Reinforce(
        num_envs=4, num_steps=64, total_timesteps=400_000, eval_freq=20_000, eval_episodes=4, run="it",
        norm_obs=True, runs_dir=str(folder), quiet=True, device="cpu", checkpoint_every=0.1,
        stop_at_threshold=False,
    )  # fmt: skip


def attempt(folder, fault, seed):
    """A child that goes on with the run, under a fault."""

    def work():
        import random
        import resource
        import warnings

        from pgce import rollout

        warnings.simplefilter("ignore")  # which pytest makes errors
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        chance = random.Random(seed)
        if fault == "a full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if fault in ("raises", "gives NaN"):
            collect, at = rollout.Collector.collect, chance.randrange(5, 60)
            calls = []

            def faulty(self):
                calls.append(1)
                if len(calls) == at:
                    if fault == "raises":
                        raise ValueError("the environment is broken")
                    self._observation[0, 0] = float("nan")
                return collect(self)

            rollout.Collector.collect = faulty
        train_or_exit(agent(folder))

    child = FORK.Process(target=work)
    child.start()
    return child


def left(pid):
    """Open files, threads and resident KiB of a process."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.split(":", 1) for line in file)
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return files, int(status["Threads"]), int(status["VmRSS"].split()[0])


@pytest.mark.slow
def test_soak(tmp_path, fault_seed):
    whole = attempt(tmp_path / "whole", None, 0)
    whole.join(120)
    assert whole.exitcode == 0
    whole.close()
    begun, happened = time.monotonic(), []
    before, children = left(os.getpid()), set(multiprocessing.active_children())
    codes = {
        "kill": {-9},
        "terminate": {143, -15},
        "interrupt": {130},
        "raises": {2},
        "gives NaN": {2, 70},
        "a full disk": {74},
    }
    while time.monotonic() - begun < SECONDS:
        fault = fault_seed.choice(sorted(codes))
        child = attempt(tmp_path / "parts", fault, fault_seed.random())
        child.join(fault_seed.uniform(0.5, 3.0))
        if child.is_alive():
            sent = {"terminate": signal.SIGTERM, "interrupt": signal.SIGINT}.get(fault, signal.SIGKILL)
            os.killpg(child.pid, sent)
            child.join(20)
            allowed = codes[fault] | {-9} if sent == signal.SIGKILL else codes[fault]
        else:
            allowed = codes[fault]
        code = child.exitcode
        child.close()
        # a signal may meet a run that has just ended
        ended = (tmp_path / "parts" / "it" / "result.json").exists()
        assert code in allowed | ({0} if ended else set()), fault
        happened.append(fault)
        if code == 0:
            break
        try:
            steps = load_checkpoint(tmp_path / "parts" / "it" / "checkpoints").step
        except (ValueError, OSError):
            steps = 0
        if steps > 390_000:
            break
    last = attempt(tmp_path / "parts", None, 0)
    last.join(120)
    assert last.exitcode == 0
    last.close()
    attempts = json.loads((tmp_path / "parts" / "it" / "attempts.json").read_text())
    resumed = [each["step"] for each in attempts]
    assert len(happened) >= 5
    assert resumed[-1] > 0
    assert resumed == sorted(resumed)
    ours, theirs = outcome(tmp_path / "parts"), outcome(tmp_path / "whole")
    assert [key for key in theirs if ours[key] != theirs[key]] == []
    after = left(os.getpid())
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2
    assert after[2] < before[2] + 100_000
    assert set(multiprocessing.active_children()) <= children
