"""Versioned buckets on moto's server: what is deleted in them, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from registry_drivers.base import Deletion, Outcome
from registry_drivers.retry import Retry
from registry_drivers.s3 import S3Storage, open_s3
from registry_drivers.s3_versions import S3Versions
from registry_drivers.versions import Leftover
from servers.fault_proxy import FaultProxy
from servers.moto import S3Server


def versioned_bucket(server: S3Server, status: str = "Enabled") -> str:
    bucket = server.bucket()
    server.client.put_bucket_versioning(
        Bucket=bucket,
        VersioningConfiguration={"Status": status},  # type: ignore[typeddict-item]
    )
    return bucket


@contextmanager
def opened(
    server: S3Server, bucket: str, proxy: FaultProxy | None = None, **parameters: Any
) -> Iterator[S3Storage]:
    if proxy is not None:
        proxy.reset()
        parameters["regionendpoint"] = proxy.url
    with closing(open_s3(server.parameters(bucket, **parameters))) as storage:
        storage.retry = Retry(times=3, sleep=lambda _: None)
        yield storage


def delete(storage: S3Storage, *paths: str) -> None:
    assert all(outcome.result is Deletion.DELETED for outcome in storage.delete(paths))


def purge(storage: S3Storage, *paths: str) -> dict[str, Outcome]:
    return {outcome.path: outcome for outcome in S3Versions(storage).delete_versions(paths)}


def leftovers(storage: S3Storage, prefix: str = "") -> dict[str, Leftover]:
    return {left.path: left for left in S3Versions(storage).leftovers(prefix)}


def history(server: S3Server, bucket: str) -> dict[str, list[str]]:
    """The ids of all versions and delete markers by key."""
    found: dict[str, list[str]] = {}
    answer: Any = server.client.list_object_versions(Bucket=bucket)
    for row in [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]:
        found.setdefault(row["Key"], []).append(row["VersionId"])
    return found
