"""A run that was stopped, in whatever way, goes on: with the same command, or with apply."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from applying.support import DAY, call, states
from core_support import Watcher
from model import File, expect
from registry_drivers.base import Children, Deletion, Outcome, Storage
from registry_drivers.errors import AccessDenied
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.wrappers import Wrapper
from registry_gc.apply import apply, make_plan
from registry_gc.collect import Job, collect
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.lock import Lock
from registry_gc.machine.processes import Process
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_gc.runs import database
from registry_gc.runs.past import beginning
from registry_gc.runs.plan_file import PlanFile
from registry_tree import RegistryTree, blob_path, folder_sink, layer_link_path, sha256
from running import Result, empty_folders, files_below, run, write_config, write_files
from test_against_model import rich_registry
from windows import windows

ALLOWED = Verdict("allowed", ())


class Case:
    """A rich registry on disk, what must go of it with ``-m``, and a run file."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, File] = {}
        rich_registry(RegistryTree(self._write))
        now = time.time()
        self.root = folder / "registry"
        write_files(self.root, self.files, now)
        self.expected = expect(self.files, delete_untagged=True, now=now)
        self.run_file = folder / "run"
        self.config = write_config(self.root)

    def _write(self, path: str, data: bytes) -> None:
        self.files[path] = File(data, 30 * DAY)

    @property
    def gone(self) -> set[str]:
        """What is not there any more."""
        return set(self.files) - files_below(self.root)

    def job(self, storage: Storage | None = None) -> Job:
        """The collection, for those that do not go by the command line."""
        return Job(
            storage=storage or FilesystemStorage(str(self.root)),
            policy=Policy(delete_untagged=True),
            check=lambda: ALLOWED,
            run_file=str(self.run_file),
            config=str(self.config),
        )

    def command(self, *arguments: str) -> Result:
        """The collection, by its command line."""
        state = self.root.with_name("state")
        fixed = ("-m", "--run-file", str(self.run_file), "--output", "json")
        return run(*fixed, *arguments, self.config, state=state)

    def apply(self, *arguments: str) -> Result:
        """Go on with it, by the other command."""
        return call(self.root, "apply", self.run_file, *arguments)


@pytest.fixture(autouse=True)
def by_name() -> Iterator[None]:
    """Layer links are told by name, as in large registries: less is known of them then."""
    with windows({"marking.link_ages.FEW": 0}):
        yield


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


class Stopping(Wrapper):
    """Calls *stop* when it has deleted so many files."""

    def __init__(self, root: Path, after: int, stop: Callable[[], None]) -> None:
        super().__init__(FilesystemStorage(str(root)))
        self.after = after
        self.stop = stop

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """As the storage, and counted."""
        for outcome in super().delete(paths):
            yield outcome
            self.after -= outcome.path.startswith("docker/registry/v2/")
            if self.after == 0:
                self.stop()


def stop_after(case: Case, deletes: int, number: int = signal.SIGTERM) -> Report:
    """Collect, and stop as by a signal right after so many deletes."""
    interrupts = Interrupts()

    def stop() -> None:
        interrupts.number = number

    return collect(case.job(Stopping(case.root, deletes, stop)), Watcher(), interrupts)


WAYS = {"the same command": Case.command, "apply": Case.apply}
BOTH = pytest.mark.parametrize("way", WAYS)


@BOTH
@pytest.mark.parametrize("deletes", [1, 4, 9])
def test_a_run_that_was_stopped_goes_on_from_where_it_was(
    case: Case, deletes: int, way: str
) -> None:
    assert stop_after(case, deletes).exit_code == 143
    assert len(case.gone) == deletes
    with closing(sqlite3.connect(case.run_file)) as connection, connection:
        query = "SELECT path, finished FROM deletions WHERE state = 'deleted'"
        before = dict(connection.execute(query))
    assert len(before) == deletes
    again = WAYS[way](case)
    assert again.exit_code == 0, again.errors
    assert case.gone == case.expected.dead
    assert not empty_folders(case.root)
    with closing(sqlite3.connect(case.run_file)) as connection, connection:
        after = dict(connection.execute(query))
    assert before.items() <= after.items(), "what was done is not done again"
    assert states(case.run_file) == {"deleted": len(case.expected.dead)}
    # The report is about the whole run, both halves of it.
    assert again.json["blobs"]["deleted"] == len(case.expected.blobs)
    assert again.json["blobs"]["deleted_bytes"] == case.expected.bytes
    assert again.json["repositories"]["emptied"] == len(case.expected.emptied)


