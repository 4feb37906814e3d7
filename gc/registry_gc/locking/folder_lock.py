"""A ``flock`` on a folder: needs no space on the disk, and ends with its process, however."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from weakref import WeakSet

from registry_drivers.errors import StorageError

# What a file system without flock says; NFS, for one, wants a file that is open for writing.
_NO_FLOCK = frozenset(
    {
        errno.EACCES,
        errno.EBADF,
        errno.EINVAL,
        errno.ENOLCK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EPERM,
    }
)


class FolderLockHeld(Exception):
    """Another process, or another lock of this one, holds the flock."""


class NoFolderLock(Exception):
    """There is no flock to be had here; the message says why."""


class FolderLock:
    """An exclusive flock on *folder*, held from the constructor to :meth:`release`.

    :raises FolderLockHeld: somebody else has it.
    :raises NoFolderLock: the folder is missing or unreadable, or its file system has no flock.
    :raises StorageError: there is one, as far as is known, and it could not be had.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._pid = os.getpid()
        try:
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NoFolderLock(error.strerror or "unknown reason") from error
        try:
            self._number = self._lock()
        except BaseException:
            os.close(self._fd)
            raise
        _held.add(self)

    def _lock(self) -> int:
        """Take the flock; the folder's number."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.fstat(self._fd).st_ino
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise FolderLockHeld from error
            why = error.strerror or "unknown reason"
            if error.errno in _NO_FLOCK:
                raise NoFolderLock(why) from error
            # A file server that is away, a broken disk: another run may well have it.
            raise StorageError(f"{why}: its flock could not be had", path=self._folder) from error

    def still_there(self) -> bool:
        """Whether the folder's name still leads to what is locked, not to another mount."""
        if self._fd < 0:
            return False
        try:
            locked, there = os.fstat(self._fd), os.stat(self._folder)
        except OSError:
            return False
        if locked.st_ino != self._number:
            # Some FUSE file systems number a folder anew whenever they are asked, an open one too.
            return locked.st_dev == there.st_dev
        return os.path.samestat(locked, there)

    def release(self) -> None:
        """Let go; more than once does no harm, nor does a forked child."""
        _held.discard(self)
        if self._fd < 0:
            return
        if os.getpid() == self._pid:
            # Closing alone would wait for a child that has not yet closed its copy.
            with contextlib.suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)
        self._fd = -1


_held: WeakSet[FolderLock] = WeakSet()


def _forget_in_child() -> None:
    # A flock lasts until its last copy is closed: a forked worker that outlives a killed parent
    # would go on holding it. Closing a copy does not let go of the parent's.
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
