"""What is told of a purge or a restore beside its answer: metrics and the audit log."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry_drivers.base import Outcome, Storage
from registry_gc.cli.outlets import MetricsOutlet, audit_log_of
from registry_gc.cli.records import sizes_of
from registry_gc.guard import Verdict
from registry_gc.progress import Progress
from registry_gc.quarantine.aside import Kept
from registry_gc.quarantine.bring_back import Result
from registry_gc.survey import Survey

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from registry_gc.audit.log import AuditLog

_BATCH = 64
_ALLOWED = Verdict("allowed", ())


class Telling:
    """Tells of one command, as *options* ask for; of a dry run nothing.

    :param command: ``purge`` or ``restore``.
    :raises ConfigError: an option cannot be followed.
    """

    def __init__(
        self, options: Mapping[str, Any], storage: Storage, command: str, progress: Progress
    ) -> None:
        self._options = options
        self._storage = storage
        self._command = command
        self._began = time.monotonic()
        self._restored: list[tuple[Result, str]] = []
        self._silent: bool = options["dry_run"]
        self._metrics = MetricsOutlet.of(options, progress.notice)
        self._audit: AuditLog | None = None
        if not self._silent:
            self._audit = audit_log_of(options, str(uuid.uuid4()))

    def guarded(self, check: Callable[[], Verdict] = lambda: _ALLOWED) -> Callable[[], Verdict]:
        """*check*, that also refuses while the audit log cannot be written."""
        return check if self._audit is None else self._audit.guarded(check)

    def held(self, survey: Survey) -> None:
        """Tell what is held back."""
        if self._audit is not None:
            self._audit.held(survey.marking.holds, sizes_of(survey.catalog, survey.manifests))

    def deleted(self, outcomes: Sequence[tuple[Kept, Outcome]]) -> None:
        """Tell what a purge has deleted."""
        if self._audit is not None:
            from registry_gc.audit.quarantine import tell_deleted

            tell_deleted(self._audit, outcomes)

    def restored(self, result: Result, reason: str) -> None:
        """Tell what came back; some at a time, as each time is a flush to the disk."""
        if self._audit is not None:
            self._restored.append((result, reason))
            if len(self._restored) >= _BATCH:
                self.flush()

    def flush(self) -> None:
        """Tell what has not been told yet."""
        if self._audit is None or not self._restored:
            return
        from registry_gc.audit.quarantine import tell_restored

        waiting, self._restored = self._restored, []
        for reason in dict.fromkeys(reason for _, reason in waiting):
            tell_restored(self._audit, _with(reason, waiting), reason)

    def ended(
        self, code: int, why: str, objects: Mapping[str, int], sizes: Mapping[str, int]
    ) -> tuple[int, str]:
        """Close the audit log, and hand over the metrics; returns exit code and reason anew.

        :param objects: counts by what became of them. :param sizes: bytes, likewise.
        """
        self.flush()
        lost = self._audit.close() if self._audit is not None else ""
        if lost:
            code = 1 if code in (0, 3) else code
            why = f"{why}; {lost}" if why else lost
        if not self._silent:
            self._metrics.hand_over(
                self._storage.root,
                lambda: self._families(code, objects, sizes),
                keep_all=True,
            )
        return code, why

    def _families(
        self, code: int, objects: Mapping[str, int], sizes: Mapping[str, int]
    ) -> Sequence[Metric]:
        from registry_gc.metrics import Use, disk_use
        from registry_gc.metrics.quarantine import QuarantineFigures, quarantine_families

        storage = self._storage
        used = disk_use(storage.root, None).used if storage.driver == "filesystem" else None
        return quarantine_families(
            QuarantineFigures(
                command=self._command,
                storage=self._storage.root,
                ended=time.time(),
                seconds=time.monotonic() - self._began,
                exit_code=code,
                objects=objects,
                bytes=sizes,
                # The disk's own size would replace a capacity that collections were told.
                use=Use(used, self._options.get("capacity")),
            )
        )


def _with(reason: str, waiting: Iterable[tuple[Result, str]]) -> list[Result]:
    return [result for result, why in waiting if why == reason]
