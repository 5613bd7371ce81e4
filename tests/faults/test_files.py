"""Files that are torn, damaged or hostile: each fault is made, is seen to have happened, and does no harm."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import pgce
from pgce.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_files,
    load_tensors,
    read_checkpoint,
    save_checkpoint,
    save_files,
    save_tensors,
)
from pgce.command import main as command_line

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs signals and limits of POSIX")
QUICK = {"quiet": True, "track": False, "device": "cpu"}


def state(step):
    """A state that fills every file, and shows in each of them which step it is of."""
    number = float(step)
    return {
        "model": {"w": torch.full((50, 20), number), "b": torch.full((3,), number)},
        "optimizer": {"average": torch.full((1003,), number), "steps": step},
        "generator": {"state": 2**127 + step},
        "statistics": np.full(100, number),
    }


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool((a == b).all()) if isinstance(a, (torch.Tensor, np.ndarray)) else a == b


def files(folder):
    """Every file under a folder: its path from there, and what it holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        save_checkpoint(folder, step, state(step))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved estimator."""
    X, y = np.eye(3, dtype=np.float32), np.arange(3)
    estimator = pgce.Classifier(hidden_sizes=(4,), epochs=1, random_state=0, device="cpu").fit(X, y)
    return pgce.save(estimator, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of an agent."""
    settings = {"num_envs": 2, "num_steps": 8, "eval_episodes": 1, "hidden_sizes": (4,), **QUICK}
    agent = pgce.agents.Reinforce(**settings, runs_dir=str(tmp_path_factory.mktemp("runs")))
    return agent.train("CartPole-v1", total_timesteps=16).path


