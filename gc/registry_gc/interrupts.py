"""SIGINT, SIGTERM and the deadline: at once while nothing is deleted, else at the next delete.

A terminal or connection that is lost (SIGHUP) ends a run as SIGTERM does, but where whoever
started this run has said that it shall not matter, as ``nohup`` does.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_AGAIN_SECONDS = 0.05
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

ends_with_the_work = False
"""Whether this process is there for one command. Then SIGINT ends it at once when that is done:
Python's own handler would raise ``KeyboardInterrupt`` in whatever is left."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that come in this block are handled at its end; only in the main thread.

    For what must not be left half-way, by whoever does not know who handles them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    found = [(number, signal.getsignal(number)) for number in _NUMBERS]
    before = {number: handler for number, handler in found if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in came:
            before[signal.Signals(caught)](caught, None)


class Interrupted(Exception):  # not an error: somebody asked
    """The operator, or the system, asked this run to end; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell calls a process that such a signal ended; 5 for the deadline.

        A lost terminal is SIGTERM's, so that those who call this know two codes.
        """
        if self.number == signal.SIGALRM:
            return 5
        return 128 + (signal.SIGTERM if self.number == signal.SIGHUP else self.number)

    @property
    def reason(self) -> str:
        """Why the run ended, for people."""
        if self.number == signal.SIGALRM:
            return "stopped at the deadline; whatever was deleted by then was dead; run it again"
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
        """Handle the signals; only the main thread may, elsewhere this does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        told, sys.unraisablehook = sys.unraisablehook, self._unraisable(sys.unraisablehook)
        try:
            yield
        finally:
            sys.unraisablehook = told
            for number, handler in before.items():
                last = ends_with_the_work and handler is signal.default_int_handler
                signal.signal(number, signal.SIG_DFL if last else handler)

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

    def _unraisable(
        self, told: Callable[[sys.UnraisableHookArgs], Any]
    ) -> Callable[[sys.UnraisableHookArgs], Any]:
        """Where a finalizer was interrupted, nobody gets the exception, and it is raised again."""

        def hook(what: sys.UnraisableHookArgs) -> None:
            if not isinstance(what.exc_value, Interrupted):
                told(what)
                return
            # Not from here, which is in the finalizer still.
            left = threading.Event()
            arguments = what.exc_value.number, left
            threading.Thread(target=self._send_again, args=arguments, daemon=True).start()
            left.set()

        return hook

    def _send_again(self, number: int, left: threading.Event) -> None:
        left.wait()
        time.sleep(_AGAIN_SECONDS)
        main = threading.main_thread().ident
        # Who has ended by then needs no signal, and would die of it.
        if main is not None and signal.getsignal(number) == self._handle:
            signal.pthread_kill(main, number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self._deferred:
            raise Interrupted(self.number)
