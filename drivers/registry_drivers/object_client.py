"""Asking an object store over HTTP: what the drivers for S3, GCS and Azure build upon.

Each request is sent once, mapped to :mod:`registry_drivers.errors`, counted, and tried again when
it failed in passing. The SDKs hold the credentials. LIST is sent by :mod:`registry_drivers.web`
and read by :mod:`registry_drivers.columns`: that costs half of what obstore does, tells the MD5 on
all three, and keys that obstore's paths cannot hold (``a//b``, ``/a``, the folder marker ``a/``)
come as they are. Objects are read through obstore, at a fifth of that, except those keys.
"""

from __future__ import annotations

import abc
import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from registry_drivers.base import Capabilities, Entry, Outcome, Page, Requests
from registry_drivers.columns import Column, MalformedListing, unescape
from registry_drivers.errors import (
    AccessDenied,
    DriverConfigError,
    InvalidPath,
    NotFound,
    StorageError,
    TooLarge,
    Unavailable,
    Unsupported,
)
from registry_drivers.paths import check_path
from registry_drivers.retry import Retry
from registry_drivers.web import CA_HINT, Answer, Web

_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_ADDRESS = re.compile(r"https?://[^\s\")]*")
# Azure tells a request's id and time in further lines; in a debug text they are escaped.
LINE_END = re.compile(r"[\r\n]|\\[rn]")
_STATUS_IN_DEBUG = re.compile(r"status: (\d{3}),")
# Beside what the config calls secret: tokens and signatures, should a store say them back.
_SECRET_WORDS = re.compile(
    r"(?i)((?:sig|signature|x-amz-security-token)=|x-amz-security-token: |bearer )[^&\s\"'<>,]+"
)


class RangeBeyondEnd(StorageError):
    """The object ends before what was asked for."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One answer to a recursive listing; ``token`` asks for the next one, empty after the last.

    ``keys``: all that it lists, in that order; the page leaves out what is no object of a registry.
    """

    page: Page
    token: str
    keys: Column


@dataclass(frozen=True, slots=True)
class Level:
    """One answer to a listing of a folder: whole keys, folders with their ``/``."""

    folders: Sequence[str]
    files: Sequence[str]
    token: str


# What became of the keys of one delete request: None for a passing fault, with its reason.
Answered = dict[str, Outcome | str]


