"""What Azure Blob Storage keeps after a delete.

Azurite has neither versions nor soft delete; listings, batches and settings that have some are
answered by a proxy, in the shapes of the REST API's reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest

from drivers.conformance import paths_of
from registry_drivers.azure import AzureStorage, open_azure
from registry_drivers.azure_versions import AzureVersions
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import NotFound, Unavailable, Unsupported
from registry_drivers.factory import versions_of
from registry_drivers.retry import Retry
from registry_drivers.versions import Leftover, MultipartUpload, Versioned
from servers.azurite import KEY, AzureServer, azurite
from servers.fault_proxy import Answer, FaultProxy, Request, fault_proxy

WRITTEN = "Mon, 01 Jan 2024 00:00:00 GMT"
NEW_YEAR = 1704067200.0
PERMANENT = """<StorageServiceProperties><DeleteRetentionPolicy><Enabled>true</Enabled>
    <Days>7</Days><AllowPermanentDelete>true</AllowPermanentDelete></DeleteRetentionPolicy>
    <StaticWebsite><Enabled>true</Enabled></StaticWebsite></StorageServiceProperties>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: AzureServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.url.rpartition("/")[0]) as proxy:
        yield proxy


@pytest.fixture
def storage(server: AzureServer, proxy: FaultProxy) -> Iterator[AzureStorage]:
    proxy.reset()
    url = f"{proxy.url}/{server.url.rpartition('/')[2]}"
    parameters = server.parameters(server.container(), serviceurl=url, trimlegacyrootprefix=True)
    with closing(open_azure({**parameters, "rootdirectory": "top"})) as storage:
        storage.retry = Retry(times=3, sleep=lambda _: None)
        yield storage
    proxy.reset()


def row(name: str, version: str = "", *marks: str, size: int = 1, deleted: str = "") -> str:
    """A blob of a listing; *marks* are ``current`` and ``deleted``."""
    return (
        f"<Blob><Name>top/{name}</Name>"
        + "<Deleted>true</Deleted>" * ("deleted" in marks)
        + f"<VersionId>{version}</VersionId>" * bool(version)
        + "<IsCurrentVersion>true</IsCurrentVersion>" * ("current" in marks)
        + f"<Properties><Creation-Time>{WRITTEN}</Creation-Time>"
        f"<Last-Modified>{WRITTEN}</Last-Modified><Content-Length>{size}</Content-Length>"
        + f"<DeletedTime>{deleted}</DeletedTime>" * bool(deleted)
        + "</Properties></Blob>"
    )


def listing(*rows: str, marker: str = "") -> Answer:
    document = (
        f'<?xml version="1.0"?><EnumerationResults><Blobs>{"".join(rows)}</Blobs>'
        f"<NextMarker>{marker}</NextMarker></EnumerationResults>"
    )
    return Answer(200, document.encode())


def leftovers(storage: AzureStorage, prefix: str = "") -> dict[str, Leftover]:
    return {left.path: left for left in AzureVersions(storage).leftovers(prefix)}


def purge(storage: AzureStorage, *paths: str) -> dict[str, Outcome]:
    return {outcome.path: outcome for outcome in AzureVersions(storage).delete_versions(paths)}


class Store:
    """A container with versions: lists *rows*, and answers deletes with a status by version."""

    def __init__(self, *rows: str, properties: str = "", **statuses: tuple[int, str]) -> None:
        self.rows = rows
        self.properties = properties
        self.statuses = statuses
        self.deleted: list[tuple[str, str, str]] = []
        self.listed: list[str] = []

    def __call__(self, request: Request) -> Answer | None:
        query = {name: text for name, (text,) in parse_qs(urlsplit(request.path).query).items()}
        if query.get("comp") == "properties":
            return Answer(200, self.properties.encode()) if self.properties else None
        if query.get("comp") == "list":
            self.listed.append(query["prefix"])
            assert query["include"] == "versions,deleted"
            return listing(*(row for row in self.rows if f"<Name>{query['prefix']}" in row))
        if query.get("comp") == "batch":
            return self._batch(request.body.decode())
        return None

    def _batch(self, body: str) -> Answer:
        answers = ""
        for number, target in re.findall(r"Content-ID: (\d+)\r\n\r\nDELETE (\S+)", body):
            place = urlsplit(target)
            query = {name: text for name, (text,) in parse_qs(place.query).items()}
            version, kind = query["versionid"], query.get("deletetype", "")
            self.deleted.append((place.path.partition("/top/")[2], version, kind))
            status, code = self.statuses.get(version, (202, ""))
            answers += (
                f"--x\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nx-ms-error-code: {code}\r\n\r\n\r\n"
            )
        answers += "--x--\r\n"
        return Answer(202, answers.encode(), {"Content-Type": "multipart/mixed; boundary=x"})


