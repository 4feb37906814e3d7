"""The lock on disk: a flock beside the object, and alone where the disk is full."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from locking.holders import dead, ours, put, somebody, stranger, take
from registry_drivers import filesystem_write
from registry_drivers.errors import StorageError
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc.lock import LockHeld, LockLost, blocker
from registry_gc.locking.folder_lock import FolderLock, NoFolderLock
from registry_gc.locking.holder import FOLDER, LOCK, STALE_SECONDS, read_holder
from registry_gc.machine.processes import Process

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


def test_a_full_disk_that_had_room_for_the_folder_keeps_none(
    disk: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(disk.root, LOCK).parent

    def create(path: str, data: bytes) -> None:
        assert folder.is_dir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(filesystem_write, "_create", create)
    lock = take(disk)
    lock.release()
    assert not folder.exists()
    # What is another's by then stays.
    folder.mkdir()
    lock.release()
    assert folder.is_dir()


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


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ESTALE])
@pytest.mark.parametrize("asked", ["flock", "fstat"])
def test_a_flock_that_fails_is_an_error_of_the_storage_not_a_file_system_without(
    disk: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, number: int, asked: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    files = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl if asked == "flock" else os, asked, fail)
        for ask in (take, blocker):
            with pytest.raises(StorageError, match=re.escape(os.strerror(number))) as caught:
                ask(disk)
            assert caught.value.path == f"{disk.root}/docker/registry"
    assert len(os.listdir("/proc/self/fd")) == files
    assert ours(disk) == []
    take(disk).release()


def test_a_mount_that_cannot_make_hard_links_and_says_that_it_failed_is_not_locked(
    disk: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    # As rclone's mount. An exclusive create would succeed, on two machines at a time.
    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageError, match=r"Input/output error at making a hard link.*rclone"):
        take(disk)
    assert not Path(disk.root, FOLDER).exists()


def test_a_folder_of_the_lock_that_cannot_be_removed_is_no_lock_that_stays(
    disk: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = take(disk)

    def refuse(_: str) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        lock.release()
    assert lock.notices == []
    assert ours(disk) == []
    assert Path(disk.root, FOLDER).is_dir()
    take(disk).release()


def test_a_folder_that_is_numbered_anew_whenever_it_is_asked_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count(1 << 40)

    def anew(ask: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def asked(*what: Any, **how: Any) -> os.stat_result:
            mode, _, *more = ask(*what, **how)
            return os.stat_result((mode, next(numbers), *more))

        return asked

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", anew(os.stat))
        patch.setattr(os, "fstat", anew(os.fstat))
        lock = FolderLock(str(tmp_path))
        assert lock.still_there()
        # What is mounted over it has another device.
        other = os.stat("/dev/shm")
        patch.setattr(os, "stat", lambda _: other)
        assert not lock.still_there()
        lock.release()
