"""The commands for a quarantine, ``restore`` and ``purge``, as ``--help`` has them."""

from __future__ import annotations

import sys
from typing import Any

import click

from registry_gc.cli.flags import ConfigType, DropInCommand, DurationType
from registry_gc.cli.options import chosen

_CODES = """\b
Exit codes:
  0    done%s; or a dry run that found out what it was asked
  1    failed%s
  2    usage or config error
  3    done, but something was lost, held, or could not be moved or deleted
  4    refused: another run holds the lock%s
  5    stopped on the way; safe to run again
  130  interrupted (143 by SIGTERM); safe to run again
"""

_NOTHING = ", or there is nothing of that in quarantine"
_WRITING = ",\n       somebody may write, or a check says no"

_AUDIT_LOG = (
    "Append a JSON line for each object that %s to this file, or send it to syslog; WHERE is a "
    "facility, a socket's path, or [tcp:]HOST[:PORT]."
)


@click.command(cls=DropInCommand, epilog=_CODES % ("", _NOTHING, ", or a check says no"))
@chosen("dry_run", dry_run="Move nothing; say what would come back.")
@click.option(
    "--allow-empty",
    is_flag=True,
    help="Bring it back even to where nothing is left, as when all of it is in quarantine.",
)
@chosen(
    "output",
    "quiet",
    "verbose",
    "max_requests_per_second",
    "metrics_file",
    "pushgateway",
    "audit_log",
    "log_format",
    verbose="Also name each object that came back.",
    audit_log=_AUDIT_LOG % "comes back from a quarantine",
)
@click.argument("config", type=ConfigType())
@click.argument("what", required=False)
def restore(**options: Any) -> None:
    """Bring back what a run with --quarantine has set aside.

    WHAT is a run's id, REPOSITORY, REPOSITORY:TAG, DIGEST or REPOSITORY@DIGEST. A manifest comes
    with all that a pull of it needs, and with what refers to it; a tag with all that it has
    pointed to. Nothing is overwritten. The registry may be in use. Without WHAT: which runs are
    in quarantine, and until when.
    """
    from registry_gc.cli.restore import run_restore

    sys.exit(run_restore(options))


@click.command(cls=DropInCommand, epilog=_CODES % (", or nothing was due", "", _WRITING))
@chosen("dry_run")
@click.option(
    "--older-than",
    type=DurationType(),
    metavar="DURATION",
    help="Delete what has waited so long, whatever its own run was told.",
)
@chosen(
    "output",
    "quiet",
    "registry_stopped",
    "registry_urls",
    "registry_auth_file",
    "assume_readonly",
    "allow_empty",
    "accept_shrink",
    "workers",
    "max_requests_per_second",
    "cache",
    "no_cache",
    "state_dir",
    "metrics_file",
    "pushgateway",
    "capacity",
    "audit_log",
    "log_format",
    audit_log=_AUDIT_LOG % "comes back or is deleted from a quarantine",
)
@click.argument("config", required=False, type=ConfigType(), metavar="[CONFIG]")
def purge(**options: Any) -> None:
    """Delete what has waited in quarantine long enough.

    Marks first, as a collection does: what is live by now comes back. The registry has to be
    read-only or stopped, as for a collection.
    """
    from registry_gc.cli.purge import run_purge

    sys.exit(run_purge(options))
