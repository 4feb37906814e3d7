"""Wrappers around any storage: look only, and not too fast. They can be put into each other.

What tries again is :mod:`registry_drivers.resilience`, what fails on purpose
:mod:`registry_drivers.faulty`; counting is done by the drivers themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from registry_drivers.base import (
    Capabilities,
    Children,
    Entry,
    Named,
    NameReader,
    Outcome,
    Page,
    Reader,
    Renewer,
    Requests,
    Storage,
    list_among,
    list_each,
    list_unasked,
    list_whole,
    stat_each,
    stat_many,
)


class ReadOnly:
    """A :class:`~registry_drivers.base.Reader` and nothing else: it has no ``delete`` to call."""

    __slots__ = ("_reader",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def driver(self) -> str:
        """As the wrapped storage."""
        return self._reader.driver

    @property
    def root(self) -> str:
        """As the wrapped storage."""
        return self._reader.root

    @property
    def capabilities(self) -> Capabilities:
        """As the wrapped storage."""
        return self._reader.capabilities

    @property
    def requests(self) -> Requests:
        """As the wrapped storage."""
        return self._reader.requests

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """As the wrapped storage."""
        return self._reader.list(prefix, start_after=start_after)

    def list_unasked(self, *prefixes: str) -> Iterator[Page]:
        """As the wrapped storage."""
        # As with ``stat_many``: whoever does something to each listing is not passed by.
        if type(self).list is not ReadOnly.list:
            return list_whole(self, *prefixes)
        return list_unasked(self._reader, *prefixes)

    def list_among(self, named: Sequence[Named]) -> Iterator[Page]:
        """As the wrapped storage."""
        if type(self).list is not ReadOnly.list:
            return list_each(self, named)
        return list_among(self._reader, named)

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        """As the wrapped storage, which has it where listings cannot begin after a path."""
        assert isinstance(self._reader, NameReader)
        return self._reader.list_names(beginning, token=token)

    def children(self, prefix: str) -> Children:
        """As the wrapped storage."""
        return self._reader.children(prefix)

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """As the wrapped storage."""
        return self._reader.read(path, limit=limit)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """As the wrapped storage."""
        return self._reader.read_range(path, start, length)

    def stat(self, path: str) -> Entry:
        """As the wrapped storage."""
        return self._reader.stat(path)

    def stat_many(self, paths: Sequence[str]) -> Sequence[Entry | None]:
        """As the wrapped storage."""
        # A wrapper that does something to each ``stat`` does it to each of these: it is never
        # passed by, whether it thinks of this method or not.
        if type(self).stat is not ReadOnly.stat:
            return stat_each(self, paths)
        return stat_many(self._reader, paths)

    def now(self) -> float:
        """As the wrapped storage."""
        return self._reader.now()

    def close(self) -> None:
        """As the wrapped storage."""
        self._reader.close()


class Wrapper(ReadOnly):
    """A storage that hands everything on; the base of wrappers that change something."""

    __slots__ = ("_storage",)

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._storage = storage

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """As the wrapped storage."""
        return self._storage.delete(paths)

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """As the wrapped storage."""
        return self._storage.remove_folders(folders, floor=floor)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """As the wrapped storage."""
        self._storage.write(path, data, if_absent=if_absent)

    def move(self, source: str, target: str) -> None:
        """As the wrapped storage."""
        self._storage.move(source, target)

    def renew(self, path: str) -> None:
        """As the wrapped storage, where moves keep times; elsewhere there is nothing to do."""
        if isinstance(self._storage, Renewer):
            self._storage.renew(path)


class Pace:
    """Called before each request; waits so that no more than so many a second are sent.

    Evenly spaced, with nothing saved up while idle: object stores throttle bursts.
    """

    __slots__ = ("_clock", "_free", "_guard", "_interval", "_sleep")

    def __init__(
        self,
        per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not per_second > 0:
            raise ValueError("a rate is more than 0 requests a second")
        self._interval = 1.0 / per_second
        self._clock = clock
        self._sleep = sleep
        self._guard = threading.Lock()
        self._free = clock()

    def __call__(self) -> None:
        """Wait for this request's turn."""
        with self._guard:
            now = self._clock()
            start = max(now, self._free)
            self._free = start + self._interval
        if start > now:
            self._sleep(start - now)


def throttled(storage: Storage, per_second: float) -> Storage:
    """*storage*, asked at most so often; retries count where the driver lets each request wait."""
    if hasattr(storage, "before_request"):
        storage.before_request = Pace(per_second)
        return storage
    return Throttled(storage, per_second)


class Throttled(Wrapper):
    """Sends at most so many requests a second, over all threads and all kinds together.

    A page of a listing, a read, a batch of deletes and a write are one request each.

    :param per_second: the rate, more than 0.
    :param clock: seconds that only grow.
    :param sleep: how to wait, given seconds.
    """

    __slots__ = ("_take",)

    def __init__(
        self,
        storage: Storage,
        per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(storage)
        self._take = Pace(per_second, clock=clock, sleep=sleep)

    @property
    def capabilities(self) -> Capabilities:
        """As the wrapped storage, but for threads: processes would each have the whole rate."""
        return replace(self._storage.capabilities, processes=False)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """As the wrapped storage, page by page."""
        pages = self._storage.list(prefix, start_after=start_after)
        return self._pages(pages)

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        """As the wrapped storage, page by page."""
        return self._pages(super().list_names(beginning, token=token))

    def _pages(self, pages: Iterator[Page]) -> Iterator[Page]:
        self._take()
        first = True
        for page in pages:
            # Paid after it came: asking a listing that has ended costs no request.
            if not first:
                self._take()
            first = False
            yield page

    def children(self, prefix: str) -> Children:
        """As the wrapped storage."""
        self._take()
        return self._storage.children(prefix)

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """As the wrapped storage."""
        self._take()
        return self._storage.read(path, limit=limit)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """As the wrapped storage."""
        self._take()
        return self._storage.read_range(path, start, length)

    def stat(self, path: str) -> Entry:
        """As the wrapped storage."""
        self._take()
        return self._storage.stat(path)

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """As the wrapped storage, batch by batch; of a filesystem each file is a request."""
        if self.capabilities.folders:
            yield from self._storage.delete(self._paced(paths))
            return
        remaining = iter(paths)
        while batch := [*islice(remaining, self.capabilities.delete_batch)]:
            self._take()
            yield from self._storage.delete(batch)

    def _paced(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            self._take()
            yield path

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """As the wrapped storage."""
        self._take()
        self._storage.write(path, data, if_absent=if_absent)

    def move(self, source: str, target: str) -> None:
        """As the wrapped storage."""
        self._take()
        self._storage.move(source, target)

    def renew(self, path: str) -> None:
        """As the wrapped storage."""
        if isinstance(self._storage, Renewer):
            self._take()
            self._storage.renew(path)
