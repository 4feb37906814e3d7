"""Every command does with its defaults alone, as documents show it, what it does with options."""

from __future__ import annotations

from pathlib import Path

import pytest
from click import Context
from click.testing import CliRunner

from registry_gc.cli.main import registry_gc
from running import Disk, write_config


@pytest.fixture
def state(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default state directory, as far as this test goes."""
    folder = disk.folder / "default"
    monkeypatch.delenv("RGC_STATE_DIR", raising=False)
    name = "registry_gc.cli.wiring.default_state_dir"
    monkeypatch.setattr(name, lambda environment, user: str(folder))
    return folder


def test_all_commands_with_their_defaults(disk: Disk, state: Path) -> None:
    image = disk.tree.image("some/app", "v1", layers=[b"one"])
    disk.tree.image("some/app", layers=[b"two"])
    disk.age()
    config, plan = write_config(disk.root), disk.folder / "plan.sqlite"
    calls: dict[str, list[tuple[str | Path, ...]]] = {
        "plan": [("-m", "-o", plan, config), ("show", plan)],
        "apply": [("--dry-run", plan)],
        "run": [("-d", config), ("-m", "--quarantine", "0s", config)],
        "restore": [(config,)],
        "report": [(config,)],
        "verify": [(config,)],
        "explain": [(config, image)],
        "purge": [("-d", config), (config,)],
        "runs": [()],
        "unlock": [(config,)],
    }
    assert calls.keys() == {*registry_gc.list_commands(Context(registry_gc))}
    for command, each in calls.items():
        for words in each:
            full = [command, *map(str, words)]
            done = CliRunner().invoke(registry_gc, full, catch_exceptions=False)
            assert done.exit_code == 0, (full, done.output)
    assert any(path.is_file() for path in state.rglob("*"))
    assert not disk.has("docker/registry/registry-gc/quarantine")
