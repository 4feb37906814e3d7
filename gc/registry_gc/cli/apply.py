"""``registry-gc apply``: carry a plan out, or go on with a run that was stopped."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from registry_gc.cli.flags import DropInCommand, DurationType
from registry_gc.cli.options import chosen, defaults

_OPTIONS: Sequence[str] = (
    "dry_run", "quiet", "verbose", "output", "registry_stopped", "registry_urls",
    "registry_auth_file", "assume_readonly", "max_delete", "allow_empty", "accept_shrink",
    "deadline", "workers", "max_requests_per_second", "cache", "no_cache", "state_dir",
    "metrics_file", "pushgateway", "capacity", "audit_log", "log_format",
)  # fmt: skip


_EPILOG = """\b
Exit codes:
  0    done, also if nothing was left to do; or a dry run that found out what
       it was asked
  1    failed; what was deleted is in FILE, and all of it was dead
  2    usage or config error
  3    done, but something was held, damaged, or could not be deleted
  4    refused: somebody may write, a limit was hit, or FILE is no plan for it
  5    stopped by the guard, the lock or a deadline; safe to go on later
  130  interrupted (143 by SIGTERM); safe to go on later
"""


@click.command("apply", cls=DropInCommand, epilog=_EPILOG)
@click.option(
    "--config", type=click.Path(dir_okay=False), metavar="CONFIG",
    help="The registry's config. Default: the one that the plan was made with.",
)  # fmt: skip
@click.option(
    "--max-age", type=DurationType(), default="7d", show_default=True, metavar="DURATION",
    help="Refuse a plan that is older.",
)  # fmt: skip
@click.option(
    "--allow-writable", is_flag=True,
    help="Go on while a registry takes writes, with a run that was begun so.",
)  # fmt: skip
@chosen(
    *_OPTIONS,
    dry_run="Look again, and say what would go; delete nothing, and leave FILE as it is.",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def apply(file: str, max_age: float, **options: Any) -> None:
    """Delete what the plan FILE names, and is still dead; or go on with a run that was stopped.

    Looks again at the registry first, which must take no writes: whatever is reached now, or was
    written since, stays. What goes, such as untagged manifests, was decided when FILE was made.
    """
    from functools import partial

    from msgspec.structs import replace

    from registry_gc import apply as applying
    from registry_gc.cli.resume import config_of, unread
    from registry_gc.cli.run import run_collection, tell_at_once
    from registry_gc.cli.wiring import complain
    from registry_gc.configuring.file import ConfigError
    from registry_gc.runs.database import RunFileError

    try:
        config = options["config"] or config_of(file)
    except ConfigError as error:
        complain(str(error))
        sys.exit(2)
    except RunFileError as error:
        told = replace(unread(os.path.abspath(file), error), dry_run=options["dry_run"])
        sys.exit(tell_at_once(told, options))
    own = {"config": config, "run_file": file, "remember": True, "sealed": True}
    given = {**defaults(), **options, **own}
    sys.exit(run_collection(given, partial(applying.apply, max_age=max_age)))
