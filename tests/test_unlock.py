from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_drivers.memory import MemoryStorage
from registry_gc.cli.main import registry_gc
from registry_gc.layout import OWN
from registry_gc.lock import Lock
from running import write_config


def test_unlock_removes_a_lock_of_elsewhere_and_says_when_there_was_none(
    tmp_path: Path,
) -> None:
    root = tmp_path / "registry"
    lock = root / OWN / "lock"
    lock.parent.mkdir(parents=True)
    memory = MemoryStorage()
    Lock.acquire(memory, "a-run-elsewhere", refresh_seconds=None)
    holder = json.loads(memory.snapshot()[OWN + "lock"])
    config = write_config(root)
    lock.write_text(json.dumps(holder))
    alive = CliRunner().invoke(registry_gc, ["unlock", str(config)])
    assert alive.exit_code == 4
    assert lock.exists()
    lock.write_text(json.dumps({**holder, "host": "elsewhere", "boot": "another"}))
    first = CliRunner().invoke(registry_gc, ["unlock", str(config)])
    assert (first.exit_code, first.stdout) == (0, f"{root}: unlocked\n")
    assert not lock.exists()
    second = CliRunner().invoke(registry_gc, ["unlock", str(config)])
    assert (second.exit_code, second.stdout) == (0, f"{root}: there was no lock\n")


def test_unlock_says_what_is_wrong_with_a_config(tmp_path: Path) -> None:
    missing = CliRunner().invoke(registry_gc, ["unlock", str(tmp_path / "no.yml")])
    assert missing.exit_code == 2
    assert missing.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--dry-run", "-d=true", None])
def test_a_dry_run_says_whose_lock_would_go_and_leaves_it(
    flag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "registry"
    lock = root / OWN / "lock"
    lock.parent.mkdir(parents=True)
    memory = MemoryStorage()
    Lock.acquire(memory, "a-run", refresh_seconds=None)
    holder = json.loads(memory.snapshot()[OWN + "lock"])
    if flag is None:
        monkeypatch.setenv("RGC_DRY_RUN", "true")
    words = ["unlock", *([flag] if flag else []), str(write_config(root))]

    lock.write_text(json.dumps(holder))
    alive = CliRunner().invoke(registry_gc, words)
    assert (alive.exit_code, alive.stdout) == (0, "")
    assert alive.stderr.startswith(f"note: an unlock would be refused: {root}: process ")

    lock.write_text(json.dumps({**holder, "host": "elsewhere", "boot": "another"}))
    dead = CliRunner().invoke(registry_gc, words)
    assert dead.exit_code == 0
    assert dead.stdout.startswith(
        f"{root}: would be unlocked: process {holder['pid']} on elsewhere"
    )
    assert lock.exists()

    lock.unlink()
    none = CliRunner().invoke(registry_gc, words)
    assert (none.exit_code, none.stdout) == (0, f"{root}: there is no lock\n")
