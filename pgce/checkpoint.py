"""Files that survive: whole or not there, checked before they are read, and no pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pgce import disk, processes
from pgce.disk import write_file

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Checkpoints",
    "check_like",
    "load_checkpoint",
    "load_files",
    "load_model",
    "load_tensors",
    "read_checkpoint",
    "save_checkpoint",
    "save_files",
    "save_tensors",
    "tensors_from_bytes",
    "tensors_to_bytes",
]

_FORMAT = 1
_MANIFEST, _STATE = "manifest.json", "state.json"
_MANIFEST_LIMIT = 2**20
_LIMIT = 2**36  # bytes of one set of files: 64 GiB
_OWN_FILES = "model", "optimizer"  # these keys of a state get a safetensors file each
_SUFFIX = ".safetensors"
_NAME = re.compile(r"([0-9]{12,18})(~?)")  # "~": set aside while one of the same step takes its place
_ARRAYS = {"bool", "float16", "float32", "float64", "complex64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}  # what safetensors holds as it is; of other kinds it holds the bytes
_DTYPES = {getattr(torch, name) for name in (*_ARRAYS, "bfloat16", "float8_e4m3fn", "float8_e5m2")}
_KINDS = "biufcSUmM"


class CheckpointError(ValueError):
    """What is read is damaged or does not fit, or what is to be written may not be.

    Example:
        >>> from pgce.checkpoint import CheckpointError
        >>> issubclass(CheckpointError, ValueError)
        True
    """


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` found.

    Attributes:
        step: the step it was saved at.
        state: what was saved.
        path: its folder.
        skipped: newer ones that cannot be used, each with the reason.

    Example:
        See `save_checkpoint`.
    """

    step: int
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


