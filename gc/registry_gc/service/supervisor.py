"""Two processes that watch each other, so that a stopped registry is started whatever happens.

The collection runs in a child, which also runs the commands. When the child dies, by kill -9 or
for want of memory, the parent runs the start command in its place, once nothing that the child
had begun is under way any more. When the parent dies, the child is told by a signal, stops at the
next delete and runs the start command, as it does for SIGTERM.

The child has a session of its own: kill -9 for the whole process group meets the parent only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

import msgspec

from registry_gc.interrupts import Interrupted
from registry_gc.service.away import Service
from registry_gc.service.commands import wait_for_command

_DRAIN_SECONDS = 10.0
"""How long a server may still be working on deletes after who asked for them has died."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class End(msgspec.Struct, frozen=True):
    """How a run has ended: its exit code, and in the parent why it may have told nobody itself."""

    code: int
    why: str = ""


def supervise(
    service: Service,
    work: Callable[[], int],
    before_back: Callable[[], None],
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> End:
    """Run *work* in a child; returns how it has ended, in the child and in the parent.

    To be called while there is no other thread.

    :param service: what *work* takes out of use, saying in ``shared`` what it has begun.
    :param before_back: what a dead child has to have undone before the registry is started.
    :param say: told of what went wrong with the child, line by line; but ``service.lost``, which
        is to be the last line of all.
    :param note: told that it was made good.
    """
    shared = service.shared
    # Who called us may have it ignored: then nobody is told how a child has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()  # what is buffered now would be written by both
    try:
        alive, watched, child = _fork()
    except OSError as error:
        why = (
            f"the collection cannot be begun in a process of its own: {error}; the registry was not"
            " touched: give this one room for another process (ulimit -u, TasksMax=, memory)"
        )
        say(why)
        return End(1, why)
    if child == 0:
        os.close(watched)
        os.setsid()
        _watch_parent(alive)
        return End(work())
    os.close(alive)
    code = _wait(child)
    if code is not None and code >= 0 and not shared.away:
        return End(code)
    if not shared.away:
        why = f"the collection {_how(code)}; the registry was not touched, or was brought back"
        say(why)
        asked = code is not None and -code in _FORWARDED
        return End(Interrupted(-(code or 0)).exit_code if asked else 1, why)
    why = f"the collection {_how(code)}; what was already deleted was dead"
    say(why)
    wait_for_command(shared, service.commands.timeout)
    if shared.remote:
        time.sleep(_DRAIN_SECONDS)

    def before() -> None:
        try:
            before_back()
        except Exception as error:  # nothing may keep the registry from being started
            say(f"the registry may remember blobs that are gone: {error}")

    service.back(before)
    if not service.lost:
        note(f"the {service.commands.back_name} command was run")
    return End(1, service.lost or why)


def _fork() -> tuple[int, int, int]:
    """Both ends of a pipe, and in the parent the child's number, in the child 0.

    :raises OSError: there is no room for another process, or for the pipe.
    """
    alive, watched = os.pipe()
    try:
        return alive, watched, os.fork()
    except BaseException:
        os.close(alive)
        os.close(watched)
        raise


def _how(code: int | None) -> str:
    if code is None:
        return "ended, nobody knows how"
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _wait(child: int) -> int | None:
    """Wait for *child* to end, and pass on the signals that ask for that.

    Returns its exit code, negative for a signal; None where nobody knows.
    """

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, forward)
    # A stopped parent would leave the registry down: nothing to do, and not inherited by commands.
    signal.signal(signal.SIGTSTP, _ignore)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return None  # dead all the same, and its registry perhaps down
    finally:
        # From here on the child's number may be another process's.
        for number in _FORWARDED:
            signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _watch_parent(alive: int) -> None:
    """Have SIGTERM sent to this process when the other end of the pipe *alive* is closed."""

    def gone(number: int, frame: FrameType | None) -> None:
        if select.select([alive], [], [], 0)[0]:
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGIO, gone)
    # The kernel tells by a signal, so that no thread is needed: workers are forked later on.
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(
        alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK
    )
    gone(signal.SIGIO, None)  # it may have died before
