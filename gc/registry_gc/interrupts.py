"""SIGINT and SIGTERM: at once while nothing is deleted, at the next delete afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # not an error: somebody asked
    """The operator, or the system, asked this run to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Remembers which signal asked for an end; raises it wherever that is safe."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._deferred = 0

    def __call__(self) -> bool:
        """Tell whether a signal has come."""
        return self.number is not None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both signals; only the main thread may, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only remember signals: the block asks for them at moments of its own choice."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def check(self) -> None:
        """Raise the signal that came while it was only remembered.

        :raises Interrupted: there was one.
        """
        if self.number is not None:
            raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self._deferred:
            raise Interrupted(self.number)
