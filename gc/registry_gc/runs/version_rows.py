"""The rows of a run file about what the storage keeps of objects that are deleted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from registry_gc.runs.database import Database, RunFileError
from registry_gc.runs.rows import RowKind, RowState

_OF_OBJECTS = "CREATE INDEX IF NOT EXISTS objects ON deletions (path) WHERE size > 0"
_BY_PATH = "CREATE INDEX IF NOT EXISTS paths ON deletions (path)"
_UNFREED = (
    "SELECT kind, sum(size) FROM deletions WHERE phase < ?1 AND state = ?2 AND size > 0 "
    "AND path IN (SELECT path FROM deletions WHERE phase = ?1 AND state = ?3) GROUP BY kind"
)


def add_versions_of_deleted(run_file: Database) -> None:
    """Append the versions of all that this run has deleted.

    How much they are is known when they are gone: see :func:`record_freed`. Those that a run
    which was stopped has appended before are not appended again. Of what was gone before a
    second look nobody knows who deleted it, nor whether it is to come back: its row says why
    it is gone. One that does not was there when the sweep began.
    """
    run_file.write(
        "INSERT INTO deletions (phase, kind, repository, digest, path, size, modified, reason) "
        "SELECT ?, ?, NULL, digest, path, 0, modified, 'versions of what this run has deleted' "
        "FROM deletions WHERE phase < ? AND (state = ? OR state = ? AND error IS NULL) "
        "AND path NOT IN (SELECT path FROM deletions WHERE phase = ?) ORDER BY path",
        [
            (
                RowKind.VERSIONS.phase,
                RowKind.VERSIONS.label,
                RowKind.VERSIONS.phase,
                RowState.DELETED,
                RowState.GONE_ALREADY,
                RowKind.VERSIONS.phase,
            )
        ],
    )


def sizes_to_go(run_file: Database, paths: Iterable[str]) -> dict[str, int]:
    """Bytes of the objects among *paths* that are still to be deleted."""
    # Asked for all paths of a bucket, some at a time: each time would be a pass over the file.
    _have_index(run_file, _BY_PATH)
    query = (
        "SELECT path, max(size) FROM deletions WHERE phase < ? AND state = ? "
        "AND path IN (SELECT value FROM json_each(?)) GROUP BY path"
    )
    values = (RowKind.VERSIONS.phase, RowState.PLANNED, json.dumps([*paths]))
    return dict(run_file.read(query, values))


def record_freed(run_file: Database, freed: Sequence[tuple[int, int]]) -> None:
    """Write down how many bytes the versions of rows had that were appended to be deleted.

    Less what the row of the object itself has counted: its last version was among them.
    """
    # Without an index each row is a pass over the file.
    _have_index(run_file, _OF_OBJECTS)
    run_file.write(
        "UPDATE deletions AS versions SET size = max(0, ? - coalesce((SELECT sum(size) "
        "FROM deletions AS object WHERE object.path = versions.path AND object.size > 0 "
        "AND object.phase < ? AND object.state = ?), 0)) "
        "WHERE id = ? AND phase = ? AND size = 0",
        [
            (size, RowKind.VERSIONS.phase, RowState.DELETED, number, RowKind.VERSIONS.phase)
            for number, size in freed
        ],
    )


def unfreed(read: Callable[[str, tuple[object, ...]], Iterable[Any]]) -> dict[str, int]:
    """Bytes of what was deleted and is there still, as its versions could not go, by kind.

    :param read: of a run file, or of a connection to one; raises what it raises.
    """
    return dict(read(_UNFREED, (RowKind.VERSIONS.phase, RowState.DELETED, RowState.FAILED)))


def _have_index(run_file: Database, statement: str) -> None:
    """Make an index, if there is room for it; with a full disk it takes longer without."""
    with contextlib.suppress(RunFileError):
        list(run_file.read(statement))
