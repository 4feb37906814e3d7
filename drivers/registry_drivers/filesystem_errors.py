"""What the operating system says about a file, as :mod:`registry_drivers.errors`.

Which class an ``errno`` becomes decides whether a run goes on, so it is said in one place.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import sys
from collections.abc import Callable, Iterable

from registry_drivers.errors import AccessDenied, NotFound, Replaced, StorageError, Unavailable

DRIVER = "filesystem"
UTF_8 = sys.getfilesystemencoding() == "utf-8"

# The file is not there; its folder may have become a file.
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
# EROFS: what is mounted read-only refuses everybody.
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# A file server that restarts says ESTALE or ETIMEDOUT; EIO is a broken disk and stays broken.
PASSING = frozenset({errno.ESTALE, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN})
# What is said of a file when all of its disk may be gone: broken, detached, a server that is away.
DISK_GONE = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EHOSTDOWN, errno.ESHUTDOWN}
)
# After that, "missing" may be said of what is there.
UNSURE = PASSING | DISK_GONE
# FUSE says so of whatever is asked when its process has ended.
_DISCONNECTED = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


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
    if error.errno in _DISCONNECTED:
        said = f"{said}: unmounted while we used it, or what mounts it has died"
        return Replaced(f"{said}, below {root}", path=path, driver=DRIVER)
    kind = Unavailable if error.errno in PASSING else StorageError
    return kind(f"{said}, below {root}", path=path, driver=DRIVER)


def check_names(paths: Iterable[str]) -> None:
    """Raise for what this locale makes of a name that is not ASCII, where it cannot be undone.

    Paths are kept as UTF-8. In Python's ASCII, two bytes of a name are two characters that come
    back as one, so that the file would not be found under its name again.

    Not to be asked where :data:`UTF_8` is true: all names can be undone then.

    :raises StorageError: one of *paths* is such.
    """
    for path in paths:
        kept = path.encode("utf-8", "surrogateescape")
        if not path.isascii() and kept.decode("utf-8", "surrogateescape") != path:
            raise StorageError(
                "its name cannot be read in this locale: set PYTHONUTF8=1, or LC_ALL=C.UTF-8",
                path=path,
                driver=DRIVER,
            )


# As those of os.path, which take what fails for "no": here that is raised, where it says nothing.


def is_there(path: str, *, links: bool = True) -> bool:
    """Whether there is anything at *path*; without *links*, whether a link there leads to it."""
    return _mode(os.lstat if links else os.stat, path) != 0


def is_link(path: str) -> bool:
    """Whether *path* is a symbolic link."""
    return stat.S_ISLNK(_mode(os.lstat, path))


def is_folder(path: str) -> bool:
    """Whether *path* is a folder, or a link to one."""
    return stat.S_ISDIR(_mode(os.stat, path))


def _mode(ask: Callable[[str], os.stat_result], path: str) -> int:
    try:
        return ask(path).st_mode
    except OSError as error:
        if error.errno in UNSURE:
            raise
        return 0


def dangling(path: str, root: str) -> StorageError:
    """The error for a symbolic link to nothing: a disk that is not mounted looks like this."""
    return StorageError(
        f"a symbolic link to nothing, below {root}; mount what it points to, or remove the link "
        "where that is gone for good",
        path=path,
        driver=DRIVER,
    )
