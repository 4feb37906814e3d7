"""Blobs past the live set by workers that have only their share of it: planning, far away.

Blobs lie in the order of their digests, so whoever lists a range of them needs the live digests
of that range and no others: 8 bytes for each. What comes back is what the plan has to see: the
blobs that nothing reaches, those that only a hold keeps, and the manifests of which a cache has
told. All others, nearly all, are a number. Whoever made the share looks at what comes back with
the whole live set again, so that a share that is too small costs time, and no blob its life.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_gc.arrays import distinct, within
from registry_gc.catalog import stream_blobs
from registry_gc.cuts import split_rest
from registry_gc.digest import Keys, prefixes
from registry_gc.engine import Engine
from registry_gc.layout import BLOBS, SHA256_BLOBS
from registry_gc.listing import BlobBatch, list_blobs
from registry_gc.live_set import LiveSet
from registry_gc.ranges import PAGES, Range

Words = NDArray[np.uint64]

_BOUND = re.compile(re.escape(SHA256_BLOBS) + r"([0-9a-f]{2})/(?:([0-9a-f]{2,64})(?:/|$))?")
_LAST = (1 << 64) - 1
_HEX_DIGITS = 6
_MOST = 1 << 14
# A unit that met more pages than it may list would cost another one, with a request of its own.
_KEYS_A_PAGE = 1000
_LIVE_A_UNIT = 7 * PAGES * _KEYS_A_PAGE // 10


class Wanted(msgspec.Struct, frozen=True):
    """What blobs are looked for.

    ``needed``: what would be live if nothing were held; ``live`` itself where nothing is.
    ``remembered``: manifests of which the size is wanted.
    """

    live: LiveSet
    needed: LiveSet
    remembered: Keys


class Share(msgspec.Struct, frozen=True):
    """A work unit: a range, and of that range what :class:`Wanted` has, as sorted words.

    ``needed`` is None where it is no other than ``live``.
    """

    range: Range
    live: Words
    needed: Words | None
    remembered: Words


def list_share(reader: Reader, share: Share) -> BlobBatch:
    """List a range of blobs, and leave out those that are live and of no interest; a work unit."""
    batch = list_blobs(reader, share.range)
    words = prefixes(batch.keys)
    shown = ~within(share.live, words) | within(share.remembered, words)
    if share.needed is not None:
        shown |= ~within(share.needed, words)
    return replace(
        batch,
        keys=batch.keys[shown],
        sizes=batch.sizes[shown],
        modified=batch.modified[shown],
        live=len(words) - int(np.count_nonzero(shown)),
        live_bytes=int(batch.sizes[~shown].sum()),
    )


def stream_shares(reader: Reader, engine: Engine, wanted: Wanted) -> Iterator[BlobBatch]:
    """As :func:`registry_gc.catalog.stream_blobs`, by workers that leave out what is live.

    :raises StorageError: a folder could not be listed.
    """
    if not reader.capabilities.seekable:
        # Ranges are folders there, and a folder's listing cannot be left in the middle.
        yield from stream_blobs(reader, engine)
        return
    remembered = distinct(prefixes(wanted.remembered))

    def share(of: Range) -> Share:
        low, high = bounds_of(of)
        return Share(
            of,
            wanted.live.between(low, high),
            None if wanted.needed is wanted.live else wanted.needed.between(low, high),
            _between(remembered, low, high),
        )

    def follow(batch: BlobBatch) -> Iterator[Share]:
        return map(share, split_rest(reader, batch.rest)) if batch.rest else iter(())

    ranges = even_ranges(len(wanted.live))
    yield from engine.run(list_share, map(share, ranges), follow)


def even_ranges(expected: int) -> Iterator[Range]:
    """Ranges that hold about as many pages as one unit lists, if there are *expected* blobs."""
    count = max(1, min(_MOST, -(-expected // _LIVE_A_UNIT)))
    start: str | None = None
    for number in range(1, count + 1):
        digits = f"{(number << (4 * _HEX_DIGITS)) // count:0{_HEX_DIGITS}x}"
        stop = f"{SHA256_BLOBS}{digits[:2]}/{digits}/" if number < count else None
        yield Range((BLOBS,), start_after=start, stop_before=stop, pages=PAGES, begun=start)
        start = stop


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
