"""Puts back what was set aside: blobs before links, and over nothing but blobs that are hollow.

Safe to stop after any single move: what is back early is garbage until its links are back too,
and what is left is still in quarantine. A running registry is not harmed by it. What appears is
named by its content, or says what the registry itself would write there.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from typing import NamedTuple

import msgspec

from registry_drivers.base import Deletion, Outcome, Reader, Renewer, Storage
from registry_drivers.errors import NotFound, StorageError
from registry_drivers.moving import Mover
from registry_drivers.versions import Undeleter
from registry_gc.digest import InvalidDigest, stored_digest
from registry_gc.layout import blob_path
from registry_gc.quarantine.aside import Kept

_BATCH = 1000
_FEW = 64
"""Moves between two looks at the lock, where each is cheap."""

_V2 = r"docker/registry/v2/"
_BLOB = re.compile(_V2 + r"blobs/(?P<alg>[^/]+)/[^/]+/(?P<hex>[^/]+)/data")
_LINK = re.compile(
    _V2 + r"repositories/(?P<repository>[^_/][^/]*(?:/[^_/][^/]*)*)/(?:"
    r"(?P<layer>_layers)"
    r"|_manifests/(?:(?P<revision>revisions)"
    r"|revisions/(?P<signs>[^/]+/[^/]+)/signatures"
    r"|tags/(?P<tag>[^/]+)/index)"
    r")/(?P<alg>[^/]+)/(?P<hex>[^/]+)/link"
)


class Meaning(msgspec.Struct, frozen=True):
    """What a registry's file is. ``digest`` is what its path names.

    ``order``: its place when things are brought back. ``signs``: the revision whose signature it
    links, ``tag``: in whose history it is.
    """

    order: int
    kind: str
    repository: str = ""
    digest: str = ""
    signs: str = ""
    tag: str = ""


_KINDS = ("blob", "layer link", "signature", "manifest", "tag history", "other")
BLOB, LAYER, SIGNATURE, REVISION, TAG_INDEX, OTHER = range(6)


def meaning_of(path: str) -> Meaning:
    """What the file at *path* is; those that say nothing to us come back last."""
    match = _BLOB.fullmatch(path)
    try:
        if match:
            return Meaning(BLOB, _KINDS[BLOB], digest=stored_digest(match["alg"], match["hex"]))
        match = _LINK.fullmatch(path)
        if match:
            digest = stored_digest(match["alg"], match["hex"])
            signs = match["signs"] or ""
            order = LAYER if match["layer"] else REVISION if match["revision"] else TAG_INDEX
            return Meaning(
                SIGNATURE if signs else order,
                _KINDS[SIGNATURE if signs else order],
                match["repository"],
                digest,
                signs.replace("/", ":"),
                match["tag"] or "",
            )
    except InvalidDigest:
        pass
    return Meaning(OTHER, _KINDS[OTHER])


class Back(enum.Enum):
    """What became of one thing that was to come back."""

    BACK = "back"
    THERE = "there already"
    LOST = "lost"
    """It is in quarantine no more, or is a link to a blob that is nowhere."""
    FAILED = "failed"


class Result(NamedTuple):
    """One thing, and what became of it; ``error`` says why it is not there."""

    kept: Kept
    meaning: Meaning
    back: Back
    error: str = ""


LookOrStop = Callable[[], None]
"""Called before each batch; raises where nothing more may be done."""


class BringingBack:
    """Brings things back to one storage.

    :param versions: what tells of the storage's versions, if it has any.
    :param look: called before each batch.
    """

    def __init__(self, storage: Storage, versions: object | None, look: LookOrStop) -> None:
        self._storage = storage
        self._undeleter = versions if isinstance(versions, Undeleter) else None
        self._look = look
        self._stuck: set[str] = set()  # digests of blobs that could not be moved

    def run(self, items: Iterable[Kept]) -> Iterator[Result]:
        """Bring *items* back, each once; blobs first, tags' histories last.

        What is there stays as it is, and a link whose blob is nowhere stays aside; so does one
        whose blob is aside and cannot be moved, which has failed and is not lost.

        :raises StorageError: the storage does not answer.
        """
        mover = Mover(self._storage)
        ordered = sorted(
            ((meaning_of(kept.path), kept) for kept in items),
            key=lambda item: (item[0].order, item[1].path),
        )
        size = _FEW if self._storage.capabilities.folders else _BATCH
        workers = self._storage.capabilities.workers
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="registry-gc-restore") as pool:
                for _, group in groupby(ordered, key=lambda item: item[0].order):
                    rows = list(group)
                    for at in range(0, len(rows), size):
                        self._look()
                        yield from self._batch(rows[at : at + size], mover, pool)
        finally:
            mover.close()

    def _batch(
        self, rows: Sequence[tuple[Meaning, Kept]], mover: Mover, pool: ThreadPoolExecutor
    ) -> Iterator[Result]:
        there = pool.map(lambda row: exists(self._storage, row[1].path), rows)
        leads = pool.map(lambda row: leads_somewhere(self._storage, row[0]), rows)
        going: dict[str, tuple[Kept, Meaning]] = {}
        for (meaning, kept), is_there, whole in zip(rows, there, leads, strict=True):
            if is_there:
                yield Result(kept, meaning, Back.THERE)
            elif not kept.marked and is_hollow(kept.path, kept.size):
                yield Result(kept, meaning, Back.LOST, "it was set aside by a copy that failed")
            elif not whole and meaning.digest in self._stuck:
                yield Result(kept, meaning, Back.FAILED, "its blob could not be brought back")
            elif not whole:
                yield Result(kept, meaning, Back.LOST, f"the blob {meaning.digest} is not there")
            else:
                going[kept.path] = (kept, meaning)
        for path, outcome in self._move([kept for kept, _ in going.values()], mover):
            back = _BACK[outcome.result]
            error = outcome.error or ("it is in quarantine no more" if back is Back.LOST else "")
            kept, meaning = going[path]
            if back is Back.FAILED and meaning.order == BLOB:
                self._stuck.add(meaning.digest)
            yield Result(kept, meaning, back, error)

    def _renew(self, place: str) -> None:
        """Make it as young as a copy is, before it is back: no older plan knows it then."""
        if isinstance(self._storage, Renewer):
            # Who may rename a file may still not set its time; it comes back all the same.
            with suppress(StorageError):
                self._storage.renew(place)

    def _move(self, items: Sequence[Kept], mover: Mover) -> Iterator[tuple[str, Outcome]]:
        places = {kept.aside.place(kept.path): kept.path for kept in items if not kept.marked}
        for place in places:
            self._renew(place)
        for outcome in mover.move(places.items()):
            yield places[outcome.path], outcome
        marked = [kept.path for kept in items if kept.marked]
        if self._undeleter is not None:
            for outcome in self._undeleter.undelete(marked):
                yield outcome.path, outcome
            return
        for path in marked:
            reason = "a delete marker hides it, and this storage's versions cannot be asked"
            yield path, Outcome(path, Deletion.FAILED, reason)


_BACK = {
    Deletion.MOVED: Back.BACK,
    Deletion.GONE_ALREADY: Back.LOST,
    Deletion.FAILED: Back.FAILED,
}


def leads_somewhere(reader: Reader, meaning: Meaning) -> bool:
    """Whether the blob that a link names is there; one in another algorithm may have no such."""
    if meaning.order in (BLOB, OTHER) or not meaning.digest.startswith("sha256:"):
        return True
    return exists(reader, blob_path(meaning.digest))


def exists(reader: Reader, path: str) -> bool:
    """Whether there is an object at *path*; what is hollow is none, see :func:`is_hollow`."""
    try:
        size = reader.stat(path).size
    except NotFound:
        return False
    return not is_hollow(path, size)


def is_hollow(path: str, size: int) -> bool:
    """Whether a blob is empty that cannot be, as its path names its content.

    Source: Azure's "Copy Blob": a copy that fails or is aborted leaves a blob without content.
    """
    found = _BLOB.fullmatch(path) if not size else None
    return found is not None and found["hex"] not in _OF_NOTHING


_OF_NOTHING = frozenset({hashlib.sha256().hexdigest(), hashlib.sha512().hexdigest()})
