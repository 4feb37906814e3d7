"""A registry is brought back only when no run deletes any more: that gets the lock first.

Of two runs that overlap, one may be refused while the other deletes. The lock is let go again
before the command itself: that may unmount the storage, or be another command of ours.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry_drivers.base import Storage
from registry_gc.catalog import is_registry
from registry_gc.lock import Holder, Lock, LockHeld
from registry_gc.machine.processes import Process

PATIENCE = 30.0
"""Seconds for a storage to say who has the lock."""

_POLL_SECONDS = 0.2
_MOST_POLL_SECONDS = 5.0


@contextmanager
def while_nobody_deletes(
    storage: Storage, note: Callable[[str], None], patience: float = PATIENCE
) -> Iterator[None]:
    """Hold the lock of *storage*, for as long as it takes to get it from a run that is alive.

    There is no end to that waiting: to start a registry under a delete is worse than to start it
    late, and a holder that is dead loses the lock. Where the lock cannot be had for another
    reason, or the storage does not answer, it is done without: no more may keep a registry down
    than has to.

    :param note: told who is waited for, and what was in the way.
    :param patience: seconds for the storage to answer.
    """
    asking = _Asking(storage, note)
    asking.wait(patience)
    try:
        yield
    finally:
        asking.end()


class _Asking:
    """Asks for the lock in a thread, which a storage that never answers may hold up for ever."""

    def __init__(self, storage: Storage, note: Callable[[str], None]) -> None:
        self._storage = storage
        self._note = note
        self._lock: Lock | None = None
        self._answered = time.monotonic()
        self._over = False
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._ask, name="turn", daemon=True)

    def wait(self, patience: float) -> None:
        """Return when the lock is there, or nobody knows whether it can be had."""
        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(_POLL_SECONDS)
            if self._thread.is_alive() and time.monotonic() - self._answered > patience:
                self._note("the registry is brought back without the lock: no answer")
                return

    def end(self) -> None:
        """Let the lock go, now or when it comes."""
        with self._turn:
            self._over = True
            lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _ask(self) -> None:
        lock = self._acquired()
        with self._turn:
            if not self._over:
                self._lock, lock = lock, None
        if lock is not None:
            lock.release()

    def _acquired(self) -> Lock | None:
        told = None
        pause = _POLL_SECONDS
        while not self._over:
            try:
                if not is_registry(self._storage):
                    return None  # a disk that is gone: no lock is to lie in its mount point
                return Lock.acquire(self._storage, str(uuid.uuid4()))
            except LockHeld as held:
                if held.holder is not None and _is_this_process(held.holder):
                    return None  # it could not be removed, and so keeps others out
                who = str(held.holder)
                if who != told:
                    self._note(f"the registry stays out of use until another run has ended: {held}")
                    told = who
            except Exception as error:
                self._note(f"the registry is brought back without the lock: {error}")
                return None
            time.sleep(pause)
            self._answered = time.monotonic()
            pause = min(2 * pause, _MOST_POLL_SECONDS)
        return None


def _is_this_process(holder: Holder) -> bool:
    here = Process.current()
    return all(getattr(holder, name) == getattr(here, name) for name in Process.__struct_fields__)
