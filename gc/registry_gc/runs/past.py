"""Past runs, as their run files in the state directory tell; and which of those may go.

What a run came to is counted from its rows, so that a run that was killed tells it too.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from registry_gc.machine.processes import Process
from registry_gc.run_file import SCHEMA
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.runs.totals import counts_of

_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}\.sqlite")
# What a run that was killed while it made its file has left, see :mod:`registry_gc.runs.database`.
_HALF_MADE = re.compile(rf"{_NAME.pattern}\.[^.]+\.new(?:-journal)?")
_HALF_MADE_AGE = 24 * 3600.0  # seconds; one is made in a moment
_BESIDE = ("-journal", "-wal", "-shm")
# A quarantine tells by itself what is in it: nothing there needs the run file.
_SETTLED = frozenset(RowState) - {RowState.PLANNED}
_END_OF_TIME = 253_402_300_800.0  # the year 10000, in seconds; Python knows no later date
_STOPPED = (1, 4, 5, 130, 143)
"""Exit codes of what failed, was refused, or was ended by guard, lock, deadline or a signal."""
_PATIENCE = 2.0  # seconds; a writer holds its file for a small part of one


class RunState(enum.StrEnum):
    """How far a run has come."""

    FINISHED = "finished"
    """It ended, and nothing that it meant to delete is left undecided."""
    STOPPED = "stopped"
    """It ended with rows left or before it knew them, or its process died; the next collection
    finds them again."""
    RUNNING = "running"
    """Its process lives."""
    UNKNOWN = "unknown"
    """It has not ended, and nobody here can tell whether its process lives."""
    DAMAGED = "damaged"
    """The file cannot be read as a run file."""


class PastRun(msgspec.Struct, frozen=True):
    """One run. Times in seconds since the epoch; None and 0 for what its file does not tell.

    ``left``: rows that are still planned. ``unsettled``: those, and rows in a state that this
    version does not know. ``reason``: why the file is damaged, or the run not done.
    ``cached``: entries of what it deleted may still be in the registry's Redis. ``looked``: it has
    found out what there is to delete; False where it was refused, or failed, before that.
    """

    path: str
    state: RunState
    reason: str = ""
    run: str = ""
    version: str = ""
    driver: str = ""
    root: str = ""
    dry_run: bool = False
    delete_untagged: bool = False
    created: float | None = None
    ended: float | None = None
    seconds: float | None = None
    exit_code: int | None = None
    eligible_bytes: int = 0
    deleted_bytes: int = 0
    quarantined: int = 0
    quarantined_bytes: int = 0
    deleted: Mapping[str, int] = msgspec.field(default_factory=dict)
    failed: int = 0
    gone_already: int = 0
    left: int = 0
    unsettled: int = 0
    cached: bool = False
    held: int | None = None
    damaged: int | None = None
    blobs: int | None = None
    looked: bool = True

    @property
    def complete(self) -> bool:
        """Whether it deleted all that it meant to, or recorded why it could not."""
        return self.state is RunState.FINISHED and not self.dry_run and self.exit_code in (0, 3)


def beginning() -> dict[str, Any]:
    """What a run file says from the start, so that others can tell whether it goes on."""
    return {"process": msgspec.structs.asdict(Process.current())}


def ending(ended: float, document: Mapping[str, Any]) -> dict[str, Any]:
    """What a run file says at the end: when that was, and the run's own report."""
    return {"ended": ended, "report": document}


def folder_of(state_dir: str) -> str:
    """Where the run files are."""
    return os.path.join(state_dir, "runs")


def past_runs(state_dir: str) -> list[PastRun]:
    """All runs, the newest first.

    :raises OSError: the folder is there, and cannot be read.
    """
    folder = folder_of(state_dir)
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except FileNotFoundError:
        return []
    runs = [read_run(os.path.join(folder, name)) for name in names if _NAME.fullmatch(name)]
    # Names tell the second, and after that nothing.
    return sorted(runs, key=lambda run: (_second(run.path), run.created or 0.0), reverse=True)


def _second(path: str) -> str:
    return os.path.basename(path).partition("-")[0]


def read_run(path: str) -> PastRun:
    """What the run file at *path* tells."""
    try:
        meta, counts = _read(path)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            return PastRun(path, RunState.RUNNING, "it is being written")
        return PastRun(path, RunState.DAMAGED, str(error))
    except (sqlite3.Error, ValueError, RecursionError, OSError) as error:
        return PastRun(path, RunState.DAMAGED, str(error))
    try:
        return _told(path, meta, counts)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        return PastRun(path, RunState.DAMAGED, f"its facts cannot be understood: {error!r}")


_Counts = list[tuple[str, str, int, int]]


def _read(path: str) -> tuple[dict[str, Any], _Counts]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        # SQLite would wait for somebody at the other end of a pipe.
        raise ValueError("no regular file")
    try:
        return _query(path, "ro")
    except sqlite3.OperationalError as error:
        # A run that was killed within a write has left a journal; only who may write can use it.
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            raise
        return _query(path, "rw")


def _query(path: str, mode: str) -> tuple[dict[str, Any], _Counts]:
    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_PATIENCE)) as connection:
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema}, not {SCHEMA}: written by another version?")
        rows = connection.execute("SELECT key, value FROM meta")
        meta = {key: json.loads(value) for key, value in rows}
        return meta, counts_of(connection)


