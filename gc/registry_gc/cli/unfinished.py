"""What is told of a run that has no report: it was interrupted too early, or was killed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from registry_drivers.errors import StorageError
from registry_gc.cli.outlets import MetricsOutlet
from registry_gc.cli.output import Output
from registry_gc.cli.wiring import note, registry
from registry_gc.configuring.file import ConfigError
from registry_gc.progress import Progress
from registry_gc.report.build import report_of_none
from registry_gc.report.document import as_json

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from registry_gc.service.commands import Ran


def tell_unfinished(
    options: Mapping[str, Any], output: Output, code: int, why: str, ran: Sequence[Ran] = ()
) -> None:
    """Tell those who read documents and metrics that a run has ended with *code*.

    :param ran: what is known of the operator's commands.
    """
    driver, root = _storage_of(options)

    def figures() -> Sequence[Metric]:
        from registry_gc.metrics import Figures, families, printable

        return families(Figures(printable(root), time.time(), code))

    try:
        MetricsOutlet.of(options, note).hand_over(root, figures)
    except ConfigError as error:
        note(f"no metrics: {error}")
    if options["output"] == "json":
        report = replace(
            report_of_none(None, code, why),
            dry_run=options["dry_run"],
            delete_untagged=options["delete_untagged"],
            driver=driver,
            root=root,
            commands=tuple(ran),
        )
        output.lines([as_json(report)])


def _storage_of(options: Mapping[str, Any]) -> tuple[str, str]:
    """Driver and root of the storage; empty where the config does not say."""
    try:
        with registry(options["config"], Progress(bars=False, notices=False)) as (_, storage):
            return storage.driver, storage.root
    except (ConfigError, StorageError, OSError):
        return "", ""
