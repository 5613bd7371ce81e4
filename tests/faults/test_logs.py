"""Logs that fail, are torn or run backwards: training goes on, and a curve has one point a step."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgce import logger as logs
from pgce.agents import Reinforce
from pgce.logger import Logger
from pgce.records import METRICS, Record

FORK = multiprocessing.get_context("fork")


def seen(folder, tag="eval/loss"):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def written(folder, steps, resumed=None):
    with Logger(folder, resumed=resumed) as logger:
        for step in steps:
            logger.scalars(step, {"eval/loss": float(step)})
        assert logger.dropped == 0


def lines(folder):
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def test_resumed_behind_the_last_point(tmp_path):
    """100 points, then on from 60: one point a step."""
    written(tmp_path, range(1, 101))
    written(tmp_path, range(61, 131), resumed=60)
    assert [step for step, _ in seen(tmp_path)] == list(range(1, 131))
    assert lines(tmp_path) == list(range(1, 131))


@pytest.mark.parametrize("hours", [-1, -24 * 400])
def test_resumed_with_the_clock_put_back(hours, tmp_path, monkeypatch):
    written(tmp_path, range(1, 101))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    written(tmp_path, range(61, 131), resumed=60)
    written(tmp_path, range(101, 141), resumed=100)
    assert [step for step, _ in seen(tmp_path)] == list(range(1, 141))
    assert len(list(tmp_path.glob("events*"))) == 3


def test_a_run_under_a_clock_put_back_has_no_negative_speed(tmp_path, monkeypatch):
    moments = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    run = Reinforce(total_timesteps=5_000, quiet=True, device="cpu", runs_dir=str(tmp_path)).train()
    assert next(moments) < 10**9 - 3600, "the clock was asked"
    _, speed = Record.read(run.path).curve("time/fps")
    assert (speed > 0).all()
    assert run.result["train_seconds"] > 0


def test_killed_while_logging(tmp_path):
    """What was flushed is there, and goes on being there."""

    def work():
        logger = Logger(tmp_path)
        for step in range(1, 10**6):
            logger.scalars(step, {"eval/loss": 1.0})
            if step == 500:
                logger.flush()
                (tmp_path / "flushed").touch()
            if step > 500:
                time.sleep(0.0002)

    child = FORK.Process(target=work)
    child.start()
    while not (tmp_path / "flushed").exists():
        time.sleep(0.001)
    time.sleep(0.1)
    child.kill()
    child.join()
    found = [step for step, _ in seen(tmp_path)]
    assert len(found) >= 500
    assert found == list(range(1, len(found) + 1))
    written(tmp_path, range(401, 501), resumed=400)
    assert [step for step, _ in seen(tmp_path)] == list(range(1, 501))
    assert lines(tmp_path) == list(range(1, 501))


def test_torn_files_do_not_disturb_a_resume(tmp_path, fault_seed: random.Random):
    for number in range(40):
        folder = tmp_path / str(number)
        written(folder, range(1, 51))
        for file in (next(folder.glob("events*")), folder / METRICS):
            content = bytearray(file.read_bytes())
            if number % 4 == 3:  # a flipped bit
                content[fault_seed.randrange(len(content))] ^= 1 << fault_seed.randrange(8)
            else:
                del content[fault_seed.randrange(len(content)) :]
            file.write_bytes(content)
        written(folder, range(31, 61), resumed=30)
        steps = [step for step, _ in seen(folder)]
        assert steps[-30:] == list(range(31, 61))
        assert len(steps) == len(set(steps))
        assert lines(folder)[-30:] == list(range(31, 61))


def test_what_cannot_be_written_is_counted(tmp_path):
    with Logger(tmp_path) as logger:
        with pytest.warns(RuntimeWarning, match="training goes on"):
            logger.scalars(2**63, {"eval/loss": 1.0})
        logger.scalars(2**63, {"eval/loss": 1.0})  # no second warning, which would be an error here
        logger.scalars(1, {"eval/loss": 1.0})
    assert logger.dropped == 2
    assert seen(tmp_path) == [(1, 1.0)]


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), 1.0], [3.0]], ids=str)
def test_histograms(values, tmp_path):
    with Logger(tmp_path) as logger:
        logger.histogram(1, "distribution/weight", torch.tensor(values))
    assert logger.dropped == 0


def test_a_log_in_a_forked_process_does_not_block(tmp_path):
    with Logger(tmp_path) as logger:
        logger.scalars(1, {"eval/loss": 1.0})

        def work():
            for step in range(1000):
                logger.scalars(step, {"eval/loss": 1.0})
            os._exit(0)

        child = FORK.Process(target=work)
        child.start()
        child.join(20)
        blocked = child.is_alive()
        child.kill()
        assert not blocked


def test_the_disk_is_full_in_the_middle(tmp_path, monkeypatch):
    """Training and its result do not care."""
    write, calls = Logger._write, []

    def full(self, summary, step):
        def refuse():
            raise OSError(28, "No space left on device")

        calls.append(step)
        write(self, refuse if len(calls) > 5 and step is not None else summary, step)

    monkeypatch.setattr(logs.Logger, "_write", full)
    agent = Reinforce(total_timesteps=20_000, quiet=True, device="cpu", runs_dir=str(tmp_path), run="it")
    with pytest.warns(RuntimeWarning, match="training goes on"):
        run = agent.train()
    assert len(calls) > 5
    assert run.result["dropped_events"] > 0
    assert run.result["steps"] > 15_000
