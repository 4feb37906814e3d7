"""The lock on a storage that does not look at conditions on writes, or takes no write that has one.

JuiceFS' gateway does not look; Alibaba's OSS, asked as S3, answers 501. There a create proves
nothing. So each run writes a claim under a name of its own, waits until every listing shows it, and
looks for the claims of others. Of two runs at least one sees the other's claim, and who sees one
that is alive withdraws: both may withdraw, never do both win. This rests on listings that show
after :data:`SETTLE_SECONDS` what was written, which is more than any cache of JuiceFS keeps by
default; a storage that does not even show a run its own claim is refused.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import UTC

from registry_drivers.base import Deletion, Storage
from registry_drivers.errors import NotFound, StorageError
from registry_gc.locking.holder import (
    FOLDER,
    LOCK,
    STALE_SECONDS,
    Found,
    Holder,
    LockHeld,
    LockUnsafe,
    look,
    read_holder,
)

CLAIM = "lock.claim-"
SETTLE_SECONDS = 5.0


def claim_path(holder: Holder) -> str:
    """Where *holder*'s claim lies while it has the lock, or wants it."""
    return f"{FOLDER}/{CLAIM}{holder.token}"


def contest(storage: Storage, holder: Holder, check: Callable[[Found], str]) -> str:
    """Win the lock by a claim, which stays; returns why a lock that was there may go, if one was.

    :param check: says why a lock that was found may be taken over; raises where it may not.
    :raises LockHeld: another run has the lock, or wants it at this moment.
    :raises LockUnsafe: the storage does not list what was just written.
    :raises StorageError: the storage could not be asked, or not written to.
    """
    why = ""
    data = holder.encode()
    try:
        storage.write(claim_path(holder), data)
        time.sleep(SETTLE_SECONDS)
        listed, dead = _claims(storage, holder)
        if not listed:
            raise LockUnsafe(
                f"{storage.root}: this storage neither heeds conditions on writes nor lists "
                "what was just written, so that two runs would not notice each other: use another"
            )
        found = look(storage)
        if found is not None:
            why = f"the lock of {found} was taken over: {check(found)}"
        storage.write(LOCK, data)
        # Who was suspended before that write may have missed a whole run of somebody else.
        listed, _ = _claims(storage, holder)
        owner = read_holder(storage)
        if not listed or owner is None or owner.token != holder.token:
            raise LockHeld("another run took the lock at the same moment: try again later", owner)
    except BaseException:
        withdraw(storage, holder)
        raise
    with contextlib.suppress(StorageError):
        delete(storage, dead)
    return why


def withdraw(storage: Storage, holder: Holder) -> None:
    """Take *holder*'s claim back, and its lock; what cannot be removed is stale in ten minutes."""
    paths = [claim_path(holder)]
    with contextlib.suppress(StorageError):
        owner = read_holder(storage)
        if owner is not None and owner.token == holder.token:
            paths.insert(0, LOCK)
    with contextlib.suppress(StorageError):
        delete(storage, paths)


def _claims(storage: Storage, holder: Holder) -> tuple[bool, list[str]]:
    """Whether *holder*'s own claim is there, and those of others that are dead.

    :raises LockHeld: another one is alive.
    """
    names = storage.children(f"{FOLDER}/").files
    paths = [f"{FOLDER}/{name}" for name in names if name.startswith(CLAIM)]
    others = [path for path in paths if path != claim_path(holder)]
    for path in others:
        other = _living(storage, path)
        if other is not None:
            raise LockHeld(
                f"{storage.root}: {other} holds the lock, or is just taking it: try again later; "
                "if you know that it is dead: registry-gc unlock",
                other,
            )
    return len(others) < len(paths), others


def _living(storage: Storage, path: str) -> Holder | None:
    """Who claims the lock at *path*; None where that is nobody any more."""
    try:
        other = read_holder(storage, path)
        modified = storage.stat(path).modified
    except NotFound:
        return None
    if other is None:
        # A claim is written whole: not of our making.
        return None
    written = other.time if other.time.tzinfo else other.time.replace(tzinfo=UTC)
    age = storage.now() - max(modified, written.timestamp())
    return None if other.alive() is False or age >= STALE_SECONDS else other


def delete(storage: Storage, paths: Iterable[str]) -> None:
    """Delete objects of ours.

    :raises StorageError: one of them stays.
    """
    for outcome in storage.delete(paths):
        if outcome.result is Deletion.FAILED:
            raise StorageError(outcome.error, path=outcome.path, driver=storage.driver)
