"""What every driver for an object store does when its store, or the way to it, fails."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from drivers.conformance import paths_of
from registry_drivers.base import Deletion
from registry_drivers.errors import AccessDenied, AlreadyExists, NotFound, StorageError, Unavailable
from registry_drivers.moving import Mover
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from servers.fault_proxy import Answer, Broken, Cut, Fault, FaultProxy, Lost, Request, Shortened

PASSING: dict[str, Fault] = {
    "429": Answer(429),
    "500": Answer(500),
    "503": Answer(503, b"<html>busy</html>"),
    "408": Answer(408),
    "broken": Broken(),
    "lost": Lost(),
}
TIMES = 10


class FaultConformance:
    """Subclass it, with a fixture ``proxy`` and a method that opens a storage behind it.

    ``secrets`` are what no message may hold.
    """

    secrets: tuple[str, ...] = ()
    tells_gone = True

    def open(self, proxy: FaultProxy, server: Any, **parameters: Any) -> ObjectStorage:
        """An empty storage of its own behind *proxy*."""
        raise NotImplementedError

    def is_delete(self, request: Request) -> bool:
        """Whether *request* deletes objects."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, proxy: FaultProxy, server: Any) -> Iterator[ObjectStorage]:
        proxy.reset()
        storage = self.open(proxy, server)
        pauses: list[float] = []
        storage.retry = Retry(times=TIMES, sleep=pauses.append)
        for name in ("a/1", "a/2", "a/3", "a/4", "a/5"):
            storage.write(name, name.encode())
        proxy.reset()
        before = storage.requests.retries
        yield storage
        # Each retry pauses once, and is counted once.
        assert len(pauses) == storage.requests.retries - before
        proxy.reset()
        storage.close()

    @pytest.fixture(params=list(PASSING))
    def fault(self, request: pytest.FixtureRequest) -> Fault:
        return PASSING[request.param]

    def test_a_listing_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        proxy.fail(fault, fault, fault)
        assert len(paths_of(storage.list("a/"))) == 5
        assert storage.requests.retries == 3
        assert len(proxy.requests) == 4

    @pytest.mark.parametrize("fault", [Cut(), Shortened(), Broken(), Answer(200, b"<html/>")])
    def test_a_listing_that_breaks_in_the_middle_goes_on_where_it_was(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        storage.page_size = 2
        pages = storage.list("a/")
        found = [*next(pages).paths]
        proxy.fail(fault, fault)
        found += paths_of(pages)
        assert found == ["a/1", "a/2", "a/3", "a/4", "a/5"]
        assert storage.requests.retries == 2
        # Three pages, and two of them were asked for again; none of them twice for nothing.
        assert len(proxy.requests) == 5

    def test_a_folder_is_listed_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        storage.page_size = 2
        proxy.fail(fault)
        assert storage.children("a/").files == ("1", "2", "3", "4", "5")
        assert storage.requests.retries == 1

    @pytest.mark.parametrize("fault", [*PASSING.values(), Cut()])
    def test_a_read_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        proxy.fail(fault, fault)
        assert storage.read("a/3") == b"a/3"
        assert storage.requests.retries == 2
        proxy.fail(fault)
        assert storage.stat("a/3").size == 3

    def test_a_delete_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        proxy.fail(fault, fault)
        outcomes = {outcome.path: outcome.result for outcome in storage.delete(["a/1", "a/2"])}
        gone = isinstance(fault, Lost) and self.tells_gone
        expected = Deletion.GONE_ALREADY if gone else Deletion.DELETED
        assert outcomes == {"a/1": expected, "a/2": expected}
        assert paths_of(storage.list("a/")) == ["a/3", "a/4", "a/5"]

    def test_a_write_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        proxy.fail(fault)
        storage.write("a/6", b"six")
        assert storage.read("a/6") == b"six"
        assert storage.requests.retries == 1

    def test_a_conditional_write_knows_its_own_bytes_when_the_answer_was_lost(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(Lost())
        storage.write("a/6", b"unique", if_absent=True)
        assert storage.read("a/6") == b"unique"
        proxy.fail(Lost())
        with pytest.raises(AlreadyExists):
            storage.write("a/6", b"another's", if_absent=True)
        assert storage.read("a/6") == b"unique"

    def test_a_move_is_tried_again(
        self, storage: ObjectStorage, proxy: FaultProxy, fault: Fault
    ) -> None:
        proxy.fail(fault, where=lambda request: request.method in ("PUT", "POST"))
        storage.move("a/1", "b/1")
        assert storage.read("b/1") == b"a/1"
        assert paths_of(storage.list("")) == ["a/2", "a/3", "a/4", "a/5", "b/1"]

    @pytest.mark.parametrize(
        "ask",
        [
            lambda storage: list(storage.list("a/")),
            lambda storage: storage.children("a/"),
            lambda storage: storage.read("a/1"),
            lambda storage: storage.stat("a/1"),
            lambda storage: list(storage.delete(["a/1"])),
            lambda storage: storage.write("a/6", b""),
        ],
        ids=["list", "children", "read", "stat", "delete", "write"],
    )
    @pytest.mark.parametrize("fault", [Answer(503), Broken()])
    def test_patience_ends(
        self,
        storage: ObjectStorage,
        proxy: FaultProxy,
        ask: Callable[[ObjectStorage], object],
        fault: Fault,
    ) -> None:
        before = storage.requests.retries
        proxy.always(fault)
        with pytest.raises(Unavailable) as caught:
            ask(storage)
        assert len(proxy.requests) == TIMES + 1
        assert storage.requests.retries - before == TIMES
        self.holds_no_secret(caught.value)
        proxy.reset()
        assert len(paths_of(storage.list("a/"))) == 5

    @pytest.mark.parametrize(
        "ask",
        [
            lambda storage: list(storage.list("a/")),
            lambda storage: storage.read("a/1"),
            lambda storage: storage.stat("a/1"),
            lambda storage: storage.write("a/6", b""),
        ],
        ids=["list", "read", "stat", "write"],
    )
    def test_who_is_denied_does_not_insist(
        self,
        storage: ObjectStorage,
        proxy: FaultProxy,
        ask: Callable[[ObjectStorage], object],
    ) -> None:
        proxy.always(Answer(403))
        with pytest.raises(AccessDenied) as caught:
            ask(storage)
        assert len(proxy.requests) == 1
        self.holds_no_secret(caught.value)

    unpacks = True

    @pytest.mark.parametrize("coding", ["gzip", "x-gzip, GZIP", "zstd", "aws-chunked", ""])
    def test_what_is_stored_packed_is_read_as_the_registry_reads_it_or_refused(
        self, storage: ObjectStorage, proxy: FaultProxy, coding: str
    ) -> None:
        told = {"ETag": '"1"', "Last-Modified": "Tue, 24 Nov 2026 02:50:51 GMT"}
        packed = gzip.compress(b"sha256:")
        proxy.always(Answer(200, packed, {**told, "Content-Encoding": coding}))
        if coding in ("aws-chunked", "") or not self.unpacks:
            assert storage.read("a/1") == storage.read("a/1", limit=100) == packed
            return
        for read in (storage.read, lambda path: storage.read(path, limit=100)):
            with pytest.raises(StorageError, match=f"Content-Encoding: {coding}, so that"):
                read("a/1")
        assert len(proxy.requests) == 2

    where_told = "are the region and the endpoint right"

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize(
        "ask",
        [
            lambda storage: list(storage.list("a/")),
            lambda storage: storage.children("a/"),
            lambda storage: storage.stat("a/1"),
            lambda storage: list(storage.delete(["a/1"])),
        ],
        ids=["list", "children", "stat", "delete"],
    )
    def test_a_redirect_is_told_in_one_line_and_not_followed(
        self,
        storage: ObjectStorage,
        proxy: FaultProxy,
        status: int,
        ask: Callable[[ObjectStorage], object],
    ) -> None:
        page = b"<html>\n<h1>Moved</h1>\n</html>"
        to = "https://user:pass@elsewhere.example/?sig=Secret%2B"
        proxy.always(Answer(status, page, {"Location": to}))
        with pytest.raises(StorageError) as caught:
            ask(storage)
        assert not isinstance(caught.value, NotFound | Unavailable)
        said = str(caught.value)
        assert self.where_told in said
        assert f"HTTP {status}" in said
        assert not re.search("\n|pass|Secret|<", said)
        assert len(proxy.requests) == 1

    def test_a_copy_that_is_refused_as_missing_says_nothing_of_a_source_that_is_there(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        """A proxy's page has the same status as the store's word that the source is gone."""
        page = Answer(404, b"<html>nginx</html>")
        proxy.rule = lambda asked: page if asked.method in ("PUT", "POST") else None
        storage.retry = Retry(times=0)
        try:
            (outcome,) = Mover(storage).move([("a/1", "b/1")])
        except Unavailable:
            pass  # S3 has a way to tell such a page
        else:
            assert outcome.result is Deletion.FAILED
            assert "it is there" in outcome.error
        proxy.reset()
        assert storage.read("a/1") == b"a/1"

    @pytest.mark.parametrize("answer", [Answer(200, b"<html/>"), Answer(200), Answer(204)])
    def test_an_answer_that_says_nothing_of_any_delete_is_none(
        self, storage: ObjectStorage, proxy: FaultProxy, answer: Answer
    ) -> None:
        storage.retry = Retry(times=0)
        proxy.rule = lambda asked: answer if self.is_delete(asked) else None
        with pytest.raises(StorageError):
            list(storage.delete(["a/1", "a/2"]))

    def test_a_copy_that_is_not_there_says_nothing_of_its_source(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        asked: list[Request] = []

        def rule(request: Request) -> Fault | None:
            if request.method in ("HEAD", "GET") and "copied" in request.path:
                asked.append(request)
                return Answer(404)
            return None

        proxy.rule = rule
        with pytest.raises(Unavailable, match="the copy of a/1 is not there"):
            storage.copy("a/1", "b/copied")
        assert len(asked) == TIMES + 1
        (outcome,) = Mover(storage).move([("a/2", "b/2")])
        assert outcome.result is Deletion.MOVED
        assert storage.read("a/1") == b"a/1"
        with pytest.raises(NotFound):
            storage.copy("a/none", "b/none")

    def test_a_denied_batch_is_one_failure_for_each_path(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        proxy.always(Answer(403))
        outcomes = list(storage.delete(["a/1", "a/2"]))
        assert [outcome.result for outcome in outcomes] == [Deletion.FAILED] * 2
        assert all("403" in outcome.error for outcome in outcomes)

    def test_a_missing_bucket_is_named(self, proxy: FaultProxy, server: Any) -> None:
        proxy.reset()
        storage = self.open(proxy, server, missing=True)
        with pytest.raises(NotFound) as caught:
            list(storage.list(""))
        assert "does-not-exist" in str(caught.value)
        # No object is said to be missing: nobody could look.
        with pytest.raises(StorageError) as other:
            storage.read("a/b")
        self.holds_no_secret(caught.value)
        self.holds_no_secret(other.value)
        storage.close()

    def test_every_request_passes_the_limiter(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        passed: list[None] = []
        storage.before_request = lambda: passed.append(None)
        storage.page_size = 2
        proxy.fail(Answer(503), Answer(429))
        list(storage.list("a/"))
        storage.children("a/")
        storage.read("a/1")
        storage.stat("a/1")
        storage.write("a/6", b"", if_absent=True)
        storage.move("a/6", "a/7")
        list(storage.delete(["a/7"]))
        storage.now()
        assert len(passed) == len(proxy.requests)

    def test_requests_are_counted_as_they_are_sent(
        self, storage: ObjectStorage, proxy: FaultProxy
    ) -> None:
        before = storage.requests.totals()
        storage.page_size = 2
        proxy.fail(Answer(503))
        list(storage.list("a/"))
        storage.read("a/1")
        list(storage.delete(["a/1", "a/2"]))
        after = storage.requests.totals()
        counted = {kind: after[kind] - before[kind] for kind in after}
        assert counted == {"list": 4, "read": 1, "delete": 1, "write": 0, "retries": 1}
        assert len(proxy.requests) == 6

    def holds_no_secret(self, error: BaseException) -> None:
        """Neither the error nor anything that it was made of."""
        seen: BaseException | None = error
        while seen is not None:
            for secret in self.secrets:
                assert secret not in str(seen)
                assert secret not in repr(seen)
            seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
