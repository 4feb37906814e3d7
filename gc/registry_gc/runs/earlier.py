"""What an earlier run has left where a run file is to be written, and whether that may go."""

from __future__ import annotations

import contextlib
import enum
import os
from collections.abc import Mapping
from typing import Any

from registry_drivers.base import Reader
from registry_gc.machine.processes import Process
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
    """Anything else, which is never touched; so that of a live run on another storage."""


def found_at(path: str, storage: Reader) -> Found:
    """What lies at *path* where a run on *storage* would write; reads only."""
    if not os.path.lexists(path):
        return Found.NOTHING
    meta = _meta_at(path)
    found = _kind_of(meta)
    if found is not Found.OTHER and not _is_of(meta, storage) and _is_alive(meta):
        return Found.OTHER
    return found


def _kind_of(meta: Mapping[str, Any]) -> Found:
    """What a run file is by what it says of itself, nothing where there is none."""
    if not meta or meta.get("purpose", "run") != "run":
        return Found.OTHER
    if meta.get("finished") and meta.get("blob_cache") != "redis":
        return Found.OTHER
    return Found.STOPPED if meta.get("planned") else Found.BEGUN


def _is_of(meta: Mapping[str, Any], storage: Reader) -> bool:
    return (meta.get("driver"), meta.get("root")) == (storage.driver, storage.root)


def _is_alive(meta: Mapping[str, Any]) -> bool | None:
    """Whether the run that wrote *meta* goes on; None where that cannot be known.

    Of what another version wrote, or nobody, it is not.
    """
    if "ended" in meta:
        return False
    with contextlib.suppress(TypeError, KeyError):
        return Process(**meta["process"]).alive()
    return None


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
    if meta.get("purpose") == "plan" and not meta.get("planned") and _is_alive(meta) is False:
        with contextlib.suppress(OSError):
            os.unlink(path)


def discard_begun(path: str, storage: Reader) -> None:
    """Remove the file of a run that ended before it had a plan; only with *storage*'s lock held.

    The lock says that no run on this storage goes on, and nothing of one on another.
    """
    meta = _meta_at(path)
    over = _is_of(meta, storage) or _is_alive(meta) is False
    if _kind_of(meta) is Found.BEGUN and over:
        with contextlib.suppress(OSError):
            os.unlink(path)
