"""Plans that are not carried out: altered, cut short, too old, or for another storage."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from applying.support import DAY, OLD, apply, call, codes, plan, shift_clock
from model import HOUR
from running import Disk, write_config

pytestmark = pytest.mark.usefixtures("by_name")

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
