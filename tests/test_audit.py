"""The audit log: whole, in order, flushed; and what happens when it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import registry_gc.audit.log
import registry_gc.audit.sinks
from command_line import MAIN, environment
from real import program
from registry_gc.audit.log import AuditLog
from registry_gc.audit.sinks import FileSink, NoRoom, Sink, SyslogSink, sink_of
from registry_gc.guard import Verdict
from registry_gc.marking.holding import Hold
from registry_gc.runs.past import read_run
from registry_tree import (
    blob_path,
    folder_sink,
    layer_link_path,
    revision_path,
    sha256,
    tag_path,
)
from running import Disk, Result, run, write_config
from servers.process import free_port, running

Line = dict[str, Any]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.image("a", None, layers=[b"untagged"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def go(disk: Disk, *arguments: str | Path) -> Result:
    fixed = ("--output", "json", "-m", *arguments)
    return run(*fixed, write_config(disk.root), state=disk.folder / "state")


def read(log: Path) -> list[Line]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def rows(result: Result) -> dict[str, dict[str, Any]]:
    """The run file's rows by path, in the order of deletion."""
    query = "SELECT * FROM deletions ORDER BY phase, id"
    with closing(sqlite3.connect(result.json["run_file"])) as connection, connection:
        connection.row_factory = sqlite3.Row
        return {row["path"]: dict(row) for row in connection.execute(query)}


def orphans(disk: Disk, count: int) -> None:
    """So many that deleting them takes several batches."""
    sink = folder_sink(disk.root)
    for number in range(count):
        digest = sha256(b"%d" % number)
        sink(blob_path(digest), b"")
        sink(layer_link_path("a", digest), digest.encode())
    disk.age()


def test_there_is_a_line_for_each_deletion_that_says_what_the_run_file_says(
    disk: Disk, log: Path
) -> None:
    result = go(disk, "--audit-log", log)
    lines, planned = read(log), rows(result)
    assert [line["path"] for line in lines] == list(planned)  # also in that order
    for line in lines:
        row = planned[line["path"]]
        assert line["run"] == result.json["run"]
        assert (line["event"], line["result"], line["confirmed"]) == ("delete", "deleted", True)
        assert line["bytes"] == row["size"]
        for same in ("repository", "digest", "kind", "reason", "error"):
            assert line[same] == row[same]
    blob = next(line for line in lines if line["digest"] == sha256(b"orphan") and line["bytes"])
    assert (blob["kind"], blob["repository"], blob["bytes"]) == ("blob", None, 6)
    assert blob["time"].endswith("+00:00")


def test_there_is_a_line_for_each_decision_to_hold(disk: Disk, log: Path) -> None:
    broken = disk.tree.image("b", "v1", layers=[b"of b"])
    disk.write(blob_path(broken), b"{ cut short")
    disk.write(tag_path("c", "v1"), b"")
    disk.age()
    result = go(disk, "--audit-log", log)
    holds = [line for line in read(log) if line["event"] == "hold"]
    assert [
        {name: hold[name] for name in ("repository", "digest", "reason")} for hold in holds
    ] == result.json["held"]
    assert [(hold["repository"], hold["confirmed"]) for hold in holds] == [("b", None), ("c", None)]
    assert holds[1]["bytes"] is None
    assert read(log)[:2] == holds  # before anything is deleted


