"""Progress on a terminal's stderr: counts, rate and time left of every long phase."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


class Progress:
    """An observer that draws a bar when stderr is a terminal, and always passes notices on.

    Drawing must never end a run: what stderr refuses is dropped.
    """

    def __init__(self, *, bars: bool, notices: bool = True) -> None:
        self._bars = bars
        self._notices = notices
        self._bar: Any = None

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Begin a bar."""
        self.finish()
        if not self._bars:
            return
        from tqdm import tqdm

        # Its monitor thread would be forked along with worker processes.
        tqdm.monitor_interval = 0
        with contextlib.suppress(OSError, ValueError):
            self._bar = tqdm(
                desc=name,
                total=total,
                unit=f" {unit}",
                unit_scale=total is None or total > 100_000,
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
                delay=0.3,
            )

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.update(count)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None

    def notice(self, message: str) -> None:
        """Say something that the operator should know."""
        if self._notices and sys.stderr is not None:  # print would take stdout instead
            self.finish()
            with contextlib.suppress(OSError, ValueError):
                print(f"note: {message}", file=sys.stderr, flush=True)  # noqa: T201  # its job
