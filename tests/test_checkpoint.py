"""Files are whole or not there, and tensors come back as they were."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from pgce.checkpoint import load_tensors, save_tensors, write_file
from pgce.networks import mlp
from pgce.optimizer import Optimizer


def test_views_of_one_buffer_are_saved_as_tensors_of_their_own(tmp_path):
    model = mlp(4, 2)
    Optimizer(model.parameters())  # lays the parameters into one buffer
    path = tmp_path / "model.safetensors"
    save_tensors(path, model.state_dict())
    loaded = load_tensors(path)
    assert loaded.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor)
    assert path.stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 2_000


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_file(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
    import sys, torch
    from pathlib import Path
    from pgce.checkpoint import save_tensors
    path = Path(sys.argv[1])
    print("ready", flush=True)
    n = 0
    while True:
        n += 1
        save_tensors(path, {"a": torch.full((300_000,), float(n)), "b": torch.tensor([float(n)])})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    """Killed in the middle of saving without pause: what is there is one whole version."""
    path = tmp_path / "model.safetensors"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline
        time.sleep(0.2)  # a moment to be in the middle of something
        process.send_signal(signal.SIGKILL)
    tensors = load_tensors(path)
    assert tensors["b"].item() >= 1
    assert (tensors["a"] == tensors["b"]).all()