def test_a_hold_tells_the_size_of_each_manifest_that_was_read(disk: Disk, log: Path) -> None:
    names = ("cut", "not JSON", "empty", "missing", "folder", "empty by right")
    held = {name: disk.tree.image(name, "v1", layers=[name.encode()]) for name in names}
    held["not JSON"], held["empty by right"] = sha256(b"no JSON at all"), sha256(b"")
    for name in ("not JSON", "empty by right"):
        disk.write(revision_path(name, held[name]), held[name].encode())
    disk.write(blob_path(held["cut"]), b"{ cut short")
    disk.write(blob_path(held["not JSON"]), b"no JSON at all")
    disk.write(blob_path(held["empty"]), b"")
    disk.write(blob_path(held["empty by right"]), b"")
    (disk.root / blob_path(held["missing"])).unlink()
    (disk.root / blob_path(held["folder"])).unlink()
    (disk.root / blob_path(held["folder"])).mkdir()
    disk.age()
    go(disk, "--audit-log", log)
    told = {line["repository"]: line["bytes"] for line in read(log) if line["event"] == "hold"}
    # Nobody can tell an empty one that is what its digest says from one that was not read.
    assert told == {
        "cut": 11, "not JSON": 14, "empty": 0, "folder": None, "empty by right": None,
    }  # fmt: skip


