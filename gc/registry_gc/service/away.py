"""Takes the registry out of use for a collection, and brings it back whatever happens.

Two ways: it is stopped and started, or made read-only and writable again; each by commands of
the operator's. What is in their way but for the registry being in use is found out first, so
that nobody stops a registry for a run that is refused anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import msgspec

from registry_gc.config import Config
from registry_gc.guard import Finding, Verdict
from registry_gc.service.commands import Ran, Said, Shared, run_command

_SETTLE_SECONDS = 5.0
_POLL_SECONDS = 0.2

# What a command is there to change.
_STOPPING = frozenset(
    {
        "registry-writable",
        "registry-answers",
        "writable-config",
        "probe-unauthorized",
        "probe-odd-answer",
        "probe-no-answer",
    }
)
_MAKING_READONLY = frozenset({"registry-writable", "writable-config"})


class Commands(msgspec.Struct, frozen=True):
    """The operator's commands, as ``sh -c`` takes them.

    :param stops: they stop and start the registry; else they switch it to read-only and back.
    :param timeout: seconds that each may take.
    :param said: told of each line that they write; None leaves that on stderr as it is.
    """

    leave: str
    back: str
    stops: bool
    timeout: float
    said: Said | None = None

    @property
    def leave_name(self) -> str:
        """What the first is called in messages."""
        return "stop" if self.stops else "read-only"

    @property
    def back_name(self) -> str:
        """What the second is called in messages."""
        return "start" if self.stops else "read-write"

    def guessing(self, check: Callable[[], Verdict]) -> Callable[[], Verdict]:
        """What the guard *check* would say after them, for a dry run, which runs none."""
        return lambda: self.verdict_without(check())

    def verdict_without(self, verdict: Verdict) -> Verdict:
        """The guard's *verdict*, but for what the first command is there to change."""
        changed = _STOPPING if self.stops else _MAKING_READONLY
        left = tuple(found for found in verdict.findings if found.code not in changed)
        if verdict.allowed or len(left) == len(verdict.findings):
            return verdict
        told = Finding(
            "command-not-run",
            f"the {self.leave_name} command was not run; what the registry answers after it is"
            " looked at before anything is deleted",
        )
        doubts = [found for found in left if found.code not in _TOLD]
        if not doubts:
            return Verdict("allowed", (*left, told))
        unknown = all(found.code.startswith("probe-") for found in doubts)
        return Verdict("unknown" if unknown else "refused", (*left, told))


_TOLD = frozenset({"assume-readonly", "nothing-to-probe"})


def _nothing() -> None:
    pass


class Service(msgspec.Struct):
    """A registry that *commands* take out of use. ``ran`` is what became of them so far.

    ``before``: its config as it was before them; the first one may edit the file.
    ``alone``: entered before the second command, see :mod:`registry_gc.service.turn`. ``barred``:
    why neither command is to be run, see :mod:`registry_gc.service.between`; else empty.
    """

    commands: Commands
    shared: Shared
    before: Config | None = None
    alone: Callable[[], AbstractContextManager[None]] = nullcontext
    barred: str = ""
    over: Callable[[], None] = _nothing
    """Called when the registry is back, and only what has waited for that is still to be told."""
    note_there: Callable[[], int] = int
    """Called before the first command: which addresses answer, see ``Shared.answered``."""
    look: Callable[[], str] = str
    """Called after the second command: what is missing all the same; empty where nothing is."""
    ran: list[Ran] = msgspec.field(default_factory=list)
    missing: str = ""
    """The line about a registry that is not as it was, after a second command that did not fail."""
    lost: str = ""
    """The line about a second command that has failed."""
    stale: str = ""
    """The line about what the registry's Redis may remember after it."""

    def leave(self) -> Finding | None:
        """Run the first command; a finding says that it failed. :meth:`back` has to follow."""
        self.shared.answered = self.note_there()
        self.shared.away = True
        ran = self._run(self.commands.leave_name, self.commands.leave)
        if not ran.error:
            return None
        return Finding(
            "command-failed",
            f"{ran.error}: whether anybody can write is not known",
        )

    def back(self, before: Callable[[], None] = _nothing) -> None:
        """Run the second command; where it fails, ``lost`` says so.

        :param before: what has to be done before it, while nobody deletes; raises nothing.
        """
        with self.alone():
            before()
        ran = self._run(self.commands.back_name, self.commands.back)
        self.shared.away = False
        if ran.error:
            self.lost = _loud(self.commands, ran)
        elif missing := self.look():
            self.missing = _doubtful(self.commands, missing)

    def _run(self, name: str, command: str) -> Ran:
        commands = self.commands
        ran = run_command(name, command, commands.timeout, self.shared, commands.said)
        self.ran.append(ran)
        return ran


def settled(
    check: Callable[[], Verdict],
    interrupted: Callable[[], bool],
    patience: float = _SETTLE_SECONDS,
) -> None:
    """Give a registry that was told to stop the time to close its port.

    Returns when *check* allows, or after *patience* seconds; the guard has the last word anyway.

    :raises StorageError: the storage could not be asked.
    """
    end = time.monotonic() + patience
    while not check().allowed and not interrupted() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _loud(commands: Commands, ran: Ran) -> str:
    """The line about a second command that failed."""
    state = "down" if commands.stops else "read-only"
    # Who reads the last line alone has all of it.
    command = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in commands.back
    )
    return f"THE REGISTRY MAY STILL BE {state.upper()}: {ran.error}: {command}"


def _doubtful(commands: Commands, missing: str) -> str:
    """The line about a second command that has not failed, and has not done its work."""
    remedy = "start it" if commands.stops else "restart it with a config that takes writes"
    return (
        f"{missing}, and the {commands.back_name} command has ended without an error: if it is"
        f" not just slow, {remedy} by hand"
    )
