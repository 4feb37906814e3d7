"""Exit codes, the document for each, and what is said of a config that is no use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from command_line import MAIN, environment, go, many_orphans, own_folder_is_gone
from registry_gc.cli.main import registry_garbage_collect
from registry_gc.runs.past import read_run
from registry_tree import sha256, tag_path
from running import Disk, Result, run, write_config

# Exit codes, and the document for each


def left_word(result: Result) -> tuple[str, int | None, str]:
    """What the run file of a run that found nothing out says of it: how it ended, and why."""
    past = read_run(result.json["run_file"])
    assert (past.run, past.eligible_bytes) == (result.json["run"], 0)
    assert past.root == result.json["storage"]["root"]
    return past.state, past.exit_code, past.reason


def test_exit_code_0_is_done(disk: Disk) -> None:
    result = go(disk, "-m", "--output", "json")
    assert (result.exit_code, result.errors) == (0, "")
    assert result.json["guard"]["verdict"] == "allowed"
    assert result.json["blobs"] == {
        "total": 6,
        "eligible": 3,
        "eligible_bytes": result.json["blobs"]["deleted_bytes"],
        "deleted": 3,
        "deleted_bytes": result.json["blobs"]["deleted_bytes"],
    }
    assert own_folder_is_gone(disk)


def test_exit_code_1_is_failed(disk: Disk) -> None:
    existing = disk.folder / "run.sqlite"
    existing.write_bytes(b"mine")
    result = go(disk, "--output", "json", "--run-file", existing)
    assert result.exit_code == 1
    assert "exists already" in result.json["error"]
    assert "exists already" in result.errors
    assert existing.read_bytes() == b"mine"
    assert disk.has_blob(sha256(b"orphan"))
    assert own_folder_is_gone(disk)


def test_what_fails_before_it_has_found_anything_leaves_word_too(disk: Disk) -> None:
    shutil.rmtree(disk.root)
    result = go(disk, "--output", "json", "-d")
    assert result.exit_code == 1
    assert left_word(result) == ("stopped", 1, result.json["error"])
    # Where somebody names the file, it is made by those only who have something to put there.
    named = disk.folder / "run.sqlite"
    assert go(disk, "--output", "json", "-d", "--run-file", named).json["run_file"] is None
    assert not named.exists()


def test_exit_code_3_is_done_but_for_what_is_held(disk: Disk) -> None:
    disk.write(tag_path("b", "v1"), b"")
    result = go(disk, "--output", "json")
    assert result.exit_code == 3
    assert result.held == {"b"}
    assert "1 held" in result.errors
    assert not disk.has_blob(sha256(b"orphan"))
    assert go(disk, "--output", "json", "-d").exit_code == 3


def test_exit_code_4_is_refused_and_nothing_was_deleted(disk: Disk) -> None:
    config = write_config(disk.root, readonly=False)
    result = go(disk, "--output", "json", config=config)
    assert result.exit_code == 4
    assert result.json["guard"]["verdict"] == "refused"
    assert left_word(result) == ("stopped", 4, result.json["error"])
    assert "refused, nothing was deleted" in result.errors
    assert disk.has_blob(sha256(b"orphan"))
    dry = go(disk, "--output", "json", "-d", config=config)
    assert (dry.exit_code, dry.json["guard"]["verdict"]) == (0, "refused")
    assert "a collection would be refused" in dry.errors


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_every_exit_but_a_usage_error_prints_one_document(
    disk: Disk, code: int, quiet: tuple[str, ...]
) -> None:
    arguments: list[str | Path] = ["--output", "json", *quiet]
    if code == 1:
        (disk.folder / "there").touch()
        arguments += ["--run-file", disk.folder / "there"]
    if code == 3:
        disk.write(tag_path("b", "v1"), b"")
    if code == 4:
        arguments += ["--max-delete", "0"]
    result = go(disk, *arguments)
    assert result.exit_code == result.json["exit_code"] == code
    assert (result.json["error"] is None) is (code in (0, 3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_codes_130_and_143_are_interrupted_and_safe_to_go_on(
    disk: Disk, number: signal.Signals
) -> None:
    config = many_orphans(disk)
    files = disk.files()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "--state-dir", str(disk.folder / "state"), str(config)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    # Who has begun to write these lines cannot end before somebody reads the rest.
    process.stdout.read(1)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == f"error: interrupted by {number.name}\n".encode()
    assert disk.files() == files
    assert own_folder_is_gone(disk)
    assert go(disk).exit_code == 0


# Configs


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (b"\0\xff", "is not YAML"),
        (b"storage: [", "is not YAML"),
        (b"just text", "is no mapping"),
        (b"version: 0.1", "storage"),
        (b"storage: {}", "names no driver"),
        (b"storage: {tape: {}}", "tape"),
        (b"storage: {filesystem: {}, s3: {}}", "keep one"),
        (b"storage: {inmemory: {}}", "in-memory"),
        (b"storage: {filesystem: {rootdirectory: [x]}}", "rootdirectory"),
        (b"storage: {filesystem: {}, maintenance: {readOnly: {enabled: true}}}", "readOnly"),
        (b"storage: {filesystem: {}, maintenance: {readonly: {enabled: 'true'}}}", "enabled"),
    ],
    ids=str,
)
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_bad_config_is_one_line_that_names_the_file(
    disk: Disk, content: bytes | None, complaint: str, output: str
) -> None:
    config = disk.folder / "bad.yml"
    if content is not None:
        config.write_bytes(content)
    result = go(disk, "--output", output, config=config)
    assert result.exit_code == 2
    assert result.text == ""
    (line,) = result.errors.splitlines()
    assert line.startswith("error: ")
    assert str(config) in line
    assert complaint in line


def test_without_a_config_the_one_that_is_found_is_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(disk.root)
    monkeypatch.setenv("REGISTRY_CONFIGURATION_PATH", str(config))
    result = run("-d", state=disk.folder / "state")
    assert result.exit_code == 0
    assert f"note: using {config}" in result.errors


def test_a_config_that_may_not_be_read_is_told_in_our_words(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(disk.root)

    def refuse(path: object, *_: object, **__: object) -> bool:
        return str(path) != str(config)

    # What click asks, and would say nothing of the user.
    monkeypatch.setattr(os, "access", refuse)

    def denied(path: str, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("registry_gc.configuring.file.open", denied, raising=False)
    answer = CliRunner().invoke(registry_garbage_collect, ["--dry-run", str(config)])
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {config}: user ")
    assert answer.stderr.count("\n") == 1
