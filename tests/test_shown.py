"""What storages and lock files say is shown on a terminal, and never obeyed by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from aside import Registry
from registry_drivers.memory import MemoryStorage
from registry_gc.cli.main import registry_gc
from registry_gc.layout import OWN
from registry_gc.lock import Lock
from registry_tree import revision_path, sha256
from running import Disk, collect_as_text, write_config

# Clears the screen, renames the window, and turns the rest of the line around.
EVIL = "\x1b[2J\x1b]0;gotcha\x07\x9b31m\u202e"


def is_safe(text: str) -> bool:
    """Whether a terminal only shows it."""
    return text.replace("\n", "").isprintable()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """With an image that has a tag, and one that has none."""
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.image("a", layers=[b"goes"], config=b'"goes"')
    disk.age()
    return disk


def lock_of_somebody(root: Path) -> None:
    """A lock whose host was made up by somebody who wishes us ill."""
    memory = MemoryStorage()
    Lock.acquire(memory, f"run{EVIL}", refresh_seconds=None)
    holder = json.loads(memory.snapshot()[OWN + "lock"])
    lock = root / OWN / "lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(json.dumps({**holder, "host": EVIL, "boot": "elsewhere"}))


def test_who_holds_the_lock_is_shown(disk: Disk) -> None:
    lock_of_somebody(disk.root)
    refused = collect_as_text(disk.root)
    assert refused.exit_code == 4
    assert r"on \x1b[2J\x1b]0;gotcha\x07\x9b31m\u202e (run run\x1b" in refused.errors
    assert is_safe(refused.errors)


@pytest.mark.parametrize("command", ["restore", "purge"])
def test_a_quarantine_is_shown(command: str, tmp_path: Path) -> None:
    registry = Registry(tmp_path, None)
    registry.tree().image("app", "v1", layers=[b"base"], config=b'"one"')
    registry.tree().image("app", layers=[b"base", b"two"], config=b'"two"')
    run = registry.quarantine().json["run"]
    home = registry.root / OWN / "quarantine"
    (home / run).rename(home / f"{run}{EVIL}")
    words = [command, str(write_config(registry.root))]
    answer = CliRunner().invoke(registry_gc, words)
    assert answer.exit_code == 0
    assert run + r"\x1b[2J" in answer.stdout
    assert is_safe(answer.stdout)
    assert is_safe(answer.stderr)


@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_what_a_plan_names_is_shown(form: str, disk: Disk) -> None:
    digest = sha256(b"nothing")
    stranger = disk.root / revision_path(f"a{EVIL}", digest)
    stranger.parent.mkdir(parents=True)
    stranger.write_text(digest)
    disk.age()
    plan = disk.folder / "plan"
    words = ["plan", "-m", "-o", str(plan), str(write_config(disk.root))]
    made = CliRunner().invoke(registry_gc, words)
    assert made.exit_code in (0, 3), made.output
    assert is_safe(made.stdout)
    answer = CliRunner().invoke(registry_gc, ["plan", "show", str(plan), "--format", form])
    assert answer.exit_code == 0
    assert r"a\x1b" in answer.stdout or form == "jsonl"
    assert is_safe(answer.stdout)
