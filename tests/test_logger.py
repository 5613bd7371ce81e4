"""Event files read back, and logs that fail without stopping anything."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import pgce
from pgce.logger import LAYOUT, SHOWN, TAGS, Bar, Logger
from pgce.records import Record


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    return events


def test_scalars_and_histograms_are_read_back(tmp_path):
    with Logger(tmp_path, {"gamma": 0.9}) as logger:
        for step in (10, 20, 30):
            logger.scalars(step, {"eval/loss": step / 7, "time/fps": 5.0})
        logger.histogram(30, "distribution/weight", torch.tensor([-1.0, 2.0, 2.5]))
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [
        (step, pytest.approx(step / 7)) for step in (10, 20, 30)
    ]
    histogram = events.Histograms("distribution/weight")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (-1.0, 2.5, 3)
    assert logger.dropped == 0


def test_hyperparameters_are_in_the_same_run(tmp_path):
    with Logger(tmp_path, {"gamma": 0.9, "layers": (64, 64), "limit": None}) as logger:
        logger.scalars(1, {"eval/loss": 0.5})
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    summaries = read(tmp_path).summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        summaries[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert start.hparams["gamma"].number_value == 0.9
    assert start.hparams["layers"].string_value == "(64, 64)"
    experiment = metadata.parse_experiment_plugin_data(summaries[metadata.EXPERIMENT_TAG].plugin_data.content)
    assert tuple(metric.name.tag for metric in experiment.metric_infos) == SHOWN
    assert metadata.SESSION_END_INFO_TAG in summaries


def test_a_line_is_json_and_a_curve_has_only_numbers(tmp_path):
    with Logger(tmp_path) as logger:
        for step, value in enumerate((0.5, math.nan, math.inf, 0.25)):
            logger.scalars(step, {"eval/loss": value, "eval/r2": -math.inf})
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity
    steps, values = Record(tmp_path, {}, {}).curve("eval/loss")
    assert (steps.tolist(), values.tolist()) == ([0, 3], [0.5, 0.25])
    with pytest.raises(ValueError, match="it has eval/loss"):
        Record(tmp_path, {}, {}).curve("eval/r2")


def test_an_undefined_tag_is_refused(tmp_path):
    logger = Logger(tmp_path)
    with pytest.raises(KeyError, match="'train/los' is not"):
        logger.scalars(1, {"train/los": 1.0})
    with pytest.raises(KeyError, match="'train/los' is not"):
        logger.histogram(1, "train/los", torch.ones(1))
    logger.close()


def test_the_layout_shows_tags_that_exist():
    shown = {tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags}
    assert shown | set(SHOWN) <= set(TAGS)


@pytest.mark.parametrize("values", [[math.nan], [], [math.nan, math.inf], [1.0, math.nan]])
def test_histograms_that_cannot_be_drawn_stop_nothing(tmp_path, values):
    with Logger(tmp_path) as logger:
        logger.histogram(1, "distribution/weight", torch.tensor(values))
        logger.scalars(2, {"eval/loss": math.nan})
    assert logger.dropped == 0
    assert len(read(tmp_path).Scalars("eval/loss")) == 1


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Logger(None) as logger:
        logger.scalars(1, {"eval/loss": 1.0})
        logger.histogram(1, "distribution/weight", torch.ones(3))
        logger.flush()
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_counted_and_warned_of_once(tmp_path):
    logger = Logger(tmp_path)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    logger._writer.add_summary = fail
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        logger.scalars(1, {"eval/loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2, 5):
            logger.scalars(step, {"eval/loss": 1.0})
    assert logger.dropped == 4
    logger.close()


FULL_DISK = """
    import resource, sys, time, warnings
    from pathlib import Path
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    from pgce.logger import Logger
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Logger(Path(sys.argv[1])) as logger:
            for step in range(2_000):
                logger.scalars(step, {"eval/loss": 1.0, "time/fps": 2.0})
                if step % 200 == 0:
                    logger.flush()
    print("finished", logger.dropped > 0, len([w for w in caught if w.category is RuntimeWarning]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on file size there")
def test_a_full_disk_does_not_stop_training(tmp_path):
    """The file may not grow beyond 20 kB: a real write error, from the writer's own thread."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "finished True 1\n", done
    assert done.returncode == 0


def test_the_bar_shows_tenths_without_a_terminal():
    stream = io.StringIO()
    with Bar(1000, "steps", stream=stream) as bar:
        for done in range(0, 1001, 10):
            bar.update(done, f"return {done}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "100/1,000 steps · return 100"
    stream = io.StringIO()
    with Bar(1000, "steps", quiet=True, stream=stream) as bar:
        bar.update(1000, "")
    assert stream.getvalue() == ""


def test_the_bar_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Bar(1000, "steps", stream=stream) as bar:
        bar.update(500, "return 7")
    assert "500/1,000 steps" in stream.getvalue()
    assert "return 7" in stream.getvalue()


def test_another_tracker_sees_all_that_is_logged(tmp_path):
    seen = []
    agent = pgce.agents.Reinforce(quiet=True, runs_dir=str(tmp_path), total_timesteps=6_000)
    run = agent.train(metrics=lambda step, values: seen.append({"step": step, **values}))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert seen == lines
    assert len(seen) > 3
    seen.clear()
    agent.track = False
    agent.train(metrics=lambda step, values: seen.append({"step": step, **values}))
    assert len(seen) == len(lines)


def test_a_line_of_numbers_is_there_at_once(tmp_path):
    """Also of a run that is killed, or looked at while it trains."""
    logger = Logger(tmp_path)
    logger.scalars(1, {"eval/loss": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "eval/loss": 0.5}
    logger.close()
