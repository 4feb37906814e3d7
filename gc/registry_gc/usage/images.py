"""The largest and the oldest images: what a tag points to, with all that it leads to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.compact.arrays import among, distinct, within
from registry_gc.digest import Keys
from registry_gc.manifest_reader import Edge, ManifestState
from registry_gc.marking.pairs import manifests_of, pairs_of, repositories_of
from registry_gc.usage.inventory import Inventory

_DEPTH = 64  # of indexes within indexes; a bound against rot, as none can hold its own digest


class Image(msgspec.Struct, frozen=True):
    """What tags of one repository point to. ``bytes``: everything it leads to, each blob once.

    ``pushed``: when the youngest of ``tags`` was set, in seconds since the epoch.
    """

    repository: str
    digest: str
    tags: tuple[str, ...]
    bytes: int
    pushed: float


class Images(NamedTuple):
    """The first of all images, by two orders."""

    largest: tuple[Image, ...]
    oldest: tuple[Image, ...]


def largest_and_oldest_images(inventory: Inventory, top: int) -> Images:
    """The *top* largest, and the *top* oldest images of all repositories."""
    return _Finder(inventory).find(top)


class _Finder:
    """Images are pairs of repository and manifest id, as in :mod:`registry_gc.mark`."""

    def __init__(self, inventory: Inventory) -> None:
        self.catalog = inventory.catalog
        self.manifests = inventory.manifests
        self.stored = inventory.stored
        self.sizes: dict[int, int] = {}
        tags = self.catalog.tags
        rows = np.flatnonzero(tags.known)
        ids = self.manifests.ids(tags.keys[rows])
        fine = ids >= 0
        fine[fine] = self.manifests.batch.states[ids[fine]] == ManifestState.OK
        # Rows of tags, and beside each its image.
        self.rows = rows[fine]
        self.tagged = pairs_of(tags.owner[self.rows], ids[fine])
        self.images = distinct(self.tagged)
        self.pushed = np.full(len(self.images), -np.inf)
        places = np.searchsorted(self.images, self.tagged)
        np.maximum.at(self.pushed, places, tags.modified[self.rows])

    def find(self, top: int) -> Images:
        largest = self._largest(top)
        oldest = np.argsort(self.pushed, kind="stable")[:top].tolist()
        return Images(self._named(largest), self._named(oldest))

    def _largest(self, top: int) -> list[int]:
        """Positions of the largest images.

        What parts of an index share is counted more than once in the bounds, so sizes are worked
        out one by one from the largest bound down, until no bound can beat what was found.
        """
        ids = manifests_of(self.images).tolist()
        bounds = self._bounds()[ids] if ids else []
        best: list[tuple[int, int]] = []
        for at in np.argsort(-np.asarray(bounds), kind="stable").tolist():
            if len(best) == top and bounds[at] <= -best[-1][0]:
                break
            best = sorted([*best, (-self._size(ids[at]), at)])[:top]
        return [at for _, at in best]

    def _bounds(self) -> NDArray[np.int64]:
        """For each manifest at least as many bytes as it leads to."""
        count = len(self.manifests)
        own = self._total(count, np.arange(count), self.manifests.batch.keys)
        flat = own.copy()
        parents, children = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for source, targets, edges in self.manifests.targets_in_parts(np.arange(count)):
            flat += self._total(count, source, targets)
            found = self.manifests.ids(targets)
            below = (found >= 0) & among(edges, (Edge.CHILD, Edge.MAYBE, Edge.LINKED))
            parents.append(source[below])
            children.append(found[below])
        above, below_it = np.concatenate(parents), np.concatenate(children)
        bounds = flat
        for _ in range(_DEPTH):
            more = flat.copy()
            np.add.at(more, above, bounds[below_it] - own[below_it])
            if (more == bounds).all():
                break
            bounds = more
        return bounds

    def _total(self, count: int, sources: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
        """For each of *count* sources the bytes of its keys."""
        found, rows = self.stored.find(sources, keys, self.catalog.aliases)
        sums = np.zeros(count, np.int64)
        np.add.at(sums, found, self.stored.sizes[rows])
        return sums

    def _size(self, number: int) -> int:
        """Bytes of all that a manifest leads to, each blob once."""
        if number in self.sizes:
            return self.sizes[number]
        seen: set[int] = set()
        frontier = [number]
        keys = [self.manifests.batch.keys[[number]]]
        while frontier:
            seen.update(frontier)
            _, targets, edges = self.manifests.targets_of(np.array(frontier, np.int64))
            keys.append(targets)
            found = self.manifests.ids(targets)
            below = (found >= 0) & among(edges, (Edge.CHILD, Edge.MAYBE, Edge.LINKED))
            frontier = sorted(set(found[below].tolist()) - seen)
        joined = np.concatenate(keys)
        zeros = np.zeros(len(joined), np.int64)
        _, rows = self.stored.find(zeros, joined, self.catalog.aliases)
        self.sizes[number] = int(self.stored.sizes[distinct(rows)].sum())
        return self.sizes[number]

    def _named(self, positions: Sequence[int]) -> tuple[Image, ...]:
        wanted = self.images[np.sort(np.array(positions, np.int64))]
        tags: dict[int, list[str]] = {image: [] for image in wanted.tolist()}
        for at in np.flatnonzero(within(wanted, self.tagged)).tolist():
            tags[int(self.tagged[at])].append(self.catalog.tags[int(self.rows[at])].name)
        owners, ids = repositories_of(self.images), manifests_of(self.images)
        found: list[Image] = []
        for at in positions:
            number = int(ids[at])
            key = self.manifests.batch.keys[number].tobytes()
            found.append(
                Image(
                    repository=self.catalog.repositories[int(owners[at])],
                    digest=self.catalog.names.text(key),
                    tags=tuple(sorted(tags[int(self.images[at])])),
                    bytes=self._size(number),
                    pushed=float(self.pushed[at]),
                )
            )
        return tuple(found)