class TestKeeps:
    def test_a_plain_container_keeps_nothing(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        storage.write("a", b"1")
        proxy.reset()
        assert isinstance(versions_of(storage), Versioned)
        assert AzureVersions(storage).keeps() == ()
        assert len(proxy.requests) == 3

    def test_soft_delete_is_told_by_the_service(
        self, storage: AzureStorage, server: AzureServer
    ) -> None:
        # Azurite stores this setting, and tells it.
        body = PERMANENT.replace("<AllowPermanentDelete>true</AllowPermanentDelete>", "").encode()
        url = f"{storage._service}/?restype=service&comp=properties"
        headers = {"x-ms-version": "2021-12-02", "Content-Length": str(len(body))}
        signed = storage._credential.sign("PUT", url, headers)
        assert storage._send("PUT", url, signed, body).status == 202
        (keep,) = AzureVersions(storage).keeps()
        assert keep.code == "soft-delete"
        assert "7 days" in keep.message
        assert not keep.listed
        body = body.replace(
            b"<Enabled>true</Enabled>\n    <Days>7</Days>", b"<Enabled>false</Enabled>"
        )
        headers["Content-Length"] = str(len(body))
        signed = storage._credential.sign("PUT", url, headers)
        assert storage._send("PUT", url, signed, body).status == 202
        assert AzureVersions(storage).keeps() == ()

    def test_permanent_deletes_are_told(self, storage: AzureStorage, proxy: FaultProxy) -> None:
        proxy.fail(Answer(200, PERMANENT.encode()), where=lambda r: "comp=properties" in r.path)
        (keep,) = AzureVersions(storage).keeps()
        assert keep.listed
        assert "--purge-versions" in keep.message

    def test_versions_show_in_the_listing(self, storage: AzureStorage, proxy: FaultProxy) -> None:
        proxy.fail(listing(row("a", "v1", "current")))
        (keep,) = AzureVersions(storage).keeps()
        assert keep.code == "versioning"
        assert keep.listed

    def test_immutability_and_holds_are_told(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        headers = {
            "x-ms-has-immutability-policy": "true",
            "x-ms-has-legal-hold": "true",
            "x-ms-immutable-storage-with-versioning-enabled": "true",
        }
        proxy.fail(Answer(200, b"", headers), where=lambda r: r.method == "HEAD")
        codes = [keep.code for keep in AzureVersions(storage).keeps()]
        assert codes == ["retention-policy", "object-lock", "legal-hold"]

    def test_settings_that_may_not_be_read_are_unknown(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.always(Answer(403, b"", {"x-ms-error-code": "AuthorizationPermissionMismatch"}))
        keeps = AzureVersions(storage).keeps()
        assert [keep.code for keep in keeps] == ["unknown"] * 3
        assert [keep.listed for keep in keeps] == [True, False, False]
        assert "AuthorizationPermissionMismatch" in keeps[0].message

    def test_an_account_that_has_no_versions_keeps_none(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        refused = Answer(409, b"", {"x-ms-error-code": "FeatureNotSupportedForHierarchicalAccount"})
        proxy.fail(refused)
        assert AzureVersions(storage).keeps() == ()

    def test_a_fault_or_a_missing_container_is_no_answer(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.fail(Answer(503), Answer(200, b"<html/>"))
        assert AzureVersions(storage).keeps() == ()
        assert storage.requests.retries == 2
        proxy.always(Answer(503))
        with pytest.raises(Unavailable):
            AzureVersions(storage).keeps()
        proxy.always(Answer(404, b"", {"x-ms-error-code": "ContainerNotFound"}))
        with pytest.raises(NotFound) as caught:
            AzureVersions(storage).keeps()
        assert KEY not in str(caught.value)


class TestLeftovers:
    def test_azurite_has_none(self, storage: AzureStorage) -> None:
        storage.write("a/1", b"1")
        storage.write("a/2", b"1")
        assert [o.result for o in storage.delete(["a/1"])] == [Deletion.DELETED]
        assert leftovers(storage) == {}

    def test_blobs_without_a_current_version_are_told(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.rule = Store(
            row("a/gone &amp; old", "1", size=2),
            row("a/gone &amp; old", "2", size=3),
            row("a/here", "1"),
            row("a/here", "2", "current"),
            row("a/plain"),
            row("b/soft", "", "deleted", size=5, deleted="Tue, 02 Jan 2024 00:00:00 GMT"),
            row("b/soft-version", "1", "deleted", size=7),
            row("c/both", "1", "deleted", size=11),
            row("c/both", "2", size=13),
        )
        found = leftovers(storage)
        assert {
            path: (left.versions, left.bytes, left.retained) for path, left in found.items()
        } == {
            "a/gone & old": (2, 5, 0),
            "b/soft": (0, 0, 5),
            "b/soft-version": (0, 0, 7),
            "c/both": (1, 13, 11),
        }
        assert found["a/gone & old"].youngest == NEW_YEAR
        assert found["b/soft"].youngest == NEW_YEAR + 86400

    def test_soft_deleted_versions_can_go_where_the_account_permits_it(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.rule = Store(
            row("a", "1", "deleted", size=7),
            row("b", "", "deleted", size=5),
            properties=PERMANENT,
        )
        found = leftovers(storage)
        assert (found["a"].versions, found["a"].bytes, found["a"].retained) == (1, 7, 0)
        assert (found["b"].versions, found["b"].bytes, found["b"].retained) == (0, 0, 5)

    def test_a_blob_may_have_versions_on_several_pages(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        pages = [listing(row("a", "1"), marker="2"), listing(marker="3")]
        pages += [listing(row("a", "2", "current"), row("b", "1"), marker="4")]
        pages += [listing(row("b", "2"))]
        proxy.fail(*pages, where=lambda request: "comp=list" in request.path)
        found = leftovers(storage)
        assert {path: left.versions for path, left in found.items()} == {"b": 2}


class TestDeletingVersions:
    def test_each_version_is_deleted_by_its_id(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        store = Store(row("a/1", "v1"), row("a/1", "v2"), row("a/2", "v3"), row("a/3", "v4"))
        proxy.rule = store
        outcomes = purge(storage, "a/1", "a/3")
        assert {outcome.result for outcome in outcomes.values()} == {Deletion.DELETED}
        assert store.deleted == [("a/1", "v1", ""), ("a/1", "v2", ""), ("a/3", "v4", "")]
        assert store.listed == ["top/a/"]

    def test_versions_go_for_good_where_the_account_permits_it(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        store = Store(row("a", "v1"), row("a", "v2", "deleted"), properties=PERMANENT)
        proxy.rule = store
        assert purge(storage, "a")["a"].result is Deletion.DELETED
        assert store.deleted == [
            ("a", "v1", ""),
            ("a", "v2", ""),
            ("a", "v1", "permanent"),
            ("a", "v2", "permanent"),
        ]

    def test_a_current_blob_is_never_touched(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        store = Store(row("a", "v1"), row("a", "v2", "current"), row("b"))
        proxy.rule = store
        outcomes = purge(storage, "a", "b")
        assert outcomes["a"].result is outcomes["b"].result is Deletion.FAILED
        assert store.deleted == []

    def test_azurites_blobs_are_never_touched(self, storage: AzureStorage) -> None:
        storage.write("a", b"1")
        outcomes = purge(storage, "a", "b")
        assert outcomes["a"].result is Deletion.FAILED
        assert outcomes["b"].result is Deletion.GONE_ALREADY
        assert paths_of(storage.list("")) == ["a"]

    def test_an_immutable_version_fails_its_blob_with_the_stores_reason(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.rule = Store(
            *(row(f"a/{number}", f"v{number}") for number in (1, 2, 3)),
            v1=(409, "BlobImmutableDueToPolicy"),
            v2=(404, "BlobNotFound"),
        )
        outcomes = purge(storage, "a/1", "a/2", "a/3")
        assert outcomes["a/1"].result is Deletion.FAILED
        assert "BlobImmutableDueToPolicy" in outcomes["a/1"].error
        assert outcomes["a/2"].result is outcomes["a/3"].result is Deletion.DELETED

    def test_a_part_that_is_not_yet_an_answer_confirms_nothing(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        proxy.rule = Store(row("a/1", "v1"), v1=(100, ""))
        assert purge(storage, "a/1")["a/1"].result is Deletion.FAILED

    def test_where_pages_do_not_end_each_blob_is_looked_at(
        self, storage: AzureStorage, proxy: FaultProxy
    ) -> None:
        # Two blobs are wanted, so two pages are looked at; the third look names the blob.
        store = Store(row("a/9", "v9"))
        pages = [listing(row("a/1", "v1"), marker="2"), listing(row("a/5", "v5"), marker="3")]

        def rule(request: Request) -> Answer | None:
            return pages.pop(0) if pages and "comp=list" in request.path else store(request)

        proxy.rule = rule
        outcomes = purge(storage, "a/1", "a/9")
        assert {outcome.result for outcome in outcomes.values()} == {Deletion.DELETED}
        assert store.listed == ["top/a/9"]
        assert store.deleted == [("a/1", "v1", ""), ("a/9", "v9", "")]


def test_there_are_no_uploads_in_parts(storage: AzureStorage) -> None:
    versions = AzureVersions(storage)
    assert list(versions.abandoned_uploads("", before=NEW_YEAR)) == []
    assert list(versions.abort([])) == []
    with pytest.raises(Unsupported):
        list(versions.abort([MultipartUpload("a", "1", 0.0, 0.0, None)]))
