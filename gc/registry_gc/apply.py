"""Carrying out a plan that was made before, or going on with a run that was stopped.

Both are the same. How a run was stopped (a signal, kill -9, a loss of power, a full disk, a lost
lock, a deadline) makes no difference either: the registry may have been written to since, so
nothing is deleted on the plan's word alone. First the plan itself is looked at (whole, unaltered,
for this storage, neither too old nor from the future), then the guard is asked and the lock is
taken, then the registry is looked at again (:mod:`registry_gc.second_look`), then the limits are.
Only what is left of the plan after that is deleted, in the order in which every sweep deletes.

A run that was killed between a delete and its record finds that row gone already: that is counted
apart, since nobody knows who deleted it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec.structs import replace

from registry_gc import __version__
from registry_gc.collect import SealedCollection, finish
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.guard import objections
from registry_gc.guard.tags import refused_for
from registry_gc.guard.writable import while_writable
from registry_gc.interrupts import Interrupts
from registry_gc.job import Job, Plan
from registry_gc.policy import GRACE_IN_USE
from registry_gc.report.model import Report
from registry_gc.runs.plan_file import PlanFile, PlanRefused
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.second_look import look_again
from registry_gc.session import Session
from registry_gc.survey import Survey

MAX_AGE = 7 * 24 * 3600.0
"""Seconds after which a plan is too old to be carried out, unless another age is asked for."""


def make_plan(
    job: Job,
    observer: Observer,
    interrupts: Interrupts,
    show: Callable[[Plan], None] | None = None,
) -> Report:
    """Find out what would go and seal that as a plan in the job's run file; deletes nothing.

    May run while the registry is in use; then the grace is
    :data:`~registry_gc.policy.GRACE_IN_USE` at the least.
    """
    return finish(_Planning(replace(job, dry_run=True), observer, interrupts, show))


def apply(
    job: Job,
    observer: Observer,
    interrupts: Interrupts,
    show: Callable[[Plan], None] | None = None,
    *,
    max_age: float = MAX_AGE,
) -> Report:
    """Carry out what is left of the plan in the job's run file, or on a dry run find out what is.

    What goes is the plan's word: of the job's policy only the limits count, and
    ``allow_writable`` where the plan has it too.

    :param max_age: seconds; an older plan is refused.
    :param show: called with what is left of the plan, before anything is deleted.
    """
    return finish(_Application(job, observer, interrupts, show, max_age))


class _Planning(SealedCollection):
    purpose = "plan"

    def _run(self, engine: Engine) -> None:
        self.permission.ask()
        if self._may_be_in_use() and self.policy.grace < GRACE_IN_USE:
            self.observer.notice(
                "the registry may be in use: nothing that is younger than 24 h is planned"
            )
            self.policy = replace(self.policy, grace=GRACE_IN_USE)
        with self.permission.locked():
            self._plan(engine)
            self._check_limits()
            self._seal()

    def _may_be_in_use(self) -> bool:
        # That Redis cannot be reached, alone, says nothing of who writes.
        codes = {finding.code for finding in objections(self.permission.findings)}
        return self.permission.verdict != "allowed" and codes != {"redis-unreachable"}


class _Application(Session):
    def __init__(
        self,
        job: Job,
        observer: Observer,
        interrupts: Interrupts,
        show: Callable[[Plan], None] | None,
        max_age: float,
    ) -> None:
        super().__init__(job, observer, interrupts, show)
        self.max_age = max_age

    def _run(self, engine: Engine) -> None:
        self._open()
        self.permission.ask()
        with self.permission.locked():
            self._look_again(engine)
            self._check_limits()
            self._ask_second_opinion(engine)
            if not self.job.dry_run:
                self._sweep()
                self._look_back(engine)
                if self.opinion is not None:
                    self.opinion.after()

    def _open(self) -> None:
        """Open the plan, which no worker process may inherit, and look whether it may be used."""
        try:
            plan = self.run_file = PlanFile.open(self.job.run_file)
            now = self.storage.now()  # before the root: it may only now become known where it is
            plan.check(self.storage.driver, self.storage.root, now, self.max_age)
        except PlanRefused as refusal:
            self.permission.refuse(refusal.code, str(refusal))
            raise self.permission.refusal() from refusal
        if self.job.dry_run:
            plan.try_out()
        self.policy = plan.policy(self.job.policy)
        if self.policy.delete_untagged and not self.job.policy.delete_untagged:
            self.permission.check = refused_for(self.permission.check, self.job.tags_elsewhere)
        if not self.job.policy.allow_writable:
            return
        if self.policy.allow_writable:
            self.permission.check = while_writable(self.permission.check)
        else:
            self.observer.notice(
                "--allow-writable counts for nothing here: the plan was made without it"
            )

    def _look_again(self, engine: Engine) -> None:
        plan = self.run_file
        assert plan is not None
        before = plan.count(RowKind.BLOB, RowState.DELETED, RowState.QUARANTINED).rows
        looked = look_again(
            plan,
            self.reader,
            engine,
            self.policy,
            self.observer,
            cache=self.job.cache,
            versions=self.versions,
            recall=self._recalled,
        )
        self.catalog, self.survey, self.emptied = looked.catalog, looked.survey, looked.emptied
        blobs = looked.survey.blobs
        assert blobs is not None
        # As many as there were when the run began, so far as it has deleted some already.
        self.blobs_total = blobs.total + before
        self.strangers = looked.catalog.strangers + blobs.strangers
        self.hollow = looked.catalog.hollow + blobs.hollow
        self.unfinished = looked.catalog.unfinished + blobs.unfinished
        if self.versions is not None:
            self.keeps = self.versions.keeps()
            for keep in self.keeps:
                self.observer.notice(keep.message)
        self._say(looked.new_links, looked.taken_back, looked.gone)
        meta = plan.meta()
        if "finished" in meta and not any(
            plan.count(kind, RowState.PLANNED).rows for kind in RowKind
        ):
            self.observer.notice(
                "nothing was left to do: this plan was carried out before, and the figures are "
                "what that came to; registry-gc plan show says when"
            )
        plan.record_meta(
            applied=[
                *meta.get("applied", ()),
                {"run": self.job.run, "version": __version__, "began": time.time()},
            ]
        )
        self._notices()
        self.marked_at = self.swept_at = time.monotonic()
        if self.show is not None:
            survey = looked.survey
            self.show(Plan(looked.catalog, survey.manifests, survey.marking, plan))

    def _recalled(self, survey: Survey, again: Callable[[], Survey]) -> Survey:
        """Nothing that is live stays in quarantine; a dry run only tells."""
        return self.aside.tell_missed(survey) if self.job.dry_run else self._recall(survey, again)

    def _say(self, new_links: int, taken_back: int, gone: int) -> None:
        if new_links:
            self.observer.notice(f"{new_links} links are new since the plan; what they need stays")
        if taken_back:
            self.observer.notice(f"{taken_back} rows of the plan are not dead any more, and stay")
        if gone:
            self.observer.notice(f"{gone} rows of the plan were gone already")
