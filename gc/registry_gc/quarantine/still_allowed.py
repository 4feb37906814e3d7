"""Asked before each batch of a restore or a purge, and before a further try: may it go on?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from registry_drivers.base import Storage
from registry_drivers.errors import StorageError
from registry_drivers.withdrawal import unless_withdrawn
from registry_gc.guard import Verdict, objections
from registry_gc.interrupts import Interrupts
from registry_gc.lock import Lock, clock
from registry_gc.locking.holder import LockLost

_LOOK_AGAIN = 10.0
"""Seconds after which lock and guard are looked at again, at the latest."""


class Changed(Exception):
    """The lock is lost, or the guard says no more what it said: nothing further may be done."""


class StillAllowed(msgspec.Struct):
    """Looks at signals each time; at lock and guard unless the last look is ``within`` seconds old.

    ``check``: the guard. Who has said no once has said no.
    """

    lock: Lock
    interrupts: Interrupts
    check: Callable[[], Verdict]
    within: float
    _looked: float = -float("inf")
    _changed: Changed | None = None

    @classmethod
    def on(
        cls,
        storage: Storage,
        lock: Lock,
        interrupts: Interrupts,
        check: Callable[[], Verdict],
    ) -> StillAllowed:
        """Looks at every batch on a filesystem, where that is cheap; else every ten seconds."""
        return cls(lock, interrupts, check, 0.0 if storage.capabilities.folders else _LOOK_AGAIN)

    def __call__(self) -> None:
        """Return where it may go on.

        :raises Changed: it may not.
        :raises Interrupted: somebody asked for an end.
        :raises StorageError: that could not be found out.
        """
        self.interrupts.check()
        if self._changed is not None:
            raise self._changed
        now = clock()
        if now - self._looked < self.within:
            return
        self._looked = now
        try:
            self._ask()
        except Changed as changed:
            self._changed = changed
            raise

    def _ask(self) -> None:
        try:
            self.lock.verify()
        except LockLost as error:
            raise Changed(f"stopped: {error}; run again to go on") from error
        verdict = self.check()
        if not verdict.allowed:
            reasons = "; ".join(finding.message for finding in objections(verdict.findings))
            raise Changed(f"stopped: {reasons}; run again to go on")


@contextmanager
def while_allowed(look: Callable[[], None]) -> Iterator[None]:
    """Nothing that fails in passing is tried again in this block unless *look* returns.

    :raises Exception: what *look* has raised, at the end of the block.
    """
    said: list[Exception] = []

    def allowed() -> bool:
        try:
            look()
        except Exception as error:
            said.append(error)
            return False
        return True

    try:
        with unless_withdrawn(allowed):
            yield
    except StorageError as error:
        if said:
            # It is why nobody tried again.
            raise said[0] from error
        raise
    if said:
        raise said[0]
