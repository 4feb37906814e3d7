"""Past runs: what their files tell, through deaths and damage, and which of them may go."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from registry_gc.machine.processes import Process
from registry_gc.report.past_runs import runs_lines
from registry_gc.report.tables import TableStyle
from registry_gc.run_file import RunFile
from registry_gc.runs.past import (
    PastRun,
    Pruned,
    RunState,
    beginning,
    ending,
    past_runs,
    prune,
    read_run,
)
from registry_gc.runs.rows import Row, RowKind, RowState
from registry_gc.usage.growth import read_growth
from registry_tree import repository_path
from running import Disk, collect, run


def name_of(number: int) -> str:
    """The name of the *number*th run file; later ones have larger numbers."""
    return f"20260101T{number:06d}Z-{number:08x}.sqlite"


def write_run(
    state: Path,
    number: int,
    *states: RowState | str,
    ended: bool = True,
    dry_run: bool = False,
    root: str = "/srv",
    exit_code: int = 0,
    **meta: Any,
) -> Path:
    """A run file with a row of ten bytes in each of *states*."""
    path = state / "runs" / name_of(number)
    run_file = RunFile.create(str(path))
    rows = [
        Row(RowKind.BLOB, None, f"sha256:{n}", f"p{n}", 10, 1.0, "why") for n in range(len(states))
    ]
    run_file.add(rows)
    batch = [number for number, _ in next(run_file.batches(RowKind.BLOB, 9999), [])]
    facts = {"run": f"{number:08x}-run", "driver": "filesystem", "root": root, "created": number}
    run_file.record_meta(**facts, dry_run=dry_run, delete_untagged=True, **meta)
    if ended:
        report = {"exit_code": exit_code, "seconds": {"total": 1.5}, "held": [1], "damaged": []}
        report |= {"blobs": {"total": 7}, "error": "it went wrong" if exit_code else None}
        run_file.record_meta(**ending(number + 1.0, report))
    run_file.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "UPDATE deletions SET state = ? WHERE id = ?", zip(states, batch, strict=True)
        )
    return path


def files(state: Path) -> list[str]:
    """The run files that are there."""
    return sorted(os.listdir(state / "runs"))


def names(*numbers: int) -> list[str]:
    """The names of run files."""
    return [name_of(number) for number in numbers]


# --- what a file tells --------------------------------------------------------------------------


def test_a_collection_tells_later_what_it_freed(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1")
    disk.tree.blob(b"an orphan")
    broken = disk.tree.image("b", "1")
    disk.write(f"{repository_path('b')}/_manifests/tags/1/current/link", b"")
    result = disk.collect()
    (found,) = past_runs(str(disk.root.with_name("registry.state")))
    assert result.exit_code == 3
    assert broken
    assert found.path == result.json["run_file"]
    assert found.run == result.json["run"]
    assert found.state is RunState.FINISHED
    assert found.complete
    assert (found.deleted_bytes, found.deleted["blob"]) == (len(b"an orphan"), 1)
    assert (found.exit_code, found.held, found.left) == (3, 1, 0)
    assert found.seconds is not None
    assert found.ended is not None
    assert (found.driver, found.root) == ("filesystem", str(disk.root))


def test_a_dry_run_is_finished_though_all_is_left(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1")
    disk.tree.blob(b"an orphan")
    disk.collect("--dry-run")
    (found,) = past_runs(str(disk.root.with_name("registry.state")))
    assert found.state is RunState.FINISHED
    assert not found.complete
    assert (found.left, found.deleted_bytes, found.eligible_bytes) == (1, 0, 9)


def test_what_a_run_came_to_is_counted_from_its_rows(tmp_path: Path) -> None:
    states = (RowState.DELETED, RowState.DELETED, RowState.FAILED, RowState.GONE_ALREADY)
    found = read_run(str(write_run(tmp_path, 1, *states)))
    assert (found.deleted_bytes, found.failed, found.gone_already) == (20, 1, 1)
    assert (found.held, found.damaged, found.blobs, found.seconds) == (1, 0, 7, 1.5)


def test_a_run_that_ended_with_rows_left_was_stopped(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1, RowState.DELETED, RowState.PLANNED, exit_code=5)
    found = read_run(str(path))
    assert (found.state, found.left, found.reason) == (RunState.STOPPED, 1, "it went wrong")


@pytest.mark.parametrize("exit_code", [1, 4, 5, 130, 143])
def test_a_run_that_was_ended_before_it_knew_what_to_delete_was_stopped(
    tmp_path: Path, exit_code: int
) -> None:
    found = read_run(str(write_run(tmp_path, 1, exit_code=exit_code)))
    assert (found.state, found.left) == (RunState.STOPPED, 0)
    # A signal that comes when all is done stops nothing.
    path = write_run(tmp_path, 2, RowState.DELETED, exit_code=exit_code, finished=1.0)
    assert read_run(str(path)).state is RunState.FINISHED


def test_a_run_whose_process_lives_is_running(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1, RowState.PLANNED, ended=False, **beginning())
    assert read_run(str(path)).state is RunState.RUNNING


def test_a_run_whose_process_has_died_was_stopped(tmp_path: Path) -> None:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json\n"
            "from registry_gc.runs.past import beginning\n"
            "print(json.dumps(beginning()))\n",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    path = write_run(tmp_path, 1, RowState.PLANNED, ended=False, **json.loads(child.stdout))
    assert read_run(str(path)).state is RunState.STOPPED


@pytest.mark.parametrize(
    "meta", [{}, {"process": {"host": "elsewhere", "pid": 1, "boot": "another"}}]
)
def test_nobody_can_tell_whether_a_run_of_another_machine_goes_on(
    tmp_path: Path, meta: dict[str, Any]
) -> None:
    path = write_run(tmp_path, 1, RowState.PLANNED, ended=False, **meta)
    assert read_run(str(path)).state is RunState.UNKNOWN


def test_what_was_killed_within_a_write_is_read_as_it_was_before(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1, *[RowState.PLANNED] * 2000, ended=False)
    program = (
        "import os, signal, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN')\n"
        "c.execute('UPDATE deletions SET state = ?, reason = hex(zeroblob(500))', ('deleted',))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{path}-journal").stat().st_size
    found = read_run(str(path))
    assert (found.left, found.deleted_bytes) == (2000, 0)


def damage_nothing_in_it(path: Path) -> None:
    path.write_bytes(b"")


def damage_no_database(path: Path) -> None:
    path.write_bytes(b"no database at all" * 400)


def damage_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def damage_other_schema(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA user_version = 99")


def damage_facts(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('report', '[1]')")


def damage_json(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('report', '{')")


def damage_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = (
    damage_pipe,
    damage_nothing_in_it,
    damage_no_database,
    damage_cut_off,
    damage_other_schema,
    damage_facts,
    damage_json,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_listed_as_such(tmp_path: Path, damage: Any) -> None:
    path = write_run(tmp_path, 1, *[RowState.DELETED] * 200)
    write_run(tmp_path, 2, RowState.DELETED)
    damage(path)
    second, first = past_runs(str(tmp_path))
    assert second.state is RunState.FINISHED
    assert first.state is RunState.DAMAGED
    assert first.reason


def test_runs_of_one_second_are_listed_by_when_they_began(tmp_path: Path) -> None:
    made = []
    for name in ("c", "a", "d", "b"):
        path = write_run(tmp_path, 1, RowState.DELETED)
        made.append(path.rename(path.with_name(f"{path.name.partition('-')[0]}-{name * 8}.sqlite")))
    began = {path: 100.0 + number / 8 for number, path in enumerate(made)}
    for path, when in began.items():
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'created'", (when,))
    found = [run.path for run in past_runs(str(tmp_path))]
    assert found == [str(path) for path in sorted(made, key=lambda path: -began[path])]


NO_TIMES = ("1e300", "-1e300", "-1", "NaN", "Infinity", "99999999999999", "9" * 400, "[" * 5000)


@pytest.mark.parametrize("name", ["created", "ended"])
@pytest.mark.parametrize("value", NO_TIMES)
def test_a_time_that_no_calendar_has_is_damage_and_the_others_are_listed(
    tmp_path: Path, name: str, value: str
) -> None:
    path = write_run(tmp_path, 1, RowState.DELETED)
    write_run(tmp_path, 2, RowState.DELETED, root="/odd\udcff \ud800")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = ?", (value, name))
    assert [run.state for run in past_runs(str(tmp_path))] == [
        RunState.FINISHED,
        RunState.DAMAGED,
    ]
    for form in ("text", "json"):
        code, text = list_runs(tmp_path, "--output", form)
        assert (code, "damaged" in text) == (0, True)


def test_seconds_without_end_are_damage(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1, RowState.DELETED)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = replace(value, '1.5', '1e999')")
    assert past_runs(str(tmp_path))[0].state is RunState.DAMAGED


def test_other_files_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path, 1)
    for name in ("notes.txt", "20260101T000000Z-00000000.sqlite.bak", "x.sqlite"):
        (tmp_path / "runs" / name).write_text("mine")
    assert len(past_runs(str(tmp_path))) == 1
    prune(str(tmp_path), 1, None)
    assert len(files(tmp_path)) == 4


def test_where_nothing_ever_ran_there_are_no_runs(tmp_path: Path) -> None:
    assert past_runs(str(tmp_path / "nowhere")) == []


# --- pruning ------------------------------------------------------------------------------------


def test_only_the_newest_run_files_stay(tmp_path: Path) -> None:
    for number in range(1, 6):
        write_run(tmp_path, number, RowState.DELETED, dry_run=number == 2)
    pruned = prune(str(tmp_path), 2, None)
    assert files(tmp_path) == names(4, 5)
    assert [os.path.basename(path) for path in pruned.removed] == names(3, 2, 1)


def test_runs_that_were_refused_push_out_no_record_of_what_was_deleted(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_run(tmp_path, number, RowState.DELETED, cutoff=1.0)
    for number in (4, 5, 6):
        write_run(tmp_path, number, exit_code=4)
    prune(str(tmp_path), 2, None)
    assert files(tmp_path) == names(2, 3, 5, 6)
    assert [run.looked for run in past_runs(str(tmp_path))] == [False, False, True, True]
    grown = read_growth(str(tmp_path), "filesystem", "/srv")
    assert [freed.bytes for freed in grown.freed] == [10, 10]


def test_the_file_of_the_run_that_prunes_stays(tmp_path: Path) -> None:
    # A clock that was set back gives a new run an old name.
    paths = [write_run(tmp_path, number) for number in range(1, 4)]
    prune(str(tmp_path), 1, str(paths[0]))
    assert files(tmp_path) == names(1, 3)


def test_what_a_killed_run_has_half_made_goes_after_a_day(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1)
    old, new, other = (path.with_name(f"{path.name}{end}") for end in (".a_1.new", ".b.new", ".b"))
    journal = path.with_name(f"{path.name}.a_1.new-journal")
    for half in (old, new, other, journal):
        half.write_bytes(b"x")
    for half in (old, other, journal):
        os.utime(half, (time.time() - 90_000, time.time() - 90_000))
    pruned = prune(str(tmp_path), 1, None)
    assert sorted(pruned.removed) == sorted(map(str, (old, journal)))
    assert sorted(file.name for file in path.parent.iterdir()) == sorted(
        file.name for file in (path, new, other)
    )


@pytest.mark.parametrize(
    ("ended", "meta"), [(False, beginning()), (False, {})], ids=["running", "unknown"]
)
def test_the_file_of_a_run_that_may_go_on_stays(
    tmp_path: Path, ended: bool, meta: dict[str, Any]
) -> None:
    write_run(tmp_path, 1, RowState.PLANNED, ended=ended, dry_run=True, **meta)
    write_run(tmp_path, 2)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(1, 2)


def test_a_file_that_another_process_has_locked_stays(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1)
    write_run(tmp_path, 2)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert read_run(str(path)).state is RunState.RUNNING
        prune(str(tmp_path), 1, None)
    finally:
        connection.close()
    assert files(tmp_path) == names(1, 2)


def test_a_damaged_file_stays(tmp_path: Path) -> None:
    damage_no_database(write_run(tmp_path, 1))
    write_run(tmp_path, 2)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(1, 2)


def test_what_is_left_undone_stays_until_a_later_run_has_done_it(tmp_path: Path) -> None:
    write_run(tmp_path, 1, RowState.DELETED, RowState.PLANNED, exit_code=5)
    write_run(tmp_path, 2, RowState.PLANNED, dry_run=True)
    write_run(tmp_path, 3, RowState.DELETED, root="/another")
    write_run(tmp_path, 4, RowState.DELETED, exit_code=1)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(1, 4)
    write_run(tmp_path, 5, RowState.FAILED, exit_code=3)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(5)


def test_what_is_still_in_redis_keeps_its_file(tmp_path: Path) -> None:
    write_run(tmp_path, 1, RowState.DELETED, blob_cache="redis")
    write_run(tmp_path, 2, RowState.DELETED, blob_cache="forgotten")
    write_run(tmp_path, 3, RowState.DELETED)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(1, 3)


def test_rows_in_a_state_that_nobody_here_knows_keep_their_file(tmp_path: Path) -> None:
    write_run(tmp_path, 1, RowState.DELETED, "moved aside")
    write_run(tmp_path, 2)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(1, 2)


def test_what_a_run_has_set_aside_is_told_and_needs_no_run_file(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1, RowState.QUARANTINED, RowState.QUARANTINED)
    found = read_run(str(path))
    assert (found.quarantined, found.quarantined_bytes, found.deleted_bytes) == (2, 20, 0)
    assert found.state is RunState.FINISHED
    assert "20 Bytes set aside" in "\n".join(runs_lines("/s", [found], TableStyle()))
    write_run(tmp_path, 2)
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(2)


def test_a_journal_goes_with_its_file(tmp_path: Path) -> None:
    path = write_run(tmp_path, 1)
    write_run(tmp_path, 2)
    Path(f"{path}-journal").touch()
    prune(str(tmp_path), 1, None)
    assert files(tmp_path) == names(2)


def test_a_file_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_run(tmp_path, 1)
    write_run(tmp_path, 2)

    def refuse(path: str) -> None:
        if not path.endswith(("-journal", "-wal", "-shm")):
            raise PermissionError(13, "not yours")

    monkeypatch.setattr("registry_gc.runs.past.os.unlink", refuse)
    assert prune(str(tmp_path), 1, None) == Pruned((), ((str(path), "not yours"),))


def test_a_collection_prunes_at_its_end(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1")
    state = disk.root.with_name("registry.state")
    for number in (1, 2, 3):
        write_run(state, number)
    result = disk.collect("--keep-runs", "2")
    assert result.exit_code == 0
    assert files(state) == [*names(3), os.path.basename(result.json["run_file"])]


def test_a_collection_prunes_nothing_unless_asked(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1")
    state = disk.root.with_name("registry.state")
    for number in (1, 2, 3):
        write_run(state, number)
    disk.collect()
    assert len(files(state)) == 4


# --- the command --------------------------------------------------------------------------------


def list_runs(state: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stdout of ``registry-gc runs``."""
    from registry_gc.cli.main import registry_gc

    answer = CliRunner().invoke(registry_gc, ["runs", "--state-dir", str(state), *arguments])
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.stdout


