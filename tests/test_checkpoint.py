"""Files are whole or not there, and tensors come back as they were."""

from __future__ import annotations

import copy
import math
import os
import shutil

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgce.checkpoint import (
    CheckpointError,
    check_like,
    load_checkpoint,
    load_files,
    load_tensors,
    read_checkpoint,
    save_checkpoint,
    save_files,
    save_tensors,
)
from pgce.disk import write_file
from pgce.networks import mlp
from pgce.optimizer import Optimizer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same(a, b):
    """Equal in type, bit by bit where they are numbers; a mapping's type does not count."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        whole = [tensor.flatten().clone(memory_format=torch.contiguous_format) for tensor in (a, b)]
        as_bytes = [tensor.view(torch.uint8) for tensor in whole]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return repr(a) == repr(b)  # also of nan and -0.0
    return a == b


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


def test_a_bare_file_of_tensors_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"w": torch.ones(100)})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in a number
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} is damaged: its tensors do not have the SHA-256"):
        load_tensors(path)
    path.write_bytes(content[:50])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        load_tensors(path)
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "elsewhere")


def test_a_file_without_a_hash_is_read(tmp_path):
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    assert torch.equal(load_tensors(path)["w"], torch.ones(2))


NESTED = {
    "model": {
        "w.0": torch.arange(6.0).view(2, 3).T,
        "half": torch.ones(3).bfloat16(),
        "none": torch.empty(0, 3),
    },
    "optimizer": {"torch": {"0": {"step": torch.tensor(3.0), "average": torch.ones(2, dtype=torch.float64)}}},
    "generator": np.random.PCG64(7).state,
    "mersenne": np.random.MT19937(7).state,
    "torch": torch.Generator().manual_seed(3).get_state(),
    "big": [2**127 + 1, -(2**5000), 2**63, -(2**64)],
    "floats": [0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324],
    "tuple": (1, (2.5, "é\n\0", None), [True, ()], {}),
    "arrays": {
        "text": np.array([["a", "bcd"], ["", "ü"]]),
        "bytes": np.array([b"x", b"yz"]),
        "big-endian": np.arange(3, dtype=">i4"),
        "time": np.array(["2020-01-01"], "M8[D]"),
        "complex": np.array([1 + 2j]),
        "none": np.zeros((0, 4), "U3"),
        "one": np.array(1.5),
        "by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "bool": np.array([True, False]),
        "read-only": np.broadcast_to(np.float32(2), (3,)),
        "long": np.array([0.1], np.longdouble),
    },
    "scalars": [
        *(np.float32(0.1), np.int64(-3), np.bool_(True), np.str_("ab"), np.str_("")),
        *(np.uint64(2**64 - 1), np.float64(math.nan), np.complex64(1j)),
    ],
    "marks": {"$tensor": 1, "deep": {"$int": "3"}, "": {"$": {"$dict": []}}},
    "a/b": torch.ones(1),
    "a": {"b": torch.zeros(1), "__metadata__": torch.ones(2)},
    "__metadata__": torch.ones(3),
    "$int": "at the top",
}


def test_what_is_loaded_is_what_was_saved(tmp_path):
    before = copy.deepcopy(NESTED)
    path = save_checkpoint(tmp_path, 3, NESTED)
    found = load_checkpoint(tmp_path)
    assert (found.step, found.path, found.skipped) == (3, path, ())
    for key in NESTED:
        assert same(found.state[key], NESTED[key]), key
    assert list(found.state) == list(NESTED)
    assert same(NESTED, before)
    files = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json", "state.safetensors"]
    assert names(path) == files
    assert load_tensors(path / "model.safetensors").keys() == NESTED["model"].keys()
    found.state["model"]["w.0"] += 1  # what was loaded can be written to
    found.state["arrays"]["by column"] += 1
    generator = np.random.PCG64()
    generator.state = found.state["generator"]
    assert generator.random_raw() == np.random.PCG64(7).random_raw()


TENSORS = arrays.arrays(
    st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?", "c8"]),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
).map(torch.from_numpy)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text(max_size=5) | TENSORS
    | arrays.arrays(
        arrays.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufcSUmM"),
        arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
    )
)  # fmt: skip
KEYS = st.text(max_size=3) | st.sampled_from(["$int", "$tensor", "a", "a/b", "b", "__metadata__", "0"])
STATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50)
@given(state=st.dictionaries(KEYS, STATES, max_size=4))
def test_any_nested_state_comes_back(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    save_checkpoint(folder, 0, state)
    assert same(load_checkpoint(folder).state, state)


def test_mappings_parameters_and_subclasses_come_back_plain(tmp_path):
    class Count(int):
        pass

    save_checkpoint(
        tmp_path, 0, {"model": mlp(2, 1).state_dict(), "n": Count(3), "p": torch.nn.Parameter(torch.ones(1))}
    )
    state = load_checkpoint(tmp_path).state
    assert type(state["model"]) is dict
    assert type(state["n"]) is int
    assert type(state["p"]) is torch.Tensor
    assert not state["p"].requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": {1, 2}}}, "a checkpoint holds plain data: a/b is of set"),
        ({"a": [0, object()]}, "plain data: a/1 is of object"),
        ({"a": {3: 1}}, "keys of a state are strings: a has 3"),
        ({3: 1}, "keys of a state are strings: it has 3"),
        ([1], "a state is a mapping: it is list"),
        ({"a": np.array([None])}, "holds no such array: a is of object"),
        ({"a": np.zeros(2, "i4,f4")}, "holds no such array: a is of"),
        ({"a": torch.eye(2).to_sparse()}, "holds no such tensor: a is of torch.float32, torch.sparse_coo"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "holds no such tensor: a is of torch.complex128"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_named(state, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "new", 0, state)
    assert names(tmp_path) == []


def test_the_newest_and_the_best_stay(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, {"n": step}, keep=2, best=step in (1, 2))
    assert names(tmp_path) == ["000000000002", "000000000004", "000000000005", "best", "last"]
    assert os.readlink(tmp_path / "last") == "000000000005"  # relative: the run may be moved
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert read_checkpoint(moved / "best").state == {"n": 2}
    assert read_checkpoint(moved / "last").state == {"n": 5}
    save_checkpoint(moved, 6, {}, keep=1, best=True)
    assert names(moved) == ["000000000006", "best", "last"]


def test_the_same_step_again_replaces(tmp_path):
    save_checkpoint(tmp_path, 1, {"n": 1})
    save_checkpoint(tmp_path, 2, {"n": "old", "w": torch.ones(2)}, best=True)
    path = save_checkpoint(tmp_path, 2, {"n": "new"})
    assert read_checkpoint(path).state == {"n": "new"}
    assert names(tmp_path) == ["000000000001", "000000000002", "best", "last"]


def test_one_set_aside_by_a_killed_process_is_loaded_and_gets_its_name_back(tmp_path):
    save_checkpoint(tmp_path, 1, {"n": 1})
    save_checkpoint(tmp_path, 2, {"n": 2}, best=True).rename(tmp_path / "000000000002~")
    assert load_checkpoint(tmp_path).state == {"n": 2}
    save_checkpoint(tmp_path, 3, {"n": 3}, keep=1)
    assert names(tmp_path) == ["000000000002", "000000000003", "best", "last"]
    assert read_checkpoint(tmp_path / "best").state == {"n": 2}


def test_whoever_goes_back_leaves_later_steps(tmp_path):
    for step in (1, 2, 3):
        path = save_checkpoint(tmp_path, step, {"n": step}, keep=3, best=step == 3)
    (path / "state.json").write_bytes(b"")
    assert load_checkpoint(tmp_path).step == 2
    save_checkpoint(tmp_path, 2, {"n": "again"}, keep=1)
    assert names(tmp_path) == ["000000000002", "last"]
    assert load_checkpoint(tmp_path).state == {"n": "again"}


def test_none_usable_says_why_of_each(tmp_path):
    with pytest.raises(CheckpointError, match=f"there is no usable checkpoint in {tmp_path}$"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="there is no usable checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")
    first, second = (save_checkpoint(tmp_path, step, {"a": 1}) for step in (1, 2))
    (first / "manifest.json").unlink()
    (second / "state.json").write_bytes((second / "state.json").read_bytes().replace(b"1", b"2"))
    with pytest.raises(CheckpointError, match=r"2/state.json is damaged: its SHA-256 .*; .*1/manifest.json"):
        load_checkpoint(tmp_path)


def test_numbers_out_of_range(tmp_path):
    for wrong, message in (
        ({"step": -1}, "it is -1"),
        ({"step": 10**18}, "it is 10"),
        ({"step": 1, "keep": 0}, "keep is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path, state={}, **wrong)
    assert names(tmp_path) == []


@pytest.mark.parametrize("key", ["model", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_published(key, value, tmp_path):
    path = save_checkpoint(tmp_path, 1, {"n": 1})
    before = {file: (path / file).read_bytes() for file in names(path)}
    for bad in (
        torch.tensor([1.0, value]),
        torch.tensor([value], dtype=torch.float16),
        np.array([value, 0j]),
    ):
        with pytest.raises(CheckpointError, match=f"what is saved is finite: {key}/a/w is not"):
            save_checkpoint(tmp_path, 2, {key: {"a": {"ok": torch.ones(1), "w": bad}}}, keep=1)
    assert names(tmp_path) == ["000000000001", "last"]
    assert {file: (path / file).read_bytes() for file in names(path)} == before
    save_checkpoint(tmp_path, 3, {"statistics": torch.tensor([value])})  # elsewhere they may be


def test_a_mask_of_minus_infinity_is_saved_and_fits(tmp_path):
    model = {"mask": torch.full((3, 3), -math.inf).triu(1)}
    save_checkpoint(tmp_path, 1, {"model": model})
    check_like("it", load_checkpoint(tmp_path).state["model"], model)


def test_tensors_that_do_not_fit_are_named():
    own = {"a": torch.ones(2), "b": torch.ones(3, dtype=torch.int64)}
    check_like("it", own, own)
    a = own["a"]
    for given_, message in [
        ({"a": a}, "'b' is missing"),
        ({**own, "c": a}, "'c' is unexpected"),
        ({**own, "a": a[:1]}, r"'a' has shape \(1,\), not \(2,\)"),
        ({**own, "a": a.double()}, "'a' is of torch.float64, not torch.float32"),
        ({**own, "a": a / 0}, "'a' is not finite"),
        ({**own, "a": [1.0, 1.0]}, "'a' is no tensor but list"),
    ]:
        with pytest.raises(CheckpointError, match=f"it does not fit: {message}"):
            check_like("it", given_, own)


def test_a_set_of_files_that_was_not_finished_is_refused(tmp_path, monkeypatch):
    save_files(tmp_path, {"a.json": b"1", "b.json": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr("pgce.checkpoint._manifest", lambda files: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_files(tmp_path, {"a.json": b"2", "b.json": b"2"})
    assert (tmp_path / "a.json").read_bytes() == b"2"
    with pytest.raises(CheckpointError, match=r"a\.json is damaged: its SHA-256"):
        load_files(tmp_path)


def test_a_folder_copied_with_what_its_links_lead_to_goes_on(tmp_path):
    """As scp -r and cp -rL do."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "there", step, {"step": step}, best=step == 1)
    shutil.copytree(tmp_path / "there", tmp_path / "here", symlinks=False)
    assert load_checkpoint(tmp_path / "here").step == 2
    for step in (3, 4, 5):
        save_checkpoint(tmp_path / "here", step, {"step": step}, best=step == 3)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {
        *(f"{step:012d}" for step in (3, 4, 5)),
        "best",
        "last",
    }
    assert (tmp_path / "here" / "last").readlink().name == f"{5:012d}"
