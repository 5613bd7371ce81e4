"""The folder of a run: its name, its lock, and whether what it holds is of the same run."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["Lock", "differences", "named", "stamped"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST = 200  # of the 255 bytes that file systems allow


def named(root: Path, name: str) -> Path:
    """The folder of that name in the root, which need not exist.

    Raises:
        ValueError: a name that is not 1 to 100 letters, digits, points, dashes and underscores, the first a
            letter or digit; or a symbolic link, or a file, of that name.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.folders import named
        >>> named(pathlib.Path(tempfile.mkdtemp()), "first").name
        'first'
        >>> named(pathlib.Path("runs"), "../elsewhere")
        Traceback (most recent call last):
        ...
        ValueError: a run's name is 1 to 100 letters, digits, points, dashes, ...: it is '../elsewhere'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a run's name is 1 to 100 letters, digits, points, dashes, underscores: it is {name!r}"
        )
    path = root / name
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"a run's folder is a folder of its own: {str(path)!r} is a link or a file")
    return path


def stamped(root: Path, name: str) -> Path:
    """A folder {name}__{time} that did not exist: two runs that start in the same second get two.

    What an environment's id, or a path, may hold and a file's name may not, such as a slash or a colon,
    becomes a dash; but at the beginning, where a point would hide the folder. Of a long name the end is kept.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.folders import stamped
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> stamped(root, "a") != stamped(root, "a")
        True
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)[-_LONGEST:].lstrip(".-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = root / f"{name}__{stamp}{suffix}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"1000 runs began this second in {root}")


class Lock:
    """One run a folder: held until released or until its process ends, however that ends.

    Args:
        folder: of the run.
        patience: seconds to wait for it. Who lists runs has it for less, to see whether it is held.

    Raises:
        ValueError: another run holds it.

    Example:
        >>> import tempfile, pathlib
        >>> from pgce.folders import Lock
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> lock = Lock(folder)
        >>> Lock(folder)
        Traceback (most recent call last):
        ...
        ValueError: one run at a time has a folder: ... is that of process ... on ...
        >>> lock.release()
        >>> Lock(folder).release()
    """

    def __init__(self, folder: Path, patience: float = 0.5) -> None:
        self._file: IO[str] | None = (folder / "run.lock").open("a+")
        ends = time.monotonic() + patience
        while True:
            try:
                _lock(self._file)
                break
            except OSError:
                if time.monotonic() < ends:
                    time.sleep(0.01)
                    continue
                self._file.seek(0)
                holder = self._file.read().strip() or "another process"
                self._file.close()
                told = f"one run at a time has a folder: {str(folder)!r} is that of {holder}"
                raise ValueError(told) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another run have the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _lock(file: IO[str]) -> None:
    """Raise an OSError if another process, or this one, has locked the file."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs, as "before -> now" by name.

    Example:
        >>> from pgce.folders import differences
        >>> differences({"seed": 1, "gamma": 0.9}, {"seed": 2, "gamma": 0.9})
        {'seed': '1 -> 2'}
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return {name: f"{before.get(name)!r} -> {now.get(name)!r}" for name in names}
