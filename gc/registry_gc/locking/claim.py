"""Getting the lock: creating its object, or taking it over from a holder that is dead.

Who takes over is decided by creating a second object on the condition that there is none, named
after the very state of the lock that was found. Where creating proves nothing, claims are listed
instead: :mod:`registry_gc.locking.contest`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import AlreadyExists, NotFound, StorageError, Unsupported
from registry_gc.locking.contest import contest, delete
from registry_gc.locking.folder_lock import FolderLock, FolderLockHeld, NoFolderLock
from registry_gc.locking.holder import (
    FOLDER,
    LOCK,
    STALE_SECONDS,
    Found,
    Holder,
    LockHeld,
    LockUnsafe,
    held,
    look,
    read_holder,
)

TAKEOVER = "lock.takeover-"
_ATTEMPTS = 5
_GENERATIONS = 100


class Claim:
    """*holder*'s claim to the lock of *storage*; ``notices`` are lines for the operator.

    ``listed``: the lock was won by a claim that others list, and that stays while it is held.
    """

    def __init__(self, storage: Storage, holder: Holder, flock: FolderLock | None) -> None:
        self.notices: list[str] = []
        self.listed = False
        self._storage = storage
        self._holder = holder
        self._flock = flock

    def win(self) -> bool:
        """Get the lock; false when a full disk had room for the flock only.

        :raises LockHeld: another run has it.
        :raises LockUnsafe: the storage does not keep two runs apart.
        :raises StorageError: the storage could not be asked, or not written to.
        """
        try:
            return self._win()
        except LockUnsafe as unsafe:
            if self._storage.capabilities.folders:
                raise  # not even exclusive creation: nothing of it can be relied on
            return self._win_listed(str(unsafe))
        except StorageError as error:
            if self._flock is not None and is_full(error):
                return self._hold_flock_alone()
            # The create may have come through all the same.
            with contextlib.suppress(StorageError):
                remove_own(self._storage, self._holder)
            remove_folder(self._storage)
            raise

    def _win(self) -> bool:
        for _ in range(_ATTEMPTS):
            # Looked at first: a storage may be one that replaces what it was told to leave.
            found = look(self._storage)
            if found is None:
                if self._create(LOCK):
                    return True
                continue
            why = reason(self._storage, found, self._flock)
            if self._take_over(found):
                self.notices.append(f"the lock of {found} was taken over: {why}")
                return True
        raise LockHeld("the lock changes hands too fast: other runs want it; try again later")

    def _win_listed(self, unsafe: str) -> bool:
        why = contest(
            self._storage,
            self._holder,
            lambda found: reason(self._storage, found, self._flock),
        )
        self.listed = True
        self.notices += [f"{unsafe}; the claims of runs are listed instead", *[why] * bool(why)]
        return True

    def _take_over(self, found: Found) -> bool:
        """Replace *found* by a lock of ours; false when somebody else changed it first."""
        marks = self._mark(found)
        try:
            again = look(self._storage)
            if again is None or again.data != found.data:
                return False
            self._storage.write(LOCK, self._holder.encode())
            if not is_own(self._storage, self._holder, LOCK):
                return False
            # With ours go those of a run that was killed just here.
            names = self._storage.children(f"{FOLDER}/").files
            marks = [f"{FOLDER}/{name}" for name in names if name.startswith(TAKEOVER)]
            return True
        finally:
            with contextlib.suppress(StorageError):
                delete(self._storage, marks)

    def _mark(self, found: Found) -> list[str]:
        """Be the one who takes *found* over; returns what to remove afterwards.

        :raises LockHeld: another run is taking it over.
        """
        state = hashlib.sha256(found.data).hexdigest()[:16]
        marks = []
        for generation in range(_GENERATIONS):
            mark = f"{FOLDER}/{TAKEOVER}{state}-{generation}"
            marks.append(mark)
            try:
                if self._create(mark):
                    return marks
            except StorageError:
                with contextlib.suppress(StorageError):
                    remove_own(self._storage, self._holder, mark)
                raise
            try:
                age = self._storage.now() - self._storage.stat(mark).modified
                winner = read_holder(self._storage, mark)
            except NotFound:
                break
            if age < STALE_SECONDS and not (winner and why_dead(winner, self._flock)):
                break
            # Who won that generation died before it was done.
        raise LockHeld("another run is just taking the lock over: try again later", found.holder)

    def _hold_flock_alone(self) -> bool:
        """Do without an object on a full disk; a dead run's is in the way and goes."""
        found = look(self._storage)
        if found is not None:
            if found.holder is not None and found.holder.token == self._holder.token:
                return True  # the disk was full only afterwards
            reason(self._storage, found, self._flock)
            delete(self._storage, [LOCK])
        self.notices.append(
            "the disk is full: the lock is a flock only, which other hosts may not see"
        )
        return False

    def _create(self, path: str) -> bool:
        """Create *path* as ours; false when it is another's.

        :raises LockUnsafe: the storage would have let another run create it as well, or knows no
            create.
        """
        data = self._holder.encode()
        try:
            self._storage.write(path, data, if_absent=True)
        except AlreadyExists:
            # A first try may have succeeded although its answer was lost.
            return is_own(self._storage, self._holder, path)
        except Unsupported as error:
            # Nothing was written. Where only the second try says so, the lock is ours already, and
            # a contest would find it: that stays an error.
            raise LockUnsafe(
                f"{self._storage.root}: this storage takes no writes with a condition"
                f" ({error.message})"
            ) from error
        try:
            self._storage.write(path, data, if_absent=True)
        except AlreadyExists:
            return True
        with contextlib.suppress(StorageError):
            remove_own(self._storage, self._holder, path)
        raise LockUnsafe(
            f"{self._storage.root}: a second create of the same lock succeeds on this storage, so"
            " it proves nothing"
        )


