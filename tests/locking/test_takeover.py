"""The lock after a crash: what is taken over, at once or after a while, and by one run only."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from locking.holders import START, Clock, contend, dead, ours, put, somebody, stranger, take
from registry_drivers.base import Outcome, Storage
from registry_drivers.errors import AlreadyExists
from registry_drivers.memory import MemoryStorage
from registry_gc.lock import LockHeld, LockLost
from registry_gc.locking.claim import TAKEOVER
from registry_gc.locking.holder import FOLDER, LOCK, STALE_SECONDS
from registry_gc.machine.processes import Process


@pytest.mark.parametrize("flock", [True, False])
def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(
    storage: Storage, flock: bool
) -> None:
    put(storage, somebody(dead(), at=storage.now(), flock=flock))
    with take(storage, "new") as lock:
        assert "taken over: that process has ended" in lock.notices[0]
        assert "run other" in lock.notices[0]
        assert ours(storage) == [LOCK]
    assert ours(storage) == []


def test_a_takeover_whose_process_was_killed_half_way_is_taken_over_at_once(
    storage: Storage,
) -> None:
    """On a file system as in an object store; however often that has happened."""
    holder = somebody(dead(), at=storage.now())
    put(storage, holder)
    state = hashlib.sha256(holder.encode()).hexdigest()[:16]
    for generation in range(3):
        winner = replace(somebody(dead(), at=storage.now()), token=f"w{generation}")
        storage.write(f"{FOLDER}/{TAKEOVER}{state}-{generation}", winner.encode())
    with take(storage, "new") as lock:
        assert "taken over: that process has ended" in lock.notices[0]
        assert ours(storage) == [LOCK]
    living = replace(somebody(Process.current(), at=storage.now()), token="living")
    put(storage, holder)
    storage.write(f"{FOLDER}/{TAKEOVER}{state}-0", living.encode())
    with pytest.raises(LockHeld, match="just taking the lock over"):
        take(storage)


def test_a_pid_that_is_used_again_is_not_taken_for_the_holder(memory: MemoryStorage) -> None:
    here = Process.current()
    put(memory, somebody(replace(here, started=here.started - 1)))
    take(memory).release()


def test_a_zombie_holds_no_lock(memory: MemoryStorage) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.read()
        process.stdout.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        put(memory, somebody(replace(Process.current(), pid=process.pid)))
        take(memory).release()
    finally:
        process.wait()


def test_a_lock_that_says_no_more_than_host_and_pid_is_understood(memory: MemoryStorage) -> None:
    said = {"host": socket.gethostname(), "run": "r", "time": "2023-11-14T22:13:20Z"}
    put(memory, json.dumps({**said, "pid": dead().pid}).encode())
    take(memory).release()
    put(memory, json.dumps({**said, "pid": os.getpid()}).encode())
    with pytest.raises(LockHeld):
        take(memory)


@pytest.mark.parametrize("pid", [0, -1, 2**40])
def test_an_impossible_pid_is_not_taken_for_dead(memory: MemoryStorage, pid: int) -> None:
    put(memory, somebody(replace(Process.current(), pid=pid)))
    with pytest.raises(LockHeld):
        take(memory)


@pytest.mark.parametrize("where", ["another host", "another container", "before a reboot"])
def test_a_process_that_cannot_be_seen_from_here_is_given_ten_minutes(
    memory: MemoryStorage, clock: Clock, where: str
) -> None:
    hidden = {
        "another host": stranger(),
        "another container": replace(dead(), namespace="pid:[1]"),
        "before a reboot": replace(dead(), boot="other"),
    }
    put(memory, somebody(hidden[where]))
    clock.time += STALE_SECONDS - 1
    with pytest.raises(LockHeld, match="599 s ago"):
        take(memory)
    clock.time += 1
    with take(memory) as lock:
        assert "last refreshed 10 minutes ago" in lock.notices[0]


def test_a_living_holder_that_gives_no_sign_for_ten_minutes_loses_its_lock(
    memory: MemoryStorage, clock: Clock
) -> None:
    sleeper = take(memory, "sleeper")
    clock.time += STALE_SECONDS
    with take(memory, "new") as lock:
        with pytest.raises(LockLost, match=r"run new.* took it over"):
            sleeper.verify()
        with pytest.raises(LockLost):
            sleeper.refresh()
        sleeper.release()
        lock.verify()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"host": 1}', b"x" * 99_999])
def test_a_damaged_lock_is_held_until_it_is_ten_minutes_old(
    memory: MemoryStorage, clock: Clock, content: bytes
) -> None:
    memory.put(LOCK, content)
    with pytest.raises(LockHeld, match="is damaged") as caught:
        take(memory)
    assert caught.value.holder is None
    clock.time += STALE_SECONDS
    take(memory).release()


def test_a_time_ahead_of_the_clock_counts_as_fresh(memory: MemoryStorage, clock: Clock) -> None:
    put(memory, somebody(stranger(), at=START + 86400))
    clock.time += 2 * STALE_SECONDS
    with pytest.raises(LockHeld, match="ahead of the storage's clock"):
        take(memory)


def test_the_later_of_the_two_times_counts(memory: MemoryStorage, clock: Clock) -> None:
    put(memory, somebody(stranger(), at=START - 86400))
    with pytest.raises(LockHeld):
        take(memory)
    clock.time += STALE_SECONDS
    take(memory).release()


def test_of_many_runs_that_find_a_dead_one_exactly_one_takes_over(memory: MemoryStorage) -> None:
    gone = dead()
    for _ in range(20):
        put(memory, somebody(gone))
        (lock,) = contend(memory)
        lock.verify()
        lock.release()
        assert ours(memory) == []


def test_of_many_runs_that_begin_at_once_exactly_one_gets_the_lock(storage: Storage) -> None:
    (lock,) = contend(storage)
    lock.verify()
    lock.release()
    assert ours(storage) == []


class Interrupting(MemoryStorage):
    """Calls back before the write that *when* picks."""

    def __init__(self, when: Callable[[str, bool], bool], then: Callable[[], None]) -> None:
        super().__init__(now=lambda: START)
        self.when = when
        self.then = then

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.when(path, if_absent):
            self.when = lambda *_: False
            self.then()
        super().write(path, data, if_absent=if_absent)


def test_a_holder_that_wakes_up_during_the_takeover_keeps_its_lock() -> None:
    def refresh() -> None:
        storage.put(LOCK, replace(old, time=datetime.fromtimestamp(START + 1, UTC)).encode())

    old = somebody(stranger(), at=START - STALE_SECONDS)
    storage = Interrupting(lambda path, _: "takeover" in path, refresh)
    storage.put(LOCK, old.encode(), modified=START - STALE_SECONDS)
    with pytest.raises(LockHeld):
        take(storage)
    assert ours(storage) == [LOCK]


def test_a_takeover_that_died_half_way_is_finished_by_the_next_run_after_ten_minutes(
    memory: MemoryStorage, clock: Clock
) -> None:
    class Killed(BaseException):
        pass

    class Dying(MemoryStorage):
        armed = True

        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            if self.armed and path == LOCK and not if_absent:
                raise Killed
            super().write(path, data, if_absent=if_absent)

        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            if self.armed:
                raise Killed
            return super().delete(paths)

    storage = Dying(now=clock)
    storage.put(LOCK, somebody(stranger()).encode())
    clock.time += STALE_SECONDS
    with pytest.raises(Killed):
        take(storage)
    assert len(ours(storage)) == 2
    storage.armed = False
    with pytest.raises(LockHeld, match="just taking the lock over"):
        take(storage)
    clock.time += STALE_SECONDS
    with take(storage):
        assert ours(storage) == [LOCK]


def test_a_lock_that_keeps_changing_hands_is_refused_in_the_end() -> None:
    class Haunted(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            raise AlreadyExists("it was there a moment ago", path=path)

    with pytest.raises(LockHeld, match="changes hands"):
        take(Haunted())
