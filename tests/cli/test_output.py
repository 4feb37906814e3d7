"""What a run prints, also where nobody can take it, and where its files lie."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from command_line import GROUP, call, go, many_orphans, own_folder_is_gone
from model import HOUR
from registry_gc.cli.output import Output
from registry_tree import sha256
from running import Disk, write_config

# Output


def test_text_begins_with_the_stock_lines_and_ends_with_a_summary(disk: Disk) -> None:
    result = go(disk, "-m")
    lines = result.text.splitlines()
    assert lines[:3] == ["a", "", "3 blobs marked, 3 blobs and 1 manifests eligible for deletion"]
    assert len(result.lines("blob eligible for deletion: ")) == 3
    assert result.lines("a: layer link eligible for deletion: ")
    assert any(line.startswith("freed ") for line in lines)
    assert lines[-1].startswith("  run file ")


def test_verbose_names_what_is_marked(disk: Disk) -> None:
    assert len(go(disk, "-d", "-m", "-v").lines("a: marking manifest ")) == 1
    assert not go(disk, "-d", "-m").lines("a: marking manifest ")


def test_quiet_prints_nothing_but_problems(disk: Disk) -> None:
    result = go(disk, "-q")
    assert (result.exit_code, result.text, result.errors) == (0, "", "")
    refused = go(disk, "-q", config=write_config(disk.root, readonly=False))
    assert refused.text == ""
    assert refused.errors.startswith("error: ")


def test_a_refused_run_prints_no_summary(disk: Disk) -> None:
    result = go(disk, config=write_config(disk.root, readonly=False))
    assert result.text == ""


@pytest.mark.parametrize(
    ("redirect", "output"),
    [
        (">&-", "text"),
        (">&-", "json"),
        (">/dev/full", "text"),
        (">/dev/full", "json"),
        ("| :", "text"),
        ("2>&-", "text"),
        (">&- 2>/dev/full", "text"),
        ("<&- >&- 2>&-", "text"),
    ],
)
def test_no_way_of_closing_stdout_stops_a_sweep(disk: Disk, redirect: str, output: str) -> None:
    config = many_orphans(disk)
    state = disk.folder / "state"
    done = call("--state-dir", state, "--output", output, config, redirect=redirect)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert not disk.has_blob(sha256(b"orphan"))
    assert disk.has_blob(sha256(b"kept"))
    assert own_folder_is_gone(disk)
    (run_file,) = (state / "runs").glob("*.sqlite")
    with closing(sqlite3.connect(run_file)) as connection, connection:
        assert connection.execute("SELECT DISTINCT state FROM deletions").fetchall() == [
            ("deleted",)
        ]


@pytest.mark.parametrize("command", ["verify", "explain", "report", "runs"])
@pytest.mark.parametrize(
    ("redirect", "code"), [(">/dev/full", 1), (">&-", 0), ("| :", 0), (">/dev/null", 0)]
)
def test_what_only_looks_fails_where_its_answer_is_lost(
    disk: Disk, command: str, redirect: str, code: int
) -> None:
    disk.tree.image("a", "v1")
    config = str(write_config(disk.root))
    arguments = {"runs": [], "explain": [config, "a"]}.get(command, [config])
    states = [] if command in ("verify", "explain") else ["--state-dir", str(disk.folder / "s")]
    done = call(command, *states, *arguments, redirect=redirect, main=GROUP)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "how",
    [
        ("--registry-stopped",),
        ("--stop-command", "true", "--start-command", "true"),
        ("--readonly-command", "true", "--readwrite-command", "true"),
    ],
)
@pytest.mark.parametrize("timeout", [None, "60s"])
def test_a_registry_that_may_drain_is_told_of_on_stderr(
    disk: Disk, how: tuple[str, ...], timeout: str | None
) -> None:
    config, state = many_orphans(disk), disk.folder / "state"
    env = {} if timeout is None else {"REGISTRY_HTTP_DRAINTIMEOUT": timeout}
    done = call("--state-dir", state, *how, config, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(b"its process has ended") == (timeout is not None)


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize(
    ("redirect", "code"), [(">/dev/full", 1), (">&-", 0), ("| :", 0), (">/dev/null", 0)]
)
@pytest.mark.parametrize("command", ["registry-garbage-collect", "run", "plan"])
def test_a_dry_run_fails_where_its_answer_is_lost(
    disk: Disk, command: str, output: str, redirect: str, code: int
) -> None:
    config = write_config(disk.root)
    state = ("--state-dir", disk.folder / "state", "--output", output)
    if command == "plan":
        plan = disk.folder / "plan.sqlite"
        done = call("plan", "-o", plan, *state, config, redirect=redirect, main=GROUP)
    elif command == "run":
        done = call("run", "-d", *state, config, redirect=redirect, main=GROUP)
    else:
        done = call("-d", *state, config, redirect=redirect)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert disk.has_blob(sha256(b"orphan"))


def test_a_reader_that_goes_away_is_told_of_on_stderr(disk: Disk) -> None:
    done = call("--state-dir", disk.folder / "state", many_orphans(disk), redirect=">/dev/full")
    assert b"note: nothing more goes to stdout: " in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_stdout_cannot_say_are_shown_and_collected(disk: Disk, encoding: str) -> None:
    for name in ("odd-\udcff", "snow-\N{SNOWMAN}"):
        disk.tree.image(name, None, layers=[name.encode("utf-8", "surrogateescape")])
        disk.tree.upload(name, "u\udcfe", "2020-01-01T00:00:00Z")
    disk.age(30 * 24 * HOUR)
    config, state = write_config(disk.root), disk.folder / "state"
    done = call("-m", "--state-dir", state, config, env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"odd-\\xff" in done.stdout
    assert ("snow-\N{SNOWMAN}" if encoding == "utf-8" else "snow-\\u2603").encode() in done.stdout
    assert not [path for path in disk.files() if "odd" in path or "snow" in path]


def test_json_is_printed_with_names_that_are_no_utf8(disk: Disk) -> None:
    disk.tree.tag("odd-\udcff", "v1", sha256(b"never pushed"))
    result = go(disk, "--output", "json")
    assert result.exit_code == 3
    assert "odd-\udcff" in result.json["damaged"][0]["path"]


def test_without_a_terminal_there_is_no_progress_bar(disk: Disk) -> None:
    done = call("--state-dir", disk.folder / "state", many_orphans(disk))
    assert done.stderr == b""


def test_long_texts_go_out_before_many_of_them_wait(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\n".join(["a line of a plan that has very many"] * 1000)
    out = ""
    most = 0
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal out, most, taken
        for _ in range(200):
            taken += len(text) + 1
            yield text
            out += capsys.readouterr().out
            most = max(most, taken - len(out))

    Output().lines(texts())
    out += capsys.readouterr().out
    assert out == (text + "\n") * 200
    assert most < 1 << 19


# State


def test_a_state_directory_that_cannot_be_written_is_replaced_and_named(disk: Disk) -> None:
    (disk.folder / "file").touch()
    wanted = disk.folder / "file" / "state"
    config = write_config(disk.root)
    done = call("--state-dir", wanted, config, env={"TMPDIR": str(disk.folder)})
    assert done.returncode == 0
    assert f"note: the state directory {wanted} cannot be written".encode() in done.stderr
    assert not disk.has_blob(sha256(b"orphan"))
    assert list(disk.folder.glob("registry-gc-*/runs/*.sqlite"))


def test_the_run_file_is_where_it_is_wanted_also_by_a_relative_path(disk: Disk) -> None:
    done = call("--run-file", "here.sqlite", write_config(disk.root), cwd=disk.folder)
    assert done.returncode == 0
    assert (disk.folder / "here.sqlite").exists()


def test_run_files_of_several_runs_lie_side_by_side(disk: Disk) -> None:
    for _ in range(3):
        assert go(disk).exit_code == 0
    assert len(list((disk.folder / "state/runs").glob("*.sqlite"))) == 3
