"""What a run file holds: one row for each thing to delete, of some kind, in some state. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

WIDTH = 5
"""Values of a row that its kind and reason do not say."""


class RowKind(enum.Enum):
    """What a row deletes; the order is that of deletion, safe to stop after any single one."""

    TAG_INDEX = (1, "tag-index")
    SIGNATURE = (2, "signature")
    REVISION = (3, "revision")
    LAYER_LINK = (4, "layer-link")
    BLOB = (5, "blob")
    UPLOAD = (6, "upload")
    # What the storage keeps of what was deleted, before this run or by it.
    VERSIONS = (7, "versions")
    MULTIPART = (8, "multipart-upload")

    def __init__(self, phase: int, label: str) -> None:
        self.phase = phase
        """Its place in the order of deletion."""
        self.label = label
        """Its name in the file and in reports."""


OBJECT_KINDS = tuple(kind for kind in RowKind if kind not in (RowKind.VERSIONS, RowKind.MULTIPART))
"""The kinds of which each row is an object; the others are what the storage keeps."""


class RowState(enum.StrEnum):
    """How far a row has come."""

    PLANNED = "planned"
    DELETED = "deleted"
    GONE_ALREADY = "gone already"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    TAKEN_BACK = "taken back"


GONE = (RowState.DELETED, RowState.GONE_ALREADY, RowState.QUARANTINED)
"""The states of rows of which the storage has said that they are where they were no more."""
MAYBE_GONE = (RowState.PLANNED, RowState.FAILED)
"""Those of rows that may be gone all the same: what was sent, and whose answer was lost or not
written down, is still planned, and one that failed may have been carried out after all."""


class Row(NamedTuple):
    """One thing to delete. ``size``: bytes that this frees, 0 for links. ``modified``: epoch."""

    kind: RowKind
    repository: str | None
    digest: str | None
    path: str
    size: int
    modified: float | None
    reason: str


class Rows(msgspec.Struct, frozen=True):
    """Rows of one kind and reason as columns, one by one :class:`Row` objects.

    ``repositories`` is None for what lies in none. A list of plain texts for each column, and no
    object for each row, takes half the time until they are written.
    """

    kind: RowKind
    reason: str
    repositories: Sequence[str] | None
    digests: Sequence[str]
    paths: Sequence[str]
    sizes: Sequence[int]
    modified: Sequence[float]

    def __len__(self) -> int:
        return len(self.paths)

    def values(self, start: int, stop: int) -> list[Any]:
        """Repository, digest, path, size and time of each of rows ``start:stop``, in one list.

        :raises ValueError: the columns are not of one length.
        """
        columns = (self.repositories, self.digests, self.paths, self.sizes, self.modified)
        values: list[Any] = [None] * (len(self.paths[start:stop]) * WIDTH)
        for at, column in enumerate(columns):
            if column is not None:
                # A third of the time that a tuple for each row takes.
                values[at::WIDTH] = column[start:stop]
        return values

    def __iter__(self) -> Iterator[Row]:
        """Each row."""
        for repository, digest, path, size, modified in in_rows(WIDTH, self.values(0, len(self))):
            yield Row(self.kind, repository, digest, path, size, modified, self.reason)


class RowParts:
    """Rows that come part by part, some of them :class:`Rows`; who iterates has each, once."""

    def __init__(self, parts: Iterable[Iterable[Row]]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[Row]:
        """Each row."""
        return chain.from_iterable(self.parts)


class Count(msgspec.Struct, frozen=True):
    """How many rows, and their bytes."""

    rows: int = 0
    bytes: int = 0


class Cached(NamedTuple):
    """A row of what a registry's cache may remember; ``repository`` is None for a blob."""

    number: int
    repository: str | None
    digest: str


def in_rows(size: int, values: list[Any]) -> list[list[Any]]:
    """Cut flat *values* into lists of *size*."""
    return [values[at : at + size] for at in range(0, len(values), size)]
