"""What stores that speak like S3 keep after a delete: SeaweedFS, and JuiceFS' gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import pytest

from drivers.conformance import paths_of
from registry_drivers.base import Deletion
from registry_drivers.s3 import S3Storage, open_s3
from registry_drivers.s3_versions import S3Versions
from servers.juicefs import juicefs
from servers.moto import S3Server
from servers.seaweedfs import seaweedfs

SERVERS = {"seaweedfs": seaweedfs, "juicefs": juicefs}
REPOSITORIES = "docker/registry/v2/repositories/"
LATER = datetime.now(UTC).timestamp() + 3600


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(start(tmp_path_factory.mktemp(name)))
            for name, start in SERVERS.items()
        }


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, servers: dict[str, S3Server]) -> S3Server:
    return servers[request.param]


@pytest.fixture
def storage(server: S3Server) -> Iterator[S3Storage]:
    with closing(open_s3(server.parameters(server.bucket()))) as storage:
        yield storage


def test_a_plain_bucket_keeps_nothing(storage: S3Storage) -> None:
    versions = S3Versions(storage)
    assert versions.keeps() == ()
    storage.write("a/1", b"1")
    list(storage.delete(["a/1"]))
    assert list(versions.leftovers("")) == []


def test_an_upload_in_parts_that_nobody_finished_is_found_and_aborted(
    server: S3Server, storage: S3Storage
) -> None:
    key = f"{REPOSITORIES}app/_uploads/1/data"
    client, bucket = server.client, storage.bucket
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"1234567")
    versions = S3Versions(storage)
    (found,) = versions.abandoned_uploads(REPOSITORIES, before=LATER)
    assert (found.path, found.upload_id, found.bytes) == (key, upload, 7)
    assert list(versions.abandoned_uploads(REPOSITORIES, before=found.initiated)) == []
    assert [outcome.result for outcome in versions.abort([found])] == [Deletion.DELETED]
    assert list(versions.abandoned_uploads(REPOSITORIES, before=LATER)) == []


def test_seaweedfs_keeps_versions_that_are_told_and_purged(
    servers: dict[str, S3Server],
) -> None:
    server = servers["seaweedfs"]
    bucket = server.bucket()
    server.client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    with closing(open_s3(server.parameters(bucket))) as storage:
        versions = S3Versions(storage)
        assert [keep.code for keep in versions.keeps()] == ["versioning"]
        # "a-b/…" comes before "a/…" in the order of bytes, and not in SeaweedFS'.
        for path in ("a/1", "a/1", "a/2", "a-b/1"):
            storage.write(path, b"12345")
        list(storage.delete(["a/1", "a-b/1"]))
        left = {found.path: (found.versions, found.bytes) for found in versions.leftovers("")}
        assert left == {"a/1": (3, 10), "a-b/1": (2, 5)}
        paths = ["a/1", "a/2", "a-b/1", "a/none"]
        results = {o.path: o.result for o in versions.delete_versions(paths)}
        assert results == {
            "a/1": Deletion.DELETED,
            "a/2": Deletion.FAILED,  # it has a current object
            "a-b/1": Deletion.DELETED,
            "a/none": Deletion.GONE_ALREADY,
        }
        assert list(versions.leftovers("")) == []
        assert paths_of(storage.list("")) == ["a/2"]


def test_seaweedfs_tells_of_an_object_lock(servers: dict[str, S3Server]) -> None:
    server = servers["seaweedfs"]
    bucket = server.bucket(ObjectLockEnabledForBucket=True)
    with closing(open_s3(server.parameters(bucket))) as storage:
        codes = {keep.code for keep in S3Versions(storage).keeps()}
    assert codes == {"versioning", "object-lock"}
