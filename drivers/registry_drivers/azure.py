"""Azure Blob Storage.

Parameters: those of Distribution's drivers ``azure`` and GitLab's ``azure_v2``. azure-identity
gets tokens; the REST API is asked here: its listings tell the Content-MD5, which obstore leaves
out, and can name keys that begin with ``/``, and 256 deletes are one request.

Distribution 2.8 stored everything under names with a leading ``/``, Distribution 3 without.
``legacyrootprefix`` or ``trimlegacyrootprefix`` says which; without them both places are looked
at before the first use, since to take an empty one for an empty registry would be to lose the
other from sight.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from registry_drivers.azure_answers import level_in, outcome_of, page_in, told, whole_listing
from registry_drivers.azure_auth import (
    API_VERSION,
    Credential,
    check_service,
    connection_string,
    credential_of,
)
from registry_drivers.base import Capabilities, Entry
from registry_drivers.columns import (
    MalformedListing,
    bytes_of,
    integer,
    md5s_of_base64,
    text_of,
)
from registry_drivers.errors import (
    AlreadyExists,
    DriverConfigError,
    MissingExtra,
    NotFound,
    StorageError,
    Unavailable,
)
from registry_drivers.multipart import Part, batch_of, parts_of
from registry_drivers.object_client import Answered, Level, Listed, addressable, opening
from registry_drivers.object_store import ObjectStorage
from registry_drivers.paging import PageTokens
from registry_drivers.parameters import Parameters
from registry_drivers.retry import Retry
from registry_drivers.web import (
    CONNECT_SECONDS,
    READ_SECONDS,
    Answer,
    Web,
    ca_certificates,
    date_of,
)
from registry_drivers.withdrawal import is_withdrawn

DELETE_BATCH = 256
PAGE = 5000
COPY_POLL_SECONDS = 1.0
COPY_POLLS_A_LOOK = 5
"""After so many it is asked whether the copy is wanted still."""
# What a registry always has below its root; our own lock does not lie there.
REGISTRY = "docker/registry/v2/"


def open_azure(parameters: Mapping[str, Any], *, driver: str = "azure") -> AzureStorage:
    """Open the container that *parameters* describe; asks the storage for nothing yet.

    :raises DriverConfigError: a parameter is missing or wrong.
    :raises MissingExtra: obstore or azure-identity is needed and not installed.
    """
    try:
        import obstore  # noqa: F401  # told here rather than at the first read
    except ImportError as error:
        raise MissingExtra(
            f"the Azure driver needs {error.name}: pip install 'registry-garbage-collect[azure]'",
            driver=driver,
        ) from error
    given = Parameters(driver, parameters)
    container = given.required("container")
    # GitLab's registry writes below a folder ``<nil>`` then, Distribution 3 into the root.
    given.refuse_null("rootdirectory", "a folder '<nil>'; name theirs, or leave it out")
    if given.has("connectionstring"):
        account, service, credential = connection_string(given)
    else:
        realm = given.text("realm", default="core.windows.net")
        service = given.text("serviceurl")
        if not service:
            service = f"https://{given.required('accountname')}.blob.{realm}"
        if "://" not in service:
            service = f"https://{service}"
        check_service(given, "serviceurl", service)
        credential = credential_of(given, realm)
        account = _account(given, service)
    return AzureStorage(given, account, container, service.rstrip("/"), credential)


def _account(given: Parameters, service: str) -> str:
    """The account's name. Only a shared key signs with it; obstore wants one in any case."""
    if given.has("accountname"):
        return given.required("accountname")
    return service.partition("://")[2].partition("/")[0].partition(".")[0]


def _leading_slash(given: Parameters) -> bool | None:
    """Whether names begin with ``/``; None when nobody says so."""
    legacy: bool | None = None
    trim: bool | None = None
    if given.has("legacyrootprefix"):
        legacy = given.flag("legacyrootprefix", False)
    if given.has("trimlegacyrootprefix"):
        trim = given.flag("trimlegacyrootprefix", False)
    if legacy is not None and legacy == trim:
        raise given.error("legacyrootprefix", "contradicts trimlegacyrootprefix")
    if legacy is not None:
        return legacy
    return None if trim is None else not trim


