"""What Google Cloud Storage keeps after a delete.

fake-gcs-server lists versions, and deletes none of them but the current one; what it does not do
is answered by a proxy, in the shapes of the JSON API's reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from drivers.conformance import ODD_NAMES, paths_of
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import Unavailable, Unsupported
from registry_drivers.factory import versions_of
from registry_drivers.gcs import GCSStorage, open_gcs
from registry_drivers.gcs_versions import GCSVersions
from registry_drivers.retry import Retry
from registry_drivers.versions import Leftover, MultipartUpload, Versioned
from servers.fake_gcs import GCSServer, fake_gcs
from servers.fault_proxy import Answer, FaultProxy, Request, fault_proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: GCSServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def storage(
    server: GCSServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GCSStorage]:
    """A folder of a versioned bucket behind the proxy."""
    proxy.reset()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
    bucket = server.bucket(versioning={"enabled": True})
    with closing(open_gcs({"bucket": bucket, "rootdirectory": "root"})) as storage:
        storage.retry = Retry(times=3, sleep=lambda _: None)
        yield storage
    proxy.reset()


def answer(**document: Any) -> Answer:
    return Answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def is_bucket(request: Request) -> bool:
    return bool(re.fullmatch(r"/storage/v1/b/[^/]+", urlsplit(request.path).path))


def settings(proxy: FaultProxy, **document: Any) -> None:
    """Let the bucket have these settings."""
    proxy.rule = lambda request: answer(**document) if is_bucket(request) else None


def leftovers(storage: GCSStorage, prefix: str = "") -> dict[str, Leftover]:
    return {left.path: left for left in GCSVersions(storage).leftovers(prefix)}


def delete(storage: GCSStorage, *paths: str) -> None:
    assert all(outcome.result is Deletion.DELETED for outcome in storage.delete(paths))


def purge(storage: GCSStorage, *paths: str) -> dict[str, Outcome]:
    return {outcome.path: outcome for outcome in GCSVersions(storage).delete_versions(paths)}


class Batches:
    """Answers batches of deletes in the server's stead: with a status for each, by its path."""

    def __init__(self, *statuses: tuple[str, int, str]) -> None:
        self.statuses = statuses
        self.deleted: list[tuple[str, str]] = []

    def __call__(self, request: Request) -> Answer | None:
        if "/batch/" not in request.path:
            return None
        body = "--x\r\n"
        asked = re.findall(r"Content-ID: <(.*?)>\r\n\r\nDELETE (\S+)", request.body.decode())
        for name, target in asked:
            place = urlsplit(target)
            self.deleted.append(
                (place.path.rpartition("/o/")[2], parse_qs(place.query)["generation"][0])
            )
            status, reason = next(
                ((status, why) for part, status, why in self.statuses if part in target), (204, "")
            )
            error = json.dumps({"error": {"errors": [{"reason": reason}], "message": "no"}})
            body += (
                f"Content-Type: application/http\r\nContent-ID: <response-{name}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n"
                f"{error if status > 204 else ''}\r\n--x\r\n"
            )
        body = body.removesuffix("--x\r\n") + "--x--\r\n"
        return Answer(200, body.encode(), {"Content-Type": "multipart/mixed; boundary=x"})


