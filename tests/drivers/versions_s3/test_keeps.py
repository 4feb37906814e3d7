"""What a bucket says that it keeps after a delete: versions, locks, what cannot be read."""

from __future__ import annotations

import pytest

from drivers.versions_s3.support import opened, versioned_bucket
from registry_drivers.errors import NotFound, StorageError, Unavailable
from registry_drivers.factory import versions_of
from registry_drivers.memory import MemoryStorage
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_versions import S3Versions
from registry_drivers.versions import Versioned
from servers.fault_proxy import Answer, FaultProxy
from servers.moto import S3Server


def test_a_bucket_is_versioned_and_memory_is_not(storage: S3Storage) -> None:
    assert isinstance(versions_of(storage), Versioned)
    assert versions_of(MemoryStorage()) is None


class TestKeeps:
    def codes(self, server: S3Server, bucket: str) -> list[str]:
        with opened(server, bucket) as storage:
            return [keep.code for keep in S3Versions(storage).keeps()]

    def test_a_plain_bucket_keeps_nothing(self, server: S3Server) -> None:
        assert self.codes(server, server.bucket()) == []

    def test_versioning_is_told(self, server: S3Server) -> None:
        assert self.codes(server, versioned_bucket(server)) == ["versioning"]

    def test_suspended_versioning_is_told(self, server: S3Server) -> None:
        bucket = versioned_bucket(server)
        server.client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}
        )
        assert self.codes(server, bucket) == ["versioning-suspended"]

    def test_an_object_lock_is_told_with_its_default_retention(self, server: S3Server) -> None:
        bucket = server.bucket(ObjectLockEnabledForBucket=True)
        assert self.codes(server, bucket) == ["versioning", "object-lock"]
        server.client.put_object_lock_configuration(
            Bucket=bucket,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}},
            },
        )
        with opened(server, bucket) as storage:
            (_, lock) = S3Versions(storage).keeps()
        assert "30 days (compliance)" in lock.message

    def test_mfa_delete_is_told(self, storage: S3Storage, proxy: FaultProxy) -> None:
        proxy.fail(
            Answer(
                200,
                b"<VersioningConfiguration><Status>Enabled</Status>"
                b"<MfaDelete>Enabled</MfaDelete></VersioningConfiguration>",
            )
        )
        assert [keep.code for keep in S3Versions(storage).keeps()] == ["versioning", "mfa-delete"]

    def test_a_setting_that_may_not_be_read_is_unknown(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        proxy.always(Answer(403, b"<Error><Code>AccessDenied</Code></Error>"))
        versioning, lock = S3Versions(storage).keeps()
        assert versioning.code == lock.code == "unknown"
        assert versioning.listed
        assert not lock.listed
        assert "AccessDenied" in versioning.message
        assert len(proxy.requests) == 2

    @pytest.mark.parametrize("status", [400, 405, 501])
    def test_a_store_that_knows_no_such_setting_keeps_nothing(
        self, storage: S3Storage, proxy: FaultProxy, status: int
    ) -> None:
        proxy.always(Answer(status, b"<Error><Code>NotImplemented</Code></Error>"))
        assert S3Versions(storage).keeps() == ()

    def test_a_fault_is_no_answer(self, storage: S3Storage, proxy: FaultProxy) -> None:
        proxy.fail(Answer(503))
        assert [keep.code for keep in S3Versions(storage).keeps()] == ["versioning"]
        assert storage.requests.retries == 1
        proxy.always(Answer(503))
        with pytest.raises(Unavailable):
            S3Versions(storage).keeps()

    @pytest.mark.parametrize(
        "answer",
        [Answer(200), Answer(200, b"<html>welcome</html>"), Answer(404, b"<html>no</html>")],
        ids=["empty", "a page", "a proxy's 404"],
    )
    def test_what_is_no_setting_does_not_say_off(
        self, storage: S3Storage, proxy: FaultProxy, answer: Answer
    ) -> None:
        proxy.always(answer)
        keeps = [(keep.code, keep.listed) for keep in S3Versions(storage).keeps()]
        assert keeps == [("unknown", True), ("unknown", False)]
        assert not S3Versions(storage).keeps_for(1)

    def test_an_error_in_an_answer_of_status_200_is_no_setting(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        error = Answer(200, b"<?xml version='1.0'?>\n<Error><Code>InternalError</Code></Error>")
        proxy.fail(error)
        assert [keep.code for keep in S3Versions(storage).keeps()] == ["versioning"]
        assert storage.requests.retries == 1

    @pytest.mark.parametrize("code", ["ExpiredToken", "AuthorizationHeaderMalformed"])
    def test_credentials_that_are_refused_are_no_setting(
        self, storage: S3Storage, proxy: FaultProxy, code: str
    ) -> None:
        proxy.always(Answer(400, f"<Error><Code>{code}</Code></Error>".encode()))
        with pytest.raises(StorageError, match=code):
            S3Versions(storage).keeps()

    def test_a_missing_bucket_is_no_answer(self, server: S3Server) -> None:
        with opened(server, "does-not-exist") as storage, pytest.raises(NotFound):
            S3Versions(storage).keeps()
