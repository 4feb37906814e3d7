"""Flags as Go writes them, and paths where there is no working directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from command_line import go
from registry_gc.cli.main import registry_gc
from registry_tree import sha256
from running import Disk, run, write_config


@pytest.mark.parametrize("value", ["", "=true", "=True", "=TRUE", "=t", "=T", "=1"])
@pytest.mark.parametrize("flag", ["-d", "--dry-run"])
def test_flags_take_what_go_calls_true(disk: Disk, flag: str, value: str) -> None:
    result = go(disk, flag + value, "--output", "json")
    assert (result.exit_code, result.json["dry_run"]) == (0, True)
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("value", ["=false", "=False", "=FALSE", "=f", "=F", "=0"])
@pytest.mark.parametrize("flag", ["-d", "--dry-run"])
def test_flags_take_what_go_calls_false(disk: Disk, flag: str, value: str) -> None:
    result = go(disk, flag + value, "--output", "json")
    assert (result.exit_code, result.json["dry_run"]) == (0, False)
    assert not disk.has_blob(sha256(b"orphan"))


def test_the_last_flag_counts(disk: Disk) -> None:
    assert go(disk, "--dry-run=false", "-d", "--output", "json").json["dry_run"]
    assert not go(disk, "-d", "--dry-run=false", "--output", "json").json["dry_run"]


def test_the_other_stock_flags_are_as_free(disk: Disk) -> None:
    result = go(disk, "-d", "-m=true", "-q=false", "--output", "json")
    assert result.json["delete_untagged"]
    assert result.json["manifests"]["eligible"] == 1
    assert not go(disk, "-d", "--delete-untagged=0", "--output", "json").json["delete_untagged"]
    assert go(disk, "-d", "--quiet=1").text == ""
    assert go(disk, "-dmq").text == ""


@pytest.mark.parametrize(
    ("word", "dry_run", "untagged"),
    [
        ("-dm=false", True, False),
        ("-dm=true", True, True),
        ("-md=0", False, True),
        ("-dqm=T", True, True),
        ("-dq=true", True, False),
        ("-vdm=1", True, True),
        ("-dmd=false", False, True),
    ],
)
def test_the_last_of_several_flags_in_a_word_has_the_value(
    disk: Disk, word: str, dry_run: bool, untagged: bool
) -> None:
    document = go(disk, word, "--output", "json").json
    assert (document["dry_run"], document["delete_untagged"]) == (dry_run, untagged)


@pytest.mark.parametrize("word", ["-dm=maybe", "-dm=", "-dx=true", "-=true", "-dmfalse", "-dm==1"])
def test_a_word_of_flags_that_means_nothing_is_a_usage_error(disk: Disk, word: str) -> None:
    assert go(disk, word).exit_code == 2
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("option", ["--cache", "--run-file"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_of_ours_is_never_put_in_the_place_of_a_device(
    disk: Disk, option: str, make: Callable[[Path], None]
) -> None:
    path = disk.folder / "device"
    make(path)
    kind = path.stat().st_mode
    result = go(disk, option, path)
    assert result.exit_code == 2
    assert option in result.errors
    assert path.stat().st_mode == kind
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.parametrize("argument", ["--dry-run=maybe", "-m=", "-q=yes", "--delete-untagged=2"])
def test_a_flag_with_another_value_is_a_usage_error(disk: Disk, argument: str) -> None:
    result = go(disk, argument)
    assert result.exit_code == 2
    assert "neither true nor false" in result.errors
    assert disk.has_blob(sha256(b"orphan"))


def test_what_comes_after_two_dashes_is_no_flag(disk: Disk) -> None:
    config = write_config(disk.root).rename(disk.folder / "-d=true")
    before = Path.cwd()
    os.chdir(disk.folder)
    try:
        result = run("--output", "json", "--", config.name, state=disk.folder / "state")
    finally:
        os.chdir(before)
    assert (result.exit_code, result.json["dry_run"]) == (0, False)


@pytest.fixture
def no_working_directory(tmp_path: Path) -> Iterator[None]:
    """The working directory was removed, as a job's scratch folder may be."""
    before = Path.cwd()
    folder = tmp_path / "scratch"
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    yield
    os.chdir(before)


@pytest.mark.usefixtures("no_working_directory")
@pytest.mark.parametrize(
    "line",
    [
        ["run", "--run-file", "x", "CONFIG"],
        ["run", "--cache", "x", "--stop-command", "touch stopped", "CONFIG"],
        ["run", "config.yml"],
        ["plan", "-o", "x", "CONFIG"],
        ["purge", "--cache", "x", "CONFIG"],
        ["report", "--html", "x", "CONFIG"],
        ["verify", "RELATIVE"],
    ],
)
def test_a_relative_path_without_a_working_directory_is_a_usage_error(
    disk: Disk, line: list[str]
) -> None:
    places = {"CONFIG": write_config(disk.root), "RELATIVE": disk.folder / "relative.yml"}
    places["RELATIVE"].write_text("version: 0.1\nstorage: {filesystem: {rootdirectory: here}}\n")
    words = [str(places.get(word, word)) for word in line]
    answer = CliRunner().invoke(registry_gc, [*words, "--output", "json"])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "is relative, and the working directory cannot be found" in answer.stderr
    assert disk.has_blob(sha256(b"orphan"))


@pytest.mark.usefixtures("no_working_directory")
def test_without_a_working_directory_absolute_paths_will_do(disk: Disk) -> None:
    assert go(disk).exit_code == 0
    assert not disk.has_blob(sha256(b"orphan"))
