"""Parts of a work unit at once: only where they wait, and together always the whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

import registry_gc.session
from core_support import few_threads
from registry_drivers.base import Reader
from registry_drivers.errors import StorageError
from registry_drivers.memory import MemoryStorage
from registry_gc.engine import ProcessEngine, SerialEngine, engine_for
from registry_gc.listing.blobs import BlobKeys
from registry_gc.listing.histories import Entries
from registry_gc.listing.ranges import Range
from registry_gc.machine import overlap
from registry_gc.machine.overlap import THREADS, Overlap, parts_of
from registry_gc.manifest_reader import Wanted
from running import Disk, collect

READER: Reader = MemoryStorage(time.time)
TEN = tuple(range(10))


class Work:
    """Work that waits or does not, and how many parts of it were under way at once."""

    def __init__(self, *waits: bool) -> None:
        self._waits = iter(waits)
        self._last = False
        self._guard = threading.Lock()
        self._under_way = 0
        self.most = 0

    def __call__(self, reader: Reader, unit: tuple[int, ...]) -> tuple[int, ...]:
        with self._guard:
            self._last = next(self._waits, self._last)
            waits = self._last
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        if waits:
            # As often as a disk would be waited for: once is no proof.
            for _ in range(20):
                time.sleep(0.001)
        with self._guard:
            self._under_way -= 1
        return unit


def flat(results: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return sum(results, ())


def test_work_that_waits_is_done_at_once_from_its_first_part_on() -> None:
    work, runs = Work(True), Overlap()
    first = runs.run(work, READER, TEN)
    assert flat(first) == TEN
    assert len(first) == THREADS
    assert work.most == THREADS - 1
    assert flat(runs.run(work, READER, TEN)) == TEN
    assert work.most == THREADS


def test_work_that_does_not_wait_is_done_unit_by_unit() -> None:
    work, runs = Work(False), Overlap()
    assert flat(runs.run(work, READER, TEN)) == TEN
    assert runs.run(work, READER, TEN) == [TEN]
    assert work.most == 1


def test_what_changes_is_noticed_in_both_ways() -> None:
    """A unit that waited is the last to be done in one; one that did not, the last in parts."""
    work, runs = Work(False, False, False, False, True), Overlap()
    assert len(runs.run(work, READER, TEN)) == THREADS
    assert runs.run(work, READER, TEN) == [TEN]
    assert work.most == 1
    assert len(runs.run(work, READER, TEN)) == THREADS
    assert work.most == THREADS
    work = Work(False)
    assert len(runs.run(work, READER, TEN)) == THREADS
    assert runs.run(work, READER, TEN) == [TEN]


def test_to_compute_is_not_to_wait() -> None:
    def compute(reader: Reader, unit: tuple[int, ...]) -> tuple[int, ...]:
        sum(number * number for number in range(100_000))
        return unit

    runs = Overlap()
    runs.run(compute, READER, TEN)
    assert runs.run(compute, READER, TEN) == [TEN]


def test_an_error_in_a_part_is_the_error_of_the_unit() -> None:
    def fail(reader: Reader, unit: tuple[int, ...]) -> tuple[int, ...]:
        for _ in range(20):
            time.sleep(0.001)
        if 7 in unit:
            raise StorageError("broken", path="7", driver="memory")
        return unit

    runs = Overlap()
    for _ in range(2):
        with pytest.raises(StorageError):
            runs.run(fail, READER, TEN)
    assert flat(runs.run(fail, READER, TEN[:7])) == TEN[:7]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("length", [0, 1, 2, 5, 64])
def test_parts_are_together_the_whole(length: int, count: int) -> None:
    keys = b"".join(bytes([number]) * 32 for number in range(length))
    texts = tuple(map(str, range(length)))
    wanted = Wanted(keys, {keys[:32]: ("sha512:x",)} if keys else {})
    for unit, members in (
        (texts, lambda part: list(part)),
        (wanted, lambda part: list(part)),
        (
            BlobKeys(keys),
            lambda part: [part.keys[at : at + 32] for at in range(0, length * 32, 32)],
        ),
        (Entries(5, texts), lambda part: list(enumerate(part.paths, part.first))),
        (Range(texts), lambda part: list(part.prefixes)),
    ):
        parts = parts_of(unit, count)
        assert 1 <= len(parts) <= max(1, count)
        assert {type(part) for part in parts} == {type(unit)}
        found = [member for part in parts for member in members(part)]
        assert [member for member in found if member] == [m for m in members(unit) if m]


@pytest.mark.parametrize("unit", [3, b"bytes", Range(("a/",), start_after="a/b", pages=3)])
def test_other_units_stay_whole(unit: Any) -> None:
    assert parts_of(unit, 4) == [unit]


class _Folders(MemoryStorage):
    """A storage that is as a filesystem to those who choose an engine."""

    def __init__(self, workers: int) -> None:
        super().__init__(time.time)
        from msgspec.structs import replace

        self.capabilities = replace(self.capabilities, processes=True, workers=workers)


def test_one_processor_asks_several_things_at_once_unless_told_otherwise() -> None:
    work = Work(True)
    with engine_for(_Folders(1), None) as engine:
        assert isinstance(engine, SerialEngine)
        assert flat([*engine.run(work, [TEN])]) == TEN
    assert work.most > 1
    work = Work(True)
    with engine_for(_Folders(1), 1) as engine:
        assert [*engine.run(work, [TEN])] == [TEN]
    assert work.most == 1
    assert isinstance(engine_for(_Folders(2), None), ProcessEngine)


def _names_of_threads(reader: Reader, unit: tuple[int, ...]) -> list[str]:
    for _ in range(20):
        time.sleep(0.001)
    return [threading.current_thread().name for _ in unit]


def test_worker_processes_overlap_what_waits() -> None:
    with ProcessEngine(READER, 1) as engine:
        names = [name for found in engine.run(_names_of_threads, [TEN] * 3) for name in found]
    assert len(names) == 30
    assert len(set(names)) > 2


def test_without_room_for_threads_parts_are_done_one_by_one(
    overlapping: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    overlap_ = Overlap()
    for _ in range(3):
        found = overlap_.run(_names_of_threads, READER, TEN)
        assert [name for names in found for name in names] == ["MainThread"] * 10


def test_with_room_for_one_thread_each_part_is_done_once(
    overlapping: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_threads(monkeypatch, 1)
    done: list[int] = []

    def work(reader: Reader, unit: tuple[int, ...]) -> tuple[int, ...]:
        time.sleep(0.001)
        done.extend(unit)
        return unit

    overlap_ = Overlap()
    for _ in range(3):
        assert flat(overlap_.run(work, READER, TEN)) == TEN
    assert sorted(done) == sorted(TEN * 3)
    assert len(set(overlapping)) == 2


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything is done in parts, at once; the names of the threads that did some."""
    monkeypatch.setattr(overlap, "_WAITS", 0)
    monkeypatch.setattr(overlap, "_WAITING", -1e9)
    threads: list[str] = []
    timed = overlap._timed

    def spy(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return timed(*arguments)

    monkeypatch.setattr(overlap, "_timed", spy)
    monkeypatch.setattr(
        registry_gc.session, "engine_for", lambda reader, workers: SerialEngine(reader, Overlap())
    )
    return threads


def fill(disk: Disk) -> None:
    """Some of everything, in several repositories."""
    for name in ("a", "b/c", "b/d", "e"):
        for number in range(6):
            data = f"{name} {number}".encode()
            disk.tree.image(name, f"v{number % 3}", layers=[data, b"shared"], config=data)
            disk.tree.layer(name, b"dead " + data)
        child = disk.tree.image(name, layers=[b"child " + name.encode()])
        disk.tree.index(name, "multi", [child])
    disk.age()


def test_what_goes_is_the_same(tmp_path_factory: pytest.TempPathFactory, request: Any) -> None:
    disks = [Disk(tmp_path_factory.mktemp(name)) for name in ("one", "parts")]
    for disk in disks:
        fill(disk)
    plain = collect(disks[0].root, "-m", "--verify", "--workers", "1")
    threads = request.getfixturevalue("overlapping")
    at_once = collect(disks[1].root, "-m", "--verify", "--workers", "1")
    assert any(name.startswith("registry-gc") for name in threads)
    for key in ("blobs", "manifests", "layer_links", "marked", "repositories", "exit_code"):
        assert at_once.json[key] == plain.json[key], key
    assert plain.json["blobs"]["deleted"] > 20
    left = [sorted(p.relative_to(d.root) for p in d.root.rglob("*")) for d in disks]
    assert left[0] == left[1]
