"""Finding out: what the registry holds, what of it is live, and which blobs are dead.

Reads only. A collection, a plan, and those who merely ask (verify, explain, report) share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import msgspec
import numpy as np

from registry_drivers.base import Reader
from registry_drivers.errors import StorageError
from registry_gc.cache import ReferenceCache
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import distinct, without
from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import Keys, empty_keys, prefixes
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import blob_path
from registry_gc.listing.blob_shares import Wanted, stream_shares
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.blobs import BlobBatch
from registry_gc.listing.reading import name_catalog, read_catalog
from registry_gc.listing.tag_memory import TagMemory
from registry_gc.live_set import LiveSet
from registry_gc.machine.allocator import return_freed
from registry_gc.manifest_reader import ManifestState
from registry_gc.mark import Marking, mark
from registry_gc.marking.link_ages import LinkAges
from registry_gc.marking.pairs import manifests_of
from registry_gc.marking.signatures import read_signatures
from registry_gc.marking.young_blobs import YoungBlobs
from registry_gc.plan import dead_blobs
from registry_gc.policy import Policy, Release
from registry_gc.references import Manifests
from registry_gc.runs.rows import Row, RowKind

_LARGE = 1 << 20
"""Links from which on memory is worth some milliseconds."""


class BlobSink(Protocol):
    """Takes the rows of dead blobs, and takes some back; a run file is one."""

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows."""

    def drop(self, kind: RowKind, digests: Iterable[str]) -> None:
        """Take rows back that are not dead after all."""

    def drop_all(self, kind: RowKind) -> None:
        """Take all rows of a kind back."""


class NoBlobs:
    """A sink for those who do not ask which blobs are dead."""

    def add(self, rows: Iterable[Row]) -> None:
        """Ignore."""

    def drop(self, kind: RowKind, digests: Iterable[str]) -> None:
        """Ignore."""

    def drop_all(self, kind: RowKind) -> None:
        """Ignore."""


_DAY = 86400.0


class Blobs(msgspec.Struct):
    """What a pass over ``blobs/`` has counted. ``hollow``: folders that hold no file.

    ``bytes``: of all but ``unsized``, the live blobs whose size a filesystem was not asked for.
    ``ahead``: how many nothing needs, and their dates in the future keep. ``undated``: how many
    nothing needs, where age matters and the store does not say when they were written.
    ``held`` of them, with ``held_bytes``, live only because a repository is held. ``unfinished``:
    strangers that are ours, see :func:`registry_drivers.paths.is_temporary`.
    """

    total: int
    strangers: int
    hollow: list[str]
    bytes: int = 0
    unsized: int = 0
    ahead: int = 0
    undated: int = 0
    held: int = 0
    held_bytes: int = 0
    unfinished: list[str] = msgspec.field(default_factory=list)


class Survey(msgspec.Struct):
    """What was found out about a registry. ``blobs`` is None where nobody asked for them.

    ``late``: keys, sorted, of blobs whose age keeps something, as no link shows it. ``linked``: the
    manifests that are a revision somewhere, each once; so many of them are ``missing``.
    """

    catalog: Catalog
    manifests: Manifests
    marking: Marking
    blobs: Blobs | None = None
    late: Keys = msgspec.field(default_factory=empty_keys)
    linked: int = 0
    missing: int = 0

    def lost(self, stored: int) -> tuple[int, int]:
        """Of the manifests that are live and a revision somewhere: how many are not stored, of all.

        :param stored: how many blobs there are; more manifests cannot be among them. What an
            earlier run has read is not always read again.
        """
        live = np.zeros(len(self.manifests), np.bool_)
        live[manifests_of(self.marking.live)] = True
        # The first to be loaded are the revisions, see :meth:`Surveyor._marked`.
        states = self.manifests.batch.states[: self.linked][live[: self.linked]]
        missing = int(np.count_nonzero(states == ManifestState.MISSING))
        return max(missing, len(states) - stored), len(states)

    @property
    def live_manifests(self) -> int:
        """How many live revisions have their manifest in the store."""
        states = self.manifests.batch.states[manifests_of(self.marking.live)]
        return int(np.count_nonzero(states != ManifestState.MISSING))