class TestKeeps:
    def test_versioning_is_told(self, storage: GCSStorage) -> None:
        assert isinstance(versions_of(storage), Versioned)
        (keep,) = GCSVersions(storage).keeps()
        assert keep.code == "versioning"
        assert keep.listed

    @pytest.mark.parametrize(
        ("document", "code", "said"),
        [
            (
                {"softDeletePolicy": {"retentionDurationSeconds": "604800"}},
                "soft-delete",
                "7 days",
            ),
            (
                {"retentionPolicy": {"retentionPeriod": "129600", "isLocked": True}},
                "retention-policy",
                "a locked retention policy is on: no object can be deleted that is younger than "
                "1.5 days",
            ),
            ({"objectRetention": {"mode": "Enabled"}}, "object-lock", "retention times"),
            ({"defaultEventBasedHold": True}, "holds", "held"),
        ],
    )
    def test_each_setting_is_told(
        self,
        storage: GCSStorage,
        proxy: FaultProxy,
        document: dict[str, Any],
        code: str,
        said: str,
    ) -> None:
        settings(proxy, **document)
        (keep,) = GCSVersions(storage).keeps()
        assert keep.code == code
        assert said in keep.message

    def test_a_plain_bucket_keeps_nothing_and_costs_one_request(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        off = {"enabled": False}
        settings(proxy, versioning=off, softDeletePolicy={"retentionDurationSeconds": "0"})
        assert GCSVersions(storage).keeps() == ()
        assert len(proxy.requests) == 1

    def test_settings_that_may_not_be_read_are_unknown(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        proxy.always(Answer(403, b'{"error": {"message": "no storage.buckets.get"}}'))
        (keep,) = GCSVersions(storage).keeps()
        assert keep.code == "unknown"
        assert keep.listed
        assert "storage.buckets.get" in keep.message

    def test_a_fault_is_no_answer(self, storage: GCSStorage, proxy: FaultProxy) -> None:
        proxy.fail(Answer(503), Answer(200, b"<html/>"))
        assert [keep.code for keep in GCSVersions(storage).keeps()] == ["versioning"]
        assert storage.requests.retries == 2
        proxy.always(Answer(503))
        with pytest.raises(Unavailable):
            GCSVersions(storage).keeps()


class TestLeftovers:
    @pytest.mark.parametrize("page_size", [2, 1000])
    def test_deleted_keys_are_told_with_versions_and_bytes(
        self, storage: GCSStorage, page_size: int
    ) -> None:
        storage.page_size = page_size
        for data in (b"x", b"four"):
            storage.write("a/gone", data)
        storage.write("a/here", b"old")
        storage.write("a/here", b"new")
        storage.write("b/gone", b"seven77")
        delete(storage, "a/gone", "b/gone")
        found = leftovers(storage, "a/")
        assert list(found) == ["a/gone"]
        assert (found["a/gone"].versions, found["a/gone"].bytes) == (2, 5)
        assert abs(found["a/gone"].youngest - storage.now()) < 60
        assert sorted(leftovers(storage)) == ["a/gone", "b/gone"]

    def test_a_key_may_have_versions_on_several_pages(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        def row(name: str, generation: str, **deleted: str) -> dict[str, str]:
            time = "2024-01-01T00:00:00Z"
            return {"name": f"root/{name}", "generation": generation, "updated": time, **deleted}

        gone = {"timeDeleted": "2024-01-02T00:00:00Z"}
        pages = [[row("a", "1", **gone)], [row("a", "2"), row("b", "3", **gone)]]
        pages += [[], [row("b", "4", **gone)]]

        def rule(request: Request) -> Answer | None:
            if "/o?" not in request.path:
                return None
            (token,) = parse_qs(urlsplit(request.path).query).get("pageToken", ["0"])
            following = {"nextPageToken": str(int(token) + 1)} if int(token) < 3 else {}
            return answer(kind="storage#objects", items=pages[int(token)], **following)

        proxy.rule = rule
        (left,) = GCSVersions(storage).leftovers("")
        assert (left.path, left.versions) == ("b", 2)

    def test_a_key_that_came_back_is_no_leftover(self, storage: GCSStorage) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        storage.write("a", b"2")
        assert leftovers(storage) == {}

    def test_odd_names_survive(self, storage: GCSStorage) -> None:
        for name in ODD_NAMES:
            storage.write(name, b"1")
        delete(storage, *ODD_NAMES)
        assert sorted(leftovers(storage)) == sorted(ODD_NAMES)

    def test_what_is_soft_deleted_is_told_apart(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        storage.write("a/2", b"noncurrent")
        delete(storage, "a/2")
        storage.write("a/3", b"current")

        def row(name: str, size: int, deleted: str) -> dict[str, str]:
            return {
                "name": f"root/{name}",
                "generation": "7",
                "size": str(size),
                "updated": "2024-01-01T00:00:00Z",
                "softDeleteTime": deleted,
                "hardDeleteTime": "2999-01-01T00:00:00Z",
            }

        soft = [row("a/1", 1, "2024-01-02T00:00:00Z"), row("a/1", 2, "2024-01-03T00:00:00Z")]
        soft += [row("a/2", 4, "2024-01-02T00:00:00Z"), row("a/3", 8, "2024-01-02T00:00:00Z")]

        def rule(request: Request) -> Answer | None:
            if is_bucket(request):
                return answer(softDeletePolicy={"retentionDurationSeconds": "604800"})
            if "softDeleted=true" not in request.path:
                return None
            if "pageToken" not in request.path:
                return answer(kind="storage#objects", items=soft[:1], nextPageToken="t")
            return answer(kind="storage#objects", items=soft[1:])

        proxy.rule = rule
        one, two = GCSVersions(storage).leftovers("a/")
        assert (one.path, one.versions, one.bytes, one.retained) == ("a/1", 0, 0, 3)
        assert one.youngest == 1704240000
        assert (two.path, two.versions, two.bytes, two.retained) == ("a/2", 1, 10, 4)
        *_, three = GCSVersions(storage).leftovers_and_current("a/")
        assert (three.path, three.current, three.versions, three.bytes) == ("a/3", True, 1, 7)
        # Nobody can delete them.
        assert purge(storage, "a/1")["a/1"].result is Deletion.GONE_ALREADY


class TestDeletingVersions:
    def test_each_version_is_deleted_by_its_generation(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        for data in (b"1", b"2"):
            storage.write("a/1", data)
        storage.write("a/2", b"here")
        delete(storage, "a/1")
        proxy.rule = batches = Batches()
        assert purge(storage, "a/1")["a/1"].result is Deletion.DELETED
        assert [name for name, _ in batches.deleted] == ["root%2Fa%2F1"] * 2
        assert len({generation for _, generation in batches.deleted}) == 2

    def test_a_current_object_is_never_touched(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        delete(storage, "a")
        storage.write("a", b"2")
        proxy.rule = batches = Batches()
        assert purge(storage, "a")["a"].result is Deletion.FAILED
        assert batches.deleted == []
        assert paths_of(storage.list("")) == ["a"]

    def test_what_is_not_there_is_gone_already(self, storage: GCSStorage) -> None:
        assert purge(storage, "a")["a"].result is Deletion.GONE_ALREADY

    def test_a_retained_version_fails_its_key_with_the_stores_reason(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        for name in ("a/1", "a/2", "a/3"):
            storage.write(name, b"1")
        delete(storage, "a/1", "a/2", "a/3")
        proxy.rule = Batches(("a%2F1", 403, "retentionPolicyNotMet"), ("a%2F2", 404, "notFound"))
        outcomes = purge(storage, "a/1", "a/2", "a/3")
        assert outcomes["a/1"].result is Deletion.FAILED
        assert "retentionPolicyNotMet" in outcomes["a/1"].error
        assert outcomes["a/2"].result is Deletion.DELETED
        assert outcomes["a/3"].result is Deletion.DELETED

    def test_a_part_that_is_not_yet_an_answer_confirms_nothing(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        storage.write("a/1", b"1")
        delete(storage, "a/1")
        proxy.rule = Batches(("a%2F1", 100, ""))
        assert purge(storage, "a/1")["a/1"].result is Deletion.FAILED

    def test_a_version_that_was_throttled_is_sent_again(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        storage.write("a/1", b"1")
        storage.write("a/2", b"1")
        delete(storage, "a/1", "a/2")
        first, second = Batches(("a%2F1", 429, "rateLimitExceeded")), Batches()
        proxy.rule = lambda request: (second if first.deleted else first)(request)
        outcomes = purge(storage, "a/1", "a/2")
        assert {outcome.result for outcome in outcomes.values()} == {Deletion.DELETED}
        assert [name for name, _ in second.deleted] == ["root%2Fa%2F1"]
        assert storage.requests.retries == 1

    def test_wanted_keys_are_found_in_as_few_pages_as_hold_them(
        self, storage: GCSStorage, proxy: FaultProxy
    ) -> None:
        names = [f"a/{number:03}" for number in range(60)]
        for name in names:
            storage.write(name, b"1")
        wanted = [*names[:10], names[30], *names[50:]]
        delete(storage, *wanted)
        storage.page_size = 10
        proxy.reset()
        proxy.rule = batches = Batches()
        assert all(o.result is Deletion.DELETED for o in purge(storage, *wanted).values())
        assert len(batches.deleted) == len(wanted)
        assert len([request for request in proxy.requests if request.method == "GET"]) <= 4


def test_there_are_no_uploads_in_parts(storage: GCSStorage) -> None:
    versions = GCSVersions(storage)
    assert list(versions.abandoned_uploads("", before=storage.now())) == []
    assert list(versions.abort([])) == []
    with pytest.raises(Unsupported):
        list(versions.abort([MultipartUpload("a", "1", 0.0, 0.0, None)]))
