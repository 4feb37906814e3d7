"""One run at a time on one storage.

The lock is an object, created on the condition that there is none, and refreshed while the run
lives. On a file system the run also holds a ``flock`` on ``<root>/docker/registry``, which needs
no space. Times are the storage's own, so that the clocks of machines need not agree. How it is
got is in :mod:`registry_gc.locking.claim`, its errors are in :mod:`registry_gc.locking.holder`.

Whoever holds the lock reads it again before each batch of deletes (:meth:`Lock.verify`): a holder
that wakes up after a takeover deletes nothing more.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from uuid import uuid4

from msgspec.structs import asdict, replace

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import AlreadyExists, NotFound, StorageError
from registry_drivers.withdrawal import unless_withdrawn
from registry_gc.locking.claim import (
    TAKEOVER,
    Claim,
    is_full,
    reason,
    remove,
    remove_own,
    take_flock,
)
from registry_gc.locking.contest import CLAIM, claim_path
from registry_gc.locking.folder_lock import FolderLock
from registry_gc.locking.holder import (
    FOLDER,
    LOCK,
    STALE_SECONDS,
    Found,
    Holder,
    LockError,
    LockHeld,
    LockLost,
    LockUnsafe,
    held,
    look,
    moment,
    read_holder,
)
from registry_gc.machine.processes import Process

__all__ = [
    "Holder", "Lock", "LockError", "LockHeld", "LockLost", "LockUnsafe",
    "blocker", "to_unlock", "unlock",
]  # fmt: skip

REFRESH_SECONDS = 30.0
_HURRY_SECONDS = 5.0
"""How long a storage that has gone away is asked once somebody has asked for an end."""
# Counts on while the machine is suspended, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Seconds on a clock that nobody sets, and that counts on while the machine is suspended."""
    return time.clock_gettime(_CLOCK)


