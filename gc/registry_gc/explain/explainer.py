"""Why something is live, dead, held, young or absent; who refers to it; what deleting it frees.

Asks the collection's own marking and plan, so that an answer is what a collection would do. Reads
only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from registry_drivers.base import Entry, Reader
from registry_drivers.errors import NotFound
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import within
from registry_gc.digest import Keys, pack
from registry_gc.explain.fates import Fate, fate_of_repository, how_young
from registry_gc.explain.lookup import ALGORITHMS, LOOKS_LIKE_DIGEST, Unknown, whole_digest
from registry_gc.explain.trails import Trail, Trails
from registry_gc.layout import blob_path, layer_link, revision_link, tag_index_link
from registry_gc.manifest_reader import ManifestState
from registry_gc.plan import dead_links
from registry_gc.quarantine.aside import asides, hidden_by
from registry_gc.references import Manifests
from registry_gc.runs.rows import Row, RowKind
from registry_gc.usage.freed import Freed, Marker, without_repository, without_tag


@dataclass(frozen=True, slots=True)
class LinkFate:
    """A link to a digest. ``goes``: why a collection would delete it, empty when it stays."""

    kind: str
    repository: str
    path: str
    goes: str


@dataclass(frozen=True, slots=True)
class AboutDigest:
    """What is known of a digest, in all repositories or in one.

    ``size`` in bytes and ``modified`` in seconds since the epoch, None when it is not stored.
    ``trails``: how it is reached, one for each tag. ``referrers``: live manifests that refer to
    it: repository, how, digest. ``reasons``: why it is dead, and what else is to be said.
    """

    digest: str
    repository: str | None
    fate: Fate
    kind: str
    size: int | None
    modified: float | None
    subject: str | None
    trails: list[Trail]
    referrers: list[tuple[str, str, str]]
    links: list[LinkFate]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class AboutTag:
    """What is known of a tag. ``others``: tags of the repository that point to the same."""

    repository: str
    tag: str
    target: AboutDigest | None
    others: list[str]
    frees: Freed
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class AboutRepository:
    """What is known of a repository.

    ``goes``: how many links, or uploads, of each kind would be deleted.
    """

    repository: str
    fate: Fate
    tags: list[str]
    manifests: int
    layer_links: int
    uploads: int
    goes: dict[str, int]
    frees: Freed
    reasons: list[str]


About = AboutDigest | AboutTag | AboutRepository


class Explainer:
    """Answers questions about one registry, as it was when *catalog* was listed.

    :param cutoff: seconds since the epoch; nothing younger is dead.
    """

    def __init__(
        self,
        reader: Reader,
        catalog: Catalog,
        manifests: Manifests,
        marker: Marker,
        cutoff: float,
    ) -> None:
        self._reader = reader
        self._catalog = catalog
        self._manifests = manifests
        self._marker = marker
        self._cutoff = cutoff
        self._marking, _ = marker.marked(catalog, marker.policy)
        self._trails = Trails(catalog, manifests, self._marking, marker.policy)
        links = dead_links(catalog, manifests, self._marking, marker.policy, cutoff)
        self._going: list[Row] = list(links.rows)

    def explain(self, what: str) -> About:
        """Answer for ``REPOSITORY``, ``REPOSITORY:TAG``, ``REPOSITORY[:TAG]@DIGEST`` or a digest.

        Digests may be cut short, and lack their ``sha256:``.

        :raises Unknown: there is no such thing, or a short digest fits several.
        :raises StorageError: something could not be read.
        """
        if what in self._catalog.repositories:
            return self.repository(what)
        name, at, digest = what.partition("@")
        if at:
            if name not in self._catalog.repositories:
                # Docker also writes REPOSITORY:TAG@DIGEST, and the digest is what counts.
                name = re.sub(r":[^:/]*$", "", name)
            self._number(name)
            return self.digest(self._whole(digest.lower()), name)
        small = what.lower()  # some write digests in capitals; no repository may have any
        if LOOKS_LIKE_DIGEST.fullmatch(small) or small.startswith(ALGORITHMS):
            return self.digest(self._whole(small))
        name, colon, tag = what.rpartition(":")
        if not colon:
            raise Unknown(f"{what}: neither a repository nor a digest")
        return self.tag(name, tag)

    def _whole(self, text: str) -> str:
        return whole_digest(text, self._reader, self._catalog, self._manifests)

    def _number(self, repository: str) -> int:
        try:
            return self._catalog.repositories.index(repository)
        except ValueError:
            raise Unknown(f"{repository}: there is no such repository") from None

    # A digest

    def digest(self, digest: str, repository: str | None = None) -> AboutDigest:
        """What is known of *digest*, in *repository* or in all.

        :raises Unknown: *repository* has nothing to do with it.
        """
        key = self._catalog.names.key(digest)
        stored = self._stat(key)
        trails = self._trails.to(key, repository)
        referrers = self._trails.naming(key, repository)
        links = sorted(self._links_to(key, repository), key=lambda link: link.path)
        if repository is not None and not (trails or referrers or links):
            waits = "".join(f"; {it}" for it in self._in_quarantine(digest)) if not stored else ""
            raise Unknown(f"{digest}: neither linked nor referenced in {repository}{waits}")
        (number,) = self._manifests.ids(pack([key])).tolist()
        subject = self._trails.subject_of(number)
        fate = self._fate(key, stored, trails, links)
        reasons = [*self._reasons(key, number, stored, links)]
        if fate is Fate.DEAD:
            every = self._marker.policy.delete_untagged
            lead = "no tag" if every else "no tag and no linked manifest"
            reasons.append(f"{lead} leads to it, and it is old enough")
        return AboutDigest(
            digest=digest,
            repository=repository,
            fate=fate,
            kind=self._trails.kind_of(number),
            size=None if stored is None else stored.size,
            modified=None if stored is None else stored.modified,
            subject=self._catalog.names.text(subject) if subject else None,
            trails=trails,
            referrers=referrers,
            links=links,
            reasons=reasons,
        )

    def _stat(self, key: bytes) -> Entry | None:
        """What is stored for *key*, under its own name or another."""
        for name in (key, *sorted(self._catalog.aliases.get(key, ()))):
            try:
                return self._reader.stat(blob_path(self._catalog.names.text(name)))
            except NotFound:
                continue
        return None

    def _links_to(self, key: bytes, repository: str | None) -> Iterator[LinkFate]:
        digest = self._catalog.names.text(key)
        going = {row.path: row.reason for row in self._going if row.digest == digest}
        for kind, name, path in self._paths_to(key, digest):
            if repository in (None, name):
                yield LinkFate(kind, name, path, going.get(path, ""))

    def _paths_to(self, key: bytes, digest: str) -> Iterator[tuple[str, str, str]]:
        catalog = self._catalog
        wanted = pack([key])
        revisions = catalog.revisions
        for owner in revisions.owner[within(wanted, revisions.keys)].tolist():
            name = catalog.repositories[owner]
            yield "revision", name, revision_link(name, digest)
        for links in catalog.layers.groups():  # by owner, and never all at once
            for owner in links.owner[links.keys == wanted[0]].tolist():
                name = catalog.repositories[owner]
                yield "layer", name, layer_link(name, digest)
        index = catalog.tag_index
        for owner in index.owner[within(wanted, index.keys)].tolist():
            number, tag = catalog.tag_folders[owner]
            name = catalog.repositories[number]
            yield "tag history", name, tag_index_link(name, tag, digest)
        for link in catalog.signatures:
            if link.digest == digest:
                yield "signature", catalog.repositories[link.repository], link.path

    def _fate(
        self, key: bytes, stored: Entry | None, trails: list[Trail], links: list[LinkFate]
    ) -> Fate:
        if stored is None:
            return Fate.ABSENT
        held = any(self._is_held(link.repository) for link in links)
        young = self._is_young(key, stored)
        kept = bool(trails) or any(not link.goes for link in links if link.kind == "signature")
        if any(trail.tag is not None for trail in trails):
            return Fate.LIVE
        for fate, is_so in ((Fate.HELD, held), (Fate.YOUNG, young), (Fate.LIVE, kept)):
            if is_so:
                return fate
        # The bytes may be stored under another name, and stay for that one.
        return Fate.LIVE if within(self._marking.digests, self._names(key)).any() else Fate.DEAD

    def _names(self, key: bytes) -> Keys:
        """*key*, and the names under which its bytes may be stored."""
        return pack([key, *sorted(self._catalog.aliases.get(key, ()))])

    def _is_held(self, repository: str) -> bool:
        return self._number(repository) in self._marking.held

    def _is_young(self, key: bytes, stored: Entry) -> bool:
        named = bool(within(self._marking.young, self._names(key)).any())
        return named or stored.modified > self._cutoff

    def _reasons(
        self, key: bytes, number: int, stored: Entry | None, links: list[LinkFate]
    ) -> Iterator[str]:
        for name in sorted({link.repository for link in links}):
            yield from (f"{name} is held: {reason}" for reason in self._holds(name))
        if stored is None:
            if within(self._marking.digests, pack([key]))[0]:
                yield "it is needed, and not in the store"
            elif not links:
                yield "neither linked nor referenced"
            yield from self._in_quarantine(self._catalog.names.text(key))
        elif self._is_young(key, stored):
            yield f"it, or a link that names it, is {how_young(self._marker.policy)}"
        if number >= 0 and any(link.kind == "revision" for link in links):
            state = self._manifests.batch.states[number]
            if state in (ManifestState.UNREADABLE, ManifestState.MISMATCH):
                yield f"damaged: {self._manifests.batch.reasons[number]}"
        for other in sorted(self._catalog.aliases.get(key, ())):
            yield f"its bytes are stored as {self._catalog.names.text(other)}"

    def _in_quarantine(self, digest: str) -> Iterator[str]:
        path = blob_path(digest)
        for aside in asides(self._reader):
            try:
                self._reader.stat(aside.home + path)
            except NotFound:
                if path not in hidden_by(self._reader, [aside]):
                    continue
            yield f"the run {aside.run} has set it aside; `registry-gc restore` brings it back"

    def _holds(self, repository: str) -> list[str]:
        return [
            hold.reason + (f" ({hold.digest})" if hold.digest else "")
            for hold in self._marking.holds
            if hold.repository == repository
        ]

    # Tags and repositories

    def tag(self, repository: str, tag: str) -> AboutTag:
        """What is known of a tag, and what deleting it would free.

        :raises Unknown: there is no such tag.
        """
        number = self._number(repository)
        tags = {known.name: known for known in self._catalog.tags if known.repository == number}
        if tag not in tags:
            near = ", ".join(sorted(tags)[:5]) or "none"
            raise Unknown(f"{repository}:{tag}: there is no such tag; the repository has: {near}")
        target = tags[tag].target
        same = [name for name in sorted(tags) if tags[name].target == target and name != tag]
        return AboutTag(
            repository=repository,
            tag=tag,
            target=None if target is None else self.digest(target, repository),
            others=[] if target is None else same,
            frees=self._marker.freed(self._catalog, without_tag(self._catalog, number, tag)),
            reasons=[f"{repository} is held: {reason}" for reason in self._holds(repository)],
        )

    def repository(self, repository: str) -> AboutRepository:
        """What is known of a repository, and what deleting it would free.

        :raises Unknown: there is none of that name.
        """
        catalog, number = self._catalog, self._number(repository)
        going = [row for row in self._going if row.repository == repository]
        fate, reasons = fate_of_repository(
            catalog, self._marking, going, number, self._marker.policy, self._cutoff
        )
        return AboutRepository(
            repository=repository,
            fate=fate,
            tags=[tag.name for tag in catalog.tags if tag.repository == number],
            manifests=int(np.count_nonzero(catalog.revisions.owner == number)),
            layer_links=sum(map(len, catalog.layers.of([number]))),
            uploads=sum(upload.repository == number for upload in catalog.uploads),
            goes=_counts(going),
            frees=self._marker.freed(catalog, without_repository(catalog, number)),
            reasons=reasons,
        )


def _counts(going: Iterable[Row]) -> dict[str, int]:
    """How many of each kind; an upload, whose digest is its name, has a row for each file."""
    things = dict.fromkeys(
        (row.kind.label, row.digest if row.kind is RowKind.UPLOAD else row.path) for row in going
    )
    return dict(Counter(kind for kind, _ in things))
