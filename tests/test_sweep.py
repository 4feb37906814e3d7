"""Sweeping: in a safe order, stoppable at each single delete, with nothing claimed but done."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from core_support import Watcher, few_threads
from registry_drivers.base import Capabilities, Deleter, Deletion, Outcome
from registry_drivers.errors import AccessDenied, StorageError, Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.resilience import Retrying
from registry_drivers.wrappers import Wrapper
from registry_gc import sweep as sweeping
from registry_gc.layout import BLOBS, REPOSITORIES, layer_link, revision_link
from registry_gc.machine.threads import submit
from registry_gc.run_file import RunFile
from registry_gc.runs.database import RunFileError
from registry_gc.runs.rows import OBJECT_KINDS, Row, RowKind, RowState
from registry_gc.sweep import Means, Stop, Swept, sweep, tidy
from registry_tree import RegistryTree, blob_path, folder_sink, layer_link_path, sha256

FOLDERS = Capabilities(delete_batch=4, folders=True)
OBJECTS = Capabilities(delete_batch=4, folders=False, workers=4)
BOTH = pytest.mark.parametrize("capabilities", [FOLDERS, OBJECTS], ids=["folders", "objects"])


@dataclass
class Storage:
    """A deleter that does as it is told, and remembers what it did.

    ``answers``: what becomes of a path, if it is not deleted. ``fail_at``: the number of the
    delete that raises instead, counted from 1.
    """

    batch: int = 4
    answers: dict[str, Outcome] = field(default_factory=dict)
    fail_at: int = 0
    error: Exception = field(default_factory=lambda: Unavailable("gone away"))
    deleted: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda path: None
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        remaining = iter(paths)
        while batch := list(islice(remaining, self.batch)):
            for path in batch:
                self.before(path)
                with self._guard:
                    self._count += 1
                    if self._count == self.fail_at:
                        raise self.error
                    outcome = self.answers.get(path, Outcome(path, Deletion.DELETED))
                    if outcome.result is Deletion.DELETED:
                        self.deleted.append(path)
                yield outcome

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        raise AssertionError("sweeping removes no folders")


def rows(kind: RowKind, count: int, size: int = 10) -> list[Row]:
    return [
        Row(kind, "a", f"sha256:{n:064x}", f"{kind.label}/{n}/link", size, None, "dead")
        for n in range(count)
    ]


@pytest.fixture
def run_file(tmp_path: Path) -> Iterator[RunFile]:
    with closing(RunFile.create(str(tmp_path / "run.sqlite"))) as new:
        yield new


def states(run_file: RunFile) -> dict[RowState, int]:
    """How many rows are in each state."""
    found = {
        state: sum(run_file.count(kind, state).rows for kind in OBJECT_KINDS) for state in RowState
    }
    return {state: count for state, count in found.items() if count}


def run(
    run_file: RunFile,
    storage: Deleter,
    capabilities: Capabilities = FOLDERS,
    look: Callable[[], Stop | None] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
    watcher: Watcher | None = None,
) -> Swept:
    means = Means(storage, capabilities, look, interrupted, watcher or Watcher())
    return sweep(run_file, means)


# What is done


@BOTH
def test_every_planned_row_is_deleted_and_written_down(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    for kind in OBJECT_KINDS:
        run_file.add(rows(kind, 10))
    storage, watcher = Storage(), Watcher()
    swept = run(run_file, storage, capabilities, watcher=watcher)
    assert (swept.stopped, swept.error) == (None, None)
    assert len(set(storage.deleted)) == len(storage.deleted) == 60
    assert states(run_file) == {RowState.DELETED: 60}
    assert watcher.advanced == 60
    assert watcher.finished == len(watcher.phases) == 6
    assert all(name.startswith("deleting") and count == 10 for name, count in watcher.phases)


@BOTH
@pytest.mark.parametrize("order", [1, -1])
def test_one_kind_is_done_with_before_the_next_begins(
    run_file: RunFile, capabilities: Capabilities, order: int
) -> None:
    """However they were planned: links before what they link to."""
    for kind in OBJECT_KINDS[::order]:
        run_file.add(rows(kind, 9))
    storage = Storage()
    run(run_file, storage, capabilities)
    kinds = [path.partition("/")[0] for path in storage.deleted]
    wanted = ["tag-index", "signature", "revision", "layer-link", "blob", "upload"]
    assert kinds == [label for label in wanted for _ in range(9)]


def test_on_a_filesystem_the_order_of_the_plan_is_kept(run_file: RunFile) -> None:
    planned = rows(RowKind.REVISION, 30)[::-1]
    run_file.add(planned)
    storage = Storage()
    run(run_file, storage)
    assert storage.deleted == [row.path for row in planned]


def test_rows_that_are_done_already_are_left_alone(run_file: RunFile) -> None:
    run_file.add(rows(RowKind.BLOB, 4))
    run_file.record([(1, RowState.DELETED, ""), (3, RowState.FAILED, "denied")])
    storage = Storage()
    run(run_file, storage)
    assert storage.deleted == ["blob/1/link", "blob/3/link"]


@BOTH
def test_each_outcome_is_written_down_as_the_storage_told_it(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    run_file.add(rows(RowKind.BLOB, 6))
    storage = Storage(
        answers={
            "blob/1/link": Outcome("blob/1/link", Deletion.GONE_ALREADY),
            "blob/4/link": Outcome("blob/4/link", Deletion.FAILED, "held by a policy"),
        }
    )
    run(run_file, storage, capabilities)
    assert states(run_file) == {
        RowState.DELETED: 4,
        RowState.GONE_ALREADY: 1,
        RowState.FAILED: 1,
    }
    assert list(run_file.failures()) == [("blob/4/link", "held by a policy")]
    assert run_file.count(RowKind.BLOB, RowState.DELETED).bytes == 40
    assert set(run_file.folders_of_gone()) == {f"blob/{number}" for number in range(6)} - {"blob/4"}


class Forgetful:
    """Deletes whatever it is asked to, and remembers nothing of it."""

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        return (Outcome(path, Deletion.DELETED) for path in paths)

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        return sum(1 for _ in folders)


@BOTH
def test_memory_does_not_grow_with_what_is_deleted(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    def peak(count: int, first: int) -> int:
        """Bytes at most while *count* blobs are deleted, and their folders."""
        digests = [f"{n:064x}" for n in range(first, first + count)]
        run_file.add(
            Row(
                RowKind.BLOB,
                None,
                f"sha256:{name}",
                f"{BLOBS}sha256/ab/{name}/data",
                1,
                None,
                "dead",
            )
            for name in digests
        )
        del digests
        tracemalloc.start()
        try:
            storage = Forgetful()
            run(run_file, storage, replace(capabilities, delete_batch=100))
            gone = run_file.folders_of_gone()
            tidy(storage, FOLDERS, gone, keep_repositories=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(10_000, 0)
    assert peak(30_000, 10_000) < few + 500_000


@BOTH
def test_a_path_with_two_rows_has_two_outcomes(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    # A storage has listed it twice.
    one, other = rows(RowKind.BLOB, 2)
    run_file.add([one, other, other, *rows(RowKind.UPLOAD, 1)])
    run(run_file, Storage(), capabilities)
    assert states(run_file) == {RowState.DELETED: 4}


@BOTH
def test_a_row_of_which_the_storage_says_nothing_has_failed(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    class Silent(Storage):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            for outcome in super().delete(paths):
                if "/1/" not in outcome.path:
                    yield outcome

    run_file.add(rows(RowKind.BLOB, 6))
    swept = run(run_file, Silent(), capabilities)
    assert swept.error is None
    assert states(run_file) == {RowState.DELETED: 5, RowState.FAILED: 1}
    ((path, reason),) = run_file.failures()
    assert path == "blob/1/link"
    assert "does not say" in reason


@BOTH
def test_a_failed_delete_does_not_stop_the_rest(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    for kind in OBJECT_KINDS:
        run_file.add(rows(kind, 5))
    paths = [row.path for kind in OBJECT_KINDS for row in rows(kind, 5)]
    failed = {path: Outcome(path, Deletion.FAILED, "no") for path in paths[:10]}
    run(run_file, Storage(answers=failed), capabilities)
    # With them the five blobs that they lead to.
    assert states(run_file) == {RowState.FAILED: 15, RowState.DELETED: 15}


@BOTH
def test_a_blob_to_which_a_link_stays_is_left(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    for kind in (RowKind.REVISION, RowKind.LAYER_LINK, RowKind.BLOB):
        run_file.add(rows(kind, 5))
    denied = ["revision/1/link", "layer-link/3/link"]
    storage = Storage(answers={path: Outcome(path, Deletion.FAILED, "no") for path in denied})
    told: list[str] = []
    means = Means(
        storage,
        capabilities,
        lambda: None,
        lambda: False,
        Watcher(),
        settled=[lambda _, outcomes: told.extend(done.path for _, done in outcomes)],
    )
    sweep(run_file, means)
    assert {path for path in storage.deleted if path.startswith("blob/")} == {
        f"blob/{number}/link" for number in (0, 2, 4)
    }
    reasons = dict(run_file.failures())
    assert reasons.keys() == {*denied, "blob/1/link", "blob/3/link"}
    assert reasons["blob/1/link"] == "a link to it could not be deleted: no"
    assert len(told) == len(set(told)) == 15


def test_nothing_planned_is_nothing_asked(run_file: RunFile) -> None:
    watcher = Watcher()
    asked: list[int] = []

    def look() -> None:
        asked.append(1)

    run(run_file, Storage(), look=look, watcher=watcher)
    assert (asked, watcher.phases) == ([], [])


# Stopping


@BOTH
def test_the_guard_is_asked_before_each_batch_and_its_no_stops_before_the_batch(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    run_file.add(rows(RowKind.REVISION, 8))
    run_file.add(rows(RowKind.BLOB, 8))
    answers = iter([None, None, None, Stop.REFUSED])
    storage, watcher = Storage(), Watcher()
    swept = run(run_file, storage, capabilities, lambda: next(answers), watcher=watcher)
    assert swept.stopped is Stop.REFUSED
    gone = len(storage.deleted)
    # Of batches side by side the one that is under way ends with it.
    assert gone == 12 if capabilities.folders else 8 <= gone <= 12
    assert states(run_file) == {RowState.DELETED: gone, RowState.PLANNED: 16 - gone}
    assert watcher.finished == len(watcher.phases)


@BOTH
def test_in_a_batch_that_takes_long_the_guard_is_asked_again(
    run_file: RunFile, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file.add(rows(RowKind.BLOB, 8))
    now = [0.0]
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    answers = iter([None, None, Stop.REFUSED])

    def before(path: str) -> None:
        now[0] += 6.0

    # As on a filesystem: one after the other, each drawn when the one before is gone.
    storage = Storage(batch=1, before=before)
    whole = replace(capabilities, delete_batch=8)
    swept = run(run_file, storage, whole, lambda: next(answers))
    assert swept.stopped is Stop.REFUSED
    # Looked at before the first, at 12 s before the third, at 24 s before the fifth.
    assert len(storage.deleted) == 4
    assert states(run_file) == {RowState.DELETED: 4, RowState.PLANNED: 4}


@BOTH
def test_a_guard_that_says_no_at_once_lets_nothing_go(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    run_file.add(rows(RowKind.BLOB, 8))
    storage = Storage()
    assert run(run_file, storage, capabilities, lambda: Stop.REFUSED).stopped is Stop.REFUSED
    assert storage.deleted == []


@BOTH
def test_a_guard_that_cannot_be_asked_lets_nothing_more_go(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    run_file.add(rows(RowKind.BLOB, 12))
    looks = 0

    def look() -> Stop | None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise StorageError("lost")
        return None

    storage = Storage()
    with pytest.raises(StorageError, match="lost"):
        run(run_file, storage, capabilities, look)
    assert len(storage.deleted) == 4
    assert states(run_file) == {RowState.DELETED: 4, RowState.PLANNED: 8}


@pytest.mark.parametrize("after", range(8))
def test_an_interrupt_stops_before_the_next_single_delete(run_file: RunFile, after: int) -> None:
    run_file.add(rows(RowKind.REVISION, 3))
    run_file.add(rows(RowKind.BLOB, 5))
    storage = Storage(batch=1)
    swept = run(run_file, storage, interrupted=lambda: len(storage.deleted) >= after)
    assert swept.stopped is Stop.INTERRUPTED
    assert len(storage.deleted) == after
    assert states(run_file).get(RowState.DELETED, 0) == after
    assert states(run_file)[RowState.PLANNED] == 8 - after


class Busy(Wrapper):
    """Answers no delete but the first *calls*; ``on_delete`` is called at each."""

    def __init__(self, storage: MemoryStorage, on_delete: Callable[[], None], calls: int = 0):
        super().__init__(storage)
        self.on_delete = on_delete
        self.calls = calls
        self.asked = 0

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        self.asked += 1
        self.on_delete()
        if self.asked > self.calls:
            raise Unavailable("busy")
        yield from super().delete(paths)


def planned_in_memory(run_file: RunFile, count: int) -> MemoryStorage:
    memory = MemoryStorage(delete_batch=4)
    run_file.add(rows(RowKind.BLOB, count))
    for row in rows(RowKind.BLOB, count):
        memory.put(row.path, b"x" * 10)
    return memory


@pytest.mark.parametrize("how", [Stop.REFUSED, Stop.INTERRUPTED])
def test_a_batch_that_fails_in_passing_goes_out_again_only_while_that_is_allowed(
    run_file: RunFile, how: Stop
) -> None:
    now: list[Stop] = []
    memory = planned_in_memory(run_file, 12)
    busy = Busy(memory, lambda: now.append(how) if busy.asked == 5 else None, calls=1)
    swept = run(
        run_file,
        Retrying(busy, attempts=50, sleep=lambda _: None),
        replace(OBJECTS, workers=1),
        look=lambda: Stop.REFUSED if Stop.REFUSED in now else None,
        interrupted=lambda: Stop.INTERRUPTED in now,
    )
    assert swept.stopped is how
    assert busy.asked == 5
    assert states(run_file) == {RowState.DELETED: 4, RowState.PLANNED: 8}
    assert len(memory.snapshot()) == 8


def test_who_says_no_while_a_batch_is_tried_again_is_not_asked_once_more(run_file: RunFile) -> None:
    """An address that says yes again the next time has been open meanwhile."""
    answers = iter([None, Stop.REFUSED, None, None, None])
    busy = Busy(planned_in_memory(run_file, 12), lambda: None)
    storage = Retrying(busy, sleep=lambda _: None)
    swept = run(run_file, storage, replace(OBJECTS, workers=1), look=lambda: next(answers))
    assert (swept.stopped, busy.asked) == (Stop.REFUSED, 1)


def test_a_guard_that_cannot_be_asked_lets_no_batch_go_out_again(run_file: RunFile) -> None:
    looks = 0

    def look() -> Stop | None:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise StorageError("nobody knows")
        return None

    busy = Busy(planned_in_memory(run_file, 4), lambda: None)
    with pytest.raises(StorageError):
        run(run_file, Retrying(busy, sleep=lambda _: None), OBJECTS, look)
    assert (busy.asked, looks) == (1, 2)
    assert states(run_file) == {RowState.PLANNED: 4}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 25), st.booleans(), st.integers(1, 6))
def test_stopped_anywhere_and_taken_up_again_everything_goes_once(
    after: int, objects: bool, batch: int
) -> None:
    with TemporaryDirectory() as folder, closing(RunFile.create(f"{folder}/run")) as run_file:
        for kind in OBJECT_KINDS:
            run_file.add(rows(kind, 4))
        capabilities = OBJECTS if objects else FOLDERS
        storage = Storage(batch=batch)
        run(
            run_file,
            storage,
            capabilities,
            interrupted=lambda: len(storage.deleted) >= after,
        )
        done = set(storage.deleted)
        assert {
            row.path for kind in OBJECT_KINDS for row in run_file.rows(kind, RowState.DELETED)
        } == done
        run(run_file, storage, capabilities)
        assert len(storage.deleted) == len(set(storage.deleted)) == 24
        assert states(run_file) == {RowState.DELETED: 24}


@BOTH
@pytest.mark.parametrize("fail_at", [1, 3, 4, 5, 12])
def test_a_batch_that_raises_keeps_what_was_told_before_and_ends_the_sweep(
    run_file: RunFile, capabilities: Capabilities, fail_at: int
) -> None:
    run_file.add(rows(RowKind.REVISION, 12))
    run_file.add(rows(RowKind.BLOB, 12))
    storage, watcher = Storage(fail_at=fail_at), Watcher()
    with pytest.raises(Unavailable, match="gone away"):
        run(run_file, storage, capabilities, watcher=watcher)
    assert not any(path.startswith("blob/") for path in storage.deleted)
    found = states(run_file)
    assert found.get(RowState.DELETED, 0) == len(storage.deleted)
    assert found[RowState.PLANNED] == 24 - len(storage.deleted)
    if capabilities.folders:
        assert len(storage.deleted) == fail_at - 1
    assert watcher.finished == 1


@BOTH
def test_an_error_nobody_expected_is_raised_and_what_was_told_is_kept(
    run_file: RunFile, capabilities: Capabilities
) -> None:
    run_file.add(rows(RowKind.BLOB, 12))
    storage = Storage(fail_at=7, error=RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(run_file, storage, capabilities)
    assert states(run_file)[RowState.DELETED] == len(storage.deleted)


def test_a_journal_that_cannot_be_written_ends_the_sweep(
    run_file: RunFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file.add(rows(RowKind.REVISION, 12))
    run_file.add(rows(RowKind.BLOB, 12))

    def refuse(*_: object) -> None:
        raise RunFileError("no room anywhere")

    monkeypatch.setattr(RunFile, "record", refuse)
    storage = Storage()
    with pytest.raises(RunFileError, match="no room"):
        run(run_file, storage)
    assert len(storage.deleted) == 4


def test_a_batch_that_cannot_be_written_down_does_not_keep_the_others(
    run_file: RunFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file.add(rows(RowKind.BLOB, 16))
    together = threading.Barrier(4)
    record = RunFile.record
    tries: list[str] = []

    def locked_at_first(*arguments: Any) -> None:
        tries.append("")
        if len(tries) <= 2:
            raise RunFileError(f"locked {len(tries)}")
        record(*arguments)

    def wait_for_the_others(path: str) -> None:
        if path.removesuffix("/link").rpartition("/")[2] in {"0", "4", "8", "12"}:
            together.wait(timeout=60)

    monkeypatch.setattr(RunFile, "record", locked_at_first)
    storage, watcher = Storage(before=wait_for_the_others), Watcher()
    with pytest.raises(RunFileError, match="locked 1"):
        run(run_file, storage, OBJECTS, watcher=watcher)
    assert len(storage.deleted) == 16
    assert states(run_file) == {RowState.DELETED: 8, RowState.PLANNED: 8}
    assert watcher.finished == 1


@pytest.mark.parametrize("room", [0, 1, 2])
def test_without_room_for_threads_every_batch_is_deleted_once_and_written_down(
    run_file: RunFile, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    run_file.add(rows(RowKind.BLOB, 40))
    few_threads(monkeypatch, room)
    storage = Storage(before=lambda _: time.sleep(0.001))
    swept = run(run_file, storage, OBJECTS)
    assert swept.error is None
    assert len(storage.deleted) == len(set(storage.deleted)) == 40
    assert states(run_file) == {RowState.DELETED: 40}


@pytest.mark.parametrize("begun", [False, True])
def test_what_cannot_be_handed_to_a_thread_for_another_reason_is_not_done_or_told_of(
    begun: bool,
) -> None:
    done: list[int] = []

    def work() -> int:
        done.append(1)
        return 7

    later: list[Callable[[], Any]] = []

    class Pool(ThreadPoolExecutor):
        """Queues the work, and cannot say so; a thread may be fast."""

        def submit(self, task: Callable[..., Any], /, *words: Any, **more: Any) -> Any:
            later.append(partial(task, *words))
            if begun:
                later.pop()()
            raise MemoryError

    with Pool(1) as pool:
        if begun:
            assert submit(pool, work).result() == 7
        else:
            with pytest.raises(MemoryError):
                submit(pool, work)
    for task in later:
        task()
    assert done == [1] * begun


def test_batches_go_side_by_side_where_the_wait_is_what_takes_the_time(
    run_file: RunFile,
) -> None:
    run_file.add(rows(RowKind.BLOB, 16))
    together = threading.Barrier(4)

    def wait_for_the_others(path: str) -> None:
        if path.removesuffix("/link").rpartition("/")[2] in {"0", "4", "8", "12"}:
            together.wait(timeout=60)

    storage = Storage(before=wait_for_the_others)
    run(run_file, storage, OBJECTS)
    assert states(run_file) == {RowState.DELETED: 16}


def test_no_batch_is_larger_than_the_storage_takes(run_file: RunFile) -> None:
    run_file.add(rows(RowKind.BLOB, 11))
    sizes: list[int] = []

    class Counting(Storage):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            batch = list(paths)
            sizes.append(len(batch))
            return super().delete(batch)

    run(run_file, Counting(), OBJECTS)
    assert sorted(sizes) == [3, 4, 4]


# Folders


class Folders:
    """Remembers which folders it was asked to remove."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        raise AssertionError("tidying deletes no files")

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        self.asked += [(folder, floor) for folder in folders]
        return 0


