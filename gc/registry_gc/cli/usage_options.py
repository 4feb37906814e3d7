"""The commands that only ask, ``report`` and ``runs``, as ``--help`` has them."""

from __future__ import annotations

import sys
from typing import Any

import click

from registry_gc.cli.flags import ConfigType, DropInCommand
from registry_gc.cli.options import collection_options

_OF_A_COLLECTION = {option.name: option for option in collection_options(click.Command("")).params}
"""The options of a collection by their names: what means the same here is the same."""

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
  1    failed: the state directory could not be read, or the list not be written
  2    usage error
  130  interrupted (143 by SIGTERM)
"""


def _shared(*names: str) -> list[click.Parameter]:
    return [_OF_A_COLLECTION[name] for name in names]


def _run_report(**options: Any) -> None:
    from registry_gc.cli.report import run_report

    sys.exit(run_report(options))


def _list_runs(**options: Any) -> None:
    from registry_gc.cli.runs import list_runs

    sys.exit(list_runs(options))


report = DropInCommand(
    "report",
    epilog=_REPORT_EPILOG,
    callback=_run_report,
    help="""Show who uses the storage, and what a collection would free.

    By repository and by group: logical bytes (all that is used, each blob once), unique bytes
    (what nobody else uses), shared bytes, tags, manifests, what is reclaimable now and with -m,
    and the age. Reads only; allowed while the registry is in use.
    """,
    params=[
        click.Argument(["config"], required=False, type=ConfigType(), metavar="[CONFIG]"),
        click.Option(
            ["--output"],
            type=click.Choice(["text", "json", "csv"]),
            default="text",
            show_default=True,
            help="Tables for people, one JSON document, or a CSV line for each repository.",
        ),
        click.Option(
            ["--html"],
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Also write one HTML page with charts and all repositories; it needs no network.",
        ),
        click.Option(
            ["--group-depth"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            metavar="N",
            help="A group is the first N components of a repository's name.",
        ),
        click.Option(
            ["--top"],
            type=click.IntRange(1, 1000),
            default=10,
            show_default=True,
            metavar="N",
            help="How many of the largest and the oldest to name.",
        ),
        *_shared(
            "quiet",
            "grace",
            "upload_age",
            "workers",
            "max_requests_per_second",
            "cache",
            "no_cache",
            "state_dir",
        ),
    ],
)

runs = DropInCommand(
    "runs",
    epilog=_RUNS_EPILOG,
    callback=_list_runs,
    help="""List past runs from the state directory, and what each freed.

    A run is finished, stopped (it failed, was refused or was ended on its way, and the next
    collection finds again what is left), running, unknown (it has not ended, and nobody can tell
    from here whether it goes on), or damaged (its file cannot be read).
    """,
    params=[
        click.Option(
            ["--output"],
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="A table for people, or one JSON document.",
        ),
        *_shared("state_dir"),
    ],
)
