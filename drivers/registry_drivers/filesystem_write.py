"""Writing and moving files so that a crash leaves the old state or the new one.

Paths are absolute here, errors are plain :class:`OSError`; the driver translates them. What is
made in a folder belongs to that folder's owner also when root makes it: a registry that runs as
another user must be able to write into what a restore has put back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid

# What file systems without hard links say: FAT and SMB EPERM, others that it is not supported.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# What file systems say that cannot sync a folder, and need not be told to.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def write_file(target: str, data: bytes, *, if_absent: bool) -> None:
    """Write *data* whole or not at all, on disk when this returns.

    :raises FileExistsError: *if_absent*, and *target* is there.
    """
    folder = os.path.dirname(target)
    make_folders(folder)
    temporary = _temporary(folder)
    try:
        _create(temporary, data)
        if if_absent:
            _publish_new(temporary, target, data)
        else:
            os.rename(temporary, target)
    finally:
        _discard(temporary)
    sync_folder(folder)


def _publish_new(temporary: str, target: str, data: bytes) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        # NFS may answer so when the answer to a link that it made was lost: two names say so.
        if os.stat(temporary).st_nlink < 2:
            raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # As exclusive as a link; only that a reader may see a part of the data meanwhile.
        _create(target, data)


def move_file(source: str, target: str) -> None:
    """Rename the file *source*, replacing *target*; across disks, copy it whole before it goes."""
    if source == target:
        return
    folder = os.path.dirname(target)
    make_folders(folder)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
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
    temporary = _temporary(os.path.dirname(target))
    try:
        shutil.copy2(source, temporary)
        _give_to(temporary, os.stat(source))
        _sync(temporary, os.O_RDONLY)
        os.rename(temporary, target)
    finally:
        _discard(temporary)


def make_folders(folder: str) -> None:
    """Make *folder* and the parents it lacks, each on disk when this returns."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    make_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        _give_to(folder, os.stat(parent))
        sync_folder(parent)


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
            os.fsync(handle)
        _give_to(path, os.stat(os.path.dirname(path)))
    except BaseException:
        _discard(path)
        raise


def _give_to(path: str, owner: os.stat_result) -> None:
    # Only root can, and only root needs to; some network file systems let nobody.
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _sync(path: str, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(folder: str) -> str:
    # As long as any name may be, whatever the length of the file's own.
    return f"{folder}/.registry-gc-{uuid.uuid4().hex}.tmp"


def _discard(path: str) -> None:
    # It was renamed, or never made; and a failure here must not hide the one before it.
    with contextlib.suppress(OSError):
        os.unlink(path)