def save_checkpoint(
    folder: str | Path, step: int, state: Mapping[str, Any], *, keep: int = 2, best: bool = False
) -> Path:
    """Write a checkpoint into `folder`/(step, 12 digits), which a crash leaves whole or not there.

    It appears under its name when all of it is on the disk; then the links `last` and, if so, `best` lead
    to it; then older ones go. One of the same step is replaced. Those of later steps go too: whoever saves
    an earlier step went back to before them. One process at a time saves into a folder.

    Tensors of the keys "model" and "optimizer" go to model.safetensors and optimizer.safetensors, others
    to state.safetensors, all else to state.json; manifest.json has the size and the SHA-256 of each.

    Args:
        folder: of the run's checkpoints; made if it is not there.
        step: 0 or more.
        state: nested mappings with keys that are strings, lists, tuples, None, bool, int of any size, float,
            str, dense tensors, and NumPy arrays and scalars but of objects and records. All come back as the
            types they were, a mapping as a dict, a tensor on the CPU, one of a subclass as the plain type.
        keep: how many of the newest stay, >= 1. The best stays in any case.
        best: this is the best one so far.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: a tensor of "model" or "optimizer" holds NaN or +∞. All is as before.
        TypeError: the state holds something else than said above. All is as before.
        ValueError: step or keep is out of range.
        OSError: the disk is full, say. Checkpoints that were there still are.

    Example:
        >>> import tempfile, torch
        >>> from pgce.checkpoint import load_checkpoint, save_checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> path = save_checkpoint(folder, 7, {"model": {"w": torch.ones(2)}, "episodes": (3, float("inf"))})
        >>> path.name, sorted(file.name for file in path.iterdir())
        ('000000000007', ['manifest.json', 'model.safetensors', 'state.json'])
        >>> found = load_checkpoint(folder)
        >>> found.step, found.state
        (7, {'model': {'w': tensor([1., 1.])}, 'episodes': (3, inf)})
    """
    if not 0 <= step < 10**18:
        raise ValueError(f"a step is at least 0 and has at most 18 digits: it is {step}")
    if keep < 1:
        raise ValueError(f"at least one checkpoint is kept: keep is {keep}")
    files = _pack(state)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    path = folder / f"{step:012d}"
    temporary = disk.hidden(path)
    try:
        temporary.mkdir()
        for name, content in files.items():
            disk.write(temporary / name, content)
        disk.write(temporary / _MANIFEST, _manifest(files, step))
        disk.sync(temporary)
        disk.swap(temporary, path)
        disk.sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for link in ("last", "best") if best else ("last",):
        disk.link(folder / link, path.name)
    disk.sync(folder)
    _prune(folder, step, keep)
    return path


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """The newest checkpoint in `folder` that is whole.

    Size and hash of every file are checked before any is parsed. That shows damage, not malice: whoever can
    write the files can write the hashes. A state made up by someone else is still only plain data, and no
    code runs; whether it fits is for the receiver to check, see `check_like`.

    Raises:
        CheckpointError: there is none, or none is whole; with every reason.

    Example:
        >>> import tempfile
        >>> from pgce.checkpoint import load_checkpoint, save_checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> paths = [save_checkpoint(folder, step, {"step": step}) for step in (1, 2)]
        >>> _ = (paths[1] / "state.json").write_text("torn")
        >>> found = load_checkpoint(folder)
        >>> found.step, len(found.skipped)
        (1, 1)
        >>> print(found.skipped[0].replace(folder, "FOLDER"))
        FOLDER/000000000002/state.json is damaged: it has 4 bytes, not 15
    """
    folder = Path(folder)
    reasons: list[str] = []
    for path in _checkpoints(folder):
        try:
            return replace(read_checkpoint(path), skipped=tuple(reasons))
        except (CheckpointError, OSError) as error:
            reasons.append(str(error))
    raise CheckpointError("; ".join([f"there is no usable checkpoint in {folder}", *reasons]))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """One checkpoint, such as the one that the link `best` leads to.

    Raises:
        CheckpointError: it is damaged, or a link leads out of its folder.
        OSError: it is not there, or cannot be read.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.checkpoint import read_checkpoint, save_checkpoint
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for step in (1, 2, 3):
        ...     path = save_checkpoint(folder, step, {"score": 1 / step}, keep=1, best=step == 1)
        >>> sorted(path.name for path in folder.iterdir())
        ['000000000001', '000000000003', 'best', 'last']
        >>> read_checkpoint(folder / "best").state
        {'score': 1.0}
    """
    path = Path(path)
    real = Path(os.path.realpath(path))
    if real.parent != Path(os.path.realpath(path.parent)):
        raise CheckpointError(f"{path} is refused: it leads out of its folder, to {real}")
    if (match := _NAME.fullmatch(real.name)) is None:
        raise CheckpointError(f"{path} is refused: a checkpoint's name is its step in 12 digits")
    step = int(match[1])
    files = load_files(path, step)
    try:
        state = _unpack(files)
    except CheckpointError as error:
        raise CheckpointError(f"{path}/{error}") from error
    return Checkpoint(step, state, path)


