"""kill -9 at random moments over all phases: nothing live is lost, and the end is the same.

After each kill everything that is live is there. Then the same command goes on by itself, until
one run comes to its end; the storage is then what it is after a run that was never stopped.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from applying.support import DAY
from killing import Victim, reached_by
from model import File, expect
from registry_tree import RegistryTree
from running import empty_folders, files_below, scratch, write_config, write_files
from servers.moto import moto
from stores import LATER, Place, keys_of, own_keys, store
from test_against_model import rich_registry

# Rounds of two kills each: 40 in all, or 500.
ON_DISK, ON_DISK_LONG = 15, 188
IN_S3, IN_S3_LONG = 5, 62


def moments(count: int, whole: float) -> list[float]:
    """Random moments of a whole, one in each of *count* equal parts, in random order."""
    found = [(number + random.random()) * whole / count for number in range(count)]
    random.shuffle(found)
    return found


def registry_files() -> dict[str, File]:
    """One of everything, and enough of it that deleting takes a while."""
    files: dict[str, File] = {}
    tree = RegistryTree(lambda path, data: files.update({path: File(data, 30 * DAY)}))
    rich_registry(tree)
    for number in range(8):
        tree.image("many", "latest", layers=[b"base", b"layer %d" % number], config=b"%d" % number)
    tree.image("many", "kept", layers=[b"base", b"layer 3"])
    return files


def kill_and_go_on(
    victim: Victim,
    run_file: Path,
    kills: Sequence[Callable[[], bool]],
    look: Callable[[], set[str]],
    dead: frozenset[str],
) -> set[str]:
    """Run until one run ends by itself; returns the phases in which one was killed."""
    phases: set[str] = set()
    for kill in kills:
        killed = kill()
        assert look() <= dead, "a file is gone that something live needs"
        if not killed:
            return phases
        phases.add(reached_by(run_file))
        if reached_by(run_file) == "finished":
            return phases  # killed between its last word and its end
    victim.run()
    return phases


@pytest.mark.timeout(3600)
def test_killed_at_any_moment_on_a_filesystem_the_end_is_the_same(long: bool) -> None:
    files, now = registry_files(), time.time()
    expected = expect(files, delete_untagged=True, now=now)
    rounds = ON_DISK_LONG if long else ON_DISK
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    random.seed(seed)
    phases: set[str] = set()
    with scratch() as folder:
        template, root, run_file = folder / "template", folder / "registry", folder / "run"
        write_files(template, files, now)
        arguments = ["run", "-m", "--quiet", "--run-file", str(run_file), str(write_config(root))]
        victim = Victim(folder, [*arguments, "--state-dir", str(folder / "state")])

        def begin() -> None:
            for path in (root, folder / "state"):
                shutil.rmtree(path, ignore_errors=True)
            for path in folder.glob("run*"):
                path.unlink()
            shutil.copytree(template, root)

        begin()
        victim.run()
        begin()
        seconds, events = victim.run()
        # One is killed from outside at a time, the other by itself at an event.
        by_time, by_event = moments(rounds, seconds), moments(rounds, events)
        for number in range(rounds):
            begin()
            kills: list[Callable[[], bool]] = [
                partial(victim.run_for, by_time[number]),
                partial(victim.run_until, 1 + int(by_event[number])),
            ]
            random.shuffle(kills)
            phases |= kill_and_go_on(
                victim, run_file, kills, lambda: set(files) - files_below(root), expected.dead
            )
            assert set(files) - files_below(root) == expected.dead, victim.said
            assert not empty_folders(root)
    # On a slow machine few moments lie in the deletes themselves.
    assert "finding out" in phases
    assert phases & {"deleting", "tidying", "finished"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Callable[[], Place]]:
    """Makes places in one S3 server, each empty."""
    with ExitStack() as stack:
        server = stack.enter_context(moto(tmp_path))
        yield lambda: Place("s3", server.parameters(server.bucket()))


@pytest.mark.timeout(3600)
def test_killed_at_any_moment_on_s3_the_end_is_the_same(
    place: Callable[[], Place], tmp_path: Path, long: bool
) -> None:
    files = registry_files()
    expected = expect(files, delete_untagged=True, now=time.time() + LATER)
    objects = {path: file.data for path, file in files.items()}
    phases: set[str] = set()

    def begin(name: str) -> tuple[Place, Victim]:
        folder = tmp_path / name
        folder.mkdir()
        there = place()
        store(there, objects)
        arguments = ["run", "-m", "--quiet", "--run-file", str(folder / "run")]
        arguments += ["--state-dir", str(folder / "state"), str(there.config(folder))]
        return there, Victim(folder, arguments, later=True)

    _, victim = begin("first")
    victim.run()
    _, victim = begin("second")
    seconds, _ = victim.run()
    for number, at in enumerate(moments(IN_S3_LONG if long else IN_S3, seconds)):
        there, victim = begin(str(number))

        def gone(there: Place = there) -> set[str]:
            return set(objects) - keys_of(there)

        kills = [partial(victim.run_for, at), partial(victim.run_for, random.random() * seconds)]
        met = kill_and_go_on(victim, victim.folder / "run", kills, gone, expected.dead)
        assert gone() == expected.dead, victim.said
        if "finished" not in met:
            assert not own_keys(keys_of(there)), "the last run has left its lock"
        phases |= met
    assert phases
