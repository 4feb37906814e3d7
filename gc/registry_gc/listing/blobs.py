"""Work units that look at ``blobs/``: all of a range, names in folders, or some by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Entry, Reader, stat_many
from registry_drivers.paths import temporaries
from registry_gc.digest import KEY, InvalidDigest, Keys, Names, empty_keys, pack, stored_digest
from registry_gc.layout import BLOBS, Run, blob_paths, split
from registry_gc.listing.ranges import Range, Walk
from registry_gc.machine.overlap import size_of_parts

_BUCKET = re.compile(re.escape(BLOBS) + "sha256/([0-9a-f]{2})/")


class BlobBatch(msgspec.Struct, frozen=True):
    """What one range of ``blobs/`` holds.

    ``sizes`` are the bytes that deleting frees: 0 where the file has another hard link.
    ``live``: how many live blobs there are beside these, where those were left out, of together
    ``live_bytes``; None where nobody asked for their sizes. ``unfinished``: strangers that are
    ours, see :func:`registry_drivers.paths.is_temporary`.
    """

    keys: Keys
    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]
    others: dict[bytes, str]
    strangers: int
    hollow: list[str]
    rest: Range | None
    live: int = 0
    live_bytes: int | None = None
    unfinished: list[str] = []


def list_blobs(reader: Reader, unit: Range) -> BlobBatch:
    """List one range of ``blobs/``."""
    names = Names()
    keys: list[Keys] = []
    sizes: list[NDArray[np.int64]] = []
    modified: list[NDArray[np.float64]] = []
    hollow: list[str] = []
    unfinished: list[str] = []
    strangers = 0
    walk = Walk(reader, unit)
    for page in walk.pages():
        hollow += page.hollow
        before = strangers
        freed = page.sizes if page.shared is None else np.where(page.shared, 0, page.sizes)
        for piece in split(page):
            if isinstance(piece, Run):
                right = _in_their_place(piece)
                found = piece.keys[right]
                rows = np.arange(piece.start, piece.stop)[right]
                strangers += len(right) - len(found)
            else:
                found = _odd_blob_key(piece.path, names)
                rows = np.arange(piece.row, piece.row + len(found))
                strangers += 1 - len(found)
            keys.append(found)
            sizes.append(freed[rows])
            modified.append(page.modified[rows])
        if strangers > before:
            unfinished += temporaries(page.paths)
    return BlobBatch(
        keys=np.concatenate(keys) if keys else empty_keys(),
        sizes=np.concatenate(sizes) if sizes else np.empty(0, np.int64),
        modified=np.concatenate(modified) if modified else np.empty(0, np.float64),
        others=names.others,
        strangers=strangers,
        hollow=hollow,
        rest=walk.rest,
        unfinished=unfinished,
    )


def _in_their_place(run: Run) -> NDArray[np.bool_]:
    """Tell which rows of a run are ``blobs/sha256/<2 hex>/<64 hex>/data``.

    Other algorithms that registries store under have longer digests.
    """
    match = _BUCKET.fullmatch(run.head) if run.leaf == "data" else None
    if match is None:
        return np.zeros(len(run.keys), dtype=np.bool_)
    first = np.ascontiguousarray(run.keys).view(np.uint8).reshape(-1, 32)[:, 0]
    right: NDArray[np.bool_] = first == int(match[1], 16)
    return right


def _odd_blob_key(path: str, names: Names) -> Keys:
    """The key of a blob that is stored by another algorithm; none for a stranger."""
    parts = path[len(BLOBS) :].split("/")
    if not path.startswith(BLOBS) or len(parts) != 4 or parts[3] != "data":
        return empty_keys()
    algorithm, bucket, encoded, _ = parts
    if algorithm == "sha256" or bucket != encoded[:2]:
        return empty_keys()
    try:
        digest = stored_digest(algorithm, encoded)
    except InvalidDigest:
        return empty_keys()
    return np.frombuffer(names.key(digest), dtype=KEY)


def name_blobs(reader: Reader, folders: tuple[str, ...]) -> tuple[Keys, tuple[str, ...]]:
    """The digests that have a folder below some ``blobs/sha256/<2 hex>/``; one look into each.

    Also returns the folders that hold something else too, and have to be listed whole.
    """
    found: list[bytes] = []
    odd: list[str] = []
    for folder in folders:
        below = reader.children(folder)
        keys = b"" if below.files else _decoded(below.folders, folder[-3:-1])
        if keys:
            found.append(keys)
        else:
            odd.append(folder)
    return np.frombuffer(b"".join(found), dtype=KEY), tuple(odd)


def _decoded(names: Sequence[str], bucket: str) -> bytes:
    """The digests that *names* are; nothing if one is none, or does not begin with *bucket*."""
    if set(map(len, names)) != {64} or {name[:2] for name in names} != {bucket}:
        return b""
    encoded = "".join(names)
    try:
        keys = bytes.fromhex(encoded)
    except ValueError:
        return b""
    # fromhex takes capitals and blanks; a digest has neither.
    return keys if keys.hex() == encoded else b""


class BlobKeys(msgspec.Struct, frozen=True):
    """Some sha256 blobs to look at, by their keys, one after the other."""

    keys: bytes

    def parts(self, count: int) -> list[BlobKeys]:
        """See :class:`registry_gc.machine.overlap.Divisible`."""
        size = 32 * size_of_parts(len(self.keys) // 32, count)
        starts = range(0, len(self.keys), size)
        return [BlobKeys(self.keys[at : at + size]) for at in starts] or [self]


def stat_blobs(reader: Reader, unit: BlobKeys) -> BlobBatch:
    """Size and age of some sha256 blobs; a folder without its file is none."""
    keys = unit.keys
    found: list[bytes] = []
    entries: list[Entry] = []
    lone: list[str] = []
    encoded = keys.hex()
    paths = blob_paths("sha256:" + encoded[at : at + 64] for at in range(0, len(encoded), 64))
    for number, (path, entry) in enumerate(zip(paths, stat_many(reader, paths), strict=True)):
        if entry is None:
            lone.append(path.removesuffix("data"))
        else:
            entries.append(entry)
            found.append(keys[number * 32 : number * 32 + 32])
    others = list_blobs(reader, Range(tuple(lone)))
    return BlobBatch(
        keys=pack(found),
        sizes=np.array([0 if entry.shared else entry.size for entry in entries], np.int64),
        modified=np.array([entry.modified for entry in entries], np.float64),
        others={},
        strangers=others.strangers,
        hollow=others.hollow,
        rest=None,
        unfinished=others.unfinished,
    )
