"""The two commands: ``registry-garbage-collect``, the drop-in, and ``registry-gc``, the group.

Importing this must stay cheap: whatever needs numpy or an SDK is imported when a command runs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from registry_gc import __version__
from registry_gc.cli.apply import apply
from registry_gc.cli.flags import DropInCommand
from registry_gc.cli.options import chosen, collection_options
from registry_gc.cli.plan import plan
from registry_gc.cli.quarantine import purge, restore
from registry_gc.cli.usage_options import report, runs

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

EPILOG = """\b
Exit codes:
  0    done; or a dry run that found out what it was asked
  1    failed; what was deleted is in the run file, and all of it was dead
  2    usage or config error
  3    done, but something was held, damaged, or could not be deleted
  4    refused: somebody may be writing, or a limit was hit; nothing was deleted
  5    stopped on the way: by the guard, the lock or a deadline; safe to go on later
  130  interrupted (143 by SIGTERM); safe to go on later

CONFIG is the registry's own config file; REGISTRY_* variables override it as they do for the
registry. Without CONFIG its default paths are tried. Every option can be set as RGC_<NAME>,
such as RGC_GRACE=24h. DURATION is Go's (1h30m), with d and w too.
"""

LOOKING_EPILOG = """\b
Exit codes:
  0    every tag is whole
  1    failed: something could not be read, so nothing can be said
  2    usage or config error
  3    something is missing or wrong; the list says what
  130  interrupted (143 by SIGTERM)
"""

EXPLAIN_EPILOG = """\b
Exit codes:
  0    answered
  1    failed: nothing of that name, or something could not be read
  2    usage or config error
  130  interrupted (143 by SIGTERM)
"""

HELP = """Delete what no image needs from a container registry's storage.

Marks everything that tags and manifests lead to, then deletes the rest: blobs, links, abandoned
uploads. Refuses to delete while a registry can still write there; a dry run is always allowed.
"""


def _drop_in(name: str) -> DropInCommand:
    """The collection as a command called *name*."""

    @click.command(name, cls=DropInCommand, help=HELP, epilog=EPILOG, context_settings=_CONTEXT)
    @collection_options
    @click.version_option(__version__, "-V", "--version", prog_name="registry-garbage-collect")
    @click.argument("config", required=False, type=click.Path(), metavar="[CONFIG]")
    def command(**options: Any) -> None:
        # numpy starts a thread on each core for linear algebra, of which there is none here, and
        # worker processes are forked before there is any thread.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from registry_gc.cli.run import run_collection

        sys.exit(run_collection(options))

    assert isinstance(command, DropInCommand)
    return command


registry_garbage_collect = _drop_in("registry-garbage-collect")


@click.group("registry-gc", context_settings=_CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="registry-gc")
def registry_gc() -> None:
    """Garbage collection for container registries. `run` is registry-garbage-collect."""


registry_gc.add_command(_drop_in("run"))
registry_gc.add_command(plan)
registry_gc.add_command(apply)
registry_gc.add_command(report)
registry_gc.add_command(runs)
registry_gc.add_command(restore)
registry_gc.add_command(purge)


@registry_gc.command()
@click.argument("config", required=False, type=click.Path(), metavar="[CONFIG]")
def unlock(config: str | None) -> None:
    """Remove the lock that a run left behind on a machine that is gone.

    Make sure that no run is under way there. A run of this machine that has died, or one that has
    been silent for ten minutes anywhere, is taken over without this.
    """
    from registry_gc.cli.unlock import run_unlock

    sys.exit(run_unlock(config))


@registry_gc.command(epilog=LOOKING_EPILOG)
@click.option("--content", is_flag=True, help="Read every blob and check its digest.")
@click.option("--untagged", is_flag=True, help="Look at manifests that no tag leads to as well.")
@click.option(
    "--whole-indexes",
    is_flag=True,
    help="Count it as a fault when an index lists a manifest that its repository does not have.",
)
@chosen("output", "quiet", "workers", "max_requests_per_second")
@click.argument("config", required=False, type=click.Path(), metavar="[CONFIG]")
def verify(**options: Any) -> None:
    """Look whether every tag can be pulled whole: manifests, blobs, sizes, links.

    Changes nothing and takes no lock; the registry may be in use.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from registry_gc.cli.verify import run_verify

    sys.exit(run_verify(options))


@registry_gc.command(epilog=EXPLAIN_EPILOG)
@chosen("delete_untagged", "grace", "releases", "output", "workers", "max_requests_per_second")
@click.argument("config", type=click.Path())
@click.argument("what", metavar="DIGEST|REPOSITORY[:TAG|@DIGEST]")
def explain(**options: Any) -> None:
    """Say why something is live, dead, held, young or absent.

    Also what else refers to it, where it is linked, and what deleting a tag or a repository would
    free. A digest may be cut short when it stays unique. -m, --grace and --release change the
    answer as they change a collection. Changes nothing; the registry may be in use.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from registry_gc.cli.explain import run_explain

    sys.exit(run_explain(options))
