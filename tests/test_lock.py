"""The lock: one run at a time, on storages in memory and on disk, and what follows a crash."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import asdict, replace

from registry_drivers.base import Children, Deletion, Outcome, Storage
from registry_drivers.errors import AccessDenied, AlreadyExists, StorageError, Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc import lock as lock_module
from registry_gc.lock import Lock, LockHeld, LockLost, LockUnsafe, blocker, unlock
from registry_gc.locking import contest
from registry_gc.locking.claim import TAKEOVER
from registry_gc.locking.folder_lock import FolderLock, NoFolderLock
from registry_gc.locking.holder import FOLDER, LOCK, STALE_SECONDS, Holder, look, read_holder
from registry_gc.service.processes import Process

START = 1_700_000_000.0


@dataclass
class Clock:
    """A storage's clock, which stands still until it is set."""

    time: float = START

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> MemoryStorage:
    """An object store."""
    return MemoryStorage(now=clock)


@pytest.fixture
def disk(tmp_path: Path) -> FilesystemStorage:
    """A registry on disk."""
    (tmp_path / "docker/registry/v2").mkdir(parents=True)
    return FilesystemStorage(str(tmp_path))


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each of the two."""
    made: Storage = request.getfixturevalue(request.param)
    return made


def take(storage: Storage, run: str = "run") -> Lock:
    """Take the lock without a thread that refreshes it."""
    return Lock.acquire(storage, run, refresh_seconds=None)


def somebody(
    process: Process, *, at: float = START, run: str = "other", flock: bool = True
) -> Holder:
    """What the lock of another run says."""
    time = datetime.fromtimestamp(at, UTC)
    return Holder(**asdict(process), run=run, time=time, since=time, token="t", flock=flock)


def stranger() -> Process:
    """A process on another machine."""
    return Process(host="elsewhere", pid=4711, boot="other", namespace="pid:[1]", started=1)


def dead() -> Process:
    """A process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return replace(Process.current(), pid=process.pid)


def put(storage: Storage, holder: Holder | bytes) -> None:
    storage.write(LOCK, holder if isinstance(holder, bytes) else holder.encode())


def ours(storage: Storage) -> list[str]:
    """What lies in our folder of the storage."""
    return sorted(path for page in storage.list(f"{FOLDER}/") for path in page.paths)


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


# --- takeover


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


