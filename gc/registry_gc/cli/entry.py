"""Where both commands begin: an interrupt while Python still imports them is no traceback.

Imports nothing but what Python has imported by then, so that nothing comes before it.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from click import Command

_INTERRUPTED = 130


def registry_garbage_collect() -> None:
    """The drop-in for ``registry garbage-collect``."""
    _command("registry_garbage_collect")()


def registry_gc() -> None:
    """The group of all commands."""
    _command("registry_gc")()


def _command(name: str) -> Command:
    try:
        from registry_gc import interrupts
        from registry_gc.cli import main

        interrupts.ends_with_the_work = True
        found: Command = getattr(main, name)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted by SIGINT\n")
        sys.exit(_INTERRUPTED)
    return found
