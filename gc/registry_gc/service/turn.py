"""A registry is brought back only while no run deletes: whoever brings it back holds the lock.

Of two runs that overlap, one may be refused while the other deletes; and a run that was killed
has let go of the lock before its registry is up again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry_drivers.base import Storage
from registry_drivers.errors import StorageError
from registry_gc.catalog import is_registry
from registry_gc.lock import Holder, Lock, LockHeld, LockUnsafe
from registry_gc.service.processes import Process

_POLL_SECONDS = 0.2
_MOST_POLL_SECONDS = 5.0


@contextmanager
def while_nobody_deletes(storage: Storage, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of *storage*, for as long as it takes to get it from a run that is alive.

    There is no end to the waiting: to start a registry under a delete is worse than to start it
    late, and a holder that is dead loses the lock. Where the lock cannot be had for another
    reason, it is done without: no more may keep a registry down than has to.

    :param note: told who is waited for, and what was in the way.
    """
    lock = _acquired(storage, note)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _acquired(storage: Storage, note: Callable[[str], None]) -> Lock | None:
    told = None
    pause = _POLL_SECONDS
    while True:
        try:
            if not is_registry(storage):
                return None  # a disk that is gone: no lock is to lie in its mount point
            return Lock.acquire(storage, str(uuid.uuid4()))
        except LockHeld as held:
            if held.holder is not None and _is_this_process(held.holder):
                return None  # it could not be removed, and so keeps others out
            who = str(held.holder)
            if who != told:
                note(f"the registry stays out of use until another run has ended: {held}")
                told = who
        except (LockUnsafe, StorageError) as error:
            note(f"the registry is brought back without the lock: {error}")
            return None
        time.sleep(pause)
        pause = min(2 * pause, _MOST_POLL_SECONDS)


def _is_this_process(holder: Holder) -> bool:
    here = Process.current()
    return all(getattr(holder, name) == getattr(here, name) for name in Process.__struct_fields__)
