"""Symbolic links by which a registry's repositories have other names.

Whoever removes the folder that one leads to leaves a link to nothing. That is what a disk looks
like that is not mounted, so the next listing would fail, until somebody removes the link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from registry_drivers.filesystem_names import LOST_AND_FOUND

_REPOSITORIES = "docker/registry/v2/repositories"


class Aliases:
    """What they lead to, looked up once, and only when a repository's own folder is empty.

    :param root: absolute path of the storage root.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._targets: frozenset[str | tuple[int, int]] | None = None
        self._refusal: OSError | None = None

    def lead_to(self, folder: str) -> bool:
        """Whether an alias leads to *folder*, a repository's or a group's of them.

        :raises OSError: that cannot be found out.
        """
        if not folder.startswith(f"{_REPOSITORIES}/") or "/_" in folder:
            return False  # a part of one repository has one name, or is not listed
        full = f"{self._root}/{folder}"
        with os.scandir(full) as entries:
            if any(entries):
                return False  # it stays anyway, and the others need not be looked at
        status = os.stat(full)
        # A bind mount has another path, and some file systems number a folder anew.
        names = ((status.st_dev, status.st_ino), os.path.realpath(full))
        return not self._all().isdisjoint(names)

    def _all(self) -> frozenset[str | tuple[int, int]]:
        if self._refusal is not None:
            # Each folder that is empty would take as long to find out the same.
            raise self._refusal
        if self._targets is None:
            try:
                self._targets = frozenset(self._found(_REPOSITORIES))
            except OSError as error:
                self._refusal = error
                raise
        return self._targets

    def _found(self, top: str) -> Iterator[str | tuple[int, int]]:
        waiting = [f"{self._root}/{top}"]
        followed: set[str] = set()
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name == LOST_AND_FOUND or not entry.is_dir():
                        continue
                    if entry.is_symlink():
                        status = entry.stat()
                        yield status.st_dev, status.st_ino
                        target = os.path.realpath(entry.path)
                        yield target
                        if target in followed:
                            continue
                        followed.add(target)
                    # Below such a name is what one repository holds.
                    if not entry.name.startswith("_"):
                        waiting.append(entry.path)
