"""A storage that fails on purpose, for tests: what a real one does once in a million calls.

The order of faults follows from the seed and the order of calls, so that a failing test can be
run again; with several threads the order of calls is another each time.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from msgspec.structs import replace

from registry_drivers.base import Capabilities, Children, Deletion, Entry, Outcome, Page, Storage
from registry_drivers.errors import StorageError, Unavailable
from registry_drivers.wrappers import Wrapper


class Fault(enum.Enum):
    """What may go wrong with one call."""

    UNAVAILABLE = "raises Unavailable before anything was done"
    ERROR = "raises StorageError before anything was done"
    LOST_ANSWER = "a write, move or delete is done, and then Unavailable is raised"
    TRUNCATED = "a read ends early"
    SLOW = "sleeps before it answers"
    HIDDEN_YOUNG = "a listing leaves out young files"
    NOT_DELETED = "a delete fails, and says so"
    DELETED_UNSAID = "a delete is done, and reported as failed"


class Faulty(Wrapper):
    """Lets a share of all calls go wrong.

    :param seed: of the random choice.
    :param rate: share of calls, pages or deletes that each kind of fault strikes, 0 to 1.
    :param kinds: the faults that may occur.
    :param young: files modified less than so many seconds ago may be left out of listings.
    :param sleep: called with the seconds of a delay.
    """

    __slots__ = ("_guard", "_kinds", "_random", "_rate", "_sleep", "_young", "struck")

    def __init__(
        self,
        storage: Storage,
        seed: int,
        rate: float,
        kinds: Iterable[Fault],
        *,
        young: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(storage)
        self._random = random.Random(seed)  # noqa: S311 - chooses faults, guards nothing
        self._rate = rate
        self._kinds = frozenset(kinds)
        self._young = young
        self._sleep = sleep
        self._guard = threading.Lock()
        # How often each kind has struck, for tests that must know that something did.
        self.struck = dict.fromkeys(Fault, 0)

    @property
    def capabilities(self) -> Capabilities:
        """As the wrapped storage, but for threads: processes would all have the same luck."""
        return replace(self._storage.capabilities, processes=False)

    def _strikes(self, kind: Fault) -> bool:
        if kind not in self._kinds:
            return False
        with self._guard:
            struck = self._random.random() < self._rate
            self.struck[kind] += struck
        return struck

    def _before(self, path: str) -> None:
        if self._strikes(Fault.SLOW):
            self._sleep(1.0)
        if self._strikes(Fault.UNAVAILABLE):
            raise Unavailable("a fault for a test", path=path, driver=self.driver)
        if self._strikes(Fault.ERROR):
            raise StorageError("a fault for a test", path=path, driver=self.driver)

    def _after(self, path: str) -> None:
        if self._strikes(Fault.LOST_ANSWER):
            raise Unavailable("done, but the answer is lost", path=path, driver=self.driver)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """As the wrapped storage; each page may be the one that fails."""
        return self._pages(self._storage.list(prefix, start_after=start_after), prefix)

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        """As the wrapped storage; each page may be the one that fails."""
        return self._pages(super().list_names(beginning, token=token), beginning)

    def _pages(self, pages: Iterator[Page], prefix: str) -> Iterator[Page]:
        self._before(prefix)
        for page in pages:
            yield self._without_young(page) if Fault.HIDDEN_YOUNG in self._kinds else page
            self._before(prefix)

    def _without_young(self, page: Page) -> Page:
        since = self.now() - self._young
        return Page.of(
            [
                entry
                for entry in page.entries()
                if entry.modified <= since or not self._strikes(Fault.HIDDEN_YOUNG)
            ],
            page.hollow,
        )

    def children(self, prefix: str) -> Children:
        """As the wrapped storage, or a fault."""
        self._before(prefix)
        return self._storage.children(prefix)

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """As the wrapped storage, or a fault, or the beginning of what is there."""
        self._before(path)
        data = self._storage.read(path, limit=limit)
        if self._strikes(Fault.TRUNCATED):
            return data[: len(data) // 2]
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """As the wrapped storage, or a fault, or the beginning of what is there."""
        self._before(path)
        data = self._storage.read_range(path, start, length)
        if self._strikes(Fault.TRUNCATED):
            return data[: len(data) // 2]
        return data

    def stat(self, path: str) -> Entry:
        """As the wrapped storage, or a fault."""
        self._before(path)
        return self._storage.stat(path)

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """As the wrapped storage, or a fault; single paths may fail, or only seem to."""
        remaining = iter(paths)
        size = self.capabilities.delete_batch
        while batch := [*islice(remaining, size)]:
            self._before(batch[0])
            spared = {path for path in batch if self._strikes(Fault.NOT_DELETED)}
            outcomes = [*self._storage.delete([path for path in batch if path not in spared])]
            self._after(batch[0])
            for path in batch:
                if path in spared:
                    yield Outcome(path, Deletion.FAILED, "a fault for a test")
            for outcome in outcomes:
                if self._strikes(Fault.DELETED_UNSAID):
                    yield replace(outcome, result=Deletion.FAILED, error="a lie for a test")
                else:
                    yield outcome

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """As the wrapped storage, or a fault."""
        self._before(floor)
        return self._storage.remove_folders(folders, floor=floor)

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """As the wrapped storage, or a fault."""
        self._before(path)
        self._storage.write(path, data, if_absent=if_absent)
        self._after(path)

    def move(self, source: str, target: str) -> None:
        """As the wrapped storage, or a fault."""
        self._before(source)
        self._storage.move(source, target)
        self._after(target)
