"""Plan now, delete later: whatever happens in between, nothing that is needed then is deleted."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from core_support import Watcher
from model import HOUR, File, expect
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.apply import apply as carry_out
from registry_gc.apply import make_plan
from registry_gc.collect import Job
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.runs.plan_file import PlanFile
from registry_gc.service.processes import Process
from registry_tree import (
    RegistryTree,
    blob_path,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    tag_path,
)
from running import Disk, Result, empty_folders, files_below, scratch, write_config, write_files
from strategies import Registry, registries
from test_against_model import ALONE, FEW, rich_registry
from windows import windows

DAY = 24 * HOUR
CONFIG = b'{"config": "of what goes"}'


def call(root: Path, *arguments: str | Path) -> Result:
    """Run ``registry-gc`` with JSON output and its state beside *root*."""
    from registry_gc.cli.main import registry_gc

    state = root.with_name(f"{root.name}.state")
    words = [*map(str, arguments), "--state-dir", str(state), "--output", "json"]
    answer = CliRunner().invoke(registry_gc, words)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    document: dict[str, Any] = json.loads(answer.stdout) if answer.stdout else {}
    if document:
        assert document["exit_code"] == answer.exit_code
    return Result(answer.exit_code, document, answer.stdout, answer.stderr)


def plan(root: Path, *arguments: str, readonly: bool = True) -> Path:
    """Plan for *root*; returns the plan."""
    file = root.with_name(f"{root.name}.plan")
    made = call(root, "plan", write_config(root, readonly=readonly), "-o", file, *arguments)
    assert made.exit_code in (0, 3), made.errors
    assert made.json["dry_run"]
    return file


def apply(root: Path, file: Path, *arguments: str) -> Result:
    """Carry *file* out; the registry is read-only by now."""
    write_config(root)
    return call(root, "apply", file, *arguments)


def codes(result: Result) -> set[str]:
    """The codes of all findings."""
    return {finding["code"] for finding in result.json["guard"]["findings"]}


def states(file: Path) -> dict[str, int]:
    """How many rows of a plan are in each state."""
    with closing(sqlite3.connect(file)) as connection, connection:
        return dict(connection.execute("SELECT state, count(*) FROM deletions GROUP BY state"))


@pytest.fixture(autouse=True)
def by_name() -> Iterator[None]:
    """Layer links are told by name, as in large registries: less is known of them then."""
    with windows({"link_ages.FEW": 0}):
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry in which an image was untagged by a push, and a layer was never used."""
    disk = Disk(tmp_path)
    disk.tree.image("app", "latest", layers=[b"base", b"old"], config=CONFIG)
    disk.tree.image("app", "latest", layers=[b"base", b"new"])
    disk.tree.layer("app", b"never used")
    disk.tree.image("other", "v1", layers=[b"base"])
    disk.age(30 * DAY)
    return disk


OLD = blob_path(sha256(b"old"))


def untagged(disk: Disk) -> str:
    """The digest of the manifest that goes with ``-m``."""
    current = (disk.root / tag_path("app", "latest")).read_text()
    history = f"{repository_path('app')}/_manifests/tags/latest/index/"
    entries = {path.split("/")[-2] for path in disk.files() if path.startswith(history)}
    (found,) = {f"sha256:{entry}" for entry in entries} - {current}
    return found


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


# What is pushed in between

Push = Callable[[RegistryTree, str], object]


def push_again(tree: RegistryTree, goes: str) -> None:
    """The image that was to go is pushed and tagged: its blobs are there, its links are new."""
    tree.image("app", "again", layers=[b"base", b"old"], config=CONFIG)


def tag_again(tree: RegistryTree, goes: str) -> None:
    """The manifest that was to go is tagged; nothing else is written."""
    tree.tag("app", "again", goes)


def push_by_digest(tree: RegistryTree, goes: str) -> None:
    """Its manifest is pushed by digest, so that only the revision's link is new."""
    tree.write(revision_path("app", goes), goes.encode())


