"""Limits, quarantine and sweep of one run: what a collection and an apply have in common.

A session says of itself only what it has found out; :mod:`registry_gc.report.build` makes the
report of it. Whatever can go wrong with a registry, a storage or an operator ends as an exit code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from registry_drivers.base import Deleter
from registry_drivers.errors import DriverConfigError, StorageError
from registry_drivers.factory import versions_of
from registry_drivers.paths import temporaries
from registry_drivers.versions import Keep
from registry_drivers.wrappers import ReadOnly
from registry_gc.catalog import Catalog
from registry_gc.compact.spool import SpoolError
from registry_gc.engine import Engine, WorkerLost, engine_for
from registry_gc.events import Observer
from registry_gc.interrupts import Interrupted, Interrupts
from registry_gc.job import Job, Plan
from registry_gc.layout import REPOSITORIES
from registry_gc.limits import Limits
from registry_gc.lock import REFRESH_SECONDS, LockError
from registry_gc.locking.holder import FOLDER, LOCK
from registry_gc.machine.shortage import NO_MEMORY, NO_THREADS, is_out_of_threads
from registry_gc.permission import Permission, Refused, StoppedByGuard
from registry_gc.quarantine.aside import clear_hollow, hidden
from registry_gc.quarantine.collecting import SettingAside
from registry_gc.retained import Retained
from registry_gc.run_file import RunFile
from registry_gc.runs.database import RunFileError
from registry_gc.runs.plan_file import PlanFile
from registry_gc.runs.rows import RowKind
from registry_gc.survey import Survey, Surveyor
from registry_gc.sweep import Means, Stop, discard, sweep, tidy
from registry_gc.verify.contradiction import Contradiction

if TYPE_CHECKING:
    from registry_gc.verify.plan_check import SecondOpinion

_UNFINISHED = 86400.0
"""Seconds after which nobody can be at work on a file: who only wants the lock writes one too."""
# Seconds: a lock is no older where clocks agree; and no server's clock is as wrong as that.
_CLOCKS_AGREE = 2 * REFRESH_SECONDS
_NO_CLOCK = 365 * 86400.0


class Session:
    """One run, from its first look to its last delete; a subclass says what it finds out."""

    def __init__(
        self,
        job: Job,
        observer: Observer,
        interrupts: Interrupts,
        show: Callable[[Plan], None] | None,
    ) -> None:
        self.job = job
        self.policy = job.policy
        self.storage = job.storage
        # All that is done before sweeping is done with this, which has no delete.
        self.reader = ReadOnly(job.storage)
        self.observer = observer
        self.interrupts = interrupts
        self.show = show
        self.began = time.monotonic()
        self.marked_at = self.began
        self.swept_at = self.began
        self.permission = Permission(job, self.reader, observer, interrupts)
        self.run_file: PlanFile | None = None
        self.catalog: Catalog | None = None
        self.survey: Survey | None = None
        self.blobs_total = 0
        self.strangers = 0
        self.hollow: list[str] = []
        self.unfinished: list[str] = []
        self.emptied: frozenset[str] = frozenset()
        self.not_tidied: frozenset[str] = frozenset()
        self.swept = False
        self.error: str | None = None
        self.versions = versions_of(job.storage)
        self.keeps: tuple[Keep, ...] = ()
        self.retained = Retained()
        self.aside = SettingAside(job.storage, self.versions, observer, job.cache)
        self.opinion: SecondOpinion | None = None
        self.limits = Limits(job.policy, job.seen, observer)
        job.blob_cache.heed(interrupts)

    def run(self) -> int:
        """Do everything; returns the exit code, but for what the report alone can tell."""
        try:
            # What came before, while a command was run, counts more than what that has come to.
            self.interrupts.check()
            with self._engine() as engine:
                if engine.notice:
                    self.observer.notice(engine.notice)
                self._run(engine)
        except Refused as refusal:
            return self._ended(4, str(refusal))
        except DriverConfigError as error:
            # Of the first answer, as when the bucket is in another region: nothing was done.
            first = self.permission.untouched
            return self._ended(2 if first else 1, str(error))
        except (StorageError, RunFileError, WorkerLost, SpoolError, Contradiction) as error:
            return self._ended(1, str(error))
        except LockError as error:
            self.permission.refuse("locked", str(error))
            return self._ended(4, str(error))
        except Interrupted as interrupt:
            return self._ended(interrupt.exit_code, interrupt.reason)
        except StoppedByGuard as stop:
            return self._ended(5, str(stop))
        except RuntimeError as error:
            if not is_out_of_threads(error):
                raise
            return self._ended(1, f"{error}: {NO_THREADS}")
        except MemoryError:
            return self._ended(1, NO_MEMORY)
        return 0

    def _ended(self, code: int, why: str) -> int:
        self.error = why
        return code

    def _engine(self) -> Engine:
        if self.job.engine is not None:
            return self.job.engine(self.reader)
        return engine_for(self.reader, self.job.workers)

    def _run(self, engine: Engine) -> None:
        raise NotImplementedError

    def leave_word(self) -> None:
        """Have a run file that says how this run ended, where it ended before it had one."""

    def _notices(self) -> None:
        assert self.run_file is not None
        while self.run_file.notices:
            self.observer.notice(self.run_file.notices.pop(0))

    # Limits

    def _recall(self, survey: Survey, again: Callable[[], Survey]) -> Survey:
        """Nothing that is live stays in quarantine."""
        if self.limits.doubts(survey):
            # Refused before long: nothing is put back on what may be the wrong disk.
            return survey
        return self.aside.recall(survey, again, self.permission.look_or_stop)

    def _check_limits(self) -> None:
        assert self.run_file is not None
        assert self.survey is not None
        dead = self.run_file.count(RowKind.BLOB).rows
        for objection in self.limits.objections(self.survey, dead, self.blobs_total):
            self.permission.refuse(objection.code, objection.message)
        self.permission.heed_change()
        self.permission.insist()
        if not self.job.dry_run:
            self.limits.remember(self.survey, len(self.emptied), self.reader)

    def _ask_second_opinion(self, engine: Engine) -> None:
        if not self.job.verify:
            return
        # Only here: what it rests on would take part in the start of every run.
        from registry_gc.verify.plan_check import SecondOpinion

        assert self.run_file is not None
        cutoff = float(self.run_file.meta()["cutoff"])
        self.opinion = SecondOpinion(self.reader, engine, self.observer, self.policy, cutoff)
        self.opinion.before(self.run_file)
        if self.opinion.faults:
            self.observer.notice(
                f"{self.opinion.faults} things that live images need were missing before "
                "this run; registry-gc verify lists them"
            )

    # Quarantine

    def _surveyor(self, engine: Engine) -> Surveyor:
        cutoff = self._now() - self.policy.grace
        return Surveyor(self.reader, engine, self.policy, cutoff, self.observer, self.job.cache)

    def _now(self) -> float:
        """The storage's time: by the clock of a file server where that is behind this machine's."""
        now = self.storage.now()
        if self.permission.lock is None or not self.reader.capabilities.folders:
            return now
        try:
            written = self.reader.stat(LOCK).modified
        except StorageError:
            return now  # a full disk holds no lock object
        # Not where every file is of 1970.
        return written if _CLOCKS_AGREE < now - written < _NO_CLOCK else now

    def _look_back(self, engine: Engine) -> None:
        """A registry that takes writes may have reached what this run was setting aside."""
        if self.policy.allow_writable:
            self.aside.look_back(self._surveyor(engine), self.permission.look_or_stop)

    # Deleting

    def _purges(self) -> bool:
        """Whether versions of what this run deletes are there, and have to go."""
        return self.policy.purge_versions and any(keep.listed for keep in self.keeps)

    def _means(self, deleter: Deleter) -> Means:
        assert self.catalog is not None
        return Means(
            deleter,
            self.storage.capabilities,
            self.permission.look,
            self.interrupts,
            self.observer,
            self.versions,
            purge=self._purges(),
            waiting=lambda: hidden(self.reader),
            stored_as=self.catalog.stored_as,
            settled=(self.job.blob_cache.settled, *self.job.settled),
        )

    def _sweep(self) -> None:
        assert self.run_file is not None
        plan = str(self.run_file.meta().get("run", self.job.run))
        setting_aside = self.aside.deleter(self.job.run, plan, self.policy)
        cache = self.job.blob_cache
        with self.interrupts.deferred(), setting_aside as deleter:
            stale = cache.begin(self.run_file)
            if stale is not None:
                self.permission.refuse(stale.code, stale.message)
                raise self.permission.refusal()
            unsettled = True
            try:
                swept = sweep(self.run_file, self._means(deleter))
                unsettled = swept.error is not None
                if swept.stopped is None:
                    swept.stopped = self.permission.look_after()
                if swept.stopped is None:
                    self.swept = True
                    swept.stopped = self._tidy(self.run_file)
                    self.run_file.record_meta(finished=time.time())
            finally:
                cache.finish(self.run_file, unsettled=unsettled)
                self.swept_at = time.monotonic()
                self._notices()
        if swept.stopped is not None:
            # Who asks for an end when all is done has it. A signal counts more than the guard.
            self.interrupts.check()
        if swept.stopped is Stop.REFUSED:
            raise self.permission.stop()

    def _tidy(self, run_file: RunFile) -> Stop | None:
        """Remove empty folders; what the guard has said against that meanwhile."""
        if self.policy.allow_writable:
            # A folder that is empty now may be where a push is about to write.
            return None
        stopped: Stop | None = None

        def ended() -> bool:
            nonlocal stopped
            stopped = self.permission.look()
            # Who asks for an end has it: all that was dead is gone.
            return stopped is not None or self.interrupts()

        try:
            with suppress(StorageError):
                clear_hollow(self.storage)
            unfinished = discard(self.storage, self._unfinished(), self._now() - _UNFINISHED)
            tidy(
                self.storage,
                self.storage.capabilities,
                chain(run_file.folders_of_gone(), self.hollow, unfinished),
                keep_repositories=self.policy.keep_empty_repositories,
                ended=ended,
            )
        except StorageError as error:
            # All that was dead is gone. An empty folder means nothing; the next run tries again.
            self.observer.notice(f"some empty folders stay: {error}")
            if not self.policy.keep_empty_repositories:
                self.not_tidied = frozenset(filter(self._is_in_catalogue, self.emptied))
        return stopped

    def _is_in_catalogue(self, repository: str) -> bool:
        """Whether *repository*, which holds nothing, is still one by its folders."""
        try:
            below = self.reader.children(f"{REPOSITORIES}{repository}/").folders
        except StorageError:
            return True
        return any(name.startswith("_") for name in below)

    def _unfinished(self) -> list[str]:
        """What runs that were killed had not made whole: where they lock, or in the registry."""
        if not self.storage.capabilities.folders:
            return []
        ours = self.storage.children(f"{FOLDER}/").files
        return self.unfinished + temporaries(f"{FOLDER}/{name}" for name in ours)
