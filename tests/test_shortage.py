"""Where there is too little memory for a run, or for its processes: a line, and a document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from registry_drivers.filesystem import FilesystemStorage
from registry_gc.cli.main import registry_gc
from registry_gc.engine import ProcessEngine
from registry_gc.machine.shortage import NO_MEMORY
from registry_tree import RegistryTree, folder_sink
from running import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a registry with one image."""
    root = tmp_path / "registry"
    RegistryTree(folder_sink(root)).image("app", "v1", layers=[b"base"], config=b'"one"')
    return write_config(root)


def is_told(done: Result | subprocess.CompletedProcess[str], code: int) -> None:
    """One line says so, and the document."""
    assert code == 1
    assert done.stderr.splitlines() == [f"error: {NO_MEMORY}"]
    document = json.loads(done.stdout)
    assert (document["schema"], document["error"], document["exit_code"]) == (1, NO_MEMORY, 1)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("run", "registry_gc.collect.SealedCollection._plan"),
        ("run", "registry_gc.cli.run._run"),
        ("plan", "registry_gc.collect.SealedCollection._plan"),
        ("report", "registry_drivers.filesystem.FilesystemStorage.__init__"),
        ("verify", "registry_drivers.filesystem.FilesystemStorage.__init__"),
        ("explain", "registry_drivers.filesystem.FilesystemStorage.__init__"),
        ("restore", "registry_drivers.filesystem.FilesystemStorage.__init__"),
        ("purge", "registry_drivers.filesystem.FilesystemStorage.__init__"),
    ],
)
def test_a_run_that_needs_more_memory_says_so(
    config: Path, monkeypatch: pytest.MonkeyPatch, command: str, where: str
) -> None:
    def too_much(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(where, too_much)
    more = {"explain": ["app:v1"], "plan": ["-o", str(config.with_name("plan"))]}.get(command, [])
    done = CliRunner().invoke(registry_gc, [command, "--output", "json", str(config), *more])
    is_told(done, done.exit_code)


UNIMPORTED = """
import sys
from importlib.abc import MetaPathFinder
class Full(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "numpy":
            raise {error}
sys.meta_path.insert(0, Full())
from registry_gc.cli.main import {command}
{command}()
"""


@pytest.mark.parametrize(
    "error",
    ["MemoryError", "ImportError('see\\n\\nlibx.so: failed to map segment from shared object')"],
)
@pytest.mark.parametrize(
    ("command", "words"),
    [("registry_garbage_collect", []), ("registry_gc", ["run"]), ("registry_gc", ["verify"])],
)
def test_a_command_that_is_too_large_to_be_imported_says_so(
    config: Path, command: str, words: list[str], error: str
) -> None:
    places = os.pathsep.join(place for place in sys.path if place)
    program = UNIMPORTED.format(command=command, error=error)
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--output", "json", str(config)],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    is_told(done, done.returncode)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What threads said that died."""
    before, found = threading.excepthook, list[str]()
    threading.excepthook = lambda died: found.append(str(died.exc_value))
    yield found
    threading.excepthook = before


def test_a_pool_that_cannot_start_its_threads_is_told_of_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    start = threading.Thread.start

    def feeder(thread: threading.Thread) -> None:
        if thread.name == "QueueFeederThread":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", feeder)
    hook = threading.excepthook
    with ProcessEngine(FilesystemStorage(str(tmp_path)), 2) as engine:
        assert "can't start new thread" in engine.notice
    assert not said
    assert threading.excepthook is hook


def test_other_threads_are_heard_while_a_pool_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    begin = ProcessEngine._submit

    def submit(engine: ProcessEngine, work: Any, unit: Any) -> Any:
        def fail() -> None:
            raise ValueError("heard")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return begin(engine, work, unit)

    monkeypatch.setattr(ProcessEngine, "_submit", submit)
    with ProcessEngine(FilesystemStorage(str(tmp_path)), 2):
        assert said == ["heard"]