def test_on_object_stores_there_is_nothing_to_tidy() -> None:
    folders = Folders()
    tidy(folders, OBJECTS, {"x"}, keep_repositories=False)
    assert folders.asked == []


def test_tidying_begins_with_the_deepest_and_ends_at_its_floor() -> None:
    folders = Folders()
    digest = sha256(b"x")
    blob = blob_path(digest).rpartition("/")[0]
    link = layer_link("a/b", digest).rpartition("/")[0]
    everything = {
        blob,
        link,
        f"{REPOSITORIES}a",
        f"{REPOSITORIES}a/b/_layers",
        REPOSITORIES.rstrip("/"),
        BLOBS.rstrip("/"),
        f"{BLOBS}sha256",
        f"{BLOBS}stray",
    }
    tidy(folders, FOLDERS, everything, keep_repositories=False)
    assert [entry for entry in folders.asked if entry[1] != REPOSITORIES] == [
        (blob, f"{BLOBS}sha256/")
    ]
    assert [folder for folder, floor in folders.asked if floor == REPOSITORIES] == [
        link,
        f"{REPOSITORIES}a/b/_layers",
        f"{REPOSITORIES}a",
    ]


def test_tidying_ends_when_it_is_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_FOLDERS_AT_ONCE", 2)
    folders = Folders()
    answers = iter([False, False, True])
    empty = {f"{BLOBS}sha256/ab/{number}" for number in range(10)}
    tidy(folders, FOLDERS, empty, keep_repositories=False, ended=lambda: next(answers))
    assert len(folders.asked) == 4


