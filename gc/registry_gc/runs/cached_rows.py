"""The rows of a run file that a registry's cache may remember, and which of them it was told of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

from registry_gc.runs.database import Database
from registry_gc.runs.rows import Cached, RowKind, RowState

_OF_CACHED = "FROM deletions WHERE phase IN (SELECT value FROM json_each(?)) "
_PHASES = json.dumps([kind.phase for kind in (RowKind.REVISION, RowKind.LAYER_LINK, RowKind.BLOB)])


class CachedRows:
    """Those of one run file, which may move meanwhile."""

    def __init__(self, run_file: Database) -> None:
        self._run_file = run_file

    def of(self, numbers: Sequence[int]) -> list[Cached]:
        """Those of rows *numbers*."""
        query = (
            f"SELECT id, repository, digest {_OF_CACHED}"  # noqa: S608  # above
            "AND id IN (SELECT value FROM json_each(?))"
        )
        found = self._run_file.read(query, (_PHASES, json.dumps(numbers)))
        return [Cached(*row) for row in found]

    def batches(self, size: int, *states: RowState) -> Iterator[list[tuple[Cached, bool]]]:
        """Those in any of *states*, *size* at a time.

        Each with whether :meth:`record_uncached` was told of it.
        """
        query = (
            f"SELECT id, repository, digest, uncached IS NOT NULL {_OF_CACHED}"  # noqa: S608
            "AND id > ? AND state IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
        )
        wanted = json.dumps(states)
        after = 0
        while found := list(self._run_file.read(query, (_PHASES, after, wanted, size))):
            after = found[-1][0]
            yield [(Cached(*row), bool(known)) for *row, known in found]

    def count(self, *states: RowState) -> tuple[int, int]:
        """How many rows :meth:`record_uncached` was told of, and of how many it was not yet."""
        query = (
            f"SELECT count(uncached), count(*) - count(uncached) {_OF_CACHED}"  # noqa: S608
            "AND state IN (SELECT value FROM json_each(?))"
        )
        ((told, left),) = self._run_file.read(query, (_PHASES, json.dumps(states)))
        return told, left

    def record_uncached(self, numbers: Sequence[int]) -> None:
        """Write down that no cache remembers rows *numbers* any more."""
        now = time.time()
        self._run_file.write(
            "UPDATE deletions SET uncached = ? WHERE id = ?", [(now, number) for number in numbers]
        )
