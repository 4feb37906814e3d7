"""Layer links, of which there are more than of anything else: kept as rows of a spool.

They come in the order of a listing, batch by batch, and go repository by repository, some
repositories at a time: what all of them take together is no claim on memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from registry_gc.arrays import union
from registry_gc.digest import KEY, Keys
from registry_gc.listing import Links
from registry_gc.spool import Spool

ROW = np.dtype([("owner", "<i4"), ("modified", "<f8"), ("key", KEY)])
AT_ONCE = 1 << 17
"""Links that are looked at in one go."""


def rows_of(links: Links) -> NDArray[np.void]:
    """Links as rows of a spool."""
    rows = np.empty(len(links), ROW)
    rows["owner"], rows["modified"], rows["key"] = links.owner, links.modified, links.keys
    return rows


def links_of(rows: NDArray[np.void]) -> Links:
    """Rows of a spool as links."""
    return Links(
        np.ascontiguousarray(rows["owner"]),
        np.ascontiguousarray(rows["key"]),
        np.ascontiguousarray(rows["modified"]),
    )


class LinkStore:
    """Links by owner. Add all, then :meth:`renumber`, then read."""

    def __init__(self) -> None:
        self._spool = Spool(ROW)
        # Runs of rows with one owner: who, from which row on, how many.
        self._runs: list[NDArray[np.int64]] = []
        self._owner = np.empty(0, np.int64)
        self._start = np.empty(0, np.int64)
        self._count = np.empty(0, np.int64)
        self._rank = np.empty(0, np.int32)

    def __len__(self) -> int:
        return len(self._spool)

    def add(self, links: Links) -> None:
        """Add the links of a batch, in which those of an owner are mostly side by side."""
        if not len(links):
            return
        first = self._spool.append(rows_of(links))
        edges = np.flatnonzero(links.owner[1:] != links.owner[:-1]) + 1
        # An enormous repository is several runs.
        starts = union(edges, np.arange(0, len(links), AT_ONCE))
        counts = np.diff(np.concatenate([starts, [len(links)]]))
        self._runs.append(np.stack([links.owner[starts].astype(np.int64), starts + first, counts]))

    def renumber(self, rank: NDArray[np.int32]) -> None:
        """Say what the owners are called from now on: old number -> new."""
        self._rank = rank
        if not self._runs:
            return
        owner, start, count = np.concatenate(self._runs, axis=1)
        owner = rank[owner].astype(np.int64)
        order = np.lexsort((start, owner))
        self._owner, self._start, self._count = owner[order], start[order], count[order]
        self._runs = []

    def groups(self, low: int = 0, high: int | None = None) -> Iterator[Links]:
        """Links of the owners from *low* up to *high*, some at a time, by owner.

        Those of one owner come in any order, and not always together.
        """
        first = int(np.searchsorted(self._owner, low))
        end = len(self._owner) if high is None else int(np.searchsorted(self._owner, high))
        total = np.concatenate([[0], np.cumsum(self._count)])
        while first < end:
            last = int(np.searchsorted(total, total[first] + AT_ONCE, "right")) - 1
            last = min(end, max(last, first + 1))
            yield self._read(slice(first, last))
            first = last

    def _read(self, runs: slice) -> Links:
        start, count = self._start[runs], self._count[runs]
        within = np.arange(int(count.sum()), dtype=np.int64)
        within -= np.repeat(np.cumsum(count) - count, count)
        links = links_of(self._spool.take(np.repeat(start, count) + within))
        return Links(self._rank[links.owner], links.keys, links.modified)

    def of(self, owners: Collection[int]) -> Iterator[Links]:
        """The links of a few owners."""
        for owner in sorted(owners):
            yield from self.groups(owner, owner + 1)

    def whole(self) -> Links:
        """All links, ordered by owner and key; for registries that are not large."""
        parts = [Links.empty(), *self.groups()]
        owner = np.concatenate([part.owner for part in parts])
        keys = np.concatenate([part.keys for part in parts])
        modified = np.concatenate([part.modified for part in parts])
        order = np.argsort(keys, kind="stable")
        order = order[np.argsort(owner[order], kind="stable")]
        return Links(owner[order], keys[order], modified[order])

    @property
    def owner(self) -> NDArray[np.int32]:
        """The owners of :meth:`whole`."""
        return self.whole().owner

    @property
    def keys(self) -> Keys:
        """The keys of :meth:`whole`."""
        return self.whole().keys

    @property
    def modified(self) -> NDArray[np.float64]:
        """The ages of :meth:`whole`."""
        return self.whole().modified

    def young(self, cutoff: float) -> Iterator[Keys]:
        """What links name that are younger than *cutoff*."""
        for part in self.groups():
            found = part.modified > cutoff
            if found.any():
                yield part.keys[found]
