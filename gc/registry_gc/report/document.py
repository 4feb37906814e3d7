"""A report as the JSON document that programs read. Its form is a contract: ``schema`` 1."""

from __future__ import annotations

import json
from typing import Any

from registry_gc.report.model import Report

SCHEMA = 1


def document(report: Report) -> dict[str, Any]:
    """The report in the terms of the JSON contract."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "run_file": report.run_file,
        "version": report.version,
        "dry_run": report.dry_run,
        "delete_untagged": report.delete_untagged,
        "storage": {"driver": report.driver, "root": report.root},
        "repositories": {"total": report.repositories, "emptied": report.emptied},
        "marked": report.marked,
        "manifests": {
            "eligible": report.manifests.eligible,
            "deleted": report.manifests.deleted,
        },
        "blobs": {
            "total": report.blobs_total,
            "eligible": report.blobs.eligible,
            "eligible_bytes": report.blobs.eligible_bytes,
            "deleted": report.blobs.deleted,
            "deleted_bytes": report.blobs.deleted_bytes,
        },
        "layer_links": {
            "eligible": report.layer_links.eligible,
            "deleted": report.layer_links.deleted,
        },
        "uploads": {
            "eligible": report.uploads.eligible,
            "deleted": report.uploads.deleted,
            "deleted_bytes": report.uploads.deleted_bytes,
        },
        "versions": {
            "keeps": [{"code": keep.code, "message": keep.message} for keep in report.keeps],
            "objects": report.retained.objects,
            "bytes": report.retained.bytes,
            "soft_deleted_bytes": report.retained.soft_deleted,
            "recoverable": list(report.retained.recoverable),
            "eligible": report.versions.eligible,
            "eligible_bytes": report.versions.eligible_bytes,
            "deleted": report.versions.deleted,
            "deleted_bytes": report.versions.deleted_bytes,
        },
        "multipart_uploads": {
            "eligible": report.multipart_uploads.eligible,
            "eligible_bytes": report.multipart_uploads.eligible_bytes,
            "deleted": report.multipart_uploads.deleted,
            "deleted_bytes": report.multipart_uploads.deleted_bytes,
        },
        "blob_cache": {
            "kind": report.forgotten.kind,
            "removed": report.forgotten.removed,
            "left": report.forgotten.left,
            "restart_needed": report.forgotten.restart,
        },
        "commands": [
            {
                "name": ran.name,
                "code": ran.code,
                "seconds": round(ran.seconds, 6),
                "error": ran.error or None,
            }
            for ran in report.commands
        ],
        "quarantine": {
            "seconds": report.quarantine.seconds,
            "delete_markers": report.quarantine.marked,
            "manifests": report.manifests.quarantined,
            "layer_links": report.layer_links.quarantined,
            "blobs": report.blobs.quarantined,
            "bytes": report.blobs.quarantined_bytes,
            "recalled": report.quarantine.recalled,
            "missed": report.quarantine.missed,
        },
        "already_gone": report.already_gone,
        "taken_back": report.taken_back,
        "held": [
            {"repository": hold.repository, "digest": hold.digest, "reason": hold.reason}
            for hold in report.held
        ],
        "damaged": [{"path": damage.path, "reason": damage.reason} for damage in report.damaged],
        "failed": [{"path": path, "error": error} for path, error in report.failed],
        "verified": report.verified
        and {"manifests": report.verified.manifests, "faults": report.verified.faults},
        "strangers": report.strangers,
        "requests": {
            name: report.requests.get(name, 0) for name in ("list", "read", "delete", "write")
        },
        "seconds": {
            "mark": round(report.seconds_mark, 6),
            "sweep": round(report.seconds_sweep, 6),
            "total": round(report.seconds_total, 6),
        },
        "peak_rss_bytes": report.peak_rss_bytes,
        "guard": {
            "verdict": report.verdict,
            "findings": [
                {"code": finding.code, "message": finding.message} for finding in report.findings
            ],
        },
        "error": report.error,
        "exit_code": report.exit_code,
    }


def as_json(report: Report) -> str:
    """The document as text: ASCII, so that no locale can break it."""
    return json.dumps(document(report), indent=2)
