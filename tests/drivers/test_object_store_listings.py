"""Listings by stores, and by what stands before them, that are none: nobody's server does this."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from urllib.parse import quote

import pytest

from drivers.conformance import paths_of
from registry_drivers.azure import open_azure
from registry_drivers.base import Children
from registry_drivers.errors import InvalidPath, StorageError, Unavailable
from registry_drivers.gcs import GCSStorage, open_gcs
from registry_drivers.gcs_versions import GCSVersions
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from registry_drivers.s3 import S3Storage, open_s3
from registry_drivers.s3_versions import S3Versions
from registry_drivers.withdrawal import unless_withdrawn
from servers.fault_proxy import Answer, FaultProxy, Request, stub

KEY = base64.b64encode(b"k" * 32).decode()
MD5 = base64.b64encode(b"m" * 16).decode()
TIME = "2024-01-02T03:04:05.000Z"


def s3_page(names: Sequence[bytes], token: str = "", size: str = "1", time: str = TIME) -> Answer:
    rows = "".join(
        f"<Contents><Key>{quote(name)}</Key><LastModified>{time}</LastModified>"
        f"<Size>{size}</Size></Contents>"
        for name in names
    )
    end = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    end += f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>"
    document = f"<ListBucketResult><EncodingType>url</EncodingType>{end}{rows}</ListBucketResult>"
    return Answer(200, document.encode())


def gcs_page(names: Sequence[bytes], token: str = "") -> Answer:
    row = {"size": "1", "updated": TIME, "md5Hash": MD5}
    rows = [{"name": name.decode(), **row} for name in names]
    document = {"kind": "storage#objects", "items": rows, "nextPageToken": token}
    return Answer(200, json.dumps(document).encode())


def azure_page(names: Sequence[bytes], token: str = "") -> Answer:
    rows = "".join(
        f"<Blob><Name>{name.decode()}</Name><Properties><Content-Length>1</Content-Length>"
        "<Last-Modified>Tue, 02 Jan 2024 03:04:05 GMT</Last-Modified></Properties></Blob>"
        for name in names
    )
    document = (
        f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker>{token}</NextMarker>"
        "</EnumerationResults>"
    )
    return Answer(200, document.encode())


PAGES: dict[str, Callable[..., Answer]] = {"s3": s3_page, "gcs": gcs_page, "azure": azure_page}


@pytest.fixture
def server() -> Iterator[FaultProxy]:
    with stub(lambda _: Answer(404)) as server:
        yield server


def opened(kind: str, server: FaultProxy) -> ObjectStorage:
    if kind == "s3":
        keys = {"accesskey": "A" * 20, "secretkey": "S" * 40, "region": "us-east-1"}
        return open_s3({**keys, "regionendpoint": server.url, "bucket": "bucket"})
    if kind == "azure":
        place = {"serviceurl": f"{server.url}/account", "trimlegacyrootprefix": True}
        return open_azure(
            {"accountname": "account", "accountkey": KEY, "container": "container", **place}
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        return open_gcs({"bucket": "bucket"})


@pytest.fixture(params=list(PAGES))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def storage(kind: str, server: FaultProxy) -> Iterator[ObjectStorage]:
    with closing(opened(kind, server)) as storage:
        storage.retry = Retry(times=2, sleep=lambda _: None)
        yield storage


def tell(server: FaultProxy, *answers: Answer) -> None:
    """Let *server* give these answers, one after the other, and then begin again."""
    turns = itertools.cycle(answers)
    server.rule = lambda _: next(turns)


@pytest.mark.parametrize("names", [(b"a/2", b"a/1", b"a/3"), (b"a/1", b"a/1", b"a/2")])
@pytest.mark.parametrize("kind", ["s3", "gcs"], indirect=True)
def test_a_page_that_is_out_of_order_in_itself_is_refused(
    storage: ObjectStorage, server: FaultProxy, kind: str, names: tuple[bytes, ...]
) -> None:
    # Who cuts it at a bound, by bisection, would lose what is out of its place.
    tell(server, PAGES[kind](names))
    with pytest.raises(StorageError, match="does not list in order"):
        list(storage.list("a/"))


def test_a_page_that_begins_with_the_last_key_of_the_one_before_is_refused(
    storage: ObjectStorage, server: FaultProxy, kind: str
) -> None:
    page = PAGES[kind]
    tell(server, page([b"a/1", b"a/2"], "next"), page([b"a/2", b"a/3"]))
    with pytest.raises(StorageError, match=r"lists a key twice|does not list in order"):
        list(storage.list("a/"))


def test_a_listing_that_goes_round_in_a_circle_ends_with_an_error(
    storage: ObjectStorage, server: FaultProxy, kind: str
) -> None:
    page = PAGES[kind]
    tell(server, page([], "A"), page([], "B"), page([], "C"))
    with pytest.raises(StorageError, match="the same page again"):
        list(storage.list("a/"))
    tell(server, page([], "A"), page([], "B"))
    with pytest.raises(StorageError, match="the same page again"):
        storage.children("a/")
    assert len(server.requests) == 7


def test_soft_deleted_objects_that_are_listed_in_a_circle_end_with_an_error(
    server: FaultProxy,
) -> None:
    with closing(opened("gcs", server)) as storage:
        assert isinstance(storage, GCSStorage)
        bucket = Answer(200, b'{"softDeletePolicy": {"retentionDurationSeconds": "604800"}}')
        turns = itertools.cycle([gcs_page([], "A"), gcs_page([], "B")])

        server.rule = lambda request: (
            bucket
            if "/o?" not in request.path
            else next(turns)
            if "softDeleted" in request.path
            else gcs_page([])
        )
        with pytest.raises(StorageError, match="the same page again"):
            list(GCSVersions(storage).leftovers("a/"))


def rounds(root: str, mark: str, inner: str = "") -> Iterator[Answer]:
    """Pages of S3's that lead to one another for ever."""
    return itertools.cycle(
        Answer(
            200,
            f"<{root}><IsTruncated>true</IsTruncated><NextKeyMarker>{where}</NextKeyMarker>"
            f"<{mark}>{where}</{mark}>{inner}</{root}>".encode(),
        )
        for where in "12"
    )


