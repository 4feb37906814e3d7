"""The one place where paths are checked.

A path is relative to the storage's root directory, has ``/`` between its parts, and neither
begins nor ends with one. A prefix is a path that ends with ``/``, or is empty for the root.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence

from registry_drivers.errors import InvalidPath

# An empty, "." or ".." part, or a NUL.
_BAD = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|\0")
_TEMPORARY = re.compile(r"\.registry-gc-[0-9a-f]{32}\.tmp")


def temporary(folder: str) -> str:
    """A path in *folder* that nobody has, for what is not whole yet.

    As long as any name may be, whatever the length of that which it is to have.
    """
    return f"{folder}/.registry-gc-{uuid.uuid4().hex}.tmp"


def is_temporary(path: str) -> bool:
    """Whether *path* is that of something which we were making; who was killed leaves it."""
    return _TEMPORARY.fullmatch(path.rpartition("/")[2]) is not None


def temporaries(paths: Iterable[str]) -> list[str]:
    """Those of *paths* that :func:`is_temporary` means."""
    return [path for path in paths if is_temporary(path)]


def check_path(path: str, driver: str = "") -> str:
    """Return *path* when it names an object below the root.

    :raises InvalidPath: empty, absolute, with empty, ``.`` or ``..`` parts, or a NUL.
    """
    # Looking for two characters costs a tenth of the search, and says for nearly all paths that
    # there is nothing to search for.
    unusual = not path or path[0] in "/." or path[-1] == "/"
    unusual = unusual or "//" in path or "/." in path or "\0" in path
    if unusual and _BAD.search(path):
        raise InvalidPath("not a path below the storage root", path=repr(path), driver=driver)
    return path


def check_paths(paths: Sequence[str], driver: str = "") -> None:
    """Check many paths, for a tenth of the price of one after the other.

    :raises InvalidPath: as :func:`check_path` for the first that is none.
    """
    # Between line feeds, what makes a path unusual is one of these pairs. A line feed in a path
    # only makes it look unusual.
    joined = "\n" + "\n".join(paths) + "\n"
    if any(sign in joined for sign in ("//", "/.", "\0", "\n/", "\n.", "/\n", "\n\n")):
        for path in paths:
            check_path(path, driver)


def check_prefix(prefix: str, driver: str = "") -> str:
    """Return *prefix* when it is empty or names a folder below the root, ``/`` at its end.

    :raises InvalidPath: as for :func:`check_path`, or without the ``/``.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise InvalidPath("a prefix ends with '/'", path=repr(prefix), driver=driver)
        check_path(prefix[:-1], driver)
    return prefix


def check_beginning(beginning: str, driver: str = "") -> str:
    """Return *beginning* when it is a prefix, perhaps with part of a name after it.

    :raises InvalidPath: as for :func:`check_prefix`, or with a NUL.
    """
    prefix, slash, _ = beginning.rpartition("/")
    check_prefix(prefix + slash, driver)
    if "\0" in beginning:
        raise InvalidPath("not the beginning of a path", path=repr(beginning), driver=driver)
    return beginning
