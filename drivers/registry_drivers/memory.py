"""A storage that lives in this process's memory; for tests and examples.

It behaves as an object store does: no folders, listings in the order of the keys' UTF-8 bytes,
and the MD5 of the content in each listing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from registry_drivers.base import (
    Capabilities,
    Children,
    Deletion,
    Entry,
    Outcome,
    Page,
    Requests,
)
from registry_drivers.errors import AlreadyExists, InvalidPath, NotFound, TooLarge
from registry_drivers.paths import check_path, check_prefix


class MemoryStorage:
    """A :class:`~registry_drivers.base.Storage` in a dictionary.

    :param now: the storage's clock, in seconds since the epoch.
    :param page_size: rows in a page of a listing.
    :param delete_batch: paths that one delete request takes.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        *,
        page_size: int = 1000,
        delete_batch: int = 1000,
    ) -> None:
        self.driver = "inmemory"
        self.root = "memory"
        self.capabilities = Capabilities(delete_batch=delete_batch, folders=False, workers=4)
        self.requests = Requests()
        self._now = now
        self._page_size = page_size
        self._objects: dict[str, tuple[bytes, float]] = {}
        # The keys by their UTF-8 bytes; None after a change.
        self._sorted: list[bytes] | None = None
        self._guard = threading.RLock()

    def put(self, path: str, data: bytes, modified: float | None = None) -> None:
        """Store an object with the given age, without counting a request."""
        check_path(path, self.driver)
        with self._guard:
            if path not in self._objects:
                self._sorted = None
            self._objects[path] = (bytes(data), self._now() if modified is None else modified)

    def snapshot(self) -> dict[str, bytes]:
        """Every object's bytes by path, at this moment."""
        with self._guard:
            return {path: data for path, (data, _) in self._objects.items()}

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """See :class:`~registry_drivers.base.Reader`; each page is the state at its moment."""
        check_prefix(prefix, self.driver)
        return self._pages(_bytes(prefix), _bytes(start_after or ""))

    def _pages(self, prefix: bytes, after: bytes) -> Iterator[Page]:
        while True:
            with self._guard:
                self.requests.add(list=1)
                keys = self._keys()
                start = max(bisect_left(keys, prefix), bisect_right(keys, after))
                found = [
                    key
                    for key in keys[start : start + self._page_size + 1]
                    if key.startswith(prefix)
                ]
                page = Page.of([self._entry(_text(key)) for key in found[: self._page_size]])
            if page:
                yield page
            if len(found) <= self._page_size:
                return
            after = found[self._page_size - 1]

    def _keys(self) -> Sequence[bytes]:
        if self._sorted is None:
            self._sorted = sorted(map(_bytes, self._objects))
        return self._sorted

    def _entry(self, path: str) -> Entry:
        data, modified = self._objects[path]
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        return Entry(path=path, size=len(data), modified=modified, md5=md5)

    def children(self, prefix: str) -> Children:
        """See :class:`~registry_drivers.base.Reader`."""
        check_prefix(prefix, self.driver)
        folders: set[str] = set()
        files: set[str] = set()
        with self._guard:
            self.requests.add(list=1)
            for path in self._objects:
                if path.startswith(prefix):
                    name, slash, _ = path[len(prefix) :].partition("/")
                    (folders if slash else files).add(name)
        return Children(tuple(sorted(folders)), tuple(sorted(files)))

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        check_path(path, self.driver)
        self.requests.add(read=1)
        data, _ = self._get(path)
        if limit is not None and len(data) > limit:
            raise TooLarge(
                f"{len(data)} bytes, more than the {limit} allowed", path=path, driver=self.driver
            )
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """See :class:`~registry_drivers.base.Reader`."""
        return self.read(path)[start : start + length]

    def stat(self, path: str) -> Entry:
        """See :class:`~registry_drivers.base.Reader`."""
        check_path(path, self.driver)
        self.requests.add(read=1)
        with self._guard:
            self._get(path)
            return self._entry(path)

    def _get(self, path: str) -> tuple[bytes, float]:
        with self._guard:
            try:
                return self._objects[path]
            except KeyError:
                raise NotFound("there is no such object", path=path, driver=self.driver) from None

    def now(self) -> float:
        """The clock that was given."""
        return self._now()

    def close(self) -> None:
        """Nothing to let go of."""

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.base.Deleter`."""
        remaining = iter(paths)
        while batch := list(islice(remaining, self.capabilities.delete_batch)):
            self.requests.add(delete=1)
            with self._guard:
                outcomes = [self._delete(path) for path in batch]
            yield from outcomes

    def _delete(self, path: str) -> Outcome:
        try:
            check_path(path, self.driver)
        except InvalidPath as error:
            return Outcome(path, Deletion.FAILED, error.message)
        if self._objects.pop(path, None) is None:
            return Outcome(path, Deletion.GONE_ALREADY)
        self._sorted = None
        return Outcome(path, Deletion.DELETED)

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """There are no folders to remove."""
        check_prefix(floor, self.driver)
        return 0

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """See :class:`~registry_drivers.base.Writer`."""
        check_path(path, self.driver)
        with self._guard:
            self.requests.add(write=1)
            if if_absent and path in self._objects:
                raise AlreadyExists("it is there already", path=path, driver=self.driver)
            self.put(path, data)

    def move(self, source: str, target: str) -> None:
        """See :class:`~registry_drivers.base.Writer`; the object is as young as its move."""
        check_path(source, self.driver)
        check_path(target, self.driver)
        with self._guard:
            self.requests.add(write=1)
            data, _ = self._get(source)
            del self._objects[source]
            self._sorted = None
            self.put(target, data)


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