@pytest.mark.parametrize("what", ["versions", "uploads", "parts"])
def test_versions_uploads_and_parts_that_are_listed_in_a_circle_end_with_an_error(
    server: FaultProxy, what: str
) -> None:
    upload = (
        "<Upload><Key>a/1</Key><UploadId>u</UploadId>"
        "<Initiated>2020-01-01T00:00:00.000Z</Initiated></Upload>"
    )
    inner = upload if what == "parts" else ""
    turns = {
        "versions=": rounds("ListVersionsResult", "NextVersionIdMarker"),
        "uploads=": rounds("ListMultipartUploadsResult", "NextUploadIdMarker", inner),
        "uploadId=": rounds("ListPartsResult", "NextPartNumberMarker"),
    }
    server.rule = lambda request: next(
        next(turn for name, turn in turns.items() if name in request.path)
    )
    with closing(opened("s3", server)) as storage:
        assert isinstance(storage, S3Storage)
        versions = S3Versions(storage)
        asked: dict[str, Callable[[], Iterator[object]]] = {
            "versions": lambda: versions.leftovers("a/"),
            "uploads": lambda: versions.abandoned_uploads("a/", before=1.7e9),
            "parts": lambda: versions.abandoned_uploads("a/", before=1.7e9),
        }
        with pytest.raises(StorageError, match="the same page again"):
            list(asked[what]())


def without_end(kind: str) -> Callable[[Request], Answer]:
    """Empty pages, each with a token of its own."""
    turns = itertools.count()
    if kind in PAGES:
        return lambda _: PAGES[kind]([], f"t{next(turns)}")
    root, mark = ROUNDS[kind]

    def page(_: Request) -> Answer:
        where = f"a/{next(turns):09}"
        text = f"<IsTruncated>true</IsTruncated><NextKeyMarker>{where}</NextKeyMarker>"
        return Answer(200, f"<{root}>{text}<{mark}>{where}</{mark}></{root}>".encode())

    return page


