"""Runs the command line in processes that are killed with SIGKILL, at moments of a test's choice.

The processes are forked by a server that has everything imported and no thread, so that a run
begins at once, and most of the moments lie in it and not in Python's start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from stores import LATER

_PRELOADED = ["registry_gc.cli.main", "registry_gc.cli.run", "registry_drivers.filesystem"]


def context() -> ForkServerContext:
    """Starts processes from a server that has everything imported."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([*_PRELOADED, "boto3", "obstore", "registry_drivers.s3"])
    return found


def _command(
    arguments: Sequence[str], *, later: bool, events: int, counted: Path, output: Path
) -> None:
    """In the process: run the group's command; see :class:`Victim`."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if later:
        from registry_drivers.object_store import ObjectStorage

        now = ObjectStorage.now
        # For this process alone.
        setattr(ObjectStorage, "now", lambda storage: now(storage) + LATER)  # noqa: B010  # mypy
    from registry_gc.cli.main import registry_gc
    from registry_gc.marking import link_ages

    # As in a large registry: less is known of links there.
    link_ages.FEW = 0
    seen, process = 0, os.getpid()

    def count(event: str, _: object) -> None:
        nonlocal seen
        if os.getpid() != process:
            return  # a worker that was forked
        seen += 1
        if seen == events:
            os.kill(process, signal.SIGKILL)

    sys.addaudithook(count)
    try:
        registry_gc(list(arguments))
    finally:
        if not events:
            counted.write_text(str(seen))


@dataclass
class Victim:
    """A command line, and what its processes left: ``folder`` is for what they say."""

    folder: Path
    arguments: Sequence[str]
    later: bool = False

    @property
    def said(self) -> str:
        """What all of its processes have printed."""
        file = self.folder / "said"
        return file.read_text(errors="replace") if file.exists() else ""

    def _start(self, events: int = 0) -> ForkServerProcess:
        process = context().Process(
            target=_command,
            args=(list(self.arguments),),
            kwargs={
                "later": self.later,
                "events": events,
                "counted": self.folder / "counted",
                "output": self.folder / "said",
            },
        )
        process.start()
        return process

    def run(self) -> tuple[float, int]:
        """Run to the end; returns the seconds that took, and how many events there were."""
        begun = time.monotonic()
        process = self._start()
        process.join()
        assert process.exitcode == 0, self.said
        return time.monotonic() - begun, int((self.folder / "counted").read_text())

    def run_for(self, seconds: float) -> bool:
        """Run, and be killed from outside after so many seconds; tells whether it came to that."""
        process = self._start()
        process.join(seconds)
        process.kill()
        process.join()
        return self._was_killed(process.exitcode)

    def run_until(self, event: int) -> bool:
        """Run, and be killed at event number *event*, an open file, a delete, a socket, …"""
        process = self._start(event)
        process.join()
        return self._was_killed(process.exitcode)

    def _was_killed(self, code: int | None) -> bool:
        assert code in (0, -signal.SIGKILL), self.said
        return code != 0


def reached_by(run_file: Path) -> str:
    """How far the run got that was killed: what its run file says."""
    if not run_file.exists():
        return "nothing written"
    with closing(sqlite3.connect(run_file)) as connection, connection:
        planned = connection.execute("SELECT 1 FROM meta WHERE key = 'planned'").fetchone()
        finished = connection.execute("SELECT 1 FROM meta WHERE key = 'finished'").fetchone()
        states = {state for (state,) in connection.execute("SELECT state FROM deletions")}
    if finished:
        return "finished"
    if not planned:
        return "finding out"
    return "deleting" if "planned" in states else "tidying"
