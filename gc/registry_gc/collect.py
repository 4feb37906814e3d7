"""A collection from its first look to its last delete: the public way in.

:func:`collect` never raises for what can go wrong with a registry, a storage or an operator;
whatever happens is in the report, with the exit code that it means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from registry_drivers.versions import VersionReader
from registry_gc import __version__
from registry_gc.catalog import Catalog
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.guard import objections
from registry_gc.interrupts import Interrupts
from registry_gc.job import Job, Plan
from registry_gc.plan import dead_links
from registry_gc.quarantine.aside import hidden
from registry_gc.report.build import report_of
from registry_gc.report.document import document
from registry_gc.report.model import Report
from registry_gc.retained import (
    foretell,
    leftover_rows,
    leftovers_of,
    multipart_rows,
    shows_leftovers,
)
from registry_gc.run_file import Elsewhere, RunFile
from registry_gc.runs.database import RunFileError
from registry_gc.runs.earlier import discard_begun, discard_begun_plan
from registry_gc.runs.links_seen import stamped_words
from registry_gc.runs.past import beginning, ending
from registry_gc.runs.plan_file import PlanFile, policy_facts
from registry_gc.runs.rows import RowKind
from registry_gc.runs.version_rows import sizes_to_go
from registry_gc.session import Session
from registry_gc.survey import Survey, Surveyor

__all__ = ["Job", "Plan", "collect", "objections"]


def collect(
    job: Job,
    observer: Observer,
    interrupts: Interrupts,
    show: Callable[[Plan], None] | None = None,
) -> Report:
    """Collect, or on a dry run find out what that would delete.

    :param show: called with the plan once it is made, before anything is deleted.
    """
    return finish(SealedCollection(job, observer, interrupts, show))


def finish(session: Session) -> Report:
    """Run *session* and say what it came to; no signal interrupts the saying."""
    code = session.run()
    with session.interrupts.deferred():
        session.leave_word()
        try:
            report = report_of(session, code)
            _remember(session, report)
            return report
        finally:
            if session.run_file is not None:
                session.run_file.close()


def _remember(session: Session, report: Report) -> None:
    """Put what the run came to into its own file, for `registry-gc runs`."""
    if session.run_file is None:
        return
    try:
        session.run_file.record_meta(**ending(time.time(), document(report)))
    except RunFileError as error:
        session.observer.notice(f"the run file does not say how the run ended: {error}")


def remember_again(report: Report, observer: Observer) -> None:
    """Put what a run came to after all into its own file, which says what it came to before."""
    if report.run_file is None:
        return
    try:
        run_file = RunFile.existing(report.run_file)
        try:
            run_file.record_meta(**ending(time.time(), document(report)))
        finally:
            run_file.close()
    except RunFileError as error:
        observer.notice(f"the run file does not say how the run ended: {error}")


class SealedCollection(Session):
    """A session that finds out from the beginning, and writes down what."""

    purpose = "run"

    def _run(self, engine: Engine) -> None:
        self.permission.ask()
        with self.permission.locked():
            self._plan(engine)
            self._check_limits()
            self._ask_second_opinion(engine)
            if not self.job.dry_run:
                self._seal()
                self._sweep()
                self._look_back(engine)
                if self.opinion is not None:
                    self.opinion.after()

    def _seal(self) -> None:
        assert self.run_file is not None
        assert self.catalog is not None
        self.run_file.seal(stamped_words(self.catalog))
        self._notices()

    # Finding out

    def _plan(self, engine: Engine) -> None:
        policy = self.policy
        surveyor = self._surveyor(engine)
        cutoff = surveyor.cutoff
        listed = cutoff + policy.grace
        catalog = self.catalog = self._listed(surveyor)
        run_file = self.run_file = self._new_run_file()
        self._tell_strange_releases(catalog)
        survey = self.survey = self._recalled(surveyor, surveyor.plan_blobs(catalog, run_file))
        catalog = self.catalog = survey.catalog
        marking, manifests = survey.marking, survey.manifests
        assert survey.blobs is not None
        self.blobs_total = survey.blobs.total
        self.strangers = catalog.strangers + survey.blobs.strangers
        self.hollow = catalog.hollow + survey.blobs.hollow
        self.unfinished = catalog.unfinished + survey.blobs.unfinished
        links = dead_links(catalog, manifests, marking, policy, cutoff)
        self.emptied = links.emptied
        run_file.add(links.rows)
        self._tell_ahead(survey.blobs.ahead, catalog, surveyor.ahead)
        self._record(listed, cutoff)
        if self.versions is not None:
            self._plan_retained(self.versions, cutoff)
        self._notices()
        self.marked_at = self.swept_at = time.monotonic()
        if self.show is not None:
            self.show(Plan(catalog, manifests, marking, run_file))

    def _tell_ahead(self, blobs: int, catalog: Catalog, ahead: float) -> None:
        """Without it, nothing says why what nobody needs is young for years."""
        links = 0
        if self.policy.delete_untagged:
            links = int(np.count_nonzero(catalog.revisions.modified > ahead))
        if blobs or links:
            self.observer.notice(
                f"{blobs} blobs that nothing needs and {links} links to manifests are dated in the "
                "future, and stay for as long as they are: was a clock wrong?"
            )

    def _tell_strange_releases(self, catalog: Catalog) -> None:
        """A name that was mistyped releases nothing."""
        asked = {release.repository for release in self.policy.releases}
        # Without one, as nearly always, there is no need to look at the names of all.
        for name in sorted(asked.difference(catalog.repositories)) if asked else ():
            self.observer.notice(f"--release {name}: there is no such repository")

    def _listed(self, surveyor: Surveyor) -> Catalog:
        # Who asks for a second opinion wants every damaged link to be found.
        return surveyor.catalog() if self.job.verify else surveyor.catalog_by_name()

    def _recalled(self, surveyor: Surveyor, survey: Survey) -> Survey:
        """Nothing that is live stays in quarantine; a dry run only tells."""
        assert self.run_file is not None
        run_file = self.run_file
        if self.job.dry_run:
            return self.aside.tell_missed(survey)

        def again() -> Survey:
            run_file.drop_all(RowKind.BLOB)
            return surveyor.plan_blobs(self._listed(surveyor), run_file)

        return self._recall(survey, again)

    def _new_run_file(self) -> PlanFile:
        """An empty run file, which says from the beginning what it is for."""
        if not self.job.dry_run:
            discard_begun(self.job.run_file, self.storage)
        elif self.purpose == "plan":
            discard_begun_plan(self.job.run_file)
        elsewhere: Elsewhere = "when full" if self.purpose == "plan" else "always"
        return PlanFile.create(self.job.run_file, elsewhere=elsewhere, **self._facts())

    def _facts(self) -> dict[str, Any]:
        """What a run file says from the beginning."""
        # A plan is no dry run to those who clear old files away: it is still to be carried out.
        dry_run = self.job.dry_run and self.purpose == "run"
        return {
            "run": self.job.run,
            "purpose": self.purpose,
            "dry_run": dry_run,
            "created": time.time(),
            # Other runs leave it alone while they cannot tell that it is of theirs, or over.
            "driver": self.storage.driver,
            "root": self.storage.root,
            **beginning(),
        }

    def _asked(self) -> dict[str, Any]:
        """What this run was asked for, and of what storage."""
        return {
            "version": __version__,
            "config": self.job.config,
            "guard": {
                "verdict": self.permission.verdict,
                "findings": [[found.code, found.message] for found in self.permission.findings],
            },
            **policy_facts(self.policy),
        }

    def leave_word(self) -> None:
        if self.run_file is not None or not self.job.listed or self.purpose != "run":
            return
        try:
            self.run_file = PlanFile.create(self.job.run_file, elsewhere="never", **self._facts())
            self.run_file.record_meta(**self._asked())
        except RunFileError as error:
            self.observer.notice(f"no run file says how this run ended: {error}")

    def _record(self, listed: float, cutoff: float) -> None:
        """Write down what this run was asked for, and what it has found beside its rows."""
        assert self.run_file is not None
        assert self.catalog is not None
        self.run_file.record_meta(
            listed=listed, cutoff=cutoff, emptied=sorted(self.emptied), **self._asked()
        )

    def _plan_retained(self, versions: VersionReader, cutoff: float) -> None:
        """Find out what the storage keeps of what is deleted, and say so before anything goes."""
        assert self.run_file is not None
        policy = self.policy
        self.run_file.add(multipart_rows(versions, policy, cutoff))
        self.keeps = versions.keeps()
        if shows_leftovers(self.keeps, purge=policy.purge_versions):
            self._plan_leftovers(versions, cutoff)
        dead = self.run_file.count(RowKind.BLOB).bytes + self.run_file.count(RowKind.UPLOAD).bytes
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

    def _plan_leftovers(self, versions: VersionReader, cutoff: float) -> None:
        """List all versions; those that may go become rows."""
        assert self.run_file is not None
        assert self.catalog is not None
        assert self.survey is not None
        purge, names = self.policy.purge_versions, self.catalog.names
        live = self.survey.marking.live_set
        waiting = hidden(self.reader)
        spared, spared_bytes = 0, 0
        # The sweep of a real run finds them out itself, when it knows what it has deleted.
        foretells = self.job.dry_run and self._purges()
        listing_of = versions.leftovers_and_current if foretells else versions.leftovers
        self.observer.phase("listing versions", None, "objects")
        for some in leftovers_of(listing_of, self.blobs_total):
            found = [left for left in some if not left.current and left.path not in waiting]
            here = [left for left in some if not left.current and left.path in waiting]
            spared += len(here)
            spared_bytes += sum(left.bytes for left in here)
            rows = leftover_rows(found, live, names, cutoff, self.retained)
            if purge:
                self.run_file.add(rows)
            if foretells:
                current = [left for left in some if left.current and left.path not in waiting]
                going = sizes_to_go(self.run_file, (left.path for left in current))
                foretell(current, going, self.retained)
            self.observer.advance(len(found))
        self.observer.finish()
        if spared and purge:
            self.observer.notice(
                f"{spared_bytes} bytes in old versions of {spared} objects stay, as those "
                "wait in a quarantine; registry-gc restore CONFIG lists the runs"
            )
