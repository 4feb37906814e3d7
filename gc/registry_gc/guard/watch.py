"""Asks the guard again and again while a run finds out what is dead.

A large registry is listed for hours. Whoever lets it take writes meanwhile, and makes it
read-only again before the first delete, would not be seen by a look at the beginning and one at
the end; what was pushed in between rests on blobs that the listing takes for dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from registry_drivers.errors import StorageError
from registry_gc.guard import Verdict

SECONDS = 15.0
"""Between two looks. A registry takes seconds to restart, once to open it and once to close it."""


class GuardWatch:
    """A context manager; ``other`` is the first verdict that was not "allowed", and stays."""

    def __init__(self, check: Callable[[], Verdict], seconds: float = SECONDS) -> None:
        self.other: Verdict | None = None
        self._check = check
        self._seconds = seconds
        self._asked = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="guard", daemon=True)

    def __enter__(self) -> GuardWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def asked(self) -> None:
        """Somebody else has just asked the guard: a look of our own would tell no more."""
        self._asked = time.monotonic()

    def _keep(self) -> None:
        while not self._ended.wait(max(0.0, self._asked + self._seconds - time.monotonic())):
            if time.monotonic() < self._asked + self._seconds:
                continue
            self.asked()
            try:
                verdict = self._check()
            except StorageError:
                continue  # a storage that stays away fails the run by itself
            if verdict.verdict != "allowed":
                self.other = verdict
                return
