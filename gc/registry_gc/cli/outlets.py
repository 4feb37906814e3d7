"""Where metrics and audit lines go, as a command's options say.

Most commands tell neither, so what makes them is imported only where they are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from registry_gc.configuring.file import ConfigError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from registry_gc.audit.log import AuditLog


class MetricsOutlet(msgspec.Struct, frozen=True):
    """A file, a gateway, both or neither; ``notice`` is told where they cannot be reached."""

    file: str | None
    gateway: str | None
    notice: Callable[[str], None]

    @classmethod
    def of(cls, options: Mapping[str, Any], notice: Callable[[str], None]) -> MetricsOutlet:
        """Read *options*.

        :raises ConfigError: one cannot be followed.
        """
        found = cls(options["metrics_file"], options["pushgateway"], notice)
        if not found.wanted:
            return found
        from registry_gc.metrics.output import library_is_missing, split_url

        missing = library_is_missing()
        if missing:
            raise ConfigError(missing)
        try:
            split_url(found.gateway or "localhost")
        except ValueError as error:
            raise ConfigError(f"--pushgateway: {error}") from error
        return found

    @property
    def wanted(self) -> bool:
        """Whether anybody is to be told."""
        return bool(self.file or self.gateway)

    def hand_over(
        self, storage: str, make: Callable[[], Sequence[Metric]], *, keep_all: bool = False
    ) -> None:
        """Make the metrics of *storage*, and hand them over. Never fails.

        :param keep_all: see :func:`registry_gc.metrics.output.write_file`.
        """
        if not self.wanted:
            return
        from registry_gc.metrics import printable
        from registry_gc.metrics.output import push, write_file

        with self._only_a_notice():
            made = make()
            if self.file:
                with self._only_a_notice():
                    write_file(self.file, made, keep_all=keep_all)
            if self.gateway:
                with self._only_a_notice():
                    push(self.gateway, printable(storage), made)

    @contextmanager
    def _only_a_notice(self) -> Iterator[None]:
        """What was done is done, whatever becomes of its figures."""
        from registry_gc.metrics.output import MetricsError

        try:
            yield
        except MetricsError as error:
            self.notice(f"no metrics: {error}")
        except Exception as error:
            self.notice(f"no metrics: {type(error).__name__}: {error}")


def audit_log_of(options: Mapping[str, Any], run: str) -> AuditLog | None:
    """The audit log of *run*, where *options* ask for one.

    :raises ConfigError: its address cannot be understood.
    """
    if options["audit_log"] is None:
        return None
    if not options["audit_log"]:
        # A variable of a script's that is not set: nothing would be written, and nobody told.
        raise ConfigError("--audit-log: is empty; name a file or syslog, or leave it out")
    from registry_gc.audit.log import AuditLog
    from registry_gc.audit.sinks import sink_of

    try:
        return AuditLog(sink_of(options["audit_log"]), run, time.time)
    except ValueError as error:
        raise ConfigError(f"--audit-log: {error}") from error
