"""What the processes of one machine tell each other: in shared memory, a byte by socket to say it is there.

gloo, which torch has for CPUs, sends even these by TCP: a third of a millisecond for one number, one for the
gradient of a small network, as much as its update takes. This takes 20 microseconds for either.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Neighbours"]

_BYTES = 2**20  # of a process, at a time
_LOOKS = 30_000  # some two microseconds each


class Neighbours:
    """The processes of one machine, which all make the same calls in the same order.

    Args:
        rank: which of them this is.
        size: how many there are.
        timeout: seconds that one waits for the others.
        tell: bytes -> those of process 0, in every process; called three times.

    Raises:
        OSError: no socket or shared memory is to be had.

    Example:
        >>> import numpy as np
        >>> from pgce.neighbours import Neighbours
        >>> alone, numbers = Neighbours(0, 1, timeout=10.0, tell=lambda told: told), np.array([1.0, 2.0])
        >>> alone.add(numbers)
        >>> numbers
        array([1., 2.])
        >>> alone.gather(b"here")
        [b'here']
        >>> alone.close()
    """

    def __init__(self, rank: int, size: int, timeout: float, tell: Callable[[bytes], bytes]) -> None:
        self._rank, self._turn = rank, 0
        self._others: list[socket.socket] = []
        shared = Path("/dev/shm")
        place = shared if rank == 0 and os.access(shared, os.W_OK) else None
        own = tempfile.mkdtemp(prefix="pgce-", dir=place) if rank == 0 else ""
        folder = Path(tell(own.encode()).decode())
        try:
            if rank == 0:
                with (folder / "sums").open("wb") as file:
                    file.truncate(2 * size * _BYTES)
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(timeout)
                door.bind(str(folder / str(rank)))
                door.listen(size)
                tell(b"")  # all doors are there, and the file
                with (folder / "sums").open("r+b") as file:
                    self._memory = mmap.mmap(file.fileno(), 0)
                for other in range(rank):  # each is called upon by those after it
                    caller = socket.socket(socket.AF_UNIX)
                    caller.settimeout(timeout)
                    caller.connect(str(folder / str(other)))
                    self._others.append(caller)
                self._others += [door.accept()[0] for _ in range(rank + 1, size)]
        finally:
            with contextlib.suppress(OSError):
                tell(b"")  # all have come in
            if rank == 0:
                shutil.rmtree(folder)
        waits = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        for each in self._others:
            each.setblocking(True)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, waits)
        self._slots = np.frombuffer(self._memory, np.uint8).reshape(2, size, _BYTES)

    def add(self, numbers: NDArray[Any]) -> None:
        """Make the numbers, of the same shape and type in every process, their sums: the same bits in all.

        Args:
            numbers: contiguous, written over.

        Raises:
            RuntimeError: a process has ended, or did not come in time.
        """
        flat = numbers.reshape(-1)
        most = _BYTES // flat.itemsize
        for start in range(0, len(flat), most):
            piece = flat[start : start + most]
            slots = self._next_slots()[:, : piece.nbytes].view(flat.dtype)
            slots[self._rank] = piece
            self._meet()
            with np.errstate(over="ignore", invalid="ignore"):  # gradients that are not finite are seen later
                np.add.reduce(slots, axis=0, out=piece)

    def gather(self, content: bytes) -> list[bytes]:
        """What every process has to tell, of any length, by rank.

        Raises:
            RuntimeError: a process has ended, or did not come in time.
        """
        told = [b""] * (1 + len(self._others))
        most, start, longest = _BYTES - 8, 0, 1
        while start < longest:
            slots = self._next_slots()
            lengths = slots[:, :8].view(np.int64)[:, 0]
            lengths[self._rank] = len(content)
            piece = content[start : start + most]
            slots[self._rank, 8 : 8 + len(piece)] = np.frombuffer(piece, np.uint8)
            self._meet()
            longest = int(lengths.max())
            for other, slot in enumerate(slots):
                told[other] += slot[8 : 8 + max(0, min(most, int(lengths[other]) - start))].tobytes()
            start += most
        return told

    def _next_slots(self) -> NDArray[np.uint8]:
        """A slot of each process. The last ones may still be read by another."""
        self._turn = 1 - self._turn
        slots: NDArray[np.uint8] = self._slots[self._turn]
        return slots

    def _meet(self) -> None:
        """Go on as soon as all have come here."""
        try:
            for other in self._others:
                other.send(b"1")
            for other in self._others:
                if not _received(other):
                    raise ConnectionResetError("it has ended")
        except OSError as error:
            raise RuntimeError(f"a process that trains with this one is lost: {error}") from error

    def close(self) -> None:
        """Let the others know that this one takes no part any more."""
        for other in self._others:
            other.close()


def _received(other: socket.socket) -> bytes:
    """A byte. Who falls asleep wakes up late, on a core that has cooled down: so first look for it."""
    for _ in range(_LOOKS):
        try:
            return other.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.sched_yield()  # there may be fewer cores than processes
    return other.recv(1)
