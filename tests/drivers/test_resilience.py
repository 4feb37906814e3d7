"""Trying again: what failed in passing is done in the end, and only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.conformance import DriverConformance, paths_of
from registry_drivers.base import Deletion, Outcome, Page, Storage
from registry_drivers.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    NotFound,
    StorageError,
    Unavailable,
)
from registry_drivers.faulty import Fault, Faulty
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.filesystem_rows import Rows
from registry_drivers.memory import MemoryStorage
from registry_drivers.resilience import Retrying
from registry_drivers.withdrawal import unless_withdrawn
from registry_drivers.wrappers import Wrapper

PASSING = (Fault.UNAVAILABLE,)


def no_sleep(_: float) -> None:
    """Pauses are not what is tested."""


class TestRetrying(DriverConformance):
    many = 30

    @pytest.fixture
    def storage(self) -> Storage:
        return Retrying(MemoryStorage(page_size=7, delete_batch=3), sleep=no_sleep)


class TestRetryingWhatFailsATenthOfTheTime(DriverConformance):
    many = 60

    @pytest.fixture
    def storage(self) -> Storage:
        faulty = Faulty(MemoryStorage(page_size=7, delete_batch=3), 7, 0.1, PASSING)
        return Retrying(faulty, attempts=20, sleep=no_sleep)


class TestRetryingAFaultyDisk(DriverConformance):
    many = 60

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setattr(Rows, "PAGE_ROWS", 4)
        faulty = Faulty(FilesystemStorage(str(tmp_path)), 11, 0.1, PASSING)
        return Retrying(faulty, attempts=20, sleep=no_sleep)


class Failing(Wrapper):
    """Raises the errors it is given, one a call, before or after the work is done."""

    def __init__(self, storage: Storage, *errors: StorageError | None, after: bool = False) -> None:
        super().__init__(storage)
        self.errors = list(errors)
        self.after = after
        self.calls = 0

    def attempt(self, work: Callable[[], None]) -> None:
        self.calls += 1
        error = self.errors.pop(0) if self.errors else None
        if error is None or self.after:
            work()
        if error is not None:
            raise error

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self.attempt(lambda: self._storage.write(path, data, if_absent=if_absent))

    def move(self, source: str, target: str) -> None:
        self.attempt(lambda: self._storage.move(source, target))

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        self.attempt(lambda: None)
        return self._storage.read(path, limit=limit)

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        for outcome in self._storage.delete(paths):
            self.attempt(lambda: None)
            yield outcome

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        for page in self._storage.list(prefix, start_after=start_after):
            self.attempt(lambda: None)
            yield page


@pytest.fixture
def memory() -> MemoryStorage:
    storage = MemoryStorage(page_size=2, delete_batch=4)
    for number in range(6):
        storage.put(f"a/{number}", b"x")
    return storage


def test_a_passing_fault_is_tried_again_and_counted(memory: MemoryStorage) -> None:
    failing = Failing(memory, Unavailable("1"), Unavailable("2"))
    assert Retrying(failing, sleep=no_sleep).read("a/1") == b"x"
    assert failing.calls == 3
    assert memory.requests.retries == 2


def test_patience_ends_after_the_attempts_with_the_last_error(memory: MemoryStorage) -> None:
    failing = Failing(memory, *(Unavailable(str(n)) for n in range(10)))
    with pytest.raises(Unavailable, match="3"):
        Retrying(failing, attempts=4, sleep=no_sleep).read("a/1")
    assert failing.calls == 4


@pytest.mark.parametrize("kind", [NotFound, AccessDenied, InvalidPath, StorageError])
def test_what_will_not_pass_is_not_tried_again(
    memory: MemoryStorage, kind: type[StorageError]
) -> None:
    failing = Failing(memory, kind("no"))
    with pytest.raises(kind):
        Retrying(failing, sleep=no_sleep).read("a/1")
    assert failing.calls == 1


def test_pauses_grow_up_to_the_longest(memory: MemoryStorage) -> None:
    pauses: list[float] = []
    failing = Failing(memory, *(Unavailable(str(n)) for n in range(19)))
    Retrying(failing, attempts=20, first=1.0, longest=8.0, sleep=pauses.append).read("a/1")
    assert len(pauses) == 19
    assert all(0 <= pause <= 8.0 for pause in pauses)
    assert pauses[0] <= 1.0
    assert len(set(pauses)) > 1


def test_a_listing_that_breaks_goes_on_where_it_was(memory: MemoryStorage) -> None:
    failing = Failing(memory, None, Unavailable("gone"))
    before = memory.requests.list
    assert paths_of(Retrying(failing, sleep=no_sleep).list("a/")) == [f"a/{n}" for n in range(6)]
    # Three pages and the one whose answer was lost: nothing else was asked again.
    assert memory.requests.list - before == 4


def test_a_listing_that_makes_progress_never_runs_out_of_attempts(memory: MemoryStorage) -> None:
    failing = Failing(memory, *([Unavailable("again"), None] * 6))
    assert len(paths_of(Retrying(failing, attempts=2, sleep=no_sleep).list("a/"))) == 6


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.text("ab/é", min_size=1, max_size=6), max_size=40))
def test_a_listing_is_whole_however_often_it_breaks(seed: int, names: set[str]) -> None:
    memory = MemoryStorage(page_size=3)
    for name in names:
        memory.put("p/" + name.replace("/", "-") + "/f", b"")
    faulty = Faulty(memory, seed, 0.3, PASSING)
    found = paths_of(Retrying(faulty, attempts=60, sleep=no_sleep).list("p/"))
    assert found == paths_of(memory.list("p/"))


def test_a_delete_that_breaks_tells_each_path_once(memory: MemoryStorage) -> None:
    failing = Failing(memory, None, Unavailable("gone"))
    paths = [f"a/{n}" for n in range(6)] + ["a/0"]
    outcomes = list(Retrying(failing, sleep=no_sleep).delete(paths))
    assert sorted(outcome.path for outcome in outcomes) == sorted(paths)
    assert Deletion.FAILED not in {outcome.result for outcome in outcomes}
    # Done by the try whose answer was lost: nobody confirmed it.
    assert Outcome("a/1", Deletion.GONE_ALREADY) in outcomes
    assert memory.snapshot() == {}


def test_a_delete_that_stays_broken_tells_what_it_knows_first(memory: MemoryStorage) -> None:
    failing = Failing(memory, None, *(Unavailable("gone") for _ in range(9)))
    known: list[Outcome] = []
    with pytest.raises(Unavailable):
        known.extend(Retrying(failing, attempts=2, sleep=no_sleep).delete(["a/0", "a/1"]))
    outcomes = Retrying(Failing(memory), sleep=no_sleep).delete(["a/2"])
    assert [outcome.result for outcome in outcomes] == [Deletion.DELETED]
    assert known == [Outcome("a/0", Deletion.DELETED)]


def test_a_conditional_write_whose_answer_was_lost_is_done(memory: MemoryStorage) -> None:
    failing = Failing(memory, Unavailable("lost"), after=True)
    Retrying(failing, sleep=no_sleep).write("lock", b"run 1", if_absent=True)
    assert memory.snapshot()["lock"] == b"run 1"


def test_a_conditional_write_that_somebody_else_won_is_lost(memory: MemoryStorage) -> None:
    memory.put("lock", b"run 2")
    failing = Failing(memory, Unavailable("lost"))
    with pytest.raises(AlreadyExists):
        Retrying(failing, sleep=no_sleep).write("lock", b"run 1", if_absent=True)
    with pytest.raises(AlreadyExists):
        Retrying(memory, sleep=no_sleep).write("lock", b"run 2", if_absent=True)


def test_a_move_whose_answer_was_lost_is_done(memory: MemoryStorage) -> None:
    failing = Failing(memory, Unavailable("lost"), after=True)
    Retrying(failing, sleep=no_sleep).move("a/0", "b")
    assert "b" in memory.snapshot()
    with pytest.raises(NotFound):
        Retrying(Failing(memory, Unavailable("1")), sleep=no_sleep).move("a/0", "c")


def test_what_is_withdrawn_during_a_pause_does_not_go_out_again(memory: MemoryStorage) -> None:
    wanted = True

    def sleep(_: float) -> None:
        nonlocal wanted
        wanted = failing.calls < 3

    failing = Failing(memory, *(Unavailable(str(n)) for n in range(1, 10)))
    storage = Retrying(failing, sleep=sleep)
    with unless_withdrawn(lambda: wanted), pytest.raises(Unavailable, match="3"):
        storage.read("a/1")
    assert (failing.calls, memory.requests.retries) == (3, 2)
    # Only in the block: reading on is nobody's danger.
    assert Retrying(failing, attempts=20, sleep=no_sleep).read("a/1") == b"x"


def test_who_is_asked_may_ask_a_storage_that_fails_too(memory: MemoryStorage) -> None:
    storage = Retrying(Failing(memory, *(Unavailable("") for _ in range(6))), sleep=no_sleep)
    asked = []

    def allowed() -> bool:
        asked.append(storage.read("a/2"))
        return True

    with unless_withdrawn(allowed):
        assert storage.read("a/1") == b"x"
    assert asked == [b"x"]


def test_a_delete_that_is_withdrawn_tells_what_it_knows_first(memory: MemoryStorage) -> None:
    failing = Failing(memory, None, Unavailable("busy"))
    seen: list[Outcome] = []
    with unless_withdrawn(lambda: False), pytest.raises(Unavailable, match="busy"):
        seen.extend(Retrying(failing, sleep=no_sleep).delete(sorted(memory.snapshot())))
    assert [outcome.path for outcome in seen] == ["a/0"]
    assert failing.calls == 2


def test_no_attempt_at_all_is_refused(memory: MemoryStorage) -> None:
    with pytest.raises(ValueError, match="attempt"):
        Retrying(memory, attempts=0)
