"""``registry-gc plan show``: a plan or run file as text, CSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import humanize

from registry_gc.cli.output import Output
from registry_gc.cli.wiring import complain
from registry_gc.runs.database import RunFileError
from registry_gc.runs.plan_file import PlanFile
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.wording.moments import utc
from registry_gc.wording.shown import cell, shown

_COLUMNS = (
    "kind", "repository", "digest", "path", "size", "modified", "reason", "state", "error",
    "finished",
)  # fmt: skip


def run_plan_show(path: str, form: str) -> int:
    """Print the plan at *path*; returns the exit code."""
    output = Output()
    try:
        plan = PlanFile.open(path)
        try:
            output.lines(_FORMS[form](plan))
        finally:
            plan.close()
    except (RunFileError, ValueError) as error:
        complain(str(error))
        return 1
    finally:
        output.close()
    return output.exit_code(0)


def _text(plan: PlanFile) -> Iterator[str]:
    yield from _heading(plan.meta())
    yield ""
    yield "kind, how many, bytes, state:"
    for kind in RowKind:
        for state in RowState:
            count = plan.count(kind, state)
            if count.rows:
                size = humanize.naturalsize(count.bytes) if count.bytes else ""
                yield f"  {kind.label:17} {humanize.intcomma(count.rows):>12} {size:>9}  {state}"
    yield ""
    for row in plan.all_rows():
        known = dict(zip(_COLUMNS, row, strict=True))
        what = known["state"] + (f" ({known['error']})" if known["error"] else "")
        yield f"{known['kind']} {known['path']}: {known['reason']}: {what}"


def _heading(meta: Mapping[str, Any]) -> Iterator[str]:
    def when(name: str) -> str:
        return utc(meta[name]).isoformat(" ", "seconds")

    yield f"storage   {meta.get('driver', '?')} {meta.get('root', '?')}"
    yield f"config    {meta.get('config') or '?'}"
    if "listed" in meta:
        yield f"made      {when('listed')}, of what was there by {when('cutoff')}"
        what = "untagged manifests too" if meta.get("delete_untagged") else "no manifests"
        yield f"deletes   {what}"
    if not meta.get("planned"):
        yield "sealed    no: this cannot be applied"
    for applied in meta.get("applied", ()):
        began = utc(applied["began"])
        yield f"applied   {began.isoformat(' ', 'seconds')} by run {applied['run']}"
    if meta.get("finished"):
        yield f"finished  {when('finished')}"


def _csv(plan: PlanFile) -> Iterator[str]:
    for row in (_COLUMNS, *plan.all_rows()):
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(
            cell(value) if isinstance(value, str) else value for value in row
        )
        yield line.getvalue()


def _jsonl(plan: PlanFile) -> Iterator[str]:
    for row in plan.all_rows():
        yield json.dumps(dict(zip(_COLUMNS, row, strict=True)))


_FORMS = {"text": lambda plan: map(shown, _text(plan)), "csv": _csv, "jsonl": _jsonl}
