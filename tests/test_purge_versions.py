"""Collecting a bucket that keeps what is deleted, on moto's server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from registry_gc.runs.past import read_run
from registry_tree import V2, blob_path, sha256
from servers.moto import S3Server, moto
from stores import Place, a_bit_of_everything, collect, keys_of, store

GONE = b"deleted by somebody, years ago"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


def a_place(server: S3Server, **options: Any) -> Place:
    """A registry in a bucket with versions; some of what was in it is deleted."""
    bucket = server.bucket(**options)
    server.client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    place = Place("s3", server.parameters(bucket))
    gone = {blob_path(sha256(GONE)): GONE, f"{V2}/repositories/gone/_uploads/1/data": b"12345"}
    store(place, {**a_bit_of_everything(), **gone})
    for key in gone:
        server.client.delete_object(Bucket=bucket, Key=key)
    return place


def versions(server: S3Server, place: Place) -> dict[str, int]:
    """How many versions and delete markers each key has."""
    bucket = place.parameters["bucket"]
    answer: Any = server.client.list_object_versions(Bucket=bucket)
    found: dict[str, int] = {}
    for row in [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]:
        found[row["Key"]] = found.get(row["Key"], 0) + 1
    return found


def stored_bytes(server: S3Server, place: Place) -> int:
    """What all versions of all objects take, but for the lock's."""
    answer: Any = server.client.list_object_versions(Bucket=place.parameters["bucket"])
    return sum(row["Size"] for row in answer["Versions"] if "/registry-gc/" not in row["Key"])


def begin_upload(server: S3Server, place: Place, key: str) -> None:
    where = {"Bucket": place.parameters["bucket"], "Key": key}
    upload = server.client.create_multipart_upload(**where)["UploadId"]
    server.client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"1234567")


def uploads(server: S3Server, place: Place) -> list[str]:
    answer: Any = server.client.list_multipart_uploads(Bucket=place.parameters["bucket"])
    return [row["Key"] for row in answer.get("Uploads", ())]