@BOTH
def test_what_was_pushed_while_a_run_was_stopped_stays(case: Case, way: str) -> None:
    assert stop_after(case, 1).exit_code == 143
    blobs = sorted(case.expected.blobs - {sha256(b"orphan")})
    for digest in blobs[:2]:
        folder_sink(case.root)(layer_link_path("new", digest), digest.encode())
    again = WAYS[way](case)
    assert again.exit_code == 0
    assert all((case.root / blob_path(digest)).exists() for digest in blobs[:2])
    assert again.json["taken_back"] >= 2


def test_a_run_that_has_ended_is_not_begun_again_with_its_file(case: Case) -> None:
    """A job that names the same file every week would do nothing from the second week on."""
    assert case.command().exit_code == 0
    again = case.command()
    assert again.exit_code == 1
    assert "exists already" in again.errors


def test_a_run_that_died_before_it_had_a_plan_begins_anew_with_its_file(case: Case) -> None:
    begun = PlanFile.create(str(case.run_file))
    of = FilesystemStorage(str(case.root))
    begun.record_meta(run="x", purpose="run", dry_run=False, driver=of.driver, root=of.root)
    begun.close()
    for named in ([], ["--config", str(case.config)]):
        refused = case.apply(*named)
        assert refused.exit_code == 4
        assert "ended before it had one" in refused.errors
    assert not case.gone
    assert case.command().exit_code == 0
    assert case.gone == case.expected.dead


def dead_process() -> dict[str, Any]:
    """What a run file says of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        gone = asdict(Process.here(process.pid))
    return {**gone, "started": 1}


@pytest.mark.parametrize("planned", [False, True])
def test_the_file_of_a_live_run_on_another_storage_is_left_to_it(case: Case, planned: bool) -> None:
    # The lock of this storage says nothing of whoever collects another one.
    facts: dict[str, Any] = {
        "run": "x",
        "purpose": "run",
        "driver": "filesystem",
        "root": "/elsewhere",
    }
    PlanFile.create(str(case.run_file), **facts, **beginning(), planned=planned).close()
    data, place = case.run_file.read_bytes(), case.run_file.stat().st_ino
    refused = case.command()
    assert refused.exit_code == 1
    assert "exists already" in refused.errors
    assert "going on" not in refused.errors
    assert (case.run_file.read_bytes(), case.run_file.stat().st_ino) == (data, place)
    assert not case.gone


@pytest.mark.parametrize("unknown", [False, True])
def test_the_file_of_a_run_on_another_storage_goes_only_where_that_is_known_to_be_over(
    case: Case, unknown: bool
) -> None:
    process = {**dead_process(), **({"host": "other", "boot": "other"} if unknown else {})}
    facts: dict[str, Any] = {
        "run": "x",
        "purpose": "run",
        "driver": "filesystem",
        "root": "/elsewhere",
    }
    PlanFile.create(str(case.run_file), **facts, process=process).close()
    assert case.command().exit_code == int(unknown)
    assert case.gone == (set() if unknown else case.expected.dead)


def test_a_run_file_says_from_the_beginning_of_what_storage_it_is(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    create = PlanFile.create

    def told(path: str, **meta: Any) -> PlanFile:
        said.append(meta)
        return create(path, **meta)

    monkeypatch.setattr(PlanFile, "create", told)
    job = case.job()
    assert collect(job, Watcher(), Interrupts()).exit_code == 0
    assert (said[0]["driver"], said[0]["root"]) == (job.storage.driver, job.storage.root)


KILLED_WHEN_IT_HAS_ITS_NAME = """
import os, signal, sys
link = os.link
def killed(new, path):
    link(new, path)
    if path == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
