"""Everything that a registry stores, with sizes, and what collections would take of it.

For those who ask who uses the storage. One listing, each manifest read once, then one marking
for each policy that is asked about: marking reads nothing a second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_gc.cache import ReferenceCache
from registry_gc.catalog import Catalog
from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import Keys, empty_keys, pack, prefixes
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.reading import read_catalog
from registry_gc.listing.repositories import Upload
from registry_gc.mark import Marking, mark
from registry_gc.marking.pairs import Pairs
from registry_gc.marking.signatures import read_signatures
from registry_gc.marking.young_blobs import YoungBlobs
from registry_gc.plan import abandoned_uploads
from registry_gc.policy import Policy, Release
from registry_gc.references import Manifests


class Stored(msgspec.Struct, frozen=True):
    """All blobs, sorted by the first 64 bits of their keys, one row each.

    ``sizes``: the bytes that deleting frees, 0 for a file with another hard link. ``modified``:
    seconds since the epoch.
    """

    keys: Keys
    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    def find(
        self,
        sources: NDArray[np.int64],
        keys: Keys,
        aliases: Mapping[bytes, set[bytes]],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of those of *keys* that are stored, each beside its source.

        A key that stands for another digest too leads to both, where both are stored.
        """
        index = KeyIndex(self.keys)
        at = index.positions(keys)
        found, rows = sources[at >= 0], at[at >= 0]
        pairs = [(name, key) for name in sorted(aliases) for key in sorted(aliases[name])]
        if not pairs:
            return found, rows
        names, targets = (pack(side) for side in zip(*pairs, strict=True))
        first = np.searchsorted(names, keys, "left")
        counts = np.searchsorted(names, keys, "right") - first
        sources = np.repeat(sources, counts)
        within_name = np.arange(len(sources)) - np.repeat(np.cumsum(counts) - counts, counts)
        meant = targets[np.repeat(first, counts) + within_name]
        at = index.positions(meant)
        return (
            np.concatenate([found, sources[at >= 0]]),
            np.concatenate([rows, at[at >= 0]]),
        )


class Outlook(msgspec.Struct, frozen=True):
    """What a collection under one policy would come to.

    ``dead`` tells for each row of :class:`Stored` whether it would go.
    """

    policy: Policy
    marking: Marking
    dead: NDArray[np.bool_]
    uploads: tuple[Upload, ...]


class Inventory(msgspec.Struct, frozen=True):
    """What there is, and an outlook for each policy, in the order in which they were given.

    ``untagged``: linked manifests that no tag leads to, young and held ones too; sorted pairs.
    """

    catalog: Catalog
    manifests: Manifests
    stored: Stored
    outlooks: tuple[Outlook, ...]
    untagged: Pairs
    strangers: int


def take_inventory(
    reader: Reader,
    engine: Engine,
    policies: Sequence[Policy],
    cutoff: float,
    observer: Observer,
    cache: str | None = None,
) -> Inventory:
    """Read what a registry holds.

    :param cutoff: seconds since the epoch; nothing younger is dead.
    :param cache: the path of the reference cache; None to read every manifest.
    :raises StorageError: something could not be read.
    """
    return _Taker(reader, engine, policies, cutoff, observer).take(cache)


class _Taker:
    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        policies: Sequence[Policy],
        cutoff: float,
        observer: Observer,
    ) -> None:
        self.reader = reader
        self.engine = engine
        self.policies = policies
        self.cutoff = cutoff
        self.observer = observer

    def take(self, path: str | None) -> Inventory:
        catalog = read_catalog(self.reader, self.engine, self.observer)
        stored, strangers = self._blobs(catalog)
        cache = None if path is None else ReferenceCache.open(path)
        try:
            manifests, outlooks = self._look(catalog, stored, cache)
            manifests.check(stored.keys, stored.sizes)
            lost = manifests.unconfirmed()
            if cache is not None and len(lost):
                self.observer.notice(
                    f"{len(lost)} manifests that an earlier run has read are gone or of another "
                    "size; reading all of them again"
                )
                cache.forget(lost)
                manifests, outlooks = self._look(catalog, stored, None)
        finally:
            if cache is not None:
                cache.close()
                for notice in cache.notices:
                    self.observer.notice(notice)
        untagged = self._untagged(catalog, manifests, outlooks)
        strangers += catalog.strangers
        return Inventory(catalog, manifests, stored, outlooks, untagged, strangers)

    def _look(
        self, catalog: Catalog, stored: Stored, cache: ReferenceCache | None
    ) -> tuple[Manifests, tuple[Outlook, ...]]:
        manifests = Manifests(self.engine, catalog.names, catalog.aliases, self.observer, cache)
        manifests.load(catalog.revisions.keys)
        catalog.signatures = read_signatures(self.reader, catalog, manifests)
        outlooks = [self._outlook(catalog, manifests, stored, policy) for policy in self.policies]
        return manifests, tuple(outlooks)

    def _untagged(
        self, catalog: Catalog, manifests: Manifests, outlooks: tuple[Outlook, ...]
    ) -> Pairs:
        """What is dead with ``-m`` where nothing is young and nothing held."""
        for outlook in outlooks:
            kept = outlook.marking.held or len(outlook.marking.young)
            if outlook.policy.delete_untagged and not kept:
                return outlook.marking.dead
        holds = {hold.repository for outlook in outlooks for hold in outlook.marking.holds}
        policy = Policy(delete_untagged=True, releases=frozenset(map(Release, holds)))
        return mark(self.reader, catalog, manifests, policy, np.inf).dead

    def _mark(
        self, catalog: Catalog, manifests: Manifests, policy: Policy, young: Keys | None = None
    ) -> Marking:
        return mark(self.reader, catalog, manifests, policy, self.cutoff, young)

    def _blobs(self, catalog: Catalog) -> tuple[Stored, int]:
        self.observer.phase("listing blobs", None, "blobs")
        keys = [empty_keys()]
        sizes = [np.empty(0, np.int64)]
        modified = [np.empty(0, np.float64)]
        strangers = 0
        for batch in stream_blobs(self.reader, self.engine):
            keys.append(batch.keys)
            sizes.append(batch.sizes)
            modified.append(batch.modified)
            strangers += batch.strangers
            catalog.names.others.update(batch.others)
            self.observer.advance(len(batch.keys))
        self.observer.finish()
        joined = np.concatenate(keys)
        # By their first 64 bits, which is what a KeyIndex searches; whole keys take ten times.
        order = np.argsort(prefixes(joined), kind="stable")
        stored = Stored(
            joined[order], np.concatenate(sizes)[order], np.concatenate(modified)[order]
        )
        return stored, strangers

    def _outlook(
        self,
        catalog: Catalog,
        manifests: Manifests,
        stored: Stored,
        policy: Policy,
    ) -> Outlook:
        """As a collection decides: a blob may be young although no link of it is."""
        marking = self._mark(catalog, manifests, policy)
        unreached = ~marking.live_set.has(stored.keys)
        young = stored.modified > self.cutoff
        dead = unreached & ~young
        ages = YoungBlobs(catalog, manifests, marking, self.cutoff if policy.grace else None)
        late = stored.keys[young & (unreached | ages.doubtful.has(stored.keys))]
        if len(late):
            marking = self._mark(catalog, manifests, policy, late)
            dead &= ~marking.live_set.has(stored.keys)
        uploads = abandoned_uploads(catalog, policy, self.cutoff)
        return Outlook(policy, marking, dead, tuple(uploads))