class Refusing(Folders):
    """Refuses what is asked for in one call, after all of it was tried."""

    def __init__(self, part: str, error: StorageError) -> None:
        super().__init__()
        self.part, self.error = part, error

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        asked = list(folders)
        super().remove_folders(asked, floor=floor)
        if any(self.part in folder for folder in asked):
            raise self.error
        return len(asked)


def test_one_folder_that_cannot_be_removed_keeps_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_FOLDERS_AT_ONCE", 2)
    folders = Refusing("/0", AccessDenied("Operation not permitted"))
    empty = {f"{BLOBS}sha256/0{number}/x" for number in range(5)} | {f"{REPOSITORIES}a/_layers"}
    with pytest.raises(AccessDenied):
        tidy(folders, FOLDERS, empty, keep_repositories=False)
    assert {folder for folder, _ in folders.asked} == empty


def test_a_storage_that_does_not_answer_is_not_asked_for_each_folder() -> None:
    folders = Refusing("/0", Unavailable("Stale file handle"))
    empty = {f"{BLOBS}sha256/0{number}/x" for number in range(5)} | {f"{REPOSITORIES}a/_layers"}
    with pytest.raises(Unavailable):
        tidy(folders, FOLDERS, empty, keep_repositories=False)
    assert f"{REPOSITORIES}a/_layers" not in {folder for folder, _ in folders.asked}