class AzureStorage(ObjectStorage):
    """One container, or a folder of it; see :func:`open_azure`."""

    # "startFrom" came with a service version that is newer than what emulators and stacks speak.
    seekable = False

    def __init__(
        self,
        given: Parameters,
        account: str,
        container: str,
        service: str,
        credential: Credential,
    ) -> None:
        super().__init__(
            folder=given.folder(),
            web=Web(verify=not given.flag("skipverify", False)),
            retry=Retry.of(given, "max_retries", "retry_delay"),
            secrets=given.secrets,
        )
        self.driver = given.driver
        self.capabilities = Capabilities(
            delete_batch=DELETE_BATCH, folders=False, workers=32, seekable=False
        )
        self.page_size = PAGE
        self._account = account
        self._container = container
        self._service = service
        self._base = f"{service}/{quote(container)}"
        self._credential = credential
        self.where_told = (
            f"what storage.{self.driver} says of the service (serviceurl, realm, connectionstring)"
        )
        self._skip_verify = given.flag("skipverify", False)
        self.root = f"{self._base}/{self.folder}".rstrip("/")
        self._looking = threading.Lock()
        leading = _leading_slash(given)
        self._settled = leading is not None
        if leading:
            self._settle("/" + self.folder)
        if addressable(self.folder):
            with opening(self.driver):
                self._store = self._obstore()

    def _obstore(self) -> Any:
        from obstore.store import AzureStore

        options: dict[str, Any] = {
            "allow_http": self._service.startswith("http:"),
            "allow_invalid_certificates": self._skip_verify,
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": f"{READ_SECONDS}s",
        }
        if certificates := ca_certificates():
            options["root_certificate"] = certificates
        signing = self._credential.obstore()
        config = {"account_name": self._account, "endpoint": self._service}
        config.update(signing.pop("config", {}))
        if "credential_provider" in signing:
            signing["credential_provider"] = self._providing(signing["credential_provider"])
        return AzureStore(
            self._container,
            config=config,  # type: ignore[arg-type]  # a TypedDict that is built in steps
            client_options=options,  # type: ignore[arg-type]  # likewise
            retry_config={"max_retries": 0},
            **signing,
        )

    # --- with or without a leading slash

    def _settle(self, folder: str) -> None:
        self.folder = folder
        self.root = f"{self._base}/{folder}".rstrip("/")
        self._settled = True

    def _prepare(self) -> None:
        """Find out once whether names begin with ``/``."""
        if not self._settled:
            with self._looking:
                self._look_for_registry()

    def _look_for_registry(self) -> None:
        # Another thread may have been first.
        if not self._settled:
            plain, legacy = self.folder, "/" + self.folder
            found = [folder for folder in (plain, legacy) if self._holds(folder + REGISTRY)]
            if len(found) > 1:
                raise DriverConfigError(
                    f"{self._base} holds a registry under {plain + REGISTRY!r} and one under "
                    f"{legacy + REGISTRY!r}: say which with storage.{self.driver}.legacyrootprefix "
                    "(true for the leading '/')",
                    driver=self.driver,
                )
            self._settle(found[0] if found else plain)
            if not addressable(self.folder):
                self._store = None

    def _holds(self, prefix: str) -> bool:
        query = {"prefix": prefix, "maxresults": "1"}
        markers = PageTokens(prefix, self.driver)

        def ask() -> bytes:
            self.requests.add(list=1)
            return self._listing(prefix, query)

        while True:
            document: bytes = self._call(ask)
            if b"<Blob>" in document:
                return True
            # A page may be empty and yet not be the last.
            if not (marker := text_of(document, b"NextMarker")):
                return False
            query["marker"] = markers.next(marker, empty=True)

    # --- requests

    def _request(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        path: str = "",
        limit: int | None = None,
        expected: Sequence[int] = (),
    ) -> Answer:
        url = self._url(key, query)
        sent = {"x-ms-version": API_VERSION, **(headers or {})}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        signed = self._credential.sign(method, url, sent)
        answer = self._send(method, self._credential.url(url), signed, body, limit=limit)
        if answer.status >= 300 and answer.status not in expected:
            code, message = told(answer.headers, answer.data)
            self._refused_by(answer, code, message, path=path, place=not key)
        return answer

    def _url(self, key: str, query: Mapping[str, str] | None = None) -> str:
        url = f"{self._base}/{quote(bytes_of(key), safe='/-_.~')}" if key else self._base
        if query:
            url += "?" + "&".join(
                f"{name}={quote(bytes_of(value), safe='-_.~')}" for name, value in query.items()
            )
        return url

    def _listing(self, path: str, query: Mapping[str, str]) -> bytes:
        whole = {"restype": "container", "comp": "list", **query}
        document = self._request("GET", query=whole, path=path).data
        return whole_listing(document)

    def _list_page(self, prefix: str, after: str, token: str) -> Listed:
        query = {"prefix": prefix, "maxresults": str(self.page_size)}
        if token:
            query["marker"] = token
        document = self._listing(prefix, query)
        return page_in(document, self.folder.encode(), bytes_of(after))

    def _list_level(self, prefix: str, token: str) -> Level:
        query = {"prefix": prefix, "delimiter": "/", "maxresults": str(self.page_size)}
        if token:
            query["marker"] = token
        document = self._listing(prefix, query)
        return level_in(document)

    def _ask_time(self) -> Answer:
        query = {"restype": "container", "comp": "list", "maxresults": "1"}
        return self._request("GET", query=query)

    def _fetch(self, path: str, key: str, limit: int | None) -> bytes:
        if self._store is not None and addressable(key):
            self._credential.prepare()
            return self._fetch_fast(self._store, path, key, limit)
        answer = self._request("GET", key, path=path, limit=limit)
        self._check_packed(answer.headers.get("content-encoding", ""), path)
        return answer.data

    def _fetch_range(self, path: str, key: str, span: str) -> Answer:
        # Under this name a signature covers it, whatever else it covers.
        return self._request("GET", key, headers={"x-ms-range": span}, path=path)

    def _head(self, path: str, key: str) -> Entry:
        headers = self._request("HEAD", key, path=path).headers
        if headers.get("x-ms-meta-hdi_isfolder") == "true":
            raise NotFound("it is a directory", path=path, driver=self.driver)
        md5 = md5s_of_base64([headers.get("content-md5", "").encode()])[0].tobytes()
        return Entry(
            path=path,
            size=integer(headers.get("content-length", "")),
            modified=date_of(headers.get("last-modified", "")) or 0.0,
            md5=md5 if any(md5) else None,
        )

    def _send_deletes(self, blobs: Sequence[tuple[str, Mapping[str, str]]]) -> dict[int, Part]:
        """Ask once to delete blobs, each with a query that may name a version of it."""
        requests = []
        for key, query in blobs:
            url = self._url(key, query)
            # Each is signed by itself, as if it were sent alone.
            signed = self._credential.sign("DELETE", url, {"Content-Length": "0"})
            place = urlsplit(self._credential.url(url))
            target = f"{place.path}?{place.query}" if place.query else place.path
            lines = [f"DELETE {target} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in signed.items()]
            requests.append("\r\n".join(lines))
        body, content_type = batch_of(requests, "")
        answer = self._request(
            "POST",
            query={"restype": "container", "comp": "batch"},
            headers={"Content-Type": content_type},
            body=body,
        )
        return parts_of(answer)

    def _delete_keys(self, keys: Sequence[str]) -> Answered:
        parts = self._send_deletes([(key, {}) for key in keys])
        if not parts:
            # As good as no answer: the deletes may be done, or not.
            raise MalformedListing("the answer says nothing of any delete")
        return {
            key: outcome_of(key, parts[number]) if number in parts else "the answer leaves it out"
            for number, key in enumerate(keys)
        }

    def _put(self, path: str, key: str, data: bytes, if_absent: bool) -> None:
        headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
        if if_absent:
            headers["If-None-Match"] = "*"
        answer = self._request(
            "PUT", key, headers=headers, body=data, path=path, expected=(409, 412)
        )
        if answer.status < 300:
            return
        code, message = told(answer.headers, answer.data)
        if if_absent and code in ("BlobAlreadyExists", "ConditionNotMet"):
            raise AlreadyExists("it is there already", path=path, driver=self.driver)
        self._fail(answer.status, code, message, path=path)

    def _copy(self, entry: Entry, source: str, target: str) -> None:
        headers = {"x-ms-copy-source": self._credential.url(self._url(source))}
        answer = self._request(
            "PUT", target, headers=headers, body=b"", path=entry.path, expected=(409,)
        )
        if answer.status == 409:
            code, message = told(answer.headers, answer.data)
            if code != "PendingCopyOperation":
                self._fail(answer.status, code, message, path=entry.path)
            # A try before this one began it, and its answer was lost.
            answer = self._request("HEAD", target, path=entry.path)
        polls = itertools.count(1)
        while (status := answer.headers.get("x-ms-copy-status", "success")) == "pending":
            if next(polls) % COPY_POLLS_A_LOOK == 0 and is_withdrawn():
                raise Unavailable("is being copied still", path=entry.path, driver=self.driver)
            self.retry.sleep(COPY_POLL_SECONDS)
            self.requests.add(read=1)
            answer = self._request("HEAD", target, path=entry.path)
        if status != "success":
            # It may say the source back, which is signed.
            reason = self._clean(answer.headers.get("x-ms-copy-status-description", ""))
            raise StorageError(
                f"the copy ended as {status}: {reason}", path=entry.path, driver=self.driver
            )
