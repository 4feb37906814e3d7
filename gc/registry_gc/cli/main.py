"""The two commands: ``registry-garbage-collect``, the drop-in, and ``registry-gc``, the group.

Importing this must stay cheap: whatever needs numpy or an SDK is imported when a command runs.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from registry_gc import __version__
from registry_gc.cli.flags import ConfigType, DropInCommand
from registry_gc.cli.lazy import LazyGroup
from registry_gc.cli.options import collection_options


def every_command() -> list[click.Command]:
    """All commands, which are imported now; for those that ask which variables there are."""
    from registry_gc.cli.plan import show

    context = click.Context(registry_gc)
    found = [registry_gc.get_command(context, name) for name in registry_gc.list_commands(context)]
    return [*filter(None, found), show]


_CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "obj": every_command,
}

EPILOG = """\b
Exit codes:
  0    done; or a dry run that found out what it was asked
  1    failed; what was deleted is in the run file, and all of it was dead
  2    usage or config error
  3    done, but something was held, damaged, or could not be deleted
  4    refused: somebody may write, or a limit was hit; nothing was deleted
  5    stopped by the guard, the lock or a deadline; safe to go on later
  130  interrupted (143 by SIGTERM); safe to go on later

CONFIG is the registry's own config file; REGISTRY_* variables override it as they do for the
registry. Without CONFIG its default paths are tried. Every option can be set as RGC_<NAME>,
such as RGC_GRACE=24h. DURATION is Go's (1h30m), with d and w too.
"""

HELP = """Delete what no image needs from a container registry's storage.

Marks everything that tags and manifests lead to, then deletes the rest: blobs, links, abandoned
uploads. Refuses to delete while a registry can still write there; a dry run is always allowed.
"""


@click.command(
    "registry-garbage-collect",
    cls=DropInCommand,
    help=HELP,
    epilog=EPILOG,
    context_settings=_CONTEXT,
)
@collection_options
@click.version_option(__version__, "-V", "--version", prog_name="registry-garbage-collect")
@click.argument("config", required=False, type=ConfigType(), metavar="[CONFIG]")
def registry_garbage_collect(**options: Any) -> None:
    """Collect; what ``--help`` says is :data:`HELP`."""
    from registry_gc.cli.run import run_collection

    sys.exit(run_collection(options))


_LATER = {
    "plan": (
        "registry_gc.cli.plan",
        "Find out what would go, and write it down for `registry-gc apply`.",
    ),
    "apply": (
        "registry_gc.cli.apply",
        "Delete what the plan FILE names, and is still dead; or go on with a run that was stopped.",
    ),
    "report": (
        "registry_gc.cli.usage_options",
        "Show who uses the storage, and what a collection would free.",
    ),
    "runs": (
        "registry_gc.cli.usage_options",
        "List past runs from the state directory, and what each freed.",
    ),
    "restore": (
        "registry_gc.cli.quarantine_options",
        "Bring back what a run with --quarantine has set aside.",
    ),
    "purge": (
        "registry_gc.cli.quarantine_options",
        "Delete what has waited in quarantine long enough.",
    ),
    "verify": (
        "registry_gc.cli.looking_options",
        "Look whether every tag can be pulled whole: manifests, blobs, sizes, links.",
    ),
    "explain": (
        "registry_gc.cli.looking_options",
        "Say why something is live, dead, held, young or absent.",
    ),
    "unlock": (
        "registry_gc.cli.looking_options",
        "Remove the lock that a run left behind on a machine that is gone.",
    ),
}
"""Where each command is, and how its help begins; a test compares."""


@click.group("registry-gc", cls=LazyGroup, later=_LATER, context_settings=_CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="registry-gc")
def registry_gc() -> None:
    """Garbage collection for container registries. `run` is registry-garbage-collect."""


registry_gc.add_command(
    DropInCommand(
        "run",
        callback=registry_garbage_collect.callback,
        params=registry_garbage_collect.params,  # to make them anew takes longer than all else here
        help=HELP,
        epilog=EPILOG,
        context_settings=_CONTEXT,
    )
)
