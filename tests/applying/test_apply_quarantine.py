"""A plan that sets aside: applied, killed in the middle and gone on with, and taken back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from applying.support import (
    CONFIG,
    DAY,
    OLD,
    apply,
    as_a_registry_writes,
    call,
    codes,
    plan,
    states,
    untagged,
)
from registry_gc.runs.past import read_run
from registry_tree import RegistryTree, blob_path, sha256
from running import OWN_FOLDER, Disk, Result, write_config
from test_against_model import ALONE, be_killed

WAIT = ["-m", "--quarantine", "7d"]
FOLDER = f"{OWN_FOLDER}/quarantine"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry in which an image was untagged by a push, and a layer was never used."""
    disk = Disk(tmp_path)
    disk.tree.image("app", "latest", layers=[b"base", b"old"], config=CONFIG)
    disk.tree.image("app", "latest", layers=[b"base", b"new"])
    disk.tree.layer("app", b"never used")
    disk.age(30 * DAY)
    return disk


def is_set_aside(event: str, arguments: object) -> bool:
    """Whether an audit event is a move into quarantine, of what is the registry's."""
    said = str(arguments)
    where = said.partition(f"{FOLDER}/")[2]
    is_folder = ".registry-gc-" in said  # made there under a name of its own
    return event == "os.rename" and "/docker/registry/v2/" in where and not is_folder


def content(disk: Disk) -> dict[str, bytes]:
    """What the registry sees."""
    return {path: (disk.root / path).read_bytes() for path in disk.files()}


def aside(disk: Disk) -> dict[str, bytes]:
    """What is in quarantine, by its original path."""
    found = {}
    for path in (disk.root / FOLDER).glob("*/docker/**/*"):
        if path.is_file():
            run, _, original = str(path.relative_to(disk.root / FOLDER)).partition("/")
            assert original not in found, f"twice: {run}"
            found[original] = path.read_bytes()
    return found


def restore(disk: Disk) -> None:
    """Every run's quarantine comes back, by its name."""
    from click.testing import CliRunner

    from registry_gc.cli.main import registry_gc

    # The runs of links first: the blobs that these lead to may lie in another run's.
    for run in sorted(os.listdir(disk.root / FOLDER)):
        answer = CliRunner().invoke(registry_gc, ["restore", str(write_config(disk.root)), run])
        assert answer.exit_code == 0 or "nothing of that" in answer.stderr, answer.stderr


def call_restore(disk: Disk, what: str) -> int:
    """Restore *what*; returns the exit code."""
    from click.testing import CliRunner

    from registry_gc.cli.main import registry_gc

    words = ["restore", str(write_config(disk.root)), what]
    return CliRunner().invoke(registry_gc, words).exit_code


def test_a_plan_that_sets_aside_loses_nothing_and_its_run_is_restored_whole(disk: Disk) -> None:
    before = content(disk)
    file = plan(disk.root, *WAIT)
    assert content(disk) == before
    done = apply(disk.root, file)
    assert done.exit_code == 0, done.errors
    assert (done.json["blobs"]["deleted"], done.json["quarantine"]["blobs"]) == (0, 4)
    assert set(states(file)) == {"quarantined"}
    assert content(disk) | aside(disk) == before
    assert OLD in aside(disk)
    assert os.listdir(disk.root / FOLDER) == [done.json["run"]]
    restore(disk)
    assert content(disk) == before
    assert not (disk.root / FOLDER).exists()


def test_a_push_between_plan_and_apply_is_not_set_aside(disk: Disk) -> None:
    before = content(disk)
    file = plan(disk.root, *WAIT)
    goes = untagged(disk)
    as_a_registry_writes(disk, -365 * DAY).image("other", "v1", layers=[b"base", b"old"])
    pushed = content(disk)
    done = apply(disk.root, file)
    assert done.exit_code == 0, done.errors
    assert done.json["taken_back"] > 0
    assert disk.has_layer("other", sha256(b"old"))
    assert blob_path(goes) in aside(disk)
    assert blob_path(sha256(b"never used")) in aside(disk)
    assert content(disk) | aside(disk) == pushed
    restore(disk)
    assert content(disk) == pushed
    assert before.keys() <= pushed.keys()


def test_a_push_after_an_apply_that_was_killed_is_not_set_aside_by_the_next(disk: Disk) -> None:
    """Links are aside already, blobs are not yet: a push finds those there."""
    file = plan(disk.root, *WAIT)
    assert be_killed(4, lambda: apply(disk.root, file, *ALONE), is_set_aside)
    moved = aside(disk)
    assert len(moved) == 3
    assert disk.has(OLD)
    image = as_a_registry_writes(disk, 0).image("app", "again", layers=[b"base", b"old"])
    done = apply(disk.root, file)
    assert done.exit_code == 0, done.errors
    assert disk.has_image("app", image)
    assert moved.keys() <= aside(disk).keys()


def carry_out(disk: Disk, file: Path) -> Result:
    """Apply, or go on with it."""
    return apply(disk.root, file, *ALONE)


def run(disk: Disk, file: Path) -> Result:
    """A collection with a run file of its own, or what goes on with it."""
    return call(disk.root, "run", *WAIT, "--run-file", file, write_config(disk.root), *ALONE)


