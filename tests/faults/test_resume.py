"""Runs that are killed and go on: bit for bit what they would have been, unless something is left out.

Each attempt is a forked child, so that torch is imported once; it is killed by SIGKILL at a random moment.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pgce
from pgce import checkpoint, evaluation
from pgce.agents import PPO, Reinforce, Supervised, VTrace
from pgce.checkpoint import load_checkpoint
from pgce.run import train_or_exit

FORK = multiprocessing.get_context("fork")
QUICK: dict[str, Any] = {"quiet": True, "device": "cpu", "checkpoint_every": 0.0, "stop_at_threshold": False}


class WithDropout(Supervised):
    """A classifier whose network draws random numbers at every step."""

    def estimator(self, task):
        estimator = super().estimator(task)
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 10)
        estimator.module = torch.nn.Sequential(*layers)
        return estimator


# fmt: off
CASES = {
    "reinforce": lambda: Reinforce(
        num_envs=4, num_steps=64, total_timesteps=6_000, eval_freq=2_000, eval_episodes=4, **QUICK
    ),
    "ppo with memory": lambda: PPO(
        num_envs=4, num_steps=16, total_timesteps=1_000, eval_freq=400, eval_episodes=2, memory="lstm",
        memory_size=8, norm_obs=True, norm_reward=True, update_epochs=2, **QUICK
    ),
    "ppo, one at a time": lambda: PPO(
        env_id="Acrobot-v1", vectorization="sync", num_envs=3, num_steps=32, total_timesteps=2_500,
        eval_freq=10**6, eval_episodes=1, ent_coef=0.01, schedules={"clip_coef": "linear"}, **QUICK
    ),
    "ppo, in other processes": lambda: PPO(
        env_id="Acrobot-v1", vectorization="async", num_envs=3, num_steps=32, total_timesteps=2_500,
        eval_freq=10**6, eval_episodes=1, **QUICK
    ),
    "v-trace": lambda: VTrace(
        num_envs=4, num_steps=16, total_timesteps=2_500, eval_freq=10**6, eval_episodes=1, **QUICK
    ),
    "classifier": lambda: WithDropout(
        epochs=30, batch_size=256, mixup=0.2, ema_decay=0.9, quiet=True, device="cpu", checkpoint_every=0.0,
    ),
}
# fmt: on


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Everything is imported before the first fork."""
    for make in CASES.values():
        agent = make()
        agent.runs_dir = str(tmp_path_factory.mktemp("warm"))
        if isinstance(agent, Supervised):
            agent.epochs = 1
        else:
            agent.total_timesteps = 1
        agent.train()


def attempt(agent, folder, spoil):
    """A child process that runs, or goes on with, the run "it" in a folder."""

    def work():
        spoil()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train_or_exit(agent)

    agent.runs_dir, agent.run = str(folder), "it"
    child = FORK.Process(target=work)
    child.start()
    return child


def finished(make, folder, kills=(), spoil=lambda: None):
    """Attempts until one ends by itself; all before it are killed. The steps at which they began.

    Args:
        make: gives the agent.
        folder: of the runs.
        kills: of each attempt to be killed, the checkpoints it makes before, and seconds after the last.
        spoil: called in each child before it begins.
    """
    last = folder / "it" / "checkpoints" / "last"
    for checkpoints, seconds in kills:
        child = attempt(make(), folder, spoil)
        seen = {os.readlink(last) if last.is_symlink() else ""}
        while len(seen) <= checkpoints and child.is_alive():
            seen.add(os.readlink(last) if last.is_symlink() else "")
            time.sleep(0.001)
        time.sleep(seconds)
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    child = attempt(make(), folder, spoil)
    child.join(120)
    assert child.exitcode == 0
    return [each["step"] for each in json.loads((folder / "it" / "attempts.json").read_text())]


def digest(value):
    """A number for any nested state, in which every bit counts."""
    if isinstance(value, dict):
        return zlib.crc32(repr([(key, digest(value[key])) for key in sorted(value)]).encode())
    if isinstance(value, (list, tuple)):
        return zlib.crc32(repr([digest(item) for item in value]).encode())
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return zlib.crc32(value.tobytes(), zlib.crc32(f"{value.dtype}{value.shape}".encode()))
    return zlib.crc32(repr(value).encode())


