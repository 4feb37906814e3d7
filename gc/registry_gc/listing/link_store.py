"""Layer links, of which there are more than of anything else: kept in spools, by column.

They come in the order of a listing, batch by batch, and go repository by repository, some
repositories at a time: what all of them take together is no claim on memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNASKED_AGE
from registry_gc.compact.arrays import union
from registry_gc.compact.spool import Spool
from registry_gc.digest import KEY, Keys
from registry_gc.listing.links import Links

AT_ONCE = 1 << 16
"""Links that are looked at in one go."""
_AGE = np.dtype(np.float64)


class LinkRows:
    """Links in the order in which they were added."""

    def __init__(self) -> None:
        self._owner = Spool(np.dtype(np.int32))
        self._keys = Spool(KEY)
        self._modified = Spool(_AGE)

    def __len__(self) -> int:
        return len(self._keys)

    def append(self, links: Links) -> None:
        """Add *links* at the end."""
        self._owner.append(links.owner)
        self._keys.append(links.keys)
        self._modified.append(links.modified)

    def read(self, start: int, stop: int) -> Links:
        """The links from number *start* up to *stop*."""
        columns = (self._owner, self._keys, self._modified)
        return Links(*(column.read(start, stop) for column in columns))


class _Runs(msgspec.Struct, frozen=True):
    """Runs of rows with one owner: who, from which row on, how many, and the time of the youngest.

    As columns; an enormous repository is several runs.
    """

    owner: NDArray[np.int32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]
    youngest: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.owner)

    @classmethod
    def of(cls, links: Links, first: int) -> _Runs:
        """The runs of *links*, which are the rows from *first* on, and at least one."""
        edges = np.flatnonzero(links.owner[1:] != links.owner[:-1]) + 1
        starts = union(edges, np.arange(0, len(links), AT_ONCE))
        counts = np.diff(np.concatenate([starts, [len(links)]]))
        youngest = np.maximum.reduceat(links.modified, starts)
        return cls(links.owner[starts], starts + first, counts, youngest)

    @classmethod
    def joined(cls, parts: Sequence[_Runs]) -> _Runs:
        """All of *parts*, one after the other."""
        return cls(
            np.concatenate([part.owner for part in parts]),
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.count for part in parts]),
            np.concatenate([part.youngest for part in parts]),
        )

    def among(self, rows: Any) -> _Runs:
        """Those in *rows*: a slice, a mask, or numbers."""
        return _Runs(self.owner[rows], self.start[rows], self.count[rows], self.youngest[rows])


class LinkStore:
    """Links by owner. Add all, then :meth:`renumber`, then read.

    ``unasked``: how many of them are of an age that nobody has asked for.
    """

    def __init__(self) -> None:
        self.unasked = 0
        # Owners are known by the runs.
        self._keys = Spool(KEY)
        self._modified = Spool(_AGE)
        self._parts: list[_Runs] = []
        self._runs: _Runs | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, links: Links) -> None:
        """Add the links of a batch, in which those of an owner are mostly side by side."""
        if len(links):
            first = self._keys.append(links.keys)
            self._modified.append(links.modified)
            self._parts.append(_Runs.of(links, first))
            self.unasked += int(np.count_nonzero(links.modified == UNASKED_AGE))

    def renumber(self, rank: NDArray[np.int32]) -> None:
        """Say what the owners are called from now on: old number -> new."""
        if self._parts:
            runs = _Runs.joined(self._parts)
            self._parts = []
            self._keys.settle()
            self._modified.settle()
            runs = msgspec.structs.replace(runs, owner=rank[runs.owner])
            self._runs = runs.among(np.lexsort((runs.start, runs.owner)))

    def groups(
        self, low: int = 0, high: int | None = None, younger: float | None = None
    ) -> Iterator[Links]:
        """Links of the owners from *low* up to *high*, some at a time, by owner.

        Those of one owner come in any order, and not always together.

        :param younger: leave out what is certainly no younger, in seconds since the epoch.
        """
        if self._runs is None:
            return
        first, end = np.searchsorted(self._runs.owner, [low, low if high is None else high])
        runs = self._runs.among(slice(int(first), None if high is None else int(end)))
        if younger is not None:
            runs = runs.among(runs.youngest > younger)
        total = np.concatenate([[0], np.cumsum(runs.count)])
        at = 0
        while at < len(runs):
            last = int(np.searchsorted(total, total[at] + AT_ONCE, "right")) - 1
            last = max(last, at + 1)
            some = runs.among(slice(at, last))
            yield Links(
                np.repeat(some.owner, some.count),
                self._keys.take(some.start, some.count),
                self._modified.take(some.start, some.count),
            )
            at = last

    def close(self) -> None:
        """Let go of memory and files."""
        self._keys.close()
        self._modified.close()

    def of(self, owners: Collection[int]) -> Iterator[Links]:
        """The links of a few owners."""
        for owner in sorted(owners):
            yield from self.groups(owner, owner + 1)

    def by_owner(self) -> Links:
        """All links by owner, those of one in any order, with no second copy of them."""
        count = len(self)
        links = Links(np.empty(count, np.int32), np.empty(count, KEY), np.empty(count, _AGE))
        at = 0
        for part in self.groups():
            rows = slice(at, at + len(part))
            links.owner[rows], links.keys[rows] = part.owner, part.keys
            links.modified[rows] = part.modified
            at += len(part)
        return links

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
        for part in self.groups(younger=cutoff):
            yield part.keys[part.modified > cutoff]


class Revisions:
    """Revision links, by owner and key. Once their manifests have numbers, those replace keys."""

    __slots__ = ("_ids", "_keys", "_manifests", "_modified", "owner")

    def __init__(self, links: Links) -> None:
        self.owner = links.owner
        self.modified = links.modified
        self._keys: Keys | None = links.keys
        self._ids = np.empty(0, np.int32)
        self._manifests: Numbered | None = None

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def keys(self) -> Keys:
        """What each link names."""
        if self._keys is not None:
            return self._keys
        assert self._manifests is not None
        return self._manifests.keys_of(self._ids)

    @property
    def modified(self) -> NDArray[np.float64]:
        """The age of each link, in seconds since the epoch; not to be written to."""
        return self._modified.read(0, len(self))

    @modified.setter
    def modified(self, ages: NDArray[np.float64]) -> None:
        # Asked for at the beginning and for what goes, and no memory in between.
        self._modified = Spool(_AGE)
        self._modified.append(ages)

    def part(self, rows: slice | NDArray[np.bool_] | NDArray[np.integer]) -> Links:
        """The links in *rows*: a slice of neighbours, a mask, or numbers."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            modified = self._modified.read(start, stop)
        else:
            numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
            modified = self._modified.take(numbers, np.ones(len(numbers), np.int64))
        if self._keys is not None:
            keys = self._keys[rows]
        else:
            assert self._manifests is not None
            keys = self._manifests.keys_of(self._ids[rows])
        return Links(self.owner[rows], keys, modified)

    def numbered_by(self, manifests: Numbered) -> bool:
        """Whether the numbers are those that *manifests* give."""
        return self._manifests is manifests

    def number(self, manifests: Numbered) -> None:
        """Keep the numbers that *manifests*, which have loaded all of them, give the keys."""
        self._ids = manifests.ids(self.keys).astype(np.int32)
        self._manifests, self._keys = manifests, None

    def ids(self, manifests: Numbered) -> NDArray[np.int64]:
        """The numbers of the manifests that the links name."""
        if self._manifests is manifests:
            return self._ids.astype(np.int64)
        return manifests.ids(self.keys)


class Numbered(Protocol):
    """Gives keys numbers, and takes them back."""

    def ids(self, keys: Keys) -> NDArray[np.int64]:
        """The number of each of *keys*."""

    def keys_of(self, ids: NDArray[np.integer]) -> Keys:
        """The key of each number."""