def test_the_command_lists_the_newest_first(tmp_path: Path) -> None:
    write_run(tmp_path, 1, RowState.DELETED)
    write_run(tmp_path, 2, RowState.PLANNED, exit_code=143)
    damage_no_database(write_run(tmp_path, 3))
    code, text = list_runs(tmp_path, "--output", "json")
    document = json.loads(text)
    assert code == 0
    assert document["schema"] == 1
    assert [one["state"] for one in document["runs"]] == ["damaged", "stopped", "finished"]
    assert document["runs"][2]["deleted_bytes"] == 10
    assert document["runs"][2]["deleted"]["blob"] == 1
    assert document["runs"][1]["exit_code"] == 143
    assert document["runs"][1]["ended"] == "1970-01-01T00:00:03Z"


def test_the_table_has_a_row_for_each_run_and_reasons_below(tmp_path: Path) -> None:
    write_run(tmp_path, 1, RowState.DELETED, root="/srv/\x1b[31mred")
    write_run(tmp_path, 2, RowState.PLANNED, exit_code=5, root="/srv/\x1b[31mred")
    code, text = list_runs(tmp_path)
    assert code == 0
    assert r"/srv/\x1b[31mred (filesystem)" in text
    assert "finished" in text
    assert "stopped" in text
    assert "10 Bytes" in text
    assert text.rstrip().endswith("it went wrong")


