"""Where run files go, and what happens where they cannot."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from registry_gc.runs.state_dir import (
    StateDir,
    default_state_dir,
    fallback_folders,
    open_state_dir,
    run_file_path,
    temporary_folder,
)


def test_the_state_directory_is_where_the_system_keeps_such_things() -> None:
    assert default_state_dir({"XDG_STATE_HOME": "/x"}, 1000) == "/x/registry-gc"
    assert default_state_dir({"XDG_STATE_HOME": "/x"}, 0) == "/x/registry-gc"
    assert default_state_dir({"XDG_STATE_HOME": ""}, 0) == "/var/lib/registry-gc"
    assert default_state_dir({}, 0) == "/var/lib/registry-gc"
    home = os.path.expanduser("~/.local/state/registry-gc")
    assert default_state_dir({}, 1000) == home
    assert default_state_dir({"XDG_STATE_HOME": "x"}, 1000) == home


@pytest.mark.parametrize("home", ["~", "", "."])
def test_who_has_no_home_gets_no_folder_that_depends_on_where_he_stands(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda _: home)
    assert default_state_dir({}, 54321) == "/var/lib/registry-gc"


def test_it_is_made_when_missing_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "registry-gc"
    assert open_state_dir(str(path)) == StateDir(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert list(path.iterdir()) == []
    assert open_state_dir(str(path)) == StateDir(str(path))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_where_it_cannot_be_made_a_temporary_one_is_used_and_named(
    tmp_path: Path, temporary: Path
) -> None:
    (tmp_path / "file").touch()
    wanted = str(tmp_path / "file" / "state")
    state = open_state_dir(wanted)
    assert Path(state.path).parent == temporary
    (notice,) = state.notices
    assert wanted in notice
    assert state.path in notice
    assert "--state-dir" in notice
    assert "Not a directory" in notice


def test_where_it_cannot_be_written_a_temporary_one_is_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    state = open_state_dir(str(tmp_path / "state"))
    assert Path(state.path).parent == temporary
    assert "Permission denied" in state.notices[0]


def test_where_the_system_has_no_room_for_temporary_files_memory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr("registry_gc.runs.state_dir.IN_MEMORY", (str(memory),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    state = open_state_dir(str(tmp_path / "file" / "state"))
    assert Path(state.path).parent == memory


def test_where_there_is_no_room_at_all_it_is_left_to_the_run_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    wanted = str(tmp_path / "file" / "state")
    monkeypatch.setattr("registry_gc.runs.state_dir.IN_MEMORY", (str(tmp_path / "missing"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    state = open_state_dir(wanted)
    assert state.path == wanted
    assert "cannot be written" in state.notices[0]
    with pytest.raises(OSError, match="No such file"):
        temporary_folder(str(tmp_path / "missing"))


def test_temporary_folders_are_found_again_but_not_those_of_others(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_gc.runs.state_dir.IN_MEMORY", (str(tmp_path / "memory"),))
    (tmp_path / "memory").mkdir()
    found = [temporary_folder(str(tmp_path / "memory")), temporary_folder(None)]
    (temporary / "registry-gc-open").mkdir(mode=0o755)
    (temporary / "registry-gc-link").symlink_to(found[0])
    (temporary / "registry-gc-file").touch(mode=0o600)
    assert fallback_folders() == found
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert fallback_folders() == []


def test_run_files_are_named_by_time_and_run() -> None:
    path = run_file_path("/state", "0123456789abcdef", 0.0)
    assert path == "/state/runs/19700101T000000Z-01234567.sqlite"
    assert run_file_path("/s", "a", 1e9) < run_file_path("/s", "a", 1.7e9)
