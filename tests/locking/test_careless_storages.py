"""The lock on storages that are not what they should be: where creating proves nothing, a claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from locking.holders import START, Clock, contend, dead, ours, somebody, stranger, take
from registry_drivers.base import Children, Deletion, Outcome
from registry_drivers.errors import AccessDenied, Unsupported
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc.lock import Lock, LockHeld, LockLost, LockUnsafe, unlock
from registry_gc.locking import contest
from registry_gc.locking.holder import FOLDER, LOCK, STALE_SECONDS, read_holder


class Careless(MemoryStorage):
    """Does not look at conditions, as JuiceFS' gateway."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(path, data)


class Refusing(Careless):
    """Takes no write with a condition, as Alibaba's OSS."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent:
            raise Unsupported("NotImplemented: A header you provided", path=path)
        super().write(path, data)


@pytest.fixture(params=[Careless, Refusing])
def careless(
    request: pytest.FixtureRequest, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Careless:
    monkeypatch.setattr(contest, "SETTLE_SECONDS", 0.05)
    kind: type[Careless] = request.param
    return kind(now=clock)


def test_where_creating_proves_nothing_a_claim_is_the_lock(careless: Careless) -> None:
    with take(careless, "1234") as lock:
        why = "NotImplemented" if isinstance(careless, Refusing) else "proves nothing"
        assert why in lock.notices[0]
        assert "the claims of runs are listed instead" in lock.notices[0]
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


def test_who_creates_a_lock_while_another_claims_it_has_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two gateways before one storage, one knows conditions."""

    class Half(MemoryStorage):
        knows = False

        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            if if_absent and not self.knows:
                raise Unsupported("no", path=path)
            super().write(path, data, if_absent=if_absent)

    storage = Half(now=clock)
    locks: list[Lock] = []

    def meanwhile(seconds: float) -> None:
        storage.knows = True
        locks.append(take(storage, "creator"))

    monkeypatch.setattr("registry_gc.locking.contest.time.sleep", meanwhile)
    with pytest.raises(LockHeld, match="creator"):
        take(storage, "claimer")
    (lock,) = locks
    lock.verify()
    lock.release()
    assert ours(storage) == []


def test_a_store_that_takes_no_write_at_all_fails_and_leaves_nothing(clock: Clock) -> None:
    class Deaf(MemoryStorage):
        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            raise Unsupported("NotImplemented", path=path)

    storage = Deaf(now=clock)
    with pytest.raises(Unsupported):
        take(storage)
    assert ours(storage) == []


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
