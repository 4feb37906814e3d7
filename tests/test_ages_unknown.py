"""A store that does not say when a blob was written: where age matters, nothing is deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_support import NOW, Store, Watcher
from model import HOUR
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, collect
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_tree import blob_path, sha256
from running import Disk

UNDATED = sha256(b"who knows when")


@pytest.fixture
def storage() -> MemoryStorage:
    """A live image, a blob that nothing needs and is old, and one without a date."""
    store = Store()
    store.tree.image("app", "v1", layers=[b"live"])
    store.tree.layer("app", b"old")
    store.storage.put(blob_path(UNDATED), b"who knows when", 0.0)
    return store.storage


def run(storage: MemoryStorage, folder: Path, policy: Policy, *, dry_run: bool = False) -> Report:
    job = Job(
        storage=storage,
        policy=policy,
        check=lambda: Verdict("allowed", ()),
        run_file=str(folder / "run.sqlite"),
        workers=1,
        dry_run=dry_run,
    )
    return collect(job, Watcher(), Interrupts())


def there(storage: MemoryStorage) -> set[str]:
    return {path for page in storage.list("") for path in page.paths}


@pytest.mark.parametrize("date", [0.0, -62135596800.0, 86400.0])
def test_with_a_grace_period_nothing_goes_by_a_date_that_is_none(
    storage: MemoryStorage, tmp_path: Path, date: float
) -> None:
    storage.put(blob_path(UNDATED), b"who knows when", date)
    before = there(storage)
    report = run(storage, tmp_path, Policy(grace=HOUR))
    assert report.exit_code == 4
    assert [found.code for found in report.findings] == ["ages-unknown"]
    assert "of 1 blobs" in str(report.error)
    assert there(storage) == before


def test_a_dry_run_says_so(storage: MemoryStorage, tmp_path: Path) -> None:
    report = run(storage, tmp_path, Policy(grace=HOUR), dry_run=True)
    assert report.exit_code == 0
    assert "ages-unknown" in [found.code for found in report.findings]


def test_without_one_age_does_not_matter(storage: MemoryStorage, tmp_path: Path) -> None:
    report = run(storage, tmp_path, Policy())
    assert report.exit_code == 0
    assert blob_path(UNDATED) not in there(storage)


def test_a_live_blob_may_be_without_a_date(storage: MemoryStorage, tmp_path: Path) -> None:
    storage.put(blob_path(UNDATED), b"who knows when", NOW - 9 * HOUR)
    storage.put(blob_path(sha256(b"live")), b"live", 0.0)
    report = run(storage, tmp_path, Policy(grace=HOUR))
    assert report.exit_code == 0
    assert blob_path(sha256(b"live")) in there(storage)
    assert blob_path(UNDATED) not in there(storage)


def test_a_file_of_1970_is_as_old_as_that(tmp_path: Path) -> None:
    """An archive may have given it that date; whoever pushes gives it today's."""
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1")
    digest = disk.tree.blob(b"unpacked")
    disk.age(NOW)
    assert disk.collect("--grace", "1h").exit_code == 0
    assert not disk.has_blob(digest)
