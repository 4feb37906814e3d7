"""Letting the lock go when the storage has gone away: a run that is to end ends soon."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core_support import Watcher
from registry_drivers.base import Deletion, Outcome, Storage
from registry_drivers.errors import Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.resilience import Retrying
from registry_gc.collect import Job, collect
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.layout import BLOBS
from registry_gc.lock import Lock, LockLost
from registry_gc.locking.holder import FOLDER, LOCK
from registry_gc.policy import Policy
from registry_tree import RegistryTree
from running import Disk

TRIES = 10


class GoneAway(MemoryStorage):
    """A storage that answers nobody any more once ``away`` is set."""

    away = False
    reads = 0

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """What is there, while it answers."""
        self.reads += 1
        if self.away:
            raise Unavailable("no answer", path=path)
        return super().read(path, limit=limit)


class Clock:
    """Passes only while somebody sleeps."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("registry_gc.lock.clock", made)
    return made


def let_go(clock: Clock, *, interrupted: bool) -> tuple[GoneAway, Lock]:
    """A lock that was released after its storage had gone away."""
    storage = GoneAway()
    patient = Retrying(storage, TRIES, first=20.0, longest=20.0, sleep=clock.sleep)
    lock = Lock.acquire(patient, "run", refresh_seconds=None)
    storage.away, storage.reads = True, 0
    lock.release(lambda: interrupted)
    return storage, lock


def test_whoever_is_in_no_hurry_asks_as_often_as_always(clock: Clock) -> None:
    storage, _ = let_go(clock, interrupted=False)
    assert storage.reads == TRIES


def test_a_run_that_is_to_end_does_not_wait_for_a_storage_that_has_gone_away(clock: Clock) -> None:
    storage, lock = let_go(clock, interrupted=True)
    assert 1 <= storage.reads < TRIES
    (told,) = lock.notices
    assert "keeps runs on other machines out for 10 minutes, or until `registry-gc unlock`" in told
    storage.away = False
    assert storage.read(LOCK)


def test_a_storage_that_answers_is_given_its_lock_back_by_a_run_that_is_to_end(
    clock: Clock,
) -> None:
    storage = MemoryStorage()
    Lock.acquire(storage, "run", refresh_seconds=None).release(lambda: True)
    assert storage.snapshot() == {}


def test_an_end_that_is_asked_for_meanwhile_counts_too(clock: Clock) -> None:
    storage = GoneAway()
    interrupts = Interrupts()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if storage.reads == 3:
            interrupts.number = signal.SIGTERM

    patient = Retrying(storage, TRIES, first=20.0, longest=20.0, sleep=sleep)
    lock = Lock.acquire(patient, "run", refresh_seconds=None)
    storage.away, storage.reads = True, 0
    lock.release(interrupts)
    assert 3 <= storage.reads < TRIES


def test_a_run_says_that_its_lock_has_stayed(tmp_path: Path) -> None:
    class Sticky(FilesystemStorage):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            for path in paths:
                yield Outcome(path, Deletion.FAILED, "retained")

    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.age()
    watcher = Watcher()
    run_file = str(tmp_path / "run.sqlite")
    storage = Sticky(str(disk.root))
    job = Job(storage, Policy(), lambda: Verdict("allowed", ()), run_file, workers=1)
    collect(job, watcher, Interrupts())
    assert any("the lock could not be removed" in notice for notice in watcher.notices)


@pytest.mark.parametrize("kind", ["filesystem", "memory"])
def test_a_lock_that_nobody_could_refresh_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "docker/registry/v2/repositories").mkdir(parents=True)
    disk = kind == "filesystem"
    storage: Storage = FilesystemStorage(str(tmp_path)) if disk else MemoryStorage()
    storage.write("docker/registry/v2/blobs/stranger", b"")

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        with pytest.raises(RuntimeError, match="new thread"):
            Lock.acquire(storage, "run")
        assert [*storage.children(f"{FOLDER}/").files] == []
        job = Job(
            storage=storage,
            policy=Policy(),
            check=lambda: Verdict("allowed", ()),
            run_file=str(tmp_path / "run"),
            workers=1,
        )
        report = collect(job, Watcher(), Interrupts())
    assert report.exit_code == 1
    assert report.error is not None
    assert report.error.startswith("can't start new thread: ")
    assert "\n" not in report.error
    assert [*storage.children(f"{FOLDER}/").files] == []
    Lock.acquire(storage, "another").release()


ANOTHERS = b"another's"


def take_away(storage: Storage, how: str) -> None:
    """What others do to a lock."""
    if how == "removed":
        list(storage.delete([LOCK]))
    else:
        storage.write(LOCK, ANOTHERS)


@pytest.mark.parametrize("how", ["overwritten", "removed"])
@pytest.mark.parametrize("kind", ["filesystem", "memory"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_lock_that_is_not_ours_at_the_end_ends_the_run_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str, seen: bool
) -> None:
    """On an object store a sweep of seconds looks at the lock once."""
    disk = kind == "filesystem"
    (tmp_path / "root").mkdir()
    storage: Storage = FilesystemStorage(str(tmp_path / "root")) if disk else MemoryStorage()
    dead = f"{BLOBS}sha256/ab/{'ab' * 32}/data"
    RegistryTree(storage.write).image("a", "v1")
    storage.write(dead, b"")
    release = Lock.release

    def too_late(lock: Lock, *words: Callable[[], bool]) -> None:
        take_away(storage, how)
        if seen:
            # As by the thread that refreshes it, which tells nobody.
            with contextlib.suppress(LockLost):
                lock.refresh()
        release(lock, *words)

    monkeypatch.setattr(Lock, "release", too_late)
    run_file = str(tmp_path / "run.sqlite")
    job = Job(storage, Policy(), lambda: Verdict("allowed", ()), run_file, workers=1)
    report = collect(job, Watcher(), Interrupts())
    assert report.exit_code == 5
    assert report.blobs.deleted == 1
    assert [finding.code for finding in report.findings] == ["lock-lost"]
    assert report.error is not None
    assert report.error.startswith("the lock is lost: ")
    if how == "overwritten":
        assert storage.read(LOCK) == ANOTHERS
    else:
        assert LOCK not in [f"{FOLDER}/{name}" for name in storage.children(f"{FOLDER}/").files]


def test_an_end_that_was_asked_for_counts_more_than_a_lock_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage()
    RegistryTree(storage.write).image("a", "v1")
    interrupts = Interrupts()
    acquire = Lock.acquire

    def interrupted(*words: Any, **more: Any) -> Lock:
        lock = acquire(*words, **more)
        interrupts.number = signal.SIGTERM
        storage.write(LOCK, ANOTHERS)
        return lock

    monkeypatch.setattr(Lock, "acquire", interrupted)
    run_file = str(tmp_path / "run.sqlite")
    job = Job(storage, Policy(), lambda: Verdict("allowed", ()), run_file, workers=1)
    report = collect(job, Watcher(), interrupts)
    assert report.exit_code == 143
    assert "lock-lost" in [finding.code for finding in report.findings]
