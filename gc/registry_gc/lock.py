"""One run at a time on one storage.

::

    LockError
    ├── LockHeld        another run has it; nothing was changed
    ├── LockLost        it was ours and is no more: delete nothing further
    └── LockUnsafe      this storage cannot keep two runs apart

The lock is an object, created on the condition that there is none, and refreshed while the run
lives. On a file system the run also holds a ``flock`` on ``<root>/docker/registry``, which needs
no space. Times are the storage's own, so that the clocks of machines need not agree.

A lock whose holder is dead is taken over. Who may do it is decided by creating a second object
on the condition that there is none, named after the very state of the lock that was found; and
since whoever holds a lock reads it again before each batch of deletes (:meth:`Lock.verify`), a
holder that wakes up after a takeover deletes nothing more.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from types import TracebackType
from uuid import uuid4

from registry_drivers.base import Deletion, Reader, Storage
from registry_drivers.errors import AlreadyExists, NotFound, StorageError
from registry_gc.folder_lock import FolderLock, FolderLockHeld, NoFolderLock
from registry_gc.holder import (
    FOLDER,
    LOCK,
    STALE_SECONDS,
    Found,
    Holder,
    look,
    moment,
    read_holder,
)
from registry_gc.processes import Process

__all__ = ["Holder", "Lock", "LockError", "LockHeld", "LockLost", "LockUnsafe", "blocker", "unlock"]

REFRESH_SECONDS = 30.0
_TAKEOVER = "lock.takeover-"
_ATTEMPTS = 5
_GENERATIONS = 100
# Counts on while the machine is suspended, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class LockError(Exception):
    """Something is wrong with the lock; the message is one line for the operator."""


class LockLost(LockError):
    """Another run took the lock over, or somebody removed it."""


class LockUnsafe(LockError):
    """The storage lets two runs create the same lock."""


class LockHeld(LockError):
    """Another run has the lock; ``holder`` is None where its object says nothing."""

    def __init__(self, message: str, holder: Holder | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class Lock:
    """Held from :meth:`acquire` to :meth:`release`; also a context manager.

    ``notices`` are lines that the operator should see; releasing may add to them.
    """

    def __init__(self, storage: Storage, run: str, flock: FolderLock | None) -> None:
        now = moment(storage)
        self.notices: list[str] = []
        self._storage = storage
        self._flock = flock
        self._holder = Holder(
            **asdict(Process.current()),
            run=run,
            time=now,
            since=now,
            token=uuid4().hex,
            flock=flock is not None,
        )
        # False while a full disk has room for a flock only.
        self._stored = False
        self._lost = ""
        self._verified = -float("inf")
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
        flock, notice = _flock(storage)
        try:
            lock = cls(storage, run, flock)
            lock.notices += [notice] if notice else []
            lock._claim()
            if refresh_seconds is not None:
                lock._start(refresh_seconds)
        except BaseException:
            if flock is not None:
                flock.release()
            raise
        return lock

    @property
    def holder(self) -> Holder:
        """What the lock object says of this run."""
        return self._holder

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
        now = time.clock_gettime(_CLOCK)
        if now - self._verified < within:
            return
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
            self._holder = replace(self._holder, time=moment(self._storage))
            try:
                self._write(LOCK, if_absent=not self._stored)
                self._stored = True
            except AlreadyExists:
                return  # written since it was looked for; the next look says by whom
            except StorageError as error:
                if self._flock is None or not _is_full(error):
                    raise

    def release(self) -> None:
        """Remove the lock where it is still ours, and let go of the flock; never raises."""
        if os.getpid() != self._holder.pid:
            return  # a forked worker has a copy of this object, and no lock
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._guard:
            if self._stored and not self._lost:
                self._stored = False
                try:
                    if self._is_ours(LOCK):
                        _remove(self._storage, [LOCK])
                except StorageError as error:
                    self.notices.append(
                        "the lock could not be removed and keeps other runs out for"
                        f" {STALE_SECONDS / 60:.0f} minutes: {error}"
                    )
            if self._flock is not None:
                self._flock.release()

    def _start(self, seconds: float) -> None:
        self._thread = threading.Thread(
            target=self._keep, args=(seconds,), name="lock refresh", daemon=True
        )
        self._thread.start()

    def _keep(self, seconds: float) -> None:
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

    def _claim(self) -> None:
        for _ in range(_ATTEMPTS):
            try:
                if self._create(LOCK):
                    self._stored = True
                    return
                found = look(self._storage)
                if found is None:
                    continue  # released between two requests
                why = _reason(self._storage, found, self._flock)
                if self._take_over(found):
                    self._stored = True
                    self.notices.append(f"the lock of {found} was taken over: {why}")
                    return
            except StorageError as error:
                if self._flock is None or not _is_full(error):
                    raise
                self._hold_flock_alone()
                return
        raise LockHeld("the lock changes hands too fast: other runs want it; try again later")

    def _take_over(self, found: Found) -> bool:
        """Replace *found* by a lock of ours; false when somebody else changed it first."""
        marks = self._win(found)
        try:
            again = look(self._storage)
            if again is None or again.data != found.data:
                return False
            self._write(LOCK)
            if not self._is_ours(LOCK):
                return False
            # With them go those of a run that was killed just here.
            names = self._storage.children(f"{FOLDER}/").files
            marks = [f"{FOLDER}/{name}" for name in names if name.startswith(_TAKEOVER)]
            return True
        finally:
            with contextlib.suppress(StorageError):
                _delete(self._storage, marks)

    def _win(self, found: Found) -> list[str]:
        """Be the one who takes over; returns what to remove afterwards.

        :raises LockHeld: another run is taking it over.
        """
        state = hashlib.sha256(found.data).hexdigest()[:16]
        marks = []
        for generation in range(_GENERATIONS):
            marks.append(f"{FOLDER}/{_TAKEOVER}{state}-{generation}")
            if self._create(marks[-1]):
                return marks
            try:
                age = self._storage.now() - self._storage.stat(marks[-1]).modified
            except NotFound:
                age = 0.0
            if age < STALE_SECONDS:
                break
            # Who won that generation died before it was done.
        raise LockHeld("another run is just taking the lock over: try again later", found.holder)

    def _hold_flock_alone(self) -> None:
        """Do without an object on a full disk; a dead run's is in the way and goes."""
        found = look(self._storage)
        if found is not None:
            if found.holder is not None and found.holder.token == self._holder.token:
                self._stored = True  # the disk was full only afterwards
                return
            _reason(self._storage, found, self._flock)
            _delete(self._storage, [LOCK])
        self.notices.append(
            "the disk is full: the lock is a flock only, which other hosts may not see"
        )

    def _create(self, path: str) -> bool:
        """Create *path* as ours; false when it is another's.

        :raises LockUnsafe: the storage would have let another run create it as well.
        """
        try:
            self._write(path, if_absent=True)
        except AlreadyExists:
            # A first try may have succeeded although its answer was lost.
            return self._is_ours(path)
        try:
            self._write(path, if_absent=True)
        except AlreadyExists:
            return True
        with contextlib.suppress(StorageError):
            _delete(self._storage, [path])
        raise LockUnsafe(
            f"{self._storage.root}: a second create of the same lock succeeds on this storage, so"
            " that two runs would not notice each other: use one with conditional writes"
        )

    def _write(self, path: str, *, if_absent: bool = False) -> None:
        self._storage.write(path, self._holder.encode(), if_absent=if_absent)

    def _is_ours(self, path: str) -> bool:
        try:
            holder = read_holder(self._storage, path)
        except NotFound:
            return False
        return holder is not None and holder.token == self._holder.token