def test_what_was_not_deleted_is_not_confirmed(disk: Disk, log: Path) -> None:
    original = os.unlink

    def unlink(name: str, *arguments: Any, **options: Any) -> None:
        if str(name).endswith(blob_path(sha256(b"orphan"))):
            raise PermissionError(errno.EPERM, "Operation not permitted", name)
        if str(name).endswith(blob_path(sha256(b"untagged"))):
            original(name, *arguments, **options)
        original(name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        assert go(disk, "--audit-log", log).exit_code == 3
    lines = {line["path"]: line for line in read(log)}
    failed = lines[blob_path(sha256(b"orphan"))]
    gone = lines[blob_path(sha256(b"untagged"))]
    assert (failed["result"], failed["confirmed"], failed["bytes"]) == ("failed", False, 0)
    assert "not permitted" in failed["error"]
    assert (gone["result"], gone["confirmed"], gone["bytes"]) == ("gone already", False, 0)
    assert sum(line["confirmed"] for line in lines.values()) == len(lines) - 2


def test_what_is_set_aside_is_told_so(disk: Disk, log: Path) -> None:
    assert go(disk, "--audit-log", log, "--quarantine", "7d").exit_code == 0
    moved = [line for line in read(log) if line["event"] == "quarantine"]
    assert {(line["result"], line["confirmed"]) for line in moved} == {("moved", True)}
    assert sha256(b"orphan") in {line["digest"] for line in moved if line["kind"] == "blob"}


def test_runs_add_to_what_is_there(disk: Disk, log: Path) -> None:
    log.write_text('{"event": "earlier"}\n')
    first = go(disk, "--audit-log", log)
    before = log.read_bytes()
    disk.tree.layer("a", b"another orphan")
    disk.age()
    second = go(disk, "--audit-log", log)
    assert log.read_bytes().startswith(before)
    runs = [line.get("run") for line in read(log)]
    assert runs == sorted(runs, key=[None, first.json["run"], second.json["run"]].index)


def test_a_dry_run_leaves_no_line(disk: Disk, log: Path) -> None:
    disk.write(tag_path("c", "v1"), b"")
    assert go(disk, "-d", "--audit-log", log).exit_code == 3
    assert log.read_bytes() == b""


def test_only_owner_and_group_may_read_it(disk: Disk, log: Path) -> None:
    go(disk, "--audit-log", log)
    assert log.stat().st_mode & 0o7 == 0


def test_names_that_are_no_utf_8_are_escaped(tmp_path: Path, log: Path) -> None:
    audit = AuditLog(FileSink(str(log)), "run", lambda: 0.0)
    audit.held([Hold("b\udcff", None, "rotten")], lambda _: None)
    assert audit.close() == ""
    assert log.read_bytes().isascii()
    assert read(log)[0]["repository"] == "b\udcff"


def test_every_batch_is_flushed_to_the_disk(
    disk: Disk, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphans(disk, 5)
    calls: list[str] = []
    write, fsync = os.write, os.fsync

    def is_log(handle: int) -> bool:
        return log.exists() and os.path.samestat(os.fstat(handle), log.stat())

    def writing(handle: int, data: bytes) -> int:
        calls.extend(["write"] * is_log(handle))
        return write(handle, data)

    def syncing(handle: int) -> None:
        calls.extend(["fsync"] * is_log(handle))
        fsync(handle)

    monkeypatch.setattr(os, "write", writing)
    monkeypatch.setattr(os, "fsync", syncing)
    go(disk, "--audit-log", log)
    assert len(calls) >= 4
    assert calls == ["write", "fsync"] * (len(calls) // 2)


# What goes wrong


@pytest.mark.parametrize("where", ["missing/audit.jsonl", ".", "/proc/audit.jsonl"])
def test_a_log_that_cannot_be_opened_refuses_before_anything_is_deleted(
    disk: Disk, where: str
) -> None:
    files = disk.files()
    result = go(disk, "--audit-log", disk.folder / where)
    assert result.exit_code == 4
    assert [row["code"] for row in result.json["guard"]["findings"]][-1] == "audit-log"
    assert "the audit log cannot be written" in result.errors
    assert disk.files() == files


def test_a_dry_run_says_that_the_log_cannot_be_opened(disk: Disk) -> None:
    result = go(disk, "-d", "--audit-log", disk.folder / "missing" / "audit.jsonl")
    assert (result.exit_code, result.json["guard"]["verdict"]) == (0, "refused")
    assert "a collection would be refused" in result.errors


def test_a_disk_that_stays_full_stops_nothing_but_is_told(disk: Disk) -> None:
    result = go(disk, "--audit-log", "/dev/full")
    assert result.exit_code == 1
    assert not disk.has_blob(sha256(b"orphan"))
    assert all(row["state"] == "deleted" for row in rows(result).values())
    assert f"{len(rows(result))} lines of the audit log could not be written" in result.errors
    assert result.json["run_file"] in result.json["error"]
    past = read_run(result.json["run_file"])
    assert (past.exit_code, past.reason) == (1, result.json["error"])


@contextmanager
def faults(log: Path, answer: Callable[[int], int | OSError]) -> Iterator[list[int]]:
    """Writes to *log* do what *answer* says of their number: so many bytes, or an error."""
    original = os.write
    calls: list[int] = []

    def write(handle: int, data: bytes) -> int:
        if not log.exists() or not os.path.samestat(os.fstat(handle), log.stat()):
            return original(handle, data)
        calls.append(len(data))
        found = answer(len(calls))
        if isinstance(found, OSError):
            raise found
        return original(handle, data[:found])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        yield calls


def test_lines_wait_until_a_full_disk_has_room(disk: Disk, log: Path) -> None:
    orphans(disk, 30)

    def answer(number: int) -> int | OSError:
        if number == 1:
            return 17  # what still fits
        return OSError(errno.ENOSPC, "No space left on device") if number < 4 else 1 << 20

    with faults(log, answer) as calls:
        result = go(disk, "--audit-log", log)
    assert result.exit_code == 0
    assert [line["path"] for line in read(log)] == list(rows(result))
    assert calls[0] < calls[2]  # what waited went along with what came later


def test_a_fault_that_deleting_does_not_mend_stops_the_run(disk: Disk, log: Path) -> None:
    orphans(disk, 2500)
    error = OSError(errno.EIO, "Input/output error")
    with faults(log, lambda number: error if number > 1 else 1 << 20):
        result = go(disk, "--audit-log", log)
    assert result.exit_code == 5
    states = [row["state"] for row in rows(result).values()]
    assert 0 < states.count("deleted") < len(states)
    assert "Input/output error" in result.errors
    disk_after = go(disk, "--audit-log", log)
    assert disk_after.exit_code == 0
    assert not disk.has_blob(sha256(b"7"))


def test_a_line_that_was_cut_short_spoils_no_other(disk: Disk, log: Path) -> None:
    log.write_bytes(b'{"event": "del')
    go(disk, "--audit-log", log)
    first, *rest = log.read_text().splitlines()
    assert first == '{"event": "del'
    assert all(json.loads(line)["event"] == "delete" for line in rest)
    assert rest


def test_a_log_that_is_removed_meanwhile_is_begun_anew(log: Path) -> None:
    sink = FileSink(str(log))
    sink.write([b"one\n"])
    log.unlink()
    sink.write([b"two\n"])
    moved = log.rename(log.with_suffix(".1"))
    sink.write([b"three\n"])
    assert moved.read_bytes() == b"two\nthree\n"
    moved.unlink()
    sink.write([])
    assert log.read_bytes() == b""
    log.unlink()
    log.mkdir()
    with pytest.raises(IsADirectoryError):
        sink.write([b"four\n"])
    sink.close()


def test_a_full_disk_leaves_no_half_line(log: Path) -> None:
    sink = FileSink(str(log))
    sink.write([b"one\n"])
    full = OSError(errno.ENOSPC, "No space left on device")
    with faults(log, lambda number: 3 if number == 1 else full), pytest.raises(NoRoom):
        sink.write([b"two\n", b"three\n"])
    assert log.read_bytes() == b"one\n"
    sink.write([b"two\n"])
    sink.close()
    assert log.read_bytes() == b"one\ntwo\n"


def test_where_a_file_can_only_be_appended_to_one_line_is_lost_at_most(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "ftruncate", refuse)
    sink = FileSink(str(log))
    full = OSError(errno.ENOSPC, "No space left on device")
    with faults(log, lambda number: 2 if number == 1 else full), pytest.raises(NoRoom):
        sink.write([b"one\n"])
    sink.write([b"one\n"])
    sink.close()
    assert log.read_bytes() == b"on\none\n"


def test_two_runs_never_write_into_one_anothers_lines(log: Path) -> None:
    letters = "abcd"

    def write(letter: str) -> None:
        sink = FileSink(str(log))
        for _ in range(50):
            sink.write([letter.encode() * 200 + b"\n"] * 20)
        sink.close()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in letters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = log.read_text().splitlines()
    assert len(lines) == 50 * 20 * 4
    assert set(lines) == {letter * 200 for letter in letters}


class Deaf:
    """A sink that never has room."""

    def write(self, lines: Any) -> None:
        """Refuse."""
        raise NoRoom(errno.ENOSPC, "full")

    def close(self) -> None:
        """Nothing to close."""


def test_not_more_lines_wait_than_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_gc.audit.log, "_MOST_WAITING", 3)
    audit = AuditLog(Deaf(), "run", lambda: 0.0)
    check = audit.guarded(lambda: Verdict("allowed", ()))
    for _ in range(3):
        audit.held([Hold("a", None, "")], lambda _: None)
        assert check().allowed
    audit.held([Hold("a", None, "")], lambda _: None)
    assert check().verdict == "refused"
    assert "4 lines" in audit.close()


def test_a_killed_run_has_told_of_nothing_that_did_not_happen(disk: Disk, log: Path) -> None:
    orphans(disk, 3000)
    arguments = ["--state-dir", disk.folder / "state", "--audit-log", log, write_config(disk.root)]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = [
        json.loads(line) for line in log.read_text().splitlines(keepends=True) if line[-1:] == "\n"
    ]
    assert told
    assert not [line["path"] for line in told if disk.has(line["path"])]
    assert go(disk, "--audit-log", log).exit_code == 0
    for line in log.read_text().splitlines()[len(told) + 1 :]:
        json.loads(line)


# Syslog


@contextmanager
def daemon(tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """rsyslogd with a TCP port and a socket; it writes facility and message to a file."""
    port, log, local = free_port(), tmp_path / "syslog", tmp_path / "log.sock"
    (tmp_path / "rsyslog.conf").write_text(
        f"""
        module(load="imuxsock" SysSock.Use="off")
        module(load="imtcp")
        module(load="imudp")
        input(type="imuxsock" Socket="{local}" RateLimit.Interval="0")
        input(type="imtcp" address="127.0.0.1" port="{port}")
        input(type="imudp" address="127.0.0.1" port="{port}")
        template(name="t" type="string" string="%syslogfacility-text% %programname%%msg%\\n")
        action(type="omfile" file="{log}" template="t" asyncWriting="off" flushOnTXEnd="on")
        """
    )
    command = [program("rsyslogd"), "-n", "-i", str(tmp_path / "pid"), "-f",
               str(tmp_path / "rsyslog.conf")]  # fmt: skip
    with running(command, [port], folder=tmp_path):
        yield port, local, log


@pytest.mark.parametrize("kind", ["socket", "tcp", "udp"])
def test_syslog_gets_each_line(disk: Disk, tmp_path: Path, kind: str) -> None:
    with daemon(tmp_path) as (port, local, log):
        target = {"socket": str(local), "tcp": f"tcp:127.0.0.1:{port}", "udp": f"127.0.0.1:{port}"}
        result = go(disk, "--audit-log", f"syslog:{target[kind]}")
        assert result.exit_code == 0, result.errors
        for _ in range(1000):
            if log.exists() and log.read_text().count("\n") >= len(rows(result)):
                break
            time.sleep(0.02)
    heads, lines = zip(*(line.split(" {", 1) for line in log.read_text().splitlines()), strict=True)
    assert {head.replace(":", "") for head in heads} == {"authpriv registry-gc"}
    found = [json.loads("{" + line) for line in lines]
    assert sorted(line["path"] for line in found) == sorted(rows(result))


@pytest.mark.parametrize(
    "target",
    ["syslog:/no/such/socket", "syslog:tcp:127.0.0.1:{port}", "syslog:no-such-host.invalid"],
)
def test_a_syslog_that_is_not_there_refuses(disk: Disk, target: str) -> None:
    files = disk.files()
    result = go(disk, "--audit-log", target.format(port=free_port()))
    assert result.exit_code == 4
    assert "the audit log cannot be written" in result.errors
    assert disk.files() == files


def test_a_facility_is_in_the_priority_of_each_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_of("syslog:local3")
    assert isinstance(sink, SyslogSink)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "log"))
        monkeypatch.setattr(sink, "_address", str(tmp_path / "log"))
        sink.write([b"{}\n"])
        sink.close()
        assert listener.recv(100) == b"<158>registry-gc: {}"  # 19 << 3 | 6


def test_a_daemon_that_was_restarted_is_connected_again(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    sink: Sink = sink_of(f"syslog:{path}")
    for number in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(path)
            sink.write([b"%d\n" % number])
            assert listener.recv(100).endswith(b"%d" % number)
        os.unlink(path)
    with pytest.raises(OSError, match="log"):
        sink.write([b"lost\n"])
    sink.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_stream_that_the_daemon_has_closed_is_connected_again(
    tmp_path: Path, family: socket.AddressFamily
) -> None:
    """Else what is sent first goes nowhere, and nobody is told."""
    with socket.socket(family) as listener:
        local = family == socket.AF_UNIX
        listener.bind(str(tmp_path / "log") if local else ("127.0.0.1", 0))
        listener.listen()
        where = listener.getsockname() if local else f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        sink: Sink = sink_of(f"syslog:{where}")
        for message in (b"one\n", b"two\n"):
            sink.write([message])
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100).endswith(message)
                sink.write([b"more " + message])
                assert connection.recv(100).endswith(b"more " + message)
        sink.close()


@pytest.mark.parametrize("target", ["syslog:host:port", "syslog:tcp:host:0", "syslog:[::1]:99999"])
def test_a_port_that_is_none_is_a_usage_error(disk: Disk, target: str) -> None:
    result = go(disk, "--audit-log", target)
    assert result.exit_code == 2
    assert "is no port" in result.errors


def test_a_pipe_that_nobody_reads_on_is_an_error_and_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_gc.audit.sinks, "_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with closing(FileSink(str(tmp_path / "pipe"))) as sink:
        sink.write([b"one\n"])
        with pytest.raises(OSError, match="nobody reads it"):
            sink.write([b"x" * (1 << 20)])
    assert os.read(reading, 4) == b"one\n"
    os.close(reading)
