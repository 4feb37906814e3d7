"""Looking who holds the lock, and removing one that nobody is known to hold."""

from __future__ import annotations

import pytest

from locking.holders import Clock, dead, ours, put, somebody, stranger, take
from registry_drivers.base import Storage
from registry_drivers.memory import MemoryStorage
from registry_gc.lock import LockHeld, blocker, unlock
from registry_gc.locking.holder import FOLDER, look
from registry_gc.machine.processes import Process


def test_a_dry_run_learns_who_is_in_its_way_and_writes_nothing(storage: Storage) -> None:
    assert blocker(storage) is None
    with take(storage):
        blocked = blocker(storage)
        assert blocked is not None
        assert blocked.holder is not None
    before = storage.requests.write
    put(storage, somebody(dead(), at=storage.now()))
    assert blocker(storage) is None
    put(storage, somebody(stranger(), at=storage.now()))
    assert blocker(storage) is not None
    assert storage.requests.write == before + 2


def test_unlock_removes_what_nobody_is_known_to_hold(storage: Storage) -> None:
    assert not unlock(storage)
    put(storage, somebody(stranger(), at=storage.now()))
    storage.write(f"{FOLDER}/lock.takeover-0123-0", b"")
    assert unlock(storage)
    assert ours(storage) == []
    put(storage, b"damaged")
    assert unlock(storage)
    take(storage).release()


def test_unlock_refuses_while_the_holder_is_known_to_live(storage: Storage) -> None:
    with take(storage) as lock:
        with pytest.raises(LockHeld):
            unlock(storage)
        lock.verify()


def test_unlock_leaves_the_quarantine_alone(storage: Storage) -> None:
    kept = f"{FOLDER}/quarantine/run/docker/registry/v2/x"
    storage.write(kept, b"x")
    put(storage, somebody(stranger(), at=storage.now()))
    assert unlock(storage)
    take(storage).release()
    assert ours(storage) == [kept]


def test_looking_tells_the_age_by_the_storages_clock(memory: MemoryStorage, clock: Clock) -> None:
    assert look(memory) is None
    put(memory, somebody(stranger()))
    clock.time += 42
    found = look(memory)
    assert found is not None
    assert found.age == 42
    assert not found.stale


def test_this_process_is_alive_and_on_this_machine() -> None:
    here = Process.current()
    assert here.alive() is True
    assert here.on_this_machine()
    assert dead().alive() is False
    assert stranger().alive() is None
    assert not stranger().on_this_machine()
