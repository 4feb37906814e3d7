"""What is told of a run beside its report: metrics and the audit log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from registry_gc.catalog import Catalog
from registry_gc.cli.outlets import MetricsOutlet, audit_log_of
from registry_gc.collect import Job, Plan, remember_again
from registry_gc.digest import pack
from registry_gc.events import Observer, PhaseTimer
from registry_gc.manifest_reader import ManifestState
from registry_gc.references import Manifests
from registry_gc.report.model import Report
from registry_gc.runs.database import RunFileError
from registry_gc.runs.totals import read_totals

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from registry_gc.audit.log import AuditLog


class Records(msgspec.Struct, frozen=True):
    """What *options* ask for, wired to one run."""

    observer: PhaseTimer
    metrics: MetricsOutlet
    options: Mapping[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, Any], observer: Observer) -> Records:
        """Read *options*.

        :raises ConfigError: one cannot be followed.
        """
        timer = PhaseTimer(observer, time.monotonic)
        return cls(timer, MetricsOutlet.of(options, timer.notice), options)

    def recorder(self, job: Job) -> Recorder:
        """Begin to record *job*.

        :raises ConfigError: the audit log's address cannot be understood.
        """
        return Recorder(self, audit_log_of(self.options, job.run), job)


def sizes_of(catalog: Catalog, manifests: Manifests) -> Callable[[str], int | None]:
    """Tells the bytes of a manifest by its digest; None where it could not be read."""

    def size(digest: str) -> int | None:
        (number,) = manifests.ids(pack([catalog.names.key(digest)])).tolist()
        if number < 0:
            return None
        read = int(manifests.batch.sizes[number])
        # Of what was there and is empty, its digest tells; of all else no bytes were read.
        empty = manifests.batch.states[number] == ManifestState.MISMATCH
        return read if read or empty else None

    return size


class Recorder:
    """Records one run."""

    def __init__(self, records: Records, audit: AuditLog | None, job: Job) -> None:
        self._records = records
        self._audit = audit
        self._storage = job.storage
        self.job = job
        """The job, with what listens to it."""
        if audit is not None:
            listeners = (*job.settled, audit.settled)
            self.job = replace(job, check=audit.guarded(job.check), settled=listeners)

    def planned(self, plan: Plan) -> None:
        """Write down what the plan holds back. A dry run decides nothing."""
        if self._audit is None or self.job.dry_run:
            return
        self._audit.held(plan.marking.holds, sizes_of(plan.catalog, plan.manifests))

    def ended(self, report: Report) -> Report:
        """Close the audit log, and hand the metrics over. An audit log that is not whole fails
        the run; metrics never change what a run came to.
        """
        closed = self._closed(report)
        if closed is not report or report.commands:
            # The run file was told before the registry was brought back, and the log closed.
            remember_again(closed, self._records.observer)
        report = closed
        self._records.metrics.hand_over(self._storage.root, lambda: self._figures(report))
        return report

    def crashed(self) -> None:
        """Tell the metrics of a run that ended by a fault of its own."""
        if self._audit is not None:
            self._audit.close()
        self._records.metrics.hand_over(self._storage.root, self._crash)

    def _closed(self, report: Report) -> Report:
        lost = "" if self._audit is None else self._audit.close()
        if not lost:
            return report
        if report.run_file is not None:
            lost += f"; {report.run_file} has what they say"
        code = 1 if report.exit_code in (0, 3) else report.exit_code
        error = f"{report.error}; {lost}" if report.error else lost
        return replace(report, exit_code=code, error=error)

    def _crash(self) -> Sequence[Metric]:
        from registry_gc.metrics import Figures, families, printable

        return families(Figures(printable(self._storage.root), time.time(), 1))

    def _figures(self, report: Report) -> Sequence[Metric]:
        from registry_gc.metrics import Figures, families, printable, use_of

        self._records.observer.finish()
        totals = None
        # One that ended before it had a plan has left word, and no more.
        if report.run_file is not None and report.seconds_mark:
            try:
                totals = read_totals(report.run_file)
            except RunFileError as error:
                self._records.observer.notice(f"metrics: {error}")
        return families(
            Figures(
                storage=printable(self._storage.root),
                ended=time.time(),
                exit_code=report.exit_code,
                report=report,
                phases=self._records.observer.seconds,
                totals=totals,
                use=use_of(report, self._records.options["capacity"]),
            )
        )
