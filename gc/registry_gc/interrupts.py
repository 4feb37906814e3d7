"""SIGINT, SIGTERM and the deadline: at once while nothing is deleted, else at the next delete."""

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

    @property
    def exit_code(self) -> int:
        """What a shell calls a process that such a signal ended; 5 for the deadline."""
        return 5 if self.number == signal.SIGALRM else 128 + self.number

    @property
    def reason(self) -> str:
        """Why the run ended, for people."""
        if self.number == signal.SIGALRM:
            return "stopped at the deadline; what was deleted was dead; run again to go on"
        return f"interrupted by {self}"


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
    def until(self, seconds: float | None) -> Iterator[None]:
        """Ask for an end in so many seconds; None: never. Only in an installed main thread.

        The timer counts the seconds that pass, so a clock that is set moves no deadline.
        """
        if seconds is None:
            yield
            return
        before, timer = signal.signal(signal.SIGALRM, self._handle), (0.0, 0.0)
        try:
            # Zero would mean never.
            timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, before)

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
