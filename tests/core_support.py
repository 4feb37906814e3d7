"""What the tests of the collector's core share: registries in memory, and the rooms wired up."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest

from registry_drivers.base import Reader
from registry_drivers.memory import MemoryStorage
from registry_gc.catalog import Catalog
from registry_gc.digest import Keys, empty_keys
from registry_gc.engine import Engine, SerialEngine
from registry_gc.events import Silence
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.reading import read_catalog
from registry_gc.live_set import LiveSet
from registry_gc.mark import Marking, mark
from registry_gc.marking.pairs import manifests_of, repositories_of
from registry_gc.marking.signatures import read_signatures
from registry_gc.plan import dead_blobs, dead_links
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.runs.rows import Row, RowKind
from registry_tree import RegistryTree

NOW = 1_700_000_000.0
HOUR = 3600.0
DAY = 24 * HOUR
YOUNG, OLD = NOW - 60.0, NOW - 30 * DAY

KEEP_UNTAGGED = Policy()
UNTAGGED_GO = Policy(delete_untagged=True)
GRACE = Policy(grace=HOUR)
UNTAGGED_GO_WITH_GRACE = Policy(delete_untagged=True, grace=HOUR)


@dataclass
class Store:
    """A registry in memory that a test writes push by push; the clock stands at :data:`NOW`.

    ``age`` is the time of whatever is written next, in seconds since the epoch.
    """

    page_size: int = 1000
    delete_batch: int = 1000
    age: float = OLD
    storage: MemoryStorage = field(init=False)
    tree: RegistryTree = field(init=False)

    def __post_init__(self) -> None:
        self.storage = MemoryStorage(
            lambda: NOW, page_size=self.page_size, delete_batch=self.delete_batch
        )
        self.tree = RegistryTree(self.write)

    def write(self, path: str, data: bytes) -> None:
        """Put an object that is as old as :attr:`age` says."""
        self.storage.put(path, data, self.age)

    def remove(self, path: str) -> None:
        """Take an object away."""
        list(self.storage.delete([path]))

    def touch(self, path: str, modified: float = YOUNG) -> None:
        """Make an object younger, or older, than it is."""
        self.storage.put(path, self.storage.read(path), modified)


@dataclass
class Marked:
    """What came of marking, in words: digests by repository."""

    catalog: Catalog
    manifests: Manifests
    marking: Marking
    policy: Policy

    def _digests(self, pairs: np.ndarray[tuple[int], np.dtype[np.int64]]) -> set[tuple[str, str]]:
        keys = self.manifests.batch.keys[manifests_of(pairs)]
        owners = repositories_of(pairs).tolist()
        digests = self.catalog.names.texts(keys)
        return {(self.catalog.repositories[o], d) for o, d in zip(owners, digests, strict=True)}

    @property
    def live(self) -> set[tuple[str, str]]:
        """Repository and digest of each live manifest."""
        return self._digests(self.marking.live)

    @property
    def dead(self) -> set[tuple[str, str]]:
        """Repository and digest of each dead revision."""
        return self._digests(self.marking.dead)

    @property
    def held(self) -> set[str]:
        """The names of the held repositories."""
        return {self.catalog.repositories[number] for number in self.marking.held}

    @property
    def digests(self) -> set[str]:
        """Every live digest."""
        return set(self.catalog.names.texts(self.marking.digests))

    @property
    def damaged(self) -> set[str]:
        """The paths of what is damaged."""
        return {damage.path for damage in self.marking.damaged}


def marked(
    storage: Reader,
    policy: Policy = UNTAGGED_GO,
    *,
    engine: Engine | None = None,
    young: Keys | None = None,
) -> Marked:
    """Catalog and mark *storage*; the cut-off is one grace period before its clock."""
    engine = engine or SerialEngine(storage)
    catalog = read_catalog(storage, engine, Silence())
    manifests = Manifests(engine, catalog.names, catalog.aliases, Silence())
    manifests.load(catalog.revisions.keys)
    catalog.signatures = read_signatures(storage, catalog, manifests)
    cutoff = storage.now() - policy.grace
    marking = mark(storage, catalog, manifests, policy, cutoff, young)
    return Marked(catalog, manifests, marking, policy)


def blob_rows(storage: Reader, found: Marked) -> tuple[list[Row], Keys]:
    """The dead blobs as rows, and the keys that only their age keeps."""
    live = LiveSet([found.marking.digests])
    rows: list[Row] = []
    young = [empty_keys()]
    for batch in stream_blobs(storage, SerialEngine(storage)):
        part = dead_blobs(batch, live, storage.now() - found.policy.grace, found.catalog.names)
        rows += part.rows
        young.append(part.young)
    return rows, np.concatenate(young)


def link_rows(storage: Reader, found: Marked) -> list[Row]:
    """The rows below ``repositories/``."""
    cutoff = storage.now() - found.policy.grace
    return list(
        dead_links(found.catalog, found.manifests, found.marking, found.policy, cutoff).rows
    )


def rows_of(rows: Iterable[Row], kind: RowKind) -> list[Row]:
    """Those of *kind*."""
    return [row for row in rows if row.kind is kind]


def planned_paths(storage: Reader, policy: Policy = UNTAGGED_GO) -> set[str]:
    """Every path that a collection of *storage* would delete, but for revived young blobs."""
    found = marked(storage, policy)
    rows, young = blob_rows(storage, found)
    if len(young):
        found = marked(storage, policy, young=young)
        rows, _ = blob_rows(storage, found)
    return {row.path for row in [*rows, *link_rows(storage, found)]}


@dataclass
class Watcher:
    """An observer that remembers what it was told."""

    phases: list[tuple[str, int | None]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    advanced: int = 0
    finished: int = 0

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Remember the phase."""
        self.phases.append((name, total))

    def advance(self, count: int) -> None:
        """Add up."""
        self.advanced += count

    def finish(self) -> None:
        """Count."""
        self.finished += 1

    def notice(self, message: str) -> None:
        """Remember the notice."""
        self.notices.append(message)


def few_threads(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """From now on the system has room for so many more threads, and none after them."""
    start = threading.Thread.start
    left = room

    def start_or_not(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
