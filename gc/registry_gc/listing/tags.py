"""Tags as columns: hundreds of thousands of them, without an object for each.

Read one by one they are :class:`Tag` objects, made when asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Paths
from registry_gc.digest import KEY, Keys, Names
from registry_gc.layout import tag_current

NO_STAMP = b"\0" * 16


def stamp_of(etag: bytes, size: int, modified: float) -> bytes:
    """What a listing says of a link, in 16 bytes; :data:`NO_STAMP` where that is too little.

    :param etag: ETag or MD5; empty where the listing has neither.
    """
    if not etag:
        return NO_STAMP
    said = b"%b\n%d\n%b" % (etag, size, modified.hex().encode())
    return hashlib.blake2b(said, digest_size=len(NO_STAMP)).digest()


class Tag(msgspec.Struct, frozen=True):
    """A tag with a ``current/link``; ``target`` is its digest, None as long as nobody knows.

    ``stamp``: see :func:`stamp_of`; :data:`NO_STAMP` where the listing has told the target.
    """

    repository: int
    name: str
    path: str
    modified: float
    target: str | None
    stamp: bytes = NO_STAMP


class TagFolders(Sequence[tuple[int, str]]):
    """Pairs of repository and tag, in this order; ``owner`` are the repositories, int32."""

    __slots__ = ("_names", "owner")

    def __init__(self, owner: NDArray[np.int32], names: Paths) -> None:
        self.owner = owner
        self._names = names

    @classmethod
    def empty(cls) -> TagFolders:
        """No folders."""
        return cls(np.empty(0, np.int32), Paths.of([]))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: int) -> tuple[int, str]:  # type: ignore[override]  # no slices
        return int(self.owner[index]), self._names[index]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return zip(self.owner.tolist(), self._names, strict=True)


class TagColumns(msgspec.Struct, frozen=True):
    """Some tags: folder, age, key of the target where it is known, stamp."""

    folder: NDArray[np.int32]
    modified: NDArray[np.float64]
    keys: Keys
    known: NDArray[np.bool_]
    stamps: NDArray[np.void]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, float, bytes | None, bytes]]) -> TagColumns:
        """Pack *rows* of folder, age, key or None, and stamp."""
        folders, ages, keys, stamps = zip(*rows, strict=True) if rows else ((), (), (), ())
        return cls(
            folder=np.array(folders, dtype=np.int32),
            modified=np.array(ages, dtype=np.float64),
            keys=np.frombuffer(b"".join(key or _NOTHING for key in keys), dtype=KEY),
            known=np.array([key is not None for key in keys], dtype=np.bool_),
            stamps=np.frombuffer(b"".join(stamps), dtype="V16"),
        )

    @classmethod
    def joined(cls, parts: Sequence[TagColumns]) -> TagColumns:
        """All of *parts*, one after the other."""
        parts = parts or [cls.of([])]
        return cls(
            folder=np.concatenate([part.folder for part in parts]),
            modified=np.concatenate([part.modified for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
            known=np.concatenate([part.known for part in parts]),
            stamps=np.concatenate([part.stamps for part in parts]),
        )


class Tags(Sequence[Tag]):
    """All tags that have a ``current/link``, in the order of their folders.

    ``folder``: positions in ``folders``, int32. ``modified``: seconds since the epoch. ``keys``:
    what each points to, where ``known``.
    """

    def __init__(
        self,
        repositories: Sequence[str],
        folders: TagFolders,
        names: Names,
        columns: TagColumns | None = None,
    ) -> None:
        self._repositories = repositories
        self._names = names
        self.folders = folders
        found = columns or TagColumns.of([])
        order = np.argsort(found.folder, kind="stable")
        self.folder, self.modified = found.folder[order], found.modified[order]
        self.keys, self.known = found.keys[order], found.known[order]
        self.stamps = found.stamps[order]

    def with_more(self, more: TagColumns) -> Tags:
        """These tags and *more*, of the same folders."""
        columns = TagColumns(self.folder, self.modified, self.keys, self.known, self.stamps)
        joined = TagColumns.joined([columns, more])
        return Tags(self._repositories, self.folders, self._names, joined)

    @property
    def owner(self) -> NDArray[np.int32]:
        """The repository of each tag."""
        owner: NDArray[np.int32] = self.folders.owner[self.folder]
        return owner

    def learn(self, row: int, key: bytes) -> None:
        """Be told what the tag in *row* points to."""
        self.keys[row] = np.void(key)
        self.known[row] = True

    def forget_stamps(self) -> None:
        """Let go of what only those who read links ask for."""
        self.stamps = np.broadcast_to(np.frombuffer(NO_STAMP, dtype="V16"), len(self))

    def path(self, row: int) -> str:
        """Where the tag's ``current/link`` is."""
        owner, name = self.folders[int(self.folder[row])]
        return tag_current(self._repositories[owner], name)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Tag:  # type: ignore[override]  # slices are not needed
        owner, name = self.folders[int(self.folder[index])]
        known = bool(self.known[index])
        return Tag(
            repository=owner,
            name=name,
            path=tag_current(self._repositories[owner], name),
            modified=float(self.modified[index]),
            target=self._names.text(self.keys[index].tobytes()) if known else None,
            stamp=self.stamps[index].tobytes(),
        )

    def __iter__(self) -> Iterator[Tag]:
        return (self[row] for row in range(len(self)))


_NOTHING = b"\0" * 32