@pytest.fixture
def copied(tmp_path):
    """Copy a folder, so that a test may damage it."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


# 1: kill -9 while saving

KILLER = """
    import json, mmap, os, random, signal, sys, time, warnings
    from pathlib import Path
    import torch
    sys.path.insert(0, sys.argv[1])
    from test_files import load_checkpoint, read_checkpoint, same, save_checkpoint, state

    folder, kills = Path(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(kills)
    saving = mmap.mmap(-1, 1)  # shared: 1 while the child is in the middle of saving
    found = {"saving": 0, "torn": 0, "damaged": 0, "steps": [0]}
    save_checkpoint(folder, 0, state(0), best=True)
    for kill in range(kills):
        step, saving[0] = found["steps"][-1], 0
        child = os.fork()
        if not child:
            while True:
                for again in range(1 + kill % 2):  # also replacing is to be interrupted
                    saving[0] = 1
                    save_checkpoint(folder, step, state(step), keep=1 + kill % 3, best=step % 3 == 0)
                    saving[0] = 0
                step += 1
        while not saving[0]:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        found["saving"] += saving[0]
        found["torn"] += any(path.name[-1] in "p~" for path in folder.iterdir())
        checkpoint = load_checkpoint(folder)
        assert same(checkpoint.state, state(checkpoint.step)), checkpoint.step
        found["damaged"] += len(checkpoint.skipped)
        found["steps"].append(checkpoint.step)
        if (folder / "best").exists():  # not while the one it leads to is being replaced
            best = read_checkpoint(folder / "best")
            assert same(best.state, state(int(best.state["optimizer"]["steps"])))
    save_checkpoint(folder, step + 1000, state(1), keep=1)
    found["left"] = sorted(path.name for path in folder.iterdir())
    print(json.dumps(found))
"""


@POSIX
@pytest.mark.parametrize("kills", [15, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_saving(kills, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLER), Path(__file__).parent, tmp_path, str(kills)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["saving"] > kills / 2, "they were to be killed while saving"
    assert found["torn"] > 0, "some were to be killed with half a checkpoint written"
    assert found["damaged"] == 0
    assert found["steps"] == sorted(found["steps"])
    assert found["steps"][-1] > 0, "some were to finish a step"
    assert not [name for name in found["left"] if not re.fullmatch(r"\d{12}|best|last", name)]


# 4: the disk is full


@pytest.fixture
def full():
    """Lets no file grow above so many bytes, as a disk that gets full; Python then sees an OSError."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 1000, 4100])
def test_a_full_disk_leaves_the_old_checkpoints(size, two, full):
    before = files(two)
    assert max(map(len, before.values())) > size
    for step in (2, 3):
        full(size)
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(two, step, state(step), keep=1)
        full(-1)
        assert files(two) == before
        assert len([*two.iterdir()]) == 3  # no temporary
    assert same(load_checkpoint(two).state, state(2))
    save_checkpoint(two, 3, state(3))  # there is room again
    assert same(load_checkpoint(two).state, state(3))


def test_a_full_disk_leaves_the_old_estimator_or_one_that_is_refused(saved, copied, full):
    folder = copied(saved)
    before = files(folder)
    full(200)
    with pytest.raises(OSError, match="File too large"):
        pgce.save(pgce.load(saved), folder)
    full(-1)
    assert files(folder) == before


class NoSpaceError(OSError):
    pass


class FullDisk:
    """Lets the n-th call of any of the functions that it is called with fail."""

    def __init__(self, n):
        self.n, self.calls = n, 0

    def __call__(self, function):
        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls == self.n:
                raise NoSpaceError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return counted


@pytest.mark.parametrize("step", [2, 3])  # again, and the next
def test_an_error_at_any_point_leaves_one_that_loads(step, two, monkeypatch):
    """No space at the n-th call that touches the disk, for every n until a save gets through."""
    template = two.with_name("template")
    two.rename(template)
    for n in range(1, 100):
        shutil.copytree(template, two, symlinks=True)
        full_disk = FullDisk(n)
        with monkeypatch.context() as patch:
            for name in ("fsync", "mkdir", "rename", "replace", "symlink"):
                patch.setattr(os, name, full_disk(getattr(os, name)))
            with contextlib.suppress(NoSpaceError):
                save_checkpoint(two, step, state(step), best=True)
        found = load_checkpoint(two)
        assert same(found.state, state(found.step))
        assert found.step in (2, step)
        assert not found.skipped
        if full_disk.calls < n:
            assert found.step == step
            break
        assert [p.name for p in two.iterdir() if p.name.endswith("tmp")] == []
        save_checkpoint(two, step, state(step), best=True)  # and the next time it works
        names = [f"{step - 1:012d}", f"{step:012d}", "best", "last"]
        assert sorted(p.name for p in two.iterdir()) == names
        shutil.rmtree(two)
    assert n > 15, "the faults were to be reached"


# 5 and 6: cut off, and a bit flipped


def damages(folder, number, seed, *, cut):
    """Damage one file after another, each for the time of a turn: (name, the file's path)."""
    chance = random.Random(seed)
    sizes = {name: len(content) for name, content in files(folder).items()}
    for _ in range(number):
        name = chance.choice(sorted(sizes))
        path = folder / name
        whole = path.read_bytes()
        at = chance.randrange(sizes[name])
        content = bytearray(whole)
        if cut:
            del content[at:]
        else:
            content[at] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        assert path.read_bytes() != whole
        yield name, path
        path.write_bytes(whole)


@pytest.mark.parametrize(("cut", "number"), [(True, 60), (False, 200)])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(cut, number, two):
    seen = set()
    for name, path in damages(two / "000000000002", number, 0, cut=cut):
        found = load_checkpoint(two)
        assert found.step == 1, name
        assert same(found.state, state(1))
        assert len(found.skipped) == 1
        # What is wrong with the manifest is found where it does not agree with the files.
        assert str(path.parent if name == "manifest.json" else path) in found.skipped[0]
        seen.add(name)
    assert len(seen) == 5  # every file had its turn
    found = load_checkpoint(two)
    assert (found.step, found.skipped) == (2, ())


@pytest.mark.parametrize(("cut", "number"), [(True, 60), (False, 200)])
def test_a_damaged_estimator_is_named(cut, number, saved, copied):
    folder = copied(saved)
    for name, path in damages(folder, number, 1, cut=cut):
        named = folder if name == "manifest.json" else path
        with pytest.raises(CheckpointError, match=re.escape(str(named))):
            pgce.load(folder)
    pgce.load(folder)


@pytest.mark.parametrize(("cut", "number"), [(True, 60), (False, 200)])
def test_the_damaged_network_of_a_run_is_named_or_the_same(cut, number, run, tmp_path):
    """The hash is in the file: damage where it says that there is one leaves the tensors as they were."""
    path = Path(shutil.copy(run / "model.safetensors", tmp_path))
    whole = load_tensors(path)
    refused = 0
    for _ in damages(tmp_path, number, 2, cut=cut):
        try:
            same_still, message = same(load_tensors(path), whole), None
        except CheckpointError as error:
            same_still, message = False, str(error)
        assert same_still or str(path) in message
        refused += not same_still
    assert refused >= 0.95 * number


# 7: a pickle that runs code


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def pickles(tmp_path):
    """Contents that make a file if they are unpickled, as shown here; at the end it must not be there."""
    marker = tmp_path / "marker"
    payload = Payload(marker)
    as_zip = io.BytesIO()
    torch.save(payload, as_zip)
    as_array = io.BytesIO()
    np.savez(as_array, **dict.fromkeys(("X", "y", "observations", "actions"), np.array([payload, 1])))
    given = {"pickle": pickle.dumps(payload), "text": pickle.dumps(payload, 0), "torch": as_zip.getvalue()}
    given["npz"] = as_array.getvalue()
    for name, content in given.items():
        unpickle(name, io.BytesIO(content))
        assert marker.exists(), name
        marker.unlink()
    yield given
    assert not marker.exists()


def unpickle(name, file):
    """What a careless reader does."""
    if name == "torch":
        torch.load(file, weights_only=False)
    elif name == "npz":
        np.load(file, allow_pickle=True)["X"]
    else:
        pickle.load(file)


def hashed(folder, name, content, step=None):
    """Put other content in a file's place, as someone does who knows of the hashes."""
    if name == "manifest.json":
        (folder / name).write_bytes(content)
    else:
        told = json.loads((folder / "manifest.json").read_bytes())
        told["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / name).write_bytes(content)
        (folder / "manifest.json").write_text(json.dumps(told, indent=1) + "\n")
        assert load_files(folder, step)[name] == content  # the hashes hold nobody up


NAMES = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json", "state.safetensors"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("knows", [False, True])
def test_no_file_of_a_checkpoint_runs_code(name, knows, two, pickles):
    path = two / "000000000002"
    for content in pickles.values():
        if knows:
            hashed(path, name, content, 2)
        else:
            (path / name).write_bytes(content)
        assert load_checkpoint(two).step == 1
        with pytest.raises(CheckpointError, match=re.escape(name)):
            read_checkpoint(path)
        shutil.rmtree(path)
        save_checkpoint(two, 2, state(2))


@pytest.mark.parametrize("name", ["estimator.json", "manifest.json", "model.safetensors"])
def test_no_file_of_an_estimator_runs_code(name, saved, copied, pickles):
    folder = copied(saved)
    for content in pickles.values():
        hashed(folder, name, content)
        with pytest.raises(CheckpointError, match=re.escape(name)):
            pgce.load(folder)
        shutil.rmtree(folder)
        copied(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_no_file_of_a_run_runs_code(name, run, copied, pickles):
    folder = copied(run)
    for content in pickles.values():
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{folder / name} is damaged")):
            pgce.load(folder)


def test_a_run_s_settings_import_nothing(run, copied, tmp_path, monkeypatch, capsys):
    module = tmp_path / "written_by_another.py"
    module.write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'marker')!r}).touch(); raise ImportError"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = copied(run)
    settings = json.loads((folder / "config.json").read_bytes())
    settings |= {"env_id": "written_by_another:Env-v0", "allow_import": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="names a module, whose code would be run"):
        pgce.load(folder)
    with pytest.raises(SystemExit):
        command_line(["train", "reinforce", "--config", str(folder), "--runs-dir", str(tmp_path / "runs")])
    assert "names a module, whose code would be run" in capsys.readouterr().err
    sly = settings | {"env_kwargs": {"allow_import": True}}
    (folder / "config.json").write_text(json.dumps(sly))
    with pytest.raises(ValueError, match="env_kwargs has allow_import"):
        pgce.load(folder)
    assert not (tmp_path / "marker").exists()
    (folder / "config.json").write_text(json.dumps(settings))
    with contextlib.suppress(Exception):
        pgce.load(folder, allow_import=True)
    assert (tmp_path / "marker").exists()  # so the module could have run


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
def test_no_data_file_runs_code(suffix, tmp_path, pickles):
    if suffix != ".npz":
        pytest.importorskip("pandas")
    path = tmp_path / f"data{suffix}"
    for content in pickles.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r".+"):
            pgce.envs.datasets.load(str(path))
        if suffix == ".npz":
            with pytest.raises(ValueError, match=r".+"):
                pgce.agents.BC(data=str(path), runs_dir=str(tmp_path), **QUICK).train("CartPole-v1")


