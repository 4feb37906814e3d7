"""What a run came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from registry_drivers.versions import Keep
from registry_gc.blob_cache.forgetting import Forgotten
from registry_gc.catalog import Damage
from registry_gc.guard import Finding
from registry_gc.marking.holding import Hold
from registry_gc.retained import Retained

if TYPE_CHECKING:
    # Starts processes, and only where an operator's commands are to be run.
    from registry_gc.service.commands import Ran


class Tally(msgspec.Struct, frozen=True):
    """Objects of one kind: how many there are to delete, and how many were; bytes likewise.

    What is in quarantine is not deleted, and its bytes are not free.
    """

    eligible: int = 0
    eligible_bytes: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    quarantined: int = 0
    quarantined_bytes: int = 0


class Verification(msgspec.Struct, frozen=True):
    """What ``--verify`` has looked at: live manifests, and faults that were there before."""

    manifests: int
    faults: int


class Quarantine(msgspec.Struct, frozen=True):
    """What was set aside instead of deleted, and what came back.

    ``seconds``: for how long, None where this run deletes. ``marked``: it is delete markers that
    hide it. ``recalled``: live things that an earlier run had set aside, and that are back;
    ``missed``: those that a dry run found, and left there.
    """

    seconds: float | None = None
    marked: bool = False
    recalled: int = 0
    missed: int = 0


class Report(msgspec.Struct, frozen=True):
    """One run, finished or not. Times in seconds, sizes in bytes.

    ``verdict`` is what the guard says: ``allowed``, ``refused`` or ``unknown``. ``error`` is the
    one line that says why ``exit_code`` is not 0 or 3. ``keeps`` are the settings by which the
    storage keeps what is deleted; ``versions`` what goes of that, its bytes without those of
    what this run itself deletes, which ``blobs`` and ``uploads`` count. ``blobs_bytes``: of all
    blobs before anything was deleted, None where not every size was asked for; ``held_blobs``
    live only because a repository is held; ``live_manifests``: revisions that stay and are stored.
    ``own_code``: the exit code but for what the registry's Redis may remember.
    ``taken_back``: rows of a plan that a second look did not find dead any more.
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
    forgotten: Forgotten = msgspec.field(default_factory=Forgotten)
    commands: tuple[Ran, ...] = ()
    taken_back: int = 0
    blobs_bytes: int | None = None
    uploads_bytes: int = 0
    held_blobs: int = 0
    held_bytes: int = 0
    live_manifests: int = 0
    quarantine: Quarantine = msgspec.field(default_factory=Quarantine)
    verified: Verification | None = None
    own_code: int = 1