def push_by_digest_elsewhere(tree: RegistryTree, goes: str) -> None:
    """The same in another repository."""
    tree.write(revision_path("elsewhere", goes), goes.encode())


def index_it(tree: RegistryTree, goes: str) -> None:
    """It becomes a child of an index."""
    tree.index("app", "multi", [goes])


def tag_and_tag_away(tree: RegistryTree, goes: str) -> None:
    """A tag is set to it and then to something else: only an entry in its history is new."""
    tree.tag("app", "hop", goes)
    tree.tag("app", "hop", tree.image("app", layers=[b"something else"]))


def mount(tree: RegistryTree, goes: str) -> None:
    """Its layer is mounted into another repository, to which no manifest was pushed yet."""
    tree.link_layer("elsewhere", sha256(b"old"))


def use_in_another_image(tree: RegistryTree, goes: str) -> None:
    """Its layer becomes part of another image, in another repository."""
    tree.image("elsewhere", "v1", layers=[b"old"])


def use_in_an_untagged_image(tree: RegistryTree, goes: str) -> None:
    """Its layer becomes part of an image without a tag."""
    tree.image("elsewhere", None, layers=[b"old"])


PUSHES: dict[Push, bool] = {
    push_again: True,
    tag_again: True,
    push_by_digest: True,
    push_by_digest_elsewhere: True,
    index_it: True,
    tag_and_tag_away: True,
    mount: False,
    use_in_another_image: False,
    use_in_an_untagged_image: False,
}
"""Each push, and whether it reuses all of the image that was to go, or its layer only."""


def as_a_registry_writes(disk: Disk, shift: float) -> RegistryTree:
    """Writes links always and blobs where they are missing; *shift* is the clock's error."""

    def write(path: str, data: bytes) -> None:
        if "/blobs/" not in path or not disk.has(path):
            disk.write(path, data)
            then = time.time() + shift
            os.utime(disk.root / path, (then, then))

    return RegistryTree(write)


@pytest.mark.parametrize("shift", [0, -365 * DAY, DAY], ids=["right", "a year slow", "a day fast"])
@pytest.mark.parametrize("push", PUSHES, ids=lambda push: push.__name__)
def test_a_push_between_plan_and_apply_keeps_what_it_reuses(
    disk: Disk, push: Push, shift: float
) -> None:
    """Also where the clock of who pushed says that it was long before the plan."""
    file = plan(disk.root, "-m")
    goes = untagged(disk)
    push(as_a_registry_writes(disk, shift), goes)
    done = apply(disk.root, file)
    assert done.exit_code == 0, done.errors
    assert done.json["taken_back"] > 0
    assert disk.has(OLD)
    assert not disk.has_blob(sha256(b"never used"))
    if PUSHES[push]:
        assert disk.has_blob(goes)
        assert disk.has_blob(sha256(CONFIG))
    current = (disk.root / tag_path("app", "latest")).read_text()
    assert disk.has_image("app", current)


@pytest.mark.parametrize("shift", [0, -365 * DAY], ids=["right", "a year slow"])
def test_without_m_too_what_is_pushed_between_plan_and_apply_stays(
    disk: Disk, shift: float
) -> None:
    file = plan(disk.root)
    tree = as_a_registry_writes(disk, shift)
    tree.image("elsewhere", None, layers=[b"never used"])
    done = apply(disk.root, file)
    assert done.exit_code == 0
    assert disk.has_layer("elsewhere", sha256(b"never used"))


