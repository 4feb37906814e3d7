"""Whether two runs were about the same storage, which a filesystem may know by several paths."""

from __future__ import annotations

import os


def same_storage(one: tuple[object, object], other: tuple[str, str]) -> bool:
    """Whether *one* and *other*, each a driver and a root, are the same storage.

    A symbolic link or a second mount of a folder is the same folder.
    """
    if one == other:
        return True
    (driver, root), (its_driver, its_root) = one, other
    if driver != "filesystem" or its_driver != driver or not isinstance(root, str):
        return False
    try:
        return os.path.samefile(root, its_root)
    except (OSError, ValueError):
        return False  # one of them is not there
