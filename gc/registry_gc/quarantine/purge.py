"""Deletes what has waited in quarantine long enough, and nothing else of the storage.

Marks first: what is live by now comes back (:mod:`registry_gc.quarantine.recall`), and what
belongs to a repository that is held stays. Links go before blobs, and what tells of a run's
quarantine goes last, so that it may be stopped after any single delete and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from registry_drivers.base import Deletion, Outcome, Storage
from registry_drivers.versions import VersionDeleter
from registry_gc.layout import BLOBS, OWN, REPOSITORIES
from registry_gc.quarantine.aside import Aside, Kept, asides, contents, hidden_by
from registry_gc.quarantine.bring_back import BLOB, LookOrStop, exists, meaning_of
from registry_gc.quarantine.clearing import clear
from registry_gc.quarantine.still_allowed import while_allowed
from registry_gc.survey import Survey


class Purged(msgspec.Struct):
    """What became of one run's quarantine.

    ``since``: when the last of it came there, in seconds since the epoch by the storage's clock;
    None where nobody knows. ``due``: it has waited long enough. ``objects`` and ``bytes`` are
    deleted, or on a dry run would be; of those objects ``hidden`` are hidden by a delete marker,
    and what their versions take is known when they are deleted. ``kept`` belongs to held
    repositories, or is live. ``already_gone``: who deleted it, nobody knows.
    """

    run: str
    since: float | None
    until: float | None
    due: bool
    objects: int = 0
    bytes: int = 0
    hidden: int = 0
    kept: int = 0
    already_gone: int = 0
    failed: list[tuple[str, str]] = msgspec.field(default_factory=list)


Settled = Callable[[Sequence[tuple[Kept, Outcome]]], None]
"""Told of things that were to go, and what became of each."""


class Purge:
    """One purge.

    :param versions: what deletes the storage's versions, if it has any.
    :param older_than: seconds after which anything goes; None for what each run was given.
    :param survey: the last mark. *live* are paths that are live and in quarantine all the same: a
        dry run brings nothing back, and what has lost its blob cannot come.
    :param look: called before each batch; None on a dry run, which deletes nothing.
    :param settled: told of each batch, and what became of each thing in it.
    """

    def __init__(
        self,
        storage: Storage,
        versions: VersionDeleter | None,
        survey: Survey,
        older_than: float | None,
        look: LookOrStop | None,
        live: Iterable[str] = (),
        settled: Settled | None = None,
    ) -> None:
        self._storage = storage
        self._versions = versions
        self._older_than = older_than
        self._look = look
        self._live = frozenset(live)
        self._settled = settled
        self._asides = asides(storage)
        self._held = {survey.catalog.repositories[number] for number in survey.marking.held}
        self._held_digests = self._named_by_held()

    def run(self) -> Iterator[Purged]:
        """Purge each run's quarantine that is due; tells of the others too.

        Each is told before it is purged, and filled in while that goes on: what is gone when a
        purge stops half-way is known then.

        :raises StorageError: the storage does not answer.
        """
        now = self._storage.now()
        purged = [self._dated(aside, now) for aside in self._asides]
        waiting = [
            aside for aside, found in zip(self._asides, purged, strict=True) if not found.due
        ]
        # Hidden by two runs' markers, the versions wait for the later of both.
        hidden = hidden_by(self._storage, waiting)
        for aside, found in zip(self._asides, purged, strict=True):
            yield found
            if found.due:
                self._purge(aside, found, hidden)

    def _dated(self, aside: Aside, now: float) -> Purged:
        since, wait = aside.moved, aside.seconds
        if self._older_than is not None:
            wait = self._older_than
            if since is None:
                times = (
                    kept.modified for batch in contents(self._storage, aside) for kept in batch
                )
                since = max(times, default=0.0)
        until = None if since is None or wait is None else since + wait
        return Purged(aside.run, since, until, until is not None and until <= now)

    def _named_by_held(self) -> frozenset[str]:
        """What the links of held repositories name, in whatever run's quarantine."""
        if not self._held:
            return frozenset()
        return frozenset(
            meaning.digest
            for aside in self._asides
            for batch in contents(self._storage, aside, REPOSITORIES)
            for meaning in (meaning_of(kept.path) for kept in batch)
            if meaning.repository in self._held
        )

    def _stays(self, kept: Kept) -> bool:
        meaning = meaning_of(kept.path)
        held = meaning.repository in self._held or (
            meaning.order == BLOB and meaning.digest in self._held_digests
        )
        return held or kept.path in self._live

    def _purge(self, aside: Aside, found: Purged, hidden: frozenset[str]) -> None:
        links = [row for batch in contents(self._storage, aside, REPOSITORIES) for row in batch]
        links.sort(key=lambda kept: -meaning_of(kept.path).order)
        size = self._storage.capabilities.delete_batch
        for at in range(0, len(links), size):
            self._batch(links[at : at + size], found, hidden)
        for batch in contents(self._storage, aside, BLOBS):
            self._batch(batch, found, hidden)
        if self._look is None or found.kept or found.failed:
            return
        self._look()
        clear(self._storage, aside)

    def _batch(self, batch: Sequence[Kept], found: Purged, hidden: frozenset[str]) -> None:
        going = [kept for kept in batch if not self._stays(kept)]
        found.kept += len(batch) - len(going)
        moved = {kept.aside.place(kept.path): kept for kept in going if not kept.marked}
        marked = [kept.path for kept in going if kept.marked and kept.path not in hidden]
        marked = self._not_current(marked)
        if self._look is None:
            found.objects += len(moved) + len(marked)
            found.hidden += len(marked)
            found.bytes += sum(kept.size for kept in moved.values())
            return
        self._look()
        with while_allowed(self._look):
            self._count(found, self._storage.delete(list(moved)), moved)
            if marked and self._versions is not None:
                hiding = {kept.path: kept for kept in going if kept.marked}
                self._count(found, self._versions.delete_versions(sorted(marked)), hiding)
        if self._storage.capabilities.folders:
            folders = sorted({place.rpartition("/")[0] for place in moved}, reverse=True)
            self._storage.remove_folders(folders, floor=OWN)

    def _not_current(self, paths: Sequence[str]) -> list[str]:
        """Those that have no object now: what was pushed again since has its versions in use."""
        if not paths:
            return []
        workers = self._storage.capabilities.workers
        with ThreadPoolExecutor(workers, thread_name_prefix="registry-gc-purge") as pool:
            there = pool.map(lambda path: exists(self._storage, path), paths)
            return [path for path, is_there in zip(paths, there, strict=True) if not is_there]

    def _count(self, found: Purged, outcomes: Iterable[Outcome], places: dict[str, Kept]) -> None:
        settled = []
        try:
            for outcome in outcomes:
                kept = places[outcome.path]
                settled.append((kept, outcome))
                if outcome.result is Deletion.FAILED:
                    found.failed.append((outcome.path, outcome.error))
                    continue
                if outcome.result is Deletion.GONE_ALREADY:
                    found.already_gone += 1
                    continue
                found.objects += 1
                found.bytes += outcome.bytes if kept.marked else kept.size
        finally:
            # Also where the storage stops answering half-way: what is gone, is gone, and is told.
            if self._settled is not None:
                self._settled(settled)
