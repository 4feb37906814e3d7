"""Where no other process can be forked: what each command then does, and says."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from registry_gc.cli.main import registry_gc
from registry_tree import RegistryTree, folder_sink
from running import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a registry with one image."""
    root = tmp_path / "registry"
    RegistryTree(folder_sink(root)).image("app", "v1", layers=[b"base"], config=b'"one"')
    return write_config(root)


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for a further process, as under a limit of theirs."""

    def forked() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", forked)


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize("command", ["run", "plan", "report", "verify", "explain", "purge"])
def test_each_command_says_that_one_process_does_all(command: str, config: Path) -> None:
    what = ["app:v1"] if command == "explain" else []
    if command == "plan":
        what = ["-o", str(config.with_name("plan.sqlite"))]
    answer = CliRunner().invoke(registry_gc, [command, "--workers", "2", str(config), *what])
    assert answer.exit_code == 0, answer.output
    assert answer.stderr.count("note: one process does all of the work") == 1


NO_FORK = """
import errno, os
def forked():
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = forked
from registry_gc.cli.main import registry_garbage_collect
registry_garbage_collect()
"""


def test_a_run_with_commands_that_cannot_be_watched_over_says_so_and_stops_nothing(
    config: Path,
) -> None:
    calls = config.with_name("calls")
    commands = ["--stop-command", f"echo >{calls}", "--start-command", f"echo >{calls}"]
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", NO_FORK, *commands, "--output", "json", str(config)],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the collection cannot be begun in a process of its own")
    assert "the registry was not touched" in line
    assert not calls.exists()
    document = json.loads(done.stdout)
    assert (document["exit_code"], f"error: {document['error']}") == (1, line)
