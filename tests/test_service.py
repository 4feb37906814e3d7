"""What is found out before a registry is taken out of use, and how commands are run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from registry_drivers.filesystem import FilesystemStorage
from registry_gc.guard import Finding, Verdict
from registry_gc.lock import Lock
from registry_gc.machine.processes import Process, group_lives
from registry_gc.runs.past import past_runs
from registry_gc.service import commands
from registry_gc.service.away import Commands, settled
from registry_gc.service.commands import Shared, run_command, wait_for_command
from registry_gc.service.hearing import Hearing, in_lines
from running import Disk, write_config

STOP = Commands("stop", "start", True, 60.0)
READONLY = Commands("readonly", "readwrite", False, 60.0)
MAIN = "from registry_gc.cli.main import registry_garbage_collect as main; main()"


def verdict(kind: str, *codes: str) -> Verdict:
    assert kind in ("refused", "unknown", "allowed")
    return Verdict(kind, tuple(Finding(code, "") for code in codes))  # type: ignore[arg-type]  # above


@pytest.mark.parametrize(
    ("commands", "found", "left"),
    [
        (STOP, verdict("allowed", "stopped-confirmed"), "allowed"),
        (STOP, verdict("refused", "registry-writable"), "allowed"),
        (STOP, verdict("refused", "registry-answers", "writable-config"), "allowed"),
        (STOP, verdict("unknown", "probe-unauthorized"), "allowed"),
        (STOP, verdict("unknown", "probe-bad-address"), "unknown"),
        (STOP, verdict("refused", "registry-writable", "probe-bad-address"), "unknown"),
        (STOP, verdict("refused", "registry-writable", "scheduler-state"), "refused"),
        (STOP, verdict("refused", "redis-unreachable"), "refused"),
        (READONLY, verdict("refused", "writable-config", "registry-writable"), "allowed"),
        (READONLY, verdict("unknown", "probe-unauthorized"), "unknown"),
        (READONLY, verdict("refused", "writable-config", "database-in-use"), "refused"),
    ],
)
def test_only_what_a_command_changes_is_not_held_against_the_registry(
    commands: Commands, found: Verdict, left: str
) -> None:
    after = commands.verdict_without(found)
    assert after.verdict == left
    codes = {finding.code for finding in after.findings}
    assert ("command-not-run" in codes) is (after != found)


def test_the_wait_for_a_registry_ends_when_it_is_out_of_use_or_somebody_asks() -> None:
    answers = [verdict("refused"), verdict("refused"), verdict("allowed")]
    settled(lambda: answers.pop(0), lambda: False)
    assert answers == []
    settled(lambda: verdict("refused"), lambda: True)


def run_away(disk: Disk, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Collect with commands that only say that they were run."""
    calls = disk.folder / "calls"
    words = ["--stop-command", f"echo stop >>{calls}", "--start-command", f"echo start >>{calls}"]
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words, *options, str(write_config(disk.root))],
        env={**os.environ, "PYTHONPATH": places, "RGC_STATE_DIR": str(disk.folder / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().split() if calls.exists() else []


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk


def test_text_says_what_became_of_the_commands(disk: Disk) -> None:
    done, calls = run_away(disk)
    assert (done.returncode, calls) == (0, ["stop", "start"]), done.stderr
    assert "  stop          command done in " in done.stdout
    assert "  start         command done in " in done.stdout


def test_what_became_of_the_commands_is_in_the_run_file_too(disk: Disk) -> None:
    done, _ = run_away(disk, "--start-command", "exit 7")
    assert done.returncode == 1
    (past,) = past_runs(str(disk.folder / "state"))
    assert past.exit_code == 1
    assert "THE REGISTRY MAY STILL BE DOWN" in past.reason


def test_a_registry_is_not_stopped_while_another_run_holds_the_lock(disk: Disk) -> None:
    with Lock.acquire(FilesystemStorage(str(disk.root)), "other"):
        done, calls = run_away(disk)
    assert (done.returncode, calls) == (4, [])
    assert "holds the lock" in done.stderr


def test_a_registry_is_not_stopped_for_a_root_that_is_not_there(disk: Disk) -> None:
    disk.root.rename(disk.root.with_name("elsewhere"))
    done, calls = run_away(disk)
    assert (done.returncode, calls) == (4, [])


def test_a_registry_is_not_stopped_for_an_audit_log_that_cannot_be_written(disk: Disk) -> None:
    done, calls = run_away(disk, "--audit-log", "/nonexistent/audit", "--output", "json")
    assert (done.returncode, calls) == (4, [])
    codes = [finding["code"] for finding in json.loads(done.stdout)["guard"]["findings"]]
    assert codes.count("audit-log") == 1


def test_a_registry_is_not_stopped_for_an_audit_log_that_is_nowhere(disk: Disk) -> None:
    done, calls = run_away(disk, "--audit-log", "syslog:localhost:99999")
    assert (done.returncode, calls) == (2, []), done.stderr


def test_a_registry_is_not_stopped_for_a_run_file_that_is_another_file(disk: Disk) -> None:
    mine = disk.folder / "mine"
    mine.write_text("mine")
    done, calls = run_away(disk, "--run-file", str(mine), "--output", "json")
    assert (done.returncode, calls) == (1, []), done.stderr
    assert "exists already" in json.loads(done.stdout)["error"]
    assert mine.read_text() == "mine"


def test_a_limit_that_is_hit_starts_the_registry_again(disk: Disk) -> None:
    done, calls = run_away(disk, "--max-delete", "0")
    assert (done.returncode, calls) == (4, ["stop", "start"])


def run_elsewhere(command: str, prelude: str = "", **how: Any) -> subprocess.Popen[bytes]:
    """Run *command* from a process of its own, whose exit code is the command's."""
    program = (
        "import os\nfrom registry_gc.service.commands import Shared, run_command\n"
        f"{prelude}\nraise SystemExit(run_command('x', {command!r}, 60.0, Shared()).code)\n"
    )
    places = os.pathsep.join(place for place in sys.path if place)
    return subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": places}, **how
    )


def test_stderr_that_is_closed_does_not_keep_a_command_from_running(tmp_path: Path) -> None:
    process = run_elsewhere(f"echo said; echo done >{tmp_path}/done", "os.close(2)")
    assert process.wait() == 0
    assert (tmp_path / "done").exists()


def test_stderr_that_nobody_reads_any_more_does_not_end_a_command(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = run_elsewhere(f"echo said && echo done >{tmp_path}/done", stderr=writing)
    os.close(writing)
    assert process.wait() == 0
    assert (tmp_path / "done").exists()


def test_stderr_on_a_full_disk_does_not_fail_a_command(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = run_elsewhere(f"echo said && echo done >{tmp_path}/done", stderr=full)
    assert process.wait() == 0
    assert (tmp_path / "done").exists()


def test_stderr_that_stands_still_does_not_hold_up_a_command(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = run_elsewhere(f"seq 200000 && echo done >{tmp_path}/done", stderr=writing)
    os.close(writing)
    assert process.wait() == 0
    assert (tmp_path / "done").exists()
    os.close(reading)


def test_what_a_command_says_is_on_stderr_while_it_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    process = run_elsewhere(f"echo said; read go <{tmp_path}/go; echo end", stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process, process.stderr as said:
        assert said.readline() == b"said\n"
        (tmp_path / "go").write_text("go\n")
        assert said.read() == b"end\n"
    assert process.returncode == 0


def test_all_that_a_command_says_reaches_whoever_reads_it() -> None:
    process = run_elsewhere("seq 200000", stderr=subprocess.PIPE)
    assert process.communicate()[1].split() == [str(number).encode() for number in range(1, 200001)]


def test_what_a_command_says_does_not_grow_in_memory() -> None:
    heard: list[str] = []
    hearing = Hearing(in_lines(heard.append))
    for number in range(5):
        os.write(hearing.handle, b"x" * (2 << 20) + b"\n%d\n" % number)
        hearing.listen()
        assert os.fstat(hearing.handle).st_blocks * 512 < 64 << 10
    hearing.close()
    assert heard[-1] == "4"
    assert sum(map(len, heard)) < 64 << 10


def test_what_a_daemon_says_that_a_command_leaves_behind_takes_no_memory() -> None:
    hearing = Hearing(in_lines(lambda line: None))
    daemons = os.dup(hearing.handle)
    hearing.close()
    with pytest.raises(PermissionError):
        os.write(daemons, b"GET /v2/ 200")
    assert os.fstat(daemons).st_size == 0
    os.close(daemons)


def test_a_command_may_open_its_stderr_anew() -> None:
    heard: list[str] = []
    hearing = Hearing(in_lines(heard.append))
    for line in ("one\n", "two\n"):
        Path(f"/proc/self/fd/{hearing.handle}").write_text(line)
        hearing.listen()
    hearing.close()
    assert heard == ["one", "two"]


def test_a_command_is_run_where_there_is_no_memory_for_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    heard: list[str] = []
    ran = run_command("start", f"echo done >{tmp_path}/done", 60.0, Shared(), heard.append)
    assert (ran.error, (tmp_path / "done").exists(), heard) == ("", True, [])


def test_only_the_end_of_what_a_command_says_is_told() -> None:
    heard: list[str] = []
    run_command("stop", "seq 1000000; echo end", 60.0, Shared(), heard.append)
    assert heard[-1] == "stop command: end"
    assert len(heard) < 20_000


def test_a_command_that_dies_by_a_signal_says_which() -> None:
    ran = run_command("stop", "kill -TERM $$", 60.0, Shared())
    assert (ran.code, ran.error) == (-15, "the stop command was ended by SIGTERM")


def test_a_command_that_took_too_long_leaves_nobody_behind_who_ignores_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_KILL_SECONDS", 0.3)
    stubborn = f"echo $$ >{tmp_path}/group; (trap '' TERM; sleep 600; sleep 600)"
    ran = run_command("stop", stubborn, 0.3, Shared())
    assert ran.error == "the stop command took more than 0.3 s and was ended"
    assert not group_lives(int((tmp_path / "group").read_text()))


def test_a_command_whose_end_somebody_else_was_told_of_is_not_taken_for_done() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        ran = run_command("stop", "true", 60.0, Shared())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (ran.code, ran.error) == (None, "nobody knows how the stop command has ended")


def test_a_command_that_nobody_waits_for_any_more_is_ended_after_its_time() -> None:
    shared = Shared()
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    shared.command = process.pid, Process.here(process.pid).started
    wait_for_command(shared, 0.1)
    assert process.wait() == -15
    assert shared.command == (0, 0)
    wait_for_command(shared, 0.1)  # there is none


LIMITED = (
    "import resource\n"
    "from registry_gc.service import hearing\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {hard}))\n"
)
# As a user who may not raise what the kernel calls hard.
UNPRIVILEGED = (
    "plain = resource.prlimit\n"
    "def prlimit(pid, kind, limits):\n"
    "    if limits[1] != 4096: raise PermissionError(1, 'not permitted')\n"
    "    return plain(pid, kind, limits)\n"
    "resource.prlimit = prlimit\n"
)


def test_a_command_may_say_more_than_files_may_be_large(tmp_path: Path) -> None:
    prelude = LIMITED.format(hard="resource.RLIM_INFINITY")
    command = f"seq 20000 && echo done >{tmp_path}/done"
    process = run_elsewhere(command, prelude, stderr=subprocess.PIPE)
    said = process.communicate()[1]
    assert process.returncode == 0
    assert said.split()[-1] == b"20000"
    assert (tmp_path / "done").exists()


def test_where_that_limit_stays_a_command_is_run_and_not_heard(tmp_path: Path) -> None:
    prelude = LIMITED.format(hard="4096") + UNPRIVILEGED
    command = f"seq 20000 && echo done >{tmp_path}/done"
    process = run_elsewhere(command, prelude, stderr=subprocess.PIPE)
    said = process.communicate()[1]
    assert process.returncode == 0
    assert b"ulimit -f" in said
    assert (tmp_path / "done").exists()