# 8: numbers and shapes that do not fit, and headers that ask for too much


def wrong(tensors):
    """What may be wrong with a network's tensors: (message, tensors)."""
    name = next(iter(tensors))
    tensor = tensors[name]
    infinite = tensor.clone()
    infinite.view(-1)[0] = float("inf")
    yield f"{name!r} is not finite", {**tensors, name: tensor * float("nan")}
    yield f"{name!r} is not finite", {**tensors, name: infinite}
    yield f"{name!r} has shape", {**tensors, name: tensor[:-1]}
    yield f"{name!r} has shape (1,", {**tensors, name: tensor[None]}
    yield f"{name!r} is of torch.float64, not torch.float32", {**tensors, name: tensor.double()}
    yield f"{name!r} is of torch.bfloat16", {**tensors, name: tensor.bfloat16()}
    yield f"{name!r} is missing", {key: value for key, value in tensors.items() if key != name}
    yield "'more' is unexpected", {**tensors, "more": tensor}


def test_a_run_s_weights_must_fit(run, copied):
    folder = copied(run)
    tensors = load_tensors(run / "model.safetensors")
    for message, bad in wrong(tensors):
        save_tensors(folder / "model.safetensors", bad)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            pgce.load(folder)
    save_tensors(folder / "model.safetensors", tensors)
    pgce.load(folder)