@pytest.mark.parametrize("work", [carry_out, run])
def test_killed_before_every_single_move_and_gone_on_with_nothing_is_lost(
    tmp_path: Path, disk: Disk, work: Callable[[Disk, Path], Result]
) -> None:
    before = content(disk)
    file = disk.folder / "file"
    moves, killed = 0, True
    kept = tmp_path / "kept"
    shutil.copytree(disk.root, kept)
    while killed:
        moves += 1
        for path in disk.folder.glob("*"):
            if path.is_file():
                path.unlink()
        shutil.rmtree(disk.root)
        shutil.copytree(kept, disk.root)
        disk.age(30 * DAY)
        if work is carry_out:
            made = call(disk.root, "plan", write_config(disk.root), "-o", file, *WAIT, *ALONE)
            assert made.exit_code == 0
        killed = be_killed(moves, partial(work, disk, file), is_set_aside)
        assert content(disk) | aside(disk) == before, moves
        if killed:
            done = work(disk, file)
            assert done.exit_code == 0, done.errors
        assert content(disk) | aside(disk) == before, moves
        assert set(states(file)) <= {"quarantined", "gone already"}
        assert OLD in aside(disk)
        restore(disk)
        assert content(disk) == before, moves
    assert moves > 8


def test_a_run_on_a_registry_in_use_that_was_killed_is_gone_on_with_while_it_takes_writes(
    disk: Disk,
) -> None:
    before = content(disk)
    file = disk.folder / "file"
    config = write_config(disk.root, readonly=False)
    writable = [*WAIT, "--allow-writable", *ALONE]
    work = partial(call, disk.root, "run", "--run-file", file, config, *writable)
    assert be_killed(4, work, is_set_aside)
    refused = call(disk.root, "apply", file)
    assert (refused.exit_code, codes(refused)) == (4, {"writable-config"})
    done = call(disk.root, "apply", file, "--allow-writable")
    assert (done.exit_code, done.json["guard"]["verdict"]) == (0, "allowed"), done.errors
    assert set(states(file)) <= {"quarantined", "gone already"}
    assert content(disk) | aside(disk) == before


@pytest.mark.parametrize("options", [["-m"], WAIT])
def test_a_plan_that_was_made_without_it_is_not_applied_while_the_registry_takes_writes(
    disk: Disk, options: list[str]
) -> None:
    file = plan(disk.root, *options)
    before = content(disk)
    write_config(disk.root, readonly=False)
    done = call(disk.root, "apply", file, "--allow-writable")
    assert (done.exit_code, codes(done)) == (4, {"writable-config"})
    assert content(disk) == before
    assert apply(disk.root, file, "--allow-writable").exit_code == 0


@pytest.mark.parametrize("short", [False, True])
def test_a_run_that_was_killed_and_gone_on_with_comes_back_whole_by_the_id_that_runs_shows(
    disk: Disk, short: bool
) -> None:
    before = content(disk)
    file = disk.folder / "file"
    assert be_killed(4, lambda: run(disk, file), is_set_aside)
    done = apply(disk.root, file, *ALONE)
    assert done.exit_code == 0, done.errors
    assert len(os.listdir(disk.root / FOLDER)) == 2
    shown = read_run(str(file)).run
    assert shown != done.json["run"]
    assert call_restore(disk, shown[:8] if short else shown) == 0
    assert content(disk) == before
    assert aside(disk) == {}


def test_what_a_plan_has_set_aside_comes_back_by_the_plans_id_and_by_that_of_who_applied_it(
    disk: Disk,
) -> None:
    before = content(disk)
    file = plan(disk.root, *WAIT)
    for name in (read_run(str(file)).run, ""):
        applied = apply(disk.root, file).json["run"]
        assert content(disk) != before
        assert call_restore(disk, name or applied) == 0
        assert content(disk) == before
        disk.age(30 * DAY)
        file.unlink()
        file = plan(disk.root, *WAIT)


def test_what_a_restore_brought_back_is_not_deleted_by_a_plan_of_before(disk: Disk) -> None:
    """A rename alone would keep its time, by which the plan knows it."""
    goes = untagged(disk)
    file = plan(disk.root, "-m")
    before = content(disk)
    assert run(disk, disk.folder / "file").exit_code == 0
    assert call_restore(disk, goes) == 0
    assert disk.has_image("app", goes)
    done = apply(disk.root, file)
    assert done.exit_code == 0, done.errors
    assert disk.has_image("app", goes)
    back = content(disk)
    assert call(disk.root, "run", "-m", "--grace", "1h", write_config(disk.root)).exit_code == 0
    assert content(disk) == back
    assert back.items() < before.items()


def test_what_a_plan_sets_aside_and_is_pushed_again_is_not_overwritten_by_a_restore(
    disk: Disk,
) -> None:
    file = plan(disk.root, *WAIT)
    run_id = apply(disk.root, file).json["run"]
    tree = RegistryTree(lambda path, data: disk.write(path, data))
    image = tree.image("app", "latest", layers=[b"base", b"old"], config=CONFIG)
    now = content(disk)
    restore(disk)
    after = content(disk)
    assert {path: after[path] for path in now} == now
    assert disk.has_image("app", image)
    assert disk.has_blob(sha256(b"never used"))
    assert not (disk.root / FOLDER / run_id / OLD).exists() or disk.has(OLD)
