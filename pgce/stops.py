"""Signals that stop a run: the first is noted, so that the run can end cleanly."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from pgce.records import STOPS

__all__ = ["Stops"]

_MOMENT = 0.3  # seconds


class Stops:
    """Notes the first signal to stop between `catch` and `restore`; a second does what it always did.

    Those of one moment are one: a terminal, the launcher of several processes and the kernel at a launcher's
    death each send their own.

    Attributes:
        seen: the first signal's number, None before it.

    Example:
        >>> import signal
        >>> from pgce.stops import Stops
        >>> stops = Stops()
        >>> stops.catch()
        >>> signal.raise_signal(signal.SIGINT)
        >>> stops.restore()
        >>> stops.seen == signal.SIGINT
        True
    """

    def __init__(self) -> None:
        self.seen: int | None = None
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def catch(self) -> None:
        """Handle signals to stop from now on."""
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            self._before = {number: signal.signal(number, self._handle) for number in STOPS.values()}

    def _handle(self, number: int, frame: object) -> None:
        if self.seen is None:
            self.seen, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > _MOMENT:
            self.restore()
            signal.raise_signal(number)

    @property
    def waited(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return 0.0 if self.seen is None else time.monotonic() - self._first

    def restore(self) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
