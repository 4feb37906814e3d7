"""``registry-gc report``: who uses the storage, on stdout and as a page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from registry_drivers.base import Storage
from registry_drivers.wrappers import ReadOnly
from registry_gc.cli.output import Output, table_style
from registry_gc.cli.policy import upload_ages
from registry_gc.cli.wiring import (
    cache_path,
    complain,
    config_of,
    is_terminal,
    look_for_cycles_rarely,
    state_folder,
    storage_of,
)
from registry_gc.cli.working import engine_of, refuse_empty, run_work
from registry_gc.config import Config
from registry_gc.policy import Policy
from registry_gc.progress import Progress
from registry_gc.report.usage_document import UsageReport, usage_csv, usage_json
from registry_gc.report.usage_html import write_page
from registry_gc.report.usage_text import usage_lines
from registry_gc.usage.figures import Usage, usage_of
from registry_gc.usage.growth import Growth, point_of, read_growth, remember
from registry_gc.usage.inventory import take_inventory
from registry_gc.usage.waiting import waiting_in


def run_report(options: Mapping[str, Any]) -> int:
    """Make the report that *options* describe; returns the exit code."""
    look_for_cycles_rarely()
    return run_work(options, lambda output, _: _run(options, output))


def _run(options: Mapping[str, Any], output: Output) -> int:
    progress = Progress(bars=not options["quiet"] and is_terminal())
    config = config_of(options, progress)
    storage = storage_of(config, options["max_requests_per_second"])
    state_dir = state_folder(options, progress)
    try:
        refuse_empty(storage)
        usage = _usage(options, config, storage, state_dir, progress)
        progress.phase("listing quarantines", None, "runs")
        waiting = waiting_in(ReadOnly(storage))
    finally:
        progress.finish()
        storage.close()
    growth = _growth(state_dir, storage, usage, progress)
    report = UsageReport(
        storage.driver, storage.root, usage, growth, options["top"], options["grace"], waiting
    )
    # Before the document, which says how all of it ended.
    fault = _write_page(options["html"], report) if options["html"] else None
    if options["output"] == "json" or not options["quiet"]:
        output.lines(_lines(report, options["output"], fault))
    if fault is not None:
        complain(fault)
    return 0 if fault is None else 1


def _usage(
    options: Mapping[str, Any],
    config: Config,
    storage: Storage,
    state_dir: str,
    progress: Progress,
) -> Usage:
    reader = ReadOnly(storage)
    now = reader.now()
    policies = [
        Policy(
            delete_untagged=delete_untagged,
            grace=options["grace"],
            **upload_ages(config, options),
        )
        for delete_untagged in (False, True)
    ]
    cache = cache_path(options, state_dir, storage)
    with engine_of(reader, options, progress) as engine:
        inventory = take_inventory(
            reader, engine, policies, now - options["grace"], progress, cache
        )
    return usage_of(inventory, options["group_depth"], options["top"], now)


def _growth(state_dir: str, storage: Storage, usage: Usage, progress: Progress) -> Growth:
    """What is known of earlier times; this report is one of them from now on."""
    try:
        remember(state_dir, storage.driver, storage.root, point_of(usage))
        return read_growth(state_dir, storage.driver, storage.root)
    except OSError as error:
        progress.notice(f"earlier reports and runs are not known: {error}")
        return Growth((point_of(usage),), ())


def _lines(report: UsageReport, form: str, fault: str | None) -> Iterator[str]:
    if form == "json":
        return iter([usage_json(report, fault)])
    if form == "csv":
        return usage_csv(report)
    return usage_lines(report, table_style())


def _write_page(path: str, report: UsageReport) -> str | None:
    """Write the page; returns why it could not be."""
    try:
        write_page(os.path.abspath(path), report)
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None
