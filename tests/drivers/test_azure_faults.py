"""The driver for Azure Blob Storage when the store, or the way to it, fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from drivers.conformance import paths_of
from drivers.faults import FaultConformance
from registry_drivers.azure import open_azure
from registry_drivers.base import Deletion, Entry
from registry_drivers.errors import DriverConfigError, StorageError
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from servers.azurite import ACCOUNT, KEY, AzureServer, azurite
from servers.fault_proxy import Answer, Broken, Fault, FaultProxy, Request, fault_proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: AzureServer) -> Iterator[FaultProxy]:
    place = urlsplit(server.url)
    with fault_proxy(f"{place.scheme}://{place.netloc}") as proxy:
        yield proxy


def batch(*parts: tuple[int, str, str]) -> Answer:
    """The answer to a batch of deletes: status, code and message of each."""
    body = ""
    for number, (status, code, message) in enumerate(parts):
        error = f"<Error><Code>{code}</Code><Message>{message}\nRequestId:1</Message></Error>"
        body += (
            "--answer\r\nContent-Type: application/http\r\n"
            f"Content-ID: {number}\r\n\r\n"
            f"HTTP/1.1 {status} X\r\n"
            + (f"x-ms-error-code: {code}\r\n" if code else "")
            + f"\r\n{error if status >= 300 else ''}\r\n"
        )
    headers = {"Content-Type": "multipart/mixed; boundary=answer"}
    return Answer(202, f"{body}--answer--\r\n".encode(), headers)


class TestAzureFaults(FaultConformance):
    secrets = (KEY,)
    where_told = "sends on to https://elsewhere.example: is what storage.azure says of"

    def open(
        self, proxy: FaultProxy, server: AzureServer, *, missing: bool = False, **parameters: Any
    ) -> ObjectStorage:
        container = "does-not-exist" if missing else server.container()
        parameters.setdefault("trimlegacyrootprefix", True)
        return open_azure(
            server.parameters(container, serviceurl=f"{proxy.url}/{ACCOUNT}", **parameters)
        )

    def is_delete(self, request: Request) -> bool:
        return "comp=batch" in request.path

    def test_an_archived_object_is_told_as_that(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        said = b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>BlobArchived</Code><Message>Not on"
        said += b" an &quot;archived&quot; blob.%bRequestId:1-2%bTime:2026-11-24</Message></Error>"
        for end in (b"\n", b"\r\n", b"\\n"):
            proxy.always(Answer(409, said % (end, end), {"x-ms-error-code": "BlobArchived"}))
            for read in (storage.read, lambda path: storage.read_range(path, 0, 1)):
                with pytest.raises(StorageError) as caught:
                    read("a/1")
                told = str(caught.value)
                assert told.startswith(
                    'azure: a/1: BlobArchived: Not on an "archived" blob. (HTTP 409); it is in an'
                    " archive class: restore it, and take docker/registry out of the lifecycle rule"
                )
                assert "\n" not in told

    def test_each_key_has_its_own_outcome(self, storage: ObjectStorage, proxy: FaultProxy) -> None:
        proxy.fail(
            batch(
                (202, "", ""),
                (409, "BlobImmutableDueToPolicy", "This operation is not permitted."),
                (412, "LeaseIdMissing", "There is currently a lease on the blob."),
                (404, "BlobNotFound", "The specified blob does not exist."),
                (503, "ServerBusy", "The server is busy."),
            )
        )
        paths = ["a/1", "a/2", "a/3", "a/4", "a/5"]
        outcomes = {outcome.path: outcome for outcome in storage.delete(paths)}
        assert outcomes["a/1"].result is Deletion.DELETED
        assert outcomes["a/2"].result is outcomes["a/3"].result is Deletion.FAILED
        said = "BlobImmutableDueToPolicy: This operation is not permitted. (HTTP 409)"
        assert outcomes["a/2"].error == said
        assert outcomes["a/3"].error.startswith("LeaseIdMissing: ")
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

    def copies_slowly(
        self, storage: ObjectStorage, proxy: FaultProxy, *answers: Answer | Broken, end: str = ""
    ) -> None:
        """Let copies be made by the server, while the client sees *answers* and then waits."""
        storage.retry = Retry(times=3, sleep=lambda _: None)
        put = list(answers)
        looks = [Answer(200, headers={"x-ms-copy-status": "pending"})]
        if end:
            why = "404 https://account/source?sv=1&sig=the-signature"
            headers = {"x-ms-copy-status": end, "x-ms-copy-status-description": why}
            looks.append(Answer(200, headers=headers))

        def rule(request: Request) -> Fault | None:
            if request.method == "PUT" and put:
                return put.pop(0)
            return looks.pop(0) if request.method == "HEAD" and not put and looks else None

        proxy.reset()
        with_all = storage.stat("a/1")
        storage._copy(with_all, storage._key("a/1"), storage._key("b/1"))
        original = storage.stat

        def stat(path: str) -> Entry:
            # What is looked at before and after a copy is no part of it.
            rules, proxy.rule = proxy.rule, lambda _: None
            try:
                return original(path)
            finally:
                proxy.rule = rules

        storage.stat = stat  # type: ignore[method-assign]  # only the copy meets the answers
        proxy.rule = rule

    def test_a_copy_that_takes_its_time_is_waited_for(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        self.copies_slowly(storage, proxy, Answer(202, headers={"x-ms-copy-status": "pending"}))
        storage.move("a/1", "b/1")
        assert storage.read("b/1") == b"a/1"
        assert "a/1" not in paths_of(storage.list(""))

    def test_a_copy_whose_answer_was_lost_is_waited_for(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        pending = Answer(409, headers={"x-ms-error-code": "PendingCopyOperation"})
        self.copies_slowly(storage, proxy, Broken(), pending)
        storage.move("a/1", "b/1")
        # The fixture wants a pause of its own for each retry; here they are slept elsewhere.
        storage.requests.retries -= 1
        assert storage.read("b/1") == b"a/1"
        assert "a/1" not in paths_of(storage.list(""))

    def test_a_copy_that_fails_in_the_end_leaves_the_original(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        begun = Answer(202, headers={"x-ms-copy-status": "pending"})
        self.copies_slowly(storage, proxy, begun, end="failed")
        with pytest.raises(StorageError, match="failed: 404") as caught:
            storage.move("a/1", "b/1")
        assert "the-signature" not in str(caught.value)
        assert "a/1" in paths_of(storage.list(""))


def test_a_registry_with_a_leading_slash_is_found(server: AzureServer) -> None:
    container = server.container()
    legacy = open_azure(server.parameters(container, legacyrootprefix="true"))
    legacy.write("docker/registry/v2/blobs/x", b"1")
    for parameters in ({}, {"legacyrootprefix": True}, {"trimlegacyrootprefix": "false"}):
        storage = open_azure(server.parameters(container, **parameters))
        assert paths_of(storage.list("docker/")) == ["docker/registry/v2/blobs/x"]
        assert storage.read("docker/registry/v2/blobs/x") == b"1"
        assert storage.children("docker/").folders == ("registry",)
        assert storage.root.endswith(f"{container}//".rstrip("/"))
    plain = open_azure(server.parameters(container, trimlegacyrootprefix=True))
    assert paths_of(plain.list("docker/")) == []


def test_an_empty_page_is_no_registry_and_not_the_end(server: AzureServer) -> None:
    container = server.container()
    legacy = open_azure(server.parameters(container, legacyrootprefix="true"))
    legacy.write("docker/registry/v2/blobs/x", b"1")
    empty = b"<EnumerationResults><Blobs/><NextMarker>%s</NextMarker></EnumerationResults>"
    with fault_proxy(server.url.partition("/dev")[0]) as proxy:
        given = server.parameters(container, serviceurl=f"{proxy.url}/{ACCOUNT}")

        def rule(request: Request) -> Fault | None:
            if "prefix=%2Fdocker" in request.path or "maxresults=1&" not in f"{request.path}&":
                return None
            last = "marker=" in request.path
            return Answer(200, empty % (b"" if last else b"there-is-more"))

        proxy.rule = rule
        storage = open_azure(given)
        with closing(storage):
            assert storage.read("docker/registry/v2/blobs/x") == b"1"
            asked = [request.path for request in proxy.requests if "maxresults=1" in request.path]
            assert len(asked) == 3


def test_a_registry_in_both_places_is_refused(server: AzureServer) -> None:
    container = server.container()
    for legacy in (True, False):
        storage = open_azure(server.parameters(container, legacyrootprefix=legacy))
        storage.write("docker/registry/v2/blobs/x", b"1")
    storage = open_azure(server.parameters(container))
    with pytest.raises(DriverConfigError, match="legacyrootprefix"):
        list(storage.list("docker/"))
    with pytest.raises(DriverConfigError, match="legacyrootprefix"):
        storage.read("docker/registry/v2/blobs/x")


def test_parameters_that_contradict_each_other_are_refused(server: AzureServer) -> None:
    with pytest.raises(DriverConfigError, match="contradicts"):
        open_azure(server.parameters("c", legacyrootprefix=True, trimlegacyrootprefix=True))