def blocker(storage: Reader) -> LockHeld | None:
    """Why a run would not get the lock now, without writing anything; None where it would.

    :raises StorageError: the storage could not be asked.
    """
    flock = None
    try:
        flock, _ = _flock(storage)
        found = look(storage)
        if found is not None:
            _reason(storage, found, flock)
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
    flock, _ = _flock(storage)
    try:
        found = look(storage)
        if found is not None and found.holder is not None and found.holder.alive():
            raise _held(storage, found)
        names = storage.children(f"{FOLDER}/").files
        ours = [f"{FOLDER}/{name}" for name in names if name.startswith(_TAKEOVER)]
        _remove(storage, [*ours, LOCK] if found is not None else ours)
        return found is not None
    finally:
        if flock is not None:
            flock.release()


def _flock(storage: Reader) -> tuple[FolderLock | None, str]:
    """The flock on a file system's folder, or why there is none.

    :raises LockHeld: another process has it.
    """
    if not storage.capabilities.folders or not os.path.isabs(storage.root):
        return None, ""
    folder = os.path.join(storage.root, "docker/registry")
    try:
        return FolderLock(folder), ""
    except FolderLockHeld:
        found = look(storage)
        holder = found.holder if found else None
        # On a full disk there is no object, or one that says nothing of this holder.
        who = str(holder) if holder else "another process on this machine"
        raise LockHeld(f"{who} holds the lock on {folder}: wait until it ends", holder) from None
    except NoFolderLock as error:
        return None, f"no flock on {folder} ({error}): the lock is an object only"


def _reason(storage: Reader, found: Found, flock: FolderLock | None) -> str:
    """Why *found* may be taken over.

    :raises LockHeld: it may not.
    """
    holder = found.holder
    if holder is not None:
        alive = holder.alive()
        if alive is False:
            return "that process has ended"
        free = flock is not None and holder.flock
        if free and alive is None and holder.on_this_machine():
            return "that process has ended, as its flock is free"
    if found.stale:
        return f"it was last refreshed {found.age / 60:.0f} minutes ago"
    raise _held(storage, found)


def _held(storage: Reader, found: Found) -> LockHeld:
    ahead = found.age < 0
    when = "at a time ahead of the storage's clock" if ahead else f"{found.age:.0f} s ago"
    return LockHeld(
        f"{storage.root}: {found} holds the lock, refreshed {when}: wait until it ends; if you"
        " know that it is dead: registry-gc unlock",
        found.holder,
    )


def _remove(storage: Storage, paths: Iterable[str]) -> None:
    _delete(storage, paths)
    if storage.capabilities.folders:
        storage.remove_folders([FOLDER], floor="docker/registry/")


def _delete(storage: Storage, paths: Iterable[str]) -> None:
    for outcome in storage.delete(paths):
        if outcome.result is Deletion.FAILED:
            raise StorageError(outcome.error, path=outcome.path, driver=storage.driver)


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
