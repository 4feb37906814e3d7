"""What a run came to as Prometheus metrics: for a textfile collector, or a Pushgateway.

Every sample says in ``storage`` which storage it is about, so that several registries may share
a machine or a gateway. What a run could not find out keeps the value of the run before: a file is
merged with the one that is there, as a gateway does with what it is sent by POST.

:func:`families` is pure; docs/monitoring.md explains each metric.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from registry_gc.layout import BLOBS
from registry_gc.report.model import Report
from registry_gc.runs.rows import Count, RowState

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

JOB = "registry-gc"
PREFIX = "registry_gc_"
KEPT = frozenset(
    PREFIX + name
    for name in (
        "objects",
        "bytes",
        "repositories",
        "holds",
        "damaged_objects",
        "last_plan_timestamp_seconds",
        "last_success_timestamp_seconds",
        "storage_used_bytes",
        # Those of other commands, which a collection says nothing of.
        *(
            f"{command}_{name}"
            for command in ("purge", "restore")
            for name in (
                "last_run_timestamp_seconds",
                "last_success_timestamp_seconds",
                "exit_code",
                "duration_seconds",
                "objects",
                "bytes",
            )
        ),
    )
)
"""The metrics that keep their last value while a run cannot tell a new one."""


_ENDS = (RowState.DELETED, RowState.QUARANTINED, RowState.GONE_ALREADY, RowState.FAILED)


class Use(NamedTuple):
    """Bytes used after the run, and bytes there are; None where nobody knows."""

    used: int | None
    capacity: int | None


NOBODY_KNOWS = Use(None, None)


class Figures(msgspec.Struct, frozen=True):
    """What metrics are made of.

    ``phases``: seconds by name. ``totals``: rows of the run file by kind and state; None where
    there was no plan. ``ended``: seconds since the epoch. ``report`` is None when the run ended
    by a fault of its own, was killed, or was interrupted before it had one.
    """

    storage: str
    ended: float
    exit_code: int
    report: Report | None = None
    phases: Mapping[str, float] | None = None
    totals: Mapping[tuple[str, str], Count] | None = None
    use: Use = NOBODY_KNOWS


def use_of(report: Report, capacity: int | None) -> Use:
    """How full the storage is after the run.

    On a filesystem that is what ``df`` says of the one that holds the blobs, whatever else lies
    there. An object store has no end: used is what was listed (blobs, uploads, and old versions
    where they were looked at) less what this run freed.

    :param capacity: what the operator says; None for the filesystem's own size.
    """
    if report.driver == "filesystem":
        return disk_use(report.root, capacity)
    if report.blobs_bytes is None:
        return Use(None, capacity)
    used = report.blobs_bytes + report.uploads_bytes
    used += report.retained.bytes + report.retained.soft_deleted
    # Old versions of what was current when it was listed are freed, but were not counted.
    used -= min(report.versions.deleted_bytes, report.retained.bytes)
    purged = report.versions.deleted > 0 or not any(keep.listed for keep in report.keeps)
    if purged:
        used -= report.blobs.deleted_bytes + report.uploads.deleted_bytes
    return Use(max(used, 0), capacity)


def disk_use(root: str, capacity: int | None) -> Use:
    """What ``df`` says of the filesystem below *root*; *capacity* replaces its size."""
    for path in (f"{root}/{BLOBS}", root):
        try:
            disk = shutil.disk_usage(path)
        except OSError:
            continue
        # As df does: what is reserved for root is no room.
        return Use(disk.used, disk.used + disk.free if capacity is None else capacity)
    return Use(None, capacity)


def families(figures: Figures) -> list[GaugeMetricFamily]:
    """The metrics, each with its samples; those without any are left out."""
    made = Families(figures.storage)
    report = figures.report
    made.one("last_run_timestamp_seconds", "When the last run ended.", figures.ended)
    made.one("exit_code", "Exit code of the last run.", figures.exit_code)
    if report is None:
        return made.all()
    made.add(
        "run_info",
        "The last run's version, storage driver and mode; always 1.",
        {
            (report.version, report.driver, *map(_flag, (report.dry_run, report.delete_untagged))):
            1
        },
        ("version", "driver", "dry_run", "delete_untagged"),
    )  # fmt: skip
    if report.exit_code in (0, 3) and not report.dry_run:
        made.one(
            "last_success_timestamp_seconds",
            "When a run last deleted all it could (exit code 0 or 3, no dry run).",
            figures.ended,
        )
    seconds = {"mark": report.seconds_mark, "sweep": report.seconds_sweep}
    made.add("duration_seconds", "How long the last run took, by part.",
             {(part,): time for part, time in {**seconds, "total": report.seconds_total}.items()},
             ("part",))  # fmt: skip
    made.add("phase_duration_seconds", "How long the last run took, by phase.",
             {(phase,): time for phase, time in (figures.phases or {}).items()},
             ("phase",))  # fmt: skip
    made.add("requests", "What the last run asked of the storage, by kind.",
             {(kind,): count for kind, count in report.requests.items()}, ("kind",))  # fmt: skip
    made.one("peak_memory_bytes", "Memory that the last run had at most.", report.peak_rss_bytes)
    if figures.totals is not None:
        _planned(made, figures.ended, report, figures.totals)
    made.use(figures.use)
    return made.all()


def _planned(
    made: Families, ended: float, report: Report, totals: Mapping[tuple[str, str], Count]
) -> None:
    """What only a run that got as far as a plan can tell."""
    objects: dict[tuple[str, ...], float] = {}
    sizes: dict[tuple[str, ...], float] = {}
    for kind in ("blob", "revision", "layer-link", "upload", *sorted({kind for kind, _ in totals})):
        rows = {RowState(state): count for (of, state), count in totals.items() if of == kind}
        for state in (None, *_ENDS):
            counts = [rows[one] for one in rows if state in (None, one)]
            label = kind.replace("-", "_"), "dead" if state is None else state.replace(" ", "_")
            objects[label] = sum(count.rows for count in counts)
            sizes[label] = sum(count.bytes for count in counts)
    objects["blob", "live"] = report.blobs_total - report.blobs.eligible
    objects["revision", "live"] = report.live_manifests
    objects["blob", "held"], sizes["blob", "held"] = report.held_blobs, report.held_bytes
    if report.blobs_bytes is not None:
        sizes["blob", "live"] = report.blobs_bytes - report.blobs.eligible_bytes
    made.add("objects", "Objects at the last plan, and what became of the dead ones.", objects,
             ("kind", "state"))  # fmt: skip
    made.add("bytes", "Bytes at the last plan, and what became of the dead ones.", sizes,
             ("kind", "state"))  # fmt: skip
    held = {hold.repository for hold in report.held}
    made.add("repositories", "Repositories at the last plan.",
             {("total",): report.repositories, ("emptied",): report.emptied,
              ("held",): len(held)}, ("state",))  # fmt: skip
    made.one("holds", "Reasons at the last plan to hold a repository.", len(report.held))
    made.one("damaged_objects", "Damaged objects at the last plan.", len(report.damaged))
    made.one("last_plan_timestamp_seconds", "When a run last got as far as a plan.", ended)


def _flag(value: bool) -> str:
    return str(value).lower()


class Families:
    """Collects families whose samples all say which storage they are about."""

    def __init__(self, storage: str) -> None:
        self._storage = storage
        self._families: list[GaugeMetricFamily] = []

    def one(self, name: str, text: str, value: float) -> None:
        """A metric with one sample."""
        self.add(name, text, {(): value})

    def add(
        self,
        name: str,
        text: str,
        samples: Mapping[tuple[str, ...], float],
        labels: Iterable[str] = (),
    ) -> None:
        """A metric with a sample for each combination of *labels*."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(PREFIX + name, text, labels=["storage", *labels])
        for values, value in samples.items():
            family.add_metric([self._storage, *values], value)
        if samples:
            self._families.append(family)

    def use(self, use: Use) -> None:
        """How full the storage is, as far as that is known."""
        if use.used is not None:
            self.one("storage_used_bytes", "Bytes used after the last run.", use.used)
        if use.capacity is not None:
            text = "Bytes there are: --capacity, or the disk's."
            self.one("storage_capacity_bytes", text, use.capacity)

    def all(self) -> list[GaugeMetricFamily]:
        """All that were added."""
        return self._families


def printable(storage: str) -> str:
    """*storage* as a label: names that are no UTF-8 cannot be one."""
    return storage.encode("utf-8", "backslashreplace").decode()
