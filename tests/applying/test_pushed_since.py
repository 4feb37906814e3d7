"""Whatever happens between plan and apply, nothing that is needed then is deleted."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from applying.support import (
    CONFIG,
    DAY,
    OLD,
    apply,
    as_a_registry_writes,
    plan,
    shift_clock,
    untagged,
)
from model import HOUR, File, expect
from registry_tree import (
    RegistryTree,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    tag_path,
)
from running import Disk, empty_folders, files_below, scratch, write_files
from strategies import Registry, registries
from test_against_model import ALONE, FEW

pytestmark = pytest.mark.usefixtures("by_name")

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


# Clocks


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