def test_a_plain_run_says_what_stays_and_purges_nothing(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    before = versions(server, place)
    result = collect(place, tmp_path, "-m")
    told = result.json["versions"]
    assert [keep["code"] for keep in told["keeps"]] == ["versioning"]
    assert (told["objects"], told["bytes"]) == (2, len(GONE) + 5)
    assert told["eligible"] == told["deleted"] == 0
    assert "versioning is on" in result.errors
    after = versions(server, place)
    assert all(after[key] >= count for key, count in before.items())


def test_a_purge_leaves_nothing_but_what_is_current(server: S3Server, tmp_path: Path) -> None:
    place, plain = a_place(server), a_place(server)
    collect(plain, tmp_path, "-m")
    result = collect(place, tmp_path, "-m", "--purge-versions")
    current = keys_of(place)
    assert current == keys_of(plain)
    assert result.json["versions"]["deleted"] == result.json["versions"]["eligible"]
    left = versions(server, place)
    # The lock of this run is too young to go.
    assert {key for key in left if not key.startswith("docker/registry/registry-gc/")} == current
    assert all(left[key] == 1 for key in current)
    again = collect(place, tmp_path, "-m", "--purge-versions")
    assert again.json["versions"]["deleted_bytes"] >= 0
    assert keys_of(place) == current


def test_all_bytes_that_are_gone_are_counted_once(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    # Pushed a second time, so that what is dead has an older version too.
    store(place, a_bit_of_everything())
    before = stored_bytes(server, place)
    result = collect(place, tmp_path, "-m", "--purge-versions")
    told = result.json
    freed = [told[kind]["deleted_bytes"] for kind in ("versions", "blobs", "uploads")]
    assert all(freed)
    assert sum(freed) == before - stored_bytes(server, place)
    assert told["versions"]["deleted_bytes"] == told["versions"]["eligible_bytes"]


def test_a_dry_run_tells_and_keeps(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    begin_upload(server, place, f"{V2}/repositories/app/_uploads/9/data")
    before = versions(server, place)
    report = collect(place, tmp_path, "-m", "-d", "--purge-versions").json
    assert (report["versions"]["objects"], report["versions"]["bytes"]) == (2, len(GONE) + 5)
    assert report["versions"]["deleted"] == 0
    assert report["multipart_uploads"]["eligible"] == 1
    assert versions(server, place) == before
    assert len(uploads(server, place)) == 1


def test_a_dry_run_foretells_what_a_run_deletes(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    # Pushed a second time, so that what is dead has an older version too.
    store(place, a_bit_of_everything())
    plain = collect(place, tmp_path, "-m", "-d").json
    told = collect(place, tmp_path, "-m", "-d", "--purge-versions").json
    done = collect(place, tmp_path, "-m", "--purge-versions").json
    kinds = ("manifests", "layer_links", "blobs", "uploads", "versions")
    for key in ("eligible", "eligible_bytes"):
        assert [told[kind].get(key) for kind in kinds] == [done[kind].get(key) for kind in kinds]
    assert told["versions"]["eligible_bytes"] > told["versions"]["bytes"] == len(GONE) + 5
    # It is the same listing.
    assert told["requests"] == plain["requests"]


def test_what_is_younger_than_the_grace_period_stays(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    report = collect(place, tmp_path, "--purge-versions", "--grace", "30d").json
    assert report["versions"]["objects"] == 2
    assert report["versions"]["eligible"] == 0


def test_a_live_blob_that_was_deleted_can_still_be_recovered(
    server: S3Server, tmp_path: Path
) -> None:
    place = a_place(server)
    live = blob_path(sha256(b"shared by many"))
    server.client.delete_object(Bucket=place.parameters["bucket"], Key=live)
    result = collect(place, tmp_path, "-m", "--purge-versions")
    assert result.json["versions"]["recoverable"] == [live]
    assert versions(server, place)[live] == 2
    assert live in result.errors


def test_a_locked_version_is_a_failure_and_exit_code_3(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server, ObjectLockEnabledForBucket=True)
    dead = f"{V2}/repositories/gone/_uploads/2/data"
    where = {"Bucket": place.parameters["bucket"], "Key": dead}
    server.client.put_object(
        **where,
        Body=b"1",
        ChecksumAlgorithm="SHA256",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(days=1),
    )
    server.client.delete_object(**where)
    result = collect(place, tmp_path, "-m", "--purge-versions")
    assert result.exit_code == 3
    assert [failed["path"] for failed in result.json["failed"]] == [dead]
    assert "object lock" in json.dumps(result.json["failed"])


def test_what_has_a_locked_version_is_deleted_and_frees_nothing(
    server: S3Server, tmp_path: Path
) -> None:
    place = a_place(server, ObjectLockEnabledForBucket=True)
    data = b"dead, and locked for a day"
    dead = blob_path(sha256(data))
    where = {"Bucket": place.parameters["bucket"], "Key": dead}
    until = datetime.now(UTC) + timedelta(days=1)
    server.client.put_object(
        **where,
        Body=data,
        ChecksumAlgorithm="SHA256",
        ObjectLockMode="COMPLIANCE",
        ObjectLockRetainUntilDate=until,
    )
    before = stored_bytes(server, place)
    file, run_file = tmp_path / "metrics", tmp_path / "run"
    files = (f"--metrics-file={file}", f"--run-file={run_file}")
    told = collect(place, tmp_path, "-m", "--purge-versions", *files).json
    assert [failed["path"] for failed in told["failed"]] == [dead]
    assert told["blobs"]["deleted"] == told["blobs"]["eligible"]
    assert told["blobs"]["deleted_bytes"] == told["blobs"]["eligible_bytes"] - len(data)
    freed = [told[kind]["deleted_bytes"] for kind in ("versions", "blobs", "uploads")]
    assert sum(freed) == before - stored_bytes(server, place)
    (size,) = re.findall(r'registry_gc_bytes.*"versions".*"failed".* (.*)', file.read_text())
    assert float(size) == len(data)
    assert read_run(str(run_file)).deleted_bytes == sum(freed)


def test_old_uploads_in_parts_are_aborted_and_counted(server: S3Server, tmp_path: Path) -> None:
    place = a_place(server)
    old = f"{V2}/repositories/app/_uploads/9/data"
    other = f"{V2}/repositories/app/_layers/data"
    for key in (old, other):
        begin_upload(server, place, key)
    report = collect(place, tmp_path, "--upload-age", "300d").json
    assert report["multipart_uploads"]["eligible"] == 0
    report = collect(place, tmp_path).json
    assert report["multipart_uploads"] == {
        "eligible": 1,
        "eligible_bytes": 7,
        "deleted": 1,
        "deleted_bytes": 7,
    }
    assert uploads(server, place) == [other]
