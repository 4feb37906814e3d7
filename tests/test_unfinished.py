"""What a run that was killed had not made whole: copies across disks, and a lock's first lines."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from aside import DAY, Registry
from registry_tree import blob_path, sha256
from running import OWN_FOLDER

BLOB = blob_path(sha256(b"a layer"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """On disk, with one image that is tagged and one that is not."""
    made = Registry(tmp_path, None)
    tree = made.tree()
    tree.image("app", "v1", layers=[b"base"], config=b'"one"')
    tree.image("old", layers=[b"a layer"], config=b'"two"')
    return made


def unfinished(beside: str) -> str:
    """A name that we give to what is not whole yet, in the folder of *beside*."""
    return f"{beside.rpartition('/')[0]}/.registry-gc-{uuid.uuid4().hex}.tmp"


def put(registry: Registry, path: str, *, age: float = 0.0) -> Path:
    """Write half a copy that is *age* seconds old."""
    file = registry.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"half of it")
    when = file.stat().st_mtime - age
    os.utime(file, (when, when))
    return file


@pytest.mark.parametrize("by", ["restore", "purge"])
def test_half_a_copy_in_quarantine_is_not_brought_back_and_goes_with_the_rest(
    registry: Registry, by: str
) -> None:
    before = registry.files()
    run = registry.quarantine().json["run"]
    home = f"{OWN_FOLDER}/quarantine/{run}/"
    put(registry, home + unfinished(BLOB))
    put(registry, home + unfinished("run.json").lstrip("/"))
    only = blob_path(sha256(b"nothing else there"))
    put(registry, home + unfinished(only))
    (registry.root / home / unfinished(f"{BLOB.rpartition('/')[0]}")).mkdir()
    if by == "restore":
        done = registry.command("restore", run)
        assert (done.exit_code, done.json["restored"].get("other")) == (0, None)
        assert registry.files() == before
    else:
        registry.later = 8 * DAY
        (purged,) = registry.purge().json["runs"]
        assert (purged["deleted"], purged["failed"]) == (6, [])
    assert registry.own() == set()
    assert not (registry.root / OWN_FOLDER / "quarantine").exists()


def test_a_collection_removes_what_is_left_of_copies_where_nobody_can_be_at_it(
    registry: Registry,
) -> None:
    outside = registry.folder / "somebody's"
    outside.write_bytes(b"1")
    in_blobs = blob_path(sha256(b"never came back"))
    in_links = f"docker/registry/v2/repositories/app/_layers/sha256/{sha256(b'n')[7:]}/link"
    for beside in (in_blobs, in_links, f"{OWN_FOLDER}/lock"):
        put(registry, unfinished(beside), age=2 * DAY)
    young = [put(registry, unfinished(path)) for path in (BLOB, in_links, f"{OWN_FOLDER}/lock")]
    almost = put(registry, f"{in_blobs.rpartition('/')[0]}/.registry-gc-1.tmp", age=2 * DAY)
    link = registry.root / unfinished(f"{OWN_FOLDER}/lock")
    link.symlink_to(outside)
    left = {*young, almost, link, outside}
    registry.collect("-m", "--dry-run")
    assert len(list(registry.folder.rglob("*.tmp"))) == 3 + len(left) - 1
    done = registry.collect("-m")
    assert done.exit_code == 0, done
    assert {path for path in left if path.exists()} == left
    assert len(list(registry.folder.rglob("*.tmp"))) == len(left) - 1
    assert link.is_symlink()


def test_folders_go_that_held_nothing_but_half_a_copy(registry: Registry) -> None:
    never = blob_path(sha256(b"never came back"))
    put(registry, unfinished(never), age=2 * DAY)
    registry.collect("-m")
    assert not (registry.root / never).parent.exists()


def test_a_registry_in_use_keeps_them(registry: Registry) -> None:
    file = put(registry, unfinished(blob_path(sha256(b"never"))), age=2 * DAY)
    registry.collect("-m", "--allow-writable", "--quarantine", "24h")
    assert file.exists()
