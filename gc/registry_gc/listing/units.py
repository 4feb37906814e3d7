"""Work units that list a range and cut what is left of it, where that is long.

Cutting may look into folders, which are requests: made by the one who hands out units, they would
keep all the others waiting, one after the other.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from registry_drivers.base import Reader
from registry_gc.listing.blobs import BlobBatch, list_blobs
from registry_gc.listing.cuts import split_rest
from registry_gc.listing.name_cuts import share_out
from registry_gc.listing.ranges import Range
from registry_gc.listing.repositories import RepositoryBatch, list_repositories

Batch = TypeVar("Batch")


class Cut(NamedTuple, Generic[Batch]):
    """What was listed, and the ranges that are still to be."""

    batch: Batch
    pieces: tuple[Range, ...]


def cut_repositories(reader: Reader, unit: Range) -> Cut[RepositoryBatch]:
    """List one range of ``repositories/``."""
    batch = list_repositories(reader, unit)
    return Cut(batch, pieces_of(reader, batch.rest))


def cut_blobs(reader: Reader, unit: Range) -> Cut[BlobBatch]:
    """List one range of ``blobs/``."""
    batch = list_blobs(reader, unit)
    return Cut(batch, pieces_of(reader, batch.rest))


def pieces_of(reader: Reader, rest: Range | None) -> tuple[Range, ...]:
    """What is left of a range, cut."""
    if rest is None:
        return ()
    return tuple(share_out(reader, rest) if rest.names else split_rest(reader, rest))


def still_to_list(cut: Cut[Batch]) -> tuple[Range, ...]:
    """The ranges that came to light with *cut*."""
    return cut.pieces
