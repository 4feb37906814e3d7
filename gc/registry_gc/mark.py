"""Roots to live: which manifests each repository keeps, and so which digests live.

The rules are those of docs/what-is-deleted.md. A *pair* is a manifest as one repository sees it,
packed as ``repository << 32 | manifest id``. Live pairs grow from the roots, round by round,
along children and referrers, until a round adds nothing; what a repository links and is not live
then, is dead in it. Everything is compared exactly here: an 8-byte prefix would do for what is
kept, not for what has been visited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, StorageError
from registry_gc.catalog import Catalog, Damage
from registry_gc.compact.arrays import among, distinct, union, within, without
from registry_gc.compact.key_index import KeyIndex, distinct_keys
from registry_gc.digest import Keys, Names, empty_keys, pack
from registry_gc.layout import REPOSITORIES, blob_path, revision_link
from registry_gc.listing.links import VANISHED
from registry_gc.live_set import LiveSet
from registry_gc.manifest_reader import Edge, State
from registry_gc.marking.pairs import MANIFEST, Pairs, manifests_of, pairs_of, repositories_of
from registry_gc.marking.referrers import Referrers
from registry_gc.policy import Policy
from registry_gc.references import Manifests

_IDS_AT_ONCE = 1 << 16


class Hold(msgspec.Struct, frozen=True):
    """Why nothing of a repository goes: what could not be read there."""

    repository: str
    digest: str | None
    reason: str


class Marking(msgspec.Struct, frozen=True):
    """What is live. ``live`` and ``dead`` are sorted pairs; ``dead`` ones are linked.

    ``held``: numbers of repositories of which nothing goes. ``young``: sorted keys that are not
    dead because something names them that is younger than the grace period. ``live_set``: every
    live digest, whether stored or not.
    """

    live: Pairs
    dead: Pairs
    held: frozenset[int]
    holds: tuple[Hold, ...]
    damaged: tuple[Damage, ...]
    young: Keys
    live_set: LiveSet
    parts: Callable[[Pairs], Iterator[Keys]]

    @property
    def digests(self) -> Keys:
        """Every live key, exactly, sorted, each once: 32 bytes each, for few or for tests."""
        return distinct_keys(np.concatenate([empty_keys(), *self.parts(self.live)]))


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


class _Aliases:
    """What is stored for a digest that is not sha256: under its own name, or another's."""

    def __init__(self, reader: Reader, names: Names, aliases: dict[bytes, set[bytes]]) -> None:
        self._reader = reader
        self._names = names
        self._aliases = aliases
        self._stored: dict[bytes, bool] = {}

    def targets(self, key: bytes) -> set[bytes]:
        """The keys that links of this name hold."""
        return self._aliases.get(key, set())

    def found(self, key: bytes) -> bool:
        """Tell whether a blob has this name, or a name that a readable link says.

        A link that says what is not stored may be rotten, and then nobody knows the right name.
        """
        return any(map(self._is_stored, (key, *sorted(self.targets(key)))))

    def _is_stored(self, key: bytes) -> bool:
        if key not in self._stored:
            try:
                self._reader.stat(blob_path(self._names.text(key)))
                self._stored[key] = True
            except NotFound:
                self._stored[key] = False
        return self._stored[key]


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
        self.names = catalog.names
        self.aliases = _Aliases(reader, catalog.names, catalog.aliases)
        self.young = self._young(cutoff, young)
        self.young_index = catalog.tag_index.modified > cutoff
        known = catalog.tags.known
        self.target_owner = catalog.tags.owner[known]
        self.target_keys = catalog.tags.keys[known]
        self.index_owner = catalog.tag_folders.owner[catalog.tag_index.owner]
        self.checked = np.empty(0, np.int64)
        self.holds: dict[tuple[int, str | None], str] = {}
        self.held: set[int] = set()
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
        self.broken = self._broken_tags()
        manifests.load(catalog.tag_index.keys[self._of_broken_tags()])
        ids = catalog.revisions.ids(manifests)
        self.linked = distinct(pairs_of(catalog.revisions.owner, ids))
        self.linked_ids = distinct(ids)
        self.referrers = self._with_subject()
        # How many of those that are held have had their revisions made live.
        self.kept_whole = 0

    def _with_subject(self) -> Referrers:
        manifests = self.manifests
        referrers = self.linked[within(manifests.with_subject(), manifests_of(self.linked))]
        subjects = manifests.subjects_of(manifests_of(referrers))
        also = {
            row: pack(sorted(self.aliases.targets(subjects[row].tobytes())))
            for row in self._other_names(subjects)
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
        parts.append(pack(map(self.names.key, named)))
        keys = distinct_keys(np.concatenate(parts))
        if not self.catalog.aliases:
            return keys
        # A link of another name names both that and what it says.
        names = pack(sorted(self.catalog.aliases))
        stored = map(self.aliases.targets, map(np.void.tobytes, names[within(keys, names)]))
        return union(keys, pack(key for targets in stored for key in sorted(targets)))

    def _broken_tags(self) -> dict[int, str]:
        """The tags that do not say what they point to, where that has not been released, and why.

        A registry writes an entry of the tag's index before it points the tag there. So a digest
        that is in neither the index nor the store was never written: the link has rotted.
        """
        tags = self.catalog.tags
        missing = self.manifests.in_state(State.MISSING)[self.manifests.ids(self.target_keys)]
        lost = np.flatnonzero(tags.known)[missing].tolist()
        broken: dict[int, str] = {}
        vanished = {it.path for it in self.catalog.damaged if it.reason == VANISHED}
        for row in sorted([*np.flatnonzero(~tags.known).tolist(), *lost]):
            tag = tags[row]
            reason = VANISHED if tag.path in vanished else "holds no digest"
            if tag.target is not None:
                reason = f"points to {tag.target}, which was never pushed"
                if self._was_ever(row):
                    continue
            if not self.policy.released(self._name(tag.repository), tag.target):
                broken[row] = reason
        return broken

    def _was_ever(self, row: int) -> bool:
        """Whether the target of the tag in *row* is in its index."""
        index, folder = self.catalog.tag_index, int(self.catalog.tags.folder[row])
        rows = slice(*np.searchsorted(index.owner, [folder, folder + 1]).tolist())
        key = self.catalog.tags.keys[row].tobytes()
        return key in {entry.tobytes() for entry in index.keys[rows]}

    def _of_broken_tags(self) -> NDArray[np.bool_]:
        """Tell for each tag-index entry whether its tag does not say what it points to."""
        broken = np.zeros(len(self.catalog.tag_folders), dtype=np.bool_)
        broken[self.catalog.tags.folder[list(self.broken)]] = True
        found: NDArray[np.bool_] = broken[self.catalog.tag_index.owner]
        return found

    def _name(self, repository: int) -> str:
        return self.catalog.repositories[repository]

    def run(self) -> Marking:
        self._hold_broken_tags()
        self._hold_misplaced()
        live = np.empty(0, np.int64)
        frontier = distinct(np.concatenate([self._roots(), self._of_held(self.linked, live)]))
        # Without any root something may still be young, and so keep what refers to it.
        while len(frontier) or len(frontier := self._referrers_to_content(live)):
            live = np.insert(live, np.searchsorted(live, frontier), frontier)
            reached = [self._children(frontier), self.referrers.of(frontier, live)]
            reached.append(self._of_held(frontier, live))
            frontier = without(distinct(np.concatenate(reached)), live)
        return self._marking(live)

    def _hold_broken_tags(self) -> None:
        for row, reason in self.broken.items():
            tag = self.catalog.tags[row]
            self.holds[tag.repository, None] = f"the tag {tag.name} {reason}"
            self.held.add(tag.repository)

    def _hold_misplaced(self) -> None:
        """Hold repositories that have a file where a folder is to be.

        :raises StorageError: it is that of their manifests, which nobody can name any more.
        """
        for repository, path in self.catalog.misplaced.items():
            name = self._name(repository)
            if self.policy.released(name, None):
                continue
            below = path[len(f"{REPOSITORIES}{name}/") :]
            if below.count("/") < 3 and "/tags" not in below:
                raise StorageError(
                    f"a file where a folder is to be: nobody knows which manifests {name} has; "
                    f"repair it, remove it, or say --release {name}",
                    path=path,
                )
            self.holds.setdefault((repository, None), f"{below} is no folder")
            self.held.add(repository)

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
        rows = self.young_index | self._of_broken_tags()
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
        stored = self.manifests.batch.states[ids] == State.OK
        maybe = within(self.linked_ids, ids) | ((edges == Edge.MAYBE) & stored)
        kept = (edges == Edge.CHILD) | maybe
        return pairs_of(owners[kept], ids[kept])

    def _followed_by_link(
        self, ids: NDArray[np.int64], edges: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Those that nothing but a repository's link tells to be manifests."""
        stored = self.manifests.batch.states[ids] == State.OK
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

    def _referrers_to_content(self, live: Pairs) -> Pairs:
        return self.referrers.to_content(live, self._live_keys)

    def _other_names(self, keys: Keys) -> list[int]:
        """Which of *keys* are digests of another algorithm than sha256."""
        if not self.names.others:
            return []
        others = KeyIndex(pack(sorted(self.names.others)))
        return np.flatnonzero(others.has(keys)).tolist()

    def _of_held(self, met: Pairs, live: Pairs) -> Pairs:
        """All revisions of the repositories that link or reach what could not be read.

        :param met: what is linked, or has come to life since this was asked last.
        """
        damaged = self.manifests.in_state(State.UNREADABLE, State.MISMATCH)
        if damaged.any():
            for pair in met[damaged[manifests_of(met)]].tolist():
                key = self.manifests.batch.keys[pair & MANIFEST].tobytes()
                self._hold(pair >> 32, key, self.manifests.batch.reasons[pair & MANIFEST])
        self._hold_dangling(live)
        if len(self.held) == self.kept_whole:
            return np.empty(0, np.int64)
        self.kept_whole = len(self.held)
        return self.linked[among(repositories_of(self.linked), self.held)]

    def _hold_dangling(self, live: Pairs) -> None:
        """Hold repositories that link or reach a digest of which no name is stored.

        Only for other algorithms than sha256: there a blob may be stored under a name that
        nobody can tell.
        """
        if not self.names.others or not len(live):
            return
        fresh = without(live, self.checked)
        self.checked = live
        # Side by side, as what they name is kept.
        fresh = fresh[np.argsort(manifests_of(fresh))]
        # Few have such a name, and the keys of all would take four times what their pairs do.
        ids = self.manifests.ids(pack(sorted(self.names.others)))
        named = fresh[within(distinct(ids[ids >= 0]), manifests_of(fresh))]
        self._hold_where_lost(named, self.manifests.keys_of(manifests_of(named)), "linked")
        for source, keys, _ in self.manifests.targets_in_parts(manifests_of(fresh)):
            self._hold_where_lost(fresh[source], keys, "referenced")

    def _hold_where_lost(self, pairs: Pairs, keys: Keys, how: str) -> None:
        """Hold the repository of each pair whose key is stored under no name that is known."""
        for row in self._other_names(keys):
            key = keys[row].tobytes()
            if not self.aliases.found(key):
                repository = int(repositories_of(pairs[row]))
                self._hold(repository, key, f"{how}, but stored under no known name")

    def _hold(self, repository: int, key: bytes, reason: str) -> None:
        digest = self.names.text(key)
        if not self.policy.released(self._name(repository), digest):
            self.holds[repository, digest] = reason
            self.held.add(repository)

    def _marking(self, live: Pairs) -> Marking:
        holds = [
            Hold(self._name(repository), digest, reason)
            for (repository, digest), reason in self.holds.items()
        ]
        dead, damaged = without(self.linked, live), self._damaged()
        # The live set is what takes most; it needs no more of what led here, nor do later parts.
        del self.linked, self.linked_ids, self.referrers, self.checked
        del self.target_owner, self.target_keys
        return Marking(
            live=live,
            dead=dead,
            held=frozenset(self.held),
            holds=tuple(sorted(holds, key=lambda hold: (hold.repository, hold.digest or ""))),
            damaged=damaged,
            young=self.young,
            live_set=self._live_set(live),
            parts=self._live_keys,
        )

    def _damaged(self) -> tuple[Damage, ...]:
        found = set(self.catalog.damaged)
        told = {damage.path for damage in found}
        batch = self.manifests.batch
        states = batch.states[manifests_of(self.linked)]
        for pair in self.linked[states == State.MISSING].tolist():
            digest = self.names.text(batch.keys[pair & MANIFEST].tobytes())
            path = revision_link(self._name(pair >> 32), digest)
            if path not in told:
                found.add(Damage(path, batch.reasons[pair & MANIFEST]))
        for pair in self.linked[states == State.MISMATCH].tolist():
            digest = self.names.text(batch.keys[pair & MANIFEST].tobytes())
            found.add(Damage(blob_path(digest), batch.reasons[pair & MANIFEST]))
        ids = self.manifests.ids(self.target_keys)
        pairs = pairs_of(self.target_owner, ids)
        lost = (batch.states[ids] == State.MISSING) & ~within(self.linked, pairs)
        tags = np.flatnonzero(self.catalog.tags.known)
        for at in np.flatnonzero(lost).tolist():
            found.add(Damage(self.catalog.tags.path(int(tags[at])), batch.reasons[int(ids[at])]))
        return tuple(sorted(found, key=lambda damage: (damage.path, damage.reason)))

    def _live_set(self, live: Pairs) -> LiveSet:
        return LiveSet.gathered(self._live_keys(live), self._live_at_most(live))

    def _live_at_most(self, live: Pairs) -> int:
        ids = distinct(manifests_of(live))
        held = sum(len(part) for part in self._of_held_links())
        more = held + len(self.young) + len(self.catalog.signatures)
        more += sum(map(len, self.catalog.aliases.values()))
        return len(ids) + self.manifests.edges_among(ids) + more

    def _live_keys(self, live: Pairs) -> Iterator[Keys]:
        """Every live key: manifests, what they reference, and whatever must stay beside them.

        Some more than once. Who asks for some pairs alone gets what those add.
        """
        ids = distinct(manifests_of(live))
        met: set[bytes] = set()
        for part in self._named_keys(ids, live):
            yield part
            met.update(part[row].tobytes() for row in self._other_names(part))
        yield pack(key for name in sorted(met) for key in sorted(self.aliases.targets(name)))

    def _named_keys(self, ids: NDArray[np.int64], live: Pairs) -> Iterator[Keys]:
        for start in range(0, len(ids), _IDS_AT_ONCE):
            yield self.manifests.keys_of(ids[start : start + _IDS_AT_ONCE])
        for _, referenced, _ in self.manifests.targets_in_parts(ids):
            yield referenced
        yield self.young
        yield pack(self._signatures(live))
        yield from self._of_held_links()

    def _of_held_links(self) -> Iterator[Keys]:
        """What layer links and tags' entries of held repositories name."""
        if self.held:
            for part in self.catalog.layers.of(self.held):
                yield part.keys
            yield self.catalog.tag_index.keys[among(self.index_owner, self.held)]

    def _signatures(self, live: Pairs) -> list[bytes]:
        """The signature blobs of live schema 1 revisions."""
        signatures = self.catalog.signatures
        revisions = pack(self.names.key(signature.revision) for signature in signatures)
        owners = np.array([signature.repository for signature in signatures], dtype=np.int64)
        ids = self.manifests.ids(revisions)
        alive = (ids >= 0) & within(live, pairs_of(owners, np.maximum(ids, 0)))
        alive |= among(owners, self.held)
        return [
            self.names.key(signature.digest)
            for signature, kept in zip(signatures, alive.tolist(), strict=True)
            if kept
        ]
