"""What a walk has found, column by column, until it makes a page."""

from __future__ import annotations

import os
from stat import S_IFREG
from typing import ClassVar

import numpy as np

from registry_drivers.base import UNASKED, UNASKED_AGE, Group, Page, Paths
from registry_drivers.filesystem_errors import UTF_8, check_names

# The bits of a mode that say what kind of file it is; inlined, as a call costs 60 ns.
KIND = 0o170000

# The one name in a group that is a single path.
_WHOLE = ("",)


class Rows:
    """Files in the order in which they were found."""

    # Enough that a page costs nothing beside its rows, and few enough (500 bytes a row while it is
    # built) that a folder of a million links needs no memory of that size.
    PAGE_ROWS: ClassVar[int] = 4096

    def __init__(self) -> None:
        self._groups: list[Group] = []
        self._sizes: list[int] = []
        self._modified: list[float] = []
        self._shared: list[int] = []
        self._hollow: list[str] = []
        self._contents: dict[int, bytes] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to make a page of."""
        return bool(self._sizes or self._hollow)

    @property
    def full(self) -> bool:
        """Whether there are enough of them for a page."""
        return len(self._sizes) >= self.PAGE_ROWS

    def add(self, path: str, status: os.stat_result, content: bytes | None = None) -> None:
        """One file, and what is in it where that is known."""
        if content is not None:
            self._contents[len(self._sizes)] = content
        if status.st_nlink > 1:
            self._shared.append(len(self._sizes))
        self._groups.append((path, _WHOLE, ""))
        self._sizes.append(status.st_size)
        self._modified.append(status.st_mtime)

    def add_misplaced(self, path: str, status: os.stat_result) -> None:
        """A folder where a file is to be: as a file of no bytes."""
        self._groups.append((path, _WHOLE, ""))
        self._sizes.append(0)
        self._modified.append(status.st_mtime)

    def add_hollow(self, folder: str) -> None:
        """A folder without anything in it."""
        self._hollow.append(folder)

    def add_all(
        self, folder: str, suffix: str, names: list[str], found: list[os.stat_result]
    ) -> bool:
        """``<folder><name><suffix>`` for *names*; False, and none of them, where one is no file."""
        if {status.st_mode & KIND for status in found} != {S_IFREG}:
            return False
        if max([status.st_nlink for status in found]) > 1:
            first = len(self._sizes)
            self._shared += [first + at for at, status in enumerate(found) if status.st_nlink > 1]
        self._groups.append((folder, names, suffix))
        self._sizes += [status.st_size for status in found]
        self._modified += [status.st_mtime for status in found]
        return True

    def add_names(self, folder: str, names: list[str]) -> None:
        """The links ``<folder><name>/link``, of which nothing else is known."""
        self._groups.append((folder, names, "/link"))
        self._sizes += [UNASKED] * len(names)
        self._modified += [UNASKED_AGE] * len(names)

    def page(self) -> Page:
        """All of them; there are none then."""
        count = len(self._sizes)
        if not UTF_8:
            for folder, names, _ in self._groups:
                check_names(folder + name for name in names)
        shared = None
        if self._shared:
            shared = np.zeros(count, dtype=np.bool_)
            shared[self._shared] = True
        page = Page(
            paths=Paths.of_groups(self._groups),
            sizes=np.array(self._sizes, dtype=np.int64),
            modified=np.array(self._modified, dtype=np.float64),
            shared=shared,
            hollow=tuple(self._hollow),
            contents=dict(self._contents),
        )
        # Emptied in place: the loops hold on to them.
        for column in (self._groups, self._sizes, self._modified, self._shared, self._hollow):
            column.clear()
        self._contents.clear()
        return page
