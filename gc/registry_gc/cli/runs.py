"""``registry-gc runs``: past runs, and the removal of old run files after a collection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry_gc.cli.output import Output, table_style
from registry_gc.cli.wiring import note, wanted_state_dir
from registry_gc.interrupts import Interrupts
from registry_gc.runs.past import past_runs, prune


def list_runs(options: Mapping[str, Any]) -> int:
    """Show all runs of the state directory; returns the exit code."""
    state_dir = wanted_state_dir(options)
    # A collection, which only prunes, shows no table: rich takes 50 ms to import.
    from registry_gc.cli.working import Failed, run_work
    from registry_gc.report.past_runs import runs_json, runs_lines

    def work(output: Output, _: Interrupts) -> int:
        try:
            runs = past_runs(state_dir)
        except OSError as error:
            raise Failed(f"{state_dir}: {error.strerror or error}") from error
        if options["output"] == "json":
            output.lines([runs_json(state_dir, runs)])
        else:
            output.lines(runs_lines(state_dir, runs, table_style()))
        return 0

    return run_work(options, work)


def prune_runs(options: Mapping[str, Any], current: str | None) -> None:
    """Remove old run files as ``--keep-runs`` asks; what cannot be removed is only said."""
    if options["keep_runs"] is None:
        return
    state_dir = wanted_state_dir(options)
    try:
        failed = prune(state_dir, options["keep_runs"], current).failed
    except OSError as error:
        note(f"{state_dir}: old run files stay: {error.strerror or error}")
        return
    for path, reason in failed:
        note(f"{path}: an old run file stays: {reason}")
