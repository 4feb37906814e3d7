"""A registry is brought back only while no run deletes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry_drivers.base import Children
from registry_drivers.factory import StorageSpec
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.lock import Lock, blocker
from registry_gc.service.between import place_of, same_place
from registry_gc.service.turn import while_nobody_deletes
from running import Disk, write_config

MAIN = "from registry_gc.cli.main import registry_garbage_collect as main; main()"
WAITS = "the registry stays out of use until another run has ended"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk


def environment(disk: Disk) -> dict[str, str]:
    """That of a process which knows our sources, and has a state directory of its own."""
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places, "RGC_STATE_DIR": str(disk.folder / "state")}


@contextmanager
def held_in_its_command(
    disk: Disk, held: str = "stop"
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A run of which one command goes on when the handle is written to."""
    calls, gate = disk.folder / "calls", disk.folder / "gate"
    os.mkfifo(gate)
    first = {name: f"read go <{gate}; " * (name == held) for name in ("stop", "start")}
    words = [
        "--stop-command", f"{first['stop']}echo stop >>{calls}",
        "--start-command", f"{first['start']}echo start >>{calls}",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *words, str(write_config(disk.root))],
        env=environment(disk),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        yield process, os.open(gate, os.O_WRONLY)


def said_until(process: subprocess.Popen[str], text: str) -> str:
    """What the run says, up to the line with *text*."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def let_go(gate: int) -> None:
    os.write(gate, b"go\n")
    os.close(gate)


def test_the_registry_is_not_started_while_another_run_deletes(disk: Disk) -> None:
    with held_in_its_command(disk) as (process, gate):
        with Lock.acquire(FilesystemStorage(str(disk.root)), "other"):
            let_go(gate)
            said_until(process, WAITS)
            assert (disk.folder / "calls").read_text().split() == ["stop"]
        process.communicate()
    assert process.returncode == 4
    assert (disk.folder / "calls").read_text().split() == ["stop", "start"]


def test_nor_is_it_when_the_collection_was_killed(disk: Disk) -> None:
    with held_in_its_command(disk) as (process, gate):
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        with Lock.acquire(FilesystemStorage(str(disk.root)), "other"):
            let_go(gate)
            said_until(process, WAITS)
            assert (disk.folder / "calls").read_text().split() == ["stop"]
        process.communicate()
    assert process.returncode == 1
    assert (disk.folder / "calls").read_text().split() == ["stop", "start"]


def test_nobody_gets_the_lock_before_it_is_let_go(disk: Disk) -> None:
    storage = FilesystemStorage(str(disk.root))
    with while_nobody_deletes(storage, pytest.fail):
        assert blocker(storage) is not None
    assert blocker(storage) is None


def test_a_lock_of_ones_own_that_could_not_be_removed_is_not_waited_for(disk: Disk) -> None:
    storage = FilesystemStorage(str(disk.root))
    with Lock.acquire(storage, "own"), while_nobody_deletes(storage, pytest.fail):
        pass


def test_a_registry_is_brought_back_although_the_lock_cannot_be_had(disk: Disk) -> None:
    disk.write("docker/registry/registry-gc", b"in the way")
    heard: list[str] = []
    with while_nobody_deletes(FilesystemStorage(str(disk.root)), heard.append):
        assert heard[0].startswith("the registry is brought back without the lock: ")


def test_nothing_is_written_where_the_disk_is_not_mounted_any_more(tmp_path: Path) -> None:
    (tmp_path / "docker/registry").mkdir(parents=True)
    with while_nobody_deletes(FilesystemStorage(str(tmp_path)), pytest.fail):
        assert os.listdir(tmp_path / "docker/registry") == []


class Silent(FilesystemStorage):
    """Answers nothing until it is told to, as a server that is gone or a disk that hangs."""

    answers: threading.Event

    def children(self, prefix: str) -> Children:
        self.answers.wait()
        return super().children(prefix)


def test_a_storage_that_does_not_answer_keeps_no_registry_down(disk: Disk) -> None:
    storage = Silent(str(disk.root))
    storage.answers = threading.Event()
    heard: list[str] = []
    with while_nobody_deletes(storage, heard.append, patience=0.01):
        assert heard == ["the registry is brought back without the lock: no answer"]
    storage.answers.set()
    for thread in threading.enumerate():
        if thread.name == "turn":
            thread.join()
    assert blocker(FilesystemStorage(str(disk.root))) is None


def start(disk: Disk, *words: str) -> subprocess.CompletedProcess[str]:
    """A run with commands, to its end."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, "--output", "json", *words, str(write_config(disk.root))],
        env=environment(disk),
        capture_output=True,
        text=True,
    )


