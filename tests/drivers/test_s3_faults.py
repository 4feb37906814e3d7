"""The S3 driver when moto's server, or the way to it, fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from xml.etree import ElementTree

import pytest
from urllib3.exceptions import InsecureRequestWarning

from drivers.conformance import paths_of
from drivers.faults import FaultConformance
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import (
    AccessDenied,
    DriverConfigError,
    NotFound,
    StorageError,
    Unavailable,
    Unsupported,
)
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from registry_drivers.s3 import open_s3
from registry_drivers.web import CA_VARIABLES
from registry_gc.lock import Lock
from servers.fault_proxy import Answer, Broken, FaultProxy, Request, fault_proxy
from servers.moto import SECRET_KEY, S3Server, moto
from servers.tls import Tls, make_tls


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


KEY = "{http://s3.amazonaws.com/doc/2006-03-01/}Key"


class TestS3Faults(FaultConformance):
    secrets = (SECRET_KEY,)
    tells_gone = False
    unpacks = False

    def open(
        self, proxy: FaultProxy, server: S3Server, *, missing: bool = False, **parameters: Any
    ) -> ObjectStorage:
        bucket = "does-not-exist" if missing else server.bucket()
        return open_s3(server.parameters(bucket, regionendpoint=proxy.url, **parameters))

    def is_delete(self, request: Request) -> bool:
        return request.path.endswith("?delete=")

    def test_each_key_has_its_own_outcome(self, storage: ObjectStorage, proxy: FaultProxy) -> None:
        document = b"""<?xml version="1.0" encoding="UTF-8"?>
            <DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Deleted><Key>a/1</Key></Deleted>
            <Error><Key>a/2</Key><Code>AccessDenied</Code><Message>lock &amp; key</Message></Error>
            <Error><Key>a/3</Key><Code>SlowDown</Code><Message>later</Message></Error>
            </DeleteResult>"""
        proxy.fail(Answer(200, document))
        outcomes = {outcome.path: outcome for outcome in storage.delete(["a/1", "a/2", "a/3"])}
        assert outcomes["a/1"].result is Deletion.DELETED
        assert outcomes["a/2"].result is Deletion.FAILED
        assert outcomes["a/2"].error == "AccessDenied: lock & key"
        # Only the one that was throttled was sent again.
        assert outcomes["a/3"].result is Deletion.DELETED
        assert b"a/3" in proxy.requests[1].body
        assert b"a/2" not in proxy.requests[1].body
        assert paths_of(storage.list("")) == ["a/1", "a/2", "a/4", "a/5"]

    @pytest.mark.parametrize(
        ("status", "code", "kind", "said"),
        [
            (501, b"NotImplemented", Unsupported, "DeleteObjects: NotImplemented: no (HTTP 501)"),
            (400, b"MissingContentMD5", StorageError, "DeleteObjects: MissingContentMD5: no"),
        ],
    )
    def test_a_delete_that_a_store_does_not_know_names_the_operation(
        self,
        storage: ObjectStorage,
        proxy: FaultProxy,
        status: int,
        code: bytes,
        kind: type[StorageError],
        said: str,
    ) -> None:
        error = b"<Error><Code>%s</Code><Message>no</Message></Error>" % code
        proxy.rule = lambda seen: Answer(status, error) if self.is_delete(seen) else None
        with pytest.raises(kind) as caught:
            list(storage.delete(["a/1", "a/2"]))
        assert type(caught.value) is kind
        assert said in str(caught.value)
        assert "s3:DeleteObject" not in str(caught.value)

    @pytest.mark.parametrize("code", [b"AccessDenied", b"SignatureDoesNotMatch"])
    def test_a_delete_that_is_refused_as_a_whole_names_the_permission(
        self, storage: ObjectStorage, proxy: FaultProxy, code: bytes
    ) -> None:
        error = b"<Error><Code>%s</Code><Message>no</Message></Error>" % code
        proxy.rule = lambda seen: Answer(403, error) if self.is_delete(seen) else None
        (outcome,) = storage.delete(["a/1"])
        assert outcome.result is Deletion.FAILED
        assert outcome.error.startswith(f"DeleteObjects: {code.decode()}: no (HTTP 403)")
        # Wrong keys are no lack of a permission.
        assert ("it needs s3:DeleteObject" in outcome.error) is (code == b"AccessDenied")

    def test_what_was_gone_already_is_told_as_that(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        error = b"<Error><Key>a/1</Key><Code>NoSuchKey</Code></Error>"
        proxy.fail(Answer(200, b"<DeleteResult>" + error + b"</DeleteResult>"))
        (outcome,) = storage.delete(["a/1"])
        assert outcome.result is Deletion.GONE_ALREADY
        # A key that XML cannot name is deleted alone.
        proxy.fail(Answer(404, b"<Error><Code>NoSuchKey</Code></Error>"))
        assert [o.result for o in storage.delete(["a/\x01"])] == [Deletion.GONE_ALREADY]
        proxy.fail(Answer(404, b"<html>nothing here</html>"))
        assert [o.result for o in storage.delete(["a/\x01"])] == [Deletion.FAILED]

    @pytest.mark.parametrize("page", [b"<html>nginx</html>", b"404 page not found", b'{"a": 1}'])
    def test_a_proxys_page_is_no_word_that_an_object_is_gone(
        self, storage: ObjectStorage, proxy: FaultProxy, page: bytes
    ) -> None:
        reads: list[Callable[[str], bytes]] = [
            storage.read,
            lambda path: storage.read_range(path, 0, 9),
        ]
        for read in reads:
            proxy.fail(Answer(404, page))
            assert read("a/1") == b"a/1"
        # A key that obstore cannot name is asked for by itself.
        proxy.fail(Answer(404, page))
        with pytest.raises(NotFound, match="NoSuchKey"):
            storage.read("a/\x01")
        assert storage.requests.retries == 3
        proxy.always(Answer(404, page))
        for read in reads:
            with pytest.raises(Unavailable, match="not by a store that speaks S3"):
                read("a/1")

    @pytest.mark.parametrize(
        "said", [b"", b" \n", b"<Error/>", b"<Error><Code>NoSuchKey</Code></Error>", b"NoSuchKey"]
    )
    def test_a_stores_own_word_that_an_object_is_gone_is_one(
        self, storage: ObjectStorage, proxy: FaultProxy, said: bytes
    ) -> None:
        proxy.always(Answer(404, said))
        for path in ("a/1", "a/\x01"):
            with pytest.raises(NotFound):
                storage.read(path)
        with pytest.raises(NotFound):
            storage.read_range("a/1", 0, 9)
        assert not storage.requests.retries

    def test_a_lock_that_a_proxy_says_is_gone_is_told_of(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        storage.retry = Retry(times=0)
        lock = Lock.acquire(storage, "run", refresh_seconds=None)
        proxy.always(Answer(404, b"<html>nginx</html>"))
        lock.release()
        (told,) = lock.notices
        assert told.startswith("the lock could not be removed")

    def test_one_delete_that_is_answered_with_an_error_and_status_200_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(Answer(200, b"<Error><Code>InternalError</Code></Error>"))
        assert [o.result for o in storage.delete(["a/\x01"])] == [Deletion.DELETED]
        assert storage.requests.retries == 1

    @pytest.mark.parametrize("name", ["redirector", "InvalidCertificate"])
    def test_a_name_in_an_address_is_no_reason_to_give_up(
        self, storage: ObjectStorage, proxy: FaultProxy, name: str
    ) -> None:
        storage.write(f"a/{name}", b"data")
        retries = storage.requests.retries
        proxy.fail(Broken())
        assert storage.read(f"a/{name}") == b"data"
        assert storage.requests.retries == retries + 1

    @pytest.mark.parametrize("key", ["a/\x01", "a/\x1f", "a/\x7f"])
    def test_keys_with_control_characters_are_read(
        self, storage: ObjectStorage, proxy: FaultProxy, key: str
    ) -> None:
        storage.write(key, b"data")
        assert storage.read(key) == b"data"

    def test_an_answer_that_names_no_key_counts_when_it_is_complete(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        # JuiceFS' gateway.
        proxy.fail(
            Answer(200, b"<DeleteResult><Deleted></Deleted><Deleted></Deleted></DeleteResult>")
        )
        results = [outcome.result for outcome in storage.delete(["a/1", "a/2"])]
        assert results == [Deletion.DELETED] * 2
        assert len(proxy.requests) == 1

    def test_a_key_that_the_answer_leaves_out_is_looked_at(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(Answer(200, b"<DeleteResult></DeleteResult>"))
        outcomes = {o.path: o for o in storage.delete(["a/1", "a/missing"])}
        assert outcomes["a/1"].result is Deletion.FAILED
        assert "still there" in outcomes["a/1"].error
        assert outcomes["a/missing"].result is Deletion.DELETED

    @pytest.mark.parametrize("row", [b"Deleted", b"Error"])
    @pytest.mark.parametrize("rest", [b"", b"<Key>", b"<Key>a/1", b"<Key>a/1</K"])
    def test_an_answer_that_ends_within_its_first_row_counts_for_nothing(
        self, storage: ObjectStorage, proxy: FaultProxy, row: bytes, rest: bytes
    ) -> None:
        proxy.fail(Answer(200, b"<DeleteResult><" + row + b">" + rest))
        assert [outcome.result for outcome in storage.delete(["a/1"])] == [Deletion.DELETED]
        assert storage.requests.retries == 1

    @pytest.mark.parametrize("status", [102, 103])
    def test_an_answer_that_is_not_yet_one_counts_for_nothing(
        self, storage: ObjectStorage, proxy: FaultProxy, status: int
    ) -> None:
        proxy.fail(Answer(status))
        assert [outcome.result for outcome in storage.delete(["a/\x01"])] == [Deletion.DELETED]
        assert storage.requests.retries == 1

    def test_what_was_confirmed_is_told_before_the_error_that_ends_the_rest(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        busy = b"<Error><Key>a/2</Key><Code>SlowDown</Code></Error>"
        first = b"<DeleteResult><Deleted><Key>a/1</Key></Deleted>" + busy + b"</DeleteResult>"
        expired = b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
        proxy.fail(Answer(200, first), Answer(400, expired))
        outcomes = storage.delete(["a/1", "a/2"])
        assert next(outcomes) == Outcome("a/1", Deletion.DELETED)
        with pytest.raises(StorageError, match="ExpiredToken"):
            next(outcomes)

    def test_a_key_that_may_not_be_looked_at_fails_alone(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        told = b"<DeleteResult><Deleted><Key>a/1</Key></Deleted></DeleteResult>"
        proxy.fail(Answer(200, told), Answer(403))
        one, two = storage.delete(["a/1", "a/2"])
        assert one.result is Deletion.DELETED
        assert two.result is Deletion.FAILED
        assert "403" in two.error

    def test_keys_that_xml_cannot_name_go_alone_and_fail_alone(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        proxy.rule = lambda r: (
            Answer(403, denied) if r.method == "DELETE" and "%EF%BF%BE" in r.path else None
        )
        paths = ["a/\x01", "a/\ufffe", "a/\uffff", "a/1"]
        outcomes = {outcome.path: outcome for outcome in storage.delete(paths)}
        failed = outcomes.pop("a/\ufffe")
        assert failed.result is Deletion.FAILED
        assert "AccessDenied" in failed.error
        assert {outcome.result for outcome in outcomes.values()} == {Deletion.DELETED}
        (together,) = (request for request in proxy.requests if request.method == "POST")
        assert [key.text for key in ElementTree.fromstring(together.body).iter(KEY)] == ["a/1"]

    def test_an_error_that_comes_with_status_200_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(Answer(200, b"<Error><Code>InternalError</Code><Message>x</Message></Error>"))
        assert [outcome.result for outcome in storage.delete(["a/1"])] == [Deletion.DELETED]
        assert storage.requests.retries == 1

    def test_pages_that_are_out_of_order_are_refused(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        # By a store that nobody knows to do so, or a proxy that hides who it is.
        storage.page_size = 2
        row = b"<Key>%s</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified><Size>1</Size>"
        page = b"<Contents>" + row % b"a/0" + b"</Contents><IsTruncated>false</IsTruncated>"
        page = b"<ListBucketResult>" + page + b"</ListBucketResult>"
        proxy.fail(Answer(200, page), where=lambda request: "continuation-token" in request.path)
        with pytest.raises(StorageError, match="does not list in order"):
            list(storage.list("a/"))

    def test_an_archived_object_is_told_as_that(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        said = b"<Error><Code>InvalidObjectState</Code><Message>Not valid.</Message></Error>"
        proxy.always(Answer(403, said))
        for read in (storage.read, lambda path: storage.read_range(path, 0, 1)):
            with pytest.raises(AccessDenied, match=r"archive class: restore it.*lifecycle rule"):
                read("a/1")

    def test_a_page_of_a_proxys_that_answers_a_delete_is_shown_in_part(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        page = b"<html>\x1b[2J\xff " + SECRET_KEY.encode() + b" sign in" * 50
        proxy.always(Answer(200, page, {"Content-Type": "text/html"}))
        with pytest.raises(Unavailable) as caught:
            list(storage.delete(["a/1"]))
        said = caught.value.message
        shown = ascii("<html>\x1b[2J\ufffd *** sign")[:-1]
        assert f"no answer to a delete: HTTP 200, 'text/html': {shown}" in said
        assert SECRET_KEY not in said
        assert len(said) < 200

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_bucket_that_is_elsewhere_is_told_as_that(
        self, storage: ObjectStorage, proxy: FaultProxy, status: int
    ) -> None:
        proxy.always(Answer(status))
        for use in (storage.stat, lambda _: storage.children("")):
            with pytest.raises(StorageError, match="are the region and the endpoint right"):
                use("a/1")

    def test_another_region_is_named(self, storage: ObjectStorage, proxy: FaultProxy) -> None:
        proxy.always(Answer(301, b"", {"x-amz-bucket-region": "eu-north-1"}))
        with pytest.raises(DriverConfigError, match=r"storage\.s3\.region.*eu-north-1"):
            list(storage.list(""))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(server: S3Server, tls: Tls) -> Iterator[FaultProxy]:
    with fault_proxy(server.url, tls.context()) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _no_authorities_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in CA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def use(storage: ObjectStorage) -> None:
    """One request by each of the libraries that send any."""
    storage.write("a/b", b"1")
    assert storage.read("a/b") == b"1"
    assert paths_of(storage.list("")) == ["a/b"]


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_the_operators_authority_is_trusted(
    server: S3Server,
    secure: FaultProxy,
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(tls.authority))
    with closing(open_s3(server.parameters(server.bucket(), regionendpoint=secure.url))) as storage:
        use(storage)


def test_skipverify_trusts_everybody(server: S3Server, secure: FaultProxy) -> None:
    parameters = server.parameters(server.bucket(), regionendpoint=secure.url, skipverify="true")
    with pytest.warns(InsecureRequestWarning), closing(open_s3(parameters)) as storage:
        use(storage)


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: list(storage.list("")),
        lambda storage: storage.read("a/b"),
        lambda storage: storage.write("a/b", b""),
    ],
)
def test_an_unknown_authority_is_refused_at_once(
    server: S3Server, secure: FaultProxy, ask: Callable[[ObjectStorage], object]
) -> None:
    storage = open_s3(server.parameters("bucket", regionendpoint=secure.url))
    with closing(storage), pytest.raises(StorageError, match="AWS_CA_BUNDLE") as caught:
        ask(storage)
    assert not isinstance(caught.value, Unavailable)
    assert storage.requests.retries == 0


def test_an_authority_that_is_not_there_is_named(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/missing.pem")
    with pytest.raises(DriverConfigError, match=r"AWS_CA_BUNDLE.*/missing\.pem"):
        open_s3(server.parameters("bucket"))
