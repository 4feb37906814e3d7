"""Plan now, delete later: what a plan deletes is what a collection would have deleted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from applying.support import DAY, OLD, apply, call, plan, states
from core_support import Watcher
from model import File, expect
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.apply import apply as carry_out
from registry_gc.apply import make_plan
from registry_gc.collect import Job
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_tree import RegistryTree, blob_path, sha256
from running import Disk, empty_folders, files_below, write_config, write_files
from test_against_model import rich_registry

pytestmark = pytest.mark.usefixtures("by_name")

# A dry run


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_dry_run_looks_again_and_changes_neither_registry_nor_plan(
    disk: Disk, by_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plan(disk.root, "-m")
    disk.tree.image("again", "v1", layers=[b"old"])  # takes a planned blob back
    before, there = file.read_bytes(), disk.files()
    if by_variable:
        monkeypatch.setenv("RGC_DRY_RUN", "true")
    looked = apply(disk.root, file, *["--dry-run"] * (not by_variable))
    assert (looked.exit_code, looked.json["dry_run"]) == (0, True)
    assert looked.json["run_file"] == str(file)
    assert (file.read_bytes(), disk.files()) == (before, there)
    assert [path.name for path in file.parent.glob(f"{file.name}?*")] == []
    monkeypatch.delenv("RGC_DRY_RUN", raising=False)
    done = apply(disk.root, file)
    assert done.exit_code == 0
    for kind in ("manifests", "blobs", "layer_links"):
        assert done.json[kind]["deleted"] == looked.json[kind]["eligible"], kind
        assert looked.json[kind]["deleted"] == 0
    assert "2 rows of the plan are not dead any more" in looked.errors


def test_a_dry_run_is_allowed_while_the_registry_is_in_use(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    looked = call(
        disk.root, "apply", "-d=true", file, "--config", write_config(disk.root, readonly=False)
    )
    assert (looked.exit_code, looked.json["guard"]["verdict"]) == (0, "refused")
    assert looked.json["blobs"]["eligible"] == states(file)["planned"] - 5


def test_a_dry_run_keeps_away_from_the_files_of_one_that_carries_the_plan_out(disk: Disk) -> None:
    file = plan(disk.root)
    other = file.with_name(f"{file.name}.look")
    other.write_text("what another process finds dead")
    assert apply(disk.root, file, "--dry-run").exit_code == 0
    assert other.read_text() == "what another process finds dead"


# What is the same as in a collection


@pytest.mark.parametrize("delete_untagged", [False, True])
def test_a_plan_that_is_applied_at_once_deletes_what_a_collection_deletes(
    tmp_path: Path, delete_untagged: bool
) -> None:
    files: dict[str, File] = {}
    rich_registry(RegistryTree(lambda path, data: files.update({path: File(data, 30 * DAY)})))
    now = time.time()
    root = tmp_path / "registry"
    write_files(root, files, now)
    expected = expect(files, delete_untagged=delete_untagged, now=now)
    file = plan(root, *["-m"] * delete_untagged)
    assert files_below(root) == set(files)
    done = apply(root, file)
    assert done.exit_code == 0
    assert set(files) - files_below(root) == expected.dead
    assert not empty_folders(root)
    report = done.json
    assert report["delete_untagged"] is delete_untagged
    assert report["blobs"]["deleted"] == report["blobs"]["eligible"] == len(expected.blobs)
    assert report["blobs"]["deleted_bytes"] == expected.bytes
    assert report["manifests"]["deleted"] == len(expected.revisions)
    assert report["layer_links"]["deleted"] == len(expected.layer_links)
    assert report["uploads"]["deleted"] == len(expected.uploads)
    assert report["repositories"] == {
        "total": len(expected.repositories),
        "emptied": len(expected.emptied),
    }
    assert report["marked"] == len(expected.marked)
    assert (report["taken_back"], report["already_gone"]) == (0, 0)
    assert report["run_file"] == str(file)


def test_what_is_applied_twice_is_done_already(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    first = apply(disk.root, file)
    left = disk.files()
    second = apply(disk.root, file)
    assert second.exit_code == 0
    assert second.json["blobs"] == first.json["blobs"]
    assert disk.files() == left


def test_a_plan_that_is_applied_again_counts_the_repositories_that_it_has_emptied(
    disk: Disk,
) -> None:
    disk.tree.layer("emptied", b"of nobody")
    disk.age(30 * DAY)
    file = plan(disk.root)
    first, second = apply(disk.root, file), apply(disk.root, file)
    assert first.json["repositories"] == {"total": 3, "emptied": 1}
    assert second.json["repositories"] == first.json["repositories"]


def test_a_plan_that_is_applied_again_says_that_nothing_was_left_to_do(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    first = apply(disk.root, file)
    second = apply(disk.root, file)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "nothing was left to do" not in first.errors
    assert "nothing was left to do" in second.errors
    assert second.json["blobs"]["deleted"] == first.json["blobs"]["deleted"] > 0


@pytest.mark.parametrize("what", ["broken", "broken@{}"])
def test_a_plan_with_a_release_is_carried_out(disk: Disk, what: str) -> None:
    digest = disk.tree.image("broken", "v1", layers=[b"lost"])
    (disk.root / blob_path(digest)).write_bytes(b"cut")
    disk.age()
    config = write_config(disk.root)
    plan = disk.root.with_name("plan")
    made = call(disk.root, "plan", "--release", what.format(digest), "-o", plan, config)
    assert made.exit_code == 3
    assert made.json["held"] == []
    done = call(disk.root, "apply", plan)
    assert done.json["held"] == []
    assert not disk.has_blob(sha256(b"lost"))


def test_a_release_of_a_repository_that_is_not_there_is_said(disk: Disk) -> None:
    config = write_config(disk.root)
    done = call(disk.root, "run", "--release", "ap", "--release", "app", config)
    assert done.exit_code == 0
    assert "--release ap: there is no such repository" in done.errors
    assert "--release app:" not in done.errors


def test_only_manifests_that_are_new_are_read_again(disk: Disk) -> None:
    """The read-only window is to be short; the first look may take its time."""
    storage = FilesystemStorage(str(disk.root))
    allowed = Verdict("allowed", ())
    job = Job(
        storage=storage,
        policy=Policy(delete_untagged=True),
        check=lambda: allowed,
        run_file=str(disk.folder / "plan"),
        cache=str(disk.folder / "cache"),
    )
    first, second = Watcher(), Watcher()
    assert make_plan(job, first, Interrupts()).exit_code == 0
    disk.tree.image("app", "later", layers=[b"later"])
    assert carry_out(job, second, Interrupts()).exit_code == 0
    assert ("reading manifests", 3) in first.phases
    assert ("reading manifests", 1) in second.phases
    assert not disk.has(OLD)