def _told(path: str, meta: dict[str, Any], counts: _Counts) -> PastRun:
    report = meta.get("report") or {}
    # A run that failed before it had a plan says who it was in its report only.
    storage = report.get("storage", {})
    meta = {"run": report.get("run"), "dry_run": report.get("dry_run"), **storage, **meta}
    dry_run = bool(meta["dry_run"])
    ended, seconds = meta.get("ended"), _number(report.get("seconds", {}).get("total"))
    if ended is not None and seconds is not None:
        meta.setdefault("created", ended - seconds)
    left = sum(rows for _, state, rows, _ in counts if state == RowState.PLANNED)
    unsettled = sum(rows for _, state, rows, _ in counts if state not in _SETTLED)
    done = [count for count in counts if count[1] == RowState.DELETED]
    aside = [count for count in counts if count[1] == RowState.QUARANTINED]
    deleted = {kind.label: 0 for kind in RowKind}
    deleted.update({kind: rows for kind, _, rows, _ in done})
    return PastRun(
        path=path,
        state=_state(meta, not _cut_off(meta, report) and (dry_run or not left)),
        reason=str(report.get("error") or ""),
        run=str(meta["run"] or ""),
        version=str(meta.get("version", "")),
        driver=str(meta.get("driver", "")),
        root=str(meta.get("root", "")),
        dry_run=dry_run,
        delete_untagged=bool(meta.get("delete_untagged")),
        created=_moment(meta.get("created")),
        ended=_moment(ended),
        seconds=seconds,
        exit_code=report.get("exit_code"),
        eligible_bytes=sum(size for _, _, _, size in counts),
        deleted_bytes=sum(size for _, _, _, size in done),
        quarantined=sum(rows for _, _, rows, _ in aside),
        quarantined_bytes=sum(size for _, _, _, size in aside),
        deleted=deleted,
        failed=sum(rows for _, state, rows, _ in counts if state == RowState.FAILED),
        gone_already=sum(rows for _, state, rows, _ in counts if state == RowState.GONE_ALREADY),
        left=left,
        unsettled=unsettled,
        cached=meta.get("blob_cache") == "redis",
        held=None if "held" not in report else len(report["held"]),
        damaged=None if "damaged" not in report else len(report["damaged"]),
        blobs=report.get("blobs", {}).get("total"),
        looked="cutoff" in meta or bool(counts) or report.get("exit_code") not in _STOPPED,
    )


def _moment(value: Any) -> float | None:
    return None if value is None else checked_time(value)


def checked_time(value: Any) -> float:
    """*value* as seconds since the epoch.

    :raises ValueError: it is no number, or no time that a calendar has.
    """
    seconds = float(value)
    if not 0 <= seconds < _END_OF_TIME:
        raise ValueError(f"no time: {seconds}")
    return seconds


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"no number: {number}")
    return number


def _cut_off(meta: Mapping[str, Any], report: Mapping[str, Any]) -> bool:
    """Whether it ended on its way, perhaps before it knew what there is to delete."""
    return report.get("exit_code") in _STOPPED and not meta.get("finished")


def _state(meta: Mapping[str, Any], finished: bool) -> RunState:
    if "ended" in meta:
        return RunState.FINISHED if finished else RunState.STOPPED
    process = meta.get("process")
    alive = Process(**process).alive() if process else None
    if alive is None:
        return RunState.UNKNOWN
    return RunState.RUNNING if alive else RunState.STOPPED


class Pruned(msgspec.Struct, frozen=True):
    """Which run files went, and those that could not, with the reason."""

    removed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


def prune(state_dir: str, keep: int, current: str | None) -> Pruned:
    """Remove old run files but for the *keep* newest, and what never became one.

    Those that were refused, or failed early, are counted apart: a weekend of them pushes out no
    record of what was deleted.

    Never removed: *current*; the file of a run that goes on, or of which nobody can tell; a
    damaged file; one that alone says what has still to be removed from the registry's Redis; and
    one with rows that are not settled, unless a later run of the same storage deleted all that it
    meant to, which was then everything dead.

    :raises OSError: the folder cannot be read.
    """
    runs = past_runs(state_dir)
    removed: list[str] = []
    failed: list[tuple[str, str]] = []
    newer = {True: 0, False: 0}
    for at, run in enumerate(runs):
        newer[run.looked] += 1
        if newer[run.looked] <= keep or _is(run.path, current) or not removable(run, runs[:at]):
            continue
        try:
            _remove(run.path)
            removed.append(run.path)
        except OSError as error:
            failed.append((run.path, error.strerror or str(error)))
    for path in _half_made(folder_of(state_dir)):
        # Who is quicker has removed it.
        with contextlib.suppress(OSError):
            os.unlink(path)
            removed.append(path)
    return Pruned(tuple(removed), tuple(failed))


def _half_made(folder: str) -> Iterator[str]:
    now = time.time()
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if _HALF_MADE.fullmatch(name) and now - os.lstat(path).st_mtime > _HALF_MADE_AGE:
                yield path


def removable(run: PastRun, later: Sequence[PastRun]) -> bool:
    """Tell whether nothing rests on the file of *run* any more; see :func:`prune`."""
    if run.cached or run.state not in (RunState.FINISHED, RunState.STOPPED):
        return False
    if run.dry_run or not run.unsettled:
        return True
    # What is neither planned nor settled is something that this version knows nothing of.
    return run.unsettled == run.left and _superseded(run, later)


def _superseded(run: PastRun, later: Iterable[PastRun]) -> bool:
    return any(
        other.complete and (other.driver, other.root) == (run.driver, run.root) for other in later
    )


def _is(path: str, current: str | None) -> bool:
    return current is not None and os.path.realpath(path) == os.path.realpath(current)


def _remove(path: str) -> None:
    # The journal last would leave one that a file of the same name takes for its own.
    for beside in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + beside)
    os.unlink(path)