def contend(storage: Storage, runs: int = 6) -> list[Lock]:
    """The locks that so many runs get who begin at once."""
    locks: list[Lock] = []
    barrier = threading.Barrier(runs)

    def one() -> None:
        barrier.wait()
        try:
            locks.append(take(storage))
        except LockHeld:
            return

    threads = [threading.Thread(target=one) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return locks


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


# --- storages that are not what they should be


class Careless(MemoryStorage):
    """Does not look at conditions, as JuiceFS' gateway."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(path, data)


@pytest.fixture
def careless(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Careless:
    monkeypatch.setattr(contest, "SETTLE_SECONDS", 0.05)
    return Careless(now=clock)


def test_where_creating_proves_nothing_a_claim_is_the_lock(careless: Careless) -> None:
    with take(careless, "1234") as lock:
        assert "proves nothing" in lock.notices[0]
        lock.verify()
        lock.refresh()
        assert read_holder(careless) == lock.holder
        lived = careless.snapshot()
        with pytest.raises(LockHeld, match="1234"):
            take(careless)
        # A refused run has touched nothing of it.
        assert careless.snapshot() == lived
        lock.verify()
    assert ours(careless) == []


def test_of_many_runs_that_begin_at_once_where_creating_proves_nothing_at_most_one_wins(
    careless: Careless,
) -> None:
    for _ in range(10):
        locks = contend(careless)
        assert len(locks) <= 1
        for lock in locks:
            lock.verify()
            lock.release()
        assert ours(careless) == []
    with take(careless) as lock:
        lock.verify()


def test_a_claim_keeps_others_out_even_when_the_lock_object_is_gone(careless: Careless) -> None:
    with take(careless, "1234"):
        list(careless.delete([LOCK]))
        with pytest.raises(LockHeld, match="1234"):
            take(careless)


def test_a_claim_is_kept_alive_with_the_lock(careless: Careless, clock: Clock) -> None:
    careless.put(LOCK, somebody(stranger(), at=START - STALE_SECONDS).encode())
    clock.time += STALE_SECONDS
    with take(careless) as lock:
        assert "taken over" in lock.notices[1]
        clock.time += STALE_SECONDS - 1
        lock.refresh()
        clock.time += STALE_SECONDS - 1
        list(careless.delete([LOCK]))
        with pytest.raises(LockHeld):
            take(careless)


@pytest.mark.parametrize("which", ["dead", "stale", "damaged"])
def test_a_claim_of_the_dead_is_passed_over_and_removed(
    careless: Careless, clock: Clock, which: str
) -> None:
    left = {
        "dead": somebody(dead(), at=START).encode(),
        "stale": somebody(stranger(), at=START - STALE_SECONDS).encode(),
        "damaged": b"?",
    }
    careless.put(f"{FOLDER}/lock.claim-left", left[which], modified=START - STALE_SECONDS)
    with take(careless):
        assert len(ours(careless)) == 2
    assert ours(careless) == []


def test_unlock_removes_claims(careless: Careless) -> None:
    careless.put(f"{FOLDER}/lock.claim-left", somebody(stranger()).encode())
    with pytest.raises(LockHeld, match="registry-gc unlock"):
        take(careless)
    unlock(careless)
    take(careless).release()


def test_who_wakes_up_after_another_run_has_won_withdraws(careless: Careless) -> None:
    """Suspended between looking at the claims and writing the lock."""
    locks: list[Lock] = []

    class Slow(Careless):
        armed = True

        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            if self.armed and path == LOCK and not if_absent:
                self.armed = False
                self._now = lambda: START + STALE_SECONDS
                claims = [name for name in ours(self) if "claim" in name]
                self.put(claims[0], somebody(stranger()).encode(), modified=START)
                locks.append(take(self, "winner"))
            super().write(path, data, if_absent=if_absent)

    storage = Slow(now=lambda: START)
    with pytest.raises(LockHeld, match="winner"):
        take(storage, "sleeper")
    # The winner notices at its next look that somebody was there, and stops.
    with pytest.raises(LockLost):
        locks[0].verify()


def test_a_storage_that_does_not_even_list_claims_is_refused(careless: Careless) -> None:
    class Stale(Careless):
        def children(self, prefix: str) -> Children:
            return Children((), ())

    storage = Stale()
    with pytest.raises(LockUnsafe, match="lists what was just written"):
        take(storage)
    assert ours(storage) == []


def test_on_a_disk_a_second_create_that_succeeds_is_refused(disk: FilesystemStorage) -> None:
    class CarelessDisk(FilesystemStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            super().write(path, data)

    with pytest.raises(LockUnsafe, match="proves nothing"):
        take(CarelessDisk(disk.root))


def test_a_create_whose_answer_was_lost_is_still_ours() -> None:
    class Lossy(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            super().write(path, data, if_absent=if_absent)
            # What a driver sees that sends the request a second time.
            super().write(path, data, if_absent=if_absent)

    with take(Lossy()) as lock:
        lock.verify()


def test_a_storage_that_cannot_be_written_to_fails() -> None:
    class Forbidden(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            raise AccessDenied("no", path=path)

    with pytest.raises(AccessDenied):
        take(Forbidden())


def test_a_lock_that_cannot_be_removed_is_told() -> None:
    class Sticky(MemoryStorage):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            for path in paths:
                yield Outcome(path, Deletion.FAILED, "retained")

    lock = take(Sticky())
    lock.release()
    assert "retained" in lock.notices[0]


# --- on disk


HOLD = """
import sys
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.lock import Lock
lock = Lock.acquire(FilesystemStorage(sys.argv[1]), "first", refresh_seconds=None)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def other_run(disk: FilesystemStorage) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of *disk* until its stdin is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, disk.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_killed_run_is_taken_over_at_once_and_a_living_one_never(
    disk: FilesystemStorage, other_run: subprocess.Popen[str]
) -> None:
    with pytest.raises(LockHeld, match=rf"process {other_run.pid} on .*run first"):
        take(disk)
    other_run.send_signal(signal.SIGSTOP)
    old = disk.now() - 10 * STALE_SECONDS
    os.utime(Path(disk.root, LOCK), (old, old))
    with pytest.raises(LockHeld):
        take(disk)
    other_run.kill()
    other_run.wait()
    with take(disk) as lock:
        assert "process has ended" in lock.notices[0]


def test_a_run_that_ends_lets_the_next_one_in(
    disk: FilesystemStorage, other_run: subprocess.Popen[str]
) -> None:
    other_run.communicate()
    assert ours(disk) == []
    take(disk).release()


def test_a_free_flock_says_that_a_container_of_this_machine_is_gone(
    disk: FilesystemStorage,
) -> None:
    here = Process.current()
    container = replace(here, host="0123456789ab", namespace="pid:[1]")
    put(disk, somebody(container, at=disk.now()))
    with take(disk) as lock:
        assert "its flock is free" in lock.notices[0]
    restarted = replace(here, boot="before")
    put(disk, somebody(restarted, at=disk.now()))
    take(disk).release()


def test_a_free_flock_says_nothing_of_another_machine_or_of_a_holder_without_one(
    disk: FilesystemStorage,
) -> None:
    put(disk, somebody(stranger(), at=disk.now()))
    with pytest.raises(LockHeld):
        take(disk)
    container = replace(Process.current(), host="0123456789ab", namespace="pid:[1]")
    put(disk, somebody(container, at=disk.now(), flock=False))
    with pytest.raises(LockHeld):
        take(disk)
    put(disk, somebody(Process.current(), at=disk.now()))
    with pytest.raises(LockHeld):
        take(disk)
    old = disk.now() - STALE_SECONDS - 1
    put(disk, somebody(stranger(), at=old))
    os.utime(Path(disk.root, LOCK), (old, old))
    take(disk).release()


class FullDisk(FilesystemStorage):
    """A disk without room, as long as ``full`` is set."""

    full: int = errno.ENOSPC
    writes_left: int = 0

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if self.full and self.writes_left <= 0:
            error = StorageError(os.strerror(self.full), path=path, driver=self.driver)
            raise error from OSError(self.full, os.strerror(self.full))
        self.writes_left -= 1
        super().write(path, data, if_absent=if_absent)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_flock_alone_is_the_lock(disk: FilesystemStorage, error: int) -> None:
    full = FullDisk(disk.root)
    full.full = error
    with take(full) as lock:
        assert lock.notices == [
            "the disk is full: the lock is a flock only, which other hosts may not see"
        ]
        assert ours(disk) == []
        lock.verify()
        lock.refresh()
        with pytest.raises(LockHeld, match="another process on this machine holds the lock"):
            take(disk)
        assert blocker(disk) is not None
        # There is room again: the next refresh writes the object.
        full.full = 0
        lock.refresh()
        assert read_holder(disk) == lock.holder
    assert ours(disk) == []


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_on_a_full_disk_a_dead_runs_lock_does_not_stand_in_the_way(
    disk: FilesystemStorage, writes: int
) -> None:
    put(disk, somebody(dead(), at=disk.now()))
    full = FullDisk(disk.root)
    full.writes_left = writes
    with take(full) as lock:
        assert ours(disk) == []
        lock.verify()
        put(disk, somebody(stranger(), at=disk.now()))
        with pytest.raises(LockLost):
            lock.verify()


def test_on_a_full_disk_another_hosts_lock_still_counts(disk: FilesystemStorage) -> None:
    put(disk, somebody(stranger(), at=disk.now()))
    with pytest.raises(LockHeld):
        take(FullDisk(disk.root))
    take_again = FolderLock(os.path.join(disk.root, "docker/registry"))
    take_again.release()


def test_a_disk_that_fills_up_right_after_the_create_keeps_the_object(
    disk: FilesystemStorage,
) -> None:
    full = FullDisk(disk.root)
    full.writes_left = 1
    with take(full) as lock:
        assert read_holder(disk) == lock.holder
        lock.refresh()
        assert lock.notices == []
    assert ours(disk) == []


def test_an_object_store_that_is_full_fails() -> None:
    class Full(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            raise StorageError("full", path=path) from OSError(errno.ENOSPC, "full")

    with pytest.raises(StorageError, match="full"):
        take(Full())


def test_another_disk_mounted_over_the_root_loses_the_lock(
    disk: FilesystemStorage, tmp_path: Path
) -> None:
    with take(disk) as lock:
        registry = tmp_path / "docker/registry"
        registry.rename(tmp_path / "docker/away")
        with pytest.raises(LockLost, match="unmounted"):
            lock.verify()
        (tmp_path / "docker/away").rename(registry)


def test_a_forked_worker_neither_keeps_nor_releases_the_lock(disk: FilesystemStorage) -> None:
    lock = take(disk)
    ended, end = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        lock.release()
        os.write(tell, b"x")
        os.read(ended, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        lock.verify()
        with pytest.raises(LockHeld):
            take(disk)
        lock.release()
        take(disk).release()
    finally:
        for descriptor in (ended, end, ready, tell):
            os.close(descriptor)
        os.waitpid(child, 0)


HOLD_AND_FORK = """
import os, sys
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.lock import Lock
lock = Lock.acquire(FilesystemStorage(sys.argv[1]), "first", refresh_seconds=None)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_worker_that_outlives_its_killed_run_does_not_keep_the_lock(
    disk: FilesystemStorage,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_AND_FORK, disk.root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.wait()
        os.kill(worker, 0)
        take(disk).release()


def test_a_missing_folder_has_no_flock(tmp_path: Path) -> None:
    with pytest.raises(NoFolderLock, match="No such file"):
        FolderLock(str(tmp_path / "missing"))
    empty = FilesystemStorage(str(tmp_path))
    with take(empty) as lock:
        assert "the lock is an object only" in lock.notices[0]
        assert not lock.holder.flock
        with pytest.raises(LockHeld):
            take(empty)


# --- looking and unlocking


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
