"""A wrapper that tries again what failed in passing, so that one lost answer ends no run.

For storages that do not do so themselves: a file server that restarts, tests.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from registry_drivers.base import Children, Entry, Outcome, Page, Storage
from registry_drivers.errors import AlreadyExists, NotFound, StorageError
from registry_drivers.retry import Retry
from registry_drivers.wrappers import Wrapper

T = TypeVar("T")


class Retrying(Wrapper):
    """Tries again on :class:`~registry_drivers.errors.Unavailable`, and on nothing else.

    Pauses grow exponentially, with jitter; each further try is counted in ``requests.retries``.
    A listing that breaks goes on after the last path that it yielded, and its tries begin anew.

    :param attempts: tries in all, before the error is let through.
    :param first: longest pause before the second try, in seconds; doubled for each further one.
    :param longest: the longest pause of all, in seconds.
    :param sleep: how to pause, given seconds.
    """

    __slots__ = ("_retry",)

    def __init__(
        self,
        storage: Storage,
        attempts: int = 10,
        *,
        first: float = 0.2,
        longest: float = 20.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if attempts < 1:
            raise ValueError("at least one attempt")
        super().__init__(storage)
        self._retry = Retry(times=attempts - 1, first=first, longest=longest, sleep=sleep)

    def _call(self, work: Callable[[], T]) -> T:
        return self._retry.call(work, self.requests)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """As the wrapped storage."""
        # Every storage answers in the order of the paths, so the last path is where it was.
        # A first look at the arguments, so that a wrong prefix is refused here and now.
        pages = self._storage.list(prefix, start_after=start_after)
        return self._pages(pages, prefix, start_after)

    def _pages(self, pages: Iterator[Page], prefix: str, after: str | None) -> Iterator[Page]:
        broken = False

        def advance() -> Page | None:
            nonlocal pages, broken
            if broken:
                pages = self._storage.list(prefix, start_after=after)
            broken = True
            page = next(pages, None)
            broken = False
            return page

        while (page := self._call(advance)) is not None:
            if len(page):
                after = page.paths[len(page) - 1]
            yield page

    def children(self, prefix: str) -> Children:
        """As the wrapped storage."""
        return self._call(lambda: self._storage.children(prefix))

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """As the wrapped storage."""
        return self._call(lambda: self._storage.read(path, limit=limit))

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """As the wrapped storage."""
        return self._call(lambda: self._storage.read_range(path, start, length))

    def stat(self, path: str) -> Entry:
        """As the wrapped storage."""
        return self._call(lambda: self._storage.stat(path))

    def now(self) -> float:
        """As the wrapped storage."""
        return self._call(self._storage.now)

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """As the wrapped storage.

        What was deleted by a try whose answer was lost is told as gone already by the next one:
        nobody confirmed that it was this run.
        """
        remaining = iter(paths)
        size = self.capabilities.delete_batch
        while batch := [*islice(remaining, size)]:
            yield from self._delete(batch)

    def _delete(self, batch: Sequence[str]) -> Iterator[Outcome]:
        open_paths = Counter(batch)
        outcomes: list[Outcome] = []

        def work() -> None:
            for outcome in self._storage.delete([*open_paths.elements()]):
                outcomes.append(outcome)
                open_paths[outcome.path] -= 1

        try:
            self._call(work)
        except StorageError:
            # What is known must not be lost with the rest.
            yield from outcomes
            raise
        yield from outcomes

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """As the wrapped storage."""
        names = [*folders]
        return self._call(lambda: self._storage.remove_folders(names, floor=floor))

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """As the wrapped storage.

        A conditional write whose answer was lost counts as done when exactly these bytes are
        there: give it bytes that nobody else writes.
        """
        tries = 0

        def work() -> None:
            nonlocal tries
            tries += 1
            try:
                self._storage.write(path, data, if_absent=if_absent)
            except AlreadyExists:
                if tries == 1 or self._storage.read(path) != data:
                    raise

        self._call(work)

    def move(self, source: str, target: str) -> None:
        """As the wrapped storage.

        A move whose answer was lost counts as done when the source is gone and the target there.
        """
        tries = 0

        def work() -> None:
            nonlocal tries
            tries += 1
            try:
                self._storage.move(source, target)
            except NotFound:
                if tries == 1 or not self._is_there(target):
                    raise

        self._call(work)

    def _is_there(self, path: str) -> bool:
        try:
            self._storage.stat(path)
        except NotFound:
            return False
        return True
