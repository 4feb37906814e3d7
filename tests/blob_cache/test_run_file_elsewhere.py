"""What Redis has not forgotten is found again by the next run, wherever the run file lies."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from blob_cache.support import KEPT, ORPHAN, STAY, config_with, lose, remember_all, restore, run
from registry_gc.blob_cache.forgetting import RedisCache
from registry_gc.blob_cache.journals import Journals
from registry_gc.run_file import RunFile
from running import Disk, collect
from servers.redis import RedisServer, entries


@pytest.fixture
def unfinished(
    disk: Disk, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The run file, elsewhere, of a run that deleted everything and then lost Redis."""
    remember_all(redis)
    plain = RedisCache.settled

    def settled(cache: RedisCache, *told: Any) -> None:
        lose(redis)
        plain(cache, *told)

    with monkeypatch.context() as inside:
        inside.setattr(RedisCache, "settled", settled)
        inside.setattr("registry_gc.permission.Permission.look", lambda session: None)
        path = tmp_path / "elsewhere"
        result = run(disk, {"addr": redis.address}, "--run-file", str(path))
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (1, 3), result.errors
    assert f"registry-gc apply {path}" in result.json["error"]
    assert not disk.has_blob(ORPHAN)
    restore(redis)
    return path


def notes(disk: Disk) -> list[Path]:
    return [*disk.root.with_name("registry.state").glob("unforgotten/*")]


def check_caught_up(disk: Disk, redis: RedisServer, run_file: Path) -> None:
    assert entries(redis, [KEPT, ORPHAN]) | {"repository::a::blobs"} == STAY
    file = RunFile.existing(str(run_file))
    assert file.meta()["blob_cache"] == "forgotten"
    file.close()
    assert notes(disk) == []


def test_the_next_run_finds_a_run_file_that_lies_elsewhere(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    (note,) = notes(disk)
    assert json.loads(note.read_text())["run_file"] == str(unfinished)
    result = run(disk, {"addr": redis.address})
    assert result.exit_code == 0, result.errors
    check_caught_up(disk, redis, unfinished)


def test_the_same_command_removes_what_its_finished_run_has_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    command = ("--run-file", str(unfinished))
    result = run(disk, {"addr": redis.address}, *command)
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (0, 0), result.errors
    check_caught_up(disk, redis, unfinished)
    assert "exists already" in run(disk, {"addr": redis.address}, *command).errors


def test_a_run_that_a_limit_refuses_removes_what_is_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    disk.tree.layer("b", b"more")
    result = run(disk, {"addr": redis.address}, "--max-delete", "0")
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (4, 0), result.errors
    check_caught_up(disk, redis, unfinished)


def test_a_dry_run_counts_what_is_left(disk: Disk, redis: RedisServer, unfinished: Path) -> None:
    result = run(disk, {"addr": redis.address}, "--dry-run")
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (0, 3), result.errors
    assert f"registry-gc apply {unfinished}" in result.errors


def test_the_storage_may_be_named_by_another_path(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    link = disk.root.with_name("link")
    link.symlink_to(disk.root)
    config = config_with(disk, {"addr": redis.address})
    config.write_text(config.read_text().replace(str(disk.root), str(link)))
    result = collect(disk.root, config=config)
    assert result.exit_code == 0, result.errors
    check_caught_up(disk, redis, unfinished)


def test_as_long_as_redis_is_gone_nobody_forgets_what_is_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    lose(redis)
    result = run(disk, {"addr": redis.address})
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (4, 3)
    assert len(notes(disk)) == 1
    restore(redis)
    run(disk, {"addr": redis.address})
    check_caught_up(disk, redis, unfinished)


def test_a_run_file_that_is_gone_is_told_with_the_note_about_it(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    unfinished.unlink()
    (note,) = notes(disk)
    for _ in range(2):
        result = run(disk, {"addr": redis.address})
        assert f"then remove {note}" in result.errors
    note.unlink()
    assert "unforgotten" not in run(disk, {"addr": redis.address}).errors


def test_a_note_that_cannot_be_read_is_told(disk: Disk, redis: RedisServer) -> None:
    note = disk.root.with_name("registry.state") / "unforgotten" / "x.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(b'{"run_fi')
    result = run(disk, {"addr": redis.address})
    assert result.exit_code == 0
    assert f"whether its entries are in Redis is not known: {note}" in result.errors


def test_without_room_for_notes_they_are_where_the_next_run_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unforgotten").touch()
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for module in ("runs.state_dir", "blob_cache.journals"):
        monkeypatch.setattr(f"registry_gc.{module}.IN_MEMORY", (str(memory),))
    told: list[str] = []
    Journals(str(tmp_path), told.append).begun("/x/run", "filesystem", "/srv")
    assert told == ["/x/run"]
    later = Journals(str(tmp_path / "another"))
    assert later.paths("filesystem", "/srv") == ["/x/run"]
    assert later.paths("filesystem", "/another") == []
    later.done("/x/run")
    assert later.paths("filesystem", "/srv") == []


def test_where_nobody_would_find_the_run_file_nothing_is_deleted(
    disk: Disk, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = disk.root.with_name("registry.state")
    state.mkdir()
    (state / "unforgotten").touch()
    monkeypatch.setattr("registry_gc.blob_cache.journals.IN_MEMORY", (str(tmp_path / "missing"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    result = run(disk, {"addr": redis.address}, "--run-file", str(tmp_path / "elsewhere"))
    assert result.exit_code == 1
    assert "no note about" in result.json["error"]
    assert disk.has_blob(ORPHAN)
