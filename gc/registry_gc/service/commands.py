"""Runs the operator's commands, in a way that outlives whoever runs them.

Each is ``sh -c COMMAND``, in a session of its own, so that Ctrl-C does not end it half-way, with
nothing on stdin; what it writes is told on, see :mod:`registry_gc.service.hearing`. It begins only
after its process was written down in memory that two processes share: one can wait for what the
other began before it was killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable

import msgspec

from registry_gc.machine.processes import Process, group_lives
from registry_gc.service.hearing import Hearing, OnStderr, in_lines, may_write

# Reads the line that lets it begin; without one, who wanted it is dead and nobody knows of it.
_GATE = 'read -r go || exit 125; [ "$go" = go ] || exec >/dev/null 2>&1; exec sh -c "$1" </dev/null'
_GO, _UNHEARD = b"go\n", b"unheard\n"
_POLL_SECONDS = 0.05
_KILL_SECONDS = 10.0
_SYNTAX_SECONDS = 10.0
Said = Callable[[str], None]
"""Told of each line that a command has written, once it has ended."""


class Ran(msgspec.Struct, frozen=True):
    """What became of a command: ``error`` is empty where it did its work.

    ``code`` is its exit code, negative for a signal as in :mod:`subprocess`; None without one.
    """

    name: str
    code: int | None
    seconds: float
    error: str = ""


class Shared:
    """What two processes, one forked from the other, know of each other: a few plain bytes.

    ``away``: the registry was, or may have been, stopped, and not started again since.
    ``remote``: deletes are requests, which a server may still be working on.
    ``reported``: what the run came to was told. ``answered``: which addresses answered before the
    first command, see :mod:`registry_gc.service.afterwards`. ``run_file``: names what has to be
    removed from the registry's Redis; empty while nothing has.
    """

    _AWAY, _REMOTE, _REPORTED, _ANSWERED, _COMMAND, _RUN_FILE = 0, 1, 2, 4, 8, 24
    _BITS, _LENGTH = struct.Struct("=I"), struct.Struct("=q")

    def __init__(self) -> None:
        # Anonymous and shared: a fork has the same page, and nothing of it is left behind.
        # More than the longest path (4096 bytes) takes.
        self._page = mmap.mmap(-1, 4 * mmap.PAGESIZE)

    @property
    def away(self) -> bool:
        """Whether the registry has to be started."""
        return self._page[self._AWAY] != 0

    @away.setter
    def away(self, value: bool) -> None:
        self._page[self._AWAY] = int(value)

    @property
    def remote(self) -> bool:
        """Whether deletes may go on after the process that asked for them is dead."""
        return self._page[self._REMOTE] != 0

    @remote.setter
    def remote(self, value: bool) -> None:
        self._page[self._REMOTE] = int(value)

    @property
    def reported(self) -> bool:
        """Whether nobody needs to be told any more how the run has ended."""
        return self._page[self._REPORTED] != 0

    @reported.setter
    def reported(self, value: bool) -> None:
        self._page[self._REPORTED] = int(value)

    @property
    def answered(self) -> int:
        """A bit for each address that answered."""
        return int(self._BITS.unpack_from(self._page, self._ANSWERED)[0])

    @answered.setter
    def answered(self, value: int) -> None:
        self._BITS.pack_into(self._page, self._ANSWERED, value)

    @property
    def command(self) -> tuple[int, int]:
        """Process ID and start of the command under way, see :class:`Process`; 0 without one."""
        pid, started = struct.unpack_from("=qq", self._page, self._COMMAND)
        return int(pid), int(started)

    @command.setter
    def command(self, value: tuple[int, int]) -> None:
        struct.pack_into("=qq", self._page, self._COMMAND, *value)

    @property
    def run_file(self) -> str:
        """Where the run file is of which the registry's Redis may remember something."""
        (length,) = self._LENGTH.unpack_from(self._page, self._RUN_FILE)
        start = self._RUN_FILE + self._LENGTH.size
        return os.fsdecode(self._page[start : start + length])

    def begun(self, run_file: str) -> None:
        """Something is about to be deleted that the registry's Redis may remember."""
        path = os.fsencode(run_file)
        start = self._RUN_FILE + self._LENGTH.size
        self._page[start : start + len(path)] = path
        # Last: who is killed before has deleted nothing yet.
        self._LENGTH.pack_into(self._page, self._RUN_FILE, len(path))