LISTINGS: dict[str, Callable[[ObjectStorage], Iterable[object]]] = {
    "objects": lambda storage: storage.list("a/"),
    "folders": lambda storage: [storage.children("a/")],
    "versions": lambda storage: versions_of(storage).leftovers("a/"),
    "uploads": lambda storage: versions_of(storage).abandoned_uploads("a/", before=1.7e9),
}
ROUNDS = {
    "versions": ("ListVersionsResult", "NextVersionIdMarker"),
    "uploads": ("ListMultipartUploadsResult", "NextUploadIdMarker"),
}


def versions_of(storage: ObjectStorage) -> S3Versions:
    assert isinstance(storage, S3Storage)
    return S3Versions(storage)


ENDLESS = pytest.mark.parametrize(
    ("kind", "what"),
    [
        *((kind, what) for kind in PAGES for what in ("objects", "folders")),
        ("s3", "versions"),
        ("s3", "uploads"),
    ],
    indirect=["kind"],
)


@ENDLESS
def test_a_listing_of_nothing_that_never_ends_ends_with_an_error(
    storage: ObjectStorage,
    server: FaultProxy,
    kind: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry_drivers.paging.MOST_EMPTY", 7)
    server.rule = without_end(what if what in ROUNDS else kind)
    with pytest.raises(StorageError, match="goes on and on, and 7 pages of it hold nothing"):
        list(LISTINGS[what](storage))
    assert len(server.requests) == 8


@ENDLESS
def test_a_listing_of_nothing_ends_where_nobody_wants_it_any_more(
    storage: ObjectStorage, server: FaultProxy, kind: str, what: str
) -> None:
    server.rule = without_end(what if what in ROUNDS else kind)
    wanted = itertools.chain([True, True], itertools.repeat(False))
    with (
        unless_withdrawn(lambda: next(wanted)),
        pytest.raises(StorageError, match="not wanted any more"),
    ):
        list(LISTINGS[what](storage))
    assert len(server.requests) == 3


def test_empty_pages_between_others_are_no_fault(
    storage: ObjectStorage,
    server: FaultProxy,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Amazon's send them where much was deleted, Azure and Google where they look no further.
    monkeypatch.setattr("registry_drivers.paging.MOST_EMPTY", 2)
    page = PAGES[kind]
    names = [[], [], [b"a/1"], [], [], [b"a/2"]]
    answers = [page(rows, f"t{number}") for number, rows in enumerate(names)]
    tell(server, *answers, page([b"a/3"]))
    assert paths_of(storage.list("a/")) == ["a/1", "a/2", "a/3"]


def test_a_store_that_begins_elsewhere_than_it_is_asked_to_is_refused(server: FaultProxy) -> None:
    with closing(opened("s3", server)) as storage:
        tell(server, s3_page([b"a/1", b"a/2", b"a/3"]))
        for bound in ("a/1", "a/2"):
            with pytest.raises(StorageError, match="start-after"):
                list(storage.list("a/", start_after=bound))
        assert paths_of(storage.list("a/", start_after="a/0")) == ["a/1", "a/2", "a/3"]


def changed(page: Answer, *changes: tuple[str, str]) -> Answer:
    """*page* with other texts in it."""
    for old, new in changes:
        assert old.encode() in page.body
        page = Answer(200, page.body.replace(old.encode(), new.encode(), 1))
    return page


@pytest.mark.parametrize("what", ["objects", "folders"])
@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_after_a_page_that_is_the_last_and_says_where_it_goes_on_comes_what_is_there(
    storage: ObjectStorage, server: FaultProxy, what: str
) -> None:
    last = ("true</IsTruncated>", "false</IsTruncated>")
    tell(server, changed(s3_page([b"a/1"], "next"), last), s3_page([b"a/2"]))
    list(LISTINGS[what](storage))
    assert storage.requests.list == len(server.requests) == 2
    assert "continuation-token=next" in server.requests[1].path
    # A store that says so always does at the end, too.
    pages = [s3_page([b"a/1"], "next"), s3_page([], "next")]
    tell(server, *(changed(page, last) for page in pages))
    list(LISTINGS[what](storage))
    assert len(server.requests) == 4
    tell(server, changed(s3_page([b"a/1"]), ("<IsT", "<NextContinuationToken/><IsT")))
    list(LISTINGS[what](storage))
    assert len(server.requests) == 5


@pytest.mark.parametrize(
    ("asked", "told", "requests"),
    [(1000, "", 1), (3, "", 1), (2, "", 2), (1000, "2", 2), (1000, "1000", 1), (2, "1000", 2)],
)
def test_after_a_last_page_that_is_full_is_looked_once_whether_there_is_more(
    server: FaultProxy, asked: int, told: str, requests: int
) -> None:
    page = s3_page([b"a/1", b"a/\xff&"])
    if told:
        page = changed(page, ("<IsT", f"<MaxKeys>{told}</MaxKeys><IsT"))
    with closing(opened("s3", server)) as storage:
        storage.page_size = asked
        tell(server, *[page, s3_page([])][:requests])
        assert paths_of(storage.list("a/")) == ["a/1", "a/\udcff&"]
        assert storage.requests.list == len(server.requests) == requests
        assert (server.requests[-1].path.endswith("start-after=a%2F%FF%26")) is (requests == 2)
        tell(server, s3_page([]))
        assert paths_of(storage.list("a/")) == []
        assert len(server.requests) == requests + 1


def test_full_pages_that_do_not_tell_of_those_after_them_lose_nothing(server: FaultProxy) -> None:
    with closing(opened("s3", server)) as storage:
        storage.page_size = 2
        pages = [s3_page([b"a/1", b"a/2"]), s3_page([b"a/3", b"a/4"], "t"), s3_page([b"a/5"])]
        tell(server, *pages)
        assert paths_of(storage.list("a/")) == [f"a/{n}" for n in range(1, 6)]
        asked = [request.path.rpartition("/")[2] for request in server.requests]
        assert ["start-after=a%2F2" in path for path in asked] == [False, True, False]
        tell(server, s3_page([b"a/1", b"a/2"]))
        with pytest.raises(StorageError, match="start-after"):
            list(storage.list("a/"))


def test_full_levels_that_do_not_tell_of_those_after_them_lose_nothing(server: FaultProxy) -> None:
    def level(files: Sequence[bytes], *folders: str) -> Answer:
        below = "".join(
            f"<CommonPrefixes><Prefix>a/{name}/</Prefix></CommonPrefixes>" for name in folders
        )
        end = "</ListBucketResult>"
        return changed(s3_page(files), (end, below + end))

    with closing(opened("s3", server)) as storage:
        storage.page_size = 2
        # What begins after a folder's name begins with what lies in it.
        pages = [level([b"a/1"], "x"), level([b"a/y"], "x"), level([])]
        tell(server, *pages)
        assert storage.children("a/") == Children(("x",), ("1", "y"))
        assert ["start-after=a%2Fx%2F" in r.path for r in server.requests] == [False, True, False]
        assert storage.requests.list == len(server.requests) == 3
        # One that always begins at the beginning is asked no more than once.
        tell(server, level([b"a/1"], "x"), level([b"a/1"], "x"))
        assert storage.children("a/") == Children(("x",), ("1",))
        assert len(server.requests) == 5


@pytest.mark.parametrize("size", ["x1", "-1", "9" * 30])
def test_a_page_with_a_size_that_is_none_is_asked_for_again(server: FaultProxy, size: str) -> None:
    with closing(opened("s3", server)) as storage:
        storage.retry = Retry(times=2, sleep=lambda _: None)
        tell(server, s3_page([b"a/1"], size=size), s3_page([b"a/1"]))
        assert paths_of(storage.list("a/")) == ["a/1"]
        tell(server, s3_page([b"a/1"], size=size))
        with pytest.raises(Unavailable, match="not a size"):
            list(storage.list("a/"))


def counting(count: str, *, rows: int = 2, last: bool = False, folders: int = 0) -> Answer:
    """A page that says it has *count* rows, before or after them."""
    page = s3_page([b"a/%03d" % number for number in range(rows)]).body
    told = f"<KeyCount>{count}</KeyCount>".encode()
    below = b"".join(
        b"<CommonPrefixes><Prefix>a/f%d/</Prefix></CommonPrefixes>" % n for n in range(folders)
    )
    start, end = b"<EncodingType>", b"</ListBucketResult>"
    page = page.replace(end, below + end)
    place = end if last else start
    return Answer(200, page.replace(place, told + place))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("rows", [0, 2, 500])
def test_a_page_with_fewer_rows_than_it_says_is_asked_for_again(
    server: FaultProxy, rows: int, last: bool
) -> None:
    with closing(opened("s3", server)) as storage:
        storage.retry = Retry(times=2, sleep=lambda _: None)
        short = counting(str(rows + 2), rows=rows, last=last)
        tell(server, short, counting("2"))
        assert paths_of(storage.list("a/")) == ["a/000", "a/001"]
        assert len(server.requests) == 2
        tell(server, short)
        with pytest.raises(Unavailable, match=f"has {rows} rows, and says that it has {rows + 2}"):
            list(storage.list("a/"))
        tell(server, counting("9" * 5000))
        with pytest.raises(Unavailable, match="says that it has 9999"):
            list(storage.list("a/"))


@pytest.mark.parametrize("count", ["0", "1", "2", " 2 ", "", "x"])
def test_a_page_with_no_fewer_rows_than_it_says_is_a_page(server: FaultProxy, count: str) -> None:
    with closing(opened("s3", server)) as storage:
        tell(server, counting(count))
        assert paths_of(storage.list("a/")) == ["a/000", "a/001"]
        assert len(server.requests) == 1


def test_a_folder_with_fewer_rows_than_it_says_is_asked_for_again(server: FaultProxy) -> None:
    with closing(opened("s3", server)) as storage:
        storage.retry = Retry(times=2, sleep=lambda _: None)
        # Ceph counts the two files only; Amazon's store the folder too.
        tell(server, counting("4", folders=1), counting("3", folders=1))
        assert storage.children("a/").folders == ("f0",)
        assert len(server.requests) == 2
        tell(server, counting("2", folders=1))
        assert storage.children("a/").files == ("000", "001")


def test_times_with_an_offset_are_no_other_times(server: FaultProxy) -> None:
    with closing(opened("s3", server)) as storage:
        tell(server, s3_page([b"a/1"], time="2024-01-02T03:04:05-05:00"))
        (page,) = storage.list("a/")
        assert page.modified.tolist() == [1704182645]


def test_keys_that_are_no_utf8_are_listed_with_their_bytes(server: FaultProxy) -> None:
    with closing(opened("s3", server)) as storage:
        tell(server, s3_page([b"a/\xfe", b"a/\xff"], "next"), s3_page([b"a/\xff\xff"]))
        found = paths_of(storage.list("a/"))
        assert found == ["a/\udcfe", "a/\udcff", "a/\udcff\udcff"]
        tell(server, s3_page([b"b/1"]))
        assert paths_of(storage.list("", start_after=found[-1])) == ["b/1"]
        assert server.requests[-1].path.endswith("start-after=a%2F%FF%FF")
        folder = b"<CommonPrefixes><Prefix>a/%FF/</Prefix></CommonPrefixes></ListBucketResult>"
        level = s3_page([b"a/\xfe"])
        tell(server, Answer(200, level.body.replace(b"</ListBucketResult>", folder)))
        children = storage.children("a/")
        assert (children.folders, children.files) == (("\udcff",), ("\udcfe",))
        with pytest.raises(InvalidPath):
            storage.read(found[0])