@pytest.mark.parametrize("shift", [0, -365 * DAY], ids=["right", "a year slow"])
def test_a_blob_that_was_written_anew_stays(disk: Disk, shift: float) -> None:
    """As after a delete by others and a push of which the links are still to come."""
    file = plan(disk.root, "-m")
    disk.write(OLD, b"old")
    os.utime(disk.root / OLD, (time.time() + shift,) * 2)
    done = apply(disk.root, file)
    assert done.exit_code == 0
    assert disk.has(OLD)
    with closing(sqlite3.connect(file)) as connection, connection:
        query = "SELECT error FROM deletions WHERE state = 'taken back' AND path = ?"
        assert connection.execute(query, (OLD,)).fetchall() != []


def test_an_upload_that_goes_on_after_the_plan_stays(disk: Disk) -> None:
    disk.tree.upload("app", "one", "2020-01-01T00:00:00Z", b"half")
    disk.tree.upload("app", "two", "2020-01-01T00:00:00Z", b"half")
    disk.age(30 * DAY)
    file = plan(disk.root)
    folder = f"{repository_path('app')}/_uploads"
    disk.write(f"{folder}/one/data", b"half and a bit more")
    done = apply(disk.root, file)
    assert done.json["uploads"] == {"eligible": 1, "deleted": 1, "deleted_bytes": 24}
    assert disk.has(f"{folder}/one/startedat")
    assert not disk.has(f"{folder}/two/startedat")


