"""What the drivers for S3, Google Cloud Storage and Azure have in common: what a driver can do.

How a store is asked is in :mod:`registry_drivers.object_client`. A listing goes on with the page
that failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from registry_drivers.base import Children, Deletion, Entry, Outcome, Page
from registry_drivers.columns import bytes_of
from registry_drivers.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidPath,
    NotFound,
    StorageError,
    TooLarge,
    Unavailable,
)
from registry_drivers.object_client import Level, Listed, ObjectClient, RangeBeyondEnd
from registry_drivers.paging import PageTokens, check_order
from registry_drivers.paths import check_beginning, check_prefix

# How long a server's clock is believed without asking again, in seconds.
CLOCK_TRUSTED_SECONDS = 60.0
_NO_NAMES = frozenset({"", ".", ".."})


class ObjectStorage(ObjectClient):
    """A :class:`~registry_drivers.base.Storage` over HTTP."""

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
            if bytes_of(after) > bytes_of(prefix):
                return
            after = ""
        after = self.folder + after if after else ""
        reached = b""
        tokens = PageTokens(prefix, self.driver, token)
        while True:

            def ask(token: str = token) -> Listed:
                self.requests.add(list=1)
                return self._list_page(self.folder + prefix, after, token)

            listed: Listed = self._call(ask, prefix)
            keys = listed.keys
            check_order(
                reached, keys, sorted_by_bytes=self.seekable, path=prefix, driver=self.driver
            )
            reached = keys[-1] if keys else reached
            if len(listed.page):
                # Where listings can begin at any key nobody needs it.
                yield listed.page if self.seekable else replace(listed.page, token=listed.token)
            if not listed.token:
                return
            token = tokens.next(listed.token, empty=not keys)

    def children(self, prefix: str) -> Children:
        """See :class:`~registry_drivers.base.Reader`."""
        check_prefix(prefix, self.driver)
        self._prepare()
        place = self.folder + prefix
        folders: set[str] = set()
        files: set[str] = set()
        token = ""
        tokens = PageTokens(prefix, self.driver)
        while True:

            def ask(token: str = token) -> Level:
                self.requests.add(list=1)
                return self._list_level(place, token)

            level: Level = self._call(ask, prefix)
            folders.update(key[len(place) :].rstrip("/") for key in level.folders)
            files.update(key[len(place) :] for key in level.files if not key.endswith("/"))
            if not level.token:
                # Names that no path may have (an empty part, a dot) are nobody's folder.
                return Children(tuple(sorted(folders - _NO_NAMES)), tuple(sorted(files - {""})))
            token = tokens.next(level.token, empty=not (level.folders or level.files))

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
        # Who asks for the time is about to compare what was with what is, the root too.
        self._prepare()
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
        # It asks this object for credentials. Python cannot see such a ring, and would keep both.
        self._store = None

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
        answered, broken = self._delete_until_answered(list(keys.values())) if keys else ({}, None)
        for path, key in keys.items():
            if (answer := answered.get(key)) is not None:
                outcomes[path] = Outcome(path, answer.result, self._clean(answer.error))
        seen: set[str] = set()
        for path in batch:
            outcome = outcomes.get(path)
            if outcome is None:
                continue
            if path in seen and outcome.result is Deletion.DELETED and self.tells_gone:
                outcome = Outcome(path, Deletion.GONE_ALREADY)
            seen.add(path)
            yield outcome
        if broken is not None:
            raise broken

    def _delete_until_answered(
        self, keys: Sequence[str]
    ) -> tuple[dict[str, Outcome], StorageError | None]:
        """Delete *keys*; those that met a passing fault are sent again, the others are not.

        Returns what became of them, and the error that left nobody knowing about the others.
        """
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
        except Unavailable as error:
            if not outcomes and not any(passing.values()):
                # No answer at all: nobody knows what became of any of them.
                return outcomes, error
            for key, reason in passing.items():
                outcomes[key] = Outcome(key, Deletion.FAILED, reason)
        except AccessDenied as error:
            for key in passing:
                outcomes[key] = Outcome(key, Deletion.FAILED, error.message)
        except StorageError as error:
            # What an answer before this one has confirmed is gone all the same.
            return outcomes, error
        return outcomes, None

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
            try:
                self._copy(entry, source_key, target_key)
            except NotFound as error:
                # Some proxy's page, perhaps: only where the source is gone is it believed.
                self.requests.add(read=1)
                self._head(source, source_key)
                raise StorageError(
                    f"it is there, but its copy was refused: {error.message}",
                    path=source,
                    driver=self.driver,
                ) from error

        self._call(ask)

        def look() -> Entry:
            self.requests.add(read=1)
            try:
                return self._head(target, target_key)
            except NotFound as error:
                # No word on the source. Some stores take a while to show what was written.
                raise Unavailable(
                    f"the copy of {source} is not there", path=target, driver=self.driver
                ) from error

        copied: Entry = self._call(look)
        if copied.size != entry.size or (entry.md5 and copied.md5 and copied.md5 != entry.md5):
            raise StorageError(
                f"the copy of {source} differs from it", path=target, driver=self.driver
            )
