"""``--log-format json``: every line on stderr is one object; text stays what it was."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from registry_gc.cli.wiring import log_as_json
from registry_gc.progress import Progress
from registry_tree import tag_path
from running import Disk, Result, run, write_config


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.age()
    return disk


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers, root.level = handlers, level


def go(disk: Disk, *arguments: str | Path, readonly: bool = True) -> Result:
    config = write_config(disk.root, readonly=readonly)
    return run(*arguments, config, state=disk.folder / "state")


def objects(errors: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in errors.splitlines()]
    for one in found:
        assert list(one) == ["time", "level", "message"]
        assert datetime.fromisoformat(one["time"]).utcoffset() is not None
    return found


def test_errors_and_notes_are_objects(disk: Disk) -> None:
    (error,) = objects(go(disk, "--log-format=json", readonly=False).errors)
    assert error["level"] == "error"
    assert error["message"].startswith("refused, nothing was deleted")
    disk.write(tag_path("b", "v1"), b"")
    (note,) = objects(go(disk, "--log-format=json").errors)
    assert (note["level"], note["message"].split(",")[0]) == ("note", "1 held")


def test_notices_of_a_run_are_objects(disk: Disk) -> None:
    config = write_config(disk.root)
    errors = run("--log-format=json", "-d", config, state=Path("/proc/state")).errors
    messages = [one["message"] for one in objects(errors)]
    assert any("cannot be written" in message for message in messages)


def test_a_config_error_is_an_object(disk: Disk) -> None:
    result = run("--log-format=json", disk.folder / "no.yml", state=disk.folder)
    (error,) = objects(result.errors)
    assert result.exit_code == 2
    assert "there is no such file" in error["message"]


def test_a_variable_sets_it(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RGC_LOG_FORMAT", "json")
    assert objects(go(disk, readonly=False).errors)


def test_text_is_what_it_was_and_what_is_said_next(disk: Disk) -> None:
    assert objects(go(disk, "--log-format=json", readonly=False).errors)
    assert go(disk, readonly=False).errors.startswith("error: refused")


def test_what_libraries_log_and_python_warns_of_are_objects(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_as_json()
    logging.getLogger("urllib3").warning("retrying %s", "x\ny")
    logging.getLogger("urllib3").info("not said")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    first, second = objects(capsys.readouterr().err)
    assert first["message"] == "urllib3: retrying x\ny"
    assert second["message"].startswith("py.warnings: ")


def test_there_are_no_bars_among_objects(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json, drawn in ((True, False), (False, True)):
        progress = Progress(bars=True, as_json=as_json)
        progress.phase("listing", 10, "blobs")
        progress.advance(5)
        assert (progress._bar is not None) is drawn
        progress.finish()
    capsys.readouterr()


def test_names_that_stderr_cannot_say_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(bars=False).notice("repository b\udcff")
    assert capsys.readouterr().err == "note: repository b\\xff\n"
