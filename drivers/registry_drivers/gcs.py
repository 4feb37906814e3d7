"""Google Cloud Storage.

Parameters: those of Distribution's and GitLab's driver ``gcs``. google-auth holds the credentials;
the JSON API is asked here: a listing tells the MD5 and nothing that is not wanted, and 100 deletes
are one request (google-cloud-storage 3 asks for the bucket's metadata beside each of them, which
nobody counts and operators may have denied). ``STORAGE_EMULATOR_HOST`` names an emulator, as for
Google's own clients.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from registry_drivers.base import Capabilities, Entry
from registry_drivers.columns import (
    MalformedListing,
    bytes_of,
    integer,
    integers,
    md5s_of_base64,
    page_of,
    times,
)
from registry_drivers.errors import (
    AlreadyExists,
    MissingExtra,
    Unavailable,
)
from registry_drivers.gcs_answers import (
    Items,
    Rewrite,
    cut_page,
    decode_item,
    decode_rewrite,
    decoded,
    outcome_of,
    told,
    whole,
)
from registry_drivers.gcs_auth import Tokens, credentials_of
from registry_drivers.multipart import Part, batch_of, parts_of
from registry_drivers.object_client import Answered, Level, Listed, addressable, opening
from registry_drivers.object_store import ObjectStorage
from registry_drivers.parameters import Parameters
from registry_drivers.retry import Retry
from registry_drivers.web import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Answer,
    Web,
    ca_certificates,
)
from registry_drivers.withdrawal import is_withdrawn

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

ENDPOINT = "https://storage.googleapis.com"
DELETE_BATCH = 100
_NO_LENGTH = "Content-Length Header missing"


def open_gcs(parameters: Mapping[str, Any], *, driver: str = "gcs") -> GCSStorage:
    """Open the bucket that *parameters* describe; asks the storage for nothing yet.

    :raises DriverConfigError: a parameter is missing or wrong, or there are no credentials.
    :raises MissingExtra: google-auth or obstore is not installed.
    """
    try:
        import google.auth.transport.requests  # noqa: F401  # with what the extra brings
        import obstore  # noqa: F401  # told here rather than at the first read
    except ImportError as error:
        # The module is no package that anybody could install.
        ours = (error.name or "").startswith("google")
        package = "google-auth" if ours else error.name or "requests"
        raise MissingExtra(
            f"the GCS driver needs {package}: pip install 'registry-garbage-collect[gcs]'",
            driver=driver,
        ) from error
    given = Parameters(driver, parameters)
    bucket = given.required("bucket")
    # Registries write below a folder ``<nil>`` then.
    given.refuse_null("rootdirectory", "a folder '<nil>'; name theirs, or leave it out")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    if emulator:
        from google.auth.credentials import AnonymousCredentials

        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]  # Google's
        return GCSStorage(given, bucket, anonymous, emulator.rstrip("/"))
    return GCSStorage(given, bucket, credentials_of(given), ENDPOINT)


class GCSStorage(ObjectStorage):
    """One bucket, or a folder of it; see :func:`open_gcs`."""

    where_told = "STORAGE_EMULATOR_HOST, or the proxy on the way,"

    def __init__(
        self, given: Parameters, bucket: str, credentials: Credentials, endpoint: str
    ) -> None:
        super().__init__(folder=given.folder(), web=Web(), retry=Retry(), secrets=given.secrets)
        self._agent = given.text("useragent")
        self.driver = given.driver
        self.bucket = bucket
        self.root = f"gs://{bucket}/{self.folder}".rstrip("/")
        if endpoint != ENDPOINT:
            self.root = f"{self.root} at {endpoint}"
        self.capabilities = Capabilities(delete_batch=DELETE_BATCH, folders=False, workers=32)
        self._endpoint = endpoint
        self._objects = f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}/o"
        self._tokens = Tokens(credentials, self.driver, self._clean)
        if addressable(self.folder):
            with opening(self.driver):
                self._store = self._obstore()

    def _obstore(self) -> Any:
        from obstore.store import GCSStore

        options: dict[str, Any] = {
            "allow_http": self._endpoint.startswith("http:"),
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": f"{READ_SECONDS}s",
        }
        if certificates := ca_certificates():
            options["root_certificate"] = certificates
        if self._agent:
            options["user_agent"] = self._agent
        anonymous = self._tokens.anonymous
        return GCSStore(
            self.bucket,
            config={"base_url": self._endpoint, "skip_signature": anonymous},
            client_options=options,  # type: ignore[arg-type]  # a TypedDict that is built in steps
            retry_config={"max_retries": 0},
            credential_provider=None if anonymous else self._providing(self._token),
        )

    def _token(self) -> Any:
        return self._tokens.provide(self._objects)

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": self._agent} if self._agent else {}
        self._tokens.sign(headers, self._objects)
        return headers

    # --- requests that are sent here

    def _request(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        content_type: str = "",
        *,
        path: str = "",
        place: bool = False,
        limit: int | None = None,
        span: str = "",
    ) -> Answer:
        headers = self._headers()
        if span:
            headers["Range"] = span
        if body is not None:
            headers["Content-Type"] = content_type
        answer = self._send(method, url, headers, body, limit=limit)
        if answer.status >= 300:
            code, message = told(answer.data)
            self._refused_by(answer, code, message, path=path, place=place)
        return answer

    def _object(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='')}"

    def _get_list(self, path: str, query: Mapping[str, str]) -> bytes:
        url = f"{self._objects}?{urlencode(query, quote_via=quote, errors='surrogateescape')}"
        return self._request("GET", url, path=path, place=True).data

    def _list(self, path: str, query: Mapping[str, str]) -> Items:
        return whole(self._get_list(path, query))

    def _list_page(self, prefix: str, after: str, token: str) -> Listed:
        query = {
            "fields": "kind,nextPageToken,items(name,size,updated,md5Hash)",
            "maxResults": str(self.page_size),
            "prefix": prefix,
            # A third of an indented answer is blanks.
            "prettyPrint": "false",
        }
        if after:
            query["startOffset"] = after
        if token:
            query["pageToken"] = token
        answer, cut = cut_page(self._get_list(prefix, query))
        names, sizes, updated, md5s = cut
        page = page_of(
            names,
            integers(sizes),
            times(updated),
            md5s_of_base64(md5s),
            folder=self.folder.encode(),
            # startOffset is inclusive.
            after=bytes_of(after),
        )
        return Listed(page, answer.token, names)

    def _list_level(self, prefix: str, token: str) -> Level:
        query = {
            "delimiter": "/",
            "fields": "kind,nextPageToken,prefixes,items(name)",
            "maxResults": str(self.page_size),
            "prefix": prefix,
        }
        if token:
            query["pageToken"] = token
        answer = self._list(prefix, query)
        return Level(answer.prefixes, [item.name for item in answer.items], answer.token)

    def _ask_time(self) -> Answer:
        return self._request("GET", f"{self._objects}?fields=kind&maxResults=1", place=True)

    def _fetch(self, path: str, key: str, limit: int | None) -> bytes:
        if self._store is not None and addressable(key):
            self._tokens.sign({}, self._objects)
            try:
                return self._fetch_fast(self._store, path, key, limit)
            except Unavailable as error:
                # Google unpacks what was stored with Content-Encoding: gzip, for the registry too,
                # and does not say how long that is; obstore takes no such answer.
                if _NO_LENGTH not in error.message:
                    raise
                self.requests.add(read=1)
        answer = self._request("GET", f"{self._object(key)}?alt=media", path=path, limit=limit)
        self._check_packed(answer.headers.get("content-encoding", ""), path)
        return answer.data

    def _fetch_range(self, path: str, key: str, span: str) -> Answer:
        return self._request("GET", f"{self._object(key)}?alt=media", path=path, span=span)

    def _head(self, path: str, key: str) -> Entry:
        url = f"{self._object(key)}?fields=name,size,updated,md5Hash"
        item = decoded(decode_item, self._request("GET", url, path=path).data)
        md5 = md5s_of_base64([item.md5.encode()])[0].tobytes()
        return Entry(
            path=path,
            size=integer(item.size),
            modified=float(times([item.updated.encode()])[0]),
            md5=md5 if any(md5) else None,
        )

    def _send_deletes(self, versions: Sequence[tuple[str, str]]) -> dict[int, Part]:
        """Ask once to delete keys, each with a query that may name a version of it."""
        place = urlsplit(self._objects)
        body, content_type = batch_of(
            [
                f"DELETE {place.path}/{quote(key, safe='')}{query} HTTP/1.1\r\n"
                f"Host: {place.netloc}\r\nContent-Length: 0"
                for key, query in versions
            ],
            "<b+",
        )
        url = f"{self._endpoint}/batch/storage/v1"
        return parts_of(self._request("POST", url, body, content_type))

    def _delete_keys(self, keys: Sequence[str]) -> Answered:
        parts = self._send_deletes([(key, "") for key in keys])
        if not parts:
            # As good as no answer: the deletes may be done, or not.
            raise MalformedListing("the answer says nothing of any delete")
        return {
            key: outcome_of(key, parts[number]) if number in parts else "the answer leaves it out"
            for number, key in enumerate(keys)
        }

    def _put(self, path: str, key: str, data: bytes, if_absent: bool) -> None:
        boundary = uuid.uuid4().hex
        kind = "application/octet-stream"
        head = json.dumps({"name": key, "contentType": kind})
        body = b"".join(
            (
                f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n".encode(),
                f"{head}\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(),
                data,
                f"\r\n--{boundary}--\r\n".encode(),
            )
        )
        url = self._objects.replace("/storage/v1/", "/upload/storage/v1/", 1)
        url += "?uploadType=multipart&fields=name"
        if if_absent:
            url += "&ifGenerationMatch=0"
        content_type = f"multipart/related; boundary={boundary}"
        answer = self._send("POST", url, {**self._headers(), "Content-Type": content_type}, body)
        if if_absent and answer.status == 412:
            raise AlreadyExists("it is there already", path=path, driver=self.driver)
        if answer.status >= 300:
            self._refused_by(answer, *told(answer.data), path=path)

    def _copy(self, entry: Entry, source: str, target: str) -> None:
        before = Rewrite()
        bucket = quote(self.bucket, safe="")
        url = f"{self._object(source)}/rewriteTo/b/{bucket}/o/{quote(target, safe='')}"
        while True:
            fields = "done,rewriteToken,totalBytesRewritten"
            query = urlencode({"fields": fields, "rewriteToken": before.token})
            answer = self._request("POST", f"{url}?{query}", b"", path=entry.path)
            result = decoded(decode_rewrite, answer.data)
            if result.done:
                return
            # Large objects between classes or regions are copied piece by piece.
            if not result.token or result == before:
                # A token may stay as it is, but then there are more bytes each time.
                raise MalformedListing("the answer says neither that it is done nor how to go on")
            if is_withdrawn():
                raise Unavailable("is being copied still", path=entry.path, driver=self.driver)
            before = result
            self.requests.add(write=1)

    def close(self) -> None:
        """See :class:`~registry_drivers.base.Reader`."""
        super().close()
        self._tokens.close()
