"""Where a plan goes when it cannot be written where it is wanted."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from applying.support import DAY, call
from registry_gc.run_file import RunFile
from registry_gc.runs import database
from registry_gc.runs.database import RunFileError
from running import Disk, write_config
from test_against_model import ALONE


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with an image and some garbage."""
    made = Disk(tmp_path)
    made.tree.image("app", "1")
    made.tree.layer("app", b"garbage")
    made.age(30 * DAY)
    return made


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A file below something that is no folder, which root cannot make either."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "plan"


def test_a_plan_that_cannot_be_written_where_it_is_wanted_is_none(
    disk: Disk, no_folder: Path
) -> None:
    made = call(disk.root, "plan", write_config(disk.root), "-o", no_folder, *ALONE)
    assert made.exit_code == 1
    assert made.json["exit_code"] == 1
    assert str(no_folder) in made.errors
    assert "reboot" not in made.errors


def test_a_run_goes_on_with_its_run_file_elsewhere(disk: Disk, no_folder: Path) -> None:
    options = ["--run-file", str(no_folder), "--registry-stopped", *ALONE]
    done = call(disk.root, "run", write_config(disk.root), *options)
    assert done.exit_code == 0, done.errors
    assert "does not survive a reboot" in done.errors


@pytest.mark.parametrize("option", ["-o", "--audit-log", "--run-file"])
def test_an_empty_name_of_a_file_is_refused(disk: Disk, option: str) -> None:
    command = ["plan"] if option == "-o" else ["run", "--dry-run"]
    done = call(disk.root, *command, write_config(disk.root), option, "", *ALONE)
    assert done.exit_code == 2
    assert "is empty" in done.errors


def full(*_: object) -> sqlite3.Connection:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorname = "SQLITE_FULL"
    raise error


def over_quota(*_: object, **__: object) -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("where", ["registry_gc.run_file.create", "os.makedirs"])
def test_from_a_full_disk_a_plan_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = database.create
    wanted = str(tmp_path / "plan")
    if where == "os.makedirs":
        monkeypatch.setattr(os, "makedirs", over_quota)
    else:
        monkeypatch.setattr(where, lambda path, *x: (full if path == wanted else real)(path, *x))
    made = RunFile.create(wanted, elsewhere="when full")
    made.close()
    (notice,) = made.notices
    assert "does not survive a reboot" in notice
    assert made.path != wanted
    Path(made.path).unlink()
    with pytest.raises(RunFileError, match=r"full|quota"):
        RunFile.create(wanted, elsewhere="never")


def test_what_is_no_full_disk_is_told_from_one(tmp_path: Path, no_folder: Path) -> None:
    missing = str(no_folder)
    with pytest.raises(RunFileError, match=r"Not a directory|exists"):
        RunFile.create(missing, elsewhere="when full")
    readonly = "/proc/plan"  # SQLite says of it what it says of a folder without room
    with pytest.raises(RunFileError, match=r"unable to open|No such file"):
        RunFile.create(readonly, elsewhere="when full")