def test_many_small_parts_of_a_tree_are_no_reason_to_ask_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping, "_FOLDERS_AT_ONCE", 10)
    asked: list[int] = []

    def ended() -> bool:
        asked.append(1)
        return False

    folders = Folders()
    below = {f"{REPOSITORIES}r{number}/_layers/sha256/x" for number in range(40)}
    tidy(folders, FOLDERS, below, keep_repositories=True, ended=ended)
    assert (len(folders.asked), len(asked)) == (40, 4)


def test_repositories_that_are_kept_keep_their_three_folders() -> None:
    folders = Folders()
    digest = sha256(b"x")
    below = {
        layer_link("a", digest).rpartition("/")[0],
        revision_link("a", digest).rpartition("/")[0],
        f"{REPOSITORIES}a/_uploads/u",
        f"{REPOSITORIES}a/_layers",
        f"{REPOSITORIES}a",
        f"{REPOSITORIES}group",
    }
    tidy(folders, FOLDERS, below, keep_repositories=True)
    assert {(folder, floor) for folder, floor in folders.asked} == {
        (layer_link("a", digest).rpartition("/")[0], f"{REPOSITORIES}a/_layers/"),
        (revision_link("a", digest).rpartition("/")[0], f"{REPOSITORIES}a/_manifests/"),
        (f"{REPOSITORIES}a/_uploads/u", f"{REPOSITORIES}a/_uploads/"),
    }


@pytest.mark.parametrize("keep", [False, True])
def test_on_a_real_disk_only_what_is_empty_goes(tmp_path: Path, keep: bool) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    one, other = tree.layer("a", b"1"), tree.layer("a/b", b"2")
    storage = FilesystemStorage(str(tmp_path))
    gone = [layer_link_path("a", one), blob_path(one)]
    assert all(outcome.result is Deletion.DELETED for outcome in storage.delete(gone))
    folders = {path.rpartition("/")[0] for path in gone}
    folders.add(layer_link_path("a/b", other).rpartition("/")[0])
    tidy(storage, storage.capabilities, folders, keep_repositories=keep)
    assert not (tmp_path / blob_path(one)).parent.exists()
    assert (tmp_path / REPOSITORIES / "a/_layers").exists() is keep
    assert not (tmp_path / REPOSITORIES / "a/_layers/sha256").exists()
    assert (tmp_path / layer_link_path("a/b", other)).exists()
    assert (tmp_path / BLOBS / "sha256").exists()
