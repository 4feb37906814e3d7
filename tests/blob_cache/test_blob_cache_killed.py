"""A run that is killed before Redis has forgotten what it deleted, wherever its run file lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from registry_gc.service.commands import Shared
from registry_tree import sha256
from running import Disk, write_config
from servers.redis import RedisServer, entries

PROGRAM = """
import os, signal, sys
from registry_gc.blob_cache import journals
from registry_gc.blob_cache.forgetting import RedisCache
from registry_gc.runs import database, state_dir
from registry_gc.session import Session
for module in (database, journals, state_dir):
    module.IN_MEMORY = (os.environ["MEMORY"],)
def die(cache, run_file=None, outcomes=()):
    {first}
    os.kill(os.getpid(), signal.SIGKILL)
{kill}
from registry_gc.cli.main import registry_garbage_collect
registry_garbage_collect()
"""
# After the first deletes were written down, and before their entries are removed.
KILL = "RedisCache.settled = die"
KILL_BEFORE = "Session._sweep = die"
# Redis lets nobody delete any more when the first deletes were written down.
LOSE = """
plain = RedisCache.settled
def settled(cache, *words):
    os.system("redis-cli -p {port} ACL SETUSER default -del -srem >&2")
    plain(cache, *words)
RedisCache.settled = settled
"""
# And lets them again right before the registry is started.
RESTORE = """
from registry_gc.cli import away
forget = away._forget
def restored(*words):
    os.system("redis-cli -p {port} ACL SETUSER default +del +srem >&2")
    forget(*words)
away._forget = restored
"""
LOUD = "THE REGISTRY'S REDIS MAY REMEMBER BLOBS THAT ARE GONE"
ORPHAN = sha256(b"orphan")


class Case:
    """A registry with garbage that its Redis remembers, and a command for it."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        self.folder = folder
        self.redis = redis
        self.disk = Disk(folder / "disk")
        self.disk.tree.image("a", "v1", layers=[b"kept"])
        self.disk.tree.layer("b", b"orphan")
        self.disk.age()
        self.config = write_config(self.disk.root, extra={"cache": {"blobdescriptor": "redis"}})
        document = {**yaml.safe_load(self.config.read_text()), "redis": {"addr": redis.address}}
        self.config.write_text(yaml.safe_dump(document))
        for name in ("tmp", "memory", "state"):
            (folder / name).mkdir()
        redis.remember("b", ORPHAN)

    def run(
        self, *options: str, state: str = "state", kill: str = "", first: str = "pass"
    ) -> subprocess.CompletedProcess[str]:
        """Collect in a process of its own; *first* is what a run does before it is killed."""
        places = os.pathsep.join(place for place in sys.path if place)
        folders = {"TMPDIR": str(self.folder / "tmp"), "MEMORY": str(self.folder / "memory")}
        words = ["--state-dir", str(self.folder / state), *options, str(self.config)]
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(first=first, kill=kill), *words],
            env={**os.environ, **folders, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def around(self) -> tuple[str, ...]:
        """Commands, of which the second keeps what Redis has by then."""
        seen = f"redis-cli -p {self.redis.port} KEYS '*' >{self.folder}/seen"
        return "--stop-command", "true", "--start-command", seen

    @property
    def seen(self) -> str:
        """What Redis had when the registry was started."""
        return (self.folder / "seen").read_text()

    def forgotten(self) -> bool:
        return not entries(self.redis, [ORPHAN])


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with RedisServer(tmp_path / "redis").running() as redis:
        yield Case(tmp_path, redis)


@pytest.fixture(params=["elsewhere", "no state directory", "no room for run files", "no room"])
def options(case: Case, request: pytest.FixtureRequest) -> dict[str, str]:
    """Where the run file goes: the state directory is a file, or cannot be written to."""
    if request.param == "elsewhere":
        return {"run_file": str(case.folder / "run")}
    if request.param == "no state directory":
        (case.folder / "file").touch()
        return {"state": "file/state"}
    (case.folder / "state" / "runs").touch()
    if request.param == "no room":
        (case.folder / "state" / "unforgotten").touch()
    return {}


def words(options: dict[str, str]) -> list[str]:
    return ["--run-file", options["run_file"]] if "run_file" in options else []


def test_what_a_killed_run_has_left_is_found_by_the_next_one(
    case: Case, options: dict[str, str]
) -> None:
    state = options.get("state", "state")
    dead = case.run(*words(options), state=state, kill=KILL)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert not case.forgotten()
    done = case.run()
    assert done.returncode == 0, done.stderr
    assert "removed from Redis what the run of" in done.stderr
    assert case.forgotten()
    assert "removed from Redis" not in case.run().stderr


def test_what_a_killed_run_has_left_is_removed_before_the_registry_is_started(
    case: Case, options: dict[str, str]
) -> None:
    state = options.get("state", "state")
    dead = case.run(*case.around, *words(options), state=state, kill=KILL)
    assert dead.returncode == 1
    assert "was killed by SIGKILL" in dead.stderr
    assert ORPHAN not in case.seen
    assert case.forgotten()
    assert dead.stderr.count("the state directory") <= 1, "one folder in its place, not several"


def test_where_the_run_file_of_a_killed_run_is_gone_it_says_loudly_to_empty_redis(
    case: Case,
) -> None:
    dead = case.run(*case.around, kill=KILL, first="os.unlink(run_file.path)")
    assert dead.returncode == 1
    assert ORPHAN in case.seen
    assert LOUD in dead.stderr
    assert "FLUSHDB" in dead.stderr


def test_a_redis_that_is_lost_after_the_run_was_killed_is_loud(case: Case) -> None:
    lose = f"os.system('redis-cli -p {case.redis.port} ACL SETUSER default -del -srem >&2')"
    dead = case.run(*case.around, kill=KILL, first=lose)
    assert dead.returncode == 1
    assert LOUD in dead.stderr.splitlines()[-1]
    case.redis.send("ACL", "SETUSER", "default", "+del", "+srem")
    assert case.run().returncode == 0
    assert case.forgotten()


def test_a_redis_that_stays_lost_when_the_registry_is_started_is_loud(case: Case) -> None:
    done = case.run(*case.around, kill=LOSE.format(port=case.redis.port))
    assert done.returncode == 5
    assert ORPHAN in case.seen
    assert LOUD in done.stderr.splitlines()[-1]


def test_a_redis_that_is_back_before_the_registry_is_has_forgotten_all(case: Case) -> None:
    hooks = (LOSE + RESTORE).format(port=case.redis.port)
    done = case.run(*case.around, "--output", "json", kill=hooks)
    assert done.returncode == 5
    assert ORPHAN not in case.seen
    assert "REDIS MAY REMEMBER" not in done.stderr
    document = json.loads(done.stdout)
    assert document["blob_cache"]["left"] == 0
    assert "may still be in" not in document["error"]


def test_a_run_that_is_killed_before_it_deletes_anything_says_nothing_of_redis(case: Case) -> None:
    dead = case.run(*case.around, kill=KILL_BEFORE)
    assert dead.returncode == 1
    assert "REDIS" not in dead.stderr
    assert case.disk.has_blob(ORPHAN)


def test_the_longest_path_is_shared_whole() -> None:
    shared = Shared()
    assert shared.run_file == ""
    path = "/" + "é\udcff" * 1365
    shared.command = 7, 8
    shared.begun(path)
    assert (shared.run_file, shared.command, shared.away) == (path, (7, 8), False)
