"""A second opinion on a plan before it is carried out, and a look afterwards.

Everything is listed anew and worked out by :mod:`registry_gc.verify.closure`, which shares no
decision with what made the plan. Where the two disagree, nothing is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from registry_drivers.base import Reader
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import within
from registry_gc.digest import InvalidDigest, Keys, check_digest, empty_keys, pack
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import (
    REPOSITORIES,
    blob_path,
    layer_link,
    revision_link,
    tag_folder,
    tag_index_link,
)
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.reading import read_catalog
from registry_gc.policy import Policy
from registry_gc.run_file import RunFile
from registry_gc.runs.rows import Row, RowKind
from registry_gc.verify.closure import Closure, close
from registry_gc.verify.contradiction import Contradiction
from registry_gc.verify.library import Library
from registry_gc.verify.wholeness import Check, Fault, Stored, What

_SHOWN = 3


class SecondOpinion:
    """Verifies one collection: :meth:`before` its deletes, and :meth:`after` them.

    :param cutoff: seconds since the epoch, that of the plan.
    ``faults``: how many things live manifests need and lacked before anything was deleted.
    ``manifests``: how many were looked at.
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        observer: Observer,
        policy: Policy,
        cutoff: float,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._observer = observer
        self._policy = policy
        self._cutoff = cutoff
        self._library: Library | None = None
        self._needed: set[tuple[str, str]] = set()
        self._known: set[tuple[str, What, str]] = set()
        self._late: set[bytes] = set()
        self.manifests = 0

    @property
    def faults(self) -> int:
        """How many things were wrong before."""
        return len(self._known)

    def before(self, run_file: RunFile) -> None:
        """See that no planned row is live.

        :raises Contradiction: one is; nothing may be deleted.
        :raises StorageError: something could not be read.
        """
        catalog = read_catalog(self._reader, self._engine, self._observer)
        library = self._library = Library(self._engine, catalog, self._observer)
        closure = self._close(catalog, library)
        keys, young = self._blobs(catalog, closure)
        if young:
            # A young blob that nothing reaches may be a manifest, and a root.
            self._late = young
            closure = self._close(catalog, library)
        wrong: list[str] = []
        count = 0
        for reason in conflicts(run_file, catalog, library, closure, self._cutoff):
            count += 1
            wrong += [reason] * (len(wrong) < _SHOWN)
        if count:
            raise Contradiction(
                f"{count} of the things that were to go are needed, as a second look finds: "
                f"{'; '.join(wrong)}. Nothing was deleted"
            )
        check = Check(catalog, library, closure, _without_sizes(keys))
        self.manifests = check.manifests
        self._known = {_named(fault, catalog) for fault in check.faults}
        self._needed = _pairs(catalog, closure)

    def after(self) -> None:
        """See that whatever was live before is live, and lacks nothing that it had.

        :raises Contradiction: something has gone.
        :raises StorageError: something could not be read.
        """
        assert self._library is not None
        catalog = read_catalog(self._reader, self._engine, self._observer)
        catalog.names.others.update(self._library.names.others)
        closure = self._close(catalog, self._library)
        keys, _ = self._blobs(catalog, closure)
        check = Check(catalog, self._library, closure, _without_sizes(keys))
        lost = sorted(
            f"{name}@{digest}" for name, digest in self._needed - _pairs(catalog, closure)
        )
        new = {_named(fault, catalog): fault for fault in check.faults}
        lost += [new[key].path for key in sorted(new.keys() - self._known)]
        if lost:
            raise Contradiction(
                f"{len(lost)} things that live images need are gone after the sweep, such as "
                f"{'; '.join(lost[:_SHOWN])}"
            )

    def _close(self, catalog: Catalog, library: Library) -> Closure:
        return close(self._reader, library, catalog, self._policy, self._cutoff, self._late)

    def _blobs(self, catalog: Catalog, closure: Closure) -> tuple[Keys, set[bytes]]:
        """Every stored key, sorted; and those that are young and not reached."""
        self._observer.phase("listing blobs once more", None, "blobs")
        found = [empty_keys()]
        young: set[bytes] = set()
        for batch in stream_blobs(self._reader, self._engine):
            catalog.names.others.update(batch.others)
            found.append(batch.keys)
            late = batch.keys[batch.modified > self._cutoff]
            young.update(map(np.void.tobytes, late[~within(closure.digests, late)]))
            self._observer.advance(len(batch.keys))
        self._observer.finish()
        return np.sort(np.concatenate(found)), young


def _without_sizes(keys: Keys) -> Stored:
    """What is stored, with no word on sizes: a sweep changes none."""
    return Stored(keys, None)


def _named(fault: Fault, catalog: Catalog) -> tuple[str, What, str]:
    return catalog.repositories[fault.repository], fault.what, fault.path


def _pairs(catalog: Catalog, closure: Closure) -> set[tuple[str, str]]:
    """Repository and digest of each live manifest that is linked there."""
    return {
        (catalog.repositories[number], catalog.names.text(key))
        for number, keys in closure.live.items()
        for key in keys & closure.linked.get(number, set())
    }


