"""What the drivers for S3, Google Cloud Storage and Azure have in common.

Each request is sent once, mapped to :mod:`registry_drivers.errors`, counted, and tried again when
it failed in passing; a listing goes on with the page that failed. The SDKs hold the credentials.
LIST is sent by :mod:`registry_drivers.web` and read by :mod:`registry_drivers.columns`: that costs
half of what obstore does, tells the MD5 on all three, and keys that obstore's paths cannot hold
(``a//b``, ``/a``, the folder marker ``a/``) come as they are. Objects are read through obstore,
at a fifth of that, except those keys.
"""

from __future__ import annotations

import abc
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

from msgspec.structs import replace

from registry_drivers.base import (
    Capabilities,
    Children,
    Deletion,
    Entry,
    Outcome,
    Page,
    Requests,
)
from registry_drivers.columns import MalformedListing
from registry_drivers.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    NotFound,
    StorageError,
    TooLarge,
    Unavailable,
    Unsupported,
)
from registry_drivers.paths import check_beginning, check_path, check_prefix
from registry_drivers.retry import Retry
from registry_drivers.web import CA_HINT, Answer, Web

# How long a server's clock is believed without asking again, in seconds.
CLOCK_TRUSTED_SECONDS = 60.0
_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_STATUS_IN_DEBUG = re.compile(r"status: (\d{3}),")
# Beside what the config calls secret: tokens and signatures, should a store say them back.
_SECRET_WORDS = re.compile(
    r"(?i)((?:sig|signature|x-amz-security-token)=|x-amz-security-token: |bearer )[^&\s\"'<>,]+"
)


class RangeBeyondEnd(StorageError):
    """The object ends before what was asked for."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One answer to a recursive listing; ``token`` asks for the next one, empty after the last."""

    page: Page
    token: str


@dataclass(frozen=True, slots=True)
class Level:
    """One answer to a listing of a folder: whole keys, folders with their ``/``."""

    folders: Sequence[str]
    files: Sequence[str]
    token: str


# What became of the keys of one delete request: None for a passing fault, with its reason.
Answered = dict[str, Outcome | str]


