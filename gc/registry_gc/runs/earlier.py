"""What an earlier run has left where a run file is to be written, and whether that may go."""

from __future__ import annotations

import contextlib
import enum
import os
from typing import Any

from registry_gc.processes import Process
from registry_gc.runs.database import RunFileError
from registry_gc.runs.plan_file import PlanFile


class Found(enum.Enum):
    """What lies where a run file is to be written."""

    NOTHING = enum.auto()
    """Nothing at all."""
    BEGUN = enum.auto()
    """The file of a run that ended before it had a plan: nothing was deleted by it."""
    STOPPED = enum.auto()
    """The file of a run that has a plan, and has not ended, or left entries in Redis."""
    OTHER = enum.auto()
    """Anything else, which is never touched."""


def found_at(path: str) -> Found:
    """What lies at *path*; reads only."""
    if not os.path.lexists(path):
        return Found.NOTHING
    meta = _meta_at(path)
    if not meta:
        return Found.OTHER
    if meta.get("purpose", "run") != "run":
        return Found.OTHER
    if meta.get("finished") and meta.get("blob_cache") != "redis":
        return Found.OTHER
    return Found.STOPPED if meta.get("planned") else Found.BEGUN


def _meta_at(path: str) -> dict[str, Any]:
    """What a run file says of itself; nothing where there is none."""
    try:
        if not os.path.isfile(path) or os.path.islink(path):
            return {}
        file = PlanFile.open(path)
    except (RunFileError, OSError):
        # Nor where another process writes to it: then it is no run that has stopped.
        return {}
    try:
        return file.meta()
    except (RunFileError, ValueError):
        return {}
    finally:
        file.close()


def discard_begun_plan(path: str) -> None:
    """Remove what a plan left that was interrupted; not that of one that is being made."""
    meta = _meta_at(path)
    over = "ended" in meta
    # What another version wrote, or nobody, is not known to be over.
    with contextlib.suppress(TypeError, KeyError):
        over = over or Process(**meta["process"]).alive() is False
    if meta.get("purpose") == "plan" and not meta.get("planned") and over:
        with contextlib.suppress(OSError):
            os.unlink(path)


def discard_begun(path: str) -> None:
    """Remove the file of a run that ended before it had a plan; only with the lock held."""
    if found_at(path) is Found.BEGUN:
        with contextlib.suppress(OSError):
            os.unlink(path)
