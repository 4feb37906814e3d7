"""What a command writes, taken where nothing can be in its way, and told on.

It never has our own stderr, nor a pipe: one whose reader is gone (``| tee``, a lost connection)
or a full disk behind ``>>log`` would end the very command that starts the registry. It writes to
a file in memory, and what is told on is read from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import sys
import time
from collections.abc import Callable

MOST = 64 << 10
"""Bytes that wait to be told; of more, the last."""

_PIECE = 16 << 10
_CUT = 1 << 20  # bytes after which what was read of the file is given back
_KNOWN = 64  # bytes by which the file is known again
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE, <linux/falloc.h>
_PATIENCE = 0.05
_LAST_PATIENCE = 1.0
# A pipe that poll calls writable takes as much at once (pipe(7)).
_AT_ONCE = select.PIPE_BUF

_ENOUGH = 1 << 30
"""Bytes that no command says: a limit of that is none."""

Tell = Callable[[bytes, float, bool], bytes]
"""Given what waits, until when (:func:`time.monotonic`) it may be waited for somebody to take it,
and whether that is the end of it; returns what has to wait on."""


class Hearing:
    """Where a command writes: ``handle``. Nothing here raises."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._memory = _memory()
        self.handle = os.open(os.devnull, os.O_WRONLY) if self._memory is None else self._memory
        self._read = self._freed = 0
        self._last = b""
        self._waiting = b""

    def listen(self, *, end: bool = False) -> None:
        """Tell on what has been written; *end*: that nothing more is to be told."""
        if self._memory is None:
            return
        until = time.monotonic() + (_LAST_PATIENCE if end else _PATIENCE)
        with contextlib.suppress(OSError):
            size = os.fstat(self._memory).st_size
            if self._is_another(size):
                self._read, self._freed, self._last = 0, 0, b""
            while piece := os.pread(self._memory, min(_PIECE, size - self._read), self._read):
                self._read += len(piece)
                self._last = (self._last + piece)[-_KNOWN:]
                self._waiting = self._tell((self._waiting + piece)[-MOST:], until, False)
            if self._read - self._freed > _CUT:
                _free(self._memory, self._read - _KNOWN)
                self._freed = self._read
        self._waiting = self._tell(self._waiting, until, end)

    def _is_another(self, size: int) -> bool:
        """Whether the file was emptied, as `>/dev/stderr` does, which opens it anew."""
        assert self._memory is not None
        known = os.pread(self._memory, len(self._last), self._read - len(self._last))
        return size < self._read or known != self._last

    def close(self) -> None:
        """Tell on the rest, and let go."""
        self.listen(end=True)
        if self._memory is not None:
            # A daemon that the command has left behind shall not fill memory for years: it is
            # told that nothing more can be written, and lives, which no pipe would let it do.
            with contextlib.suppress(OSError, AttributeError):
                os.ftruncate(self._memory, 0)
                fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        os.close(self.handle)


def _memory() -> int | None:
    """A file in memory; None where the system has none, which must not keep a command from running.

    No file on a disk: a full one is the usual reason to collect.
    """
    try:
        handle = os.memfd_create("registry-gc", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        return None
    try:
        # Not one of the first three, of which the caller may have closed some.
        kept = fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        return None
    finally:
        os.close(handle)
    # `>/dev/stderr` sets it to the beginning for one process, not for the others.
    fcntl.fcntl(kept, fcntl.F_SETFL, os.O_APPEND)
    return kept


def may_write(pid: int) -> bool:
    """Lift, for the process *pid*, the limit on a file's size (`ulimit -f`), as far as it may be.

    The kernel counts a file in memory as any other, and ends who writes more: the command that is
    to start the registry. False where the limit that stays is one that a command may come to.
    """
    kind, none = resource.RLIMIT_FSIZE, resource.RLIM_INFINITY
    try:
        _, hard = resource.getrlimit(kind)
    except (OSError, ValueError):
        return True
    for limit in (none, hard):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.prlimit(pid, kind, (limit, limit))
            return limit == none or limit >= _ENOUGH
    soft, _ = resource.getrlimit(kind)
    return soft == none or soft >= _ENOUGH


def _free(memory: int, upto: int) -> None:
    """Give the memory of the first bytes back: it must not grow with what a command says.

    To cut the file off would lose what is written at that moment, which may be why it fails.
    """
    # What cannot be given back is no reason to leave a registry down.
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        library = ctypes.CDLL(None)
        # Where there are both, the other one may take numbers of 32 bits (glibc).
        punch = getattr(library, "fallocate64", None) or library.fallocate
        punch(memory, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(upto))


def in_lines(said: Callable[[str], None]) -> Tell:
    """Tells *said* the last lines, once all are there."""

    def tell(waiting: bytes, until: float, end: bool) -> bytes:
        if not end:
            return waiting
        for line in waiting.decode("utf-8", "backslashreplace").splitlines():
            said(line)
        return b""

    return tell


class OnStderr:
    """Copies to stderr at once; what that does not take, or not soon, is dropped."""

    def __init__(self) -> None:
        # Python has none where the caller closed it: the number may be any file's since.
        self._broken = sys.stderr is None

    def __call__(self, waiting: bytes, until: float, end: bool) -> bytes:
        """Copy what stderr takes of *waiting*."""
        try:
            while waiting and not self._broken and self._takes(until):
                waiting = waiting[os.write(2, waiting[:_AT_ONCE]) :]
        except OSError:
            self._broken = True
        return b"" if self._broken else waiting

    def _takes(self, until: float) -> bool:
        """Whether stderr can be written without waiting: a paused terminal may never go on."""
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))