class ObjectStorage(abc.ABC):
    """A :class:`~registry_drivers.base.Storage` over HTTP.

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

    def __init__(self, *, folder: str, web: Web, retry: Retry, secrets: Sequence[str]) -> None:
        self.requests = Requests()
        self.before_request: Callable[[], None] = _nothing
        self.folder = folder
        self.retry = retry
        self.page_size = 1000
        self._web = web
        self._secrets = [secret for secret in secrets if len(secret) > 3]
        self._clock: tuple[float, float] | None = None
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
        return answer

    def _fail(
        self, status: int, code: str, message: str, *, path: str = "", place: bool = False
    ) -> NoReturn:
        """Raise what an answer with an error means.

        :param place: the answer is about the bucket, not about an object.
        """
        text = self._clean(f"{code or 'error'}: {message}".rstrip(": ") + f" (HTTP {status})")
        kind = RangeBeyondEnd if status == 416 else _kind(status, code)
        if kind is NotFound and not place and code in NO_BUCKET:
            # A missing bucket says nothing about the object.
            kind = StorageError
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

        return self.retry.call(ask, self.requests)

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

    # --- Reader

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """See :class:`~registry_drivers.base.Reader`; one page is one request."""
        check_prefix(prefix, self.driver)
        return self._pages(prefix, start_after)

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        """See :class:`~registry_drivers.base.NameReader`; one page is one request."""
        check_beginning(beginning, self.driver)
        return self._pages(beginning, token=token)

    def _pages(
        self, prefix: str, start_after: str | None = None, token: str = ""
    ) -> Iterator[Page]:
        self._prepare()
        after = start_after or ""
        if not after.startswith(prefix):
            # Some stores refuse a bound that does not begin with the prefix.
            if after.encode() > prefix.encode():
                return
            after = ""
        after = self.folder + after if after else ""
        reached = b""
        while True:

            def ask(token: str = token) -> Listed:
                self.requests.add(list=1)
                return self._list_page(self.folder + prefix, after, token)

            listed: Listed = self._call(ask, prefix)
            if len(listed.page):
                first, last = listed.page.paths[0], listed.page.paths[len(listed.page) - 1]
                if self.seekable and first.encode() <= reached:
                    # Whoever cuts a listing at bounds would miss what is out of its place.
                    raise StorageError(
                        "this storage does not list in order, and is none that is known to do so",
                        path=prefix,
                        driver=self.driver,
                    )
                reached = last.encode()
                # Where listings can begin at any key nobody needs it.
                yield listed.page if self.seekable else replace(listed.page, token=listed.token)
            if not listed.token:
                return
            if listed.token == token:
                raise StorageError(
                    "the storage sends the same page again", path=prefix, driver=self.driver
                )
            token = listed.token

    def children(self, prefix: str) -> Children:
        """See :class:`~registry_drivers.base.Reader`."""
        check_prefix(prefix, self.driver)
        self._prepare()
        place = self.folder + prefix
        folders: set[str] = set()
        files: set[str] = set()
        token = ""
        while True:

            def ask(token: str = token) -> Level:
                self.requests.add(list=1)
                return self._list_level(place, token)

            level: Level = self._call(ask, prefix)
            folders.update(key[len(place) :].rstrip("/") for key in level.folders)
            files.update(key[len(place) :] for key in level.files if not key.endswith("/"))
            token = level.token
            if not token:
                # Names that no path may have (an empty part, a dot) are nobody's folder.
                return Children(tuple(sorted(folders - _NO_NAMES)), tuple(sorted(files - {""})))

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        key = self._key(path)

        def ask() -> bytes:
            self.requests.add(read=1)
            try:
                return self._fetch(path, key, limit)
            except TooLarge as error:
                raise TooLarge(error.message, path=path, driver=self.driver) from None

        data: bytes = self._call(ask)
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        key = self._key(path)
        span = f"bytes={start}-{start + length - 1}"

        def ask() -> bytes:
            self.requests.add(read=1)
            try:
                answer = self._fetch_range(path, key, span)
            except RangeBeyondEnd:
                return b""
            # A server may not know ranges, and send everything.
            return answer.data if answer.status == 206 else answer.data[start : start + length]

        data: bytes = self._call(ask)
        return data

    def stat(self, path: str) -> Entry:
        """See :class:`~registry_drivers.base.Reader`."""
        key = self._key(path)

        def ask() -> Entry:
            self.requests.add(read=1)
            return self._head(path, key)

        entry: Entry = self._call(ask, path)
        return entry

    def now(self) -> float:
        """The server's clock: that of an answer of the last minute, or of one asked for now."""
        if self._clock is None or time.monotonic() - self._clock[1] > CLOCK_TRUSTED_SECONDS:
            self._clock = None

            def ask() -> None:
                self.requests.add(list=1)
                self._ask_time()

            self._call(ask)
        if self._clock is None:
            raise StorageError("the storage does not tell its time", driver=self.driver)
        date, at = self._clock
        return date + (time.monotonic() - at)

    def close(self) -> None:
        """See :class:`~registry_drivers.base.Reader`."""
        self._web.close()

    # --- Deleter

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.base.Deleter`."""
        remaining = iter(paths)
        while batch := list(islice(remaining, self.capabilities.delete_batch)):
            yield from self._delete_batch(batch)

    def _delete_batch(self, batch: Sequence[str]) -> Iterator[Outcome]:
        keys: dict[str, str] = {}
        outcomes: dict[str, Outcome] = {}
        for path in batch:
            try:
                keys[path] = self._key(path)
            except InvalidPath as error:
                outcomes[path] = Outcome(path, Deletion.FAILED, error.message)
        answered = self._delete_until_answered(list(keys.values())) if keys else {}
        for path, key in keys.items():
            outcome = answered[key]
            outcomes[path] = Outcome(path, outcome.result, self._clean(outcome.error))
        seen: set[str] = set()
        for path in batch:
            outcome = outcomes[path]
            if path in seen and outcome.result is Deletion.DELETED and self.tells_gone:
                outcome = Outcome(path, Deletion.GONE_ALREADY)
            seen.add(path)
            yield outcome

    def _delete_until_answered(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Delete *keys*; those that met a passing fault are sent again, the others are not."""
        outcomes: dict[str, Outcome] = {}
        passing: dict[str, str] = dict.fromkeys(keys, "")

        def ask() -> None:
            self.requests.add(delete=1)
            for key, answer in self._delete_keys(list(passing)).items():
                if isinstance(answer, str):
                    passing[key] = answer
                else:
                    outcomes[key] = answer
                    del passing[key]
            if passing:
                raise Unavailable(next(iter(passing.values())), driver=self.driver)

        try:
            self._call(ask)
        except Unavailable:
            if not outcomes and not any(passing.values()):
                # No answer at all: nobody knows what became of any of them.
                raise
            for key, reason in passing.items():
                outcomes[key] = Outcome(key, Deletion.FAILED, reason)
        except AccessDenied as error:
            for key in passing:
                outcomes[key] = Outcome(key, Deletion.FAILED, error.message)
        return outcomes

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """There are no folders to remove."""
        check_prefix(floor, self.driver)
        return 0

    # --- Writer

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """See :class:`~registry_drivers.base.Writer`.

        A conditional write whose answer was lost counts as done when exactly these bytes are
        there: give it bytes that nobody else writes.
        """
        key = self._key(path)
        tries = 0

        def ask() -> None:
            nonlocal tries
            tries += 1
            self.requests.add(write=1)
            try:
                self._put(path, key, data, if_absent)
            except AlreadyExists:
                if tries == 1 or self.read(path) != data:
                    raise

        self._call(ask)

    def move(self, source: str, target: str) -> None:
        """See :class:`~registry_drivers.base.Writer`: a copy, looked at, then a delete."""
        self.copy(source, target)
        if source == target:
            return
        for outcome in self.delete([source]):
            if outcome.result is Deletion.FAILED:
                raise StorageError(
                    f"was copied to {target} but not deleted: {outcome.error}",
                    path=source,
                    driver=self.driver,
                )

    def copy(self, source: str, target: str) -> None:
        """See :class:`~registry_drivers.moving.Copier`: within the store, and looked at."""
        source_key, target_key = self._key(source), self._key(target)
        entry = self.stat(source)
        if source == target:
            return

        def ask() -> None:
            self.requests.add(write=1)
            self._copy(entry, source_key, target_key)

        self._call(ask)
        copied = self.stat(target)
        if copied.size != entry.size or (entry.md5 and copied.md5 and copied.md5 != entry.md5):
            raise StorageError(
                f"the copy of {source} differs from it", path=target, driver=self.driver
            )

    # --- reading through obstore

    def _fetch_fast(self, store: Any, path: str, key: str, limit: int | None) -> bytes:
        """The bytes of *key* from an obstore store."""
        import obstore

        self.before_request()
        try:
            result = obstore.get(store, key)
            size = result.meta["size"]
            if limit is not None and size > limit:
                raise TooLarge(f"{size} bytes, more than the {limit} allowed")
            return bytes(result.bytes())
        except (obstore.exceptions.BaseError, FileNotFoundError, ValueError, OSError) as error:
            if (refused := self._refused_credentials) is not None:
                self._refused_credentials = None
                raise refused from None
            self._fail_fast(error, path)

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
            if "InvalidCertificate" in text:
                raise StorageError(f"{reason}; {CA_HINT}", path=path, driver=self.driver) from None
            if "redirect" in text:
                raise StorageError(reason, path=path, driver=self.driver) from None
            # No answer: a time-out, a broken connection, a body that was cut.
            raise Unavailable(reason, path=path, driver=self.driver) from None
        self._fail(
            status, code[1] if code else "", said[1] if said else "the storage refused", path=path
        )


def addressable(folder: str) -> bool:
    """Whether obstore can name the keys below *folder*: not with empty parts, or dots."""
    return not folder.startswith("/") and not _NO_NAMES & set(folder.rstrip("/").split("/")[1:])


NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_NO_NAMES = frozenset({"", ".", ".."})
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