def test_an_estimator_s_weights_must_fit(saved, copied):
    folder = copied(saved)
    content = load_files(folder)
    tensors = load_tensors(folder / "model.safetensors")
    for message, bad in wrong(tensors):
        save_tensors(folder / "model.safetensors", bad)
        save_files(folder, content | {"model.safetensors": (folder / "model.safetensors").read_bytes()})
        with pytest.raises(CheckpointError, match=re.escape(message)):
            pgce.load(folder)


def header(tree, data=b""):
    head = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return len(head).to_bytes(8, "little") + head + data


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "2^62 bytes of header": (2**62).to_bytes(8, "little") + b"{}",
    "4 TB of header": (2**42).to_bytes(8, "little") + b"{}",
    "2^62 numbers": header({"w": {**TENSOR, "shape": [2**62], "data_offsets": [0, 2**64 - 1]}}, bytes(4)),
    "an overflow": header({"w": {**TENSOR, "shape": [2**33, 2**33]}}, bytes(4)),
    "an overflow to nothing": header({"w": {**TENSOR, "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}}),
    "two tensors of the same bytes": header({"w": TENSOR, "v": TENSOR}, bytes(4)),
    "a hole": header({"w": {**TENSOR, "data_offsets": [4, 8]}}, bytes(8)),
    "no such type": header({"w": {**TENSOR, "dtype": "F4"}}, bytes(4)),
    "metadata that are none": header({"__metadata__": [], "w": TENSOR}, bytes(4)),
    "deep": header(b"[" * 100_000),
    "no text": header(b"\xff" * 100),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers(name, two, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADERS[name])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        load_tensors(path)
    hashed(two / "000000000002", "model.safetensors", HEADERS[name], 2)
    assert load_checkpoint(two).step == 1


STATES = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a list": b"[]",
    "no tensor of that name": b'{"model": {"w": {"$tensor": "v"}}}',
    "a tensor named twice": b'{"model": [{"$tensor": "w"}, {"$tensor": "w"}]}',
    "a name that is none": b'{"model": {"$tensor": []}}',
    "an unknown mark": b'{"a": {"$call": "os.system"}}',
    "objects": b'{"a": {"$scalar": ["|O", "0000000000000000"]}}',
    "a huge text": b'{"a": {"$scalar": ["<U1000000000000", "00"]}}',
    "a short scalar": b'{"a": {"$scalar": ["<f8", "00"]}}',
    "a number of many digits": b'{"a": ' + b"9" * 100_000 + b"}",
    "a huge array": b'{"statistics": {"$array": ["statistics", "<f8", [4611686018427387904, 4]]}}',
    "a negative array": b'{"statistics": {"$array": ["statistics", "<f8", [-1]]}}',
    "tensors left": b"{}",
}


@pytest.mark.parametrize("name", STATES)
def test_hostile_states(name, two):
    path = two / "000000000002"
    hashed(path, "state.json", STATES[name], 2)
    with pytest.raises(CheckpointError, match=r"(state\.json|\.safetensors) is damaged"):
        read_checkpoint(path)
    assert load_checkpoint(two).step == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "it is of format 2, and this version reads 1"),
        ({"step": 3}, "it is of step 3, in a folder of step 2"),
        ({"files": {"../000000000001/state.json": {"size": 3, "sha256": ""}}}, "it lists '../000"),
        ({"files": {"/etc/passwd": {"size": 3, "sha256": ""}}}, "it lists '/etc/passwd'"),
        ({"files": {"state.json": {"size": 2**37, "sha256": ""}}}, "have 137438953472 bytes, more than"),
        ({"files": {"state.json": {"size": -1, "sha256": ""}}}, "bytes, not -1"),
        ({"files": {"state.json": []}}, "list indices must be"),
        ({"files": {}}, r"KeyError\('state.json'\)"),
        ({"more": "x" * 2**20}, "more than 1048576"),
    ],
)
def test_hostile_manifests(change, message, two):
    path = two / "000000000002"
    told = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({**told, **change}, indent=1) + "\n")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert load_checkpoint(two).step == 1


