"""The S3 driver against moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from drivers.conformance import DriverConformance, paths_of
from registry_drivers.base import Storage
from registry_drivers.errors import StorageError
from registry_drivers.s3 import S3Storage, open_s3
from servers.moto import S3Server, moto


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder: Path = tmp_path_factory.mktemp("moto")
    with moto(folder) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: S3Server) -> Iterator[S3Storage]:
    with closing(open_s3(server.parameters(server.bucket()))) as storage:
        yield storage


@pytest.fixture(scope="module")
def below(server: S3Server) -> Iterator[S3Storage]:
    parameters = server.parameters(server.bucket(), rootdirectory="/some/folder/")
    with closing(open_s3(parameters)) as storage:
        yield storage


def test_a_large_object_is_copied_in_parts(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_drivers.s3.COPY_LIMIT", 6 << 20)
    monkeypatch.setattr("registry_drivers.s3.COPY_PART", 5 << 20)
    data = b"0123456789abcdef" * ((12 << 20) // 16)
    bucket = server.bucket()
    with closing(open_s3(server.parameters(bucket, storageclass="standard_ia"))) as storage:
        storage.write("a", data)
        storage.write("small", b"small")
        storage.move("a", "b")
        storage.move("small", "c")
        assert paths_of(storage.list("")) == ["b", "c"]
        assert storage.read("b") == data
    large = server.client.head_object(Bucket=bucket, Key="b")
    assert large["ETag"].endswith('-3"')
    assert large["ContentType"] == "application/octet-stream"
    small = server.client.head_object(Bucket=bucket, Key="c")
    assert large["StorageClass"] == small["StorageClass"] == "STANDARD_IA"


def test_a_copy_in_parts_that_fails_leaves_the_original_and_no_parts(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_drivers.s3.COPY_LIMIT", 1)
    # moto's smallest part is of five megabytes, as Amazon's is.
    monkeypatch.setattr("registry_drivers.s3.COPY_PART", 2)
    bucket = server.bucket()
    with closing(open_s3(server.parameters(bucket))) as storage:
        storage.write("a", b"12345")
        with pytest.raises(StorageError, match="EntityTooSmall"):
            storage.move("a", "b")
        assert paths_of(storage.list("")) == ["a"]
    assert "Uploads" not in server.client.list_multipart_uploads(Bucket=bucket)


class TestS3(DriverConformance):
    tells_gone = False

    @pytest.fixture
    def storage(self, whole: S3Storage) -> Storage:
        return whole


class TestS3BelowAFolder(DriverConformance):
    tells_gone = False
    many = 30

    @pytest.fixture
    def storage(self, below: S3Storage) -> Storage:
        return below
