"""Roots to live: which manifests each repository keeps, and so which digests live.

The rules are those of docs/what-is-deleted.md. A *pair* is a manifest as one repository sees it,
packed as ``repository << 32 | manifest id``. Live pairs grow from the roots, round by round,
along children and referrers, until a round adds nothing; what a repository links and is not live
then, is dead in it. Everything is compared exactly here: an 8-byte prefix would do for what is
kept, not for what has been visited.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_gc.catalog import Catalog, Damage
from registry_gc.compact.arrays import distinct, union, within, without
from registry_gc.compact.key_index import distinct_keys
from registry_gc.digest import Keys, empty_keys, pack
from registry_gc.layout import blob_path, revision_link
from registry_gc.live_set import LiveSet
from registry_gc.manifest_reader import Edge, ManifestState
from registry_gc.marking.aliases import Aliases
from registry_gc.marking.broken_tags import broken_tags, entries_of
from registry_gc.marking.holding import Hold, Holding
from registry_gc.marking.live_keys import LiveKeys
from registry_gc.marking.pairs import MANIFEST, Pairs, manifests_of, pairs_of, repositories_of
from registry_gc.marking.referrers import Referrers
from registry_gc.policy import Policy
from registry_gc.references import Manifests


class Marking(msgspec.Struct, frozen=True):
    """What is live. ``live`` and ``dead`` are sorted pairs; ``dead`` ones are linked.

    ``held``: numbers of repositories of which nothing goes. ``young``: sorted keys that are not
    dead because something names them that is younger than the grace period. ``live_set``: every
    live digest, whether stored or not; ``live_keys`` tells which of them some pairs keep alive.
    """

    live: Pairs
    dead: Pairs
    held: frozenset[int]
    holds: tuple[Hold, ...]
    damaged: tuple[Damage, ...]
    young: Keys
    live_set: LiveSet
    live_keys: LiveKeys

    @property
    def digests(self) -> Keys:
        """Every live key, exactly, sorted, each once: 32 bytes each, for few or for tests."""
        return distinct_keys(np.concatenate([empty_keys(), *self.live_keys.of(self.live)]))


def mark(
    reader: Reader,
    catalog: Catalog,
    manifests: Manifests,
    policy: Policy,
    cutoff: float,
    young: Keys | None = None,
) -> Marking:
    """Find what is live.

    :param cutoff: seconds since the epoch; what is younger is not dead.
    :param young: keys known to be young beside those that a link of the catalog shows.
    :raises StorageError: a manifest could not be read, which is not that it is missing.
    """
    return _Marker(reader, catalog, manifests, policy, cutoff, young).run()


class _Marker:
    def __init__(
        self,
        reader: Reader,
        catalog: Catalog,
        manifests: Manifests,
        policy: Policy,
        cutoff: float,
        young: Keys | None,
    ) -> None:
        self.catalog = catalog
        self.manifests = manifests
        self.policy = policy
        self.aliases = Aliases(reader, catalog.names, catalog.aliases)
        self.young = self._young(cutoff, young)
        self.young_index = catalog.tag_index.modified > cutoff
        known = catalog.tags.known
        self.target_owner = catalog.tags.owner[known]
        self.target_keys = catalog.tags.keys[known]
        self.index_owner = catalog.tag_folders.owner[catalog.tag_index.owner]
        if not catalog.revisions.numbered_by(manifests):
            manifests.load(catalog.revisions.keys)
            catalog.revisions.number(manifests)
        manifests.load(
            np.concatenate(
                [
                    self.target_keys,
                    catalog.tag_index.keys[self.young_index],
                ]
            )
        )
        self.broken = broken_tags(catalog, manifests, policy)
        self.of_broken = entries_of(catalog, [*self.broken])
        manifests.load(catalog.tag_index.keys[self.of_broken])
        ids = catalog.revisions.ids(manifests)
        self.linked = distinct(pairs_of(catalog.revisions.owner, ids))
        self.linked_ids = distinct(ids)
        self.referrers = self._with_subject()
        self.holding = Holding(catalog, manifests, policy, self.aliases, self.linked)

    def _with_subject(self) -> Referrers:
        manifests = self.manifests
        referrers = self.linked[within(manifests.with_subject(), manifests_of(self.linked))]
        subjects = manifests.subjects_of(manifests_of(referrers))
        also = {
            row: self.aliases.targets_of([subjects[row].tobytes()])
            for row in self.aliases.among(subjects)
        }
        return Referrers(referrers, self.linked, manifests, also)

    def _young(self, cutoff: float, more: Keys | None) -> Keys:
        tags = self.catalog.tags
        revisions, index = self.catalog.revisions, self.catalog.tag_index
        parts = [revisions.part(revisions.modified > cutoff).keys]
        parts.append(index.keys[index.modified > cutoff])
        parts.append(empty_keys() if more is None else more)
        parts += self.catalog.layers.young(cutoff)
        parts.append(tags.keys[tags.known & (tags.modified > cutoff)])
        named = [link.digest for link in self.catalog.signatures if link.modified > cutoff]
        parts.append(pack(map(self.catalog.names.key, named)))
        keys = distinct_keys(np.concatenate(parts))
        if not self.catalog.aliases:
            return keys
        # A link of another name names both that and what it says.
        names = pack(sorted(self.catalog.aliases))
        young = map(np.void.tobytes, names[within(keys, names)])
        return union(keys, self.aliases.targets_of(young))

    def run(self) -> Marking:
        self.holding.broken_tags(self.broken)
        self.holding.misplaced()
        live = np.empty(0, np.int64)
        frontier = distinct(
            np.concatenate([self._roots(), self.holding.revisions(self.linked, live)])
        )
        keys_of = self._live_keys(self.holding.held).of
        # Without any root something may still be young, and so keep what refers to it.
        while len(frontier) or len(frontier := self.referrers.to_content(live, keys_of)):
            live = np.insert(live, np.searchsorted(live, frontier), frontier)
            reached = [self._children(frontier), self.referrers.of(frontier, live)]
            reached.append(self.holding.revisions(frontier, live))
            frontier = without(distinct(np.concatenate(reached)), live)
        return self._marking(live)

    def _roots(self) -> Pairs:
        """Where life begins in each repository."""
        tagged = pairs_of(self.target_owner, self.manifests.ids(self.target_keys))
        if not self.policy.delete_untagged:
            return np.concatenate([self.linked, tagged, self._named_by_index()])
        # A young key that was never loaded is that of no manifest anybody links.
        ids = distinct(self.manifests.ids(self.young))
        young = self.linked[within(ids, manifests_of(self.linked))]
        return np.concatenate([young, tagged, self._named_by_index()])

    def _named_by_index(self) -> Pairs:
        """What young entries of a tag's index name, and all entries of a broken tag."""
        rows = self.young_index | self.of_broken
        # Stored or not: what refers to it stays, as it does where the tag itself names it.
        ids = self.manifests.ids(self.catalog.tag_index.keys[rows])
        return pairs_of(self.index_owner[rows], ids)

    def _children(self, frontier: Pairs) -> Pairs:
        """The manifests that indexes of *frontier* list, linked in that repository or not."""
        frontier = frontier[~self.manifests.batch.plain[manifests_of(frontier)]]
        frontier = frontier[np.argsort(manifests_of(frontier))]
        found = [np.empty(0, np.int64)]
        by_link = [np.empty(0, np.int64)]
        unknown: list[tuple[Pairs, Keys, NDArray[np.uint8]]] = []
        for source, keys, edges in self.manifests.targets_in_parts(manifests_of(frontier)):
            rows = np.flatnonzero(edges != Edge.BLOB)
            owners, keys, edges = repositories_of(frontier[source[rows]]), keys[rows], edges[rows]
            ids = self.manifests.ids(keys)
            known = ids >= 0
            found.append(self._followed(owners[known], ids[known], edges[known]))
            by_link.append(self._followed_by_link(ids[known], edges[known]))
            # What nobody may follow is a child only if it is linked, and known then.
            new = ~known & (edges != Edge.LINKED)
            unknown.append((owners[new], keys[new], edges[new]))
        if any(len(keys) for _, keys, _ in unknown):
            # All at once: each load may be a pass over the cache.
            owners, keys, edges = map(np.concatenate, zip(*unknown, strict=True))
            self.manifests.load(keys)
            found.append(self._followed(owners, self.manifests.ids(keys), edges))
        found.append(self._links_to(np.concatenate(by_link)))
        return np.concatenate(found)

    def _followed(
        self, owners: NDArray[np.int64], ids: NDArray[np.int64], edges: NDArray[np.uint8]
    ) -> Pairs:
        """Those of what indexes of the repositories *owners* list that live by that."""
        # A child that is not stored is no error, and live: its referrers stay with it. What only
        # might be a manifest ends here unless it is one.
        stored = self.manifests.batch.states[ids] == ManifestState.OK
        maybe = within(self.linked_ids, ids) | ((edges == Edge.MAYBE) & stored)
        kept = (edges == Edge.CHILD) | maybe
        return pairs_of(owners[kept], ids[kept])

    def _followed_by_link(
        self, ids: NDArray[np.int64], edges: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Those that nothing but a repository's link tells to be manifests."""
        stored = self.manifests.batch.states[ids] == ManifestState.OK
        told = (edges == Edge.CHILD) | ((edges == Edge.MAYBE) & stored)
        by_link: NDArray[np.int64] = ids[~told & within(self.linked_ids, ids)]
        return by_link

    def _links_to(self, ids: NDArray[np.int64]) -> Pairs:
        """Every link of the manifests *ids*, in whatever repository.

        Where a link alone says that an entry is a manifest, it stays: without it the next run
        would take the entry for a blob, and delete what the manifest needs.
        """
        if not len(ids):
            return ids
        return self.linked[within(distinct(ids), manifests_of(self.linked))]

    def _live_keys(self, held: Collection[int]) -> LiveKeys:
        return LiveKeys(self.catalog, self.manifests, self.aliases, self.young, held)

    def _marking(self, live: Pairs) -> Marking:
        dead, damaged = without(self.linked, live), self._damaged()
        held, holds = frozenset(self.holding.held), self.holding.holds
        # The live set is what takes most; it needs no more of what led here, nor do later parts.
        del self.linked, self.linked_ids, self.referrers, self.holding
        del self.target_owner, self.target_keys
        live_keys = self._live_keys(held)
        return Marking(
            live=live,
            dead=dead,
            held=held,
            holds=holds,
            damaged=damaged,
            young=self.young,
            live_set=live_keys.gathered(live),
            live_keys=live_keys,
        )

    def _damaged(self) -> tuple[Damage, ...]:
        found = set(self.catalog.damaged)
        told = {damage.path for damage in found}
        batch = self.manifests.batch
        states = batch.states[manifests_of(self.linked)]
        for pair in self.linked[states == ManifestState.MISSING].tolist():
            digest = self.catalog.names.text(batch.keys[pair & MANIFEST].tobytes())
            path = revision_link(self.catalog.repositories[pair >> 32], digest)
            if path not in told:
                found.add(Damage(path, batch.reasons[pair & MANIFEST]))
        for pair in self.linked[states == ManifestState.MISMATCH].tolist():
            digest = self.catalog.names.text(batch.keys[pair & MANIFEST].tobytes())
            found.add(Damage(blob_path(digest), batch.reasons[pair & MANIFEST]))
        ids = self.manifests.ids(self.target_keys)
        pairs = pairs_of(self.target_owner, ids)
        lost = (batch.states[ids] == ManifestState.MISSING) & ~within(self.linked, pairs)
        tags = np.flatnonzero(self.catalog.tags.known)
        for at in np.flatnonzero(lost).tolist():
            found.add(Damage(self.catalog.tags.path(int(tags[at])), batch.reasons[int(ids[at])]))
        return tuple(sorted(found, key=lambda damage: (damage.path, damage.reason)))
