"""What the audit log says of a purge and of a restore, which have no run file."""

from __future__ import annotations

from collections.abc import Iterable

from registry_drivers.base import Deletion, Outcome
from registry_gc.audit.log import AuditLog
from registry_gc.quarantine.aside import Kept
from registry_gc.quarantine.bring_back import (
    BLOB,
    LAYER,
    OTHER,
    REVISION,
    SIGNATURE,
    TAG_INDEX,
    Back,
    Result,
    meaning_of,
)
from registry_gc.runs.rows import RowKind

# The words of a collection's lines.
_KINDS = {
    BLOB: RowKind.BLOB.label,
    LAYER: RowKind.LAYER_LINK.label,
    SIGNATURE: RowKind.SIGNATURE.label,
    REVISION: RowKind.REVISION.label,
    TAG_INDEX: RowKind.TAG_INDEX.label,
    OTHER: "other",
}
_RESULTS = {
    Back.BACK: "restored",
    Back.THERE: "there already",
    Back.LOST: "lost",
    Back.FAILED: Deletion.FAILED.value,
}


def tell_deleted(audit: AuditLog, outcomes: Iterable[tuple[Kept, Outcome]]) -> None:
    """Write down what a purge has deleted of what waited in quarantine."""
    for kept, outcome in outcomes:
        freed = outcome.bytes if kept.marked else kept.size
        confirmed = outcome.result is Deletion.DELETED
        _add(
            audit,
            "delete",
            kept,
            freed if confirmed else 0,
            "waited in quarantine long enough",
            outcome.result.value,
            confirmed=confirmed,
            error=outcome.error,
        )
    audit.flush()


def tell_restored(audit: AuditLog, results: Iterable[Result], reason: str) -> None:
    """Write down what has come back from quarantine, and why it was to."""
    for result in results:
        back = None if result.kept.marked else result.kept.size
        confirmed = result.back is Back.BACK
        _add(
            audit,
            "restore",
            result.kept,
            back if confirmed else 0,
            reason,
            _RESULTS[result.back],
            confirmed=confirmed,
            error=result.error,
        )
    audit.flush()


def _add(
    audit: AuditLog,
    event: str,
    kept: Kept,
    size: int | None,
    reason: str,
    result: str,
    *,
    confirmed: bool,
    error: str,
) -> None:
    meaning = meaning_of(kept.path)
    audit.add(
        event,
        repository=meaning.repository or None,
        digest=meaning.digest or None,
        kind=_KINDS[meaning.order],
        path=kept.path,
        bytes=size,
        reason=reason,
        set_aside_by=kept.aside.run,
        result=result,
        confirmed=confirmed,
        error=error or None,
    )
