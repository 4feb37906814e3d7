"""A registry that takes writes for a while, between two looks of a run that could not know."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from core_support import NOW, UNTAGGED_GO, Store
from registry_drivers.base import Outcome, Page
from registry_drivers.errors import StorageError
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc import permission
from registry_gc.apply import apply, make_plan
from registry_gc.collect import Job, collect
from registry_gc.events import Silence
from registry_gc.guard import Finding, Verdict
from registry_gc.guard import watch as watching
from registry_gc.guard.watch import GuardWatch
from registry_gc.interrupts import Interrupts
from registry_tree import RegistryTree, blob_path, folder_sink

ALLOWED = Verdict("allowed", ())
WRITABLE = Verdict("refused", (Finding("registry-writable", "it takes writes"),))


class Opened(MemoryStorage):
    """Is opened for a while, at what *when* says: a listing of blobs, or a delete of them."""

    def __init__(self, when: str) -> None:
        super().__init__(lambda: NOW, delete_batch=2)
        self.when = when
        self.open = False
        self.asked = threading.Event()

    def check(self) -> Verdict:
        if not self.open:
            return ALLOWED
        self.asked.set()
        return WRITABLE

    def _for_a_while(self) -> None:
        self.when = ""
        self.open = True
        assert self.asked.wait(30)
        self.open = False

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        if self.when == "listing" and "/blobs/" in prefix:
            self._for_a_while()
        return super().list(prefix, start_after=start_after)

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        some = list(paths)
        if self.when == "deleting" and "/blobs/" in some[0]:
            self._for_a_while()
        return super().delete(some)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "GuardWatch", partial(GuardWatch, seconds=0.01))


def made(when: str) -> Opened:
    store = Store()
    storage = store.storage = Opened(when)
    store.tree.image("app", "v1", layers=[b"live"])
    for at in range(6):
        store.tree.image("app", layers=[b"dead %d" % at])
    return storage


def job(storage: Opened, folder: Path) -> Job:
    return Job(
        storage=storage,
        policy=UNTAGGED_GO,
        check=storage.check,
        run_file=str(folder / "run.sqlite"),
        workers=1,
    )


def blobs(storage: Opened) -> int:
    return sum("/blobs/" in path for page in MemoryStorage.list(storage, "") for path in page.paths)


def test_during_the_listing_it_refuses_the_run(tmp_path: Path) -> None:
    storage = made("listing")
    before = storage.snapshot()
    report = collect(job(storage, tmp_path), Silence(), Interrupts())
    assert (report.exit_code, report.verdict) == (4, "refused")
    assert "it takes writes" in (report.error or "")
    assert storage.snapshot() == before


def test_during_the_second_look_it_refuses_an_apply(tmp_path: Path) -> None:
    storage = made("")
    assert make_plan(job(storage, tmp_path), Silence(), Interrupts()).exit_code == 0
    storage.when = "listing"
    before = storage.snapshot()
    report = apply(job(storage, tmp_path), Silence(), Interrupts())
    assert report.exit_code == 4
    assert storage.snapshot() == before


def test_between_two_batches_it_stops_the_sweep(tmp_path: Path) -> None:
    storage = made("deleting")
    report = collect(job(storage, tmp_path), Silence(), Interrupts())
    assert report.exit_code == 5
    # Those batches went that were under way.
    assert blobs(storage) > 3


def test_in_the_last_batch_it_is_told_too(tmp_path: Path) -> None:
    storage = made("deleting")
    storage.capabilities = replace(storage.capabilities, delete_batch=1000)
    report = collect(job(storage, tmp_path), Silence(), Interrupts())
    assert (report.exit_code, report.verdict) == (5, "refused")
    assert "it takes writes" in (report.error or "")


def test_while_folders_are_removed_it_stops_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = RegistryTree(folder_sink(tmp_path / "root"))
    tree.image("app", "v1", layers=[b"live"])
    dead = tree.layer("app", b"dead")
    looks: list[str] = []

    def check() -> Verdict:
        gone = not (tmp_path / "root" / blob_path(dead)).exists()
        looks.append("after" if gone else "before")
        return WRITABLE if gone else ALLOWED

    removed: list[str] = []
    monkeypatch.setattr(
        FilesystemStorage, "remove_folders", lambda self, folders, floor: removed.extend(folders)
    )
    monkeypatch.setattr(permission, "GuardWatch", partial(GuardWatch, seconds=1000.0))
    report = collect(
        Job(
            storage=FilesystemStorage(str(tmp_path / "root")),
            policy=UNTAGGED_GO,
            check=check,
            run_file=str(tmp_path / "run.sqlite"),
            workers=1,
        ),
        Silence(),
        Interrupts(),
    )
    assert (report.exit_code, report.verdict) == (5, "refused")
    assert report.blobs.deleted == 1
    assert not [folder for folder in removed if "registry-gc" not in folder]
    assert looks[-1] == "after"


def test_a_dry_run_and_a_plan_are_not_watched(tmp_path: Path) -> None:
    storage = made("")
    names: list[str] = []

    def check() -> Verdict:
        names.extend(thread.name for thread in threading.enumerate())
        return ALLOWED

    for dry_run in (True, False):
        looking = replace(job(storage, tmp_path), check=check, dry_run=dry_run)
        (tmp_path / "run.sqlite").unlink(missing_ok=True)
        assert (collect if dry_run else make_plan)(looking, Silence(), Interrupts()).exit_code == 0
    assert names
    assert "guard" not in names


UNKNOWN = Verdict("unknown", (Finding("probe-silent", "it takes too long"),))


def away() -> Verdict:
    raise StorageError("away", path="x", driver="memory")


def broken() -> Verdict:
    raise ValueError("nobody thought of it")


@pytest.mark.parametrize(
    ("answers", "seen"),
    [
        ([away, WRITABLE, ALLOWED], "refused"),
        ([ALLOWED, UNKNOWN, ALLOWED, UNKNOWN, UNKNOWN, ALLOWED], None),
        ([UNKNOWN, UNKNOWN, UNKNOWN], "unknown"),
        ([UNKNOWN, WRITABLE], "refused"),
        ([broken, ALLOWED], None),
        ([broken, broken, broken], "unknown"),
    ],
)
def test_what_may_pass_is_asked_about_again(
    answers: list[Verdict | Callable[[], Verdict]], seen: str | None
) -> None:
    left = list(answers)
    done = threading.Event()

    def check() -> Verdict:
        if not left:
            done.set()
            return ALLOWED
        answer = left.pop(0)
        return answer if isinstance(answer, Verdict) else answer()

    with GuardWatch(check, seconds=0.001, pauses=(0.001, 0.001)) as watch:
        end = time.monotonic() + 30
        while watch.other is None and not done.wait(0.001) and time.monotonic() < end:
            pass
    assert (watch.other.verdict if watch.other else None) == seen


def test_a_run_does_not_wait_for_an_address_that_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def check() -> Verdict:
        asked.set()
        answered.wait(60)
        return ALLOWED

    monkeypatch.setattr(watching, "_JOIN_SECONDS", 0.01)
    with GuardWatch(check, seconds=0.001):
        assert asked.wait(30)
    assert not answered.is_set()
    answered.set()


def test_whoever_asks_oneself_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by a clock that goes on only while the watch waits."""
    now = 0.0
    looks = []

    def check() -> Verdict:
        looks.append(now)
        return ALLOWED

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds / 2
        if now < 10:
            watch.asked()
        now += seconds / 2
        return now > 20

    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now))
    watch = GuardWatch(check, seconds=2.0)
    monkeypatch.setattr(watch._ended, "wait", wait)
    watch._keep()
    last = looks[0] - 2.0
    assert 9 < last < 10, "the first look is two seconds after another's last"
    assert looks == [last + 2.0 * number for number in range(1, len(looks) + 1)]
    assert len(looks) == 5