def outcome(folder):
    """Everything that two runs must share: the state at the end, and all that was logged but the clock."""
    state = load_checkpoint(folder / "it" / "checkpoints").state
    seconds = ("seconds", "spent", "history")  # the history of a classifier has seconds too
    history = [
        {k: v for k, v in row.items() if k != "seconds"} for row in state.get("history", {}).get("epochs", [])
    ]
    digests = {key: digest(value) for key, value in state.items() if key not in seconds}
    events = EventAccumulator(str(folder / "it"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {
        # What follows training, at its last step, is written again by who finds it finished.
        tag: sorted({(event.step, event.value) for event in events.Scalars(tag)})
        for tag in events.Tags()["scalars"]
        if not tag.endswith("fps")
    }
    return {**digests, "history": history, "curves": curves}


@pytest.mark.parametrize("name", CASES)
def test_killed_runs_go_on_as_if_nothing_had_been(name, tmp_path, fault_seed):
    killed_and_compared(name, tmp_path, fault_seed, kills=3)


def killed_and_compared(name, tmp_path, fault_seed, kills):
    make = CASES[name]
    assert finished(make, tmp_path / "whole") == [0]
    moments = [(fault_seed.randrange(1, 7), fault_seed.uniform(0, 0.05)) for _ in range(kills)]
    steps = finished(make, tmp_path / "parts", moments)
    assert steps[-1] > 0, "nothing was resumed"
    assert steps == sorted(steps)
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    different = [key for key in whole if whole[key] != parts[key]]
    assert different == []


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("name", CASES)
def test_again_and_again(name, number, tmp_path, fault_seed):
    for _ in range(number):
        fault_seed.random()
    killed_and_compared(name, tmp_path, fault_seed, kills=6)


def two_rounds():
    return Reinforce(num_envs=4, num_steps=64, total_timesteps=512, eval_episodes=4, **QUICK)


def test_killed_in_the_last_evaluation(tmp_path):
    """It is made anew, though nothing is left to be learned."""

    def dies():
        evaluation.Evaluation.solved = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    child = attempt(two_rounds(), tmp_path / "parts", dies)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert finished(two_rounds, tmp_path / "parts")[1] > 450, "of 512 steps, some are resets"
    assert finished(two_rounds, tmp_path / "whole") == [0]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_killed_in_the_first_checkpoint(tmp_path):
    """Whose folder is there, but nothing in it that is one: the run begins anew."""

    def dies():
        def half(folder, *given, **how):
            (folder / ".000000000250").mkdir(parents=True)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoint.save_checkpoint = half

    child = attempt(two_rounds(), tmp_path / "parts", dies)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    (folder,) = (tmp_path / "parts").glob("it/checkpoints")
    assert not (folder / "last").exists()
    again = two_rounds()
    again.resume, again.runs_dir, again.run = "must", str(tmp_path / "parts"), "it"
    with pytest.raises(ValueError, match="no checkpoint"):
        again.train()
    assert finished(two_rounds, tmp_path / "parts") == [0, 0]
    assert finished(two_rounds, tmp_path / "whole") == [0]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("left_out", ["actions", "environments", "order", "optimizer"])
def test_what_is_left_out_makes_a_difference(left_out, tmp_path, fault_seed):
    """So that the test above could fail."""
    name = "classifier" if left_out == "order" else "v-trace"

    def spoil():
        from pgce import checkpoint, optimizer, rollout

        if left_out == "actions":
            restore = rollout.Collector.load_state_dict

            def load(self, state, **how):
                before = self.generator.get_state()
                restore(self, state, **how)
                self.generator.set_state(before)

            rollout.Collector.load_state_dict = load
        elif left_out == "environments":
            rollout.set_state = lambda envs, state: pgce.envs.reset(envs, 5)
        elif left_out == "optimizer":
            optimizer.Optimizer.load_state_dict = lambda self, state: None
        else:
            read = checkpoint.load_checkpoint

            def load_checkpoint(folder, **how):
                found = read(folder, **how)
                found.state["generator"] = torch.Generator().manual_seed(5).get_state()
                return found

            checkpoint.load_checkpoint = load_checkpoint

    whole = finished(CASES[name], tmp_path / "whole")
    steps = finished(CASES[name], tmp_path / "parts", [(3, 0.0), (3, 0.0)], spoil)
    assert whole == [0]
    assert steps[-1] > 0
    assert outcome(tmp_path / "whole") != outcome(tmp_path / "parts")
