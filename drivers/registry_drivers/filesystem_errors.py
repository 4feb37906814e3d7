"""What the operating system says about a file, as :mod:`registry_drivers.errors`.

Which class an ``errno`` becomes decides whether a run goes on, so it is said in one place.
"""

from __future__ import annotations

import errno
import os
import pwd

from registry_drivers.errors import AccessDenied, NotFound, StorageError, Unavailable

DRIVER = "filesystem"

# The file is not there; its folder may have become a file.
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
# EROFS: what is mounted read-only refuses everybody.
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# A file server that restarts says ESTALE or ETIMEDOUT; EIO is a broken disk and stays broken.
_PASSING = frozenset({errno.ESTALE, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN})


def user() -> str:
    """Who asks, for messages: ``user NAME (uid N)``."""
    uid = os.geteuid()
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"a user without a name (uid {uid})"


def translate(error: OSError, path: str, root: str) -> StorageError:
    """The error to raise for *error*, met at *path* below *root*."""
    said = error.strerror or type(error).__name__
    if error.errno in MISSING:
        return NotFound(f"not found below {root}", path=path, driver=DRIVER)
    if error.errno in _DENIED:
        return AccessDenied(f"{said}, below {root} as {user()}", path=path, driver=DRIVER)
    kind = Unavailable if error.errno in _PASSING else StorageError
    return kind(f"{said}, below {root}", path=path, driver=DRIVER)


def dangling(path: str, root: str) -> StorageError:
    """The error for a symbolic link to nothing: a disk that is not mounted looks like this."""
    return StorageError(
        f"a symbolic link to nothing, below {root}; mount what it points to, or remove it",
        path=path,
        driver=DRIVER,
    )


def missing(path: str, root: str, identity: tuple[int, int]) -> NotFound:
    """The error for a file or folder that the system says is not there.

    Looked into, because a run takes "missing" for a fact about the registry, which it is not
    when the disk has gone: :class:`~registry_drivers.errors.NotFound` is returned only while the
    root is the folder it was and no link on the way leads nowhere.

    :raises StorageError: the root is another folder now, or a symbolic link dangles.
    """
    if root_identity(root) != identity:
        raise StorageError(
            "the root directory was replaced or unmounted while we used it",
            path=root,
            driver=DRIVER,
        )
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        step = "/".join(parts[:count])
        if not os.path.lexists(f"{root}/{step}"):
            break
        if not os.path.exists(f"{root}/{step}"):
            raise dangling(step, root)
    return NotFound(f"not found below {root}", path=path, driver=DRIVER)


def root_identity(root: str) -> tuple[int, int]:
    """Device and inode of the root.

    :raises NotFound: it is not there, or is no folder; it must never look like an empty registry.
    :raises AccessDenied: this user may not look at it.
    """
    advice = "check storage.filesystem.rootdirectory, and that its disk is mounted"
    try:
        status = os.stat(root)
    except OSError as error:
        if error.errno in MISSING:
            raise NotFound(
                f"the root directory does not exist; {advice}", path=root, driver=DRIVER
            ) from error
        raise translate(error, root, root) from error
    if not os.path.isdir(root):
        raise NotFound(f"the root is not a directory; {advice}", path=root, driver=DRIVER)
    return status.st_dev, status.st_ino