os.link = killed
from registry_gc.cli.main import registry_garbage_collect
registry_garbage_collect(sys.argv[2:])
"""


def test_a_run_that_was_killed_just_when_its_file_had_a_name_begins_anew_with_it(
    case: Case,
) -> None:
    """What a file says first is in it before it has its name."""
    file = str(case.run_file)
    state = str(case.root.with_name("state"))
    arguments = ("--registry-stopped", "--state-dir", state, "--run-file", file, str(case.config))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHEN_IT_HAS_ITS_NAME, file, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert case.run_file.exists()
    assert case.command().exit_code == 0
    assert case.gone == case.expected.dead


def test_a_dry_run_never_goes_on_with_a_file_nor_replaces_it(case: Case) -> None:
    assert stop_after(case, 3).exit_code == 143
    data = case.run_file.read_bytes()
    dry = case.command("--dry-run")
    assert dry.exit_code == 1
    assert case.run_file.read_bytes() == data


def test_a_plan_is_not_taken_for_a_run_that_was_stopped(case: Case) -> None:
    """It may have been made for another time; only apply carries it out."""
    made = call(case.root, "plan", "-m", "-o", case.run_file, case.config)
    assert made.exit_code == 0
    assert case.command().exit_code == 1
    assert not case.gone
    assert case.apply().exit_code == 0
    assert case.gone == case.expected.dead


def test_going_on_with_other_options_is_a_usage_error(case: Case) -> None:
    assert stop_after(case, 3).exit_code == 143
    before = case.gone
    other = run(
        "--run-file", str(case.run_file), case.config, state=case.root.with_name("state")
    )  # without -m
    assert other.exit_code == 2
    assert "delete_untagged" in other.errors
    assert case.gone == before


def test_what_could_not_be_deleted_is_tried_again(case: Case) -> None:
    class Denying(Wrapper):
        """Deletes no blob."""

        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            """Fail for blobs."""
            for path in paths:
                if "/blobs/" in path:
                    yield Outcome(path, Deletion.FAILED, "denied")
                else:
                    yield from super().delete([path])

    storage = Denying(FilesystemStorage(str(case.root)))
    first = collect(case.job(storage), Watcher(), Interrupts())
    assert first.exit_code == 3
    assert len(first.failed) == len(case.expected.blobs)
    again = case.apply()
    assert again.exit_code == 0
    assert again.json["failed"] == []
    assert case.gone == case.expected.dead


def test_a_run_that_lost_its_lock_goes_on_when_it_has_it_again(case: Case) -> None:
    def steal() -> None:
        (case.root / "docker/registry/registry-gc/lock").unlink()

    first = collect(case.job(Stopping(case.root, 4, steal)), Watcher(), Interrupts())
    assert first.exit_code == 5
    assert not case.gone >= case.expected.dead
    assert case.apply().exit_code == 0
    assert case.gone == case.expected.dead


# Deadlines


def test_a_deadline_stops_a_sweep_with_exit_code_5_and_it_goes_on_later(case: Case) -> None:
    report = stop_after(case, 4, signal.SIGALRM)
    assert report.exit_code == 5
    assert "deadline" in (report.error or "")
    assert len(case.gone) == 4
    assert case.apply().exit_code == 0
    assert case.gone == case.expected.dead


@pytest.mark.parametrize(
    ("deadline", "code"), [("2001-01-01", 2), ("2001-01-01T05:00:00Z", 2), ("1us", 5)]
)
def test_a_deadline_that_has_passed_lets_nothing_go(case: Case, deadline: str, code: int) -> None:
    done = case.command("--deadline", deadline)
    assert done.exit_code == code
    assert "deadline" in done.errors
    assert not case.gone
    assert case.command("--deadline", "10h").exit_code == 0
    assert case.gone == case.expected.dead


# Two at once


def test_a_run_file_that_another_process_writes_to_is_left_alone(case: Case) -> None:
    assert case.command("--dry-run").exit_code == 0
    other = sqlite3.connect(case.run_file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    done = case.command()
    other.close()
    assert (done.exit_code, case.gone) == (1, set())
    assert str(case.run_file) in done.errors


def test_of_two_that_go_on_with_the_same_run_one_is_refused(case: Case) -> None:
    assert stop_after(case, 3).exit_code == 143
    before = case.gone
    with Lock.acquire(FilesystemStorage(str(case.root)), "another"):
        second = case.apply()
    assert second.exit_code == 4
    assert {finding["code"] for finding in second.json["guard"]["findings"]} >= {"locked"}
    assert case.gone == before
    assert case.apply().exit_code == 0


def test_two_applies_of_one_plan_at_once_delete_what_one_would(case: Case) -> None:
    """Started as processes side by side: one is refused, or comes too late."""
    made = call(case.root, "plan", "-m", "-o", case.run_file, case.config)
    assert made.exit_code == 0
    places = os.pathsep.join(place for place in sys.path if place)
    command = [sys.executable, "-c", "from registry_gc.cli.main import registry_gc as r; r()"]
    command += ["apply", str(case.run_file), "--state-dir", str(case.root.with_name("state"))]
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": places},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    answers = [process.communicate()[1] for process in running]
    results = sorted(process.returncode for process in running)
    assert results in ([0, 0], [0, 4]), answers
    assert case.gone == case.expected.dead


# Disks


@contextmanager
def no_room(patch: pytest.MonkeyPatch, memory: Path) -> Iterator[None]:
    """No run file that is opened in here can grow by more than a page; memory has room."""
    memory.mkdir()
    connect = database.connect

    def limited(path: str) -> sqlite3.Connection:
        connection = connect(path)
        if not path.startswith(str(memory)):
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {max(pages, 6)}")
        return connection

    with patch.context() as inside:
        inside.setattr(database, "IN_MEMORY", (str(memory),))
        inside.setattr(database, "connect", limited)
        inside.setattr("registry_gc.runs.plan_file.connect", limited)
        yield


def test_a_full_disk_under_the_plan_stops_neither_plan_nor_apply(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in memory; and what is left on the disk can be gone on with, too."""
    for number in range(300):
        path = layer_link_path("many", sha256(b"%d" % number))
        (case.root / path).parent.mkdir(parents=True)
        (case.root / path).write_text(sha256(b"%d" % number))
    with no_room(monkeypatch, tmp_path / "memory"):
        planned = make_plan(case.job(), Watcher(), Interrupts())
    assert planned.exit_code == 0
    assert planned.run_file is not None
    assert Path(planned.run_file).is_relative_to(tmp_path / "memory")
    os.replace(planned.run_file, case.run_file)
    before = PlanFile.open(str(case.run_file))
    rows = sum(1 for _ in before.all_rows())
    before.close()
    watcher = Watcher()
    with no_room(monkeypatch, tmp_path / "more memory"):
        done = apply(case.job(), watcher, Interrupts())
    assert done.exit_code == 0, done.error
    assert case.gone == case.expected.dead
    assert rows > 300
    assert not any((case.root / "docker/registry/v2/repositories/many").rglob("link"))


