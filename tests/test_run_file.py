"""The run file: plan and journal in one, through full disks, odd names and broken files."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from command_line import environment
from registry_gc import run_file as module
from registry_gc.run_file import RunFile
from registry_gc.runs import database
from registry_gc.runs.database import RunFileError
from registry_gc.runs.rows import Count, Row, RowKind, RowParts, Rows, RowState
from registry_gc.runs.state_dir import temporary_folder
from running import Disk, write_config


def row(
    number: int, kind: RowKind = RowKind.BLOB, repository: str | None = None, size: int = 1
) -> Row:
    digest = f"sha256:{number:064x}"
    return Row(kind, repository, digest, f"{kind.label}/{number}", size, 1.5, "why not")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run.sqlite"


@pytest.fixture
def run_file(path: Path) -> Iterator[RunFile]:
    """A new one, closed at the end."""
    with closing(RunFile.create(str(path))) as new:
        yield new


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files go that find no room on a disk."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(database, "IN_MEMORY", (str(folder),))
    return folder


def test_rows_come_back_as_they_were(run_file: RunFile) -> None:
    rows = [row(number, kind, "a/b", number) for number in range(3) for kind in RowKind]
    rows.append(Row(RowKind.BLOB, None, None, "x", 7, None, "no digest"))
    run_file.add(rows)
    for kind in RowKind:
        assert sorted(run_file.rows(kind), key=repr) == sorted(
            (one for one in rows if one.kind is kind), key=repr
        )
    assert run_file.count(RowKind.BLOB) == Count(4, 10)
    assert run_file.count(RowKind.REVISION) == Count(3, 3)
    assert run_file.notices == []


def columns(count: int, kind: RowKind, repository: str | None = None) -> Rows:
    numbers = range(count)
    return Rows(
        kind=kind,
        reason="it's dead {or so}, isn't it?",
        repositories=None if repository is None else [repository] * count,
        digests=[f"sha256:{number:064x}" for number in numbers],
        paths=[f"{kind.label}/{repository}/{number}" for number in numbers],
        sizes=list(numbers),
        modified=[number / 2 for number in numbers],
    )


@pytest.mark.parametrize("repository", [None, "a/b", "a/\udcff"])
@pytest.mark.parametrize("count", [0, 1, 99, 100, 250])
def test_columns_are_written_as_the_rows_that_they_are(
    run_file: RunFile, count: int, repository: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 120)
    rows = columns(count, RowKind.LAYER_LINK, repository)
    assert len([*rows]) == len(rows) == count
    run_file.add(RowParts([rows, iter([row(1)])]))
    assert sorted(run_file.rows(RowKind.LAYER_LINK)) == sorted(rows)
    assert [*run_file.rows(RowKind.BLOB)] == [row(1)]


def test_what_is_counted_while_rows_are_written_is_what_the_file_holds(run_file: RunFile) -> None:
    run_file.add([row(number, RowKind.REVISION, size=3) for number in range(7)])
    run_file.add(columns(230, RowKind.BLOB))
    run_file.record_meta(version="1")
    run_file.add(columns(5, RowKind.UPLOAD, "a"))

    def counted() -> list[Count]:
        return [run_file.count(kind) for kind in RowKind] + [
            run_file.count(kind, state) for kind in RowKind for state in RowState
        ]

    def in_file() -> list[Count]:
        other = RunFile.existing(run_file.path)
        found = [other.count(kind) for kind in RowKind] + [
            other.count(kind, state) for kind in RowKind for state in RowState
        ]
        other.close()
        return found

    assert run_file.count(RowKind.BLOB) == Count(230, sum(range(230)))
    assert run_file.uploads() == 5
    assert counted() == in_file()
    run_file.drop(RowKind.BLOB, [f"sha256:{number:064x}" for number in range(30)])
    assert counted() == in_file()
    run_file.add(columns(2, RowKind.BLOB))
    run_file.record([(1, RowState.FAILED, "no"), (2, RowState.DELETED, "")])
    assert counted() == in_file()
    assert [error for _, error in run_file.failures()] == ["no"]
    run_file.drop_all(RowKind.BLOB)
    assert counted() == in_file()


def test_rows_are_shown_by_repository_digest_and_path(run_file: RunFile) -> None:
    rows = [row(2, repository="b"), row(1, repository="b"), row(3, repository="a")]
    run_file.add(rows)
    assert list(run_file.rows(RowKind.BLOB)) == [rows[2], rows[1], rows[0]]


def test_revisions_come_in_order_with_the_tag_entries_beside_them(run_file: RunFile) -> None:
    def entry(kind: RowKind, repository: str, digest: str, name: str) -> Row:
        return Row(kind, repository, digest, name, 0, 1.5, "why not")

    run_file.add(
        [
            entry(RowKind.TAG_INDEX, "b", "sha256:1", "b/v 2"),
            entry(RowKind.TAG_INDEX, "b", "sha256:1", "b/\udcff"),
            entry(RowKind.TAG_INDEX, "b", "sha256:2", "b/its revision stays"),
            entry(RowKind.TAG_INDEX, "b\udcff", "sha256:1", "another/repository"),
            entry(RowKind.REVISION, "b", "sha256:3", "taken back"),
            entry(RowKind.REVISION, "b\udcff", "sha256:1", "r1"),
            entry(RowKind.REVISION, "b", "sha256:1", "r2"),
            entry(RowKind.REVISION, "a", "sha256:1", "r3"),
            entry(RowKind.LAYER_LINK, "a", "sha256:1", "a link"),
            entry(RowKind.TAG_INDEX, "a", "sha256:1", "an entry taken back"),
        ]
    )
    run_file.record([(5, RowState.TAKEN_BACK, ""), (10, RowState.TAKEN_BACK, "")])
    assert [(name, sorted(paths)) for name, paths in run_file.manifests()] == [
        ("a sha256:1", []),
        ("b sha256:1", ["b/v 2", "b/\udcff"]),
        ("b\udcff sha256:1", ["another/repository"]),
    ]


def test_facts_about_the_run_come_back_as_they_were(run_file: RunFile) -> None:
    run_file.record_meta(run="x", cutoff=1.5, releases=["a@"], guard={"verdict": "allowed"})
    run_file.record_meta(cutoff=2.5, root="\udcff\N{SNOWMAN}")
    assert run_file.meta() == {
        "run": "x",
        "cutoff": 2.5,
        "releases": ["a@"],
        "guard": {"verdict": "allowed"},
        "root": "\udcff\N{SNOWMAN}",
    }


def test_names_that_are_no_utf8_are_kept_byte_for_byte(run_file: RunFile) -> None:
    odd = Row(
        RowKind.UPLOAD, "r\udcff", "u\udcfe", "r\udcff/_uploads/u\udcfe/data", 1, 2.0, "\udcfd"
    )
    run_file.add([odd])
    assert list(run_file.rows(RowKind.UPLOAD)) == [odd]
    ((number, found),) = next(run_file.batches(RowKind.UPLOAD, 10))
    assert os.fsencode(found) == b"r\xff/_uploads/u\xfe/data"
    run_file.record([(number, RowState.FAILED, "denied: \udcff")])
    assert list(run_file.failures()) == [(odd.path, "denied: \udcff")]
    assert run_file.repositories_with(RowState.FAILED) == {"r\udcff"}
    assert run_file.uploads() == 1


def test_batches_hold_what_is_still_to_be_done_in_the_order_it_was_planned(
    run_file: RunFile,
) -> None:
    run_file.add([row(number) for number in (5, 3, 9, 1, 7)])
    run_file.add([row(8, RowKind.REVISION)])
    seen = []
    for batch in run_file.batches(RowKind.BLOB, 2):
        seen.append([found for _, found in batch])
        run_file.record([(number, RowState.DELETED, "") for number, _ in batch[:1]])
    assert seen == [["blob/5", "blob/3"], ["blob/9", "blob/1"], ["blob/7"]]
    assert next(run_file.batches(RowKind.BLOB, 10)) == [(2, "blob/3"), (4, "blob/1")]


def test_outcomes_are_counted_by_state(run_file: RunFile) -> None:
    run_file.add([row(number, size=10) for number in range(4)])
    run_file.record(
        [(1, RowState.DELETED, ""), (2, RowState.GONE_ALREADY, ""), (3, RowState.FAILED, "denied")]
    )
    assert run_file.count(RowKind.BLOB) == Count(4, 40)
    assert run_file.count(RowKind.BLOB, RowState.DELETED) == Count(1, 10)
    assert run_file.count(RowKind.BLOB, RowState.DELETED, RowState.FAILED) == Count(2, 20)
    assert run_file.count(RowKind.BLOB, RowState.PLANNED) == Count(1, 10)
    assert list(run_file.failures()) == [("blob/2", "denied")]
    assert [one.path for one in run_file.rows(RowKind.BLOB, RowState.GONE_ALREADY)] == ["blob/1"]


def test_uploads_are_counted_once_each_whatever_they_consist_of(run_file: RunFile) -> None:
    run_file.add(
        Row(RowKind.UPLOAD, repository, uuid, f"{repository}/{uuid}/{name}", 1, None, "old")
        for repository, uuid in (("a", "1"), ("a", "2"), ("b", "1"))
        for name in ("data", "startedat")
    )
    assert run_file.uploads() == 3
    run_file.record([(1, RowState.DELETED, ""), (2, RowState.DELETED, "")])
    assert (run_file.uploads(RowState.DELETED), run_file.uploads(RowState.PLANNED)) == (1, 2)


def test_rows_that_are_not_dead_after_all_are_taken_back(run_file: RunFile) -> None:
    run_file.add([row(1), row(2), row(1, RowKind.LAYER_LINK)])
    run_file.drop(RowKind.BLOB, [row(1).digest or "", "sha256:unknown"])
    assert list(run_file.rows(RowKind.BLOB)) == [row(2)]
    assert run_file.count(RowKind.LAYER_LINK).rows == 1


def test_rows_are_added_all_or_none(run_file: RunFile) -> None:
    broken = Row(RowKind.BLOB, None, None, None, 1, None, "x")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(RunFileError):
        run_file.add([row(1), broken])
    assert run_file.count(RowKind.BLOB).rows == 0


def test_sqlite3_reads_it_with_the_tables_that_are_documented(
    path: Path, run_file: RunFile
) -> None:
    run_file.add([row(1, repository="a")])
    run_file.record([(1, RowState.FAILED, "denied")])
    run_file.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        found = connection.execute(
            "SELECT phase, kind, repository, digest, path, size, modified, reason, state, error, "
            "typeof(path), typeof(repository), finished > 0 FROM deletions"
        ).fetchall()
        assert connection.execute("PRAGMA user_version").fetchall() == [(module.SCHEMA,)]
    texts = ("text", "text", 1)
    assert found == [
        (5, "blob", "a", row(1).digest, "blob/1", 1, 1.5, "why not", "failed", "denied", *texts)
    ]


def test_the_order_of_kinds_is_the_order_of_deletion() -> None:
    order = [kind.label for kind in sorted(RowKind, key=lambda kind: kind.phase)]
    objects = ["tag-index", "signature", "revision", "layer-link", "blob", "upload"]
    assert order == [*objects, "versions", "multipart-upload"]
    assert list(RowKind) == sorted(RowKind, key=lambda kind: kind.phase)


# Where it lies


def test_it_and_its_folder_are_for_its_owner_alone(path: Path) -> None:
    RunFile.create(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_there_already_is_never_touched(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"another run")
    with pytest.raises(RunFileError, match="exists already"):
        RunFile.create(str(path))
    assert path.read_bytes() == b"another run"


def test_a_dangling_link_is_not_followed(path: Path, memory: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")
    with closing(RunFile.create(str(path))) as run_file:
        assert Path(run_file.path).is_relative_to(memory)
    assert not (path.parent / "elsewhere").exists()


@pytest.mark.parametrize("obstacle", ["a file", "read only"])
def test_where_it_cannot_be_written_it_lies_in_memory_and_says_so(
    path: Path, memory: Path, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "a file":
        path.parent.write_bytes(b"")
    else:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "makedirs", refuse)
    with closing(RunFile.create(str(path))) as run_file:
        run_file.add([row(1)])
    assert Path(run_file.path).is_relative_to(memory)
    (notice,) = run_file.notices
    assert str(path) in notice
    assert run_file.path in notice
    assert "does not survive a reboot" in notice


def test_where_nothing_can_be_written_it_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.write_bytes(b"")

    def refuse(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(RunFileError, match="no place for the run file"):
        RunFile.create(str(path))


def fill_the_disk(run_file: RunFile) -> None:
    """From now on SQLite finds no room for another page."""
    (pages,) = run_file._connection.execute("PRAGMA page_count").fetchone()
    run_file._connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_disk_that_fills_up_moves_it_to_memory_with_all_that_was_written(
    run_file: RunFile, memory: Path
) -> None:
    run_file.record_meta(run="x")
    run_file.add([row(1), row(2)])
    fill_the_disk(run_file)
    many = [row(number) for number in range(10, 2000)]
    run_file.add(many)
    run_file.record([(1, RowState.DELETED, "")])
    assert Path(run_file.path).is_relative_to(memory)
    assert [row(1), row(2), *many] == list(run_file.rows(RowKind.BLOB))
    assert run_file.count(RowKind.BLOB, RowState.DELETED).rows == 1
    assert run_file.meta() == {"run": "x"}
    (notice,) = run_file.notices
    assert "full" in notice
    assert run_file.path in notice
    run_file.close()
    with closing(sqlite3.connect(run_file.path)) as moved, moved:
        assert moved.execute("SELECT count(*) FROM deletions").fetchone() == (1992,)


def test_when_memory_is_full_too_it_says_so(
    run_file: RunFile, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(run_file)
    memory.rmdir()

    def refuse(*_: str | None) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "temporary_folder", refuse)
    with pytest.raises(RunFileError, match="no place for the run file"):
        run_file.add([row(number) for number in range(2000)])


def test_a_file_that_a_full_disk_let_begin_is_not_left_behind(
    path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = True
    connect = database.connect

    def full(where: str) -> sqlite3.Connection:
        nonlocal first
        connection = connect(where)
        if first:
            connection.execute("PRAGMA max_page_count = 1")
            first = False
        return connection

    monkeypatch.setattr(database, "connect", full)
    with closing(RunFile.create(str(path))) as run_file:
        assert Path(run_file.path).is_relative_to(memory)
    assert not path.exists()


# Damage


def test_a_file_that_is_overwritten_ends_the_run_with_a_message(
    path: Path, run_file: RunFile
) -> None:
    run_file.add([row(number) for number in range(2000)])
    path.write_bytes(b"\0" * 100_000)
    for attempt in (
        lambda: run_file.add([row(1)]),
        lambda: run_file.count(RowKind.BLOB),
        lambda: run_file.uploads(),
        lambda: list(run_file.rows(RowKind.BLOB)),
        lambda: list(run_file.batches(RowKind.BLOB, 10)),
        lambda: list(run_file.failures()),
        lambda: run_file.repositories_with(RowState.FAILED),
        lambda: run_file.record([(1, RowState.DELETED, "")]),
        run_file.meta,
        run_file.make_durable,
    ):
        with pytest.raises(RunFileError, match=path.name):
            attempt()


def test_what_was_written_survives_a_kill(path: Path) -> None:
    """And what was being written is there whole, or not at all."""
    code = (
        "import os, signal, sys\n"
        "from registry_gc.run_file import RunFile\n"
        "from registry_gc.runs.rows import Row, RowKind, RowState\n"
        f"run_file = RunFile.create({str(path)!r})\n"
        "rows = [Row(RowKind.BLOB, None, None, str(n), 1, None, 'x') for n in range(5000)]\n"
        "run_file.add(rows)\n"
        "run_file.make_durable()\n"
        "run_file.record([(n, RowState.DELETED, '') for n in range(1, 100)])\n"
        "run_file._connection.execute('BEGIN')\n"
        "run_file._connection.execute(\"UPDATE deletions SET state = 'failed'\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": places}, check=False
    )
    assert done.returncode == -9
    with closing(sqlite3.connect(path)) as connection, connection:
        states = dict(connection.execute("SELECT state, count(*) FROM deletions GROUP BY state"))
    assert states == {"deleted": 99, "planned": 4901}


def test_once_durable_each_write_waits_for_the_disk(run_file: RunFile, memory: Path) -> None:
    def synchronous() -> int:
        (level,) = run_file._connection.execute("PRAGMA synchronous").fetchone()
        return int(level)

    run_file.make_durable()
    assert synchronous() == 2
    fill_the_disk(run_file)
    run_file.add([row(number) for number in range(2000)])
    assert Path(run_file.path).is_relative_to(memory)
    assert synchronous() == 2


def test_no_journal_is_left_behind(path: Path, run_file: RunFile) -> None:
    run_file.add([row(number) for number in range(2000)])
    run_file.close()
    left = {name.name: name.stat().st_size for name in path.parent.iterdir()}
    assert left.pop(path.name)
    assert not any(left.values())


def test_temporary_folders_are_made_in_the_first_place_that_takes_them(tmp_path: Path) -> None:
    missing, there = str(tmp_path / "missing"), str(tmp_path)
    assert Path(temporary_folder(missing, there)).parent == tmp_path
    assert Path(temporary_folder(there, missing)).parent == tmp_path
    with pytest.raises(OSError, match="missing"):
        temporary_folder(missing)


def test_a_limit_of_the_process_is_told_by_its_name(tmp_path: Path) -> None:
    """SQLite says "disk I/O error", and nothing is wrong with the disk."""
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1")
    config = write_config(disk.root)
    line = f"ulimit -f 8; exec {sys.executable} -m registry_gc run --dry-run {config}"
    done = subprocess.run(
        ["sh", "-c", line], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "(ulimit -f)" in done.stderr
    assert "Traceback" not in done.stderr
