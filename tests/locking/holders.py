"""Who may hold a lock, how it is taken in a test, and what lies in the storage then."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec.structs import asdict, replace

from registry_drivers.base import Storage
from registry_gc.lock import Lock, LockHeld
from registry_gc.locking.holder import FOLDER, LOCK, Holder
from registry_gc.machine.processes import Process

START = 1_700_000_000.0


@dataclass
class Clock:
    """A storage's clock, which stands still until it is set."""

    time: float = START

    def __call__(self) -> float:
        return self.time


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
