"""Asked before each batch of a restore or a purge: may it go on?"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.lock import Lock, clock
from registry_gc.locking.holder import LockLost


class Changed(Exception):
    """The lock is lost, or the guard says no more what it said: nothing further may be done."""


class StillAllowed(msgspec.Struct):
    """Looks at signals each time, at lock and guard when the last look is *within* seconds old.

    ``check``: the guard; None where it does not matter who writes.
    """

    lock: Lock
    interrupts: Interrupts
    check: Callable[[], Verdict] | None = None
    within: float = 0.0
    _looked: float = -float("inf")

    def __call__(self) -> None:
        """Return where it may go on.

        :raises Changed: it may not.
        :raises Interrupted: somebody asked for an end.
        :raises StorageError: that could not be found out.
        """
        self.interrupts.check()
        now = clock()
        if now - self._looked < self.within:
            return
        self._looked = now
        try:
            self.lock.verify()
        except LockLost as error:
            raise Changed(f"stopped: {error}; run again to go on") from error
        verdict = self.check() if self.check is not None else None
        if verdict is not None and not verdict.allowed:
            reasons = "; ".join(finding.message for finding in verdict.findings)
            raise Changed(f"stopped: {reasons}; run again to go on")
