"""What stderr shows: progress on a terminal, and lines for people or for programs."""

from __future__ import annotations

import contextlib
import json
import logging
import select
import sys
from datetime import UTC, datetime
from typing import Any

from registry_gc.wording.shown import shown


class _Patience:
    """How long stderr is waited for: without an end, as a terminal that somebody has paused is."""

    seconds: float | None = None
    late = False

    def ends(self) -> bool:
        """Whether stderr does not take a line in time. It is waited for once, not for each line."""
        if self.seconds is None:
            return False
        poll = select.poll()
        poll.register(sys.stderr.fileno(), select.POLLOUT)
        self.late = not poll.poll(0 if self.late else self.seconds * 1000)
        return self.late


_patience = _Patience()


class _Patient:
    """Stderr, for what draws on it: what it does not take in time is not drawn."""

    def write(self, text: str) -> None:
        if not _patience.ends():
            sys.stderr.write(text)

    def flush(self) -> None:
        if not _patience.late:
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def wait_at_most(seconds: float) -> None:
    """From here on, a line that stderr does not take in time is dropped."""
    _patience.seconds = seconds


def say(level: str, message: str, *, as_json: bool = False) -> None:
    """Write a line to stderr; what it refuses is dropped.

    Messages tell what storages, lock files and servers say, which may be meant for a terminal.

    :param level: ``note`` or ``error``.
    :param as_json: as an object with ``time``, ``level`` and ``message``, for log collectors.
    """
    if sys.stderr is None:  # where the caller closed it; print would take stdout instead
        return
    if as_json:  # which spells in ASCII whatever it is
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "message": message})
    else:
        line = shown(f"{level}: {message}")
    with contextlib.suppress(OSError, ValueError):
        encoding = sys.stderr.encoding or "utf-8"
        text = line.encode(encoding, "backslashreplace").decode(encoding)
        if not _patience.ends():
            print(text, file=sys.stderr, flush=True)  # noqa: T201  # its job


class JsonLogging(logging.Handler):
    """Says what libraries log, and Python's warnings, in the same form as all else."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        level = "error" if record.levelno >= logging.ERROR else "note"
        with contextlib.suppress(Exception):
            say(level, f"{record.name}: {record.getMessage()}", as_json=True)


class Progress:
    """An observer that draws a bar when stderr is a terminal, and always passes notices on.

    Drawing must never end a run: what stderr refuses is dropped.
    """

    def __init__(self, *, bars: bool, notices: bool = True, as_json: bool = False) -> None:
        self._bars = bars and not as_json
        self._notices = notices
        self._as_json = as_json
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
                file=_Patient(),
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
        if self._notices:
            self.finish()
            say("note", message, as_json=self._as_json)
