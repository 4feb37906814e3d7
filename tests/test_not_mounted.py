"""A disk that is not there when a run begins: its manifests are gone, and their links look dead.

What is deleted then would be missed when the disk is back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from applying.support import call, codes
from aside import DAY, Registry
from model import V2
from registry_tree import blob_path, sha256, tag_path
from running import Disk, Result, collect, write_config

NAMES = [f"team/{number}" for number in range(8)]
BLOBS = f"{V2}/blobs"
ABSENT = {
    "an empty mount point": ["blobs"],
    "no mount point": [],
    "an empty folder of an algorithm": ["blobs", "blobs/sha256"],
}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    for name in NAMES:
        disk.tree.image(name, "v1", layers=[b"base", name.encode()])
        disk.tree.image(name, layers=[b"base", b"untagged " + name.encode()])
    disk.tree.layer(NAMES[0], b"dead")
    disk.age()
    return disk


@contextmanager
def unmounted(root: Path, left: list[str]) -> Iterator[None]:
    """``blobs`` is away, and *left* is what is there instead."""
    blobs, away = root / BLOBS, root.with_name("away")
    blobs.rename(away)
    for folder in left:
        (root / V2 / folder).mkdir()
    yield
    shutil.rmtree(blobs, ignore_errors=True)
    away.rename(blobs)


def assert_refused(result: Result, code: str) -> None:
    assert result.exit_code == 4, result.errors
    assert code in codes(result)
    assert result.json["blobs"]["deleted"] == 0
    assert result.json["layer_links"]["deleted"] == 0


@pytest.mark.parametrize("options", [[], ["-m"], ["-m", "--verify"], ["-m", "--quarantine", "1d"]])
@pytest.mark.parametrize("left", ABSENT.values(), ids=list(ABSENT))
def test_blobs_that_are_not_mounted_refuse_a_run(
    disk: Disk, left: list[str], options: list[str]
) -> None:
    before = disk.files()
    with unmounted(disk.root, left):
        dry = collect(disk.root, *options, "--dry-run")
        assert "no-live-manifests" in codes(dry)
        assert_refused(collect(disk.root, *options), "no-live-manifests")
    assert disk.files() == before


def test_nor_is_a_plan_carried_out(disk: Disk) -> None:
    config, plan = write_config(disk.root), disk.folder / "plan"
    assert call(disk.root, "plan", config, "-o", plan).exit_code == 0
    before = disk.files()
    with unmounted(disk.root, ["blobs"]):
        applied = call(disk.root, "apply", plan, "--config", config)
        assert applied.exit_code == 4, applied.errors
    assert disk.files() == before


def test_a_plan_that_was_made_without_the_disk_takes_nothing_that_is_needed(disk: Disk) -> None:
    config, plan = write_config(disk.root), disk.folder / "plan"
    with unmounted(disk.root, ["blobs"]):
        planned = call(disk.root, "plan", config, "-o", plan)
        assert "no-live-manifests" in codes(planned)
    before = disk.files()
    applied = call(disk.root, "apply", plan, "--config", config)
    gone = {path.split("/")[-2] for path in before - disk.files()}
    # Its blob was not there to be planned.
    assert gone == {sha256(b"dead").removeprefix("sha256:")}, applied.errors


def test_it_is_believed_where_the_operator_says_so(disk: Disk) -> None:
    with unmounted(disk.root, ["blobs"]):
        result = collect(disk.root, "--allow-empty")
    assert result.exit_code == 3
    assert not disk.has_link(NAMES[0], sha256(b"base"))


def test_a_registry_in_which_nothing_was_ever_pushed_is_no_lost_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.write(f"{V2}/repositories/app/_uploads/1/startedat", b"2020-01-01T00:00:00Z")
    disk.age(30 * DAY)
    result = collect(disk.root)
    assert result.exit_code == 0
    assert result.json["uploads"]["deleted"] == 1


def lose(disk: Disk, count: int) -> None:
    """The manifests of so many repositories are on a disk that is away."""
    for name in NAMES[:count]:
        for link in (disk.root / V2 / "repositories" / name).rglob("revisions/sha256/*/link"):
            (disk.root / blob_path(link.read_text())).unlink(missing_ok=True)


@pytest.mark.parametrize("options", [[], ["-m"], ["--verify"]])
def test_half_of_the_manifests_is_too_much(disk: Disk, options: list[str]) -> None:
    lose(disk, len(NAMES) // 2)
    before = disk.files()
    assert "missing-manifests" in codes(collect(disk.root, *options, "--dry-run"))
    result = collect(disk.root, *options)
    assert_refused(result, "missing-manifests")
    assert "8 of 16 linked manifests" in result.errors
    # What lifts another limit does not lift this one.
    assert_refused(collect(disk.root, *options, "--allow-empty"), "missing-manifests")
    assert disk.files() == before
    assert collect(disk.root, *options, "--accept-shrink").exit_code == 3
    assert not disk.has_blob(sha256(NAMES[0].encode()))


def test_what_was_accepted_once_is_accepted_until_more_is_missing(disk: Disk) -> None:
    for name in NAMES:
        disk.tree.image(name, "v2", layers=[b"more " + name.encode()])
    lose(disk, 5)
    disk.age()
    assert collect(disk.root).exit_code == 4
    assert collect(disk.root, "--accept-shrink").exit_code == 3
    assert collect(disk.root).exit_code == 3
    purged = call(disk.root, "purge", write_config(disk.root))
    assert purged.exit_code == 0, purged.errors
    lose(disk, 6)
    disk.age()
    assert_refused(collect(disk.root), "missing-manifests")


def test_what_was_too_few_to_be_refused_was_accepted_by_nobody(disk: Disk) -> None:
    """Of the linked manifests a third, and five of the eight that tags need."""
    for name in NAMES[:5]:
        digest = (disk.root / tag_path(name, "v1")).read_text()
        (disk.root / blob_path(digest)).unlink()
    assert collect(disk.root).exit_code == 3
    before = disk.files()
    assert_refused(collect(disk.root, "-m"), "missing-manifests")
    assert disk.files() == before


def test_so_is_half_of_those_that_tags_need(disk: Disk) -> None:
    """Of an old backup of ``blobs``, which has what has lost its tag since, and nothing newer."""
    for name in NAMES:
        disk.tree.image(name, layers=[b"older " + name.encode()])
    for name in NAMES[:5]:
        digest = (disk.root / tag_path(name, "v1")).read_text()
        (disk.root / blob_path(digest)).unlink()
    disk.age()
    assert collect(disk.root, "--dry-run").json["guard"]["verdict"] == "allowed"
    before = disk.files()
    result = collect(disk.root, "-m")
    assert_refused(result, "missing-manifests")
    assert "5 of 8 live manifests" in result.errors
    assert disk.files() == before
    assert collect(disk.root, "-m", "--accept-shrink").exit_code == 3


def test_less_than_half_is_damage(disk: Disk) -> None:
    lose(disk, len(NAMES) // 2 - 1)
    result = collect(disk.root)
    assert result.exit_code == 3
    assert len(result.json["damaged"]) == 6
    assert not disk.has_blob(sha256(NAMES[0].encode()))
    assert disk.has_blob(sha256(NAMES[-1].encode()))


def test_of_a_few_manifests_most_may_be_lost(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    for name in NAMES[:5]:
        disk.tree.image(name, "v1", layers=[name.encode()])
    disk.age()
    lose(disk, 4)
    result = collect(disk.root)
    assert result.exit_code == 3
    assert "missing-manifests" not in codes(result)


def test_children_that_are_missing_are_no_lost_manifests(tmp_path: Path) -> None:
    """A sparse index names platforms that nobody has copied."""
    disk = Disk(tmp_path)
    present = disk.tree.image("app", layers=[b"amd64"])
    absent = [sha256(b"absent %d" % number) for number in range(20)]
    disk.tree.index("app", "v1", [present, *absent])
    disk.age()
    result = collect(disk.root)
    assert result.exit_code == 0
    assert "missing-manifests" not in codes(result)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """With a layer in quarantine that a manifest needs again."""
    registry = Registry(tmp_path, None)
    tree = registry.tree()
    tree.image("app", "v1", layers=[b"stays"])
    unneeded = tree.image("app", layers=[b"needed again"])
    registry.quarantine()
    assert unneeded not in registry.files()
    registry.tree().image("app", "v2", layers=[b"needed again"], config=b'"v2"')
    registry.remove(blob_path(sha256(b"needed again")))
    registry.later += 30 * DAY
    return registry


def test_no_quarantine_is_purged(registry: Registry) -> None:
    with unmounted(registry.root, ["blobs"]):
        before = registry.read()
        done = registry.command("purge")
        assert done.exit_code == 4, done.errors
        assert "--allow-empty" in done.errors
        assert registry.read() == before
    assert registry.command("purge").exit_code == 0
    assert blob_path(sha256(b"needed again")) in registry.files()


def test_nothing_comes_back_to_where_the_disk_belongs(registry: Registry) -> None:
    with unmounted(registry.root, ["blobs"]):
        before = registry.read()
        assert_refused(registry.collect(), "no-live-manifests")
        assert registry.read() == before
    assert registry.collect().json["quarantine"]["recalled"]
    assert blob_path(sha256(b"needed again")) in registry.files()
