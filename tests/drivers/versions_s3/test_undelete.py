"""What was deleted in a versioned bucket is brought back."""

from __future__ import annotations

from typing import Any

import pytest

from drivers.conformance import paths_of
from drivers.versions_s3.support import delete, leftovers, opened, purge, versioned_bucket
from registry_drivers.base import Deletion
from registry_drivers.errors import NotFound, TooLarge
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_versions import S3Versions
from servers.fault_proxy import Answer, FaultProxy
from servers.moto import S3Server


class TestUndelete:
    def undelete(self, storage: S3Storage, *paths: str) -> dict[str, Deletion]:
        outcomes = S3Versions(storage).undelete(paths)
        return {outcome.path: outcome.result for outcome in outcomes}

    def test_what_was_deleted_is_current_again(self, storage: S3Storage) -> None:
        for path in ("a/1", "a/2", "b"):
            storage.write(path, path.encode())
        delete(storage, "a/1", "b")
        assert self.undelete(storage, "a/1", "b") == dict.fromkeys(("a/1", "b"), Deletion.MOVED)
        assert {path: storage.read(path) for path in paths_of(storage.list(""))} == {
            path: path.encode() for path in ("a/1", "a/2", "b")
        }
        assert leftovers(storage) == {}

    def test_what_was_deleted_twice_has_two_markers(self, storage: S3Storage) -> None:
        storage.write("a", b"content")
        delete(storage, "a")
        delete(storage, "a")
        assert self.undelete(storage, "a") == {"a": Deletion.MOVED}
        assert storage.read("a") == b"content"

    def test_what_is_there_stays_as_it_is(self, storage: S3Storage) -> None:
        storage.write("a", b"old")
        delete(storage, "a")
        storage.write("a", b"new")
        assert self.undelete(storage, "a") == {"a": Deletion.GONE_ALREADY}
        assert storage.read("a") == b"new"

    def test_where_no_version_is_left_there_is_nothing_to_bring_back(
        self, storage: S3Storage
    ) -> None:
        storage.write("a", b"content")
        delete(storage, "a")
        purge(storage, "a")
        # A delete of nothing leaves a marker too.
        delete(storage, "b")
        gone = dict.fromkeys(("a", "b", "never"), Deletion.GONE_ALREADY)
        assert self.undelete(storage, "a", "b", "never") == gone
        assert paths_of(storage.list("")) == []

    def test_a_hidden_object_can_be_looked_at(self, storage: S3Storage) -> None:
        storage.write("a", b"old")
        storage.write("a", b"newer")
        with pytest.raises(NotFound):
            S3Versions(storage).peek("a")
        delete(storage, "a")
        assert S3Versions(storage).peek("a") == b"newer"
        with pytest.raises(TooLarge):
            S3Versions(storage).peek("a", limit=4)
        with pytest.raises(NotFound):
            S3Versions(storage).peek("never")

    def keeps(self, server: S3Server, bucket: str, seconds: float) -> bool:
        with opened(server, bucket) as storage:
            return S3Versions(storage).keeps_for(seconds)

    def test_a_bucket_without_versions_keeps_nothing(self, server: S3Server) -> None:
        assert not self.keeps(server, server.bucket(), 1)
        assert not self.keeps(server, versioned_bucket(server, "Suspended"), 1)
        assert self.keeps(server, versioned_bucket(server), 1e9)

    def test_a_rule_that_deletes_old_versions_ends_what_a_bucket_keeps(
        self, server: S3Server
    ) -> None:
        bucket = versioned_bucket(server)
        rules: Any = [
            {
                "ID": "old",
                "Status": "Enabled",
                "Filter": {"Prefix": "x/"},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
            },
            {
                "ID": "off",
                "Status": "Disabled",
                "Filter": {"Prefix": ""},
                "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
            },
        ]
        server.client.put_bucket_lifecycle_configuration(
            Bucket=bucket, LifecycleConfiguration={"Rules": rules}
        )
        assert self.keeps(server, bucket, 29 * 86400)
        assert not self.keeps(server, bucket, 31 * 86400)

    def test_a_setting_that_may_not_be_read_keeps_nothing(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        assert S3Versions(storage).keeps_for(1)
        for setting in ("versioning", "lifecycle"):
            proxy.fail(Answer(403), where=lambda request: setting in request.path)  # noqa: B023  # asked in this round only
            assert not S3Versions(storage).keeps_for(1)
