"""Asks the guard again and again while a run finds out what is dead.

A large registry is listed for hours. Whoever lets it take writes meanwhile, and makes it
read-only again before the first delete, would not be seen by a look at the beginning and one at
the end; what was pushed in between rests on blobs that the listing takes for dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from registry_drivers.errors import StorageError
from registry_drivers.withdrawal import unless_withdrawn
from registry_gc.guard import Finding, Verdict

SECONDS = 15.0
"""Between two looks. A registry takes seconds to restart, once to open it and once to close it."""

PAUSES = (1.0, 3.0)
"""Seconds before an answer that may be a passing fault is asked for again."""

_JOIN_SECONDS = 2.0
WRITING = frozenset({"registry-writable", "registry-answers"})
"""What is found where a registry takes writes: whoever says so once has taken some."""


class GuardWatch:
    """A context manager; ``other`` is the first verdict that was not "allowed", and stays."""

    def __init__(
        self,
        check: Callable[[], Verdict],
        seconds: float = SECONDS,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.other: Verdict | None = None
        self._check = check
        self._seconds = seconds
        self._pauses = pauses
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
        # It may be asking an address that does not answer; the end of a run does not wait for that.
        self._thread.join(_JOIN_SECONDS)

    def check(self) -> Verdict:
        """What the guard says now, or what has been against it since the beginning."""
        if self.other is not None:
            return self.other
        self.asked()
        return self._check()

    def asked(self) -> None:
        """Somebody else has just asked the guard: a look of our own would tell no more."""
        self._asked = time.monotonic()

    def _keep(self) -> None:
        # Nor is the storage asked for minutes, if that is what the guard does.
        with unless_withdrawn(lambda: not self._ended.is_set()):
            self._watch()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._asked + self._seconds - time.monotonic())):
            if time.monotonic() < self._asked + self._seconds:
                continue
            verdict = self._verdict()
            if verdict is not None:
                self.other = verdict
                return

    def _verdict(self) -> Verdict | None:
        """What the guard says, where that is not "allowed"; what may pass is asked about again."""
        verdict = None
        for pause in (0.0, *self._pauses):
            if self._ended.wait(pause):
                return None
            self.asked()
            try:
                verdict = self._check()
            except StorageError:
                return None  # a storage that stays away fails the run by itself
            except Exception as error:
                # Nobody sees what a thread raises; and nobody would watch any more.
                finding = Finding("guard-failed", f"the guard could not be asked: {error!r}")
                verdict = Verdict("unknown", (finding,))
            if verdict.verdict == "allowed":
                return None
            if any(finding.code in WRITING for finding in verdict.findings):
                break
        return verdict
