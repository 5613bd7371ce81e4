"""Files, folders and links on a disk, which a crash leaves whole or not there. Needs no torch."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

__all__ = ["hidden", "is_left", "link", "remove", "swap", "sync", "write", "write_file"]

_HIDDEN = re.compile(r"\..+\.([0-9]+)\.tmp")


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never a torn one.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.disk import write_file
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_file(folder / "result.json", b"{}")
        >>> [file.name for file in folder.iterdir()]
        ['result.json']
    """
    temporary = hidden(path)
    try:
        write(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def hidden(path: Path) -> Path:
    """The name under which something is made that is to be called `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_left(path: Path) -> bool:
    """Whether this was being made by a process that is there no more."""
    match = _HIDDEN.fullmatch(path.name)
    return match is not None and not _alive(int(match[1]))


def write(path: Path, content: bytes) -> None:
    """Write a file that is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the names in a folder reach the disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def swap(temporary: Path, path: Path) -> None:
    """Give a folder its name. One that had it is set aside meanwhile, with "~" after its name."""
    if not os.path.lexists(path):
        temporary.replace(path)
        return
    aside = path.with_name(f"{path.name}~")
    path.replace(aside)
    try:
        temporary.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    remove(aside)


def link(path: Path, target: str) -> None:
    """Let a symbolic link lead to `target`, in place of what had its name."""
    if path.is_dir() and not path.is_symlink():  # of a copy made by a program that follows links
        remove(path)
    temporary = hidden(path)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target, target_is_directory=True)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; a folder first loses its name, so that no half of one is found."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        nameless = hidden(path)
        path.replace(nameless)
        shutil.rmtree(nameless)


def _alive(pid: int) -> bool:
    """Whether another process of this number runs. In a container the one that died may have had ours."""
    if pid == os.getpid() or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
