"""What is told of a run beside its report: metrics and the audit log.

Most runs tell neither, so what makes them is imported only where they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from registry_gc.collect import Job, Plan
from registry_gc.config_file import ConfigError
from registry_gc.digest import pack
from registry_gc.events import Observer, PhaseTimer
from registry_gc.report.model import Report
from registry_gc.run_file import RunFileError, read_totals

if TYPE_CHECKING:
    from registry_gc.audit import AuditLog
    from registry_gc.metrics import Figures


class Records(msgspec.Struct, frozen=True):
    """What *options* ask for, wired to one run. ``capacity`` in bytes."""

    observer: PhaseTimer
    metrics_file: str | None
    pushgateway: str | None
    capacity: int | None
    audit_log: str | None

    @classmethod
    def of(cls, options: Mapping[str, Any], observer: Observer) -> Records:
        """Read *options*.

        :raises ConfigError: one cannot be followed.
        """
        found = cls(
            observer=PhaseTimer(observer, time.monotonic),
            metrics_file=options["metrics_file"],
            pushgateway=options["pushgateway"],
            capacity=options["capacity"],
            audit_log=options["audit_log"],
        )
        if not found.wants_metrics:
            return found
        from registry_gc.metrics_output import library_is_missing, split_url

        missing = library_is_missing()
        if missing:
            raise ConfigError(missing)
        try:
            split_url(found.pushgateway or "localhost")
        except ValueError as error:
            raise ConfigError(f"--pushgateway: {error}") from error
        return found

    @property
    def wants_metrics(self) -> bool:
        """Whether anybody is to be told of metrics."""
        return bool(self.metrics_file or self.pushgateway)

    def recorder(self, job: Job) -> Recorder:
        """Begin to record *job*.

        :raises ConfigError: the audit log's address cannot be understood.
        """
        audit = None
        if self.audit_log:
            from registry_gc.audit import AuditLog
            from registry_gc.audit_sinks import sink_of

            try:
                audit = AuditLog(sink_of(self.audit_log), job.run, time.time)
            except ValueError as error:
                raise ConfigError(f"--audit-log: {error}") from error
        return Recorder(self, audit, job)


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

        def size(digest: str) -> int | None:
            (number,) = plan.manifests.ids(pack([plan.catalog.names.key(digest)])).tolist()
            return int(plan.manifests.batch.sizes[number]) or None if number >= 0 else None

        self._audit.held(plan.marking.holds, size)

    def ended(self, report: Report) -> Report:
        """Close the audit log, and hand the metrics over. An audit log that is not whole fails
        the run; metrics never change what a run came to.
        """
        report = self._closed(report)
        self._hand_over(lambda: self._figures(report))
        return report

    def crashed(self) -> None:
        """Tell the metrics of a run that ended by a fault of its own."""
        if self._audit is not None:
            self._audit.close()
        self._hand_over(self._crash)

    def _closed(self, report: Report) -> Report:
        lost = "" if self._audit is None else self._audit.close()
        if not lost:
            return report
        if report.run_file is not None:
            lost += f"; {report.run_file} has what they say"
        code = 1 if report.exit_code in (0, 3) else report.exit_code
        error = f"{report.error}; {lost}" if report.error else lost
        return replace(report, exit_code=code, error=error)

    def _crash(self) -> Figures:
        from registry_gc.metrics import Figures, printable

        return Figures(printable(self._storage.root), time.time(), 1)

    def _figures(self, report: Report) -> Figures:
        from registry_gc.metrics import Figures, printable, use_of

        self._records.observer.finish()
        totals = None
        if report.run_file is not None:
            try:
                totals = read_totals(report.run_file)
            except RunFileError as error:
                self._records.observer.notice(f"metrics: {error}")
        return Figures(
            storage=printable(self._storage.root),
            ended=time.time(),
            exit_code=report.exit_code,
            report=report,
            phases=self._records.observer.seconds,
            totals=totals,
            use=use_of(report, self._records.capacity),
        )

    def _hand_over(self, figures: Callable[[], Figures]) -> None:
        records = self._records
        if not records.wants_metrics:
            return
        from registry_gc.metrics import families
        from registry_gc.metrics_output import push, write_file

        with self._only_a_notice():
            found = figures()
            made = families(found)
            if records.metrics_file:
                with self._only_a_notice():
                    write_file(records.metrics_file, made)
            if records.pushgateway:
                with self._only_a_notice():
                    push(records.pushgateway, found.storage, made)

    @contextmanager
    def _only_a_notice(self) -> Iterator[None]:
        """What was collected is collected, whatever becomes of its figures."""
        from registry_gc.metrics_output import MetricsError

        try:
            yield
        except MetricsError as error:
            self._records.observer.notice(f"no metrics: {error}")
        except Exception as error:
            self._records.observer.notice(f"no metrics: {type(error).__name__}: {error}")
