"""What a run file that nobody writes adds up to."""

from __future__ import annotations

import contextlib
import sqlite3

from registry_gc.runs.database import RunFileError
from registry_gc.runs.rows import Count, RowKind, RowState
from registry_gc.runs.version_rows import unfreed


def read_totals(path: str) -> dict[tuple[str, str], Count] | None:
    """How many rows the file at *path* has, and their bytes, by kind and state.

    None where its plan was never made whole.

    :raises RunFileError: it cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            if not connection.execute("SELECT 1 FROM meta WHERE key = 'run'").fetchone():
                return None
            return {
                (kind, state): Count(rows, size)
                for kind, state, rows, size in counts_of(connection)
            }
    except sqlite3.Error as error:
        raise RunFileError(f"{path}: {error}") from error


def counts_of(connection: sqlite3.Connection) -> list[tuple[str, str, int, int]]:
    """Kind, state, rows and bytes of what a run file holds.

    What this run has deleted, and of which the versions could not go, is not freed: its bytes are
    those of the versions that failed.
    """
    query = "SELECT kind, state, count(*), coalesce(sum(size), 0) FROM deletions GROUP BY 1, 2"
    counts = {(kind, state): (rows, size) for kind, state, rows, size in connection.execute(query)}
    failed = (RowKind.VERSIONS.label, str(RowState.FAILED))
    if failed in counts:
        for kind, there in unfreed(connection.execute).items():
            for key, more in (((kind, str(RowState.DELETED)), -there), (failed, there)):
                rows, size = counts[key]
                counts[key] = (rows, size + more)
    return [(*key, *count) for key, count in counts.items()]