def test_the_lock_is_free_when_the_registry_is_started(disk: Disk) -> None:
    """The command may be another of ours, or unmount the storage."""
    again = f"{sys.executable} -c '{MAIN}' --registry-stopped --quiet"
    config = write_config(disk.root)
    done = start(
        disk,
        "--stop-command", "true",
        "--start-command", f"{again} {config} && echo start >{disk.folder}/calls",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (disk.folder / "calls").read_text() == "start\n"


def test_a_pipe_for_the_audit_log_is_not_closed_before_the_run(disk: Disk) -> None:
    """Who reads it would take that for the end."""
    pipe = disk.folder / "audit"
    os.mkfifo(pipe)
    with (disk.folder / "shipped").open("wb") as shipped:
        reader = subprocess.Popen(["cat", str(pipe)], stdout=shipped)
    words = ("--stop-command", "true", "--start-command", "true", "--audit-log", str(pipe))
    done = start(disk, *words)
    assert done.returncode == 0, done.stderr
    reader.wait(30)
    assert b"deleted" in (disk.folder / "shipped").read_bytes()


def test_a_registry_that_stays_down_has_a_document_whatever_became_of_the_run(disk: Disk) -> None:
    config = write_config(disk.root)
    done = start(
        disk,
        "--readonly-command", f"echo '[' >{config}",
        "--readwrite-command", "false",
    )  # fmt: skip
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["exit_code"], "READ-ONLY" in document["error"]) == (1, True)


@pytest.mark.parametrize("words", [(), ("--log-format", "json")])
def test_a_stderr_that_stands_still_keeps_no_registry_down(
    disk: Disk, words: tuple[str, ...]
) -> None:
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, b"x")
    os.set_blocking(full, True)
    calls = disk.folder / "calls"
    commands = ("--stop-command", "seq 999", "--start-command", f"echo start >{calls}")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *words, *commands, str(write_config(disk.root))],
        env=environment(disk),
        stdout=subprocess.DEVNULL,
        stderr=full,
    )
    assert process.wait(120) == 0
    assert calls.read_text() == "start\n"
    os.close(unread)
    os.close(full)


# --- two runs of one machine


def refused(disk: Disk, *words: str) -> None:
    """A run is refused since another one has the registry out of use."""
    done = start(disk, *words)
    document = json.loads(done.stdout)
    assert (done.returncode, document["guard"]["verdict"]) == (4, "refused"), done.stderr
    assert "of this machine has the registry out of use" in done.stderr
    assert "locked" in [finding["code"] for finding in document["guard"]["findings"]]
    assert document["blobs"]["deleted"] == 0


def purge(disk: Disk) -> subprocess.CompletedProcess[str]:
    """A purge with the same state directory."""
    code = "from registry_gc.cli.main import registry_gc; registry_gc()"
    return subprocess.run(
        [sys.executable, "-c", code, "purge", "--registry-stopped", str(write_config(disk.root))],
        env=environment(disk),
        capture_output=True,
        text=True,
    )


AROUND = ("--stop-command", "echo other >>{calls}", "--start-command", "echo other >>{calls}")


