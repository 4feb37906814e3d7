"""All of ``blobs/`` as a stream of batches, each of which is dropped once it was looked at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_gc.digest import Keys, empty_keys
from registry_gc.engine import Engine
from registry_gc.layout import BLOBS, SHA256_BLOBS
from registry_gc.listing.blobs import BlobBatch, BlobKeys, list_blobs, name_blobs, stat_blobs
from registry_gc.listing.ranges import Range, even_ranges, first_ranges
from registry_gc.listing.units import cut_blobs, still_to_list
from registry_gc.live_set import LiveSet

_BLOBS_A_UNIT = 4096
_NO_BLOBS = BlobBatch(
    keys=empty_keys(),
    sizes=np.empty(0, np.int64),
    modified=np.empty(0, np.float64),
    others={},
    strangers=0,
    hollow=[],
    rest=None,
)


def stream_blobs(
    reader: Reader, engine: Engine, live: LiveSet | None = None, expected: int = 0
) -> Iterator[BlobBatch]:
    """List ``blobs/``; each batch is dropped once it was looked at.

    :param live: on a filesystem, where a file's size and age cost a look at each, those of live
        blobs are not asked for: such blobs are only counted.
    :param expected: about how many there are, rather too few, as far as that is known.
    :raises StorageError: a folder could not be listed.
    """
    if live is not None and reader.capabilities.folders:
        yield from _stream_unreached(reader, engine, live)
        return
    strays: list[str] = []
    if expected and reader.capabilities.seekable and not reader.capabilities.folders:
        units = [*even_ranges(expected)]
    else:
        units, strays = first_ranges(reader, BLOBS, engine.workers)
    if strays:
        yield replace(_NO_BLOBS, strangers=len(strays))
    for cut in engine.run(cut_blobs, units, still_to_list):
        yield cut.batch


def _stream_unreached(reader: Reader, engine: Engine, live: LiveSet) -> Iterator[BlobBatch]:
    """Blobs of which the folder's name is not live; the others are counted by that name."""
    top = reader.children(BLOBS)
    sha256 = reader.children(SHA256_BLOBS)
    buckets = [f"{SHA256_BLOBS}{name}/" for name in sha256.folders if len(name) == 2]
    whole = [f"{SHA256_BLOBS}{name}/" for name in sha256.folders if len(name) != 2]
    whole += [f"{BLOBS}{name}/" for name in top.folders if name != "sha256"]
    size = max(1, -(-len(buckets) // (8 * engine.workers)))
    units = [tuple(buckets[at : at + size]) for at in range(0, len(buckets), size)]
    unreached: list[Keys] = []
    counted = 0
    for keys, odd in engine.run(name_blobs, units):
        dead = keys[~live.has(keys)]
        counted += len(keys) - len(dead)
        unreached.append(dead)
        whole += odd
    yield replace(_NO_BLOBS, strangers=len(top.files) + len(sha256.files), live=counted)
    keys = np.concatenate([_NO_BLOBS.keys, *unreached])
    size = max(1, min(_BLOBS_A_UNIT, -(-len(keys) // (4 * engine.workers))))
    starts = range(0, len(keys), size)
    yield from engine.run(stat_blobs, [BlobKeys(keys[at : at + size].tobytes()) for at in starts])
    yield from engine.run(list_blobs, [Range((folder,)) for folder in sorted(whole)])
