"""Files that survive: written whole or not at all, tensors as safetensors and the rest as JSON, no pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor

__all__ = ["load_tensors", "save_tensors", "write_file"]


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a torn one.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.checkpoint import write_file
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_file(folder / "result.json", b"{}")
        >>> [file.name for file in folder.iterdir()]
        ['result.json']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors (a model's `state_dict()`, say) to a safetensors file.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from pgce.checkpoint import load_tensors, save_tensors
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_tensors(path, torch.nn.Linear(2, 1).state_dict())
        >>> sorted(load_tensors(path))
        ['bias', 'weight']
    """
    # Cloned: parameters are views of one flat buffer, and each is to be a tensor of its own in the file.
    own = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    write_file(path, safetensors.torch.save(own))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load_file(path)
