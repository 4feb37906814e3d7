"""Work unit that looks at some links in tags' histories, which were told by name before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader, stat_many
from registry_gc.digest import LINK_SIZE
from registry_gc.listing.links import OddLink
from registry_gc.listing.ranges import Range
from registry_gc.listing.repositories import RepositoryBatch, list_repositories
from registry_gc.machine.overlap import size_of_parts

_LINK = "/link"
_ENCODED = 64  # hex digits of a sha256 digest


class Entries(msgspec.Struct, frozen=True):
    """Links to look at, by their paths; ``first`` says which of all they are."""

    first: int
    paths: Sequence[str]

    def parts(self, count: int) -> list[Entries]:
        """See :class:`registry_gc.machine.overlap.Divisible`."""
        size = size_of_parts(len(self.paths), count)
        starts = range(0, len(self.paths), size)
        return [Entries(self.first + at, self.paths[at : at + size]) for at in starts] or [self]


class EntryAges(msgspec.Struct, frozen=True):
    """Of which age the links of a unit are, in its order.

    NaN for a folder without its link, which is no link. Where that folder is gone by now, nobody
    knows who took it, or whether its disk is still there: such a link is younger than any other.
    ``odd``: those that have to be read. ``instead``: what there is where a link is not.
    """

    first: int
    modified: NDArray[np.float64]
    odd: list[OddLink]
    instead: list[RepositoryBatch]


def stat_entries(reader: Reader, unit: Entries) -> EntryAges:
    """Size and age of each link in a unit.

    :raises StorageError: one could not be looked at, which is not that it is missing.
    """
    ages: list[float] = []
    odd: list[OddLink] = []
    instead: list[RepositoryBatch] = []
    for path, entry in zip(unit.paths, stat_many(reader, unit.paths), strict=True):
        if entry is None:
            ages.append(_missing(reader, path, odd, instead))
            continue
        ages.append(entry.modified)
        if entry.size != LINK_SIZE:
            odd.append(OddLink(path, _named(path), entry.size))
    return EntryAges(unit.first, np.array(ages, np.float64), odd, instead)


def _missing(
    reader: Reader, path: str, odd: list[OddLink], instead: list[RepositoryBatch]
) -> float:
    """The age of the link *path*, which was not found: it may be there after all."""
    found = list_repositories(reader, Range((path.removesuffix("link"),)))
    if len(found.tag_index):
        odd += found.odd
        return float(found.tag_index.modified.max())
    if not found.hollow and not found.strangers:
        return math.inf
    instead.append(found)
    return math.nan


def _named(path: str) -> str:
    return f"sha256:{path.removesuffix(_LINK)[-_ENCODED:]}"
