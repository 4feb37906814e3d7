"""Wrappers: a storage that can only be read, and one that is asked no faster than allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from drivers.conformance import DriverConformance, paths_of
from registry_drivers.base import (
    UNASKED,
    Deleter,
    Entry,
    Page,
    Reader,
    Storage,
    Writer,
    list_among,
    list_unasked,
    stat_many,
)
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.wrappers import ReadOnly, Throttled, Wrapper


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class TestWrapper(DriverConformance):
    many = 30

    @pytest.fixture
    def storage(self) -> Storage:
        return Wrapper(MemoryStorage(page_size=7))


class TestThrottled(DriverConformance):
    many = 30

    @pytest.fixture
    def storage(self) -> Storage:
        time = Time()
        return Throttled(MemoryStorage(page_size=7), 50.0, clock=time, sleep=time.sleep)


@pytest.fixture
def memory() -> MemoryStorage:
    storage = MemoryStorage(page_size=2, delete_batch=2)
    for number in range(6):
        storage.put(f"a/{number}", b"x")
    return storage


# --- read only


def test_what_is_read_only_has_nothing_to_change_it_with(memory: MemoryStorage) -> None:
    reader = ReadOnly(memory)
    assert isinstance(reader, Reader)
    assert not isinstance(reader, Deleter)
    assert not isinstance(reader, Writer)
    for name in ("delete", "remove_folders", "write", "move", "put"):
        assert not hasattr(reader, name)
    with pytest.raises(AttributeError):
        reader.delete = memory.delete  # type: ignore[attr-defined]  # what must not work


def test_what_is_read_only_reads_as_the_storage_does(memory: MemoryStorage) -> None:
    reader = ReadOnly(memory)
    assert paths_of(reader.list("a/", start_after="a/3")) == ["a/4", "a/5"]
    assert reader.children("a/") == memory.children("a/")
    assert reader.read("a/1", limit=1) == b"x"
    assert reader.stat("a/1") == memory.stat("a/1")
    assert reader.stat_many(["a/1", "b"]) == [memory.stat("a/1"), None]
    assert reader.capabilities is memory.capabilities
    assert reader.requests is memory.requests
    assert (reader.driver, reader.root) == ("inmemory", "memory")
    assert reader.now() > 0
    reader.close()


def test_a_wrapper_that_changes_a_stat_is_asked_for_each_of_many(tmp_path: Path) -> None:
    class Smaller(Wrapper):
        def stat(self, path: str) -> Entry:
            return replace(super().stat(path), size=1)

    disk = FilesystemStorage(str(tmp_path))
    for path in ("a/1", "a/2"):
        disk.write(path, b"long")
    for storage in (Smaller(disk), Wrapper(Smaller(disk)), ReadOnly(Smaller(Wrapper(disk)))):
        found = stat_many(storage, ["a/1", "a/missing", "a/2"])
        assert [entry and entry.size for entry in found] == [1, None, 1]
    assert [entry and entry.size for entry in stat_many(Wrapper(disk), ["a/1", "a/3"])] == [4, None]


def test_a_wrapper_that_changes_listings_is_asked_for_those_by_name_too(tmp_path: Path) -> None:
    class Nothing(Wrapper):
        def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
            return iter(())

    disk = FilesystemStorage(str(tmp_path))
    names = ["ab" * 32]
    disk.write(f"r/_layers/sha256/{names[0]}/link", b"x")
    for storage in (Nothing(disk), Wrapper(Nothing(disk)), ReadOnly(Nothing(Wrapper(disk)))):
        assert not [*list_unasked(storage, "")]
        assert not [*list_among(storage, [("r/_layers/sha256/", names)])]
    for storage in (Wrapper(disk), ReadOnly(Wrapper(disk))):
        (page,) = list_unasked(storage, "")
        assert page.sizes.tolist() == [UNASKED]
        (page,) = list_among(storage, [("r/_layers/sha256/", names)])
        assert page.sizes.tolist() == [1]


# --- throttled


def test_each_of_many_files_keeps_the_rate(tmp_path: Path) -> None:
    time = Time()
    slow = Throttled(FilesystemStorage(str(tmp_path)), 10.0, clock=time, sleep=time.sleep)
    assert stat_many(ReadOnly(slow), [f"a/{number}" for number in range(5)]) == [None] * 5
    assert time.slept == pytest.approx([0.1] * 4)


def test_on_a_filesystem_each_delete_keeps_the_rate(tmp_path: Path) -> None:
    time = Time()
    slow = Throttled(FilesystemStorage(str(tmp_path)), 10.0, clock=time, sleep=time.sleep)
    drawn: list[float] = []

    def paths() -> Iterator[str]:
        for number in range(5):
            drawn.append(time())
            yield f"a/{number}"

    assert len(list(slow.delete(paths()))) == 5
    assert time.slept == pytest.approx([0.1] * 4)
    # Each is drawn when its turn has come, so that whoever hands them out can end it.
    assert [at - drawn[0] for at in drawn] == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])


def test_requests_of_all_kinds_together_keep_the_rate(memory: MemoryStorage) -> None:
    time = Time()
    slow = Throttled(memory, 10.0, clock=time, sleep=time.sleep)
    slow.read("a/1")
    slow.stat("a/1")
    slow.children("a/")
    slow.write("a/6", b"")
    slow.move("a/6", "a/7")
    assert time.slept == pytest.approx([0.1] * 4)


def test_a_listing_pays_for_each_page(memory: MemoryStorage) -> None:
    time = Time()
    slow = Throttled(memory, 10.0, clock=time, sleep=time.sleep)
    before = memory.requests.list
    assert len(paths_of(slow.list("a/"))) == 6
    assert memory.requests.list - before == 3
    assert time.slept == pytest.approx([0.1] * 2)
    assert paths_of(slow.list("missing/")) == []
    assert time.slept == pytest.approx([0.1] * 3)


def test_a_delete_pays_for_each_batch(memory: MemoryStorage) -> None:
    time = Time()
    slow = Throttled(memory, 10.0, clock=time, sleep=time.sleep)
    before = memory.requests.delete
    assert len(list(slow.delete(f"a/{n}" for n in range(5)))) == 5
    assert memory.requests.delete - before == 3
    assert time.slept == pytest.approx([0.1] * 2)


def test_an_idle_time_saves_nothing_up(memory: MemoryStorage) -> None:
    time = Time()
    slow = Throttled(memory, 10.0, clock=time, sleep=time.sleep)
    slow.read("a/1")
    time.now += 60
    slow.read("a/1")
    slow.read("a/1")
    assert time.slept == pytest.approx([0.1])


def test_threads_share_one_rate(memory: MemoryStorage) -> None:
    waits: list[float] = []
    # The clock stands still: the n-th request of all has to wait n tenths.
    slow = Throttled(memory, 10.0, clock=lambda: 5.0, sleep=waits.append)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(slow.read, ["a/1"] * 40))
    assert sorted(waits) == pytest.approx([n / 10 for n in range(1, 40)])


def test_processes_would_each_have_the_whole_rate_and_are_not_offered(tmp_path: Path) -> None:
    storage = FilesystemStorage(str(tmp_path))
    slow = Throttled(storage, 10.0)
    assert storage.capabilities.processes
    assert not slow.capabilities.processes
    assert slow.capabilities.folders


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(memory: MemoryStorage, rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        Throttled(memory, rate)


def test_what_is_renewed_is_renewed_through_a_wrapper_and_elsewhere_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.utime(tmp_path / "file", (1e9, 1e9))
    Throttled(Wrapper(FilesystemStorage(str(tmp_path))), 100.0).renew("file")
    assert (tmp_path / "file").stat().st_mtime > 1e9
    memory = MemoryStorage()
    memory.put("file", b"", 1e9)
    Throttled(Wrapper(memory), 100.0).renew("file")
    assert memory.stat("file").modified == 1e9
