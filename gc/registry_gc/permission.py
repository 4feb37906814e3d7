"""May a run delete, and may it still? What guard and lock say to it, from first to last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, StorageError
from registry_gc.catalog import is_registry
from registry_gc.events import Observer
from registry_gc.guard import Finding, Verdict, objections
from registry_gc.guard.watch import WRITING, GuardWatch
from registry_gc.interrupts import Interrupts
from registry_gc.job import Job
from registry_gc.lock import Lock, LockError, LockHeld, blocker, clock
from registry_gc.sweep import Stop

_LOOK_AGAIN = 10.0
"""Seconds after which guard and lock are looked at again, at the latest."""


class Refused(Exception):
    """The guard, the lock, the plan, a limit or what was found says no; nothing was changed."""


class StoppedByGuard(Exception):
    """Guard or lock changed while deleting; what is gone was dead."""


class Permission:
    """What guard, lock and limits have said to one run so far. Who has said no has said no.

    :ivar check: the guard; see :class:`registry_gc.job.Job`.
    :ivar verdict: ``allowed``, ``refused``, or ``unknown``: nobody knows who may be writing.
    :ivar lock: None before it is taken, and on a dry run, which takes none.
    """

    def __init__(
        self, job: Job, reader: Reader, observer: Observer, interrupts: Interrupts
    ) -> None:
        self._job = job
        self._reader = reader
        self._observer = observer
        self._interrupts = interrupts
        self.check: Callable[[], Verdict] = job.check
        self.verdict = "unknown"
        self.findings: list[Finding] = []
        self.lock: Lock | None = None
        self._watch: GuardWatch | None = None
        self._looked_at = 0.0
        self._why_stopped = ""

    def ask(self) -> None:
        """Ask the guard, and whether there is a registry at all.

        :raises Refused: it says no, and this is no dry run.
        :raises NotFound: there is not even a root, and this is a dry run.
        """
        try:
            verdict = self.check()
            there = is_registry(self._reader)
        except NotFound as error:
            # The root itself: a disk that is not mounted, a bucket of another name.
            self.refuse("no-registry", str(error))
            if self._job.dry_run:
                raise
            raise self.refusal() from error
        self.verdict = verdict.verdict
        self.findings += verdict.findings
        for note in verdict.notes:
            self._observer.notice(note)
        if not there:
            self.refuse(
                "no-registry",
                f"{self._reader.root}: no registry there (docker/registry/v2 holds nothing); "
                "is it mounted, and is the root directory right?",
            )
        self.insist()

    def refuse(self, code: str, message: str) -> None:
        """Note what speaks against deleting."""
        self.verdict = "refused"
        self.findings.append(Finding(code, message))

    def insist(self) -> None:
        """Return where this run may delete, or deletes nothing anyhow.

        :raises Refused: it may not.
        """
        if self.verdict != "allowed" and not self._job.dry_run:
            raise self.refusal()

    def refusal(self) -> Refused:
        """Why this run deletes nothing."""
        reasons = "; ".join(finding.message for finding in objections(self.findings))
        return Refused(
            f"refused, nothing was deleted: {reasons or 'nobody knows who may be writing'}"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, and watch the guard; a dry run only finds out whether it could.

        :raises LockError: somebody else holds it, or it cannot be had.
        :raises StoppedByGuard: it was lost meanwhile, and nobody has been told.
        """
        storage = self._job.storage
        if self._job.dry_run:
            held = blocker(storage) or self._job.barred()
            if held:
                self.refuse("locked", str(held))
            yield
            return
        try:
            self._refuse_barred()
            with self._interrupts.deferred():
                self.lock = Lock.acquire(storage, self._job.run)
            # Again: who starts a registry has looked first that nobody has the lock.
            self._refuse_barred()
            self._interrupts.check()
            self._tell(self.lock)
            with self._interrupts.deferred():
                # Also for a run that a limit refuses: the registry takes writes after it.
                self._job.blob_cache.catch_up(storage.driver, storage.root)
            self._interrupts.check()
            with GuardWatch(self.check) as self._watch:
                yield
        finally:
            with self._interrupts.deferred():
                if self.lock is not None:
                    self.lock.release(self._interrupts)
                    self._tell(self.lock)
                    self._note_loss(self.lock)
        if self.lock.lost:
            # On an object store a sweep of seconds looks once, and somebody may have come after.
            raise StoppedByGuard(f"{self.lock.lost}; what was deleted was dead; run again")

    def _tell(self, lock: Lock) -> None:
        while lock.notices:
            self._observer.notice(lock.notices.pop(0))

    def _note_loss(self, lock: Lock) -> None:
        if lock.lost and not any(finding.code == "lock-lost" for finding in self.findings):
            self.refuse("lock-lost", lock.lost)

    def _refuse_barred(self) -> None:
        if barred := self._job.barred():
            raise LockHeld(barred)

    @property
    def untouched(self) -> bool:
        """Nobody has said anything yet."""
        return self.verdict == "unknown" and not self.findings

    @property
    def changed(self) -> bool:
        """The guard has been seen to say something else than at first."""
        return self._watch is not None and self._watch.other is not None

    def heed_change(self) -> None:
        """Count against this run what the guard has said meanwhile, if anything."""
        if self._watch is not None and self._watch.other is not None:
            self._note(self._watch.other)

    def look(self) -> Stop | None:
        """Look at guard and lock again; on a filesystem, where that is cheap, at every batch."""
        now = clock()
        at_once = self._reader.capabilities.folders or self._job.blob_cache.lost
        interval = 0.0 if at_once else _LOOK_AGAIN
        if not self.changed and self._looked_at and now - self._looked_at < interval:
            return None
        self._looked_at = now
        assert self.lock is not None
        try:
            self.lock.verify()
        except LockError as error:
            self.refuse("lock-lost", str(error))
            self._why_stopped = f"stopped: {error}; run again to go on"
            return Stop.REFUSED
        # What the watch has seen once is not made good by what an address answers now.
        verdict = self._watch.check() if self._watch is not None else self.check()
        if verdict.verdict != "allowed":
            reason = self._note(verdict)
            self._why_stopped = f"stopped: {reason}; what was deleted was dead; run again to go on"
            return Stop.REFUSED
        return None

    def look_after(self) -> Stop | None:
        """Look once more when the last thing is gone: at what was seen while it went.

        On an object store a sweep of seconds has looked once, before it. A registry that takes
        writes by now may have taken some that rest on what went.
        """
        if self.changed:
            return self.look()
        if self._reader.capabilities.folders:
            return None  # empty folders go after it, with a look of their own
        try:
            verdict = self.check()
        except StorageError:
            return None
        # Whatever else there is to say now, all that was dead is gone.
        if WRITING.isdisjoint(finding.code for finding in verdict.findings):
            return None
        reason = self._note(verdict)
        self._why_stopped = f"{reason}; what was deleted was dead, but look whether it was pushed"
        return Stop.REFUSED

    def _note(self, verdict: Verdict) -> str:
        """The guard says no more what it said; returns why."""
        self.verdict = verdict.verdict
        known = set(self.findings)
        new = [finding for finding in verdict.findings if finding not in known]
        self.findings += new
        return "; ".join(finding.message for finding in new or verdict.findings)

    def stop(self) -> StoppedByGuard:
        """Why :meth:`look` has said that deleting ends."""
        return StoppedByGuard(self._why_stopped)

    def look_or_stop(self) -> None:
        """Look again, and return where the run may go on.

        :raises StoppedByGuard: it may not.
        :raises Interrupted: nor wants it to.
        """
        if self.look() is not None:
            self._interrupts.check()
            raise self.stop()
