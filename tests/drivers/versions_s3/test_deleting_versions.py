"""Keys that were deleted and have versions: told, deleted for good, never with a current object."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.conformance import ODD_NAMES, paths_of
from drivers.versions_s3.support import delete, history, leftovers, opened, purge, versioned_bucket
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import StorageError, Unavailable
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_versions import S3Versions
from servers.fault_proxy import Answer, Broken, FaultProxy
from servers.moto import S3Server


class TestLeftovers:
    def test_deleted_keys_are_told_with_versions_and_bytes(self, storage: S3Storage) -> None:
        for data in (b"x", b"four"):
            storage.write("a/gone", data)
        storage.write("a/here", b"old")
        storage.write("a/here", b"new")
        storage.write("b/gone", b"seven77")
        delete(storage, "a/gone", "b/gone")
        found = leftovers(storage, "a/")
        assert list(found) == ["a/gone"]
        assert (found["a/gone"].versions, found["a/gone"].bytes) == (3, 5)
        assert abs(found["a/gone"].youngest - storage.now()) < 60
        assert sorted(leftovers(storage)) == ["a/gone", "b/gone"]

    def test_a_key_that_came_back_is_no_leftover(self, storage: S3Storage) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        storage.write("a", b"2")
        assert leftovers(storage) == {}
        (left,) = S3Versions(storage).leftovers_and_current("")
        assert (left.path, left.current, left.versions, left.bytes) == ("a", True, 3, 2)

    @pytest.mark.parametrize("page_size", [1, 2, 3])
    def test_a_key_may_have_versions_on_several_pages(
        self, storage: S3Storage, page_size: int
    ) -> None:
        for key in ("a/1", "a/2", "a/3"):
            for _ in range(3):
                storage.write(key, b"12")
        delete(storage, "a/1", "a/3")
        storage.page_size = page_size
        found = leftovers(storage)
        assert {path: (left.versions, left.bytes) for path, left in found.items()} == {
            "a/1": (4, 6),
            "a/3": (4, 6),
        }

    def test_a_listing_that_was_cut_hides_no_current_object(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        # The newest version was on a page that a store left out.
        proxy.fail(
            Answer(
                200,
                b"<ListVersionsResult><IsTruncated>false</IsTruncated><Version><Key>a</Key>"
                b"<VersionId>1</VersionId><IsLatest>false</IsLatest>"
                b"<LastModified>2024-01-01T00:00:00Z</LastModified><Size>1</Size></Version>"
                b"</ListVersionsResult>",
            )
        )
        assert leftovers(storage) == {}

    def test_a_page_that_is_no_whole_listing_is_asked_for_again(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        proxy.fail(Answer(503), Broken(), Answer(200, b"<ListVersionsResult>"))
        assert list(leftovers(storage)) == ["a"]
        assert storage.requests.retries == 3

    def test_odd_names_and_a_folder_survive(self, server: S3Server) -> None:
        with opened(server, versioned_bucket(server), rootdirectory="/some/folder") as storage:
            for name in ODD_NAMES:
                storage.write(name, b"1")
            delete(storage, *ODD_NAMES)
            assert sorted(leftovers(storage)) == sorted(ODD_NAMES)
            assert all(o.result is Deletion.DELETED for o in purge(storage, *ODD_NAMES).values())
            assert leftovers(storage) == {}
            assert history(server, storage.bucket) == {}


class TestDeletingVersions:
    def test_nothing_is_left_of_a_deleted_key(self, server: S3Server, storage: S3Storage) -> None:
        for key in ("a/1", "a/2"):
            storage.write(key, b"1")
            delete(storage, key)
            storage.write(key, b"2")
            delete(storage, key)
        storage.write("a/3", b"1")
        before = history(server, storage.bucket)
        outcomes = purge(storage, "a/2", "a/1")
        assert [outcome.result for outcome in outcomes.values()] == [Deletion.DELETED] * 2
        assert history(server, storage.bucket) == {"a/3": before["a/3"]}

    def test_a_current_object_is_never_touched(self, server: S3Server, storage: S3Storage) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        storage.write("a", b"2")
        before = history(server, storage.bucket)
        outcome = purge(storage, "a")["a"]
        assert outcome.result is Deletion.FAILED
        assert "current object" in outcome.error
        assert history(server, storage.bucket) == before

    def test_what_is_not_there_is_gone_already(self, storage: S3Storage) -> None:
        storage.write("a/bc", b"1")
        outcomes = purge(storage, "a/b", "x", "a/../b")
        assert outcomes["a/b"].result is Deletion.GONE_ALREADY
        assert outcomes["x"].result is Deletion.GONE_ALREADY
        assert outcomes["a/../b"].result is Deletion.FAILED

    def test_a_locked_version_fails_its_key_and_does_not_come_back(self, server: S3Server) -> None:
        bucket = server.bucket(ObjectLockEnabledForBucket=True)
        with opened(server, bucket) as storage:
            storage.write("a/free", b"1")
            storage.write("a/locked", b"older")
            server.client.put_object(
                Bucket=bucket,
                Key="a/locked",
                Body=b"1",
                ChecksumAlgorithm="SHA256",
                ObjectLockMode="COMPLIANCE",
                ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(days=1),
            )
            delete(storage, "a/free", "a/locked")
            outcomes = purge(storage, "a/free", "a/locked")
            assert outcomes["a/free"].result is Deletion.DELETED
            assert outcomes["a/locked"].result is Deletion.FAILED
            assert "object lock" in outcomes["a/locked"].error
            assert paths_of(storage.list("")) == []
            assert list(leftovers(storage)) == ["a/locked"]

    def test_a_bucket_that_locks_by_default_can_be_written_to(self, server: S3Server) -> None:
        bucket = server.bucket(ObjectLockEnabledForBucket=True)
        server.client.put_object_lock_configuration(
            Bucket=bucket,
            ObjectLockConfiguration={
                "ObjectLockEnabled": "Enabled",
                "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}},
            },
        )
        with opened(server, bucket) as storage:
            storage.write("a/lock", b"1", if_absent=True)
            delete(storage, "a/lock")
            assert purge(storage, "a/lock")["a/lock"].result is Deletion.FAILED

    def test_a_denied_key_fails_with_the_stores_reason(self, server: S3Server) -> None:
        bucket = versioned_bucket(server)
        with opened(server, bucket) as storage:
            for key in ("a/1", "a/2"):
                storage.write(key, b"1")
            delete(storage, "a/1", "a/2")
            statement = {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": f"arn:aws:s3:::{bucket}/a/1",
            }
            policy = {"Version": "2012-10-17", "Statement": [statement]}
            server.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
            outcomes = purge(storage, "a/1", "a/2")
            assert outcomes["a/1"].result is Deletion.FAILED
            assert "AccessDenied" in outcomes["a/1"].error
            assert outcomes["a/2"].result is Deletion.DELETED
            assert list(leftovers(storage)) == ["a/1"]

    def test_delete_markers_go_after_what_they_hide(
        self, server: S3Server, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        answer: Any = server.client.list_object_versions(Bucket=storage.bucket)
        data, marker = (answer[rows][0]["VersionId"] for rows in ("Versions", "DeleteMarkers"))
        proxy.reset()
        purge(storage, "a")
        first, second = (request.body.decode() for request in proxy.requests if request.body)
        assert data in first
        assert marker not in first
        assert marker in second

    def test_only_the_version_that_was_throttled_is_sent_again(
        self, server: S3Server, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        storage.write("a", b"2")
        delete(storage, "a")
        answer: Any = server.client.list_object_versions(Bucket=storage.bucket)
        new, old = (row["VersionId"] for row in answer["Versions"])
        document = (
            f"<DeleteResult><Deleted><Key>a</Key><VersionId>{new}</VersionId></Deleted><Error>"
            f"<Key>a</Key><VersionId>{old}</VersionId><Code>SlowDown</Code></Error></DeleteResult>"
        )
        proxy.reset()
        proxy.fail(Answer(200, document.encode()), where=lambda r: r.method == "POST")
        assert purge(storage, "a")["a"].result is Deletion.DELETED
        _, again, _ = (request.body.decode() for request in proxy.requests if request.body)
        assert old in again
        assert new not in again
        assert storage.requests.retries == 1

    def test_keys_that_are_gone_for_good_are_told_before_the_error_that_ends_the_rest(
        self, server: S3Server, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        for name in ("a", "b"):
            storage.write(name, b"1")
        delete(storage, "a", "b")
        answer: Any = server.client.list_object_versions(Bucket=storage.bucket)
        one, two = (
            f"<Key>{row['Key']}</Key><VersionId>{row['VersionId']}</VersionId>"
            for row in answer["DeleteMarkers"]
        )
        # The versions go, and the first marker; then the credentials are too old.
        document = (
            f"<DeleteResult><Deleted>{one}</Deleted><Error>{two}<Code>SlowDown</Code></Error>"
            "</DeleteResult>"
        )
        expired = b"<Error><Code>ExpiredToken</Code></Error>"
        answers = [None, Answer(200, document.encode()), Answer(400, expired)]
        proxy.rule = lambda request: answers.pop(0) if request.method == "POST" else None
        outcomes = S3Versions(storage).delete_versions(["a", "b"])
        assert next(outcomes) == Outcome("a", Deletion.DELETED, bytes=1)
        with pytest.raises(StorageError, match="ExpiredToken"):
            next(outcomes)

    def test_without_any_answer_nobody_claims_to_know(
        self, storage: S3Storage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        proxy.rule = lambda request: Broken() if request.method == "POST" else None
        with pytest.raises(Unavailable):
            purge(storage, "a")
        proxy.rule = lambda request: Answer(403) if request.method == "POST" else None
        assert purge(storage, "a")["a"].result is Deletion.FAILED
        proxy.reset()
        assert list(leftovers(storage)) == ["a"]

    def test_wanted_keys_are_found_in_as_few_pages_as_hold_them(
        self, server: S3Server, proxy: FaultProxy
    ) -> None:
        with opened(server, versioned_bucket(server), proxy) as storage:
            names = [f"a/{number:03}" for number in range(60)]
            for name in names:
                storage.write(name, b"1")
            wanted = [*names[:10], names[30], *names[50:]]
            delete(storage, *wanted)
            storage.page_size = 10
            proxy.reset()
            assert all(o.result is Deletion.DELETED for o in purge(storage, *wanted).values())
            lists = [request for request in proxy.requests if request.method == "GET"]
            # 42 versions and markers are wanted, 39 are not; moto needs a second look where a
            # listing begins between two keys.
            assert len(lists) <= 8
            assert leftovers(storage) == {}
            assert len(history(server, storage.bucket)) == 60 - len(wanted)


KEYS = ("a", "a/b", "a/c", "ab")


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "put", "delete", "purge"]), st.sampled_from(KEYS)),
        max_size=14,
    ),
    st.integers(1, 4),
)
def test_whatever_the_history_no_key_with_a_current_object_is_touched(
    server: S3Server, operations: list[tuple[str, str]], page_size: int
) -> None:
    bucket = versioned_bucket(server)
    current: dict[str, bytes] = {}
    with opened(server, bucket) as storage:
        storage.page_size = page_size
        for number, (operation, key) in enumerate(operations):
            if operation == "put":
                current[key] = b"%d" % number
                storage.write(key, current[key])
            elif operation == "delete":
                current.pop(key, None)
                delete(storage, key)
            else:
                result = purge(storage, key)[key].result
                assert (result is Deletion.FAILED) == (key in current)
        before = history(server, bucket)
        assert sorted(leftovers(storage)) == sorted(set(before) - set(current))
        outcomes = purge(storage, *KEYS)
        for key in KEYS:
            expected = Deletion.DELETED if key in before else Deletion.GONE_ALREADY
            assert outcomes[key].result is (Deletion.FAILED if key in current else expected)
        assert history(server, bucket) == {key: before[key] for key in current}
        assert {key: storage.read(key) for key in current} == current
