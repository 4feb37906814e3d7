"""What a purge or a restore came to as metrics; what collections have told stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from registry_gc.metrics import NOBODY_KNOWS, Families, Use, printable

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily


class QuarantineFigures(msgspec.Struct, frozen=True):
    """What the metrics are made of.

    ``command``: ``purge`` or ``restore``. ``ended``: seconds since the epoch; ``seconds``: how
    long it took. ``objects``, ``bytes``: by what became of them.
    """

    command: str
    storage: str
    ended: float
    seconds: float
    exit_code: int
    objects: Mapping[str, int]
    bytes: Mapping[str, int]
    use: Use = NOBODY_KNOWS


def quarantine_families(figures: QuarantineFigures) -> list[GaugeMetricFamily]:
    """The metrics, each with its samples."""
    name = figures.command
    made = Families(printable(figures.storage))
    made.one(f"{name}_last_run_timestamp_seconds", f"When the last {name} ended.", figures.ended)
    if figures.exit_code in (0, 3):
        made.one(
            f"{name}_last_success_timestamp_seconds",
            f"When a {name} last did all it could (exit code 0 or 3).",
            figures.ended,
        )
    made.one(f"{name}_exit_code", f"Exit code of the last {name}.", figures.exit_code)
    made.one(f"{name}_duration_seconds", f"How long the last {name} took.", figures.seconds)
    made.add(
        f"{name}_objects",
        f"Objects in quarantine that the last {name} looked at, and what became of them.",
        {(state,): count for state, count in figures.objects.items()},
        ("state",),
    )
    made.add(
        f"{name}_bytes",
        f"Bytes in quarantine that the last {name} looked at, and what became of them.",
        {(state,): count for state, count in figures.bytes.items()},
        ("state",),
    )
    made.use(figures.use)
    return made.all()
