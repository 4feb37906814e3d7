"""Google Cloud Storage.

Parameters: those of Distribution's and GitLab's driver ``gcs``. google-auth holds the credentials;
the JSON API is asked here: a listing tells the MD5 and nothing that is not wanted, and 100 deletes
are one request (google-cloud-storage 3 asks for the bucket's metadata beside each of them, which
nobody counts and operators may have denied). ``STORAGE_EMULATOR_HOST`` names an emulator, as for
Google's own clients.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from registry_drivers.base import Capabilities, Deletion, Entry, Outcome
from registry_drivers.columns import (
    Column,
    MalformedListing,
    integers,
    json_columns,
    md5s_of_base64,
    page_of,
    times,
)
from registry_drivers.errors import (
    AccessDenied,
    AlreadyExists,
    DriverConfigError,
    MissingExtra,
    StorageError,
    Unavailable,
)
from registry_drivers.multipart import Part, batch_of, parts_of
from registry_drivers.object_store import (
    Answered,
    Level,
    Listed,
    ObjectStorage,
    addressable,
    is_passing,
)
from registry_drivers.parameters import Parameters
from registry_drivers.retry import Retry
from registry_drivers.web import (
    CA_HINT,
    CONNECT_SECONDS,
    READ_SECONDS,
    UNTRUSTED,
    Answer,
    Web,
    ca_bundle,
    ca_certificates,
)

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

T = TypeVar("T")

ENDPOINT = "https://storage.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
DELETE_BATCH = 100


_SECRETS = ("private_key", "private_key_id", "client_secret", "refresh_token")


class _Item(msgspec.Struct):
    name: str
    size: str = "0"
    updated: str = ""
    md5: str = msgspec.field(default="", name="md5Hash")


class _Items(msgspec.Struct):
    """An answer of ``objects.list``."""

    kind: str
    items: list[_Item] = msgspec.field(default_factory=list)
    prefixes: list[str] = msgspec.field(default_factory=list)
    token: str = msgspec.field(default="", name="nextPageToken")


class _Rewrite(msgspec.Struct):
    done: bool = False
    token: str = msgspec.field(default="", name="rewriteToken")


_decode_rewrite = msgspec.json.Decoder(_Rewrite).decode
_decode_items = msgspec.json.Decoder(_Items).decode
_WANTED = (b"name", b"size", b"updated", b"md5Hash")
_decode_item = msgspec.json.Decoder(_Item).decode


def open_gcs(parameters: Mapping[str, Any], *, driver: str = "gcs") -> GCSStorage:
    """Open the bucket that *parameters* describe; asks the storage for nothing yet.

    :raises DriverConfigError: a parameter is missing or wrong, or there are no credentials.
    :raises MissingExtra: google-auth or obstore is not installed.
    """
    try:
        import google.auth.transport.requests  # noqa: F401  # with what the extra brings
        import obstore  # noqa: F401  # told here rather than at the first read
    except ImportError as error:
        raise MissingExtra(
            f"the GCS driver needs {error.name}: pip install 'registry-garbage-collect[gcs]'",
            driver=driver,
        ) from error
    given = Parameters(driver, parameters)
    bucket = given.required("bucket")
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if emulator and "://" not in emulator:
        emulator = f"http://{emulator}"
    if emulator:
        from google.auth.credentials import AnonymousCredentials

        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]  # Google's
        return GCSStorage(given, bucket, anonymous, emulator.rstrip("/"))
    return GCSStorage(given, bucket, _credentials(given), ENDPOINT)


def _credentials(given: Parameters) -> Credentials:
    import google.auth.exceptions

    logger = logging.getLogger("google.auth._default")
    level = logger.level
    try:
        with warnings.catch_warnings():
            # google-auth warns of keys of unknown origin, of a user's own credentials, and that
            # nobody named a project; the config is the operator's, and no project is needed.
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            return _load_credentials(given)
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
        name = "keyfile" if given.has("keyfile") else "credentials"
        # The SDK's message may repeat what is in the key.
        reason = "no usable Google credentials"
        if isinstance(error, OSError):
            reason += f": {error.strerror}"
        elif not given.has("credentials"):
            reason += f": {str(error).splitlines()[0]}"
        raise given.error(name, reason) from None
    finally:
        logger.setLevel(level)


def _load_credentials(given: Parameters) -> Credentials:
    import google.auth

    auth: Any = google.auth  # half of it has types
    credentials: Credentials
    if given.has("keyfile"):
        credentials, _ = auth.load_credentials_from_file(given.text("keyfile"), scopes=[SCOPE])
    elif given.has("credentials"):
        credentials, _ = auth.load_credentials_from_dict(_inline(given), scopes=[SCOPE])
    else:
        credentials, _ = auth.default(scopes=[SCOPE])
    return credentials


def _inline(given: Parameters) -> Mapping[str, Any]:
    try:
        value = given.mapping("credentials")
    except DriverConfigError:
        value = json.loads(given.secret("credentials"))
    given.secrets += [str(value[name]) for name in _SECRETS if name in value]
    return {str(name): text for name, text in value.items()}


class GCSStorage(ObjectStorage):
    """One bucket, or a folder of it; see :func:`open_gcs`."""

    def __init__(
        self, given: Parameters, bucket: str, credentials: Credentials, endpoint: str
    ) -> None:
        super().__init__(folder=given.folder(), web=Web(), retry=Retry(), secrets=given.secrets)
        import requests
        from google.auth.transport.requests import Request

        self.driver = given.driver
        self.bucket = bucket
        self.root = f"gs://{bucket}/{self.folder}".rstrip("/")
        if endpoint != ENDPOINT:
            self.root = f"{self.root} at {endpoint}"
        self.capabilities = Capabilities(delete_batch=DELETE_BATCH, folders=False, workers=32)
        self._endpoint = endpoint
        self._objects = f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}/o"
        self._credentials = credentials
        self._signing = threading.Lock()
        self._session = requests.Session()
        self._session.verify = ca_bundle() or True
        self._refresh = Request(self._session)
        self._store = self._obstore() if addressable(self.folder) else None

    def _obstore(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from obstore.store import GCSStore

        options: dict[str, Any] = {
            "allow_http": self._endpoint.startswith("http:"),
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": f"{READ_SECONDS}s",
        }
        if certificates := ca_certificates():
            options["root_certificate"] = certificates
        anonymous = isinstance(self._credentials, AnonymousCredentials)
        return GCSStore(
            self.bucket,
            config={"base_url": self._endpoint, "skip_signature": anonymous},
            client_options=options,  # type: ignore[arg-type]  # a TypedDict that is built in steps
            retry_config={"max_retries": 0},
            credential_provider=None if anonymous else self._providing(self._provide),
        )

    def _provide(self) -> Any:
        self._headers()
        return {
            "token": self._credentials.token,
            # google-auth renews it in time; ask it again every few minutes.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    def _headers(self) -> dict[str, str]:
        """An ``Authorization`` header, with a token that is valid."""
        headers: dict[str, str] = {}
        credentials: Any = self._credentials  # its methods have no types
        with self._signing, self._google_errors():
            credentials.before_request(self._refresh, "GET", self._objects, headers)
        return headers

    @contextlib.contextmanager
    def _google_errors(self) -> Iterator[None]:
        """Nothing of google-auth's leaves."""
        import google.auth.exceptions as auth
        import requests

        try:
            yield
        except (auth.TransportError, requests.RequestException) as error:
            if UNTRUSTED in str(error):
                reason = f"no token: the certificate is not trusted; {CA_HINT}"
                raise StorageError(reason, driver=self.driver) from None
            raise Unavailable(f"no token: {type(error).__name__}", driver=self.driver) from None
        except auth.RefreshError as error:
            kind = Unavailable if error.retryable else AccessDenied
            reason = self._clean(str(error.args[0] if error.args else error))
            raise kind(f"no token: {reason}", driver=self.driver) from None
        except auth.GoogleAuthError as error:
            raise StorageError(self._clean(str(error)), driver=self.driver) from None

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
            self._fail(answer.status, code, message, path=path, place=place)
        return answer

    def _object(self, key: str) -> str:
        return f"{self._objects}/{quote(key, safe='')}"

    def _get_list(self, path: str, query: Mapping[str, str]) -> bytes:
        url = f"{self._objects}?{urlencode(query, quote_via=quote)}"
        return self._request("GET", url, path=path, place=True).data

    def _list(self, path: str, query: Mapping[str, str]) -> _Items:
        return _whole(self._get_list(path, query))

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
        answer, cut = self._cut(self._get_list(prefix, query))
        names, sizes, updated, md5s = cut
        page = page_of(
            names,
            integers(sizes),
            times(updated),
            md5s_of_base64(md5s),
            folder=self.folder.encode(),
            # startOffset is inclusive.
            after=after.encode(),
        )
        return Listed(page, answer.token)

    def _cut(self, document: bytes) -> tuple[_Items, list[Column]]:
        """What stands around the rows of a listing, and the rows as columns.

        Cut out of the text, which costs a third of making an object of each; where a text is not
        as it usually is, all of it is parsed.
        """
        start, stop = document.find(b"["), document.rfind(b"]")
        if document[:start].rstrip().endswith(b":") and stop > start:
            cut = json_columns(document[start : stop + 1], _WANTED)
            if cut is not None:
                return _whole(document[: start + 1] + document[stop:]), cut
        answer = _whole(document)
        items = answer.items
        return answer, [
            _encoded([item.name for item in items]),
            _encoded([item.size for item in items]),
            _encoded([item.updated for item in items]),
            _encoded([item.md5 for item in items]),
        ]

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
        if self._store is not None:
            return self._fetch_fast(self._store, path, key, limit)
        return self._request("GET", f"{self._object(key)}?alt=media", path=path, limit=limit).data

    def _fetch_range(self, path: str, key: str, span: str) -> Answer:
        return self._request("GET", f"{self._object(key)}?alt=media", path=path, span=span)

    def _head(self, path: str, key: str) -> Entry:
        url = f"{self._object(key)}?fields=name,size,updated,md5Hash"
        item = decoded(_decode_item, self._request("GET", url, path=path).data)
        md5 = md5s_of_base64([item.md5.encode()])[0].tobytes()
        return Entry(
            path=path,
            size=int(item.size),
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
        return {
            key: _outcome(key, parts[number]) if number in parts else "the answer leaves it out"
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
            self._fail(answer.status, *told(answer.data), path=path)

    def _copy(self, entry: Entry, source: str, target: str) -> None:
        token = ""
        bucket = quote(self.bucket, safe="")
        url = f"{self._object(source)}/rewriteTo/b/{bucket}/o/{quote(target, safe='')}"
        while True:
            query = urlencode({"fields": "done,rewriteToken", "rewriteToken": token})
            answer = self._request("POST", f"{url}?{query}", b"", path=entry.path)
            result = decoded(_decode_rewrite, answer.data)
            if result.done:
                return
            # Large objects between classes or regions are copied piece by piece.
            token = result.token
            self.requests.add(write=1)

    def close(self) -> None:
        """See :class:`~registry_drivers.base.Reader`."""
        super().close()
        self._session.close()


def _whole(document: bytes) -> _Items:
    items = decoded(_decode_items, document)
    if items.kind != "storage#objects":
        raise MalformedListing("the answer is no listing")
    return items


def _encoded(texts: Sequence[str]) -> Sequence[bytes]:
    # At once, which costs a third of doing it one by one; names have no NUL.
    return "\0".join(texts).encode().split(b"\0") if texts else ()


def _outcome(key: str, part: Part) -> Outcome | str:
    if part.status < 300:
        return Outcome(key, Deletion.DELETED)
    if part.status == 404:
        return Outcome(key, Deletion.GONE_ALREADY)
    code, message = told(part.data)
    text = f"{code}: {message} (HTTP {part.status})"
    return text if is_passing(part.status, code) else Outcome(key, Deletion.FAILED, text)


def decoded(decode: Callable[[bytes], T], data: bytes) -> T:
    """What *decode* makes of an answer.

    :raises MalformedListing: it is something else.
    """
    try:
        return decode(data)
    except msgspec.DecodeError as error:
        raise MalformedListing(f"the answer is not what was asked for: {error}") from error


def told(content: bytes) -> tuple[str, str]:
    """Reason and message of an error of the JSON API."""
    try:
        error = json.loads(content)["error"]
        return str(error.get("errors", [{}])[0].get("reason", "error")), str(error["message"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "error", content[:200].decode("utf-8", "replace").strip()