@pytest.mark.parametrize("held", ["stop", "start"])
def test_no_other_run_begins_between_stop_and_start(disk: Disk, held: str) -> None:
    with held_in_its_command(disk, held) as (process, gate):
        refused(disk, *(word.format(calls=disk.folder / "calls") for word in AROUND))
        refused(disk, "--registry-stopped")
        purged = purge(disk)
        assert (purged.returncode, "has the registry out of use" in purged.stderr) == (4, True)
        told = start(disk, "--registry-stopped", "--dry-run")
        assert (told.returncode, json.loads(told.stdout)["guard"]["verdict"]) == (0, "refused")
        let_go(gate)
        process.communicate()
    assert process.returncode == 0
    assert (disk.folder / "calls").read_text().split() == ["stop", "start"]
    assert start(disk, "--registry-stopped").returncode == 0


@pytest.mark.parametrize("which", ["child", "parent"])
def test_nor_while_one_process_of_two_is_left_to_start_the_registry(disk: Disk, which: str) -> None:
    with held_in_its_command(disk) as (process, gate):
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child) if which == "child" else process.pid, signal.SIGKILL)
        refused(disk, "--registry-stopped")
        let_go(gate)
        process.communicate()
    assert (disk.folder / "calls").read_text().split() == ["stop", "start"]


def test_the_next_run_begins_when_nobody_is_left_to_start_the_registry(disk: Disk) -> None:
    with held_in_its_command(disk) as (process, gate):
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in (process.pid, int(child)):
            os.kill(number, signal.SIGKILL)
        let_go(gate)
        process.communicate()
    assert start(disk, "--registry-stopped").returncode == 0


def test_one_storage_has_one_place_however_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    def place(driver: str, **parameters: object) -> str:
        return place_of("/state", StorageSpec(driver, parameters))

    folder = place("filesystem", rootdirectory=str(tmp_path))
    assert place("filesystem", rootdirectory=f"{tmp_path}/link/") == folder
    assert place("filesystem") != folder
    bucket = place("s3", bucket="b", rootdirectory="/x")
    assert place("s3_v2", bucket="b", rootdirectory="x/", region="r") == bucket
    assert len({bucket, place("gcs", bucket="b", rootdirectory="x"), place("s3", bucket="b")}) == 3
    # Two registries are never one.
    servers = {place("s3", bucket="b", regionendpoint=f"http://{name}") for name in "ab"}
    accounts = {place("azure", container="c", accountname=name) for name in "ab"}
    strings = {place("azure", container="c", connectionstring=name) for name in "ab"}
    assert len(servers | accounts | strings | {bucket}) == 7


def test_a_storage_is_the_same_by_its_words_or_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    def same(one: tuple[str, dict[str, object]], other: tuple[str, dict[str, object]]) -> bool:
        return same_place(StorageSpec(*one), StorageSpec(*other))

    folder = ("filesystem", {"rootdirectory": str(tmp_path), "maxthreads": 3})
    assert same(folder, ("filesystem", {"rootdirectory": f"{tmp_path}/link/"}))
    assert same(("filesystem", {}), ("filesystem", {"rootdirectory": "/var/lib/registry"}))
    assert same(("filesystem", {"rootdirectory": "/x"}), ("filesystem", {"rootdirectory": "/x"}))
    assert not same(folder, ("filesystem", {"rootdirectory": str(tmp_path.parent)}))
    assert not same(folder, ("s3", {"rootdirectory": str(tmp_path), "bucket": "b"}))
    bucket: tuple[str, dict[str, object]] = ("s3", {"bucket": "b", "rootdirectory": "/x"})
    assert same(bucket, ("s3aws", {"bucket": "b", "rootdirectory": "x/", "accesskey": "k"}))
    for changed in ({"bucket": "c"}, {"rootdirectory": "y"}, {"region": "r"}):
        assert not same(bucket, ("s3", {**bucket[1], **changed}))


def test_a_lock_that_cannot_be_made_is_told_and_keeps_nobody_out(disk: Disk) -> None:
    state = disk.folder / "state"
    state.mkdir()
    (state / "away").touch()
    done = start(disk, "--stop-command", "true", "--start-command", "true")
    assert done.returncode == 0
    assert "another run of this machine may begin" in done.stderr