class Surveyor:
    """Makes one survey of one registry.

    :param cutoff: seconds since the epoch; nothing younger is dead.
    :param cache: the path of the reference cache; None to read every manifest.
    """

    def __init__(
        self,
        reader: Reader,
        engine: Engine,
        policy: Policy,
        cutoff: float,
        observer: Observer,
        cache: str | None = None,
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._policy = policy
        self.cutoff = cutoff
        # What is dated after this is from no clock that is right.
        self.ahead = cutoff + policy.grace + _DAY
        self._observer = observer
        self.cache = cache
        self._told: set[str] = set()

    def catalog(self) -> Catalog:
        """List ``repositories/``.

        :raises StorageError: a folder or a link could not be read.
        """
        with ExitStack() as stack:
            memory = self._tag_memory(stack)
            return read_catalog(self._reader, self._engine, self._observer, memory)

    def catalog_by_name(self) -> Catalog:
        """As :meth:`catalog`; most links of live layers are not looked at, see ``link_ages``."""
        with ExitStack() as stack:
            memory = self._tag_memory(stack)
            catalog = name_catalog(self._reader, self._engine, self._observer, memory)
            self._ages(catalog).learn_few()
            return catalog

    def _tag_memory(self, stack: ExitStack) -> TagMemory:
        # Opened only where there is something to ask it: looking through it takes its time.
        return TagMemory(lambda: stack.enter_context(self._remembered()), self._reader, self.cutoff)

    def _ages(self, catalog: Catalog) -> LinkAges:
        return LinkAges(self._engine, self._observer, catalog)

    def mark(self, catalog: Catalog) -> Survey:
        """What is live, without a look at ``blobs/``: what the cache says is not checked."""
        return self._marked(catalog, None)

    def plan_blobs(self, catalog: Catalog, sink: BlobSink) -> Survey:
        """What is live, and all dead blobs into *sink*.

        :raises StorageError: something could not be read; *sink* is worth nothing then.
        """
        with self._remembered() as cache:
            if cache is None:
                return self._with_blobs(catalog, sink, None)
            return self._remembering(catalog, sink, cache)

    def look_again(self, catalog: Catalog, sink: BlobSink) -> Survey:
        """As :meth:`plan_blobs`, for a registry that a plan has been made of.

        What was remembered by then is relied on: whether its blob is still there and whole is not
        looked at. If it is not, more is kept than has to be.
        """
        with self._remembered() as cache:
            return self._with_blobs(catalog, sink, cache, confirm=False)

    @contextmanager
    def _remembered(self) -> Iterator[ReferenceCache | None]:
        """The cache; what was wrong with it is told at the end, once in a run."""
        if self.cache is None:
            yield None
            return
        cache = ReferenceCache.open(self.cache)
        try:
            yield cache
        finally:
            cache.close()
            for notice in cache.notices:
                if notice not in self._told:
                    self._told.add(notice)
                    self._observer.notice(notice)

    def _remembering(self, catalog: Catalog, sink: BlobSink, cache: ReferenceCache) -> Survey:
        survey = self._with_blobs(catalog, sink, cache)
        lost = survey.manifests.unconfirmed()
        if len(lost):
            self._observer.notice(
                f"{len(lost)} manifests that an earlier run has read are gone or of another "
                "size; reading them again"
            )
            # Else each run from now on would go this way round.
            cache.forget(lost)
            sink.drop_all(RowKind.BLOB)
            survey = self._with_blobs(catalog, sink, cache)
        if len(survey.manifests.unconfirmed()):
            # Others, now? Nothing that is remembered is to be relied on.
            sink.drop_all(RowKind.BLOB)
            survey = self._with_blobs(catalog, sink, None)
        return survey

    def _marked(self, catalog: Catalog, cache: ReferenceCache | None) -> Survey:
        _return_memory(catalog)
        manifests = Manifests(self._engine, catalog.names, catalog.aliases, self._observer, cache)
        manifests.load(catalog.revisions.keys)
        linked, missing = (
            len(manifests),
            int(np.count_nonzero(manifests.in_state(ManifestState.MISSING))),
        )
        _return_memory(catalog)
        catalog.signatures = read_signatures(self._reader, catalog, manifests)
        marking = mark(self._reader, catalog, manifests, self._policy, self.cutoff)
        if self._ages(catalog).learn_doubtful(manifests, marking, self.cutoff):
            marking = mark(self._reader, catalog, manifests, self._policy, self.cutoff)
        _return_memory(catalog)
        return Survey(catalog, manifests, marking, linked=linked, missing=missing)

    def _with_blobs(
        self,
        catalog: Catalog,
        sink: BlobSink,
        cache: ReferenceCache | None,
        *,
        confirm: bool = True,
    ) -> Survey:
        """Mark, then stream the blobs past the live set; once more where the two disagree.

        A store, or a proxy in front of it, that says of a manifest that it is not there, and
        lists it, has told nothing of what it references.
        """
        survey, listed = self._pass(catalog, sink, cache, confirm)
        if len(listed):
            self._observer.notice(
                f"{len(listed)} manifests could not be found, and are listed among the blobs; "
                "reading them again"
            )
            sink.drop_all(RowKind.BLOB)
            survey, listed = self._pass(catalog, sink, cache, confirm)
        if len(listed):
            sink.drop_all(RowKind.BLOB)
            raise StorageError(
                f"{len(listed)} manifests are listed, and a request for them is answered with "
                "'not found'; what they need is not known",
                path=blob_path(catalog.names.text(listed[0].tobytes())),
                driver=self._reader.driver,
            )
        return survey

    def _pass(
        self, catalog: Catalog, sink: BlobSink, cache: ReferenceCache | None, confirm: bool
    ) -> tuple[Survey, Keys]:
        """Mark, and stream the blobs past; also the manifests that are missing and listed.

        A blob that is younger than the cut-off may be a manifest whose links are all old, as
        after a restore from a backup. Then it is a root after all, and what it names lives; see
        :mod:`registry_gc.marking.young_blobs`.
        """
        survey = self._marked(catalog, cache)
        live = survey.marking.live_set
        young, listed = [empty_keys()], [empty_keys()]
        self._observer.phase("listing blobs", None, "blobs")
        survey.blobs = Blobs(0, 0, [])
        # Manifests that were remembered instead of read need the sizes of live blobs too.
        # So do blobs that only a hold keeps, of which nobody knows else what repairing it frees.
        needed = self._without_holds(survey)
        ages = YoungBlobs(
            catalog,
            survey.manifests,
            survey.marking,
            self.cutoff if self._policy.grace else None,
        )
        remembers = confirm and survey.manifests.remembers
        passed = None if remembers else ages.unasked(needed)
        # A folder is listed by its name, which may be all that is left of it.
        named = self._reader.capabilities.folders
        missing = empty_keys() if named else survey.manifests.missing
        absent = KeyIndex(missing)
        if self._engine.far:
            told = [prefixes(survey.manifests.unread), prefixes(missing), ages.doubtful.words()]
            wanted = Wanted(live, needed, distinct(np.concatenate(told)))
            batches = stream_shares(self._reader, self._engine, wanted)
        else:
            batches = stream_blobs(self._reader, self._engine, passed, len(live))
        for batch in batches:
            _count(survey.blobs, batch)
            if needed is not live:
                held = live.has(batch.keys) & ~needed.has(batch.keys)
                survey.blobs.held += int(np.count_nonzero(held))
                survey.blobs.held_bytes += int(batch.sizes[held].sum())
            survey.manifests.check(batch.keys, batch.sizes)
            if len(missing):
                listed.append(batch.keys[absent.positions(batch.keys) >= 0])
            found = dead_blobs(batch, live, self.cutoff, catalog.names)
            sink.add(found.rows)
            young += [found.young, ages.among(batch)]
            survey.blobs.ahead += int(np.count_nonzero(found.modified > self.ahead))
            # A file's date may be one that an archive gave it; a store dates what is written.
            if self._policy.grace and not named:
                survey.blobs.undated += found.undated
            self._observer.advance(len(batch.keys) + batch.live)
        self._observer.finish()
        _return_memory(catalog)
        survey.late = distinct(np.concatenate(young))
        if len(survey.late):
            self._revive(survey, sink, survey.late)
        return survey, np.concatenate(listed)

    def _without_holds(self, survey: Survey) -> LiveSet:
        """What would be live if no repository were held."""
        holds = survey.marking.holds
        if not holds:
            return survey.marking.live_set
        # A set: there may be tens of thousands.
        releases = {*self._policy.releases, *(Release(hold.repository) for hold in holds)}
        policy = msgspec.structs.replace(self._policy, releases=frozenset(releases))
        lifted = mark(self._reader, survey.catalog, survey.manifests, policy, self.cutoff)
        return lifted.live_set

    def _revive(self, survey: Survey, sink: BlobSink, late: Keys) -> None:
        """Mark again with the young blobs *late* as roots; what that reaches is dead no more."""
        before = survey.marking
        survey.marking = mark(
            self._reader,
            survey.catalog,
            survey.manifests,
            self._policy,
            self.cutoff,
            young=late,
        )
        # Whatever more is live now is young, or follows from what more is live. What looked live
        # before has no row.
        for keys in survey.marking.live_keys.of(without(survey.marking.live, before.live)):
            fresh = keys[~before.live_set.has(keys)]
            if len(fresh):
                sink.drop(RowKind.BLOB, survey.catalog.names.texts(fresh))


def _return_memory(catalog: Catalog) -> None:
    if len(catalog.layers) > _LARGE:
        return_freed()


def _count(blobs: Blobs, batch: BlobBatch) -> None:
    blobs.total += len(batch.keys) + batch.live
    blobs.bytes += int(batch.sizes.sum())
    if batch.live_bytes is None:
        blobs.unsized += batch.live
    else:
        blobs.bytes += batch.live_bytes
    blobs.strangers += batch.strangers
    blobs.hollow += batch.hollow
    blobs.unfinished += batch.unfinished