def conflicts(
    run_file: RunFile, catalog: Catalog, library: Library, closure: Closure, cutoff: float
) -> Iterator[str]:
    """Why rows of *run_file* must not go; nothing where all of them may."""
    judge = _Judge(catalog, library, closure)
    numbers = {name: number for number, name in enumerate(catalog.repositories)}
    for kind in (
        RowKind.TAG_INDEX,
        RowKind.SIGNATURE,
        RowKind.REVISION,
        RowKind.LAYER_LINK,
        RowKind.UPLOAD,
    ):
        for name, rows in groupby(run_file.rows(kind), key=lambda row: row.repository):
            number = numbers.get(name or "")
            for row in rows:
                reason = _form(row, cutoff)
                if not reason and number is not None:
                    # A repository that is gone by now has nothing to lose.
                    reason = judge.link(number, row)
                if reason:
                    yield f"{row.path}: {reason}"
    for row in run_file.rows(RowKind.BLOB):
        if reason := _form(row, cutoff) or judge.blob(row):
            yield f"{row.path}: {reason}"


def _form(row: Row, cutoff: float) -> str:
    """What is wrong with a row by itself."""
    if row.modified is not None and row.modified > cutoff:
        return "younger than the grace period"
    name, digest = row.repository or "", row.digest or ""
    try:
        if row.kind is not RowKind.UPLOAD:
            check_digest(digest)
    except InvalidDigest as error:
        return str(error)
    below = f"/{digest.replace(':', '/')}/link"
    right = {
        RowKind.BLOB: row.path == blob_path(digest),
        RowKind.REVISION: row.path == revision_link(name, digest),
        RowKind.LAYER_LINK: row.path == layer_link(name, digest),
        RowKind.UPLOAD: row.path.startswith(f"{REPOSITORIES}{name}/_uploads/{digest}/"),
        RowKind.TAG_INDEX: row.path == tag_index_link(name, _tag_of(row.path), digest),
        RowKind.SIGNATURE: row.path.startswith(f"{REPOSITORIES}{name}/_manifests/revisions/")
        and row.path.endswith("/signatures" + below),
    }
    return "" if right[row.kind] else "is not what its row says"


def _tag_of(path: str) -> str:
    """The tag of whose history a path is."""
    return path.partition("/_manifests/tags/")[2].partition("/")[0]


class _Judge:
    """Says of each row why it must stay, if it must."""

    def __init__(self, catalog: Catalog, library: Library, closure: Closure) -> None:
        self._catalog = catalog
        self._library = library
        self._closure = closure
        self._key = catalog.names.key
        self._current = {
            tag_folder(catalog.repositories[tag.repository], tag.name): tag.target
            for tag in catalog.tags
        }
        self._needed: tuple[int, set[bytes]] = (-1, set())

    def blob(self, row: Row) -> str:
        """Why the blob of *row* must stay."""
        live = self._is_live(self._key(row.digest or ""))
        return "a live manifest needs it" if live else ""

    def link(self, repository: int, row: Row) -> str:
        """Why the link of *row* must stay."""
        if row.kind is RowKind.UPLOAD:
            return ""
        if repository in self._closure.held:
            return "its repository is held"
        key = self._key(row.digest or "")
        if key in self._closure.young:
            return "something young names it"
        if row.path in self._catalog.alias_links and self._is_needed_name(key):
            return "it says under which name a live blob is stored"
        if row.kind is RowKind.LAYER_LINK:
            named = self._names({key}) & self._names(self._needed_in(repository))
            return "a live manifest of its repository needs it" if named else ""
        return self._of_manifest(repository, row, key)

    def _of_manifest(self, repository: int, row: Row, key: bytes) -> str:
        live = self._closure.live.get(repository, set())
        if row.kind is RowKind.SIGNATURE:
            folder = row.path.partition("/_manifests/revisions/")[2]
            revision = ":".join(folder.split("/")[:2])
            return "its manifest is live" if self._key(revision) in live else ""
        if row.kind is RowKind.TAG_INDEX:
            folder = tag_folder(row.repository or "", _tag_of(row.path))
            if self._current.get(folder) == row.digest:
                return "the tag points to it"
        return "it is a live manifest" if key in live else ""

    def _is_live(self, key: bytes) -> bool:
        return bool(within(self._closure.digests, pack([key]))[0])

    def _is_needed_name(self, key: bytes) -> bool:
        return self._is_live(key) or bool(self._catalog.aliases[key] & self._closure.young)

    def _names(self, keys: set[bytes]) -> set[bytes]:
        """*keys*, and what aliases among them stand for."""
        aliases = self._catalog.aliases
        return keys.union(*(aliases[key] for key in keys & aliases.keys()))

    def _needed_in(self, repository: int) -> set[bytes]:
        """Whatever live manifests of *repository* are or name; rows come one repository at once."""
        if self._needed[0] != repository:
            live = self._closure.live.get(repository, set())
            parts = {part for key in live for _, part in self._library[key].parts()}
            self._needed = (repository, parts | live)
        return self._needed[1]