def misspelt(command: str) -> str:
    """What the shell would say of the spelling of *command*, which is not run; empty for nothing.

    Found when the registry is down already, it would stay down.
    """
    try:
        asked = subprocess.run(
            ["sh", "-n", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_SYNTAX_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""  # nobody knows; running it says so
    said = asked.stderr.decode("utf-8", "backslashreplace").strip()
    return (said or "a syntax error") if asked.returncode else ""


def run_command(
    name: str, command: str, timeout: float, shared: Shared, said: Said | None = None
) -> Ran:
    """Run *command*, at most *timeout* seconds; never raises for what it does.

    :param said: told the last lines of what it has written; all of it goes to stderr else.
    """
    tell = OnStderr() if said is None else in_lines(lambda line: said(f"{name} command: {line}"))
    hearing = Hearing(tell)
    try:
        return _run(name, command, timeout, shared, hearing)
    finally:
        hearing.close()


def _run(name: str, command: str, timeout: float, shared: Shared, hearing: Hearing) -> Ran:
    began = time.monotonic()

    def ran(code: int | None, error: str = "") -> Ran:
        return Ran(name, code, time.monotonic() - began, error)

    try:
        process = _begin(command, shared, hearing.handle)
    except OSError as error:
        return ran(None, f"the {name} command cannot be run: {error.strerror or error}")

    def ended() -> bool:
        hearing.listen()
        return _is_over(process.pid)

    try:
        if not _wait(ended, timeout):
            _end(process.pid, ended)
            return ran(None, f"the {name} command took more than {timeout:g} s and was ended")
        code = process.wait()
    except ChildProcessError:
        return ran(None, f"nobody knows how the {name} command has ended")
    finally:
        process.poll()  # a zombie until somebody asks
        shared.command = 0, 0
    if code == 0:
        return ran(0)
    how = f"was ended by {_signal(-code)}" if code < 0 else f"ended with code {code}"
    return ran(code, f"the {name} command {how}")


def _is_over(pid: int) -> bool:
    """Whether the child *pid* has ended; it keeps its number, which nobody else then has.

    :raises ChildProcessError: it was waited for already.
    """
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _begin(command: str, shared: Shared, output: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        ["sh", "-c", _GATE, "sh", command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    shared.command = process.pid, Process.here(process.pid).started
    heard = may_write(process.pid)
    if not heard:
        with contextlib.suppress(OSError):
            os.write(output, b"what the command says is lost: `ulimit -f` would end it for that\n")
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(_GO if heard else _UNHEARD)
    return process


def wait_for_command(shared: Shared, timeout: float) -> None:
    """Wait until a command that another, dead process has begun has ended, or end it."""
    pid, started = shared.command
    if not pid:
        return
    process = msgspec.structs.replace(Process.current(), pid=pid, started=started)

    def ended() -> bool:
        return process.alive() is False

    if not _wait(ended, timeout):
        _end(pid, ended)
    shared.command = 0, 0


def _end(pid: int, ended: Callable[[], bool]) -> None:
    """End a command and all that it has started; it leads a process group.

    What has not ended by then, and ignores SIGTERM, could stop the registry after it was started.
    """

    def all_ended() -> bool:
        return ended() and not group_lives(pid)

    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
        if _wait(all_ended, _KILL_SECONDS):
            return


def _wait(ready: Callable[[], bool], timeout: float) -> bool:
    end = time.monotonic() + timeout
    pause = _POLL_SECONDS / 64  # most commands take no time at all
    while not ready():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _POLL_SECONDS)
    return True


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