def test_on_read_only_storage_nothing_is_deleted_and_it_says_so(case: Case) -> None:
    class Frozen(Wrapper):
        """Reads only, as a file system that is mounted so."""

        def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
            """Refuse."""
            raise AccessDenied("Read-only file system", path=path, driver="filesystem")

        def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
            """Refuse each."""
            for path in paths:
                yield Outcome(path, Deletion.FAILED, "Read-only file system")

    assert make_plan(case.job(), Watcher(), Interrupts()).exit_code == 0
    storage = Frozen(FilesystemStorage(str(case.root)))
    done = apply(case.job(storage), Watcher(), Interrupts())
    assert done.exit_code == 1
    assert "Read-only file system" in (done.error or "")
    assert not case.gone
    # A plan may be made of it, since that only reads.
    case.run_file.unlink()
    assert make_plan(case.job(storage), Watcher(), Interrupts()).exit_code == 0


def test_a_second_look_that_fails_lets_nothing_go(case: Case) -> None:
    class Broken(Wrapper):
        """Cannot list blobs."""

        def children(self, prefix: str) -> Children:
            """Fail for blobs."""
            if "/blobs/" in prefix:
                raise AccessDenied("denied", path=prefix, driver="filesystem")
            return super().children(prefix)

    assert make_plan(case.job(), Watcher(), Interrupts()).exit_code == 0
    storage = Broken(FilesystemStorage(str(case.root)))
    done = apply(case.job(storage), Watcher(), Interrupts())
    assert done.exit_code == 1
    assert not case.gone
    assert states(case.run_file).keys() == {"planned"}
    assert apply(case.job(), Watcher(), Interrupts()).exit_code == 0
    assert case.gone == case.expected.dead


def test_nothing_of_a_second_look_is_left_beside_the_plan(case: Case) -> None:
    assert stop_after(case, 2).exit_code == 143
    look = case.run_file.with_name("run.look")
    look.write_bytes(b"left by a run that was killed while it looked")
    assert case.apply().exit_code == 0
    assert [path.name for path in case.run_file.parent.glob("run*")] == ["run"]


def test_limits_count_for_an_apply_too(case: Case) -> None:
    assert make_plan(case.job(), Watcher(), Interrupts()).exit_code == 0
    done = case.apply("--max-delete", "1")
    assert done.exit_code == 4
    assert not case.gone
