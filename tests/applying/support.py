"""Makes plans and carries them out, through the command line; what may happen in between."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model import HOUR
from registry_drivers.filesystem import FilesystemStorage
from registry_tree import RegistryTree, blob_path, repository_path, sha256, tag_path
from running import Disk, Result, write_config

DAY = 24 * HOUR
CONFIG = b'{"config": "of what goes"}'
OLD = blob_path(sha256(b"old"))


def call(root: Path, *arguments: str | Path) -> Result:
    """Run ``registry-gc`` with JSON output and its state beside *root*."""
    from registry_gc.cli.main import registry_gc

    state = root.with_name(f"{root.name}.state")
    words = [*map(str, arguments), "--state-dir", str(state), "--output", "json"]
    answer = CliRunner().invoke(registry_gc, words)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    document: dict[str, Any] = json.loads(answer.stdout) if answer.stdout else {}
    if document:
        assert document["exit_code"] == answer.exit_code
    return Result(answer.exit_code, document, answer.stdout, answer.stderr)


def plan(root: Path, *arguments: str, readonly: bool = True) -> Path:
    """Plan for *root*; returns the plan."""
    file = root.with_name(f"{root.name}.plan")
    made = call(root, "plan", write_config(root, readonly=readonly), "-o", file, *arguments)
    assert made.exit_code in (0, 3), made.errors
    assert made.json["dry_run"]
    return file


def apply(root: Path, file: Path, *arguments: str) -> Result:
    """Carry *file* out; the registry is read-only by now."""
    write_config(root)
    return call(root, "apply", file, *arguments)


def codes(result: Result) -> set[str]:
    """The codes of all findings."""
    return {finding["code"] for finding in result.json["guard"]["findings"]}


def states(file: Path) -> dict[str, int]:
    """How many rows of a plan are in each state."""
    with closing(sqlite3.connect(file)) as connection, connection:
        return dict(connection.execute("SELECT state, count(*) FROM deletions GROUP BY state"))


def untagged(disk: Disk) -> str:
    """The digest of the manifest that goes with ``-m``."""
    current = (disk.root / tag_path("app", "latest")).read_text()
    history = f"{repository_path('app')}/_manifests/tags/latest/index/"
    entries = {path.split("/")[-2] for path in disk.files() if path.startswith(history)}
    (found,) = {f"sha256:{entry}" for entry in entries} - {current}
    return found


def as_a_registry_writes(disk: Disk, shift: float) -> RegistryTree:
    """Writes links always and blobs where they are missing; *shift* is the clock's error."""

    def write(path: str, data: bytes) -> None:
        if "/blobs/" not in path or not disk.has(path):
            disk.write(path, data)
            then = time.time() + shift
            os.utime(disk.root / path, (then, then))

    return RegistryTree(write)


def shift_clock(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on the storage's clock is wrong by *seconds*."""
    now = time.time
    patch.setattr(FilesystemStorage, "now", lambda _: now() + seconds)
