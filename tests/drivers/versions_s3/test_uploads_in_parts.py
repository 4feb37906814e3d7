"""Uploads in parts that nobody finished: told with their bytes, and aborted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from drivers.versions_s3.support import opened
from registry_drivers.base import Deletion
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_versions import S3Versions
from registry_drivers.versions import MultipartUpload
from servers.fault_proxy import Answer, FaultProxy
from servers.moto import S3Server

LATER = datetime.now(UTC).timestamp() + 3600


class TestUploadsInParts:
    def begin(self, server: S3Server, bucket: str, key: str, *parts: bytes) -> str:
        client = server.client
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        for number, data in enumerate(parts, 1):
            client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
            )
        return upload

    def found(
        self, storage: S3Storage, prefix: str = "", before: float = LATER
    ) -> list[MultipartUpload]:
        return list(S3Versions(storage).abandoned_uploads(prefix, before=before))

    def test_they_are_told_with_their_bytes(self, server: S3Server) -> None:
        with opened(server, server.bucket(), rootdirectory="/root") as storage:
            self.begin(server, storage.bucket, "root/r/_uploads/1/data", b"12", b"345")
            self.begin(server, storage.bucket, "root/x/_uploads/2/data")
            self.begin(server, storage.bucket, "elsewhere/r/_uploads/3/data")
            (one,) = self.found(storage, "r/")
            assert (one.path, one.bytes) == ("r/_uploads/1/data", 5)
            assert [upload.bytes for upload in self.found(storage)] == [5, 0]

    def test_one_with_a_young_part_is_not_abandoned(self, server: S3Server) -> None:
        # All uploads of moto's were begun in 2010; parts have their time.
        with opened(server, server.bucket()) as storage:
            self.begin(server, storage.bucket, "r/1", b"12")
            self.begin(server, storage.bucket, "r/2")
            hour_ago = storage.now() - 3600
            assert [upload.path for upload in self.found(storage, before=hour_ago)] == ["r/2"]

    def test_an_aborted_upload_is_gone(self, server: S3Server) -> None:
        with opened(server, server.bucket()) as storage:
            self.begin(server, storage.bucket, "r/1", b"12")
            uploads = self.found(storage)
            versions = S3Versions(storage)
            assert [o.result for o in versions.abort(uploads)] == [Deletion.DELETED]
            assert [o.result for o in versions.abort(uploads)] == [Deletion.GONE_ALREADY]
            assert self.found(storage) == []

    @pytest.mark.parametrize("status", [405, 501])
    def test_a_store_that_knows_of_none_has_none(
        self, storage: S3Storage, proxy: FaultProxy, status: int
    ) -> None:
        proxy.always(Answer(status, b"<Error><Code>NotImplemented</Code></Error>"))
        assert self.found(storage) == []

    @pytest.mark.parametrize("key", ["a//b/_uploads/u/data", "a/_uploads/u/"])
    def test_one_of_a_key_that_is_no_path_is_nobodys(self, server: S3Server, key: str) -> None:
        bucket = server.bucket()
        server.client.create_multipart_upload(Bucket=bucket, Key=key)
        server.client.create_multipart_upload(Bucket=bucket, Key="a/_uploads/u/data")
        with opened(server, bucket) as storage:
            (upload,) = self.found(storage)
            assert upload.path == "a/_uploads/u/data"
            (outcome,) = S3Versions(storage).abort([replace(upload, path=key)])
            assert outcome.result is Deletion.FAILED
            assert outcome.path == key

    def test_an_error_in_an_answer_of_status_200_aborts_nothing(
        self, server: S3Server, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        server.client.create_multipart_upload(Bucket=storage.bucket, Key="a/_uploads/u/data")
        uploads = self.found(storage)
        error = Answer(200, b"<Error><Code>InternalError</Code></Error>")
        proxy.rule = lambda request: error if request.method == "DELETE" else None
        assert [o.result for o in S3Versions(storage).abort(uploads)] == [Deletion.FAILED]
        assert len(self.found(storage)) == 1

    def test_one_that_may_not_be_aborted_fails(
        self, server: S3Server, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        self.begin(server, storage.bucket, "r/1")
        uploads = self.found(storage)
        proxy.always(Answer(403, b"<Error><Code>AccessDenied</Code></Error>"))
        (outcome,) = S3Versions(storage).abort(uploads)
        assert outcome.result is Deletion.FAILED
        assert "AccessDenied" in outcome.error

    def test_pages_follow_one_another(self, storage: S3Storage, proxy: FaultProxy) -> None:
        def page(number: int, truncated: str) -> Answer:
            return Answer(
                200,
                b"<ListMultipartUploadsResult><EncodingType>url</EncodingType>"
                b"<NextKeyMarker>r%%2F%d+x</NextKeyMarker><NextUploadIdMarker>u%d"
                b"</NextUploadIdMarker><IsTruncated>%b</IsTruncated><Upload>"
                b"<Key>r%%2F%d+x</Key><UploadId>u%d</UploadId>"
                b"<Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>"
                b"</ListMultipartUploadsResult>"
                % (number, number, truncated.encode(), number, number),
            )

        part = (
            b"<ListPartsResult><IsTruncated>false</IsTruncated><Part><LastModified>"
            b"2020-01-02T00:00:00.000Z</LastModified><Size>7</Size></Part></ListPartsResult>"
        )
        missing = Answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
        proxy.fail(page(1, "true"), Answer(200, part), page(2, "false"), missing)
        (one,) = self.found(storage)
        assert one.path == "r/1 x"
        assert one.bytes == 7
        assert one.youngest - one.initiated == 86400
        assert "key-marker=r%2F1%20x" in proxy.requests[2].path
        assert "upload-id-marker=u1" in proxy.requests[2].path
