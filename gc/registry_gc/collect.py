"""A collection from its first look to its last delete: the public way in.

:func:`collect` never raises for what can go wrong with a registry, a storage or an operator;
whatever happens is in the report, with the exit code that it means.
"""

from __future__ import annotations

import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import msgspec
from msgspec.structs import replace

from registry_drivers.base import Deleter, Storage
from registry_drivers.errors import NotFound, StorageError
from registry_drivers.factory import versions_of
from registry_drivers.versions import Keep, VersionReader
from registry_drivers.wrappers import ReadOnly
from registry_gc import __version__
from registry_gc.blob_cache import BlobCache, NoCache
from registry_gc.catalog import Catalog, is_registry
from registry_gc.engine import Engine, WorkerLost, engine_for
from registry_gc.events import Observer
from registry_gc.guard import Finding, Verdict
from registry_gc.interrupts import Interrupted, Interrupts
from registry_gc.lock import Lock, LockError, blocker
from registry_gc.mark import Marking
from registry_gc.plan import dead_links
from registry_gc.plan_check import Contradiction, SecondOpinion
from registry_gc.policy import Policy
from registry_gc.quarantine import hidden
from registry_gc.references import Manifests
from registry_gc.report.document import document
from registry_gc.report.model import Quarantine, Report, Tally, Verification
from registry_gc.retained import (
    Retained,
    leftover_rows,
    leftovers_of,
    multipart_rows,
    shows_leftovers,
)
from registry_gc.run_file import Kind, RowState, RunFile, RunFileError
from registry_gc.runs import beginning, ending
from registry_gc.set_aside import SettingAside
from registry_gc.survey import Survey, Surveyor
from registry_gc.sweep import Settled, Stop, sweep, tidy

_LOOK_AGAIN = 10.0
"""Seconds after which guard and lock are looked at again, at the latest."""


class Job(msgspec.Struct, frozen=True):
    """What to collect, and how.

    ``check`` is the guard: asked before anything else, and again while deleting.
    ``verify``: work out once more, and in another way, that nothing live goes; and look
    afterwards whether anything has. ``run_file``: where the run file is to be written.
    ``cache``: where what manifests reference is remembered; None to read them all. ``settled``:
    told of each batch of deletes, see :data:`registry_gc.sweep.Settled`.
    ``blob_cache``: what the registry itself remembers.
    """

    storage: Storage
    policy: Policy
    check: Callable[[], Verdict]
    run_file: str
    cache: str | None = None
    dry_run: bool = False
    verify: bool = False
    workers: int | None = None
    settled: tuple[Settled, ...] = ()
    blob_cache: BlobCache = msgspec.field(default_factory=NoCache)
    run: str = msgspec.field(default_factory=lambda: str(uuid.uuid4()))


class Plan(msgspec.Struct, frozen=True):
    """What was found, for those who show it: everything marked, and the file with what goes."""

    catalog: Catalog
    manifests: Manifests
    marking: Marking
    run_file: RunFile


_REASSURING = frozenset(
    {"nothing-to-probe", "readonly-confirmed", "stopped-confirmed", "command-not-run"}
)


def objections(findings: Sequence[Finding]) -> list[Finding]:
    """The findings that speak against deleting."""
    return [finding for finding in findings if finding.code not in _REASSURING]


class _Refused(Exception):
    """The guard, the lock or a limit says no; nothing was deleted."""


class _StoppedByGuard(Exception):
    """Guard or lock changed while deleting; what is gone was dead."""


def collect(
    job: Job,
    observer: Observer,
    interrupts: Interrupts,
    show: Callable[[Plan], None] | None = None,
) -> Report:
    """Collect, or on a dry run find out what that would delete.

    :param show: called with the plan once it is made, before anything is deleted.
    """
    return _Collection(job, observer, interrupts, show).run()


