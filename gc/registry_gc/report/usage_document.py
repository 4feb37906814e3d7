"""Who uses the storage, as JSON and as CSV. The JSON's form is a contract: ``schema`` 1."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from registry_gc import __version__
from registry_gc.usage.figures import Blob, Share, Usage, group_of
from registry_gc.usage.growth import Growth
from registry_gc.usage.images import Image
from registry_gc.usage.waiting import Waiting
from registry_gc.wording.moments import rfc3339
from registry_gc.wording.shown import cell

SCHEMA = 1


class UsageReport(msgspec.Struct, frozen=True):
    """All that is to be shown: whose storage, what is in it, how it has grown.

    ``top``: how many of the largest and oldest to name. ``waiting``: what each run has in
    quarantine, which is in no other figure.
    """

    driver: str
    root: str
    usage: Usage
    growth: Growth
    top: int
    grace: float = 0.0
    waiting: tuple[Waiting, ...] = ()


def by_size(shares: Sequence[Share], top: int) -> list[Share]:
    """The *top* shares with the most logical bytes."""
    return sorted(shares, key=lambda share: (-share.logical, share.name))[:top]


def by_age(shares: Sequence[Share], top: int) -> list[Share]:
    """The *top* shares that have been without a push for longest."""
    pushed = [(share.newest, share.name, share) for share in shares if share.newest is not None]
    return [share for _, _, share in sorted(pushed, key=lambda entry: entry[:2])[:top]]


def usage_document(report: UsageReport) -> dict[str, Any]:
    """The report in the terms of the JSON contract."""
    usage, top = report.usage, report.top
    totals = usage.totals
    return {
        "schema": SCHEMA,
        "version": __version__,
        "made": rfc3339(usage.made),
        "storage": {"driver": report.driver, "root": report.root},
        "grace": report.grace,
        "group_depth": usage.group_depth,
        "totals": {
            "repositories": totals.repositories,
            "groups": totals.groups,
            "tags": totals.tags,
            "manifests": totals.manifests,
            "untagged": totals.untagged,
            "blobs": totals.blobs,
            "stored_bytes": totals.stored,
            "logical_bytes": totals.logical,
            "shared_bytes": totals.shared,
            "unused_blobs": totals.unused_blobs,
            "unused_bytes": totals.unused,
            "uploads": totals.uploads,
            "upload_bytes": totals.upload_bytes,
            "reclaimable_blobs": totals.reclaimable_blobs,
            "reclaimable_bytes": totals.reclaimable,
            "reclaimable_untagged_blobs": totals.reclaimable_untagged_blobs,
            "reclaimable_untagged_bytes": totals.reclaimable_untagged,
            "held": totals.held,
            "damaged": totals.damaged,
            "strangers": totals.strangers,
        },
        "groups": [_share(share) for share in usage.groups],
        "repositories": [
            {**_share(share), "group": group_of(share.name, usage.group_depth)}
            for share in usage.repositories
        ],
        "ages": [
            {
                "label": age.label,
                "below_seconds": age.below,
                "blobs": age.blobs,
                "bytes": age.bytes,
                "reclaimable_bytes": age.goes,
                "reclaimable_untagged_bytes": age.goes + age.goes_untagged,
            }
            for age in usage.ages
        ],
        "largest": {
            "repositories": [share.name for share in by_size(usage.repositories, top)],
            "images": [_image(image) for image in usage.largest_images],
            "blobs": [_blob(blob) for blob in usage.largest_blobs],
        },
        "oldest": {
            "repositories": [share.name for share in by_age(usage.repositories, top)],
            "images": [_image(image) for image in usage.oldest_images],
            "blobs": [_blob(blob) for blob in usage.oldest_blobs],
        },
        "held": [msgspec.structs.asdict(hold) for hold in usage.holds],
        "quarantine": {
            "objects": sum(waiting.objects for waiting in report.waiting),
            "bytes": sum(waiting.bytes for waiting in report.waiting),
            "hidden": sum(waiting.hidden for waiting in report.waiting),
            "runs": [
                {**msgspec.structs.asdict(waiting), "until": rfc3339(waiting.until)}
                for waiting in report.waiting
            ],
        },
        "growth": {
            "reports": [
                {
                    "time": rfc3339(point.time),
                    "stored_bytes": point.stored,
                    "blobs": point.blobs,
                    "repositories": point.repositories,
                    "reclaimable_bytes": point.reclaimable,
                    "reclaimable_untagged_bytes": point.reclaimable_untagged,
                }
                for point in report.growth.points
            ],
            "runs": [
                {"time": rfc3339(run.time), "run": run.run, "freed_bytes": run.bytes}
                for run in report.growth.freed
            ],
        },
    }


def _share(share: Share) -> dict[str, Any]:
    return {
        "name": share.name,
        "repositories": share.repositories,
        "tags": share.tags,
        "manifests": share.manifests,
        "untagged": share.untagged,
        "blobs": share.blobs,
        "logical_bytes": share.logical,
        "unique_bytes": share.unique,
        "shared_bytes": share.shared,
        "reclaimable_bytes": share.reclaimable,
        "reclaimable_untagged_bytes": share.reclaimable_untagged,
        "uploads": share.uploads,
        "upload_bytes": share.upload_bytes,
        "oldest_push": rfc3339(share.oldest),
        "newest_push": rfc3339(share.newest),
        "held": share.held,
    }


def _image(image: Image) -> dict[str, Any]:
    return {
        "repository": image.repository,
        "digest": image.digest,
        "tags": list(image.tags),
        "bytes": image.bytes,
        "pushed": rfc3339(image.pushed),
    }


def _blob(blob: Blob) -> dict[str, Any]:
    return {
        "digest": blob.digest,
        "bytes": blob.bytes,
        "modified": rfc3339(blob.modified),
        "repositories": blob.repositories,
        "repository": blob.repository,
        "fate": blob.fate,
    }


def usage_json(report: UsageReport, error: str | None = None) -> str:
    """The document as text: ASCII, so that no locale can break it.

    :param error: why the page that was asked for too could not be written.
    """
    ended = {"error": error, "exit_code": 0 if error is None else 1}
    return json.dumps({**usage_document(report), **ended}, indent=2)


def usage_csv(report: UsageReport) -> Iterator[str]:
    """A line for each repository, below one with the names of the columns (RFC 4180)."""
    depth = report.usage.group_depth
    columns = ("name", "group", *_COLUMNS)
    yield _line(columns)
    for share in report.usage.repositories:
        fields = _share(share)
        fields["held"] = int(share.held)
        fields["name"] = cell(share.name)
        fields["group"] = cell(group_of(share.name, depth))
        yield _line(["" if fields[name] is None else fields[name] for name in columns])


_COLUMNS = (
    "tags", "manifests", "untagged", "blobs", "logical_bytes", "unique_bytes", "shared_bytes",
    "reclaimable_bytes", "reclaimable_untagged_bytes", "uploads", "upload_bytes",
    "oldest_push", "newest_push", "held",
)  # fmt: skip


def _line(values: Sequence[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()
