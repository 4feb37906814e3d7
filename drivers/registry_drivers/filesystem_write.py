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
import uuid
from collections.abc import Callable

from registry_drivers.filesystem_rights import give_to, make_alike

# What file systems without hard links say: FAT and SMB EPERM, others that it is not supported.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# What file systems say that cannot sync a folder, and need not be told to.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


def write_file(target: str, data: bytes, *, if_absent: bool) -> None:
    """Write *data* whole or not at all, on disk when this returns.

    :raises FileExistsError: *if_absent*, and *target* is there.
    """
    folder = os.path.dirname(target)
    _make_folders(folder, _make_ours)
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
    _make_folders(folder, _make_alike)
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
        make_alike(temporary, os.stat(source))
        _sync(temporary, os.O_RDONLY)
        os.rename(temporary, target)
    finally:
        _discard(temporary)


def _make_folders(folder: str, make: Callable[[str, str], None]) -> None:
    """Have *make* make *folder* and the parents it lacks, each on disk when this returns."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    _make_folders(parent, make)
    with contextlib.suppress(FileExistsError):
        make(folder, parent)
        sync_folder(parent)


def _make_ours(folder: str, parent: str) -> None:
    os.mkdir(folder)
    give_to(folder, os.stat(parent))


def _make_alike(folder: str, parent: str) -> None:
    # Under its name only when it is as it is to be: who dies before leaves no folder that the
    # registry cannot enter, and nobody puts anything into it meanwhile.
    temporary = _temporary(parent)
    os.mkdir(temporary)
    try:
        make_alike(temporary, os.stat(parent))
        os.rename(temporary, folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.rmdir(temporary)
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
            os.fsync(handle)
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


def _temporary(folder: str) -> str:
    # As long as any name may be, whatever the length of the file's own.
    return f"{folder}/.registry-gc-{uuid.uuid4().hex}.tmp"


def _discard(path: str) -> None:
    # It was renamed, or never made; and a failure here must not hide the one before it.
    with contextlib.suppress(OSError):
        os.unlink(path)
