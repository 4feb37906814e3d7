"""What a storage driver is: reading, deleting, writing, and nothing about registries.

The types say who may do what: everything before a sweep is handed a :class:`Reader`, which has
no ``delete``. Paths are as in :mod:`registry_drivers.paths`; errors are
:mod:`registry_drivers.errors`. Drivers are safe to call from several threads.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.errors import NotFound

UNKNOWN_MD5 = b"\0" * 16
UNASKED = -1
UNASKED_AGE = float("-inf")
"""Size and age of a file that was not looked at; as an age older than any other."""


Group = tuple[str, Sequence[str], str]
"""Paths of one page that differ in one name: ``<head><name><tail>`` for each name."""


class Paths(Sequence[str]):
    """Many paths in one buffer, in the layout of an Arrow string column.

    :param data: the UTF-8 bytes of all paths, one after the other, shape ``(bytes,)``.
    :param offsets: where each path begins, and the end of the last, shape ``(n + 1,)``, int64.

    Those that a driver has found folder by folder are kept so, see :meth:`of_groups`.
    """

    __slots__ = ("_count", "_data", "_offsets", "groups")

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._data: NDArray[np.uint8] | None = data
        self._offsets: NDArray[np.int64] | None = offsets
        self._count = len(offsets) - 1
        self.groups: tuple[Group, ...] | None = None

    @classmethod
    def of_groups(cls, groups: Sequence[Group]) -> Paths:
        """Paths that stay as they are, and are packed only for those who ask for the buffer.

        A folder of a registry holds hundreds of names that are digests; putting a head and a
        tail to each, and taking them off again, costs more than finding them.
        """
        paths = cls.__new__(cls)
        paths._data = paths._offsets = None
        paths._count = sum(len(names) for _, names, _ in groups)
        paths.groups = tuple(groups)
        return paths

    @property
    def data(self) -> NDArray[np.uint8]:
        """The bytes of all paths."""
        return self._packed()[0]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where in the bytes each path begins."""
        return self._packed()[1]

    def _packed(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if self._data is None or self._offsets is None:
            packed = Paths.of(list(self))
            self._data, self._offsets = packed._data, packed._offsets
            assert self._data is not None
            assert self._offsets is not None
        return self._data, self._offsets

    @classmethod
    def of(cls, paths: Sequence[str]) -> Paths:
        """Pack *paths*. Names that are no UTF-8 keep their bytes (``surrogateescape``)."""
        joined = "".join(paths)
        lengths = np.fromiter(map(len, paths), dtype=np.int64, count=len(paths))
        data = joined.encode("utf-8", "surrogateescape")
        if len(data) != len(joined):
            # Not ASCII: the lengths in bytes are others than those in characters.
            lengths = np.fromiter(
                (len(path.encode("utf-8", "surrogateescape")) for path in paths),
                dtype=np.int64,
                count=len(paths),
            )
        offsets = np.zeros(len(paths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.frombuffer(data, dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are not needed
        if index < 0:
            index += len(self)
        start, stop = self.offsets[index], self.offsets[index + 1]
        return self.data[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        if self.groups is not None:
            for head, names, tail in self.groups:
                for name in names:
                    yield head + name + tail
            return
        data = self.data.tobytes()
        bounds = self.offsets.tolist()
        for start, stop in zip(bounds, bounds[1:], strict=False):
            yield data[start:stop].decode("utf-8", "surrogateescape")


class Entry(msgspec.Struct, frozen=True):
    """One object.

    ``size`` in bytes, ``modified`` in seconds since the epoch by the storage's clock, ``md5`` of
    the content where the storage tells it. ``shared`` is true when deleting this name frees
    nothing, because the file has another hard link.
    """

    path: str
    size: int
    modified: float
    md5: bytes | None = None
    shared: bool = False


class Page(msgspec.Struct, frozen=True):
    """One answer to a listing, as columns of equal length.

    ``md5s`` has dtype ``V16`` and :data:`UNKNOWN_MD5` where the listing does not tell; None where
    it never does. ``etags``: as the storage lists them, opaque; another one after each write. None
    where it lists none, or its MD5s say as much.
    ``shared`` is as in :class:`Entry`; None where nothing is.
    ``hollow`` are folders with no file anywhere below them, which only file systems have (paths
    without a trailing ``/``, deepest first, the listed folder itself among them).
    ``contents``: by row, the whole of small files that cost less to read than to come back to.
    A row of the size :data:`UNASKED` and the age :data:`UNASKED_AGE` is a file that is expected
    there and was not looked at, see :class:`FolderReader`.
    ``token`` asks for the page after this one, see :class:`NameReader`; empty where there is none.
    """

    paths: Paths
    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]
    md5s: NDArray[np.void] | None = None
    shared: NDArray[np.bool_] | None = None
    hollow: tuple[str, ...] = ()
    etags: Sequence[bytes] | None = None
    contents: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    token: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def of(cls, entries: Sequence[Entry], hollow: tuple[str, ...] = ()) -> Page:
        """Pack *entries*; for drivers and tests where speed does not matter."""
        md5s = b"".join(entry.md5 or UNKNOWN_MD5 for entry in entries)
        return cls(
            paths=Paths.of([entry.path for entry in entries]),
            sizes=np.array([entry.size for entry in entries], dtype=np.int64),
            modified=np.array([entry.modified for entry in entries], dtype=np.float64),
            md5s=np.frombuffer(md5s, dtype="V16"),
            shared=np.array([entry.shared for entry in entries], dtype=np.bool_),
            hollow=hollow,
        )

    def entries(self) -> Iterator[Entry]:
        """The rows, one object each."""
        for index, path in enumerate(self.paths):
            md5 = None if self.md5s is None else self.md5s[index].tobytes()
            yield Entry(
                path=path,
                size=int(self.sizes[index]),
                modified=float(self.modified[index]),
                md5=None if md5 == UNKNOWN_MD5 else md5,
                shared=self.shared is not None and bool(self.shared[index]),
            )


class Children(msgspec.Struct, frozen=True):
    """The names directly below a folder, sorted; folders without a trailing ``/``."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


class Deletion(enum.Enum):
    """What became of one delete."""

    DELETED = "deleted"
    GONE_ALREADY = "gone already"
    MOVED = "moved"
    """Not deleted but kept elsewhere in the same storage, by who moves instead of deleting."""
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """What became of one path; ``error`` says why it failed, in the storage's own words.

    ``bytes``: what deleted versions took; of an object nobody asks at its delete.
    """

    path: str
    result: Deletion
    error: str = ""
    bytes: int = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What a storage is like; data, so that nobody asks for a driver's class.

    ``delete_batch``: paths that one request may delete. ``folders``: there are real folders,
    which stay when they are empty and cost one request to list. ``processes``: work is bound by
    the interpreter, so that worker processes are faster than threads. ``workers``: how many
    requests at once serve it best. ``seekable``: a listing can begin after any path for the price
    of what it then lists; else ``start_after`` is obeyed by listing and dropping what comes
    before, and the storage is a :class:`NameReader`. Known for certain after the first answer.
    """

    delete_batch: int
    folders: bool
    processes: bool = False
    workers: int = 16
    seekable: bool = True


@dataclass(slots=True)
class Requests:
    """How often the storage was asked, by kind; adding is safe from several threads."""

    list: int = 0
    read: int = 0
    delete: int = 0
    write: int = 0
    retries: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(
        self, *, list: int = 0, read: int = 0, delete: int = 0, write: int = 0, retries: int = 0
    ) -> None:
        """Count requests that were sent."""
        with self._guard:
            self.list += list
            self.read += read
            self.delete += delete
            self.write += write
            self.retries += retries

    def totals(self) -> dict[str, int]:
        """The counts by name, taken at one moment."""
        with self._guard:
            return {
                "list": self.list,
                "read": self.read,
                "delete": self.delete,
                "write": self.write,
                "retries": self.retries,
            }


@runtime_checkable
class Reader(Protocol):
    """Reading access to one storage root."""

    @property
    def driver(self) -> str:
        """The driver's name in the registry's config: ``filesystem``, ``s3``, …"""

    @property
    def root(self) -> str:
        """Where this storage is, for people and for comparing storages; holds no secret."""

    @property
    def capabilities(self) -> Capabilities:
        """What this storage is like."""

    @property
    def requests(self) -> Requests:
        """Counts what this driver asked of its storage."""

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """Every file below *prefix*, at any depth.

        Every storage answers in the order of the paths' UTF-8 bytes, so that a listing that broke
        goes on with ``start_after``, which leaves out the paths up to and including it. A prefix
        that holds nothing yields nothing.
        Files that vanish while the listing runs are left out or listed, never an error.
        """

    def children(self, prefix: str) -> Children:
        """The names directly below *prefix*; both empty when there is no such folder."""

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        """The bytes of *path*.

        :raises NotFound: it is not there.
        :raises TooLarge: it has more than *limit* bytes.
        """

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """*length* bytes of *path* from *start* on; fewer where it ends before.

        For what is too large to be held whole. *length* is more than 0.

        :raises NotFound: it is not there.
        """

    def stat(self, path: str) -> Entry:
        """Size, age and, where known, MD5 of *path*.

        :raises NotFound: it is not there, or is a folder.
        """

    def now(self) -> float:
        """The storage's own time, in seconds since the epoch."""

    def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class NameReader(Protocol):
    """What a reader has beside, where listings cannot begin after a path."""

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        """Every file whose path begins with *beginning*: a prefix, and perhaps part of a name.

        :param token: that of a page of such a listing, after which this one goes on.
        """


Named = tuple[str, Sequence[str]]
"""A folder, with ``/`` at its end, and the names, sorted, of some folders directly below it."""


@runtime_checkable
class FolderReader(Protocol):
    """What a reader has beside, where the size and age of a file cost a look at it.

    Nearly all files of a registry's repositories are links to layers and entries in tags'
    histories, each the only one in a folder that is called like the digest in it. Most are of no
    further interest.
    """

    def list_unasked(self, *prefixes: str) -> Iterator[Page]:
        """As ``list``, of several prefixes one after the other, which may share a page.

        But such links are told by the names of their folders alone.

        A folder ``_layers/sha256/<64 hex>``, or ``index/sha256/<64 hex>`` of a tag, stands for the
        ``link`` in it, which may be missing.
        """

    def list_among(self, named: Sequence[Named]) -> Iterator[Page]:
        """What ``list`` says of some folders that are called like digests, in their order.

        What is no longer there is left out.
        """


def list_unasked(reader: Reader, *prefixes: str) -> Iterator[Page]:
    """See :meth:`FolderReader.list_unasked`, of any *reader*; others look at every file."""
    if isinstance(reader, FolderReader):
        return reader.list_unasked(*prefixes)
    return list_whole(reader, *prefixes)


def list_whole(reader: Reader, *prefixes: str) -> Iterator[Page]:
    """As :func:`list_unasked`, by the reader's ``list`` and nothing else."""
    for prefix in prefixes:
        yield from reader.list(prefix)


def list_among(reader: Reader, named: Sequence[Named]) -> Iterator[Page]:
    """See :meth:`FolderReader.list_among`, of any *reader*."""
    if isinstance(reader, FolderReader):
        return reader.list_among(named)
    return list_each(reader, named)


def list_each(reader: Reader, named: Sequence[Named]) -> Iterator[Page]:
    """As :func:`list_among`, by the reader's ``list`` and nothing else."""
    for folder, names in named:
        for name in names:
            yield from reader.list(f"{folder}{name}/")


@runtime_checkable
class ManyReader(Protocol):
    """What a reader has beside, where many files at once cost less than one after the other."""

    def stat_many(self, paths: Sequence[str]) -> Sequence[Entry | None]:
        """What ``stat`` says of each of *paths*, in their order; None where it says ``NotFound``.

        Counted as so many requests. Raises what ``stat`` raises otherwise.
        """


def stat_many(reader: Reader, paths: Sequence[str]) -> Sequence[Entry | None]:
    """See :meth:`ManyReader.stat_many`, of any *reader*."""
    if isinstance(reader, ManyReader):
        return reader.stat_many(paths)
    return stat_each(reader, paths)


def stat_each(reader: Reader, paths: Iterable[str]) -> Sequence[Entry | None]:
    """As :func:`stat_many`, by the reader's ``stat`` and nothing else."""
    found: list[Entry | None] = []
    for path in paths:
        try:
            found.append(reader.stat(path))
        except NotFound:
            found.append(None)
    return found


@runtime_checkable
class Deleter(Protocol):
    """What only a sweep is handed."""

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Delete files, never recursively; one outcome for each path, in any order.

        Lazy: takes no more paths from the iterable than one batch before it yields that batch's
        outcomes. A path that names a folder fails. Raises only when of the paths that are left no
        outcome can be told, after those that are known.
        """

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """Remove *folders* that are empty, then their parents that became so.

        Never *floor* itself (a prefix) or anything not below it, never a symlink or the repository
        that one leads to, never a folder that holds something. Returns how many went; 0 where
        storage has no folders.
        """


@runtime_checkable
class Writer(Protocol):
    """For what we keep in the storage ourselves: lock and quarantine."""

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store *data* whole or not at all.

        :raises AlreadyExists: *if_absent* and the path is there, decided by the storage itself.
        """

    def move(self, source: str, target: str) -> None:
        """Give an object another path, replacing what is there.

        :raises NotFound: there is no *source*.
        """


@runtime_checkable
class Renewer(Protocol):
    """A storage whose moves keep the time of what is moved, and that can make it now."""

    def renew(self, path: str) -> None:
        """Make an object as young as one that is written now.

        :raises StorageError: that is not allowed, or there is none.
        """


@runtime_checkable
class Storage(Reader, Deleter, Writer, Protocol):
    """A driver: all three together."""