class ObjectClient(abc.ABC):
    """One bucket, and how it is asked; :class:`~registry_drivers.object_store.ObjectStorage` asks.

    :ivar before_request: called before each request is sent, retries too; a rate limit waits here.
    :ivar retry: what is done about passing faults.
    :ivar page_size: keys that a page of a listing is asked to have.
    :ivar seekable: listings come in the order of the keys' bytes, and can begin at any of them.
        Otherwise ``start_after`` is obeyed by leaving out what was listed, which costs the whole
        listing; ranges are then better cut by prefix. SeaweedFS is found out by its first answer.

    Subclasses set ``driver``, ``root``, ``capabilities``, and implement what begins with ``_``.
    """

    driver: str
    root: str
    capabilities: Capabilities
    seekable = True
    tells_gone = True
    """Whether the store says that there was nothing to delete."""
    may_unpack = True
    """Whether a registry may get something else than what is stored with a Content-Encoding."""
    where_told = "the endpoint"
    """What says where the store is, for messages."""

    def __init__(self, *, folder: str, web: Web, retry: Retry, secrets: Sequence[str]) -> None:
        self.requests = Requests()
        self.before_request: Callable[[], None] = _nothing
        self.folder = folder
        self.retry = retry
        self.page_size = 1000
        self._web = web
        self._store: Any = None  # obstore's, where it can address the keys
        self._secrets = [secret for secret in secrets if len(secret) > 3]
        self._clock: tuple[float, float] | None = None
        self._wait_until = -math.inf
        self._refused_credentials: StorageError | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.root}>"

    # --- for subclasses

    @abc.abstractmethod
    def _list_page(self, prefix: str, after: str, token: str) -> Listed:
        """One page of the keys that begin with *prefix*; *after* counts while there is no token."""

    @abc.abstractmethod
    def _list_level(self, prefix: str, token: str) -> Level:
        """One page of what is directly below *prefix*."""

    @abc.abstractmethod
    def _fetch(self, path: str, key: str, limit: int | None) -> bytes:
        """The bytes of *key*."""

    @abc.abstractmethod
    def _fetch_range(self, path: str, key: str, span: str) -> Answer:
        """The answer to a request for *span* of *key*, in the form of the header ``Range``."""

    @abc.abstractmethod
    def _head(self, path: str, key: str) -> Entry:
        """What is known of *key*."""

    @abc.abstractmethod
    def _delete_keys(self, keys: Sequence[str]) -> Answered:
        """Send one delete request for different *keys*."""

    @abc.abstractmethod
    def _put(self, path: str, key: str, data: bytes, if_absent: bool) -> None:
        """Store *data*; raises ``AlreadyExists`` where the store refused for that reason."""

    @abc.abstractmethod
    def _copy(self, entry: Entry, source: str, target: str) -> None:
        """Copy a key, whose size and MD5 are *entry*'s, within the store."""

    @abc.abstractmethod
    def _ask_time(self) -> Answer:
        """The answer to a cheap request."""

    def _prepare(self) -> None:  # noqa: B027  # most stores have nothing to find out
        """Called before keys are made of paths; whoever finds out where things are does it here."""

    # --- what they call

    def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        limit: int | None = None,
    ) -> Answer:
        """Send a signed request and keep the server's clock in mind."""
        self.before_request()
        answer = self._web.send(method, url, headers, body, limit=limit)
        if (date := answer.date) is not None:
            self._clock = (date, time.monotonic())
        if wait := answer.wait:
            # Of a day that it asks for, what comes later hears nothing.
            until = time.monotonic() + min(wait, self.retry.longest)
            self._wait_until = max(self._wait_until, until)
        return answer

    def _refused_by(
        self, answer: Answer, code: str, message: str, *, path: str = "", place: bool = False
    ) -> NoReturn:
        """Raise what *answer* means, an error or a redirect: none is followed."""
        if answer.status in REDIRECTS:
            to = urlsplit(answer.headers.get("location", ""))
            where = f"{to.scheme}://{to.netloc.rpartition('@')[2]}" if to.netloc else "elsewhere"
            message = f"{self.root} sends on to {where}: is {self.where_told} right?"
        self._fail(answer.status, code, message, path=path, place=place)

    def _fail(
        self, status: int, code: str, message: str, *, path: str = "", place: bool = False
    ) -> NoReturn:
        """Raise what an answer with an error means.

        :param place: the answer is about the bucket, not about an object.
        """
        # In one line, whatever a proxy has sent.
        message = " ".join(message.split())
        text = self._clean(f"{code or 'error'}: {message}".rstrip(": ") + f" (HTTP {status})")
        kind = RangeBeyondEnd if status == 416 else _kind(status, code)
        if kind is NotFound and not place and code in NO_BUCKET:
            # A missing bucket says nothing about the object.
            kind = StorageError
        if code in _ARCHIVED:
            text += (
                "; it is in an archive class: restore it, and take docker/registry out of the "
                "lifecycle rule that has put it there"
            )
        if code in NO_BUCKET or (kind is NotFound and place):
            text = f"{self.root} does not exist, check its name and region: {text}"
        raise kind(text, path=path, driver=self.driver)

    def _clean(self, text: str) -> str:
        """*text* without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _SECRET_WORDS.sub(r"\1***", text)

    def _call(self, work: Callable[[], Any], path: str = "") -> Any:
        """What *work* returns, tried again while it meets passing faults.

        An answer that is not what was asked for is one: a page of a proxy's, or half of it.
        """

        def ask() -> Any:
            try:
                return work()
            except MalformedListing as error:
                raise Unavailable(str(error), path=path, driver=self.driver) from error

        return self.retry.call(ask, self.requests, lambda: self._wait_until - time.monotonic())

    def _key(self, path: str) -> str:
        check_path(path, self.driver)
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InvalidPath(
                "object stores have UTF-8 names", path=repr(path), driver=self.driver
            ) from None
        self._prepare()
        return self.folder + path

    # --- reading through obstore

    def _fetch_fast(self, store: Any, path: str, key: str, limit: int | None) -> bytes:
        """The bytes of *key* from an obstore store."""
        import obstore

        self.before_request()
        try:
            result = obstore.get(store, key)
            self._check_packed(str(result.attributes.get("Content-Encoding", "")), path)
            size = result.meta["size"]
            if limit is not None and size > limit:
                raise TooLarge(f"{size} bytes, more than the {limit} allowed")
            return bytes(result.bytes())
        except (obstore.exceptions.BaseError, FileNotFoundError, ValueError, OSError) as error:
            if (refused := self._refused_credentials) is not None:
                self._refused_credentials = None
                raise refused from None
            self._fail_fast(error, path)

    def _check_packed(self, encoding: str, path: str) -> None:
        """Refuse what was stored with a Content-Encoding that the registry's client may unpack.

        :raises StorageError: this was. Other encodings than these say how it was sent only.
        """
        if self.may_unpack and _PACKED.search(encoding):
            raise StorageError(
                f"it was stored with Content-Encoding: {encoding[:40]}, so that nobody knows what "
                "the registry reads: store its content unpacked, without that header",
                path=path,
                driver=self.driver,
            )

    def _providing(self, provide: Callable[[], Any]) -> Callable[[], Any]:
        """*provide* for obstore, which hands on neither the kind nor the words of its errors."""

        def ask() -> Any:
            try:
                return provide()
            except StorageError as error:
                self._refused_credentials = error
                raise

        return ask

    def _fail_fast(self, error: Exception, path: str) -> NoReturn:
        text = str(error)
        match = _STATUS.search(text) or _STATUS_IN_DEBUG.search(text)
        status = int(match[1]) if match else 0
        code = re.search(r"<Code>(\w+)</Code>", text)
        said = re.search(r"<Message>([^<]*)</Message>", text)
        if isinstance(error, FileNotFoundError):
            status = 404
        elif status == 0:
            reason = self._clean(text.partition("\n")[0])
            # What stands in an address, as a repository's name, is no reason.
            without = _ADDRESS.sub("", text)
            if "InvalidCertificate" in without:
                raise StorageError(f"{reason}; {CA_HINT}", path=path, driver=self.driver) from None
            if "redirect" in without:
                raise StorageError(reason, path=path, driver=self.driver) from None
            # No answer: a time-out, a broken connection, a body that was cut.
            raise Unavailable(reason, path=path, driver=self.driver) from None
        message = LINE_END.split(said[1].lstrip())[0] if said else "the storage refused"
        message = unescape(message.encode()).decode("utf-8", "replace")
        self._fail(status, code[1] if code else "", message, path=path)


@contextlib.contextmanager
def opening(driver: str) -> Iterator[None]:
    """An obstore store is made of what the config says.

    :raises DriverConfigError: it cannot be.
    """
    import obstore

    try:
        yield
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise DriverConfigError(str(error).partition("\n")[0], driver=driver) from None


# Empty parts, and what it takes for a control character.
_NOT_ADDRESSABLE = re.compile(r"^/|//|[\x00-\x1f\x7f]")


def addressable(key: str) -> bool:
    """Whether obstore can name a key, or those below a folder."""
    return _NOT_ADDRESSABLE.search(key) is None


# Source: IANA's HTTP content codings. Some stores keep an upload's "aws-chunked".
_PACKED = re.compile(r"(?i)\b(gzip|deflate|br|zstd|compress)\b")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
# By a lifecycle rule, as a rule: Amazon's Glacier classes, and tiers; Azure's tier.
_ARCHIVED = frozenset(
    {"BlobArchived", "BlobBeingRehydrated", "InvalidObjectState", "ObjectNotInActiveTierError"}
)
_PASSING_CODES = frozenset(
    {
        "InternalError",
        "OperationAborted",
        "OperationTimedOut",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)


def is_passing(status: int, code: str) -> bool:
    """Whether an error is worth another try."""
    return code in _PASSING_CODES or status in (408, 425, 429) or (status >= 500 and status != 501)


def _kind(status: int, code: str) -> type[StorageError]:
    if is_passing(status, code):
        return Unavailable
    if status in (401, 403):
        return AccessDenied
    if status == 404:
        return NotFound
    if status == 501:
        return Unsupported
    return StorageError


def _nothing() -> None:
    pass