class Checkpoints:
    """Those of one run: the one to go on from, and those to come.

    Args:
        folder: that they are in.
        every: seconds from one to the next; 0 is always.
        final: whether the run's end, too, is to be saved; an interruption always is.

    Attributes:
        found: the newest that is whole, or None where there is none at all.
        failed: how many could not be written.

    Raises:
        CheckpointError: there are some, and none is whole.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from pgce.checkpoint import Checkpoints
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "checkpoints"
        >>> checkpoints = Checkpoints(folder, every=0)
        >>> if checkpoints.found is None and checkpoints.due:
        ...     checkpoints.save(5, {"model": {"w": torch.ones(2)}})
        >>> Checkpoints(folder).found.step
        5
    """

    def __init__(self, folder: Path, every: float = 60.0, *, final: bool = True) -> None:
        self.folder = folder
        self.every = every
        self.final = final
        self.found = load_checkpoint(folder) if _checkpoints(folder) else None  # the first may be half made
        self.failed = 0
        self._saved = time.monotonic()
        for damaged in self.found.skipped if self.found is not None else ():
            warnings.warn(f"a damaged checkpoint is passed over: {damaged}", RuntimeWarning, stacklevel=2)

    def together(self) -> Checkpoints:
        """Let all processes go on from what process 0 found, each with its own part; itself.

        Raises:
            CheckpointError: what was found is of another number of processes.
        """
        if processes.size() > 1:
            found = None if self.found is None else {"step": self.found.step, "state": self.found.state}
            told = _from_bytes(processes.gathered(_to_bytes({"found": found}))[0])["found"]
            self.found = None if told is None else Checkpoint(told["step"], told["state"], self.folder)
        if self.found is not None:
            each = self.found.state.pop("processes", {})
            if (number := max(len(each), 1)) != processes.size():
                raise CheckpointError(
                    f"a checkpoint of {number} processes is no start for {processes.size()}"
                )
            self.found.state.update(each.get(str(processes.rank()), {}))
        return self

    @property
    def due(self) -> bool:
        """Whether it is time for one, by the clock of process 0."""
        return bool(processes.share(time.monotonic() - self._saved >= self.every))

    def save(self, step: int, state: Mapping[str, Any], each: Sequence[str] = ()) -> None:
        """Write one; where that fails, for want of room say, warn once: the one before stays.

        Args:
            step: see `save_checkpoint`.
            state: likewise.
            each: keys of what differs between processes, all of which call this.

        Raises:
            FloatingPointError: model or optimizer is not finite; likewise.
        """
        if processes.size() > 1:
            own = processes.gathered(_to_bytes({key: state[key] for key in each}))
            if processes.rank() > 0:
                return
            parts = {str(n): _from_bytes(content) for n, content in enumerate(own)}
            state = {**{key: state[key] for key in state if key not in each}, "processes": parts}
        try:
            save_checkpoint(self.folder, step, state)
        except CheckpointError as error:
            raise FloatingPointError(str(error)) from error
        except OSError as error:
            self.failed += 1
            if self.failed == 1:
                warnings.warn(
                    f"no checkpoint is written, training goes on: {error}", RuntimeWarning, stacklevel=2
                )
        self._saved = time.monotonic()


