"""Past runs, as a table and as JSON. The JSON's form is a contract: ``schema`` 1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import humanize
from rich.text import Text

from registry_gc import __version__
from registry_gc.report.tables import Column, TableStyle, lines_of, table
from registry_gc.runs.past import PastRun, RunState
from registry_gc.wording.moments import rfc3339, to_the_minute
from registry_gc.wording.shown import shown

SCHEMA = 1

_COLUMNS = (
    Column("began (UTC)", number=False),
    Column("run", number=False, wide=True, style="dim"),
    Column("what", number=False),
    Column("state", number=False, style="bold"),
    Column("exit"),
    Column("freed", style="green"),
    Column("found", wide=True),
    Column("blobs", wide=True),
    Column("manifests", wide=True),
    Column("held", wide=True),
    Column("failed", wide=True),
    Column("left"),
    Column("took"),
)


def runs_document(state_dir: str, runs: Sequence[PastRun]) -> dict[str, Any]:
    """The runs in the terms of the JSON contract."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "state_dir": state_dir,
        "runs": [_document(run) for run in runs],
        "error": None,
        "exit_code": 0,
    }


def runs_json(state_dir: str, runs: Sequence[PastRun]) -> str:
    """The document as text: ASCII, so that no locale can break it."""
    return json.dumps(runs_document(state_dir, runs), indent=2)


def _document(run: PastRun) -> dict[str, Any]:
    return {
        "run": run.run or None,
        "run_file": run.path,
        "state": run.state.value,
        "reason": run.reason or None,
        "version": run.version or None,
        "storage": {"driver": run.driver or None, "root": run.root or None},
        "dry_run": run.dry_run,
        "delete_untagged": run.delete_untagged,
        "began": rfc3339(run.created),
        "ended": rfc3339(run.ended),
        "seconds": run.seconds,
        "exit_code": run.exit_code,
        "blobs": run.blobs,
        "eligible_bytes": run.eligible_bytes,
        "deleted_bytes": run.deleted_bytes,
        "deleted": dict(run.deleted),
        "quarantined": run.quarantined,
        "quarantined_bytes": run.quarantined_bytes,
        "already_gone": run.gone_already,
        "failed": run.failed,
        "left": run.left,
        "held": run.held,
        "damaged": run.damaged,
    }


def runs_lines(state_dir: str, runs: Sequence[PastRun], style: TableStyle) -> Iterator[str]:
    """A table for each storage, the newest run first; below why one is damaged or not done."""
    if not runs:
        yield shown(f"{state_dir}: no runs")
        return
    reasons = [
        Text(shown(f"{run.path}: {run.reason}"), style="dim")
        for run in runs
        if run.reason and run.state is not RunState.FINISHED
    ]
    storages: dict[str, list[PastRun]] = {}
    for run in runs:
        title = f"{run.root} ({run.driver})" if run.root else "files that cannot be read"
        storages.setdefault(shown(title), []).append(run)
    tables = [
        table(style, title, _COLUMNS, map(_row, some)) for title, some in sorted(storages.items())
    ]
    yield from lines_of(style, *tables, *reasons)


def _row(run: PastRun) -> Sequence[str]:
    if run.state is RunState.DAMAGED:
        return ("-", "-", "-", run.state, *("-" for _ in range(len(_COLUMNS) - 4)))
    what = "dry run" if run.dry_run else "run"
    return (
        _when(run.created),
        run.run[:8],
        what + (" -m" if run.delete_untagged else ""),
        run.state,
        "-" if run.exit_code is None else str(run.exit_code),
        _freed(run),
        humanize.naturalsize(run.eligible_bytes),
        f"{run.deleted.get('blob', 0):,}",
        f"{run.deleted.get('revision', 0):,}",
        _count(run.held),
        f"{run.failed:,}",
        "-" if run.dry_run else f"{run.left:,}",
        _took(run.seconds),
    )


def _freed(run: PastRun) -> str:
    if run.dry_run:
        return "-"
    if run.quarantined:
        return f"{humanize.naturalsize(run.quarantined_bytes)} set aside"
    return humanize.naturalsize(run.deleted_bytes)


def _when(seconds: float | None) -> str:
    return "-" if seconds is None else to_the_minute(seconds)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _took(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
