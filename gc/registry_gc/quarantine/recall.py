"""What is live and lies in quarantine comes back before anything is decided.

Nothing live goes into quarantine where nobody writes. With ``--allow-writable`` somebody may: a
push that was told that a blob is there, and whose manifest came after the mark. The next mark,
that of any run or of a purge, finds such blobs and links, and puts them back.

A manifest that comes back names more, so this goes on until a mark finds nothing. With what is
live again comes what refers to it (signatures, SBOMs), which no tag names: what it needs itself is
found by the next mark. Costs one listing where there is no quarantine, else one of all that is in
it, and a read of each manifest there where one of them is live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import StorageError
from registry_gc.compact.arrays import distinct, within
from registry_gc.dead_layers import needed_among
from registry_gc.digest import pack
from registry_gc.events import Observer
from registry_gc.mark import pairs_of
from registry_gc.quarantine.aside import Kept, asides, contents
from registry_gc.quarantine.bring_back import (
    BLOB,
    LAYER,
    REVISION,
    SIGNATURE,
    Back,
    BringingBack,
    Look,
    Meaning,
    Result,
    exists,
    is_hollow,
    meaning_of,
)
from registry_gc.quarantine.restore import Quarantined
from registry_gc.runs.rows import Kind, Row
from registry_gc.survey import Survey, Surveyor


def missed(reader: Reader, survey: Survey, versions: object | None = None) -> list[Kept]:
    """What of the quarantine is live, and not in its place.

    :param versions: what tells of the storage's versions, if it has any.
    :raises StorageError: the quarantine could not be read.
    """
    waiting = asides(reader)
    if not waiting:
        return []
    needs = _Needs(survey)
    for aside in waiting:
        for batch in contents(reader, aside):
            needs.add(batch)
    found = {kept.path: kept for kept in needs.found()}
    if needs.revisions:
        referrers = _referrers(Quarantined(reader, versions), survey, needs.revisions)
        found.update((kept.path, kept) for kept in referrers)
    return [kept for kept in found.values() if not exists(reader, kept.path)]


def _referrers(
    store: Quarantined, survey: Survey, revisions: set[tuple[str, str]]
) -> Iterator[Kept]:
    """What refers to what is live and was dead, at any depth: links and manifests.

    :param revisions: repository and digest of what is live, and was set aside.
    """
    live = set(revisions)
    waiting = []
    for meaning, kept in store.revisions():
        row = (meaning.repository, meaning.digest)
        references = None if row in live else store.references(meaning.digest)
        if references is not None and references.subject is not None:
            waiting.append((row, references.subject, kept))
    linked = _Linked(survey)
    grown = True
    while grown:
        digests = {digest for _, digest in live}
        grown = False
        for at, (row, subject, kept) in reversed([*enumerate(waiting)]):
            repository = row[0]
            there = (repository, subject) in live
            if there or (subject in digests and not linked.has(repository, subject)):
                grown = True
                live.add(row)
                del waiting[at]
                yield kept
                if row[1] in store.blobs:
                    yield store.blobs[row[1]]


class _Linked:
    """Tells which revisions there are."""

    def __init__(self, survey: Survey) -> None:
        self._numbers = {name: at for at, name in enumerate(survey.catalog.repositories)}
        self._names, self._manifests = survey.catalog.names, survey.manifests
        revisions = survey.catalog.revisions
        self._pairs = distinct(pairs_of(revisions.owner, revisions.ids(survey.manifests)))

    def has(self, repository: str, digest: str) -> bool:
        """Whether *repository* has the manifest *digest*."""
        (number,) = self._manifests.ids(pack([self._names.key(digest)])).tolist()
        owner = self._numbers.get(repository, -1)
        if number < 0 or owner < 0:
            return False
        return bool(within(self._pairs, np.array([owner << 32 | number], np.int64))[0])


class _Needs:
    """Tells what live manifests need, of what is in quarantine.

    :ivar revisions: repository and digest of the live manifests among it.
    """

    def __init__(self, survey: Survey) -> None:
        self._catalog = survey.catalog
        self._manifests = survey.manifests
        self._marking = survey.marking
        self._numbers = {name: at for at, name in enumerate(survey.catalog.repositories)}
        self.revisions: set[tuple[str, str]] = set()
        self._found: dict[str, Kept] = {}
        # Layer links to what is live somewhere, with owner and key: needed where they are?
        self._layers: list[tuple[Kept, int, bytes]] = []

    def add(self, batch: list[Kept]) -> None:
        """Look at more of what is in quarantine."""
        # Another run may have set aside the same blob, and whole.
        whole = (kept for kept in batch if kept.marked or not is_hollow(kept.path, kept.size))
        rows = [(meaning_of(kept.path), kept) for kept in whole]
        known = [row for row in rows if row[0].digest]
        keys = pack(self._catalog.names.key(meaning.digest) for meaning, _ in known)
        live = self._marking.live_set.has(keys)
        for at, (meaning, kept) in enumerate(known):
            owner = self._numbers.get(meaning.repository, -1)
            if meaning.order == BLOB:
                needed = bool(live[at])
            elif meaning.order == LAYER:
                # Under another name than sha256 it may be the only one to tell what is stored.
                needed = bool(live[at]) and not meaning.digest.startswith("sha256:")
                if live[at] and owner >= 0:
                    self._layers.append((kept, owner, keys[at].tobytes()))
            else:
                needed = owner >= 0 and self._is_live(owner, meaning)
                if needed and meaning.order == REVISION:
                    self.revisions.add((meaning.repository, meaning.digest))
            if needed:
                self._found.setdefault(kept.path, kept)

    def found(self) -> list[Kept]:
        """What is needed, each path once, whether it is in its place or not."""
        needed = needed_among(
            self._catalog,
            self._manifests,
            self._marking,
            np.array([owner for _, owner, _ in self._layers], np.int64),
            pack(key for _, _, key in self._layers),
        )
        for at in np.flatnonzero(needed).tolist():
            kept = self._layers[at][0]
            self._found.setdefault(kept.path, kept)
        return list(self._found.values())

    def _is_live(self, owner: int, meaning: Meaning) -> bool:
        """Whether a link is that of a live manifest of its repository, or of its signature."""
        if meaning.order not in (REVISION, SIGNATURE):
            # A tag's history keeps nothing, and nobody pulls by it.
            return False
        revision = meaning.signs or meaning.digest
        (number,) = self._manifests.ids(pack([self._catalog.names.key(revision)])).tolist()
        pair = np.array([owner << 32 | max(number, 0)], np.int64)
        return number >= 0 and bool(within(self._marking.live, pair)[0])


def recall(
    storage: Storage,
    versions: object | None,
    survey: Survey,
    again: Callable[[], Survey],
    look: Look,
    observer: Observer,
    told: Callable[[Result], None] | None = None,
) -> tuple[Survey, int, list[str]]:
    """Bring back what is live, and mark *again*, until a mark finds nothing in quarantine.

    :param look: called before each batch of moves; raises where nothing more may be done.
    :param told: called with each thing and what became of it.
    :returns: the last mark, how many things came back, and the paths of those that are live and
        could not, as what they name is not there.
    :raises StorageError: something live could not be brought back: nobody may delete then.
    """
    came = 0
    lost: list[str] = []
    while items := missed(storage, survey, versions):
        observer.phase("bringing back what is live", len(items), "objects")
        before = came
        for result in BringingBack(storage, versions, look).run(items):
            kept, _, back, error = result
            if told is not None:
                told(result)
            if back is Back.FAILED:
                raise StorageError(
                    f"it is live, lies in quarantine ({kept.aside.run}), and could not be brought"
                    f" back: {error}",
                    path=kept.path,
                    driver=storage.driver,
                )
            came += back is Back.BACK
            observer.advance(1)
        observer.finish()
        if came == before:
            # What is lost is lost: the mark that was made stands.
            lost = [kept.path for kept in items]
            break
        survey = again()
    if came:
        observer.notice(f"{came} blobs and links that are live were brought back from quarantine")
    return survey, came, lost


class NoBlobs:
    """A :class:`~registry_gc.survey.BlobSink` for those who do not ask which blobs are dead."""

    def add(self, rows: Iterable[Row]) -> None:
        """Ignore."""

    def drop(self, kind: Kind, digests: Iterable[str]) -> None:
        """Ignore."""

    def drop_all(self, kind: Kind) -> None:
        """Ignore."""


def look_back(
    storage: Storage, versions: object | None, surveyor: Surveyor, look: Look, observer: Observer
) -> int:
    """Mark anew and bring back what is live now; returns how many things came back.

    :raises StorageError: see :func:`recall`.
    """

    def mark() -> Survey:
        return surveyor.plan_blobs(surveyor.catalog(), NoBlobs())

    _, came, _ = recall(storage, versions, mark(), mark, look, observer)
    return came