def test_a_repository_that_must_be_held_by_now_loses_nothing(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    before = {path for path in disk.files() if path.startswith(repository_path("app"))}
    disk.write(tag_path("app", "latest"), b"")
    done = apply(disk.root, file)
    assert done.exit_code == 3
    assert done.held == {"app"}
    assert {path for path in disk.files() if path.startswith(repository_path("app"))} == before
    assert disk.has(OLD)
    assert disk.has_blob(sha256(b"never used"))


def test_what_has_become_garbage_since_is_left_to_the_next_plan(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    disk.remove(tag_path("other", "v1"))
    done = apply(disk.root, file)
    assert done.exit_code == 0
    assert any(path.startswith(repository_path("other")) for path in disk.files())
    assert done.json["repositories"]["emptied"] == 0


def test_what_others_have_deleted_by_then_is_gone_and_not_taken_back(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    goes = untagged(disk)
    for path in (OLD, revision_path("app", goes), layer_link_path("app", sha256(b"old"))):
        disk.remove(path)
    disk.remove(f"{repository_path('app')}/_manifests/tags/latest/index/sha256/{goes[7:]}/link")
    done = apply(disk.root, file)
    assert done.exit_code == 0
    assert (done.json["already_gone"], done.json["taken_back"]) == (4, 0)
    assert not empty_folders(disk.root)


@FEW
@given(registries(longest=8), registries(longest=8), st.booleans(), st.booleans())
def test_whatever_is_pushed_in_between_goes_only_if_a_collection_would_delete_it_too(
    registry: Registry, later: Registry, delete_untagged: bool, behind: bool
) -> None:
    with scratch() as folder:
        root = folder / "registry"
        write_files(root, registry.files, registry.now)
        # All of it is old, whatever the first story says of some.
        files = {path: File(file.data, DAY) for path, file in registry.files.items()}
        write_files(root, files, registry.now)
        file = plan(root, *["-m"] * delete_untagged, *ALONE)
        planned = files_below(root)
        shift = 365 * DAY if behind else 0
        pushed = {
            path: File(entry.data, shift)
            for path, entry in later.files.items()
            if "/blobs/" not in path or path not in planned
        }
        write_files(root, pushed, time.time())
        now = files | pushed
        before = expect(files, delete_untagged=delete_untagged, now=registry.now)
        # What is pushed is young, whatever its clock says.
        young = {path: File(entry.data, 0.0) for path, entry in pushed.items()}
        after = expect(files | young, delete_untagged=delete_untagged, grace=HOUR, now=registry.now)
        done = apply(root, file, "--allow-empty", "--accept-shrink")
        assert done.exit_code in (0, 3)
        deleted = set(now) - files_below(root)
        assert deleted <= before.dead & after.dead
        assert deleted == before.dead & after.dead


# What is refused


def refused(disk: Disk, file: Path, code: str, *arguments: str) -> None:
    """Applying is refused with this finding, and nothing is deleted."""
    before = disk.files()
    done = apply(disk.root, file, *arguments)
    assert done.exit_code == 4, done.errors
    assert code in codes(done)
    assert disk.files() == before


def test_while_the_registry_may_be_written_to_a_plan_is_made_and_not_applied(disk: Disk) -> None:
    file = plan(disk.root, "-m", readonly=False)
    before = disk.files()
    write_config(disk.root, readonly=False)
    done = call(disk.root, "apply", file)
    assert done.exit_code == 4
    assert "writable-config" in codes(done)
    assert disk.files() == before
    assert apply(disk.root, file).exit_code == 0
    assert not disk.has(OLD)


def test_a_plan_made_while_the_registry_is_in_use_has_a_grace_of_a_day(disk: Disk) -> None:
    disk.age(23 * HOUR, below=OLD.rpartition("/")[0])
    made = call(
        disk.root, "plan", write_config(disk.root, readonly=False), "-m", "--grace", "1h",
        "-o", disk.folder / "in-use",
    )  # fmt: skip
    assert "24 h" in made.errors
    readonly = call(
        disk.root, "plan", write_config(disk.root), "-m", "--grace", "1h",
        "-o", disk.folder / "read-only",
    )  # fmt: skip
    assert readonly.json["blobs"]["eligible"] == made.json["blobs"]["eligible"] + 1
    longer = call(
        disk.root, "plan", write_config(disk.root, readonly=False), "-m", "--grace", "60d",
        "-o", disk.folder / "longer",
    )  # fmt: skip
    assert longer.json["blobs"]["eligible"] == 0


ALTERATIONS = {
    "a path": "UPDATE deletions SET path = replace(path, 'a', 'b') WHERE id = 1",
    "a size": "UPDATE deletions SET size = size + 1 WHERE id = 2",
    "a reason": "UPDATE deletions SET reason = '' WHERE id = 1",
    "a row less": "DELETE FROM deletions WHERE id = (SELECT max(id) FROM deletions)",
    "a row more": "INSERT INTO deletions (phase, kind, path, size, reason) "
    "VALUES (5, 'blob', 'docker/registry/v2/blobs/sha256/aa/data', 1, 'so')",
    "old versions more": "INSERT INTO deletions (phase, kind, path, size, reason) "
    "VALUES (7, 'versions', 'docker/registry/v2/blobs/sha256/aa/data', 1, 'so')",
    "an option": "UPDATE meta SET value = 'false' WHERE key = 'delete_untagged'",
    "no option": "DELETE FROM meta WHERE key = 'quarantine'",  # which says null
    "the cut-off": "UPDATE meta SET value = value + 1e9 WHERE key = 'cutoff'",
    "the time": "UPDATE meta SET value = value + 1 WHERE key = 'listed'",
    "what was seen": "UPDATE links SET words = zeroblob(length(words))",
    "nothing seen": "DELETE FROM links",
    "no seal": "DELETE FROM meta WHERE key = 'seal'",
    "no count": "DELETE FROM meta WHERE key = 'sealed_rows'",
    "no JSON": "UPDATE meta SET value = '{' WHERE key = 'cutoff'",
}


@pytest.mark.parametrize("what", ALTERATIONS)
def test_a_plan_that_was_altered_is_refused(disk: Disk, what: str) -> None:
    file = plan(disk.root, "-m")
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(ALTERATIONS[what]).rowcount > 0
    refused(disk, file, "plan-altered", "--config", str(write_config(disk.root)))


def test_how_far_the_rows_have_come_is_no_alteration(disk: Disk) -> None:
    """And a state that is wrong deletes nothing that is not dead."""
    file = plan(disk.root, "-m")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE deletions SET state = 'failed', error = 'x', finished = 1")
    assert apply(disk.root, file).exit_code == 0
    assert not disk.has(OLD)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.75, 0.99])
def test_a_plan_that_was_cut_short_is_refused(disk: Disk, part: float) -> None:
    for number in range(300):
        disk.tree.layer("app", b"%d" % number)
    disk.age(30 * DAY)
    file = plan(disk.root, "-m")
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    before = disk.files()
    for config in ([], ["--config", str(write_config(disk.root))]):
        done = apply(disk.root, file, *config)
        assert done.exit_code == 4
        assert done.json["guard"]["verdict"] == "refused"
        assert done.json["error"] in done.errors
        assert codes(done) & {"plan-altered", "plan-unusable"}
    assert disk.files() == before


@pytest.mark.parametrize("content", [b"", b"no database at all, but a text of some length" * 9])
def test_what_is_no_plan_is_refused(disk: Disk, content: bytes) -> None:
    file = disk.folder / "file"
    file.write_bytes(content)
    for config in ([], ["--config", str(write_config(disk.root))]):
        done = apply(disk.root, file, *config)
        assert done.exit_code == 4
        assert codes(done) & {"plan-altered", "plan-unusable"}
    assert file.read_bytes() == content


def test_rot_in_any_page_of_a_plan_deletes_nothing_that_is_live(disk: Disk) -> None:
    """A flipped byte is noticed, or it was in what may change."""
    for number in range(100):
        disk.tree.layer("app", b"%d" % number)
    disk.age(30 * DAY)
    file = plan(disk.root, "-m")
    data = bytearray(file.read_bytes())
    config = str(write_config(disk.root))
    for at in range(100, len(data), len(data) // 40):
        rotten = bytearray(data)
        rotten[at] ^= 0x55
        file.write_bytes(rotten)
        before = disk.files()
        done = apply(disk.root, file, "--config", config, "--max-delete", "0")
        assert done.exit_code in (1, 4), at
        assert disk.files() == before


def test_the_file_of_a_dry_run_is_no_plan(disk: Disk) -> None:
    file = disk.folder / "dry"
    dry = call(disk.root, "run", write_config(disk.root), "--dry-run", "--run-file", file)
    assert dry.exit_code == 0
    refused(disk, file, "plan-unusable")


def test_a_plan_for_another_storage_is_refused(disk: Disk, tmp_path: Path) -> None:
    other = Disk(tmp_path / "other")
    other.tree.image("app", "latest")
    file = plan(disk.root, "-m")
    before = other.files()
    done = apply(other.root, file, "--config", str(write_config(other.root)))
    assert done.exit_code == 4
    assert "plan-elsewhere" in codes(done)
    assert other.files() == before


# Clocks


def shift_clock(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the storage's clock is wrong by *seconds*."""
    now = time.time
    patch.setattr(FilesystemStorage, "now", lambda _: now() + seconds)


def test_a_plan_is_too_old_after_a_week_or_when_wanted(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plan(disk.root, "-m")
    shift_clock(monkeypatch, 6 * DAY)
    refused(disk, file, "plan-too-old", "--max-age", "5d")
    shift_clock(monkeypatch, 8 * DAY)
    refused(disk, file, "plan-too-old")
    assert apply(disk.root, file, "--max-age", "9d").exit_code == 0
    assert not disk.has(OLD)


def test_a_plan_from_the_future_is_refused(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    file = plan(disk.root, "-m")
    shift_clock(monkeypatch, -HOUR)
    refused(disk, file, "plan-from-the-future")


def test_a_clock_that_jumps_between_plan_and_apply_and_back_makes_nothing_dead(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is made a day ahead of time; what is pushed afterwards looks older than it."""
    with pytest.MonkeyPatch.context() as patch:
        shift_clock(patch, DAY)
        file = plan(disk.root, "-m", "--grace", "1h")
    tag_again(as_a_registry_writes(disk, 0), untagged(disk))
    goes = untagged(disk)
    shift_clock(monkeypatch, 2 * DAY)
    done = apply(disk.root, file)
    assert done.exit_code == 0
    assert disk.has_image("app", goes)


# Showing


def show(file: Path, form: str) -> str:
    """What ``plan show`` prints."""
    from registry_gc.cli.main import registry_gc

    answer = CliRunner().invoke(registry_gc, ["plan", "show", str(file), "--format", form])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def test_a_plan_can_be_shown_to_people_and_programs(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    rows = [json.loads(line) for line in show(file, "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(show(file, "csv"))))
    assert [row["path"] for row in rows] == [row["path"] for row in table]
    assert {row["state"] for row in rows} == {"planned"}
    assert {row["kind"] for row in rows} == {"tag-index", "revision", "layer-link", "blob"}
    assert {row["path"] for row in rows} >= {OLD}
    text = show(file, "text")
    assert str(disk.root) in text
    assert OLD in text
    apply(disk.root, file)
    assert {json.loads(line)["state"] for line in show(file, "jsonl").splitlines()} == {"deleted"}
    assert "applied" in show(file, "text")


def test_what_is_no_plan_cannot_be_shown(tmp_path: Path) -> None:
    from registry_gc.cli.main import registry_gc

    (tmp_path / "file").write_bytes(b"x" * 5000)
    answer = CliRunner().invoke(registry_gc, ["plan", "show", str(tmp_path / "file")])
    assert answer.exit_code == 1
    assert answer.stderr.count("\n") == 1


def test_a_plan_holds_no_secret(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1")
    disk.age(30 * DAY)
    config = write_config(disk.root)
    document = yaml.safe_load(config.read_text())
    document["http"] = {"secret": "very-secret-word"}
    config.write_text(yaml.safe_dump(document))
    file = tmp_path / "plan"
    assert call(disk.root, "plan", config, "-o", file).exit_code == 0
    assert b"very-secret-word" not in file.read_bytes()


def test_a_plan_never_replaces_a_file(disk: Disk) -> None:
    file = plan(disk.root, "-m")
    data = file.read_bytes()
    again = call(disk.root, "plan", write_config(disk.root), "-o", file)
    assert again.exit_code == 1
    assert "exists already" in again.errors
    assert file.read_bytes() == data


def test_show_is_a_command_and_every_other_word_a_config(disk: Disk) -> None:
    from registry_gc.cli.main import registry_gc

    for arguments, code in ((["plan"], 2), (["plan", "show"], 2), (["plan", "--help"], 0)):
        answer = CliRunner().invoke(registry_gc, arguments)
        assert answer.exit_code == code
    os.chdir(disk.folder)
    write_config(disk.root).rename(disk.folder / "show")
    assert call(disk.root, "plan", "./show", "-o", disk.folder / "shown").exit_code == 0


@pytest.mark.parametrize(
    ("left", "goes"),
    [
        ({"ended": 1.0}, True),
        ({"process": "dead"}, True),
        ({"process": "alive"}, False),
        ({}, False),
        ({"ended": 1.0, "planned": True}, False),
        ({"ended": 1.0, "purpose": "run"}, False),
    ],
)
def test_what_an_interrupted_plan_has_left_is_in_nobodys_way(
    tmp_path: Path, left: dict[str, Any], goes: bool
) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1", layers=[b"live"])
    disk.age()
    current = asdict(Process.current())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    processes = {"alive": current, "dead": {**current, "pid": ended.pid}}
    file = tmp_path / "plan"
    begun = PlanFile.create(str(file))
    said = {**left, "process": processes[left["process"]]} if "process" in left else left
    begun.record_meta(**{"purpose": "plan", **said})
    begun.close()
    again = call(disk.root, "plan", write_config(disk.root), "-o", file)
    assert again.exit_code == (0 if goes else 1), again.errors
    assert goes or "exists already" in again.errors
