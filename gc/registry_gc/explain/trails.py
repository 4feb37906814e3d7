"""How something is reached: from a root, by indexes and subjects, down to a digest. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import distinct, within
from registry_gc.digest import pack
from registry_gc.explain.fates import how_young
from registry_gc.manifest_reader import Edge, ManifestState
from registry_gc.manifests import ManifestKind
from registry_gc.mark import Marking
from registry_gc.marking.pairs import manifests_of, pair_of, pairs_of, repositories_of
from registry_gc.policy import Policy
from registry_gc.references import Manifests

KINDS = {
    ManifestKind.IMAGE: "image",
    ManifestKind.INDEX: "index",
    ManifestKind.ARTIFACT: "artifact",
    ManifestKind.SCHEMA_1: "schema 1 image",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing on the way. ``relation``: what the one before does with it, empty for the first."""

    relation: str
    kind: str
    digest: str


@dataclass(frozen=True, slots=True)
class Trail:
    """The way from a root to a digest. ``tag`` is None where the root is no tag; ``root``: why."""

    repository: str
    tag: str | None
    root: str
    steps: tuple[Step, ...]


Pair = tuple[int, int]
"""A manifest as one repository sees it: the numbers of both."""


class Trails:
    """Looks upwards from digests, through what a marking has found live.

    :param young: manifests younger than the cut-off are roots.
    """

    def __init__(
        self, catalog: Catalog, manifests: Manifests, marking: Marking, policy: Policy
    ) -> None:
        self._catalog = catalog
        self._manifests = manifests
        self._marking = marking
        self._policy = policy
        self._live: set[int] = set(marking.live.tolist())
        self._linked = self._pairs_of_links()
        self._ids: NDArray[np.int64] = distinct(manifests_of(marking.live))
        self._in: dict[int, list[int]] = {}
        owners, numbers = repositories_of(marking.live), manifests_of(marking.live)
        for owner, number in zip(owners.tolist(), numbers.tolist(), strict=True):
            self._in.setdefault(number, []).append(owner)
        self._tags = self._tags_by_target()
        numbers = manifests.with_subject()
        subjects = map(np.void.tobytes, manifests.subjects_of(numbers))
        self._subjects: dict[int, bytes] = dict(zip(numbers.tolist(), subjects, strict=True))
        self._source, self._targets, self._edges = manifests.targets_of(self._ids)

    def _pairs_of_links(self) -> set[int]:
        revisions = self._catalog.revisions
        return set(pairs_of(revisions.owner, self._manifests.ids(revisions.keys)).tolist())

    def _tags_by_target(self) -> dict[Pair, list[str]]:
        known = [tag for tag in self._catalog.tags if tag.target is not None]
        keys = pack(self._catalog.names.key(tag.target or "") for tag in known)
        found: dict[Pair, list[str]] = {}
        for tag, number in zip(known, self._manifests.ids(keys).tolist(), strict=True):
            found.setdefault((tag.repository, number), []).append(tag.name)
        return found

    def _names(self, key: bytes) -> list[bytes]:
        """*key*, and the names of other algorithms that stand for it."""
        return [key, *(name for name, said in self._catalog.aliases.items() if key in said)]

    def _naming(self, key: bytes) -> dict[int, str]:
        """The live manifests that name *key*, and how."""
        names = pack(sorted(self._names(key)))
        rows = np.flatnonzero(within(names, self._targets)).tolist()
        found: dict[int, str] = {}
        for row in rows:
            relation = "names" if self._edges[row] in (Edge.BLOB, Edge.LINKED) else "lists"
            found[int(self._ids[self._source[row]])] = relation
        return found

    def _describing(self, key: bytes) -> list[int]:
        names = set(self._names(key))
        return [
            number
            for number, subject in self._subjects.items()
            if subject in names and number in self._in
        ]

    def subject_of(self, number: int) -> bytes:
        """The key of what the manifest *number* describes; empty where it describes nothing."""
        return self._subjects.get(number, b"")

    def _digest(self, number: int) -> str:
        return self._catalog.names.text(self._manifests.batch.keys[number].tobytes())

    def kind_of(self, number: int) -> str:
        """What the manifest *number* is; ``blob`` for anything that is none."""
        if number < 0 or self._manifests.batch.states[number] != ManifestState.OK:
            return "blob"
        return KINDS[ManifestKind(self._manifests.batch.kinds[number])]

    def naming(self, key: bytes, repository: str | None) -> list[tuple[str, str, str]]:
        """The live manifests that refer to *key*: repository, relation, digest."""
        found = dict.fromkeys(self._describing(key), "describes") | self._naming(key)
        return sorted(
            (self._catalog.repositories[owner], relation, self._digest(number))
            for number, relation in found.items()
            for owner in self._in[number]
            if repository in (None, self._catalog.repositories[owner])
        )

    # Upwards

    def to(self, key: bytes, repository: str | None) -> list[Trail]:
        """One way to *key* from each tag that leads there; where none does, from another root.

        The shortest from each. Sorted by repository and tag.
        """
        below = self._reached_upwards(key, repository)
        by_tag: list[Trail] = []
        other: dict[int, Trail] = {}
        for pair in below:
            tags = self._tags.get(pair, ())
            by_tag += [self._trail(pair, tag, "tag", below, key) for tag in tags]
            root = "" if tags else self._other_root(pair)
            if root and pair[0] not in other:
                other[pair[0]] = self._trail(pair, None, root, below, key)
        tagged = {trail.repository for trail in by_tag}
        rest = [trail for trail in other.values() if trail.repository not in tagged]
        return sorted(by_tag + rest, key=lambda trail: (trail.repository, trail.tag or ""))

    def _reached_upwards(
        self, key: bytes, repository: str | None
    ) -> dict[Pair, tuple[Pair | None, str]]:
        """Each live pair from which *key* is reached: the next one down, and the relation.

        In the order of distance.
        """
        (own,) = self._manifests.ids(pack([key])).tolist()
        begin = {**self._naming(key)}
        if own in self._in:
            begin[own] = ""
        below: dict[Pair, tuple[Pair | None, str]] = {
            (owner, number): (None, relation)
            for number, relation in sorted(begin.items(), key=lambda item: item[1])
            for owner in self._in[number]
            if repository in (None, self._catalog.repositories[owner])
        }
        level = list(below)
        while level:
            above = self._above({number for _, number in level})
            upper: list[Pair] = []
            for pair in level:
                for parent, relation in self._parents(pair, above):
                    if parent not in below:
                        below[parent] = (pair, relation)
                        upper.append(parent)
            level = upper
        return below

    def _above(self, numbers: Iterable[int]) -> dict[int, list[tuple[int, bool]]]:
        """The live manifests that list each of some manifests; one look for all of them.

        With each, whether only a link tells that what it lists is a manifest.
        """
        wanted = np.array(sorted(numbers), np.int64)
        keys = self._manifests.batch.keys[wanted]
        order = np.argsort(keys, kind="stable")
        rows = np.flatnonzero(within(keys[order], self._targets) & (self._edges != Edge.BLOB))
        found: dict[int, list[tuple[int, bool]]] = {}
        targets = self._manifests.ids(self._targets[rows])
        stored = self._manifests.batch.states[targets] == ManifestState.OK
        told = (self._edges[rows] == Edge.CHILD) | ((self._edges[rows] == Edge.MAYBE) & stored)
        for row, target, by_link in zip(
            rows.tolist(), targets.tolist(), (~told).tolist(), strict=True
        ):
            found.setdefault(target, []).append((int(self._ids[self._source[row]]), by_link))
        return found

    def _parents(
        self, pair: Pair, above: dict[int, list[tuple[int, bool]]]
    ) -> Iterable[tuple[Pair, str]]:
        """What keeps *pair* alive: indexes, mostly of its repository, and its subject."""
        owner, number = pair
        for parent, by_link in above.get(number, ()):
            # Its link stays for indexes of other repositories too, where that tells what it is.
            kept = by_link and pair_of(owner, number) in self._linked
            for other in self._in[parent] if kept else [owner]:
                if pair_of(other, parent) in self._live:
                    yield (other, parent), "lists"
        subject = self.subject_of(number)
        if not subject or pair_of(owner, number) not in self._linked:
            return
        names = [subject, *sorted(self._catalog.aliases.get(subject, ()))]
        for name, found in zip(names, self._manifests.ids(pack(names)).tolist(), strict=True):
            # Linked here it has to be live here; else anywhere.
            here = pair_of(owner, found) in self._linked
            for other in [owner] if here else self._in.get(found, ()):
                if found >= 0 and pair_of(other, found) in self._live:
                    yield (other, found), "is described by"
            if not here and found not in self._in:
                for holder in self._naming(name):
                    for other in self._in[holder]:
                        yield (other, holder), "names the subject of"

    def _other_root(self, pair: Pair) -> str:
        """Why *pair* is a root although no tag points to it; empty when it is none."""
        if pair_of(*pair) not in self._linked:
            return ""
        if not self._policy.delete_untagged:
            return "linked; without -m every manifest is kept"
        if pair[0] in self._marking.held:
            return "its repository is held"
        key = self._manifests.batch.keys[pair[1] : pair[1] + 1]
        if within(self._marking.young, key)[0]:
            return how_young(self._policy)
        return "what it describes is kept" if self._describes_kept(pair) else ""

    def _describes_kept(self, pair: Pair) -> bool:
        """Whether *pair* lives as its subject does, which no live manifest is or names."""
        subject = self.subject_of(pair[1])
        if not subject or pair_of(*pair) not in self._live:
            return False
        names = pack([subject, *sorted(self._catalog.aliases.get(subject, ()))])
        ids = self._manifests.ids(names).tolist()
        return not any(
            number in self._in or pair_of(pair[0], number) in self._linked or self._naming(name)
            for number, name in zip(ids, map(np.void.tobytes, names), strict=True)
        ) and bool(self._marking.live_set.has(names).any())

    def _trail(
        self,
        pair: Pair,
        tag: str | None,
        root: str,
        below: dict[Pair, tuple[Pair | None, str]],
        key: bytes,
    ) -> Trail:
        steps: list[Step] = []
        at: Pair | None = pair
        relation = ""
        while at is not None:
            steps.append(Step(relation, self.kind_of(at[1]), self._digest(at[1])))
            at, relation = below[at]
        if relation:
            (own,) = self._manifests.ids(pack([key])).tolist()
            steps.append(Step(relation, self.kind_of(own), self._catalog.names.text(key)))
        return Trail(self._catalog.repositories[pair[0]], tag, root, tuple(steps))
