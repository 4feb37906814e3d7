"""The audit log: a JSON line for each deletion, each thing set aside and each decision to hold.

Lines are written once the run file has the outcome, so nothing is told that did not happen. A log
that cannot be opened is found out by the guard, before anything is deleted. Later, a disk that is
full stops nothing, since deleting is what makes room on it: what is to be written waits, and is
tried again with each batch. Any other fault ends the run at its next look at the guard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from registry_drivers.base import Deletion, Outcome
from registry_gc.audit.sinks import NoRoom, Sink
from registry_gc.guard import Finding, Verdict
from registry_gc.marking.holding import Hold
from registry_gc.run_file import RunFile
from registry_gc.runs.database import RunFileError
from registry_gc.wording.moments import utc

_MOST_WAITING = 200_000
"""Lines that may wait for room: some 100 MB."""


class AuditLog:
    """Writes what a run decides and does to *sink*. Nothing here raises.

    :param clock: seconds since the epoch, for decisions; deletions have the run file's time.
    """

    def __init__(self, sink: Sink, run: str, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._run = run
        self._clock = clock
        self._waiting: list[bytes] = []
        self._why = ""  # why the last write failed
        self._fault = ""  # why nothing more may be deleted, until a write succeeds
        self._lost = ""  # why lines are missing that no write can bring back
        self.flush()

    def guarded(self, check: Callable[[], Verdict]) -> Callable[[], Verdict]:
        """*check*, that also refuses while this log cannot be written."""

        def both() -> Verdict:
            verdict = check()
            fault = self._lost or self._fault
            if not fault:
                return verdict
            finding = Finding("audit-log", f"the audit log cannot be written: {fault}")
            if finding in verdict.findings:
                return verdict  # it was looked at before a registry was stopped for nothing
            return Verdict("refused", (*verdict.findings, finding))

        return both

    def held(self, holds: Iterable[Hold], size: Callable[[str], int | None]) -> None:
        """Write down what is held back.

        :param size: bytes of the manifest that is the reason, None when nobody knows.
        """
        now = self._clock()
        for hold in holds:
            self.add(
                "hold",
                now,
                repository=hold.repository,
                digest=hold.digest,
                bytes=None if hold.digest is None else size(hold.digest),
                reason=hold.reason,
                confirmed=None,
            )
        self.flush()

    def settled(self, run_file: RunFile, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Write down what became of rows; a listener of :func:`registry_gc.sweep.sweep`."""
        try:
            rows = run_file.numbered([number for number, _ in outcomes])
        except RunFileError as error:
            self._lost = str(error)
            return
        for number, outcome in outcomes:
            row, finished = rows[number]
            confirmed = outcome.result in (Deletion.DELETED, Deletion.MOVED)
            self.add(
                "quarantine" if outcome.result is Deletion.MOVED else "delete",
                finished,
                repository=row.repository,
                digest=row.digest,
                kind=row.kind.label,
                path=row.path,
                bytes=row.size if confirmed else 0,
                reason=row.reason,
                result=outcome.result.value,
                confirmed=confirmed,
                error=outcome.error or None,
            )
        self.flush()

    def close(self) -> str:
        """Write what still waits, and close; returns why the log is not whole, or ``""``."""
        self.flush()
        self._sink.close()
        if self._lost:
            return f"lines of the audit log are missing: {self._lost}"
        if not self._waiting:
            return ""
        return f"{len(self._waiting)} lines of the audit log could not be written: {self._why}"

    def add(self, event: str, when: float | None = None, **facts: Any) -> None:
        """Have a line written with the next batch; *when* in seconds since the epoch, else now."""
        time = utc(self._clock() if when is None else when).isoformat(timespec="microseconds")
        line = {"time": time, "run": self._run, "event": event, **facts}
        # ASCII, so that names that are no UTF-8 break no reader; they are escaped.
        self._waiting.append(json.dumps(line).encode() + b"\n")

    def flush(self) -> None:
        """Write what waits."""
        try:
            self._sink.write(self._waiting)
            self._waiting = []
        except NoRoom as error:
            self._why = str(error)
            self._fault = self._why if len(self._waiting) > _MOST_WAITING else ""
        except OSError as error:
            self._fault = self._why = str(error)
        else:
            self._fault = ""
