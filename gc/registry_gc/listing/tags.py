"""Tags as columns: hundreds of thousands of them, without an object for each.

Read one by one they are :class:`Tag` objects, made when asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNKNOWN_MD5, Paths
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
    """Pairs of repository and tag, in this order: ``owner``, int32, and ``names``."""

    __slots__ = ("names", "owner")

    def __init__(self, owner: NDArray[np.int32], names: Paths) -> None:
        self.owner = owner
        self.names = names

    @classmethod
    def empty(cls) -> TagFolders:
        """No folders."""
        return cls(np.empty(0, np.int32), Paths.of([]))

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, index: int) -> tuple[int, str]:  # type: ignore[override]  # no slices
        return int(self.owner[index]), self.names[index]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return zip(self.owner.tolist(), self.names, strict=True)


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


class TagList:
    """Collects the tags of a listing, and their folders, without an object for each.

    What is said of one tag comes in one piece; a folder that comes again is another number.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        # Of the folder that came last: whose it is, and what its tag may point to.
        self._last: tuple[int, str] | None = None
        self._candidates: list[str] = []
        self._owners = array("i")
        self._folders: list[str] = []
        self._folder, self._modified = array("i"), array("d")
        self._keys, self._stamps, self._known = bytearray(), bytearray(), bytearray()
        # Of the tag that came last, where it may still get to know its target: MD5, ETag, size.
        self._open: tuple[bytes, bytes, int] | None = None

    def number(self, repository: int, tag: str) -> int:
        """The number of a tag's folder."""
        if self._last != (repository, tag):
            self._close()
            self._last = repository, tag
            self._owners.append(repository)
            self._folders.append(tag)
        return len(self._folders) - 1

    def add(
        self, folder: int, modified: float, target: str | None, md5: bytes, etag: bytes, size: int
    ) -> None:
        """A tag with a ``current/link``, the digest in it if that is known, and what is listed.

        :param md5: of what is in the link, :data:`registry_drivers.base.UNKNOWN_MD5` if unknown.
        :param etag: empty where the listing has none.
        """
        self._close()
        self._folder.append(folder)
        self._modified.append(modified)
        self._keys += _NOTHING if target is None else self._names.key(target)
        self._known.append(target is not None)
        self._stamps += NO_STAMP
        self._open = (md5, etag, size) if target is None else None

    def suggest(self, digests: Iterable[str]) -> None:
        """What the tag that came last has pointed to at some time."""
        self._candidates += digests

    def _close(self) -> None:
        """Learn the last tag's target, where its MD5 is that of one of its own candidates.

        ``current/link`` always holds one of the digests under ``index/``, and an MD5 that is
        equal to that of a candidate's text is no coincidence: nobody who can write links needs
        to collide one.
        """
        if self._open is not None:
            md5, etag, size = self._open
            target = self._of_md5(md5) if md5 != UNKNOWN_MD5 else None
            if target is None:
                etag = etag or (md5 if md5 != UNKNOWN_MD5 else b"")
                self._stamps[-len(NO_STAMP) :] = stamp_of(etag, size, self._modified[-1])
            else:
                self._keys[-KEY.itemsize :] = self._names.key(target)
                self._known[-1] = True
        self._open = None
        self._candidates = []

    def _of_md5(self, md5: bytes) -> str | None:
        for digest in self._candidates:
            if hashlib.md5(digest.encode(), usedforsecurity=False).digest() == md5:
                return digest
        return None

    def folders(self) -> TagFolders:
        """All folders, in the order of their numbers."""
        return TagFolders(np.array(self._owners, dtype=np.int32), Paths.of(self._folders))

    def columns(self) -> TagColumns:
        """All tags that have a ``current/link``."""
        self._close()
        return TagColumns(
            folder=np.array(self._folder, dtype=np.int32),
            modified=np.array(self._modified, dtype=np.float64),
            keys=np.frombuffer(bytes(self._keys), dtype=KEY),
            known=np.array(self._known, dtype=np.bool_),
            stamps=np.frombuffer(bytes(self._stamps), dtype="V16"),
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
