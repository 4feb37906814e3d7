"""Standard output that may be closed, or full, without stopping a sweep."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from shutil import get_terminal_size
from typing import TYPE_CHECKING

from registry_gc.cli.flags import LOSSES
from registry_gc.cli.wiring import note
from registry_gc.compact.waiting_text import WaitingText
from registry_gc.runs.state_dir import IN_MEMORY

if TYPE_CHECKING:
    from registry_gc.report.tables import TableStyle

_ROOMY = (None, "/var/tmp", *IN_MEMORY)  # noqa: S108  # files without a name
# Counted in characters: what is called a line here may be a thousand of them.
_CHARACTERS_A_WRITE = 1 << 18


class Output:
    """Writes lines to stdout until it refuses one; from then on it writes nothing.

    ``reported``: what the run came to was told, or is being told. ``begun``: something was
    written, or tried. ``lost``: it refused since its disk is full or broken, not since nobody
    reads on.

    :param patient: keep the lines until :meth:`close` where stdout may stand still, as a terminal
        that somebody has paused does, or a pipe that nobody reads.
    """

    def __init__(self, *, patient: bool = False) -> None:
        # Python has no stdout where the caller closed it.
        self.broken = sys.stdout is None
        self.reported = False
        self.lost = False
        self.begun = False
        self._waiting = WaitingText(folders=_ROOMY) if patient and _may_stand_still() else None

    def lines(self, lines: Iterable[str]) -> None:
        """Write *lines*, many at a time."""
        texts = _texts(lines)
        while not self.broken:
            text = next(texts, None)
            if text is None or not self._keep(text):
                return

    def _keep(self, text: str) -> bool:
        """Write *text*, or have it wait; false where there is no room for that, nor for more."""
        if self._waiting is None:
            self._write(text)
            return True
        self.begun = True
        try:
            self._waiting.add(text)
        except OSError as error:
            note(f"some lines do not go to stdout, there is no room to keep them: {error}")
            return False
        return True

    def keep_rest(self) -> None:
        """From here on there come only lines that are few, or in memory anyhow."""
        if self._waiting is not None:
            self._waiting.keep_rest()

    def _write(self, text: str) -> None:
        self.begun = True
        try:
            # What stdout cannot say, such as names that are no UTF-8, is shown, not refused.
            encoding = sys.stdout.encoding or "utf-8"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            self.broken = True
            self.lost = isinstance(error, OSError) and error.errno in LOSSES
            note(f"nothing more goes to stdout: {error}")

    def exit_code(self, code: int) -> int:
        """*code*, or 1 where a command that only looks has lost what it saw."""
        return 1 if self.lost and code in (0, 3) else code

    def close(self) -> bool:
        """Write what waits, and keep the interpreter from complaining about a closed stdout.

        :returns: whether whoever reads stderr has got something to read by that.
        """
        waiting, self._waiting = self._waiting, None
        waited = cannot_read = False
        was_broken = self.broken
        try:
            for text in waiting.take() if waiting is not None else ():
                waited = True
                if self.broken:
                    break
                self._write(text)
        except OSError as error:
            note(f"some lines do not go to stdout, they cannot be read back: {error}")
            cannot_read = True
        said = cannot_read or self.broken is not was_broken or (waited and _is_stderr())
        if self.broken and sys.stdout is not None:
            self._close_stdout()
        return said

    def _close_stdout(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.close(devnull)


def _may_stand_still() -> bool:
    """Whether writing may take for ever. To a file it does not, nor to what is no terminal."""
    try:
        kind = os.fstat(sys.stdout.fileno()).st_mode
        return not stat.S_ISREG(kind) and (not stat.S_ISCHR(kind) or sys.stdout.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def _is_stderr() -> bool:
    """Whether stdout and stderr are one, as on a terminal."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (AttributeError, OSError, ValueError):
        return False


def _texts(lines: Iterable[str]) -> Iterator[str]:
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _CHARACTERS_A_WRITE:
            yield "\n".join(waiting) + "\n"
            waiting, size = [], 0
    if waiting:
        yield "\n".join(waiting) + "\n"


def table_style() -> TableStyle:
    """What stdout is like, for tables: a terminal's width and colour, or plain lines."""
    from registry_gc.report.tables import TableStyle

    if sys.stdout is None or sys.stdout.closed or not sys.stdout.isatty():
        return TableStyle()
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return TableStyle(get_terminal_size().columns, colour=not plain)
