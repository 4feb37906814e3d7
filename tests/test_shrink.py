"""A registry that has lost half of itself since the last run: not believed without a word."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from applying.support import apply, codes, plan
from model import HOUR
from registry_gc.runs.shrink import NOTHING, Seen, memory_path, remember, remembered
from registry_tree import repository_path
from running import Disk, Result, collect

MANY = 12


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Twelve repositories of one tag each, and a layer that nobody needs."""
    disk = Disk(tmp_path)
    for number in range(MANY):
        disk.tree.image(f"team/{number}", "v1", layers=[b"%d" % number])
    orphan(disk, b"first")
    assert disk.collect().exit_code == 0
    return disk


def orphan(disk: Disk, data: bytes) -> str:
    """Push a layer that no manifest references."""
    digest = disk.tree.layer("team/0", data)
    disk.age(2 * HOUR)
    return digest


def lose(disk: Disk, *numbers: int) -> None:
    """Some repositories are not there any more, as when their disk is not mounted."""
    for number in numbers:
        shutil.rmtree(disk.root / repository_path(f"team/{number}"))


def assert_refused(result: Result, disk: Disk, digest: str) -> None:
    assert result.exit_code == 4
    assert "shrunk" in codes(result)
    assert "--accept-shrink" in result.errors
    assert disk.has_blob(digest)


def test_when_half_of_the_repositories_are_gone_nothing_is_deleted(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    lose(disk, *range(MANY // 2, MANY))
    before = disk.files()
    for _ in range(2):
        refused = disk.collect()
        assert_refused(refused, disk, digest)
        assert "12 repositories have become 6" in refused.errors
    assert disk.files() == before


def test_when_half_of_the_tags_are_gone_nothing_is_deleted(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    for number in range(6):
        shutil.rmtree(disk.root / repository_path(f"team/{number}") / "_manifests/tags")
    refused = disk.collect()
    assert_refused(refused, disk, digest)
    assert "12 tags have become 6" in refused.errors


def test_a_dry_run_says_so_and_forgets_nothing(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    lose(disk, *range(MANY // 2, MANY))
    for _ in range(2):
        dry = disk.collect("--dry-run")
        assert dry.exit_code == 0
        assert "shrunk" in codes(dry)
    assert_refused(disk.collect(), disk, digest)


def test_what_is_meant_is_accepted_once_and_is_known_from_then_on(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    lose(disk, *range(MANY // 2, MANY))
    assert disk.collect("--accept-shrink").exit_code == 0
    assert not disk.has_blob(digest)
    second = orphan(disk, b"y")
    assert disk.collect().exit_code == 0
    assert not disk.has_blob(second)


def test_a_little_less_than_half_is_believed(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    lose(disk, *range(7, MANY))
    assert disk.collect().exit_code == 0
    assert not disk.has_blob(digest)


def test_what_a_run_itself_empties_does_not_stop_the_next(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("kept", "v1")
    for number in range(MANY):
        disk.tree.image(f"untagged/{number}", None, layers=[b"%d" % number])
    first = disk.collect("-m")
    assert first.exit_code == 0
    assert first.json["repositories"]["emptied"] == MANY
    assert disk.collect("-m").exit_code == 0


def test_each_storage_has_a_memory_of_its_own(disk: Disk, tmp_path: Path) -> None:
    other = Disk(tmp_path / "other")
    other.tree.image("app", "v1")
    other.age(2 * HOUR)
    shutil.copytree(tmp_path / "registry.state", tmp_path / "other/registry.state")
    assert collect(other.root).exit_code == 0


def test_an_apply_is_refused_too_and_accepts_too(disk: Disk) -> None:
    digest = orphan(disk, b"x")
    file = plan(disk.root)
    lose(disk, *range(MANY // 2, MANY))
    assert_refused(apply(disk.root, file), disk, digest)
    assert apply(disk.root, file, "--accept-shrink").exit_code == 0
    assert not disk.has_blob(digest)


@pytest.mark.parametrize(
    ("before", "after", "shrunk"),
    [
        ((2, 2), (1, 1), False),
        ((5, 5), (1, 1), False),
        ((5, 5), (0, 5), True),
        ((8, 9), (4, 9), False),
        ((10, 9), (5, 9), True),
        ((11, 9), (6, 9), False),
        ((1, 100), (1, 50), True),
        ((1, 100), (1, 51), False),
        ((0, 0), (0, 0), False),
        ((10, 10), (100, 100), False),
    ],
)
def test_small_numbers_may_halve_large_ones_may_not(
    before: tuple[int, int], after: tuple[int, int], shrunk: bool
) -> None:
    assert bool(Seen(*before).lost(Seen(*after))) is shrunk


WRONG = [
    b"",
    b"{",
    b"[]",
    b'{"repositories": null, "tags": 1}',
    b'{"repositories": 1e999, "tags": 1}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", WRONG)
def test_a_memory_that_cannot_be_read_is_told_and_stops_nothing(disk: Disk, content: bytes) -> None:
    (file,) = (disk.folder / "registry.state/seen").iterdir()
    file.write_bytes(content)
    digest = orphan(disk, b"x")
    done = disk.collect()
    assert done.exit_code == 0
    assert str(file) in done.errors
    assert not disk.has_blob(digest)
    assert remembered(str(file)) == (Seen(MANY, MANY), "")


def test_a_memory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "seen").write_bytes(b"a file where a folder should be")
    path = memory_path(str(tmp_path), "filesystem", "/x")
    assert "could not be remembered" in remember(path, Seen(1, 1), "filesystem", "/x")
    assert remembered(memory_path(str(tmp_path / "none"), "s3", "b")) == (NOTHING, "")
    assert os.listdir(tmp_path) == ["seen"]


def test_a_memory_for_which_there_is_no_room_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", full)
    path = memory_path(str(tmp_path), "filesystem", "/root")
    assert "No space left" in remember(path, Seen(1, 1), "filesystem", "/root")
    assert [*Path(path).parent.iterdir()] == []


def test_a_memory_belongs_to_driver_and_root(tmp_path: Path) -> None:
    paths = {memory_path("/s", *where) for where in (("s3", "a"), ("s3", "b"), ("gcs", "a"))}
    assert len(paths) == 3
