"""Writing and moving files so that a crash leaves the old state or the new one.

Paths are absolute here, errors are plain :class:`OSError`; the driver translates them. What is
made in a folder belongs to that folder's owner also when root makes it: a registry that runs as
another user must be able to write into what a restore has put back. What is written is ours, and
as private as the umask has it; what is moved may be the registry's, which must be able to read it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable

from registry_drivers.filesystem_rights import give_to, make_alike
from registry_drivers.paths import is_temporary, temporary

# What file systems without hard links say: FAT and SMB EPERM, others that it is not supported.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_LINK_FAILED = (
    "at making a hard link, as from a mount that knows none (rclone) and without which two runs on"
    " this storage could not be kept apart, or from a broken disk; on such a mount, name the"
    " storage itself in a config (s3, gcs, azure), or run where its disk is"
)
# What file systems say that cannot sync a folder, or a file, and need not be told to.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
# What is said where a folder is gone of which this machine remembers that it was there.
_FOLDER_GONE = frozenset({errno.ENOENT, errno.ESTALE})
_BEGAN = time.time()
"""What was last written to before this is no work of this process."""


def write_file(
    target: str, data: bytes, *, if_absent: bool, look: Callable[[], None] = lambda: None
) -> None:
    """Write *data* whole or not at all, on disk when this returns.

    :param look: asked before folders that should be there are made anew; raises where they are
        gone with their disk.
    :raises FileExistsError: *if_absent*, and *target* is there.
    """
    folder = os.path.dirname(target)
    unnamed = temporary(folder)

    def still_needed() -> bool:
        look()
        return True

    try:
        _in_folder(folder, _make_ours, lambda: _create(unnamed, data), still_needed)
        if if_absent:
            _publish_new(unnamed, target, data)
        else:
            os.rename(unnamed, target)
    finally:
        _discard(unnamed)
    sync_folder(folder)


def _publish_new(unnamed: str, target: str, data: bytes) -> None:
    try:
        os.link(unnamed, target)
    except FileExistsError:
        # NFS may answer so when the answer to a link that it made was lost: two names say so.
        if os.stat(unnamed).st_nlink < 2:
            raise
    except OSError as error:
        if error.errno == errno.EIO:
            # No exclusive create instead: on rclone's mount, which says so of links, one of two
            # machines would not see the file of the other for minutes, in no listing either.
            raise OSError(errno.EIO, f"{error.strerror} {_LINK_FAILED}") from error
        if error.errno not in _NO_LINKS:
            raise
        # As exclusive as a link; only that a reader may see a part of the data meanwhile.
        _create(target, data)


def move_file(source: str, target: str, *, look: Callable[[], None] = lambda: None) -> None:
    """Rename the file *source*, replacing *target*; across disks, copy it whole before it goes.

    :param look: as for :func:`write_file`.
    """
    if source == target:
        return
    folder = os.path.dirname(target)
    copied = False

    def put() -> None:
        nonlocal copied
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(source, target)
            copied = True

    def still_needed() -> bool:
        # Else it may have been moved, and only the answer was lost.
        if not os.path.lexists(source):
            return False
        look()
        return True

    _in_folder(folder, _make_alike, put, still_needed)
    if copied:
        sync_folder(folder)
        os.unlink(source)
    else:
        _drop_other_name(source, target)
        sync_folder(folder)
    sync_folder(os.path.dirname(source))


def _drop_other_name(source: str, target: str) -> None:
    # POSIX: renaming one hard link onto another of the same file does nothing at all.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(source), os.lstat(target)):
            os.unlink(source)


def _copy(source: str, target: str) -> None:
    _discard_older(os.path.dirname(target))
    copy = temporary(os.path.dirname(target))
    try:
        shutil.copy2(source, copy)
        make_alike(copy, source)
        _sync(copy, os.O_RDONLY)
        os.rename(copy, target)
    finally:
        _discard(copy)


def _discard_older(folder: str) -> None:
    """Remove copies that a process was making which was killed: as large as what they are of.

    Only those of before this process: should another be at it in spite of the lock, its rename
    fails, and what it was moving stays where it is. What is left over harms nobody.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not is_temporary(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            # Not when it was modified: a copy has the time of what it is of.
            if entry.stat(follow_symlinks=False).st_ctime < _BEGAN:
                _discard(entry.path)


def _make_folders(folder: str, make: Callable[[str, str], None]) -> None:
    """Have *make* make *folder* and the parents it lacks, each on disk when this returns."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent, make)
    with contextlib.suppress(FileExistsError):
        make(folder, parent)
        sync_folder(parent)


def _in_folder(
    folder: str,
    make: Callable[[str, str], None],
    work: Callable[[], None],
    still_needed: Callable[[], bool],
) -> None:
    """Do *work* in *folder*, which *make* makes where it is missing.

    Whether it is missing is answered from memory by what mounts another machine's disk (sshfs,
    NFS): only making something in it tells. Then *still_needed* is asked before it is made.
    """
    try:
        _make_folders(folder, make)
        work()
    except OSError as error:
        if error.errno not in _FOLDER_GONE or not still_needed():
            raise
        _make_unasked(folder, make)
        work()


def _make_unasked(folder: str, make: Callable[[str, str], None]) -> None:
    """As :func:`_make_folders`, believing nobody that a folder is there."""
    parent = os.path.dirname(folder)
    try:
        make(folder, parent)
    except FileExistsError:
        return
    except FileNotFoundError:
        if parent == folder:
            raise
        _make_unasked(parent, make)
        with contextlib.suppress(FileExistsError):
            make(folder, parent)
    sync_folder(parent)


def _make_ours(folder: str, parent: str) -> None:
    os.mkdir(folder)
    give_to(folder, os.stat(parent))


def _make_alike(folder: str, parent: str) -> None:
    # Under its name only when it is as it is to be: who dies before leaves no folder that the
    # registry cannot enter, and nobody puts anything into it meanwhile.
    unnamed = temporary(parent)
    os.mkdir(unnamed)
    try:
        make_alike(unnamed, parent)
        os.rename(unnamed, folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(unnamed)
        # Somebody else has made it, and has put something into it.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def sync_folder(folder: str) -> None:
    """Have the names in *folder* on disk."""
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _create(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            try:
                os.fsync(handle)
            except OSError as error:
                # Small things of ours, which nothing is deleted for; not the copy of a blob.
                if error.errno not in _NO_SYNC:
                    raise
        give_to(path, os.stat(os.path.dirname(path)))
    except BaseException:
        _discard(path)
        raise


def _sync(path: str, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(path: str) -> None:
    # It was renamed, or never made; and a failure here must not hide the one before it.
    with contextlib.suppress(OSError):
        os.unlink(path)
