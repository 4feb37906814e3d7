"""Brings back what runs have set aside: a run, a repository, a tag, or a digest.

What a name stands for is worked out from the quarantine and the storage alone; no run file is
needed. With a manifest comes all that a pull of it needs: its blobs, its children, the links to
them in its repository, its place in the tags' histories, and what refers to it (signatures,
SBOMs).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

import msgspec

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, StorageError, TooLarge
from registry_drivers.versions import Undeleter
from registry_gc.digest import InvalidDigest, check_digest
from registry_gc.layout import (
    BLOBS,
    REPOSITORIES,
    blob_path,
    layer_link,
    revision_link,
    tag_current,
)
from registry_gc.manifest_reader import mismatch
from registry_gc.manifests import SIZE_LIMIT, References, UnreadableManifest, parse
from registry_gc.quarantine.aside import Kept, asides, contents
from registry_gc.quarantine.bring_back import (
    BLOB,
    LAYER,
    REVISION,
    TAG_INDEX,
    Back,
    Meaning,
    Result,
    exists,
    is_hollow,
    meaning_of,
)

_LINK_LIMIT = 4096
_SHORT_RUN = 8
"""Characters of a run's id that ``registry-gc runs`` shows; they do in its place."""
_NAME = re.compile(r"[^/_:@][^/:@]*(?:/[^/_:@][^/:@]*)*")


class UnknownWhat(ValueError):
    """What shall come back cannot be understood, or is nowhere in quarantine."""


class What(msgspec.Struct, frozen=True):
    """What shall come back; exactly one way of naming it is filled in.

    ``repository`` goes with ``tag`` or ``digest``, or alone.
    """

    text: str
    run: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str, runs: Iterable[str]) -> What:
        """Read a run's id, ``REPOSITORY``, ``REPOSITORY:TAG``, ``DIGEST``, ``REPOSITORY@DIGEST``.

        :param runs: the ids that are known.
        :raises UnknownWhat: it is none of these.
        """
        known = {*runs}
        begun = [run for run in known if run.startswith(text) and len(text) >= _SHORT_RUN]
        if text in known or len(begun) == 1:
            return cls(text, run=text if text in known else begun[0])
        repository, at, digest = text.rpartition("@")
        if at or re.match(r"sha\d+:", text):
            try:
                check_digest(digest)
            except InvalidDigest as error:
                raise UnknownWhat(f"{text!r}: {error}") from error
            if at and not _NAME.fullmatch(repository):
                raise UnknownWhat(f"{text!r}: {repository!r} is no repository's name")
            return cls(text, repository=repository, digest=digest)
        repository, _, tag = text.partition(":")
        if not _NAME.fullmatch(repository) or ":" in tag or "/" in tag or text.endswith(":"):
            raise UnknownWhat(
                f"{text!r} is no run, REPOSITORY, REPOSITORY:TAG, DIGEST or REPOSITORY@DIGEST"
            )
        return cls(text, repository=repository, tag=tag)


