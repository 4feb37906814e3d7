"""Many moves at once: copies are looked at before an original goes, one outcome for each."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import AccessDenied, StorageError, Unavailable
from registry_drivers.memory import MemoryStorage
from registry_drivers.moving import Copier, Mover
from registry_drivers.resilience import Retrying
from registry_drivers.withdrawal import unless_withdrawn


class Copying(MemoryStorage):
    """An object store: it copies, and some of it goes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, StorageError] = {}
        self.stuck: set[str] = set()
        self.at_once = 0
        self.most = 0
        self._counting = threading.Lock()

    def copy(self, source: str, target: str) -> None:
        with self._counting:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            if source in self.errors:
                raise self.errors[source]
            self.put(target, self.read(source))
        finally:
            with self._counting:
                self.at_once -= 1

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        for path in paths:
            if path in self.stuck:
                yield Outcome(path, Deletion.FAILED, "retained")
            else:
                yield from super().delete([path])


def moved(storage: MemoryStorage, *sources: str) -> dict[str, Outcome]:
    with closing(Mover(storage)) as mover:
        outcomes = list(mover.move((source, f"to/{source}") for source in sources))
    assert len(outcomes) == len(sources)
    return {outcome.path: outcome for outcome in outcomes}


@pytest.mark.parametrize("kind", [MemoryStorage, Copying])
def test_each_object_has_its_own_outcome(kind: type[MemoryStorage]) -> None:
    storage = kind()
    for number in range(300):
        storage.put(f"a/{number}", b"%d" % number)
    outcomes = moved(storage, *(f"a/{number}" for number in range(300)), "a/missing")
    assert outcomes.pop("a/missing").result is Deletion.GONE_ALREADY
    assert {outcome.result for outcome in outcomes.values()} == {Deletion.MOVED}
    assert storage.snapshot() == {f"to/a/{number}": b"%d" % number for number in range(300)}


def test_memory_renames_and_object_stores_copy() -> None:
    assert not isinstance(MemoryStorage(), Copier)
    assert isinstance(Copying(), Copier)


def test_no_more_is_asked_at_once_than_the_storage_likes() -> None:
    storage = Copying()
    for number in range(200):
        storage.put(f"a/{number}", b"")
    with closing(Mover(storage)) as mover:
        parts = [[(f"a/{n}", f"b/{n}") for n in range(at, 200, 4)] for at in range(4)]
        threads = [threading.Thread(target=lambda p=part: list(mover.move(p))) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert storage.most <= storage.capabilities.workers
    assert len([path for path in storage.snapshot() if path.startswith("b/")]) == 200


def test_what_cannot_be_copied_stays_where_it_is() -> None:
    storage = Copying()
    storage.put("a", b"a")
    storage.put("b", b"b")
    storage.errors["a"] = AccessDenied("archived", path="a")
    outcomes = moved(storage, "a", "b")
    assert outcomes["a"] == Outcome("a", Deletion.FAILED, "archived")
    assert outcomes["b"].result is Deletion.MOVED
    assert storage.snapshot() == {"a": b"a", "to/b": b"b"}


def test_an_original_that_cannot_be_deleted_fails_and_leaves_both() -> None:
    storage = Copying()
    storage.put("a", b"a")
    storage.stuck.add("a")
    (outcome,) = moved(storage, "a").values()
    assert outcome.result is Deletion.FAILED
    assert "to/a" in outcome.error
    assert "retained" in outcome.error
    assert storage.snapshot() == {"a": b"a", "to/a": b"a"}


def test_a_storage_that_is_down_is_told_after_what_was_moved() -> None:
    storage = Copying()
    for name in "abc":
        storage.put(name, b"")
    storage.errors["b"] = Unavailable("busy")
    seen: list[Outcome] = []
    with closing(Mover(storage)) as mover:
        outcomes = mover.move((name, f"to/{name}") for name in "abc")
        with pytest.raises(Unavailable):
            seen.extend(iter(outcomes.__next__, None))
    assert {outcome.path for outcome in seen} == {"a", "c"}
    assert set(storage.snapshot()) == {"to/a", "b", "to/c"}


def test_copies_in_other_threads_are_withdrawn_with_the_move() -> None:
    storage = Copying()
    for name in "abc":
        storage.put(name, b"")
        storage.errors[name] = Unavailable("busy")
    asked: list[None] = []
    retrying = RetryingCopies(storage, sleep=lambda _: None)

    def allowed() -> bool:
        asked.append(None)
        return False

    with closing(Mover(retrying)) as mover, unless_withdrawn(allowed):
        outcomes = mover.move((name, f"to/{name}") for name in "abc")
        with pytest.raises(Unavailable):
            next(outcomes)
    assert len(asked) == 3
    assert set(storage.snapshot()) == set("abc")


class RetryingCopies(Retrying):
    """An object store whose copies are tried again."""

    def copy(self, source: str, target: str) -> None:
        assert isinstance(self._storage, Copying)
        copying = self._storage
        self._call(lambda: copying.copy(source, target))


def test_what_is_allowed_no_more_when_the_copies_are_made_deletes_nothing() -> None:
    storage = Copying()
    storage.put("a", b"data")
    allowed = [True]

    class Slow(Copying):
        def copy(self, source: str, target: str) -> None:
            storage.copy(source, target)
            allowed[0] = False

        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            return storage.delete(paths)

    with unless_withdrawn(lambda: allowed[0]):
        outcome = moved(Slow(), "a")["a"]
    assert outcome.result is Deletion.FAILED
    assert "was copied to to/a but not deleted" in outcome.error
    assert storage.snapshot() == {"a": b"data", "to/a": b"data"}