def take_flock(storage: Reader) -> tuple[FolderLock | None, str]:
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
        if holder is not None and holder.alive() is False:
            holder = None  # a run that died; who has the flock found no room for an object
        who = str(holder) if holder else "another process on this machine"
        raise LockHeld(f"{who} holds the lock on {folder}: wait until it ends", holder) from None
    except NoFolderLock as error:
        return None, f"no flock on {folder} ({error}): the lock is an object only"


def reason(storage: Reader, found: Found, flock: FolderLock | None) -> str:
    """Why *found* may be taken over by one who holds *flock*.

    :raises LockHeld: it may not.
    """
    why = why_dead(found.holder, flock) if found.holder is not None else ""
    if why:
        return why
    if found.stale:
        return f"it was last refreshed {found.age / 60:.0f} minutes ago"
    raise held(storage, found)


def why_dead(holder: Holder, flock: FolderLock | None) -> str:
    """Why *holder* is known to be dead by one who holds *flock*; empty where it is not."""
    alive = holder.alive()
    if alive is False:
        return "that process has ended"
    free = flock is not None and holder.flock
    if free and alive is None and holder.on_this_machine():
        return "that process has ended, as its flock is free"
    return ""


def is_own(storage: Reader, holder: Holder, path: str = LOCK) -> bool:
    """Whether the object at *path* is that of *holder*'s acquisition."""
    try:
        named = read_holder(storage, path)
    except NotFound:
        return False
    return named is not None and named.token == holder.token


def remove_own(storage: Storage, holder: Holder, path: str = LOCK) -> bool:
    """Remove the object at *path* when it is *holder*'s; whether it was."""
    if not is_own(storage, holder, path):
        return False
    remove(storage, [path])
    return True


def remove(storage: Storage, paths: Iterable[str]) -> None:
    """Remove *paths*, and our folder when nothing else is in it.

    :raises StorageError: one of them stays.
    """
    delete(storage, paths)
    remove_folder(storage)


def remove_folder(storage: Storage) -> None:
    """Remove our folder when nothing is in it; what is left of it keeps nobody out."""
    if storage.capabilities.folders:
        with contextlib.suppress(StorageError):
            storage.remove_folders([FOLDER], floor="docker/registry/")


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is behind *error*."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False
