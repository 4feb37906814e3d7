"""Standard output that may be closed, or full, without stopping a sweep."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from itertools import islice

_LINES_A_WRITE = 2000


class Output:
    """Writes lines to stdout until it refuses one; from then on it writes nothing."""

    def __init__(self) -> None:
        self.broken = False

    def lines(self, lines: Iterable[str]) -> None:
        """Write *lines*, many at a time."""
        source = iter(lines)
        while not self.broken:
            chunk = list(islice(source, _LINES_A_WRITE))
            if not chunk:
                return
            self._write("\n".join(chunk) + "\n")

    def _write(self, text: str) -> None:
        try:
            # Names that are no UTF-8 are shown, not refused.
            sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            self.broken = True
            with contextlib.suppress(OSError, ValueError):
                print(f"note: nothing more goes to stdout: {error}", file=sys.stderr)

    def close(self) -> None:
        """Keep the interpreter from complaining at its exit about a closed stdout."""
        if not self.broken:
            return
        with contextlib.suppress(OSError, ValueError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.close(devnull)