class _Collection:
    def __init__(
        self,
        job: Job,
        observer: Observer,
        interrupts: Interrupts,
        show: Callable[[Plan], None] | None,
    ) -> None:
        self.job = job
        self.storage = job.storage
        # All that is done before sweeping is done with this, which has no delete.
        self.reader = ReadOnly(job.storage)
        self.observer = observer
        self.interrupts = interrupts
        self.show = show
        self.began = time.monotonic()
        self.marked_at = self.began
        self.swept_at = self.began
        self.verdict = "unknown"
        self.findings: list[Finding] = []
        self.run_file: RunFile | None = None
        self.catalog: Catalog | None = None
        self.survey: Survey | None = None
        self.blobs_total = 0
        self.strangers = 0
        self.hollow: list[str] = []
        self.emptied: frozenset[str] = frozenset()
        self.swept = False
        self.error: str | None = None
        self.lock: Lock | None = None
        self.looked_at = 0.0
        self.stop_reason = ""
        self.versions = versions_of(job.storage)
        self.keeps: tuple[Keep, ...] = ()
        self.retained = Retained()
        self.aside = SettingAside(job.storage, self.versions, observer)
        self.opinion: SecondOpinion | None = None

    def run(self) -> Report:
        code = 0
        try:
            self._run()
        except _Refused as refusal:
            code, self.error = 4, str(refusal)
        except (StorageError, RunFileError, WorkerLost, Contradiction) as error:
            code, self.error = 1, str(error)
        except LockError as error:
            self._refuse_with("locked", str(error))
            code, self.error = 4, str(error)
        except Interrupted as interrupt:
            code, self.error = 128 + interrupt.number, f"interrupted by {interrupt}"
        except _StoppedByGuard as stop:
            code, self.error = 5, str(stop)
        with self.interrupts.deferred():
            try:
                report = self._report(code)
                self._remember(report)
                return report
            finally:
                if self.run_file is not None:
                    self.run_file.close()

    def _run(self) -> None:
        engine = engine_for(self.reader, self.job.workers)
        with engine:
            self._ask_guard()
            with self._locked():
                self._plan(engine)
                self._check_limits()
                self._ask_second_opinion(engine)
                if not self.job.dry_run:
                    self._sweep()
                    self._look_back(engine)
                    if self.opinion is not None:
                        self.opinion.after()

    # Guard and lock

    def _ask_guard(self) -> None:
        try:
            verdict = self.job.check()
            there = is_registry(self.reader)
        except NotFound as error:
            # The root itself: a disk that is not mounted, a bucket of another name.
            self._refuse_with("no-registry", str(error))
            if self.job.dry_run:
                raise
            raise _Refused(self._why_not()) from error
        self.verdict = verdict.verdict
        self.findings += verdict.findings
        if not there:
            self._refuse_with(
                "no-registry",
                f"{self.storage.root}: no registry there (docker/registry/v2 holds nothing); "
                "is it mounted, and is the root directory right?",
            )
        if self.verdict != "allowed" and not self.job.dry_run:
            raise _Refused(self._why_not())

    def _refuse_with(self, code: str, message: str) -> None:
        self.verdict = "refused"
        self.findings.append(Finding(code, message))

    def _why_not(self) -> str:
        reasons = "; ".join(finding.message for finding in objections(self.findings))
        return f"refused, nothing was deleted: {reasons or 'nobody knows who may be writing'}"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.job.dry_run:
            held = blocker(self.storage)
            if held is not None:
                self._refuse_with("locked", str(held))
            yield
            return
        with self.interrupts.deferred():
            self.lock = Lock.acquire(self.storage, self.job.run)
        try:
            self.interrupts.check()
            for notice in self.lock.notices:
                self.observer.notice(notice)
            yield
        finally:
            with self.interrupts.deferred():
                self.lock.release()

    # Finding out

    def _surveyor(self, engine: Engine) -> Surveyor:
        policy = self.job.policy
        cutoff = self.storage.now() - policy.grace
        return Surveyor(self.reader, engine, policy, cutoff, self.observer, self.job.cache)

    def _plan(self, engine: Engine) -> None:
        policy = self.job.policy
        surveyor = self._surveyor(engine)
        cutoff = surveyor.cutoff
        catalog = self.catalog = surveyor.catalog()
        self.run_file = RunFile.create(self.job.run_file)
        survey = self.survey = self._recalled(surveyor, surveyor.plan_blobs(catalog, self.run_file))
        catalog = self.catalog = survey.catalog
        marking, manifests = survey.marking, survey.manifests
        assert survey.blobs is not None
        self.blobs_total = survey.blobs.total
        self.strangers = catalog.strangers + survey.blobs.strangers
        self.hollow = catalog.hollow + survey.blobs.hollow
        links = dead_links(catalog, manifests, marking, policy, cutoff)
        self.emptied = links.emptied
        self.run_file.add(links.rows)
        self.run_file.record_meta(
            run=self.job.run,
            version=__version__,
            created=time.time(),
            **beginning(),
            driver=self.storage.driver,
            root=self.storage.root,
            dry_run=self.job.dry_run,
            delete_untagged=policy.delete_untagged,
            grace=policy.grace,
            cutoff=cutoff,
            quarantine=policy.quarantine,
            allow_writable=policy.allow_writable,
            releases=[f"{item.repository}@{item.digest or ''}" for item in policy.releases],
            guard={
                "verdict": self.verdict,
                "findings": [[found.code, found.message] for found in self.findings],
            },
        )
        if self.versions is not None:
            self._plan_retained(self.versions, cutoff)
        self._notices()
        self.marked_at = self.swept_at = time.monotonic()
        if self.show is not None:
            self.show(Plan(catalog, manifests, marking, self.run_file))

    def _recalled(self, surveyor: Surveyor, survey: Survey) -> Survey:
        """Nothing that is live stays in quarantine; a dry run only tells."""
        assert self.run_file is not None
        run_file = self.run_file
        if self.job.dry_run:
            return self.aside.tell_missed(survey)

        def again() -> Survey:
            run_file.drop_all(Kind.BLOB)
            return surveyor.plan_blobs(surveyor.catalog(), run_file)

        return self.aside.recall(survey, again, self._look_or_stop)

    def _look_back(self, engine: Engine) -> None:
        """A registry that takes writes may have reached what this run was setting aside."""
        if self.job.policy.allow_writable:
            self.aside.look_back(self._surveyor(engine), self._look_or_stop)

    def _deleter(self) -> AbstractContextManager[Deleter]:
        return self.aside.deleter(self.job.run, self.job.policy)

    def _look_or_stop(self) -> None:
        if self._look() is not None:
            raise _StoppedByGuard(self.stop_reason)

    def _plan_retained(self, versions: VersionReader, cutoff: float) -> None:
        """Find out what the storage keeps of what is deleted, and say so before anything goes."""
        assert self.run_file is not None
        assert self.catalog is not None
        assert self.survey is not None
        policy = self.job.policy
        self.run_file.add(multipart_rows(versions, policy, cutoff))
        self.keeps = versions.keeps()
        if shows_leftovers(self.keeps, purge=policy.purge_versions):
            live = self.survey.marking.live_set
            waiting = hidden(self.reader)
            self.observer.phase("listing versions", None, "objects")
            for found in leftovers_of(versions, self.blobs_total):
                found = [left for left in found if left.path not in waiting]
                rows = leftover_rows(found, live, self.catalog.names, cutoff, self.retained)
                if policy.purge_versions:
                    self.run_file.add(rows)
                self.observer.advance(len(found))
            self.observer.finish()
        dead = self.run_file.count(Kind.BLOB).bytes + self.run_file.count(Kind.UPLOAD).bytes
        for keep in self.keeps:
            self.observer.notice(f"{keep.message}. This concerns {dead} bytes that are to go")
        if self.retained.objects:
            what = "go too" if policy.purge_versions else "stay; --purge-versions deletes them"
            self.observer.notice(
                f"{self.retained.bytes} bytes in old versions of {self.retained.objects} objects "
                f"that were deleted before: those {what}"
            )
        for path in self.retained.recoverable:
            self.observer.notice(f"{path} is live, but deleted; old versions of it are kept")

    def _purges(self) -> bool:
        """Whether versions of what this run deletes are there, and have to go."""
        return self.job.policy.purge_versions and any(keep.listed for keep in self.keeps)

    def _notices(self) -> None:
        assert self.run_file is not None
        while self.run_file.notices:
            self.observer.notice(self.run_file.notices.pop(0))

    def _check_limits(self) -> None:
        assert self.run_file is not None
        assert self.survey is not None
        policy = self.job.policy
        dead = self.run_file.count(Kind.BLOB).rows
        if self.blobs_total and not self.survey.live_manifests and not policy.allow_empty:
            self._refuse_with(
                "no-live-manifests",
                f"{self.blobs_total} blobs, and not one live manifest: that is a wrong root or a "
                "lost disk more often than an empty registry; if it is right, --allow-empty",
            )
        if policy.max_delete is not None and not policy.max_delete.allows(dead, self.blobs_total):
            self._refuse_with(
                "max-delete",
                f"{dead} of {self.blobs_total} blobs would go, more than the "
                f"{policy.max_delete} that --max-delete allows",
            )
        if self.verdict != "allowed" and not self.job.dry_run:
            raise _Refused(self._why_not())

    def _ask_second_opinion(self, engine: Engine) -> None:
        if self.job.verify:
            assert self.run_file is not None
            cutoff = float(self.run_file.meta()["cutoff"])
            self.opinion = SecondOpinion(
                self.reader, engine, self.observer, self.job.policy, cutoff
            )
            self.opinion.before(self.run_file)
            if self.opinion.faults:
                self.observer.notice(
                    f"{self.opinion.faults} things that live images need were missing before "
                    "this run; registry-gc verify lists them"
                )

    # Deleting

    def _sweep(self) -> None:
        assert self.run_file is not None
        self.run_file.make_durable()
        cache = self.job.blob_cache
        with self.interrupts.deferred(), self._deleter() as deleter:
            stale = cache.begin(self.run_file)
            if stale is not None:
                self._refuse_with(stale.code, stale.message)
                raise _Refused(self._why_not())
            try:
                swept = sweep(
                    self.run_file,
                    deleter,
                    self.storage.capabilities,
                    self._look,
                    self.interrupts,
                    self.observer,
                    self.versions,
                    purge=self._purges(),
                    settled=(cache.settled, *self.job.settled),
                )
                if swept.stopped is None:
                    self.swept = True
                    self._tidy(swept.folders | set(self.hollow))
            finally:
                cache.finish(self.run_file)
                self.swept_at = time.monotonic()
                self._notices()
        if swept.stopped is Stop.REFUSED:
            raise _StoppedByGuard(self.stop_reason)
        self.interrupts.check()

    def _tidy(self, folders: set[str]) -> None:
        if self.job.policy.allow_writable:
            # A folder that is empty now may be where a push is about to write.
            return
        try:
            tidy(
                self.storage,
                self.storage.capabilities,
                folders,
                keep_repositories=self.job.policy.keep_empty_repositories,
            )
        except StorageError as error:
            # All that was dead is gone. An empty folder means nothing; the next run tries again.
            self.observer.notice(f"some empty folders stay: {error}")

    def _look(self) -> Stop | None:
        """Look at guard and lock again; on a filesystem, where that is cheap, at every batch."""
        now = time.monotonic()
        at_once = self.storage.capabilities.folders or self.job.blob_cache.lost
        interval = 0.0 if at_once else _LOOK_AGAIN
        if self.looked_at and now - self.looked_at < interval:
            return None
        self.looked_at = now
        assert self.lock is not None
        try:
            self.lock.verify()
        except LockError as error:
            self._refuse_with("lock-lost", str(error))
            self.stop_reason = f"stopped: {error}; run again to go on"
            return Stop.REFUSED
        verdict = self.job.check()
        if verdict.verdict != "allowed":
            self.verdict = verdict.verdict
            known = set(self.findings)
            new = [finding for finding in verdict.findings if finding not in known]
            self.findings += new
            reason = "; ".join(finding.message for finding in new or verdict.findings)
            self.stop_reason = f"stopped: {reason}; what was deleted was dead; run again to go on"
            return Stop.REFUSED
        return None

    # Reporting

    def _tally(self, kind: Kind) -> Tally:
        if self.run_file is None:
            return Tally()
        eligible = self.run_file.count(kind)
        deleted = self.run_file.count(kind, RowState.DELETED)
        aside = self.run_file.count(kind, RowState.QUARANTINED)
        return Tally(
            eligible.rows, eligible.bytes, deleted.rows, deleted.bytes, aside.rows, aside.bytes
        )

    def _uploads(self) -> Tally:
        if self.run_file is None:
            return Tally()
        files = self._tally(Kind.UPLOAD)
        return Tally(
            self.run_file.uploads(),
            files.eligible_bytes,
            self.run_file.uploads(RowState.DELETED),
            files.deleted_bytes,
        )

    def _remember(self, report: Report) -> None:
        """Put what the run came to into its own file, for `registry-gc runs`."""
        if self.run_file is None:
            return
        try:
            self.run_file.record_meta(**ending(time.time(), document(report)))
        except RunFileError as error:
            self.observer.notice(f"the run file does not say how the run ended: {error}")

    def _report(self, code: int) -> Report:
        try:
            return self._whole_report(code)
        except RunFileError as error:
            # The journal can be read no more; the rest can still be told.
            assert self.run_file is not None
            path, self.run_file = self.run_file.path, None
            self.error = self.error or str(error)
            return replace(self._whole_report(1 if code in (0, 3) else code), run_file=path)

    def _verification(self) -> Verification | None:
        opinion = self.opinion
        return None if opinion is None else Verification(opinion.manifests, opinion.faults)

    def _emptied(self) -> int:
        """How many repositories nothing is left of; on a dry run, how many that would be."""
        if self.job.dry_run or self.run_file is None:
            return len(self.emptied)
        return len(self.emptied - self.run_file.repositories_with(RowState.FAILED)) * self.swept

    def _whole_report(self, code: int) -> Report:
        ended = time.monotonic()
        failed: tuple[tuple[str, str], ...] = ()
        gone = 0
        if self.run_file is not None:
            failed = tuple(self.run_file.failures())
            gone = sum(self.run_file.count(kind, RowState.GONE_ALREADY).rows for kind in Kind)
        marking = self.survey.marking if self.survey else None
        held = marking.holds if marking else ()
        damaged = marking.damaged if marking else ()
        faults = self.opinion.faults if self.opinion else 0
        blobs = self.survey.blobs if self.survey else None
        if code == 0 and (held or damaged or failed or faults):
            code = 3
        forgotten = self.job.blob_cache.state()
        if forgotten.left:
            code = 1 if code in (0, 3, 4) else code
            self.error = "; ".join(filter(None, (self.error, forgotten.warning)))
        return Report(
            run=self.job.run,
            run_file=None if self.run_file is None else self.run_file.path,
            version=__version__,
            dry_run=self.job.dry_run,
            delete_untagged=self.job.policy.delete_untagged,
            driver=self.storage.driver,
            root=self.storage.root,
            repositories=len(self.catalog.repositories) if self.catalog else 0,
            emptied=self._emptied(),
            marked=len(marking.live_set) if marking else 0,
            manifests=self._tally(Kind.REVISION),
            blobs_total=self.blobs_total,
            blobs=self._tally(Kind.BLOB),
            layer_links=self._tally(Kind.LAYER_LINK),
            uploads=self._uploads(),
            keeps=self.keeps,
            retained=self.retained,
            versions=self._tally(Kind.VERSIONS),
            multipart_uploads=self._tally(Kind.MULTIPART),
            blobs_bytes=None if blobs is None or blobs.unsized else blobs.bytes,
            uploads_bytes=sum(sum(one.sizes) for one in self.catalog.uploads)
            if self.catalog
            else 0,
            held_blobs=blobs.held if blobs else 0,
            held_bytes=blobs.held_bytes if blobs else 0,
            live_manifests=self.survey.live_manifests if self.survey else 0,
            quarantine=Quarantine(
                self.job.policy.quarantine,
                self.aside.marks,
                self.aside.recalled,
                self.aside.missed,
            ),
            already_gone=gone,
            held=held,
            damaged=damaged,
            failed=failed,
            verified=self._verification(),
            strangers=self.strangers,
            requests=self.storage.requests.totals(),
            seconds_mark=self.marked_at - self.began,
            seconds_sweep=self.swept_at - self.marked_at,
            seconds_total=ended - self.began,
            peak_rss_bytes=_peak_rss(),
            verdict=self.verdict,
            findings=tuple(self.findings),
            error=self.error,
            exit_code=code,
            forgotten=forgotten,
        )


def _peak_rss() -> int:
    """Bytes of memory that this process had at most, and the largest of its workers."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak if sys.platform == "darwin" else peak * 1024
