"""``registry-gc plan``: find out what would go, and keep that for ``registry-gc apply``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from registry_gc.cli.flags import ConfigType, DropInCommand, FileType
from registry_gc.cli.options import chosen, defaults, paths

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_EPILOG = """\b
Exit codes:
  0    done: the plan is written
  1    failed, or FILE exists already: there is no plan; or a full disk lost
       the output, not FILE
  2    usage or config error
  3    done, but something is held or damaged, and not in the plan
  5    stopped on the way by a deadline; there is no plan
  130  interrupted (143 by SIGTERM); there is no plan

\b
registry-gc plan show FILE [--format text|csv|jsonl] prints a plan.

A config file that is called show is named ./show.
"""


@click.command("plan show", cls=DropInCommand)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--format", "form", type=click.Choice(["text", "csv", "jsonl"]), default="text",
    show_default=True, help="Lines for people, or one record for each thing that is to go.",
)  # fmt: skip
def show(file: str, form: str) -> None:
    """Print what the plan or run file FILE says: each thing, why it goes, what became of it."""
    from registry_gc.cli.plan_show import run_plan_show

    sys.exit(run_plan_show(file, form))


class _PlanCommand(DropInCommand):
    """Makes a plan; but ``plan show`` is another command, which shows one."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the arguments, of whichever command they are for."""
        if args and args[0] == "show":
            return show.make_context(f"{info_name} show", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _config_or_show(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """For a shell: a path, or what may only come first."""
    from click.core import ParameterSource
    from click.shell_completion import CompletionItem

    found = paths(ctx, param, incomplete)
    sources = map(ctx.get_parameter_source, ctx.params)
    # Not of nothing at all: a shell that is offered a word as well offers no files.
    if incomplete and "show".startswith(incomplete) and ParameterSource.COMMANDLINE not in sources:
        found.append(CompletionItem("show", help="Print a plan."))
    return found


_OPTIONS: Sequence[str] = (
    "delete_untagged", "quiet", "verbose", "output", "registry_stopped", "registry_urls",
    "registry_auth_file", "assume_readonly", "upload_age", "keep_empty_repositories",
    "purge_versions", "quarantine", "releases", "workers", "max_requests_per_second",
    "cache", "no_cache", "state_dir", "deadline", "log_format",
)  # fmt: skip


@click.command("plan", cls=_PlanCommand, epilog=_EPILOG)
@click.option(
    "-o", "run_file", type=FileType(), required=True, metavar="FILE",
    help="Where to write the plan.",
)  # fmt: skip
@chosen("grace", *_OPTIONS)
@click.argument(
    "config", required=False, type=ConfigType(), metavar="[CONFIG]", shell_complete=_config_or_show
)
def plan(**options: Any) -> None:
    """Find out what would go, and write it down for `registry-gc apply`. Deletes nothing.

    May run while the registry is in use; then nothing that is younger than 24 hours is planned.
    """
    from registry_gc.apply import make_plan
    from registry_gc.cli.run import run_collection

    given = {**defaults(), **options, "dry_run": True, "remember": True}
    sys.exit(run_collection(given, make_plan))
