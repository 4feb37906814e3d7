"""Blobs past the live set by workers that have only their share of it: planning, far away.

Blobs lie in the order of their digests, so whoever lists a range of them needs the live digests
of that range and no others: 8 bytes for each. What comes back is what the plan has to see: the
blobs that nothing reaches, those that only a hold keeps, the manifests of which a cache has told,
and those whose age matters. All others, nearly all, are a number. Whoever made the share looks at
what comes back with the whole live set again, so that a share that is too small costs time, and no
blob its life.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_gc.compact.arrays import within
from registry_gc.digest import prefixes
from registry_gc.engine import Engine
from registry_gc.layout import SHA256_BLOBS
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.blobs import BlobBatch, list_blobs
from registry_gc.listing.ranges import Range, even_ranges
from registry_gc.listing.units import Cut, pieces_of
from registry_gc.live_set import LiveSet

Words = NDArray[np.uint64]

_BOUND = re.compile(re.escape(SHA256_BLOBS) + r"([0-9a-f]{2})/(?:([0-9a-f]{2,64})(?:/|$))?")
_LAST = (1 << 64) - 1


class Wanted(msgspec.Struct, frozen=True):
    """What blobs are looked for.

    ``needed``: what would be live if nothing were held; ``live`` itself where nothing is.
    ``told``: sorted words of those that are to be seen although they are live.
    """

    live: LiveSet
    needed: LiveSet
    told: Words


class Share(msgspec.Struct, frozen=True):
    """A work unit: a range, and of that range what :class:`Wanted` has, as sorted words.

    ``needed`` is None where it is no other than ``live``.
    """

    range: Range
    live: Words
    needed: Words | None
    told: Words


def list_share(reader: Reader, share: Share) -> Cut[BlobBatch]:
    """List a range of blobs, and leave out those that are live and of no interest; a work unit."""
    batch = list_blobs(reader, share.range)
    words = prefixes(batch.keys)
    shown = ~within(share.live, words) | within(share.told, words)
    if share.needed is not None:
        shown |= ~within(share.needed, words)
    left = replace(
        batch,
        keys=batch.keys[shown],
        sizes=batch.sizes[shown],
        modified=batch.modified[shown],
        live=len(words) - int(np.count_nonzero(shown)),
        live_bytes=int(batch.sizes[~shown].sum()),
    )
    return Cut(left, pieces_of(reader, batch.rest))


def stream_shares(reader: Reader, engine: Engine, wanted: Wanted) -> Iterator[BlobBatch]:
    """As :func:`stream_blobs`, by workers that leave out what is live.

    :raises StorageError: a folder could not be listed.
    """
    if not reader.capabilities.seekable:
        # Ranges are folders there, and a folder's listing cannot be left in the middle.
        yield from stream_blobs(reader, engine)
        return

    def share(of: Range) -> Share:
        low, high = bounds_of(of)
        return Share(
            of,
            wanted.live.between(low, high),
            None if wanted.needed is wanted.live else wanted.needed.between(low, high),
            _between(wanted.told, low, high),
        )

    ranges = even_ranges(len(wanted.live))
    units = map(share, ranges)
    for cut in engine.run(list_share, units, lambda cut: map(share, cut.pieces)):
        yield cut.batch


def bounds_of(of: Range) -> tuple[int, int]:
    """The first 64 bits of the digests in a range: from, and up to; generously."""
    digits = _digits(of.start_after)
    low = int(digits.ljust(16, "0"), 16)
    digits = _digits(of.stop_before)
    return low, int(digits.ljust(16, "f"), 16) if digits else _LAST


def _digits(bound: str | None) -> str:
    match = _BOUND.match(bound or "")
    return (match[2] or match[1])[:16] if match else ""


def _between(words: Words, low: int, high: int) -> Words:
    first = np.searchsorted(words, np.uint64(low), "left")
    return words[first : np.searchsorted(words, np.uint64(high), "right")]
