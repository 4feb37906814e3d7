"""A whole collection: what it leaves, however it ends, and that another run does the rest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from core_support import UNTAGGED_GO, Watcher
from registry_drivers.base import Children, Deletion, Outcome
from registry_drivers.errors import AccessDenied, Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.wrappers import Wrapper
from registry_gc.collect import Job, collect
from registry_gc.engine import SerialEngine, WorkerLost
from registry_gc.guard import Finding, Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.lock import Lock
from registry_gc.policy import Limit, Policy
from registry_gc.report.model import Report
from registry_tree import RegistryTree, folder_sink


def wide_registry(root: Path) -> tuple[set[str], set[str]]:
    """Much that is dead beside something live; returns the paths of both."""
    tree = RegistryTree(folder_sink(root))
    for number in range(3):
        tree.image("a", f"v{number}", layers=[b"kept %d" % number])
    kept = set(all_files(root))
    for number in range(4):
        image = tree.image("b", None, layers=[b"dead %d" % number])
        tree.image("b", None, layers=[b"signature %d" % number], subject=image)
        tree.layer("a", b"orphan %d" % number)
    return kept, set(all_files(root)) - kept


def all_files(root: Path) -> list[str]:
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "registry-gc" not in path.parts
    ]


@dataclass
class Case:
    """One registry on disk and how it is collected."""

    folder: Path
    kept: set[str] = field(init=False)
    dead: set[str] = field(init=False)
    storage: FilesystemStorage = field(init=False)
    interrupts: Interrupts = field(default_factory=Interrupts)
    watcher: Watcher = field(default_factory=Watcher)
    answers: Callable[[], Verdict] = lambda: Verdict("allowed", ())
    runs: int = 0

    def __post_init__(self) -> None:
        self.kept, self.dead = wide_registry(self.folder / "registry")
        self.storage = FilesystemStorage(str(self.folder / "registry"))
        # Small batches, so that much can happen between them.
        self.storage.capabilities = replace(self.storage.capabilities, delete_batch=3)

    def collect(self, policy: Policy = UNTAGGED_GO, **more: Any) -> Report:
        self.runs += 1
        job = Job(
            storage=more.pop("storage", self.storage),
            policy=policy,
            check=self.answers,
            run_file=str(self.folder / f"run-{self.runs}.sqlite"),
            workers=1,
            **more,
        )
        return collect(job, self.watcher, self.interrupts)

    @property
    def left(self) -> set[str]:
        return set(all_files(self.folder / "registry"))

    def finish(self) -> None:
        """Whatever has happened: nothing live is gone, and another run does the rest."""
        assert self.kept <= self.left
        self.interrupts, self.answers = Interrupts(), lambda: Verdict("allowed", ())
        assert self.collect().exit_code == 0
        assert self.left == self.kept


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_collection_deletes_what_is_dead_and_its_folders(case: Case) -> None:
    report = case.collect()
    assert (report.exit_code, report.error) == (0, None)
    assert case.left == case.kept
    assert report.emptied == 1
    assert not (case.folder / "registry" / REPOSITORIES / "b").exists()
    assert not (case.folder / "registry/docker/registry/registry-gc").exists()
    assert report.blobs.deleted == report.blobs.eligible == 20
    case.finish()


def test_a_dry_run_deletes_nothing_and_writes_nothing_there(case: Case) -> None:
    report = case.collect(dry_run=True)
    assert report.exit_code == 0
    assert report.blobs.eligible == 20
    assert report.blobs.deleted == 0
    assert case.left == case.kept | case.dead
    assert report.requests["write"] == report.requests["delete"] == 0
    case.finish()


def changing(*first: Verdict, then: Verdict) -> Callable[[], Verdict]:
    answers = iter(first)
    return lambda: next(answers, then)


ALLOWED = Verdict("allowed", ())
WRITABLE = Verdict("refused", (Finding("registry-writable", "it takes writes"),))
UNKNOWN = Verdict("unknown", (Finding("probe-no-answer", "it does not answer"),))


@pytest.mark.parametrize("then", [WRITABLE, UNKNOWN])
@pytest.mark.parametrize("looks", [1, 2, 5, 9])
def test_a_registry_that_becomes_writable_stops_the_sweep(
    case: Case, looks: int, then: Verdict
) -> None:
    case.answers = changing(*[ALLOWED] * looks, then=then)
    report = case.collect()
    assert report.exit_code == 5
    assert report.verdict == then.verdict
    assert then.findings[0] in report.findings
    assert then.findings[0].message in str(report.error)
    # The first look is before listing, each further one before a batch of three at most.
    assert len(case.dead - case.left) <= 3 * (looks - 1)
    assert bool(case.dead - case.left) is (looks > 1)
    case.finish()


@pytest.mark.parametrize(("then", "code"), [(WRITABLE, 5), (UNKNOWN, 0)])
def test_on_an_object_store_who_begins_to_write_while_the_last_things_go_is_told(
    case: Case, then: Verdict, code: int
) -> None:
    """There guard and lock are looked at every ten seconds: a short sweep looks once."""
    store = MemoryStorage()
    for path in all_files(case.folder / "registry"):
        store.put(path, (case.folder / "registry" / path).read_bytes())
    case.answers = changing(ALLOWED, ALLOWED, then=then)
    report = case.collect(storage=store)
    assert report.exit_code == code
    assert report.blobs.deleted == 20
    assert ("takes writes" in str(report.error)) is (code == 5)
    assert (then.findings[0] in report.findings) is (code == 5)


@pytest.mark.parametrize("verdict", [WRITABLE, UNKNOWN])
def test_a_registry_that_may_be_writable_is_refused_at_once(case: Case, verdict: Verdict) -> None:
    case.answers = lambda: verdict
    report = case.collect()
    assert (report.exit_code, report.run_file) == (4, None)
    assert "nothing was deleted" in str(report.error)
    assert case.left == case.kept | case.dead
    dry = case.collect(dry_run=True)
    assert (dry.exit_code, dry.verdict) == (0, verdict.verdict)
    case.finish()


@pytest.mark.parametrize("how", ["removed", "overwritten"])
def test_a_lock_that_is_lost_stops_the_sweep(case: Case, how: str) -> None:
    lock = case.folder / "registry/docker/registry/registry-gc/lock"
    looks = 0

    def check() -> Verdict:
        nonlocal looks
        looks += 1
        if looks == 3:
            (found,) = [path for path in lock.parent.iterdir() if path.is_file()]
            if how == "removed":
                found.unlink()
            else:
                found.write_bytes(b"another run's")
        return ALLOWED

    case.answers = check
    report = case.collect()
    assert report.exit_code == 5
    assert "lock-lost" in {finding.code for finding in report.findings}
    assert case.kept <= case.left
    assert case.dead & case.left
    for path in lock.parent.iterdir() if lock.parent.exists() else ():
        path.unlink()
    case.finish()


def test_a_second_run_at_once_is_refused(case: Case) -> None:
    first = Lock.acquire(case.storage, "first")
    report = case.collect()
    assert report.exit_code == 4
    assert "locked" in {finding.code for finding in report.findings}
    assert case.left == case.kept | case.dead
    dry = case.collect(dry_run=True)
    assert (dry.exit_code, dry.verdict) == (0, "refused")
    first.release()
    case.finish()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["listing repositories", "reading manifests", "listing blobs"])
def test_an_interrupt_while_nothing_is_deleted_ends_the_run_and_frees_the_lock(
    case: Case, phase: str, number: signal.Signals
) -> None:
    class Interrupting(Watcher):
        def phase(self, name: str, total: int | None, unit: str) -> None:
            if name == phase:
                os.kill(os.getpid(), number)

    case.watcher = Interrupting()
    with case.interrupts.installed():
        report = case.collect()
    assert report.exit_code == 128 + number
    assert case.left == case.kept | case.dead
    case.watcher = Watcher()
    case.finish()


@pytest.mark.parametrize("after", [0, 1, 2, 7, 20, 35])
def test_an_interrupt_while_deleting_ends_at_the_next_delete(case: Case, after: int) -> None:
    before = len(case.left)

    class Interrupting(Wrapper):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            def counted() -> Iterator[str]:
                for path in paths:
                    if "registry-gc" not in path and before - len(case.left) == after:
                        case.interrupts.number = signal.SIGINT
                    yield path

            return super().delete(counted())

    report = case.collect(storage=Interrupting(case.storage))
    assert report.exit_code == 130
    assert before - len(case.left) == after + 1
    assert report.error == "interrupted by SIGINT"
    case.finish()


def test_a_storage_error_while_listing_ends_the_run_before_anything_goes(case: Case) -> None:
    class Failing(Wrapper):
        def children(self, prefix: str) -> Children:
            if prefix.startswith(BLOBS):
                raise Unavailable("the disk is on strike", path=prefix)
            return super().children(prefix)

    report = case.collect(storage=Failing(case.storage))
    assert report.exit_code == 1
    assert "on strike" in str(report.error)
    assert case.left == case.kept | case.dead
    case.finish()


@pytest.mark.parametrize("at", [1, 4, 30])
def test_a_storage_error_while_deleting_is_exit_code_1(case: Case, at: int) -> None:
    count = 0

    class Failing(Wrapper):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            nonlocal count
            for path in paths:
                if "registry-gc" not in path:
                    count += 1
                    if count == at:
                        raise Unavailable("gone away", path=path)
                yield from super().delete([path])

    report = case.collect(storage=Failing(case.storage))
    assert report.exit_code == 1
    assert len(case.dead - case.left) == at - 1
    assert "gone away" in str(report.error)
    assert report.emptied == 0
    case.finish()


@pytest.mark.parametrize("below", [REPOSITORIES, BLOBS])
def test_what_cannot_be_deleted_is_told_and_the_rest_goes(case: Case, below: str) -> None:
    stays = sorted(path for path in case.dead if path.startswith(below))[0]
    # No link is left that leads to nothing.
    led_to = {path for path in case.dead - {stays} if path.split("/")[-2] == stays.split("/")[-2]}
    blobs = {path for path in led_to if below == REPOSITORIES and path.startswith(BLOBS)}

    class Denying(Wrapper):
        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            for path in paths:
                if path == stays:
                    yield Outcome(path, Deletion.FAILED, "held")
                else:
                    yield from super().delete([path])

    report = case.collect(storage=Denying(case.storage))
    assert report.exit_code == 3
    reasons = dict.fromkeys(blobs, "a link to it could not be deleted: held")
    assert dict(report.failed) == {stays: "held", **reasons}
    assert len(blobs) == (below == REPOSITORIES)
    assert case.left == case.kept | {stays} | blobs
    case.finish()


def test_folders_that_cannot_be_removed_are_a_notice_and_no_failure(case: Case) -> None:
    class Denying(Wrapper):
        def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
            if floor.startswith((REPOSITORIES, BLOBS)):
                raise AccessDenied("not yours", path=floor)
            return super().remove_folders(folders, floor=floor)

    report = case.collect(storage=Denying(case.storage))
    assert (report.exit_code, report.error) == (0, None)
    assert any("not yours" in notice for notice in case.watcher.notices)
    case.finish()


def test_a_run_file_that_breaks_while_deleting_ends_the_sweep_with_a_report(case: Case) -> None:
    looks = 0

    def check() -> Verdict:
        nonlocal looks
        looks += 1
        if looks == 3:
            (case.folder / "run-1.sqlite").write_bytes(b"\0" * 100_000)
        return ALLOWED

    case.answers = check
    report = case.collect()
    assert report.exit_code == 1
    assert "run-1.sqlite" in str(report.error)
    assert report.run_file == str(case.folder / "run-1.sqlite")
    case.finish()


@pytest.mark.parametrize(
    ("policy", "code", "finding"),
    [
        (replace(UNTAGGED_GO, max_delete=Limit.parse("19")), 4, "max-delete"),
        (replace(UNTAGGED_GO, max_delete=Limit.parse("20")), 0, None),
        (replace(UNTAGGED_GO, max_delete=Limit.parse("50%")), 4, "max-delete"),
        (replace(UNTAGGED_GO, max_delete=Limit.parse("80%")), 0, None),
    ],
)
def test_a_limit_is_kept_and_says_so(
    case: Case, policy: Policy, code: int, finding: str | None
) -> None:
    dry = case.collect(policy, dry_run=True)
    assert dry.exit_code == 0
    assert (finding in {found.code for found in dry.findings}) is (code == 4)
    report = case.collect(policy)
    assert report.exit_code == code
    assert (case.left == case.kept) is (code == 0)
    case.finish()


def test_not_one_live_manifest_is_refused_unless_that_is_right(case: Case) -> None:
    for path in sorted(case.kept):
        if "/tags/" in path:
            (case.folder / "registry" / path).unlink()
    report = case.collect()
    assert report.exit_code == 4
    assert "no-live-manifests" in {finding.code for finding in report.findings}
    assert case.dead <= case.left
    assert case.collect(replace(UNTAGGED_GO, allow_empty=True)).exit_code == 0
    assert case.left == set()


def test_a_wrong_root_is_refused(case: Case) -> None:
    empty = case.folder / "empty"
    empty.mkdir()
    for root in (empty, case.folder / "missing"):
        report = case.collect(storage=FilesystemStorage(str(root)))
        assert report.exit_code == 4
        assert "no-registry" in {finding.code for finding in report.findings}
    case.finish()


def test_a_worker_that_is_killed_is_exit_code_1(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise WorkerLost("a worker process was killed")

    monkeypatch.setattr(SerialEngine, "run", lost)
    report = case.collect()
    assert (report.exit_code, report.error) == (1, "a worker process was killed")
    monkeypatch.undo()
    case.finish()


class SlowClock(Wrapper):
    """A file server whose clock is *behind* this machine's."""

    def __init__(self, storage: Any, behind: float) -> None:
        super().__init__(storage)
        self.behind = behind

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        super().write(path, data, if_absent=if_absent)
        set_back(Path(self.root) / path, self.behind)


def set_back(path: Path, seconds: float) -> None:
    status = path.stat()
    os.utime(path, (status.st_atime, status.st_mtime - seconds))


@pytest.mark.parametrize(
    ("behind", "age", "goes"),
    [
        (7200.0, 600.0, False),
        (7200.0, 3700.0, True),
        (0.0, 600.0, False),
        (0.0, 3700.0, True),
        (-7200.0, 3700.0, False),
        (50 * 365 * 86400.0, 600.0, True),  # no clock at all: files are of 1970 for ever
    ],
)
def test_what_is_young_is_so_by_the_clock_of_the_file_server(
    case: Case, behind: float, age: float, goes: bool
) -> None:
    for path in case.dead | case.kept:
        set_back(case.folder / "registry" / path, behind + age)
    storage = SlowClock(case.storage, behind)
    report = case.collect(Policy(delete_untagged=True, grace=3600.0), storage=storage)
    assert report.exit_code == 0
    assert case.left == (case.kept if goes else case.kept | case.dead)


def test_an_engine_that_is_not_as_asked_for_is_told(case: Case) -> None:
    report = case.collect(engine=lambda reader: SerialEngine(reader, None, "all alone"))
    assert report.exit_code == 0
    assert "all alone" in case.watcher.notices
