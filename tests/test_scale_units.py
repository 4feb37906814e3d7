"""How work is cut: every shape keeps all workers busy, and who is first changes nothing.

Nothing is timed. A worker's time is what it asks of the storage: each request takes one tick.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import registry_gc.listing.ranges
from core_support import NOW, Watcher
from generated import GeneratedStorage
from generated_shape import Shape
from registry_drivers.base import Reader
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, Plan, collect
from registry_gc.digest import Names
from registry_gc.engine import NO_MORE, Result, SerialEngine, Unit, Work, drain
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.reading import read_catalog
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.report.text import plan_lines
from registry_tree import layer_link_path, repository_path, sha256

WORKERS = 8


class Ticking(SerialEngine):
    """Runs units one by one, and works out how long *workers* of them would have taken.

    A unit that comes to light begins when the one that has shown it is done, and a worker is free.
    """

    def __init__(self, reader: Reader, workers: int) -> None:
        super().__init__(reader)
        self.workers = workers
        self.work = 0
        self.ticks = 0

    @property
    def busy(self) -> float:
        """Which share of the time the workers had something to do."""
        return self.work / (self.workers * self.ticks)

    def _asked(self) -> int:
        totals = self._reader.requests.totals()
        return totals["list"] + totals["read"]

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        source, extra = iter(units), deque[Unit]()
        start = self.ticks
        free = [start] * self.workers  # when each is free
        running: list[tuple[int, int, Result]] = []
        number, now = 0, start
        while True:
            while free and free[0] <= now and (unit := next(drain(source, extra), NO_MORE)):
                if unit is NO_MORE:
                    break
                heapq.heappop(free)
                before = self._asked()
                result = work(self._reader, unit)
                took = self._asked() - before
                self.work += took
                number += 1
                heapq.heappush(running, (now + took, number, result))
            if not running:
                self.ticks = max(self.ticks, now)
                return
            now, _, result = heapq.heappop(running)
            heapq.heappush(free, now)
            if follow is not None:
                before = self._asked()
                extra.extend(follow(result))
                assert self._asked() == before, "the one who hands out units asks for nothing"
            yield result


def one_enormous_repository() -> MemoryStorage:
    """Links of layers and tags, each in one place."""
    storage = MemoryStorage(lambda: NOW, page_size=10)
    for number in range(12_000):
        digest = sha256(b"%d" % number)
        storage.put(layer_link_path("everything", digest), digest.encode(), NOW - 86400)
    for number in range(8000):
        path = f"{repository_path('everything')}/_manifests/tags/v{number}/current/link"
        storage.put(path, sha256(b"x").encode(), NOW - 86400)
    return storage


def very_many_tiny_ones(*, folders: bool) -> MemoryStorage:
    """Repositories of one link, in folders of a hundred or all side by side."""
    storage = MemoryStorage(lambda: NOW, page_size=10)
    for number in range(16_000):
        digest = sha256(b"%d" % number)
        name = f"team{number // 100}/r{number}" if folders else f"r{number}"
        storage.put(layer_link_path(name, digest), digest.encode(), NOW - 86400)
    return storage


@pytest.mark.parametrize(
    "storage",
    [
        one_enormous_repository,
        lambda: very_many_tiny_ones(folders=True),
        lambda: very_many_tiny_ones(folders=False),
    ],
    ids=["one enormous repository", "many tiny ones in folders", "many tiny ones side by side"],
)
def test_repositories_of_any_shape_keep_all_workers_busy(
    storage: Callable[[], MemoryStorage],
) -> None:
    reader = storage()
    engine = Ticking(reader, WORKERS)
    catalog = read_catalog(reader, engine, Watcher())
    assert len(catalog.layers) >= 12_000
    pages = (len(catalog.layers) + len(catalog.tags)) / 10
    assert pages < reader.requests.list < 1.4 * pages
    assert engine.busy >= 0.8


def test_blobs_and_manifests_keep_all_workers_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_gc.listing.ranges, "PAGES", 2)
    monkeypatch.setattr(registry_gc.listing.ranges, "BLOBS_A_RANGE", 1400)
    storage = GeneratedStorage(Shape(400, 200_000), folder=str(tmp_path))
    engine = Ticking(storage, WORKERS)
    blobs = sum(len(batch.keys) for batch in stream_blobs(storage, engine, None, 200_000))
    assert blobs == 200_000
    assert engine.busy >= 0.75
    reading = Ticking(storage, WORKERS)
    manifests = Manifests(reading, Names(), {}, Watcher())
    manifests.load(storage.content.digests_of(0, storage.shape.manifests))
    assert reading.work == storage.shape.manifests
    assert reading.busy >= 0.9


class Shuffled(SerialEngine):
    """Hands results back in an order that a seed decides."""

    def __init__(self, reader: Reader, seed: int) -> None:
        super().__init__(reader)
        self.workers = 5
        self.dice = random.Random(seed)

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        source, extra = iter(units), deque[Unit]()
        waiting: list[Unit] = []
        while True:
            while len(waiting) < 2 * self.workers:
                unit = next(drain(source, extra), NO_MORE)
                if unit is NO_MORE:
                    break
                waiting.append(unit)
            if not waiting:
                return
            result = work(self._reader, waiting.pop(self.dice.randrange(len(waiting))))
            if follow is not None:
                extra.extend(follow(result))
            yield result


def test_the_order_of_output_does_not_depend_on_who_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_gc.listing.ranges, "PAGES", 1)
    storage = GeneratedStorage(Shape(30, 4000, teams=4), folder=str(tmp_path / "generated"))
    outputs = []
    for seed in range(4):
        lines: list[str] = []

        def show(plan: Plan, lines: list[str] = lines) -> None:
            lines += plan_lines(plan, True)

        def engine(reader: Reader, seed: int = seed) -> Shuffled:
            return Shuffled(reader, seed)

        job = Job(
            storage=storage,
            policy=Policy(delete_untagged=True),
            check=lambda: Verdict("allowed", ()),
            run_file=str(tmp_path / f"run-{seed}"),
            dry_run=True,
            engine=engine,
        )
        report = collect(job, Watcher(), Interrupts(), show)
        assert report.error is None
        outputs.append(lines)
    assert len(outputs[0]) > 1000
    assert all(lines == outputs[0] for lines in outputs)
