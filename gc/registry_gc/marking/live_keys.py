"""What live pairs keep alive: manifests, what they reference, and what stays beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, distinct, within
from registry_gc.digest import Keys, pack
from registry_gc.live_set import LiveSet
from registry_gc.marking.aliases import Aliases
from registry_gc.marking.pairs import Pairs, manifests_of, pairs_of
from registry_gc.references import Manifests

_IDS_AT_ONCE = 1 << 16


class LiveKeys(msgspec.Struct, frozen=True, eq=False):
    """What live pairs keep alive.

    ``young``: sorted keys that live because something young names them. ``held``: numbers of the
    repositories of which nothing goes.
    """

    catalog: Catalog
    manifests: Manifests
    aliases: Aliases
    young: Keys
    held: Collection[int]

    def of(self, live: Pairs) -> Iterator[Keys]:
        """Every live key, some at a time, some more than once.

        Who asks for some pairs alone gets what those add.
        """
        ids = distinct(manifests_of(live))
        met: set[bytes] = set()
        for part in self._named(ids, live):
            yield part
            met.update(part[row].tobytes() for row in self.aliases.among(part))
        yield self.aliases.targets_of(met)

    def gathered(self, live: Pairs) -> LiveSet:
        """All of them, in little."""
        return LiveSet.gathered(self.of(live), self._at_most(live))

    def _at_most(self, live: Pairs) -> int:
        ids = distinct(manifests_of(live))
        held = sum(len(part) for part in self._held_links())
        more = held + len(self.young) + len(self.catalog.signatures)
        more += sum(map(len, self.catalog.aliases.values()))
        return len(ids) + self.manifests.edges_among(ids) + more

    def _named(self, ids: NDArray[np.int64], live: Pairs) -> Iterator[Keys]:
        for start in range(0, len(ids), _IDS_AT_ONCE):
            yield self.manifests.keys_of(ids[start : start + _IDS_AT_ONCE])
        for _, referenced, _ in self.manifests.targets_in_parts(ids):
            yield referenced
        yield self.young
        yield pack(self._signatures(live))
        yield from self._held_links()

    def _held_links(self) -> Iterator[Keys]:
        """What layer links and tags' entries of held repositories name."""
        if self.held:
            catalog = self.catalog
            for part in catalog.layers.of(self.held):
                yield part.keys
            owners = catalog.tag_folders.owner[catalog.tag_index.owner]
            yield catalog.tag_index.keys[among(owners, self.held)]

    def _signatures(self, live: Pairs) -> list[bytes]:
        """The signature blobs of live schema 1 revisions."""
        signatures, key = self.catalog.signatures, self.catalog.names.key
        revisions = pack(key(signature.revision) for signature in signatures)
        owners = np.array([signature.repository for signature in signatures], dtype=np.int64)
        ids = self.manifests.ids(revisions)
        alive = (ids >= 0) & within(live, pairs_of(owners, np.maximum(ids, 0)))
        alive |= among(owners, self.held)
        return [
            key(signature.digest)
            for signature, kept in zip(signatures, alive.tolist(), strict=True)
            if kept
        ]
