"""A registry of any size that nobody has to store: a storage driver that makes it from a seed.

It behaves as an object store does: pages of 1,000 keys in order, MD5s in the listing, a latency
for each request if asked. What it costs is measured apart, in seconds of CPU
(:attr:`GeneratedStorage.cpu`). It can be read only: nothing is ever deleted from it.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from generated_shape import BORROWED, KEY, OLD, OWN, TAGGED, Content, Numbers, Shape, hex_of
from registry_drivers.base import (
    Capabilities,
    Children,
    Entry,
    Outcome,
    Page,
    Paths,
    Requests,
)
from registry_drivers.errors import NotFound, TooLarge

V2 = "docker/registry/v2/"
REPOSITORIES = V2 + "repositories/"
SHA256 = V2 + "blobs/sha256/"
_ROWS = 1000
_OTHERS_A_STEP = 1800
_REPOSITORIES_A_STEP = 12


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a listing, not cut into pages yet. ``data`` and ``offsets`` as in ``Paths``."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    md5s: NDArray[np.void]


class _Timed:
    """Adds up the CPU that a block takes in its own thread."""

    def __init__(self, storage: GeneratedStorage) -> None:
        self.storage = storage

    def __enter__(self) -> None:
        self.began = time.thread_time()

    def __exit__(self, *error: object) -> None:
        self.storage.add_cpu(time.thread_time() - self.began)


class GeneratedStorage:
    """A :class:`~registry_drivers.base.Storage` of one :class:`~generated_shape.Shape`.

    :param latency: seconds that each request takes beside its CPU.
    :param folder: where digests of manifests are kept; a temporary folder by default.
    """

    driver = "generated"

    def __init__(
        self, shape: Shape, *, latency: float = 0.0, workers: int = 16, folder: str | None = None
    ) -> None:
        self.shape = shape
        self.numbers = Numbers(shape)
        self.content = Content(self.numbers, folder)
        self.latency = latency
        self.requests = Requests()
        self.capabilities = Capabilities(delete_batch=1000, folders=False, workers=workers)
        self.root = f"generated:{shape.blobs}"
        self.cpu = 0.0
        self._guard = threading.Lock()

    def add_cpu(self, seconds: float) -> None:
        """Count CPU as the generator's own."""
        with self._guard:
            self.cpu += seconds

    def _wait(self, **count: int) -> None:
        self.requests.add(**count)
        if self.latency:
            time.sleep(self.latency)

    def now(self) -> float:
        """The time, a day after everything was pushed."""
        return OLD + 86400.0

    def close(self) -> None:
        """Close the files of digests."""
        self.content.close()

    # Listing

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """See :class:`registry_drivers.base.Reader`."""
        source = self._rows(prefix, start_after or "")
        pending: list[_Rows] = []
        while True:
            with _Timed(self):
                pages, pending, ended = _cut(source, pending)
            if ended and not pages:
                if not pending:
                    # Whoever lists an empty prefix has asked once, too.
                    self._wait(list=1)
                return
            for page in pages:
                self._wait(list=1)
                yield page
            if ended:
                return

    def _rows(self, prefix: str, after: str) -> Iterator[_Rows]:
        if V2.startswith(prefix) or (V2 + "blobs/").startswith(prefix) or prefix.startswith(SHA256):
            yield from self._blobs(prefix, after)
        if V2.startswith(prefix) or prefix.startswith(REPOSITORIES):
            yield from self._repositories(prefix, after)

    def _blobs(self, prefix: str, after: str) -> Iterator[_Rows]:
        encoded = prefix[len(SHA256) :].replace("/", "")
        if len(encoded) > 64 + 2:
            return
        low, high = _bounds(encoded[2:] if len(encoded) > 2 else encoded)
        if after.startswith(SHA256):
            done = after[len(SHA256) :].split("/")
            beginning = done[1] if len(done) > 1 and done[1] else done[0]
            # A bound that ends in "/" begins a bucket; a whole path is itself left out.
            low = max(low, int(beginning.ljust(64, "0")[:16], 16))
        elif after > SHA256:
            return
        stride = self.numbers.stride
        rank = min(low // stride, self.shape.others - 1)
        while rank < self.shape.others and rank * stride < high:
            stop = min(self.shape.others, rank + _OTHERS_A_STEP)
            above = (1 << 64) if stop == self.shape.others else stop * stride
            rows = self._blob_rows(rank, stop, max(low, rank * stride) if rank else 0, above)
            yield _between(rows, prefix, after)
            rank = stop

    def _blob_rows(self, rank: int, stop: int, low: int, above: int) -> _Rows:
        ranks = np.arange(rank, stop, dtype=np.int64)
        first, last = self.content.position(low), self.content.position(above)
        manifests = self.content.sorted_rows(first, last - first)
        keys = np.concatenate([self.numbers.keys(ranks), manifests["key"]])
        sizes = np.concatenate([self.numbers.sizes(ranks), self.content.sizes(manifests["number"])])
        words = keys.view(">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
        order = np.argsort(words, kind="stable")
        digits = hex_of(keys[order])
        table = _table(SHA256.encode() + b"00/" + b"0" * 64 + b"/data", len(keys))
        at = len(SHA256)
        table[:, at : at + 2] = digits[:, :2]
        table[:, at + 3 : at + 67] = digits
        return _fixed(table, sizes[order], np.zeros(len(keys), dtype="V16"))

    def _repositories(self, prefix: str, after: str) -> Iterator[_Rows]:
        low, high = self._numbers_below(prefix)
        if after.startswith(REPOSITORIES):
            low = max(low, self._number_after(after))
        elif after > REPOSITORIES:
            return
        for first in range(low, high, _REPOSITORIES_A_STEP):
            stop = min(high, first + _REPOSITORIES_A_STEP)
            rows = self._repository_rows(first, stop)
            edge = first == low or stop == high
            yield _between(rows, prefix, after) if edge else rows

    def _numbers_below(self, prefix: str) -> tuple[int, int]:
        """The repositories that may have paths below *prefix*."""
        count = self.shape.repositories
        name = prefix[len(REPOSITORIES) :]
        if not name:
            return 0, count
        low = self._first_from(name)
        return low, min(count, max(low, self._first_from(name[:-1] + "0")))

    def _first_from(self, name: str) -> int:
        """How many repositories have all their paths before *name*."""
        low, high = 0, self.shape.repositories
        while low < high:
            middle = (low + high) // 2
            whole = self.shape.repository(middle) + "/"
            if whole < name and not name.startswith(whole):
                low = middle + 1
            else:
                high = middle
        return low

    def _number_after(self, path: str) -> int:
        return self._first_from(path[len(REPOSITORIES) :])

    def _repository_rows(self, first: int, stop: int) -> _Rows:
        tables: list[NDArray[np.uint8]] = []
        md5s: list[bytes] = []
        layers = self._layer_keys(first, stop)
        for repository, keys in zip(range(first, stop), layers, strict=True):
            head = f"{REPOSITORIES}{self.shape.repository(repository)}/".encode()
            own = self.content.digests_of(repository * OWN, OWN)
            neighbour = (repository + 1) % self.shape.repositories
            borrowed = self.content.digests_of(neighbour * OWN, OWN)[list(BORROWED)]
            revisions = np.concatenate([own, borrowed])
            revisions = np.unique(revisions) if neighbour == repository else _in_order(revisions)
            tables.append(_links(head + b"_layers/sha256/", keys))
            tables.append(_links(head + b"_manifests/revisions/sha256/", revisions))
            md5s.append(bytes(16 * (len(keys) + len(revisions))))
            for tag in range(self.shape.tags):
                folder = head + b"_manifests/tags/v%d/" % tag
                target = own[TAGGED[tag] : TAGGED[tag] + 1]
                text = b"sha256:" + target.tobytes().hex().encode()
                tables.append(_table(folder + b"current/link", 1))
                tables.append(_links(folder + b"index/sha256/", target))
                md5s.append(hashlib.md5(text, usedforsecurity=False).digest() + bytes(16))
        lengths = np.repeat([table.shape[1] for table in tables], [len(table) for table in tables])
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        data = np.concatenate([table.reshape(-1) for table in tables])
        sizes = np.full(len(lengths), 71, dtype=np.int64)
        return _Rows(data, offsets, sizes, np.frombuffer(b"".join(md5s), dtype="V16"))

    def _layer_keys(self, first: int, stop: int) -> list[NDArray[np.void]]:
        """The layers that each repository links, sorted."""
        numbers, count = self.numbers, self.shape.repositories
        repositories = np.arange(first, stop, dtype=np.int64)
        own = repositories[:, None] * (OWN - 1) + np.arange(OWN - 1, dtype=np.int64)
        borrowed = (repositories[:, None] + 1) % count * (OWN - 1)
        borrowed = borrowed + np.array(BORROWED, dtype=np.int64) - 1
        images = np.concatenate([own, borrowed], axis=1)
        slots = numbers.slots(images.reshape(-1)).reshape(len(repositories), -1)
        stale = np.stack([numbers.stale(number) for number in range(first, stop)])
        ranks = np.sort(numbers.rank(np.concatenate([slots, stale], axis=1)), axis=1)
        fresh = np.ones(ranks.shape, dtype=np.bool_)
        fresh[:, 1:] = ranks[:, 1:] != ranks[:, :-1]
        keys = numbers.keys(ranks[fresh])
        return np.split(keys, np.cumsum(fresh.sum(axis=1))[:-1])

    def children(self, prefix: str) -> Children:
        """See :class:`registry_drivers.base.Reader`; a request for each 1,000 names."""
        with _Timed(self):
            folders, files = self._children(prefix)
        for _ in range(max(1, -(-(len(folders) + len(files)) // _ROWS))):
            self._wait(list=1)
        return Children(folders, files)

    def _children(self, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        fixed = {
            V2: ("blobs", "repositories"),
            V2 + "blobs/": ("sha256",),
            SHA256: tuple(f"{byte:02x}" for byte in range(256)),
        }
        if prefix in fixed:
            return fixed[prefix], ()
        if not prefix.startswith(REPOSITORIES):
            return (), ()
        low, high = self._numbers_below(prefix)
        below = prefix[len(REPOSITORIES) :]
        step = self.shape.teams or 1
        if below or not self.shape.teams:
            step = 1
        names = {
            f"{self.shape.repository(number)}/"[len(below) :].partition("/")[0]
            for number in range(low, high, step)
        }
        if names != {""}:
            return tuple(sorted(names)), ()
        found = {path[len(prefix) :] for page in self.list(prefix) for path in page.paths}
        folders = {name.partition("/")[0] for name in found if "/" in name}
        return tuple(sorted(folders)), tuple(sorted(name for name in found if "/" not in name))

    # Single objects

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`registry_drivers.base.Reader`; manifests and tags have content."""
        with _Timed(self):
            data = self._content(path)
        self._wait(read=1)
        if data is None:
            raise NotFound("no such object", path=path, driver=self.driver)
        if limit is not None and len(data) > limit:
            raise TooLarge("too large", path=path, driver=self.driver)
        return data

    def _content(self, path: str) -> bytes | None:
        if path.startswith(SHA256):
            number = self.content.number_of(bytes.fromhex(path.split("/")[-2]))
            return None if number is None else self.content.content(number)
        name, mark, rest = path[len(REPOSITORIES) :].partition("/_manifests/tags/v")
        if not mark or not rest.endswith("/current/link"):
            return None
        number = self._first_from(name + "/")
        own = self.content.digests_of(number * OWN + TAGGED[int(rest.partition("/")[0])], 1)
        return b"sha256:" + own[0].tobytes().hex().encode()

    def stat(self, path: str) -> Entry:
        """See :class:`registry_drivers.base.Reader`; only for manifests."""
        data = self.read(path)
        return Entry(path, len(data), OLD)

    # What nobody may do here

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Refuse."""
        raise NotImplementedError("a generated registry cannot be changed")

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """There are no folders."""
        return 0

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Refuse."""
        raise NotImplementedError("a generated registry cannot be changed")

    def move(self, source: str, target: str) -> None:
        """Refuse."""
        raise NotImplementedError("a generated registry cannot be changed")


def _bounds(encoded: str) -> tuple[int, int]:
    """The 64-bit words of digests that begin with some hex digits: from, and up to before."""
    digits = encoded[:16]
    low = int(digits.ljust(16, "0"), 16)
    return low, low + (1 << (4 * (16 - len(digits))))


def _table(row: bytes, count: int) -> NDArray[np.uint8]:
    return np.tile(np.frombuffer(row, dtype=np.uint8), (count, 1))


def _links(folder: bytes, keys: NDArray[np.void]) -> NDArray[np.uint8]:
    table = _table(folder + b"0" * 64 + b"/link", len(keys))
    table[:, len(folder) : len(folder) + 64] = hex_of(keys)
    return table


def _in_order(keys: NDArray[np.void]) -> NDArray[np.void]:
    words = np.ascontiguousarray(keys).view(">u8").reshape(-1, 4)
    found: NDArray[np.void] = keys[np.lexsort((words[:, 1], words[:, 0]))]
    return found


def _fixed(table: NDArray[np.uint8], sizes: NDArray[np.int64], md5s: NDArray[np.void]) -> _Rows:
    offsets = np.arange(len(table) + 1, dtype=np.int64) * table.shape[1]
    return _Rows(table.reshape(-1), offsets, sizes, md5s)


def _between(rows: _Rows, prefix: str, after: str) -> _Rows:
    """The rows below *prefix* and behind *after*; rows are in order."""
    paths = Paths(rows.data, rows.offsets)
    low = _bisect(paths, lambda path: path <= after or path < prefix)
    high = _bisect(paths, lambda path: path < prefix or path.startswith(prefix))
    return _slice(rows, low, max(low, high))


def _bisect(paths: Paths, before: Callable[[str], bool]) -> int:
    low, high = 0, len(paths)
    while low < high:
        middle = (low + high) // 2
        if before(paths[middle]):
            low = middle + 1
        else:
            high = middle
    return low


def _slice(rows: _Rows, start: int, stop: int) -> _Rows:
    offsets = rows.offsets[start : stop + 1]
    return _Rows(
        rows.data[offsets[0] : offsets[-1]],
        offsets - offsets[0],
        rows.sizes[start:stop],
        rows.md5s[start:stop],
    )


def _cut(source: Iterator[_Rows], pending: list[_Rows]) -> tuple[list[Page], list[_Rows], bool]:
    """Whole pages of what comes next, and what is left over; at the end all of it."""
    ended = False
    while sum(len(rows.sizes) for rows in pending) < _ROWS:
        more = next(source, None)
        if more is None:
            ended = True
            break
        if len(more.sizes):
            pending.append(more)
    if not pending:
        return [], [], ended
    whole = _joined(pending)
    count = len(whole.sizes)
    full = count if ended else count // _ROWS * _ROWS
    pages = [_page(_slice(whole, at, min(at + _ROWS, full))) for at in range(0, full, _ROWS)]
    return pages, [_slice(whole, full, count)] if full < count else [], ended


def _joined(parts: list[_Rows]) -> _Rows:
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return _Rows(
        np.concatenate([part.data for part in parts]),
        offsets,
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.md5s for part in parts]),
    )


def _page(rows: _Rows) -> Page:
    modified = np.full(len(rows.sizes), OLD)
    return Page(Paths(rows.data, rows.offsets), rows.sizes, modified, rows.md5s)


__all__ = ["KEY", "GeneratedStorage", "Shape"]
