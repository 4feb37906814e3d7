"""The in-memory storage: the common suite, and what only it has."""

from __future__ import annotations

import pytest

from drivers.conformance import DriverConformance, paths_of
from registry_drivers.base import Storage
from registry_drivers.memory import MemoryStorage


class TestMemory(DriverConformance):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


class TestMemoryWithSmallPages(DriverConformance):
    many = 60

    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage(page_size=7, delete_batch=3)


def test_time_is_what_the_clock_says() -> None:
    storage = MemoryStorage(now=lambda: 1234.5)
    storage.write("a/b", b"")
    storage.put("a/c", b"", modified=7.0)
    assert storage.now() == storage.stat("a/b").modified == 1234.5
    assert storage.stat("a/c").modified == 7.0


def test_a_snapshot_is_what_was_there_at_its_moment() -> None:
    storage = MemoryStorage()
    storage.put("a/b", b"1")
    before = storage.snapshot()
    storage.write("a/b", b"2")
    assert before == {"a/b": b"1"}
    assert storage.snapshot() == {"a/b": b"2"}


@pytest.mark.parametrize(("objects", "pages"), [(0, 1), (7, 1), (8, 2), (14, 2), (15, 3)])
def test_a_listing_costs_one_request_a_page(objects: int, pages: int) -> None:
    storage = MemoryStorage(page_size=7)
    for number in range(objects):
        storage.put(f"a/{number}", b"")
    assert len(paths_of(storage.list("a/"))) == objects
    assert storage.requests.list == pages


def test_what_vanishes_while_a_listing_runs_is_no_error() -> None:
    storage = MemoryStorage(page_size=2)
    for number in range(6):
        storage.put(f"a/{number}", b"")
    pages = storage.list("a/")
    next(pages)
    list(storage.delete(["a/1", "a/2", "a/5"]))
    assert paths_of(pages) == ["a/3", "a/4"]
