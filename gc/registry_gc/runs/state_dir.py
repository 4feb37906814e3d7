"""Where run files live between runs."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

IN_MEMORY = ("/dev/shm",)  # noqa: S108  # folders with names of their own are made there
"""Where files take no room on a disk."""
_PREFIX = "registry-gc-"


class StateDir(NamedTuple):
    """A folder that can be written, and what the operator should know about it."""

    path: str
    notices: tuple[str, ...] = ()


def default_state_dir(environ: Mapping[str, str], user: int) -> str:
    """The state directory when none is named; *user* is the effective user id."""
    # The specification of these folders leaves out what is no absolute path. Nor is a home: in a
    # container, a user of whom nothing is known has none, and would get a folder called "~".
    named = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return os.path.join(named, "registry-gc")
    home = os.path.expanduser("~")
    if user == 0 or not os.path.isabs(home):
        return "/var/lib/registry-gc"
    return os.path.join(home, ".local", "state", "registry-gc")


def open_state_dir(path: str) -> StateDir:
    """Make *path*, or a temporary folder where that is not possible."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return StateDir(path)
    except OSError as error:
        why = f"the state directory {path} cannot be written ({error.strerror or error})"
    try:
        temporary = temporary_folder(None, *IN_MEMORY)
    except OSError:
        # Nor can anything else: the run ends, with the reason, when it wants to write there.
        return StateDir(path, (why,))
    notice = f"{why}; using {temporary} for this run (choose another with --state-dir)"
    return StateDir(temporary, (notice,))


def temporary_folder(*parents: str | None) -> str:
    """A new folder in the first of *parents* that takes it; None is the system's own choice.

    :raises OSError: none does.
    """
    for parent in parents[:-1]:
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    return tempfile.mkdtemp(prefix=_PREFIX, dir=parents[-1])


def fallback_folders() -> list[str]:
    """The temporary folders that are left of runs of this user."""
    parents = [*IN_MEMORY]
    with contextlib.suppress(OSError):
        parents.append(tempfile.gettempdir())
    places = [os.path.join(glob.escape(parent), f"{_PREFIX}*") for parent in parents]
    return [path for place in places for path in sorted(glob.glob(place)) if _is_private(path)]


def _is_private(path: str) -> bool:
    """Whether nobody else can have put there what lies there: anybody may make such a name."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    private = not stat.S_IMODE(status.st_mode) & 0o077
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and private


def replace_json(path: str, document: object) -> None:
    """Put *document* at *path*, whole or not at all; on disk when this returns.

    :raises OSError: it cannot be written; what was there is there still.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def run_file_path(state_dir: str, run: str, now: float) -> str:
    """Where the run file of *run* goes; names sort by time."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    return os.path.join(state_dir, "runs", f"{stamp}-{run[:8]}.sqlite")


def run_files(state_dir: str) -> list[str]:
    """The run files in *state_dir*, oldest first."""
    return sorted(glob.glob(os.path.join(glob.escape(state_dir), "runs", "*.sqlite")))