@POSIX
def test_links_that_lead_outside_are_refused(two, tmp_path):
    outside = save_checkpoint(tmp_path / "outside", 2, state(1))
    path = two / "000000000002"
    content = (path / "state.json").read_bytes()
    secret = tmp_path / "secret"
    secret.write_bytes(content)  # the right content, in the wrong place
    (path / "state.json").unlink()
    (path / "state.json").symlink_to(secret)
    assert (path / "state.json").read_bytes() == content
    with pytest.raises(CheckpointError, match=r"state\.json is refused: it is a link"):
        read_checkpoint(path)
    shutil.rmtree(path)
    path.symlink_to(outside)
    with pytest.raises(CheckpointError, match="is refused: it leads out of its folder, to"):
        read_checkpoint(path)
    (two / "best").symlink_to(outside)
    with pytest.raises(CheckpointError, match="is refused: it leads out of its folder, to"):
        read_checkpoint(two / "best")
    found = load_checkpoint(two)
    assert (found.step, len(found.skipped)) == (1, 1)
    os.mkfifo(two / "000000000001" / "pipe")
    (two / "000000000001" / "state.json").unlink()
    (two / "000000000001" / "pipe").rename(two / "000000000001" / "state.json")  # to read it would hang
    with pytest.raises(CheckpointError, match=r"state\.json is refused: it is a link, or no file"):
        load_checkpoint(two)
    before = files(tmp_path / "outside")
    save_checkpoint(two, 5, state(5), keep=1, best=True)  # removes the links, not what they lead to
    assert files(tmp_path / "outside") == before
    assert sorted(p.name for p in two.iterdir()) == ["000000000005", "best", "last"]
