"""What a run came to."""

from __future__ import annotations

import msgspec

from registry_drivers.versions import Keep
from registry_gc.catalog import Damage
from registry_gc.guard import Finding
from registry_gc.mark import Hold
from registry_gc.retained import Retained


class Tally(msgspec.Struct, frozen=True):
    """Objects of one kind: how many there are to delete, and how many were; bytes likewise."""

    eligible: int = 0
    eligible_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0


class Report(msgspec.Struct, frozen=True):
    """One run, finished or not. Times in seconds, sizes in bytes.

    ``verdict`` is what the guard says: ``allowed``, ``refused`` or ``unknown``. ``error`` is the
    one line that says why ``exit_code`` is not 0 or 3. ``keeps`` are the settings by which the
    storage keeps what is deleted; ``versions`` what goes of that, its bytes without those of
    what this run itself deletes, which ``blobs`` and ``uploads`` count. ``taken_back``: rows of a
    plan that a second look did not find dead any more.
    """

    run: str
    run_file: str | None
    version: str
    dry_run: bool
    delete_untagged: bool
    driver: str
    root: str
    repositories: int
    emptied: int
    marked: int
    manifests: Tally
    blobs_total: int
    blobs: Tally
    layer_links: Tally
    uploads: Tally
    already_gone: int
    held: tuple[Hold, ...]
    damaged: tuple[Damage, ...]
    failed: tuple[tuple[str, str], ...]
    strangers: int
    requests: dict[str, int]
    seconds_mark: float
    seconds_sweep: float
    seconds_total: float
    peak_rss_bytes: int
    verdict: str
    findings: tuple[Finding, ...]
    error: str | None
    exit_code: int
    keeps: tuple[Keep, ...] = ()
    retained: Retained = msgspec.field(default_factory=Retained)
    versions: Tally = msgspec.field(default_factory=Tally)
    multipart_uploads: Tally = msgspec.field(default_factory=Tally)
    taken_back: int = 0