class Lock:
    """Held from :meth:`acquire` to :meth:`release`; also a context manager.

    ``notices`` are lines that the operator should see; releasing may add to them.
    """

    def __init__(
        self,
        storage: Storage,
        holder: Holder,
        flock: FolderLock | None,
        *,
        stored: bool,
        listed: bool = False,
    ) -> None:
        self.notices: list[str] = []
        self._storage = storage
        self._holder = holder
        self._flock = flock
        # False while a full disk has room for a flock only.
        self._stored = stored
        # True where others see a claim, and the lock object proves nothing.
        self._listed = listed
        self._lost = ""
        self._verified = -float("inf")
        self._refreshed = clock()
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls, storage: Storage, run: str, *, refresh_seconds: float | None = REFRESH_SECONDS
    ) -> Lock:
        """Take the lock of *storage* for *run*.

        :param refresh_seconds: how often a thread refreshes it; None leaves that to the caller.
        :raises LockHeld: another run has it.
        :raises LockUnsafe: the storage does not keep two runs apart.
        :raises StorageError: the storage could not be asked, or not written to.
        """
        flock, notice = take_flock(storage)
        try:
            holder = _holder(storage, run, flock=flock is not None)
            claim = Claim(storage, holder, flock)
            stored = claim.win()
            lock = cls(storage, holder, flock, stored=stored, listed=claim.listed)
        except BaseException:
            if flock is not None:
                flock.release()
            raise
        try:
            lock.notices += [notice, *claim.notices] if notice else claim.notices
            if refresh_seconds is not None:
                lock._start(refresh_seconds)
        except BaseException:
            # No room for another thread, as a rule: whoever asked has nothing to release.
            lock.release()
            raise
        return lock

    @property
    def holder(self) -> Holder:
        """What the lock object says of this run."""
        return self._holder

    @property
    def lost(self) -> str:
        """Why the lock is known to be ours no more; empty where it is not. Releasing looks too."""
        return self._lost

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def verify(self, *, within: float = 0.0) -> None:
        """Look whether the lock is still ours; one read.

        :param within: seconds for which an earlier look is good enough.
        :raises LockLost: it is not, and never will be again.
        :raises StorageError: that could not be found out.
        """
        if self._lost:
            raise LockLost(self._lost)
        now = clock()
        if now - self._verified < within:
            return
        if self._stored and now - self._refreshed > STALE_SECONDS:
            # Others might have had it since, and have let it go; nobody watched the registry.
            self._lose(f"this run stood still for {(now - self._refreshed) / 60:.0f} minutes")
        if self._flock is not None and not self._flock.still_there():
            self._lose("the storage's folder is not the one that was locked: was it unmounted?")
        try:
            holder = read_holder(self._storage)
        except NotFound:
            if self._stored:
                self._lose("somebody removed it")
        else:
            if holder is None:
                self._lose("its object was overwritten")
            elif holder.token != self._holder.token:
                self._lose(f"{holder} took it over")
        self._verified = now

    def refresh(self) -> None:
        """Say that this run is alive. On a full disk nothing is written; the flock stays.

        :raises LockLost: the lock is no longer ours.
        :raises StorageError: it could not be read or written.
        """
        with self._guard:
            if self._ended.is_set():
                return
            self.verify()
            began = clock()
            self._holder = replace(self._holder, time=moment(self._storage))
            try:
                if self._listed:
                    self._storage.write(claim_path(self._holder), self._holder.encode())
                self._storage.write(LOCK, self._holder.encode(), if_absent=not self._stored)
                self._stored = True
            except AlreadyExists:
                return  # written since it was looked for; the next look says by whom
            except StorageError as error:
                if self._flock is None or not is_full(error):
                    raise
            if clock() - began > STALE_SECONDS:
                # It was there when it was looked for, and may have been another's since.
                self._lose("writing it took longer than others wait for it")
            self._refreshed = clock()

    def release(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Remove the lock where it is still ours, and let go of the flock; never raises.

        :param interrupted: whether somebody waits for the end of this run: then a storage that has
            gone away is not asked for minutes, and the lock may stay behind.
        """
        if os.getpid() != self._holder.pid:
            return  # a forked worker has a copy of this object, and no lock
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._guard, unless_withdrawn(_in_a_hurry(interrupted)):
            if self._stored and not self._lost:
                self._stored = False
                try:
                    if not remove_own(self._storage, self._holder):
                        self._lost = (
                            "the lock is lost: at the end it was gone, or another's; another run "
                            "may have deleted at the same time"
                        )
                    if self._listed:
                        remove(self._storage, [claim_path(self._holder)])
                except StorageError as error:
                    self.notices.append(
                        "the lock could not be removed and keeps runs on other machines out for"
                        f" {STALE_SECONDS / 60:.0f} minutes, or until `registry-gc unlock`: {error}"
                    )
            elif not self._lost and self._flock is not None and self._flock.still_there():
                # A full disk had room for the folder of the lock, and not for the lock.
                with suppress(StorageError):
                    remove(self._storage, [])
            if self._flock is not None:
                self._flock.release()

    def _start(self, seconds: float) -> None:
        thread = threading.Thread(
            target=self._keep, args=(seconds,), name="lock refresh", daemon=True
        )
        thread.start()
        # Only now: nobody can wait for one that has not begun.
        self._thread = thread

    def _keep(self, seconds: float) -> None:
        # Whoever lets the lock go waits for this thread.
        with unless_withdrawn(lambda: not self._ended.is_set()):
            while not self._ended.wait(seconds):
                try:
                    self.refresh()
                except LockLost:
                    return  # verify() tells whoever is about to delete
                except StorageError:
                    continue  # a storage that stays away fails verify(), too, before any delete

    def _lose(self, why: str) -> None:
        self._lost = f"the lock is lost: {why}; nothing more is deleted by this run"
        raise LockLost(self._lost)


def _in_a_hurry(interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """Whether what failed may be tried again: for seconds only after *interrupted*."""
    until: float | None = None

    def wanted() -> bool:
        nonlocal until
        if until is None and interrupted():
            until = clock() + _HURRY_SECONDS
        return until is None or clock() < until

    wanted()
    return wanted


def _holder(storage: Reader, run: str, *, flock: bool) -> Holder:
    now = moment(storage)
    process = asdict(Process.current())
    return Holder(**process, run=run, time=now, since=now, token=uuid4().hex, flock=flock)


def blocker(storage: Reader) -> LockHeld | None:
    """Why a run would not get the lock now, without writing anything; None where it would.

    :raises StorageError: the storage could not be asked.
    """
    flock = None
    try:
        flock, _ = take_flock(storage)
        found = look(storage)
        if found is not None:
            reason(storage, found, flock)
    except LockHeld as error:
        return error
    finally:
        if flock is not None:
            flock.release()
    return None


def unlock(storage: Storage) -> bool:
    """Remove the lock on the operator's word; false when there is none.

    :raises LockHeld: its holder is known to be alive.
    :raises StorageError: it could not be removed.
    """
    with _left_behind(storage) as found:
        names = storage.children(f"{FOLDER}/").files
        ours = [f"{FOLDER}/{name}" for name in names if name.startswith((TAKEOVER, CLAIM))]
        remove(storage, [*ours, LOCK] if found is not None else ours)
        return found is not None


def to_unlock(storage: Reader) -> Found | None:
    """What :func:`unlock` would remove now; None where there is no lock.

    :raises LockHeld: its holder is known to be alive.
    :raises StorageError: the storage could not be asked.
    """
    with _left_behind(storage) as found:
        return found


@contextmanager
def _left_behind(storage: Reader) -> Iterator[Found | None]:
    """A lock whose holder is not known to be alive, while no run of this machine begins."""
    flock, _ = take_flock(storage)
    try:
        found = look(storage)
        if found is not None and found.holder is not None and found.holder.alive():
            raise held(storage, found)
        yield found
    finally:
        if flock is not None:
            flock.release()