def test_no_runs_is_said(tmp_path: Path) -> None:
    code, text = list_runs(tmp_path / "nowhere")
    assert (code, text) == (0, f"{tmp_path / 'nowhere'}: no runs\n")


def test_a_narrow_terminal_is_shown_what_fits() -> None:
    run = PastRun("p", RunState.FINISHED, run="0123456789", created=0.0, seconds=7384.0, root="/r")
    lines = list(runs_lines("/s", [run], TableStyle(80)))
    assert max(map(len, lines)) <= 80
    assert any("2 h 3 min" in line for line in lines)
    assert not any("01234567" in line for line in lines)


@pytest.mark.parametrize("width", [10, 40, 60, 65, 66, 79, 119, 120])
def test_cells_are_whole_on_any_terminal(width: int) -> None:
    run = PastRun(
        "p", RunState.FINISHED, run="0123456789", created=0.0, seconds=7384.0, root="/r",
        delete_untagged=True, quarantined=3, quarantined_bytes=123_456_789, exit_code=0,
    )  # fmt: skip
    lines = list(runs_lines("/s", [run], TableStyle(width)))
    assert not [line for line in lines if "…" in line]
    assert any(
        re.search(r"began \(UTC\) .*what +state +exit +freed .*took$", line) for line in lines
    )
    row = r"^ 1970-01-01 00:00 .*run -m +finished +0 +123.5 MB set aside .*2 h 3 min$"
    assert any(re.search(row, line) for line in lines)


def test_the_process_of_this_test_is_known_again() -> None:
    assert Process(**beginning()["process"]).alive() is True


def test_a_run_that_fails_before_it_has_a_plan_ends_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1")

    def fail(*_: object, **__: object) -> None:
        from registry_drivers.errors import StorageError

        raise StorageError("the disk is broken")

    monkeypatch.setattr("registry_gc.collect.dead_links", fail)
    result = collect(disk.root)
    assert result.exit_code == 1
    (found,) = past_runs(str(disk.root.with_name("registry.state")))
    assert (found.exit_code, found.run) == (1, result.json["run"])
    assert found.root == str(disk.root)
    assert "the disk is broken" in found.reason


def test_the_state_directory_is_not_made_by_looking(tmp_path: Path) -> None:
    list_runs(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_keep_runs_wants_at_least_one(tmp_path: Path) -> None:
    assert run("--keep-runs", "0", "config.yml", state=tmp_path).exit_code == 2
