"""What is live and lies in quarantine comes back before anything is decided.

Nothing live goes into quarantine where nobody writes. With ``--allow-writable`` somebody may: a
push that was told that a blob is there, and whose manifest came after the mark. The next mark,
that of any run or of a purge, finds such blobs and links, and puts them back.

A manifest that comes back names more, so this goes on until a mark finds nothing. With what is
live again comes what refers to it (signatures, SBOMs), which no tag names: what it needs itself is
found by the next mark. Costs one listing where there is no quarantine, else one of all that is in
it; and where there are manifests, one more of the blobs in it, and a read of each manifest that the
reference cache does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import StorageError
from registry_gc.cache import ReferenceCache, others_of
from registry_gc.compact.arrays import distinct, within
from registry_gc.compact.key_index import distinct_keys
from registry_gc.digest import Names, key_of, pack
from registry_gc.events import Observer
from registry_gc.manifest_reader import NO_SUBJECT
from registry_gc.marking.dead_layers import needed_among
from registry_gc.marking.pairs import Pairs, pair_of, pairs_of
from registry_gc.quarantine.aside import Kept, asides, contents
from registry_gc.quarantine.bring_back import (
    BLOB,
    LAYER,
    REVISION,
    SIGNATURE,
    Back,
    BringingBack,
    LookOrStop,
    Meaning,
    Result,
    exists,
    is_hollow,
    meaning_of,
)
from registry_gc.quarantine.clearing import forget_hidden, is_there
from registry_gc.quarantine.restore import Quarantined
from registry_gc.survey import NoBlobs, Survey, Surveyor


def missed(
    reader: Reader, survey: Survey, versions: object | None = None, cache: str | None = None
) -> list[Kept]:
    """What of the quarantine is live, and not in its place.

    :param versions: what tells of the storage's versions, if it has any.
    :param cache: the path of the reference cache; None to read every manifest.
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
    if needs.revisions or needs.signatures:
        # Nothing of what may be millions of layers is remembered.
        only = needs.signatures.union(digest for _, digest in needs.revisions)
        store = Quarantined(reader, versions, only)
        more = [store.blobs[digest] for digest in sorted(needs.signatures & store.blobs.keys())]
        more += _referrers(store, survey, needs.revisions, cache)
        found.update((kept.path, kept) for kept in more)
    return [kept for kept in found.values() if not exists(reader, kept.path)]


def _referrers(
    store: Quarantined,
    survey: Survey,
    revisions: Mapping[tuple[str, str], Kept],
    cache: str | None,
) -> Iterator[Kept]:
    """What refers to what is live, at any depth: links and manifests.

    Whether their subject was set aside too does not matter: a run that was stopped may have come
    to the one and not to the other.

    :param revisions: repository and digest of each link to a manifest in quarantine.
    """
    judge = _Subjects(survey, revisions)
    rows = [row for row in revisions if not judge.is_known(row)]
    subjects = _subjects(store, {digest for _, digest in rows}, cache)
    waiting = {row: subject for row in rows if (subject := subjects[row[1]]) is not None}
    while grown := [row for row, subject in waiting.items() if judge.is_live(row[0], subject)]:
        for row in grown:
            del waiting[row]
            judge.came_back(row)
            yield revisions[row]
            if row[1] in store.blobs:
                yield store.blobs[row[1]]


def _subjects(
    store: Quarantined, digests: Collection[str], cache: str | None
) -> dict[str, str | None]:
    """What each of some manifests refers to; None where it refers to nothing, or is none."""
    found = dict(_remembered_subjects(store, digests, cache)) if cache is not None else {}
    unknown = sorted(set(digests) - found.keys())
    workers = store.reader.capabilities.workers
    with ThreadPoolExecutor(workers, thread_name_prefix="registry-gc-recall") as pool:
        for digest, read in zip(unknown, pool.map(store.references, unknown), strict=True):
            found[digest] = None if read is None else read.subject
    return found


def _remembered_subjects(
    store: Quarantined, digests: Iterable[str], path: str
) -> Iterator[tuple[str, str | None]]:
    """Those that the cache at *path* knows, of manifests that lie here in the size it knows."""
    names = Names()
    wanted = distinct_keys(pack(names.key(digest) for digest in digests))
    with closing(ReferenceCache.open(path)) as cache:
        for batch in cache.find(wanted):
            for key, size, subject, others in zip(
                batch.keys, batch.sizes, batch.subjects, batch.others, strict=True
            ):
                digest = names.text(key)
                kept = store.blobs.get(digest)
                # What a marker hides is listed without a size, and comes back as it was.
                if kept is not None and (kept.marked or kept.size == size):
                    texts = Names(others_of(others))
                    yield digest, None if subject == NO_SUBJECT else texts.text(subject)