def check_like(name: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit those they are to replace.

    Args:
        name: what is loaded, for the message.
        given: from a file.
        own: of the receiver: a model's `state_dict()`, say.

    Raises:
        CheckpointError: with the first key that is missing or unexpected, or whose tensor has another shape
            or dtype, or holds NaN or +∞.

    Example:
        >>> import torch
        >>> from pgce.checkpoint import check_like
        >>> check_like("model", {"w": torch.zeros(2)}, {"w": torch.ones(2)})
        >>> check_like("model", {"w": torch.zeros(3)}, {"w": torch.ones(2)})
        Traceback (most recent call last):
        ...
        pgce.checkpoint.CheckpointError: model does not fit: 'w' has shape (3,), not (2,)
    """

    def refuse(why: str) -> None:
        raise CheckpointError(f"{name} does not fit: {why}")

    for key in own:
        if key not in given:
            refuse(f"{key!r} is missing")
    for key, tensor in given.items():
        if key not in own:
            refuse(f"{key!r} is unexpected")
        if not isinstance(tensor, Tensor):
            refuse(f"{key!r} is no tensor but {type(tensor).__name__}")
        if tensor.shape != own[key].shape:
            refuse(f"{key!r} has shape {tuple(tensor.shape)}, not {tuple(own[key].shape)}")
        if tensor.dtype != own[key].dtype:
            refuse(f"{key!r} is of {tensor.dtype}, not {own[key].dtype}")
        if not _finite(tensor):
            refuse(f"{key!r} is not finite")


def save_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files beside others, and last manifest.json with their sizes and hashes.

    A crash in between leaves a set that `load_files` refuses.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.checkpoint import load_files, save_files
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> save_files(folder, {"settings.json": b"{}"})
        >>> load_files(folder)
        {'settings.json': b'{}'}
    """
    for name, content in files.items():
        write_file(folder / name, content)
    write_file(folder / _MANIFEST, _manifest(files))


def load_files(folder: Path, step: int | None = None) -> dict[str, bytes]:
    """The files that a folder's manifest.json lists, all of the size and hash told there.

    Args:
        folder: of `save_files`.
        step: what the manifest must say; only a checkpoint has one.

    Raises:
        CheckpointError: a file is damaged, missing, a link, or too large.
        OSError: the manifest is not there, or a file cannot be read.

    Example:
        See `save_files`.
    """
    path = folder / _MANIFEST
    raw = _read(path, None)
    try:
        told = json.loads(raw)
        if _dump(told) != raw:
            raise ValueError("it is not as it was written")
        if told["format"] != _FORMAT:
            raise ValueError(f"it is of format {told['format']}, and this version reads {_FORMAT}")
        if told["step"] != step:
            raise ValueError(f"it is of step {told['step']}, in a folder of step {step}")
        listed = {name: (int(entry["size"]), entry["sha256"]) for name, entry in told["files"].items()}
        if any(re.fullmatch(r"[a-z_]+\.(json|safetensors)", name) is None for name in listed):
            raise ValueError(f"it lists {', '.join(map(repr, listed))}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if (total := sum(size for size, _ in listed.values())) > _LIMIT:
        raise CheckpointError(f"{folder} is refused: its files have {total} bytes, more than {_LIMIT}")
    files = {}
    for name, (size, sha256) in listed.items():
        files[name] = _read(folder / name, size)
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the one in {_MANIFEST}")
    return files


def load_model(run: Path) -> dict[str, Tensor]:
    """The weights that a run ended with; of one that has not ended, those of its last checkpoint.

    Raises:
        FileNotFoundError: the folder holds neither.
        CheckpointError: they are damaged.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from pgce.checkpoint import load_model, save_checkpoint
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> _ = save_checkpoint(run / "checkpoints", 5, {"model": {"w": torch.ones(2)}})
        >>> load_model(run)
        {'w': tensor([1., 1.])}
    """
    file = run / "model.safetensors"
    ended = file.exists() and (run / "result.json").exists()  # else the file is of an attempt before
    if ended or not _checkpoints(run / "checkpoints"):
        return load_tensors(file)
    model = load_checkpoint(run / "checkpoints").state.get("model")
    if not isinstance(model, dict) or not all(isinstance(value, Tensor) for value in model.values()):
        raise CheckpointError(f"the last checkpoint of {run} has no model")
    return model


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors (a model's `state_dict()`, say) to a safetensors file, with a hash in its header.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from pgce.checkpoint import load_tensors, save_tensors
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_tensors(path, torch.nn.Linear(2, 1).state_dict())
        >>> sorted(load_tensors(path))
        ['bias', 'weight']
    """
    write_file(path, tensors_to_bytes(tensors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    A file that pgce wrote has a hash, and is refused if it is damaged. One from elsewhere has none: of a
    damaged one only the form is noticed, not another number.

    Raises:
        CheckpointError: the file is damaged.
        OSError: it is not there, or cannot be read.

    Example:
        See `save_tensors`.
    """
    try:
        return tensors_from_bytes(path.read_bytes(), path.name)
    except CheckpointError as error:
        raise CheckpointError(f"{path.parent}/{error}") from error


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file, with a hash of the tensors in its header.

    Example:
        >>> import torch
        >>> from pgce.checkpoint import tensors_from_bytes, tensors_to_bytes
        >>> tensors_from_bytes(tensors_to_bytes({"w": torch.ones(2)}), "model.safetensors")
        {'w': tensor([1., 1.])}
    """
    # Copied: parameters are views of one flat buffer, and each is to be a tensor of its own in the file.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(own, {"sha256": _digest(own)})


def tensors_from_bytes(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content.

    Args:
        content: of the file.
        name: of the file, for the message.

    Raises:
        CheckpointError: it is damaged.

    Example:
        See `tensors_to_bytes`.
    """
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        sha256 = header.get("__metadata__", {}).get("sha256")
    except Exception as error:  # whatever its parsers think of bytes that are no such file
        raise CheckpointError(f"{name} is damaged: {error or type(error).__name__}") from error
    if sha256 is not None and sha256 != _digest(tensors):
        raise CheckpointError(f"{name} is damaged: its tensors do not have the SHA-256 in its header")
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _finite(value: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether all are finite, or −∞, as a mask of logits has it: what diverges is NaN or +∞ as well."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    if value.is_complex():
        return bool(torch.isfinite(value).all())
    if not value.is_floating_point():
        return True
    # Many kernels know no floats of 8 bits.
    return bool(((value if value.element_size() > 1 else value.float()) < math.inf).all())


# A state as files: tensors by name, and a tree of JSON in which an object with one key, {"$…": …}, stands
# for what JSON has no type for.


class _Tensors:
    """The tensors met on the way through a state, by the file that they go to."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Tensor]] = {}

    def put(self, path: tuple[str, ...], tensor: Tensor, value: Tensor | np.ndarray[Any, Any]) -> str:
        """Take a tensor that stands for `value`; the name under which it is found again."""
        own = path[0] in _OWN_FILES
        if own and not _finite(value):
            raise CheckpointError(f"what is saved is finite: {'/'.join(path)} is not")
        file = self.files.setdefault((path[0] if own else "state") + _SUFFIX, {})
        stem = "/".join(path[1:] if own else path).encode("utf-8", "backslashreplace").decode()
        name, number = stem, 2
        while name in file or name == "__metadata__":
            name, number = f"{stem}#{number}", number + 1
        file[name] = tensor
        return name


def _pack(state: Mapping[str, Any]) -> dict[str, bytes]:
    tensors = _Tensors()
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is a mapping: it is {type(state).__name__}")
    tree = {key: _encode(value, (_key(key, ()),), tensors) for key, value in state.items()}
    files = {name: tensors_to_bytes(tensors.files[name]) for name in sorted(tensors.files)}
    return {**files, _STATE: _dump(tree)}


def _to_bytes(state: Mapping[str, Any]) -> bytes:
    """A state as it is sent to another process."""
    files = _pack(state)
    head = _dump({name: len(content) for name, content in files.items()})
    return b"".join([len(head).to_bytes(8, "little"), head, *files.values()])


def _from_bytes(content: bytes) -> dict[str, Any]:
    end = 8 + int.from_bytes(content[:8], "little")
    files = {}
    for name, length in json.loads(content[8:end]).items():
        files[name] = content[end : end + length]
        end += length
    return _unpack(files)


def _unpack(files: Mapping[str, bytes]) -> dict[str, Any]:
    tensors = {name: tensors_from_bytes(files[name], name) for name in files if name.endswith(_SUFFIX)}
    try:
        state = {
            key: _decode(value, tensors.get((key if key in _OWN_FILES else "state") + _SUFFIX, {}))
            for key, value in json.loads(files[_STATE]).items()
        }
    except Exception as error:  # whatever a tree that we did not write leads to
        raise CheckpointError(f"{_STATE} is damaged: {error!r}") from error
    for name, rest in tensors.items():
        if rest:
            raise CheckpointError(f"{name} is damaged: {_STATE} does not know {next(iter(rest))!r}")
    return state


def _key(key: Any, path: tuple[str, ...]) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys of a state are strings: {'/'.join(path) or 'it'} has {key!r}")
    return str.__str__(key)


def _encode(value: Any, path: tuple[str, ...], tensors: _Tensors) -> Any:
    """The value in JSON's types; tensors and arrays go to `tensors`."""
    where = "/".join(path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise TypeError(f"a checkpoint holds no such tensor: {where} is of {value.dtype}, {value.layout}")
        return {"$tensor": tensors.put(path, value, value)}
    if isinstance(value, (np.ndarray, np.generic)):  # before float: np.float64 is one
        dtype = value.dtype
        if dtype.kind not in _KINDS:
            raise TypeError(f"a checkpoint holds no such array: {where} is of {dtype}")
        if isinstance(value, np.generic):
            return {"$scalar": [dtype.str, value.tobytes().hex()]}
        if dtype.name in _ARRAYS and dtype.isnative:
            return {"$array": [tensors.put(path, torch.from_numpy(np.array(value, order="C")), value)]}
        raw = torch.frombuffer(bytearray(value.tobytes() or b"\0"), dtype=torch.uint8)
        return {"$array": [tensors.put(path, raw, value), dtype.str, list(value.shape)]}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= 64 else {"$int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, (*path, str(n)), tensors) for n, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        tree = {
            _key(key, path): _encode(item, (*path, _key(key, path)), tensors) for key, item in value.items()
        }
        # One that looks like a mark of ours is marked itself.
        return {"$dict": list(tree.items())} if len(tree) == 1 and next(iter(tree))[:1] == "$" else tree
    raise TypeError(f"a checkpoint holds plain data: {where} is of {type(value).__name__}")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if len(value) != 1 or not mark.startswith("$"):
        return {key: _decode(item, tensors) for key, item in value.items()}
    content = value[mark]
    if mark == "$tensor":
        return tensors.pop(content)
    if mark == "$array" and len(content) == 1:
        return tensors.pop(content[0]).numpy()
    if mark == "$array":
        name, dtype, shape = content
        return _array(tensors.pop(name).numpy().tobytes(), dtype, tuple(shape))
    if mark == "$scalar":
        return _array(bytes.fromhex(content[1]), content[0], ())[()]
    if mark == "$int":
        return int(content, 16)
    if mark == "$float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[content]
    if mark == "$tuple":
        return tuple(_decode(item, tensors) for item in content)
    if mark == "$dict":
        return {key: _decode(item, tensors) for key, item in content}
    raise ValueError(f"there is no {mark!r}")


def _array(content: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    if kind.kind not in _KINDS:
        raise ValueError(f"there are no arrays of {kind}")
    return np.ndarray(shape, kind, content or b"\0").copy()


def _dump(tree: Any) -> bytes:
    return (json.dumps(tree, indent=1, allow_nan=False) + "\n").encode()


def _manifest(files: Mapping[str, bytes], step: int | None = None) -> bytes:
    listed = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    return _dump({"format": _FORMAT, "step": step, "files": listed})


def _read(path: Path, size: int | None) -> bytes:
    """A file's content, which has `size` bytes; None: few."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        if size is None:
            raise
        raise CheckpointError(f"{path} is missing") from None
    if not stat.S_ISREG(info.st_mode):
        raise CheckpointError(f"{path} is refused: it is a link, or no file")
    if size is None and info.st_size > _MANIFEST_LIMIT:
        raise CheckpointError(f"{path} is damaged: it has {info.st_size} bytes, more than {_MANIFEST_LIMIT}")
    if size is not None and info.st_size != size:
        raise CheckpointError(f"{path} is damaged: it has {info.st_size} bytes, not {size}")
    with path.open("rb") as file:
        return file.read(info.st_size)


def _checkpoints(folder: Path) -> list[Path]:
    """What is named like a checkpoint, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [(int(match[1]), not match[2], match[0]) for match in map(_NAME.fullmatch, names) if match]
    return [folder / name for _, _, name in sorted(found, reverse=True)]


def _prune(folder: Path, step: int, keep: int) -> None:
    """Leave the newest `keep` up to this step, and the best."""
    best = folder / "best"
    target = best.readlink().name if best.is_symlink() else ""
    found = _checkpoints(folder)
    up_to = [path.name for path in found if int(path.name) <= step]
    kept = {*up_to[:keep], target}
    if target and target not in up_to:  # of a step that the run went back to before
        best.unlink()
        kept.remove(target)
    for path in found:
        if path.name not in kept:
            disk.remove(path)


def _tidy(folder: Path) -> None:
    """Remove what writers left that were killed; a checkpoint that one had set aside gets its name back."""
    for path in list(folder.iterdir()):
        if path.name[-1] == "~" and _NAME.fullmatch(path.name):
            if os.path.lexists(named := path.with_name(path.name[:-1])):
                disk.remove(path)
            else:
                path.replace(named)
        elif disk.is_left(path):
            disk.remove(path)
