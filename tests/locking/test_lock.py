"""The lock: one run at a time, which looks after its lock until it has ended."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from locking.holders import Clock, ours, put, somebody, stranger, take
from registry_drivers.base import Storage
from registry_drivers.errors import Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc import lock as lock_module
from registry_gc.lock import Lock, LockHeld, LockLost, blocker
from registry_gc.locking.holder import LOCK, STALE_SECONDS, read_holder

# --- the ordinary way


def test_the_lock_object_says_who_holds_it(storage: Storage) -> None:
    with take(storage, "1234") as lock:
        said = json.loads(storage.read(LOCK))
        assert said["host"] == socket.gethostname()
        assert said["pid"] == os.getpid()
        assert said["run"] == "1234"
        assert said["time"] == said["since"]
        assert read_holder(storage) == lock.holder
        assert lock.notices == []


def test_a_released_lock_leaves_nothing_behind(storage: Storage) -> None:
    take(storage).release()
    assert ours(storage) == []
    assert "registry-gc" not in storage.children("docker/registry/").folders
    take(storage).release()


def test_releasing_twice_or_after_an_error_is_no_error(storage: Storage) -> None:
    lock = take(storage)
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    lock.release()
    lock.refresh()
    assert ours(storage) == []


def test_a_second_run_is_refused_and_told_by_whom(storage: Storage) -> None:
    with take(storage, "1234"):
        with pytest.raises(LockHeld) as caught:
            take(storage, "5678")
        assert caught.value.holder is not None
        assert caught.value.holder.run == "1234"
        for word in (socket.gethostname(), str(os.getpid()), "1234", "since 20"):
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    take(storage, "5678").release()


def test_a_folder_in_its_place_is_told(disk: FilesystemStorage) -> None:
    Path(disk.root, LOCK, "x").mkdir(parents=True)
    with pytest.raises(LockHeld, match="is a folder, and no lock: remove it"):
        Lock.acquire(disk, "run")
    held = blocker(disk)
    assert held is not None
    assert "remove it" in str(held)


def test_a_refused_run_on_an_object_store_names_the_way_out(memory: MemoryStorage) -> None:
    with take(memory), pytest.raises(LockHeld, match="registry-gc unlock"):
        take(memory)


def test_an_ordinary_lock_costs_five_requests(memory: MemoryStorage) -> None:
    take(memory).release()
    totals = memory.requests.totals()
    assert (totals["write"], totals["read"], totals["list"], totals["delete"]) == (2, 2, 0, 1)


# --- verify and refresh


def test_a_lock_that_is_held_is_verified_with_one_read(memory: MemoryStorage) -> None:
    with take(memory) as lock:
        before = memory.requests.read
        lock.verify()
        assert memory.requests.read == before + 1
        lock.verify(within=3600)
        assert memory.requests.read == before + 1


def test_a_refresh_rewrites_the_time_and_nothing_else(memory: MemoryStorage, clock: Clock) -> None:
    with take(memory) as lock:
        first = read_holder(memory)
        clock.time += 400
        lock.refresh()
        second = read_holder(memory)
        assert first is not None
        assert second == replace(first, time=datetime.fromtimestamp(clock.time, UTC))
        clock.time += 400
        with pytest.raises(LockHeld, match="400 s ago"):
            take(memory)


@pytest.mark.parametrize("what", ["taken", "removed", "damaged", "large"])
def test_a_holder_that_lost_its_lock_is_told_and_stays_told(
    memory: MemoryStorage, what: str
) -> None:
    lock = take(memory)
    mine = lock.holder
    contents = {"taken": somebody(stranger()).encode(), "damaged": b"{", "large": b"x" * 99_999}
    if what == "removed":
        list(memory.delete([LOCK]))
    else:
        memory.put(LOCK, contents[what])
    with pytest.raises(LockLost, match="nothing more is deleted"):
        lock.verify()
    put(memory, mine)
    with pytest.raises(LockLost):
        lock.verify(within=3600)
    with pytest.raises(LockLost):
        lock.refresh()


def test_a_holder_that_lost_its_lock_does_not_remove_the_other_ones(memory: MemoryStorage) -> None:
    lock = take(memory)
    put(memory, somebody(stranger()))
    lock.release()
    assert ours(memory) == [LOCK]


def test_a_storage_that_fails_is_no_lost_lock(memory: MemoryStorage) -> None:
    lock = take(memory)
    working = memory.read

    def broken(path: str, *, limit: int | None = None) -> bytes:
        raise Unavailable("down", path=path)

    memory.read = broken  # type: ignore[method-assign]  # the storage goes away
    with pytest.raises(Unavailable):
        lock.verify()
    with pytest.raises(Unavailable):
        lock.refresh()
    memory.read = working  # type: ignore[method-assign]  # and comes back
    lock.verify()
    memory.read = broken  # type: ignore[method-assign]  # and goes away for good
    lock.release()
    assert "could not be removed" in lock.notices[0]


def test_a_thread_refreshes_the_lock_until_it_is_released() -> None:
    written = threading.Semaphore(0)

    class Watched(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            super().write(path, data, if_absent=if_absent)
            written.release()

    storage = Watched()
    before = threading.active_count()
    with Lock.acquire(storage, "run", refresh_seconds=0.001):
        for _ in range(5):
            assert written.acquire(timeout=60)
    assert threading.active_count() == before
    assert ours(storage) == []


def test_the_thread_outlives_a_storage_that_fails_for_a_while() -> None:
    written = threading.Semaphore(0)
    faults = [True, False] * 3

    class Flaky(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            if not if_absent and faults and faults.pop():
                raise Unavailable("down", path=path)
            super().write(path, data, if_absent=if_absent)
            written.release()

    with Lock.acquire(Flaky(), "run", refresh_seconds=0.001) as lock:
        for _ in range(8):
            assert written.acquire(timeout=60)
        lock.verify()


def test_the_thread_ends_when_the_lock_is_lost(memory: MemoryStorage) -> None:
    lock = Lock.acquire(memory, "run", refresh_seconds=0.001)
    assert lock._thread is not None
    put(memory, somebody(stranger()))
    # It may just have looked and write its own once more; then the other's is lost, not this.
    while lock._thread.is_alive():
        put(memory, somebody(stranger()))
        lock._thread.join(0.01)
    with pytest.raises(LockLost):
        lock.verify(within=3600)


# --- standing still


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets that many seconds pass in which this process does nothing, as in a suspended machine."""
    passed = [0.0]
    now = lock_module.clock
    monkeypatch.setattr(lock_module, "clock", lambda: now() + passed[0])

    def stand(seconds: float) -> None:
        passed[0] += seconds

    return stand


@pytest.mark.parametrize("ask", [Lock.verify, Lock.refresh])
def test_a_run_that_stood_still_has_lost_its_lock(
    storage: Storage, standing: Callable[[float], None], ask: Callable[[Lock], None]
) -> None:
    with take(storage) as lock:
        standing(STALE_SECONDS - 1)
        lock.refresh()
        standing(STALE_SECONDS - 1)
        lock.verify()
        standing(2)
        with pytest.raises(LockLost, match="stood still for 10 minutes"):
            ask(lock)


def test_a_refresh_that_takes_longer_than_others_wait_is_none(
    memory: MemoryStorage, standing: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = memory.write

    def slow(path: str, data: bytes, *, if_absent: bool = False) -> None:
        standing(STALE_SECONDS + 1)
        write(path, data, if_absent=if_absent)

    with take(memory) as lock:
        monkeypatch.setattr(memory, "write", slow)
        with pytest.raises(LockLost, match="longer than others wait"):
            lock.refresh()
        with pytest.raises(LockLost):
            lock.verify()
