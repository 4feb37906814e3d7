"""The commands that only ask, ``report`` and ``runs``, as ``--help`` has them."""

from __future__ import annotations

import sys
from typing import Any

import click

from registry_gc.cli.flags import ConfigType, DropInCommand
from registry_gc.cli.options import chosen

_REPORT_EPILOG = """\b
Exit codes:
  0    reported
  1    failed: something could not be read, or the report not be written
  2    usage or config error
  130  interrupted (143 by SIGTERM)
"""

_RUNS_EPILOG = """\b
Exit codes:
  0    listed, also if a run's file is damaged or there is none
  1    failed: the state directory could not be read, or the list not written
  2    usage error
  130  interrupted (143 by SIGTERM)
"""


@click.command("report", cls=DropInCommand, epilog=_REPORT_EPILOG)
@click.argument("config", required=False, type=ConfigType(), metavar="[CONFIG]")
@click.option(
    "--output",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    show_default=True,
    help="Tables for people, one JSON document, or a CSV line for each repository.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also write one HTML page with charts and all repositories; it needs no network.",
)
@click.option(
    "--group-depth",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="A group is the first N components of a repository's name.",
)
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="How many of the largest and the oldest to name.",
)
@chosen(
    "quiet", "grace", "upload_age", "workers", "max_requests_per_second", "cache", "no_cache",
    "state_dir",
)  # fmt: skip
def report(**options: Any) -> None:
    """Show who uses the storage, and what a collection would free.

    By repository and by group: logical bytes (all that is used, each blob once), unique bytes
    (what nobody else uses), shared bytes, tags, manifests, what is reclaimable now and with -m,
    and the age. Reads only; allowed while the registry is in use.
    """
    from registry_gc.cli.report import run_report

    sys.exit(run_report(options))


@click.command("runs", cls=DropInCommand, epilog=_RUNS_EPILOG)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="A table for people, or one JSON document.",
)  # fmt: skip
@chosen("state_dir")
def runs(**options: Any) -> None:
    """List past runs from the state directory, and what each freed.

    A run is finished, stopped (it failed, was refused or was ended on its way, and the next
    collection finds again what is left), running, unknown (it has not ended, and nobody can tell
    from here whether it goes on), or damaged (its file cannot be read).
    """
    from registry_gc.cli.runs import list_runs

    sys.exit(list_runs(options))