class _Subjects:
    """Tells whether what manifests refer to is live, by the rules of :mod:`registry_gc.mark`.

    :param aside: repository and digest of the links in quarantine. A manifest whose link to it is
        there was dead in that repository, wherever else it lives: so was what refers to it.
    """

    def __init__(self, survey: Survey, aside: Container[tuple[str, str]]) -> None:
        catalog = survey.catalog
        self._numbers = {name: at for at, name in enumerate(catalog.repositories)}
        self._stored_as = catalog.stored_as
        self._manifests, self._marking = survey.manifests, survey.marking
        ids = catalog.revisions.ids(survey.manifests)
        self._linked = distinct(pairs_of(catalog.revisions.owner, ids))
        self._aside = aside
        self._back: set[tuple[str, str]] = set()
        self._digests_back: set[str] = set()

    def is_known(self, row: tuple[str, str]) -> bool:
        """Whether the mark has judged this manifest of a repository itself."""
        return self._is_among(self._linked, row) or self._is_among(self._marking.live, row)

    def came_back(self, row: tuple[str, str]) -> None:
        """Count a manifest of a repository as live."""
        self._back.add(row)
        self._digests_back.add(row[1])

    def is_live(self, repository: str, subject: str) -> bool:
        """Whether what refers to *subject* from *repository* lives by that."""
        names = (subject, *self._stored_as(subject))
        return any(self._is_live((repository, name)) for name in names)

    def _is_live(self, row: tuple[str, str]) -> bool:
        if row in self._back or self._is_among(self._marking.live, row):
            return True
        if row in self._aside or self._is_among(self._linked, row):
            return False
        if row[1] in self._digests_back:
            return True
        return bool(self._marking.live_set.has(pack([key_of(row[1])]))[0])

    def _is_among(self, pairs: Pairs, row: tuple[str, str]) -> bool:
        repository, digest = row
        owner = self._numbers.get(repository, -1)
        (number,) = self._manifests.ids(pack([key_of(digest)])).tolist()
        if number < 0 or owner < 0:
            return False
        return bool(within(pairs, np.array([pair_of(owner, number)]))[0])


class _Needs:
    """Tells what live manifests need, of what is in quarantine.

    :ivar revisions: repository and digest of the links to manifests among it, the youngest each.
    :ivar signatures: digests of the signatures that live manifests of schema 1 need. Their links
        alone tell of them, so no mark knows those whose link was set aside.
    """

    def __init__(self, survey: Survey) -> None:
        self._catalog = survey.catalog
        self._manifests = survey.manifests
        self._marking = survey.marking
        self._numbers = {name: at for at, name in enumerate(survey.catalog.repositories)}
        self.revisions: dict[tuple[str, str], Kept] = {}
        self.signatures: set[str] = set()
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
                if meaning.order == REVISION:
                    self.revisions.setdefault((meaning.repository, meaning.digest), kept)
                elif needed:
                    self.signatures.add(meaning.digest)
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
        pair = np.array([pair_of(owner, max(number, 0))])
        return number >= 0 and bool(within(self._marking.live, pair)[0])


def recall(
    storage: Storage,
    versions: object | None,
    survey: Survey,
    again: Callable[[], Survey],
    look: LookOrStop,
    observer: Observer,
    told: Callable[[Result], None] | None = None,
    cache: str | None = None,
) -> tuple[Survey, int, list[str]]:
    """Bring back what is live, and mark *again*, until a mark finds nothing in quarantine.

    :param look: called before each batch of moves; raises where nothing more may be done.
    :param told: called with each thing and what became of it.
    :param cache: see :func:`missed`.
    :returns: the last mark, how many things came back, and the paths of those that are live and
        could not, as what they name is not there.
    :raises StorageError: something live could not be brought back: nobody may delete then.
    """
    came = 0
    lost: list[str] = []
    while items := missed(storage, survey, versions, cache):
        observer.phase("bringing back what is live", len(items), "objects")
        before, why = came, ""
        there: set[str] = set()
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
            if is_there(result):
                there.add(kept.path)
            if back is Back.LOST:
                why = why or f"{kept.path}: {error}"
            observer.advance(1)
        observer.finish()
        forget_hidden(storage, versions, there, look)
        if came == before:
            # What is lost is lost: the mark that was made stands.
            lost = [kept.path for kept in items]
            observer.notice(
                f"{len(lost)} blobs and links that are live could not be brought back from "
                f"quarantine; the first of them is {why}"
            )
            break
        survey = again()
    if came:
        observer.notice(f"{came} blobs and links that are live were brought back from quarantine")
    return survey, came, lost


def look_back(
    storage: Storage,
    versions: object | None,
    surveyor: Surveyor,
    look: LookOrStop,
    observer: Observer,
) -> int:
    """Mark anew and bring back what is live now; returns how many things came back.

    :raises StorageError: see :func:`recall`.
    """

    def mark() -> Survey:
        return surveyor.plan_blobs(surveyor.catalog(), NoBlobs())

    _, came, _ = recall(storage, versions, mark(), mark, look, observer, cache=surveyor.cache)
    return came
