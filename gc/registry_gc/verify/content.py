"""Whether blobs are what their digests say: work units that read and hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import blob_path

_PIECE = 16 << 20
"""Bytes held at once by each worker; layers of many GB are ordinary."""
_BYTES_A_UNIT = 64 << 20
_BLOBS_A_UNIT = 512


@dataclass(frozen=True, slots=True)
class Unit:
    """Digests of blobs, and their sizes in bytes as they were listed."""

    digests: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hashed:
    """What one unit came to. ``wrong``: digest and reason. ``bytes``: how many were meant."""

    wrong: tuple[tuple[str, str], ...]
    bytes: int


def hash_blobs(reader: Reader, unit: Unit) -> Hashed:
    """Read some blobs and compare.

    One that has vanished since it was listed is no finding: whoever needs it looks for it.

    :raises StorageError: one could not be read.
    """
    wrong: list[tuple[str, str]] = []
    for digest, size in zip(unit.digests, unit.sizes, strict=True):
        try:
            reason = _complaint(reader, digest, size)
        except NotFound:
            continue
        if reason:
            wrong.append((digest, reason))
    return Hashed(tuple(wrong), sum(unit.sizes))


def _complaint(reader: Reader, digest: str, size: int) -> str:
    algorithm, _, encoded = digest.partition(":")
    hashing = hashlib.new(algorithm)
    for piece in _pieces(reader, blob_path(digest), size):
        hashing.update(piece)
    actual = hashing.hexdigest()
    if actual == encoded:
        return ""
    return f"its content has the digest {algorithm}:{actual}" if size else "empty"


def _pieces(reader: Reader, path: str, size: int) -> Iterator[bytes]:
    if size <= _PIECE:
        yield reader.read(path)
        return
    for start in range(0, size, _PIECE):
        yield reader.read_range(path, start, min(_PIECE, size - start))


def _units(digests: Sequence[str], sizes: Sequence[int]) -> Iterator[Unit]:
    first = total = 0
    for at, size in enumerate(sizes):
        if at > first and (total + size > _BYTES_A_UNIT or at - first >= _BLOBS_A_UNIT):
            yield Unit(tuple(digests[first:at]), tuple(sizes[first:at]))
            first, total = at, 0
        total += size
    if first < len(sizes):
        yield Unit(tuple(digests[first:]), tuple(sizes[first:]))


def wrong_content(
    engine: Engine, digests: Sequence[str], sizes: Sequence[int], observer: Observer
) -> Iterable[tuple[str, str]]:
    """Read the blobs *digests* of *sizes* bytes; yields those that are something else, and why."""
    observer.phase("checking content", sum(sizes), "B")
    for hashed in engine.run(hash_blobs, _units(digests, sizes)):
        yield from hashed.wrong
        observer.advance(hashed.bytes)
    observer.finish()
