"""The driver for Google Cloud Storage when the store, or the way to it, fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from drivers.conformance import paths_of
from drivers.faults import TIMES, FaultConformance
from registry_drivers.base import Deletion
from registry_drivers.errors import TooLarge, Unavailable
from registry_drivers.gcs import open_gcs
from registry_drivers.object_store import ObjectStorage
from registry_drivers.withdrawal import unless_withdrawn
from servers.fake_gcs import GCSServer, fake_gcs
from servers.fault_proxy import Answer, FaultProxy, Request, fault_proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: GCSServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.url, own_host=True) as proxy:
        yield proxy


def batch(*parts: tuple[int, str, str]) -> Answer:
    """The answer to a batch of deletes: status, reason and message of each."""
    body = ""
    for number, (status, reason, message) in enumerate(parts):
        error = {"error": {"code": status, "message": message, "errors": [{"reason": reason}]}}
        body += (
            "--answer\r\nContent-Type: application/http\r\n"
            f"Content-ID: <response-b+{number}>\r\n\r\n"
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n\r\n"
            f"{json.dumps(error) if status >= 300 else ''}\r\n"
        )
    headers = {"Content-Type": "multipart/mixed; boundary=answer"}
    return Answer(200, f"{body}--answer--\r\n".encode(), headers)


class TestGCSFaults(FaultConformance):
    where_told = "sends on to https://elsewhere.example: is STORAGE_EMULATOR_HOST, "

    def open(
        self, proxy: FaultProxy, server: GCSServer, *, missing: bool = False, **parameters: Any
    ) -> ObjectStorage:
        bucket = "does-not-exist" if missing else server.bucket()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            return open_gcs({"bucket": bucket, **parameters})

    def is_delete(self, request: Request) -> bool:
        return request.path.startswith("/batch/")

    def test_what_is_unpacked_on_the_way_is_read_as_the_registry_reads_it(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        """Stored with Content-Encoding: gzip; nobody says beforehand how long that is."""
        told = {
            "ETag": '"1"',
            "Last-Modified": "Tue, 24 Nov 2026 02:50:51 GMT",
            "x-goog-stored-content-encoding": "gzip",
            "x-goog-stored-content-length": "3",
        }
        proxy.always(Answer(200, b"unpacked", told, chunked=True))
        before = storage.requests.read
        assert storage.read("a/1") == storage.read("a/1", limit=100) == b"unpacked"
        assert storage.requests.read - before == len(proxy.requests) == 4
        with pytest.raises(TooLarge):
            storage.read("a/1", limit=5)

    @pytest.mark.parametrize("answer", [b"{}", b'{"error": {"message": "later"}}'])
    def test_a_copy_that_does_not_say_how_to_go_on_ends(
        self, storage: ObjectStorage, proxy: FaultProxy, answer: bytes
    ) -> None:
        proxy.rule = lambda request: Answer(200, answer) if "rewriteTo" in request.path else None
        with pytest.raises(Unavailable, match="how to go on"):
            storage.copy("a/1", "b/1")
        assert sum("rewriteTo" in request.path for request in proxy.requests) == TIMES + 1

    def test_a_copy_that_gets_no_further_ends(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        same = Answer(200, b'{"done": false, "rewriteToken": "t", "totalBytesRewritten": "1"}')
        proxy.rule = lambda request: same if "rewriteTo" in request.path else None
        with pytest.raises(Unavailable, match="how to go on"):
            storage.copy("a/1", "b/1")
        assert sum("rewriteTo" in request.path for request in proxy.requests) == 2 * (TIMES + 1)

    def test_a_copy_that_is_not_wanted_any_more_is_not_gone_on_with(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        def rule(request: Request) -> Answer | None:
            if "rewriteTo" not in request.path:
                return None
            token = f"piece {len(proxy.requests)}"
            return Answer(200, json.dumps({"done": False, "rewriteToken": token}).encode())

        proxy.rule = rule
        with (
            unless_withdrawn(lambda: len(proxy.requests) < 4),
            pytest.raises(Unavailable, match="is being copied still"),
        ):
            storage.copy("a/1", "b/1")
        assert len(proxy.requests) == 4
        # The fixture wants a retry for each pause; after this one nothing goes out.
        storage.requests.retries += 1

    def test_each_key_has_its_own_outcome(self, storage: ObjectStorage, proxy: FaultProxy) -> None:
        held = "Object 'a/2' is under active Event-Based hold and cannot be deleted."
        retained = "Object 'a/3' is subject to bucket's retention policy."
        proxy.fail(
            batch(
                (204, "", ""),
                (403, "forbidden", held),
                (403, "retentionPolicyNotMet", retained),
                (404, "notFound", "No such object"),
                (503, "backendError", "later"),
            )
        )
        paths = ["a/1", "a/2", "a/3", "a/4", "a/5"]
        outcomes = {outcome.path: outcome for outcome in storage.delete(paths)}
        assert outcomes["a/1"].result is Deletion.DELETED
        assert outcomes["a/2"].result is outcomes["a/3"].result is Deletion.FAILED
        assert held in outcomes["a/2"].error
        assert outcomes["a/3"].error.startswith("retentionPolicyNotMet")
        assert outcomes["a/4"].result is Deletion.GONE_ALREADY
        # Only the one that met a passing fault was sent again.
        assert outcomes["a/5"].result is Deletion.DELETED
        assert proxy.requests[1].body.count(b"DELETE ") == 1
        assert paths_of(storage.list("")) == ["a/1", "a/2", "a/3", "a/4"]

    def test_a_part_that_is_not_yet_an_answer_confirms_nothing(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(batch((100, "", "")))
        assert [outcome.result for outcome in storage.delete(["a/1"])] == [Deletion.FAILED]

    def test_an_answer_without_a_part_for_each_key_is_asked_for_again(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(batch((204, "", "")))
        results = [outcome.result for outcome in storage.delete(["a/1", "a/2"])]
        assert results == [Deletion.DELETED] * 2
        assert storage.requests.retries == 1

    def test_a_large_object_is_copied_piece_by_piece(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        pieces = [
            # The token of the second is that of the first: there is more of the object, though.
            Answer(
                200,
                json.dumps(
                    {"done": False, "rewriteToken": token, "totalBytesRewritten": str(size)}
                ).encode(),
            )
            for token, size in (("piece 0", 1), ("piece 0", 2), ("piece 1", 3))
        ]
        proxy.fail(*pieces, where=lambda request: "/rewriteTo/" in request.path)
        storage.move("a/1", "b/1")
        asked = [request.path for request in proxy.requests if "/rewriteTo/" in request.path]
        tokens = [path.partition("rewriteToken=")[2] for path in asked]
        assert tokens == ["", "piece+0", "piece+0", "piece+1"]
        assert storage.read("b/1") == b"a/1"
        assert "a/1" not in paths_of(storage.list(""))