class Restored(msgspec.Struct):
    """What a restore came to. ``kinds``: how many of each kind are back; sizes in bytes.

    ``lost``, ``failed``: path and reason.
    """

    kinds: Counter[str] = msgspec.field(default_factory=Counter)
    bytes: int = 0
    there: int = 0
    lost: list[tuple[str, str]] = msgspec.field(default_factory=list)
    failed: list[tuple[str, str]] = msgspec.field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one more."""
        if result.back is Back.BACK:
            self.kinds[result.meaning.kind] += 1
            self.bytes += result.kept.size
        elif result.back is Back.THERE:
            self.there += 1
        else:
            where = self.lost if result.back is Back.LOST else self.failed
            where.append((result.kept.path, result.error))


def select(
    reader: Reader, versions: object | None, what: What, damaged: dict[str, str] | None = None
) -> list[Kept]:
    """All that has to come back for *what*, each path once, from its youngest run.

    A manifest whose bytes are not those of its digest stays where it is, with its links: nobody
    knows what it named.

    :param damaged: gets the paths of such, and what is wrong with each.
    :raises StorageError: the quarantine, or a manifest in it, could not be read.
    """
    if what.run:
        return _of_run(reader, versions, what.run)
    store = Quarantined(reader, versions)
    repositories = [what.repository] if what.repository else store.repositories_with(what.digest)
    items: dict[str, Kept] = {}
    closures = [_Closure(store, name, store.links(name)) for name in repositories]
    if what.repository and what.digest and not closures[0].links_to(what.digest):
        return []
    if not closures:
        # After a restore that failed in part, the link to it is back and what it names is not.
        others = (_Closure(store, name, links) for name, links in store.by_repository().items())
        closures = [closure for closure in others if closure.links_to(what.digest)]
    if not closures:
        # No link to it was set aside: somebody else deleted them. Its bytes can come back.
        closures = [_Closure(store, "", ())]
    for closure in closures:
        items.update((kept.path, kept) for kept in closure.select(what))
        if damaged is not None:
            damaged.update((blob_path(name), reason) for name, reason in closure.damaged.items())
    return list(items.values())


def _of_run(reader: Reader, versions: object | None, run: str) -> list[Kept]:
    """All that *run* has set aside, and the blobs of its links that another run did.

    A run that was killed has set aside links only, and the next one the blobs. Whoever has gone on
    with its plan belongs to it.
    """
    runs = asides(reader)
    found: dict[str, Kept] = {}
    for aside in runs:
        if run in aside.ids:
            for batch in contents(reader, aside):
                for kept in batch:
                    found.setdefault(kept.path, kept)
    items = list(found.values())
    if len(runs) > 1:
        meanings = [meaning_of(kept.path) for kept in items]
        there = {meaning.digest for meaning in meanings if meaning.order == BLOB}
        named = {meaning.digest for meaning in meanings} - there
        blobs = Quarantined(reader, versions).blobs
        items += [blobs[digest] for digest in sorted(named & blobs.keys())]
    return items


class Quarantined:
    """What is in quarantine, by what it is.

    :param only: digests of the blobs that anybody will ask for; None for all.
    """

    def __init__(
        self, reader: Reader, versions: object | None, only: Container[str] | None = None
    ) -> None:
        self.reader = reader
        self._undeleter = versions if isinstance(versions, Undeleter) else None
        self._asides = asides(reader)
        self.damaged: dict[str, str] = {}
        """Manifests whose bytes are not those of their digest, and what is wrong with each."""
        self.blobs = {
            meaning.digest: kept
            for meaning, kept in self._below(BLOBS)
            if meaning.order == BLOB and (only is None or meaning.digest in only)
        }

    def _below(self, folder: str) -> Iterator[tuple[Meaning, Kept]]:
        """Each path below a folder once, from the youngest run that has it."""
        seen: set[str] = set()
        for aside in self._asides:
            for batch in contents(self.reader, aside, folder):
                for kept in batch:
                    if not kept.marked and is_hollow(kept.path, kept.size):
                        continue
                    if kept.path not in seen:
                        seen.add(kept.path)
                        yield meaning_of(kept.path), kept

    def revisions(self) -> list[tuple[Meaning, Kept]]:
        """The links to manifests of all repositories."""
        return [row for row in self._below(REPOSITORIES) if row[0].order == REVISION]

    def links(self, repository: str) -> list[tuple[Meaning, Kept]]:
        """The links of one repository, without those that lie inside its folder."""
        below = self._below(f"{REPOSITORIES}{repository}/")
        return [row for row in below if row[0].repository == repository]

    def repositories_with(self, digest: str) -> list[str]:
        """The repositories of which a link to *digest* is in quarantine, or a link of its name."""
        return sorted(
            {
                meaning.repository
                for meaning, _ in self._below(REPOSITORIES)
                if meaning.repository and digest in (meaning.digest, meaning.signs)
            }
        )

    def by_repository(self) -> dict[str, list[tuple[Meaning, Kept]]]:
        """All links, by whose they are."""
        found: dict[str, list[tuple[Meaning, Kept]]] = {}
        for meaning, kept in self._below(REPOSITORIES):
            if meaning.repository:
                found.setdefault(meaning.repository, []).append((meaning, kept))
        return found

    def read(self, kept: Kept, limit: int) -> bytes:
        """The bytes of something in quarantine."""
        if not kept.marked:
            return self.reader.read(kept.aside.place(kept.path), limit=limit)
        if self._undeleter is None:
            raise StorageError(
                "a delete marker hides it, and this storage's versions cannot be asked",
                path=kept.path,
                driver=self.reader.driver,
            )
        return self._undeleter.peek(kept.path, limit=limit)

    def references(self, digest: str) -> References | None:
        """What the manifest *digest* names, wherever it is; None where it is none, or nowhere."""
        wrong = ""
        # Where its link was set aside, so was it itself, nearly always.
        for read in (self._read_aside, self._read_in_place):
            try:
                data = read(digest)
                if not (wrong := mismatch(data, digest) or ""):
                    return parse(data)
            except NotFound:
                continue
            except (TooLarge, UnreadableManifest):
                return None
        if wrong:
            self.damaged[digest] = wrong
        return None

    def _read_aside(self, digest: str) -> bytes:
        if digest not in self.blobs:
            raise NotFound("not in quarantine", path=blob_path(digest))
        return self.read(self.blobs[digest], SIZE_LIMIT)

    def _read_in_place(self, digest: str) -> bytes:
        return self.reader.read(blob_path(digest), limit=SIZE_LIMIT)


class _Closure:
    """What of one repository, and of the blobs, belongs to a manifest."""

    def __init__(
        self, store: Quarantined, repository: str, links: Sequence[tuple[Meaning, Kept]]
    ) -> None:
        self._store = store
        self._repository = repository
        self._links = links
        self._revisions = {
            meaning.digest for meaning, _ in self._links if meaning.order == REVISION
        }
        self._subjects: dict[str, str | None] = {}
        self._wanted: set[str] = set()
        self.damaged: dict[str, str] = {}
        """Of what is wanted, what is left where it is, and why."""

    def links_to(self, digest: str) -> bool:
        """Whether the repository has a link to *digest*, here or in quarantine."""
        if any(digest in (meaning.digest, meaning.signs) for meaning, _ in self._links):
            return True
        places = (revision_link(self._repository, digest), layer_link(self._repository, digest))
        return any(exists(self._store.reader, place) for place in places)

    def select(self, what: What) -> list[Kept]:
        """The links and blobs for *what*, which names this repository, or a digest anywhere."""
        if what.tag:
            self._reach(self._tagged(what.tag))
            self._add_referrers()
        elif what.digest:
            # Whatever it is: reading it tells.
            self._reach({what.digest}, listed=True)
            self._add_referrers()
        else:
            self._wanted.update(meaning.digest for meaning, _ in self._links)
            self._reach(self._revisions)
        return self._items(every=not (what.tag or what.digest))

    def _tagged(self, tag: str) -> set[str]:
        """What *tag* points to, and what it once pointed to and is in quarantine."""
        found = {
            meaning.digest
            for meaning, _ in self._links
            if meaning.order == TAG_INDEX and meaning.tag == tag
        }
        try:
            text = self._store.reader.read(
                tag_current(self._repository, tag), limit=_LINK_LIMIT
            ).decode("ascii", "replace")
            found.add(check_digest(text))
        except (NotFound, TooLarge, InvalidDigest):
            # A tag that is gone has a history still, and one that is damaged names nothing.
            pass
        return found

    def _reach(self, seeds: Iterable[str], *, listed: bool = False) -> None:
        """Add *seeds* and all that those of them name that are manifests, or are *listed* so."""
        todo = [(digest, listed) for digest in seeds]
        seen: set[str] = set()
        while todo:
            digest, known = todo.pop()
            self._wanted.add(digest)
            if digest in seen or not (known or self._is_manifest(digest)):
                continue
            seen.add(digest)
            references = self._store.references(digest)
            if references is None:
                if digest in self._store.damaged:
                    self.damaged[digest] = self._store.damaged[digest]
                continue
            self._subjects[digest] = references.subject
            self._wanted.update(references.blobs)
            todo += [(child, True) for child in references.children]
            todo += [(child, False) for child in (*references.maybe, *references.linked)]

    def _is_manifest(self, digest: str) -> bool:
        """Whether this repository has it as a revision, here or in quarantine."""
        if digest in self._revisions:
            return True
        return exists(self._store.reader, revision_link(self._repository, digest))

    def _add_referrers(self) -> None:
        """What describes what comes back, comes back with it, at any depth."""
        subjects = {}
        for digest in self._revisions - self._wanted:
            references = self._store.references(digest)
            if references is not None and references.subject is not None:
                subjects[digest] = references.subject
        while found := [digest for digest, subject in subjects.items() if subject in self._wanted]:
            self._reach(found)
            subjects = {digest: subjects[digest] for digest in subjects if digest not in found}

    def _items(self, *, every: bool) -> list[Kept]:
        """What of the quarantine is wanted; all links of the repository, or those to that."""
        self._wanted -= self.damaged.keys()
        items: list[Kept] = []
        for meaning, kept in self._links:
            about = meaning.signs or meaning.digest
            if about in self.damaged or (not every and about not in self._wanted):
                continue
            items.append(kept)
            self._wanted.add(meaning.digest)
            if meaning.order == LAYER and not meaning.digest.startswith("sha256:"):
                self._wanted.update(self._stored_as(kept))
        stored = self._wanted & self._store.blobs.keys()
        # A link to what an alias stands for may have come to light only with the alias.
        paths = {kept.path for kept in items}
        aliased = {layer_link(self._repository, digest) for digest in self._wanted}
        items += [
            kept for _, kept in self._links if kept.path in aliased and kept.path not in paths
        ]
        return items + [self._store.blobs[digest] for digest in sorted(stored)]

    def _stored_as(self, alias: Kept) -> set[str]:
        """What an alias link says under which name its bytes are stored."""
        try:
            text = self._store.read(alias, _LINK_LIMIT).decode("ascii", "replace")
            return {check_digest(text)}
        except (NotFound, TooLarge, InvalidDigest):
            return set()
