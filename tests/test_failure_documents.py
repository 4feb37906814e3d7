"""``--output json`` prints one document for every exit code but 2, also where nothing was done."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from registry_gc import __version__
from registry_gc.cli.main import registry_gc
from registry_gc.interrupts import Interrupted
from registry_tree import sha256
from running import Disk, write_config


def call(*words: str | Path) -> tuple[int, dict[str, Any], str]:
    """Run ``registry-gc``; returns exit code, document and stderr."""
    answer = CliRunner().invoke(registry_gc, list(map(str, words)))
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    return answer.exit_code, json.loads(answer.stdout), answer.stderr


def is_told(answer: tuple[int, dict[str, Any], str], code: int) -> None:
    """The command ended with *code*, and its document and stderr say so and why."""
    exit_code, document, errors = answer
    assert (exit_code, document["exit_code"], document["schema"]) == (code, code, 1)
    assert document["error"] in errors


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with one image."""
    disk = Disk(tmp_path)
    disk.tree.image("app", "v1", layers=[b"layer"])
    return disk


def state(disk: Disk) -> list[str]:
    return ["--state-dir", str(disk.folder / "state")]


@pytest.mark.parametrize("command", ["verify", "explain", "report"])
def test_where_no_registry_is_to_be_looked_at(tmp_path: Path, command: str) -> None:
    config = write_config(tmp_path / "nowhere")
    more = {"explain": ["app"], "report": ["--state-dir", str(tmp_path / "state"), "--quiet"]}
    is_told(call(command, "--output", "json", config, *more.get(command, [])), 1)
    (tmp_path / "nowhere").mkdir()
    is_told(call(command, "--output", "json", config, *more.get(command, [])), 1)


@pytest.mark.parametrize(
    "command", ["run", "plan", "verify", "explain", "report", "runs", "restore", "purge"]
)
def test_where_all_is_well_the_document_says_so_too(disk: Disk, command: str) -> None:
    more = {"explain": ["app"], "plan": ["-o", str(disk.folder / "plan")]}.get(command, [])
    config = [] if command == "runs" else [write_config(disk.root)]
    words = [] if command in ("verify", "explain", "restore") else state(disk)
    exit_code, document, _ = call(command, "--output", "json", *words, *config, *more)
    assert (exit_code, document["exit_code"], document["error"]) == (0, 0, None)
    assert (document["schema"], document["version"]) == (1, __version__)


def test_a_page_that_cannot_be_written_is_in_the_document(disk: Disk) -> None:
    page = disk.folder / "missing" / "page.html"
    words: list[str | Path] = [
        "report",
        "--output",
        "json",
        "--html",
        page,
        *state(disk),
        write_config(disk.root),
    ]
    answer = call(*words)
    is_told(answer, 1)
    assert answer[1]["totals"]["repositories"] == 1


@pytest.mark.parametrize("what", ["nowhere", "a b:c:d", sha256(b"nothing")])
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_what_is_not_there_to_come_back(disk: Disk, what: str, dry_run: list[str]) -> None:
    answer = call("restore", *dry_run, "--output", "json", write_config(disk.root), what)
    is_told(answer, 1)
    assert (answer[1]["what"], answer[1]["restored"]) == (what, {})
    assert answer[1]["dry_run"] is bool(dry_run)


def test_what_nobody_can_explain(disk: Disk) -> None:
    is_told(call("explain", "--output", "json", write_config(disk.root), "nowhere"), 1)


def test_past_runs_that_cannot_be_read(disk: Disk) -> None:
    (disk.folder / "state").mkdir()
    (disk.folder / "state" / "runs").write_text("no folder")
    is_told(call("runs", "--output", "json", *state(disk)), 1)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("verify", "registry_gc.cli.verify.storage_of"),
        ("explain", "registry_gc.cli.explain.storage_of"),
        ("report", "registry_gc.cli.report.storage_of"),
        ("purge", "registry_gc.cli.working.storage_of"),
        ("run", "registry_gc.cli.run.storage_of"),
        ("plan", "registry_gc.cli.run.storage_of"),
    ],
)
def test_a_signal_before_anything_was_found_out(
    disk: Disk, command: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(where, interrupted)
    more = {"explain": ["app"], "plan": ["-o", str(disk.folder / "plan")]}.get(command, [])
    words = state(disk) if command in ("report", "purge", "run", "plan") else []
    is_told(call(command, "--output", "json", *words, write_config(disk.root), *more), 143)
