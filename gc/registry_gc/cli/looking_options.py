"""The commands that look at a registry, ``verify`` and ``explain``, and ``unlock``, as ``--help``
has them.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from registry_gc.cli.flags import ConfigType, DropInCommand
from registry_gc.cli.options import chosen

_VERIFY_EPILOG = """\b
Exit codes:
  0    every tag is whole
  1    failed: something could not be read, so nothing can be said
  2    usage or config error
  3    something is missing or wrong; the list says what
  130  interrupted (143 by SIGTERM)
"""

_UNLOCK_EPILOG = """\b
Exit codes:
  0    unlocked, or there was no lock; or a dry run that found that out
  1    failed: the storage could not be read or written
  2    usage or config error
  4    refused: the run that holds the lock is at work
"""

_EXPLAIN_EPILOG = """\b
Exit codes:
  0    answered
  1    failed: nothing of that name, or something could not be read
  2    usage or config error
  130  interrupted (143 by SIGTERM)
"""


@click.command(cls=DropInCommand, epilog=_UNLOCK_EPILOG)
@chosen("dry_run", dry_run="Remove nothing; say whether there is a lock, and whose.")
@click.argument("config", required=False, type=ConfigType(), metavar="[CONFIG]")
def unlock(config: str | None, *, dry_run: bool) -> None:
    """Remove the lock that a run left behind on a machine that is gone.

    Make sure that no run is under way there. A run of this machine that has died, or one that has
    been silent for ten minutes anywhere, is taken over without this.
    """
    from registry_gc.cli.unlock import run_unlock

    sys.exit(run_unlock(config, dry_run=dry_run))


@click.command(cls=DropInCommand, epilog=_VERIFY_EPILOG)
@click.option("--content", is_flag=True, help="Read every blob and check its digest.")
@click.option("--untagged", is_flag=True, help="Look at manifests that no tag leads to as well.")
@click.option(
    "--whole-indexes",
    is_flag=True,
    help="Count it as a fault when an index lists a manifest that its repository does not have.",
)
@chosen("output", "quiet", "workers", "max_requests_per_second")
@click.argument("config", required=False, type=ConfigType(), metavar="[CONFIG]")
def verify(**options: Any) -> None:
    """Look whether every tag can be pulled whole: manifests, blobs, sizes, links.

    Changes nothing and takes no lock; the registry may be in use.
    """
    from registry_gc.cli.verify import run_verify

    sys.exit(run_verify(options))


@click.command(cls=DropInCommand, epilog=_EXPLAIN_EPILOG)
@chosen(
    "delete_untagged", "grace", "releases", "output", "workers", "max_requests_per_second",
    delete_untagged="As if manifests that no tag leads to were deleted too.",
    releases="As if this repository were not held, although something in it is damaged. "
    "Repeatable.",
)  # fmt: skip
@click.argument("config", type=ConfigType())
@click.argument("what", metavar="DIGEST|REPOSITORY[:TAG|@DIGEST]")
def explain(**options: Any) -> None:
    """Say why something is live, dead, held, young or absent.

    Also what else refers to it, where it is linked, and what deleting a tag or a repository would
    free. A digest may be cut short when it stays unique. -m, --grace and --release change the
    answer as they change a collection. Changes nothing; the registry may be in use.
    """
    from registry_gc.cli.explain import run_explain

    sys.exit(run_explain(options))
