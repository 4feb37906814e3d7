"""The durable run file: plan, journal, audit and point to resume from, in one SQLite file.

One row for each thing that a run meant to delete, with its state and the reason. Rows are
written before anything is deleted, and their state after the storage has answered; a run that
dies in between finds those objects gone the next time, which is harmless.

Where the disk is full it goes on elsewhere, see :mod:`registry_gc.runs.database`.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Self

from registry_gc.runs.database import (
    Database,
    RunFileError,
    connect,
    create,
    memory_path,
    no_room,
    reason_of,
)
from registry_gc.runs.rows import (
    GONE,
    OBJECT_KINDS,
    WIDTH,
    Count,
    Row,
    RowKind,
    RowParts,
    Rows,
    RowState,
    in_rows,
)

SCHEMA = 1

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE deletions (
    id INTEGER PRIMARY KEY,
    phase INTEGER NOT NULL,
    kind TEXT NOT NULL,
    repository TEXT,
    digest TEXT,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    modified REAL,
    reason TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'planned',
    error TEXT,
    finished REAL,
    uncached REAL
);
"""
# Names that are no UTF-8 cannot be bound as text; as bytes that are cast to text they can.
_COLUMNS = "(phase, kind, repository, digest, path, size, modified, reason)"
_INSERT = f"INSERT INTO deletions {_COLUMNS} VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608  # above
_SAY = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
_CHUNK = 10_000  # rows that are in memory at once
_LINES = 1_000  # lines that are one text; names of folders that are in memory at once
# What all of them share is no parameter. Many rows at once: the sqlite3 module lets go of the
# interpreter for each execution, and gets it back only when a busy worker does.
_ROWS_AT_ONCE = 100
_INSERT_ROWS = f"INSERT INTO deletions {_COLUMNS} VALUES "  # noqa: S608  # above
_ROW = "({}, '{}', ?, ?, ?, ?, ?, '{}')"
_INSERT_BYTES = (
    f"INSERT INTO deletions {_COLUMNS} VALUES (?, CAST(? AS TEXT), "  # noqa: S608  # above
    "CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, CAST(? AS TEXT))"
)
_FIELD = re.compile(r"\{(repository|digest)\}")


_BY_PHASE = {kind.phase: kind for kind in RowKind}


_ELIGIBLE = tuple(state for state in RowState if state is not RowState.TAKEN_BACK)
"""What counts where no state is asked for: a row that was taken back is not to be deleted."""


_OF_FAILED = (
    "SELECT digest, coalesce(error, '') AS why FROM deletions "
    "WHERE phase < ?1 AND state = ?2 AND digest IS NOT NULL"
)


_OBJECTS = max(kind.phase for kind in OBJECT_KINDS)
_GONE = (
    "SELECT id, path FROM deletions WHERE id > ? AND phase <= ? AND state IN (?, ?, ?) "
    "ORDER BY id LIMIT ?"
)


Elsewhere = Literal["always", "when full", "never"]
"""When a file that cannot be made where it should be goes to memory-backed storage."""


class RunFile(Database):
    """A run file that is being written; see :class:`Database` for where that is."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        # Known as long as this process has written every row; a pass over millions takes seconds.
        self._counts: dict[tuple[int, str], Count] | None = None

    @classmethod
    def create(cls, path: str, *, elsewhere: Elsewhere = "always", **meta: Any) -> Self:
        """A new run file at *path*, or on memory-backed storage where that cannot be written.

        :param elsewhere: when it may go there: a plan that somebody has named a place for is looked
            for in that place, and goes elsewhere where the disk is full, and for nothing else.
        :param meta: facts about the run, as of :meth:`record_meta`, that it says from the moment
            it is there: of a file that says nothing nobody would know whose it was.
        :raises RunFileError: *path* exists already, or no place can be written.
        """
        if os.path.exists(path):
            raise RunFileError(already_there(path))
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
            return cls._new(path, meta)
        except (OSError, sqlite3.Error) as error:
            if elsewhere == "never" or (elsewhere == "when full" and not no_room(path, error)):
                raise RunFileError(f"{path}: {reason_of(error)}") from error
            try:
                fallback = cls._new(memory_path(os.path.basename(path)), meta)
            except (OSError, sqlite3.Error) as second:
                raise RunFileError(
                    f"{path}: {error}; nor elsewhere: {reason_of(second)}"
                ) from second
            fallback.notices.append(
                f"{path} cannot be written ({reason_of(error)}); the run file is {fallback.path}, "
                "which does not survive a reboot"
            )
            return fallback

    @classmethod
    def _new(cls, path: str, meta: Mapping[str, Any]) -> Self:
        def fill(connection: sqlite3.Connection) -> None:
            connection.executescript(_TABLES)
            connection.executemany(_SAY, _facts(meta))
            connection.execute(f"PRAGMA user_version = {SCHEMA}")

        file = cls(path, create(path, fill))
        file._counts = {}
        return file

    @classmethod
    def existing(cls, path: str) -> RunFile:
        """The run file that another run has left at *path*.

        :raises RunFileError: it cannot be read, or is not one of ours.
        """
        try:
            os.stat(path)
            connection = connect(path)
            try:
                (schema,) = connection.execute("PRAGMA user_version").fetchone()
            except BaseException:
                connection.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise RunFileError(f"{path}: {reason_of(error)}") from error
        if schema != SCHEMA:
            connection.close()
            raise RunFileError(f"{path}: no run file of this version")
        return cls(path, connection)

    def record_meta(self, **meta: Any) -> None:
        """Record facts about the run, as JSON values."""
        self.write(_SAY, _facts(meta), recount=False)

    def make_durable(self) -> None:
        """From now on, what is written survives a loss of power: plan, and journal of deletes.

        Waiting for the disk after each part of a plan would take longer than making it.
        """
        list(self.read("PRAGMA synchronous = FULL"))
        self.record_meta(planned=True)

    def meta(self) -> dict[str, Any]:
        """What :meth:`record_meta` recorded."""
        # All at once: a value that is none must not leave a cursor open in a file that is closed.
        rows = [*self.read("SELECT key, value FROM meta")]
        return {key: json.loads(value) for key, value in rows}

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows, some at a time; after an error the file is worth nothing."""
        if isinstance(rows, RowParts):
            for part in rows.parts:
                self.add(part)
            return
        if isinstance(rows, Rows):
            self._add_columns(rows)
            return
        source = iter(rows)
        while some := list(islice(source, _CHUNK)):
            values = [(row.kind.phase, row.kind.label, *row[1:]) for row in some]
            try:
                self.write(_INSERT, values, recount=False)
            except UnicodeEncodeError:
                # Names that are no UTF-8; they are rare, and encoding all costs as much as writing.
                self.write(_INSERT_BYTES, [tuple(map(_encoded, value)) for value in values])
            for row in some:
                self._counted(row.kind, 1, row.size)

    def _add_columns(self, rows: Rows) -> None:
        kind = rows.kind
        row = _ROW.format(kind.phase, kind.label, rows.reason.replace("'", "''"))
        step = _ROWS_AT_ONCE * WIDTH
        for start in range(0, len(rows), _CHUNK):
            values = rows.values(start, start + _CHUNK)
            even = len(values) - len(values) % step
            try:
                if even:
                    many = _INSERT_ROWS + ", ".join([row] * _ROWS_AT_ONCE)
                    self.write(many, in_rows(step, values[:even]), recount=False)
                    del values[:even]
                self.write(_INSERT_ROWS + row, in_rows(WIDTH, values), recount=False)
            except UnicodeEncodeError:
                some = in_rows(WIDTH, values)
                encoded = ((kind.phase, kind.label, *value, rows.reason) for value in some)
                self.write(_INSERT_BYTES, [tuple(map(_encoded, value)) for value in encoded])
        self._counted(kind, len(rows), sum(rows.sizes))

    def _counted(self, kind: RowKind, rows: int, size: int) -> None:
        if self._counts is not None:
            key = (kind.phase, RowState.PLANNED)
            known = self._counts.get(key, Count())
            self._counts[key] = Count(known.rows + rows, known.bytes + size)

    def drop(self, kind: RowKind, digests: Iterable[str]) -> None:
        """Take rows back that are not dead after all."""
        # One pass over the file for all of them: it has no index that would find one.
        self.write(
            "DELETE FROM deletions WHERE phase = ? AND digest IN (SELECT value FROM json_each(?))",
            [(kind.phase, json.dumps([*digests]))],
        )

    def drop_all(self, kind: RowKind) -> None:
        """Take all rows of a kind back."""
        self.write("DELETE FROM deletions WHERE phase = ?", [(kind.phase,)])

    def count(self, kind: RowKind, *states: RowState) -> Count:
        """How many rows of a kind, in any of *states*; taken back ones only where named."""
        counts = self._known_counts()
        found = [counts.get((kind.phase, state), Count()) for state in states or _ELIGIBLE]
        return Count(sum(part.rows for part in found), sum(part.bytes for part in found))

    def _known_counts(self) -> dict[tuple[int, str], Count]:
        if self._counts is None:
            query = (
                "SELECT phase, state, count(*), coalesce(sum(size), 0) FROM deletions "
                "GROUP BY phase, state"
            )
            # One pass over the file for all kinds and states: reports ask for most of them.
            self._counts = {
                (phase, state): Count(rows, size) for phase, state, rows, size in self.read(query)
            }
        return self._counts

    def _has_any(self, state: RowState) -> bool:
        return any(
            count.rows for (_, known), count in self._known_counts().items() if known == state
        )

    def uploads(self, *states: RowState) -> int:
        """How many uploads have rows in any of *states*; each upload has several files."""
        if not self.count(RowKind.UPLOAD, *states).rows:
            return 0
        ((found,),) = self.read(
            "SELECT count(DISTINCT repository || char(10) || digest) FROM deletions "
            "WHERE phase = ? AND state IN (SELECT value FROM json_each(?))",
            (RowKind.UPLOAD.phase, json.dumps(states or _ELIGIBLE)),
        )
        return int(found)

    def rows(self, kind: RowKind, state: RowState | None = None) -> Iterator[Row]:
        """The rows of a kind that are in *state*, or not taken back.

        They come in the order of repository, digest and path.
        """
        query = (
            "SELECT repository, digest, path, size, modified, reason FROM deletions "
            "WHERE phase = ? AND CASE WHEN ? IS NULL THEN state <> ? ELSE state = ? END "
            "ORDER BY repository, digest, path"
        )
        # A connection of its own would not see rows that are not committed yet; none are.
        for row in self.read(query, (kind.phase, state, RowState.TAKEN_BACK, state)):
            yield Row(kind, *row)

    def numbered(self, numbers: Sequence[int]) -> dict[int, tuple[Row, float]]:
        """The rows of *numbers*, each with when it was settled in seconds since the epoch."""
        query = (
            "SELECT id, finished, phase, repository, digest, path, size, modified, reason "
            "FROM deletions WHERE id IN (SELECT value FROM json_each(?))"
        )
        found = self.read(query, (json.dumps(numbers),))
        return {
            number: (Row(_BY_PHASE[phase], *row), finished or 0.0)
            for number, finished, phase, *row in found
        }

    def lines(self, kind: RowKind, form: str, show: Callable[[str], str]) -> Iterator[str]:
        """One line for each row of a kind, by repository and digest; many lines a text.

        :param form: the line, with ``{repository}`` and ``{digest}`` for those of the row; put
            together by SQLite, which takes a fifth of the time that rows take.
        :param show: makes a line fit to be shown; asked only about lines with odd characters.
        """
        parts = _FIELD.split(form)
        texts = [f"coalesce({part}, '')" if at % 2 else "?" for at, part in enumerate(parts)]
        # Lines of the same repository and digest are the same: with the path, which is most of
        # what there would be to sort, they would come no other way.
        query = (
            f"SELECT CAST({' || '.join(texts)} AS BLOB) FROM deletions "  # noqa: S608  # two names
            "WHERE phase = ? AND state <> ? ORDER BY repository, digest"
        )
        values = (*parts[::2], kind.phase, RowState.TAKEN_BACK)
        for some in self.read_many(query, values, _LINES):
            text = b"\n".join([line for (line,) in some]).decode("utf-8", "surrogateescape")
            plain = text.isascii() and text.replace("\n", "").isprintable()
            if not plain or text.count("\n") >= len(some):
                text = "\n".join(show(line.decode("utf-8", "surrogateescape")) for (line,) in some)
            yield text

    def manifests(self) -> Iterator[tuple[str, list[str]]]:
        """``<repository> <digest>`` of each revision in order, with the rows of tags beside it.

        Of those the paths, in any order: of the rows of tags' indexes with the same repository
        and digest. No row that was taken back is among them.
        """
        # No path has a NUL. The rows of tags are not collected here: there may be millions.
        query = (
            "SELECT repository || ' ' || digest, "
            "coalesce(group_concat(CASE phase WHEN ?1 THEN path END, char(0)), '') "
            "FROM deletions WHERE phase IN (?1, ?2) AND state <> ?3 "
            "GROUP BY repository, digest HAVING max(phase = ?2) ORDER BY repository, digest"
        )
        values = (RowKind.TAG_INDEX.phase, RowKind.REVISION.phase, RowState.TAKEN_BACK)
        for name, paths in self.read(query, values):
            yield name, paths.split("\0") if paths else []

    def batches(self, kind: RowKind, size: int) -> Iterator[list[tuple[int, str]]]:
        """Rows still to be deleted, as number and path, *size* at a time."""
        after = 0
        while True:
            batch: list[tuple[int, str]] = list(
                self.read(
                    "SELECT id, path FROM deletions WHERE phase = ? AND state = ? AND id > ? "
                    "ORDER BY id LIMIT ?",
                    (kind.phase, RowState.PLANNED, after, size),
                )
            )
            if not batch:
                return
            after = batch[-1][0]
            yield batch

    def blobs_of_failed_links(
        self, stored_as: Callable[[str], Iterable[str]]
    ) -> list[tuple[int, str, str]]:
        """Blobs still to be deleted to which a link stays that was to go.

        Of each number, path, and why the link (of several, one of them) could not be deleted.

        :param stored_as: which other digests the links of a digest hold.
        """
        if not self._has_any(RowState.FAILED):
            return []
        # Few links say another digest than their own; all that failed may be very many.
        others = {
            other: why
            for digest, why in self.read(_OF_FAILED, (RowKind.BLOB.phase, RowState.FAILED))
            for other in stored_as(digest)
        }
        query = (
            "SELECT id, path, why FROM deletions JOIN "  # noqa: S608  # above
            f"(SELECT digest, min(why) AS why FROM ({_OF_FAILED} "
            "UNION ALL SELECT key, value FROM json_each(?3)) GROUP BY digest) USING (digest) "
            "WHERE phase = ?1 AND state = ?4 ORDER BY id"
        )
        values = (RowKind.BLOB.phase, RowState.FAILED, json.dumps(others), RowState.PLANNED)
        return list(self.read(query, values))

    def record(self, outcomes: Sequence[tuple[int, RowState, str]]) -> None:
        """Write down what became of rows: number, state, error; durable when this returns."""
        now = time.time()
        self.write(
            "UPDATE deletions SET state = ?, error = CAST(? AS TEXT), finished = ? WHERE id = ?",
            [(state, _encoded(error or None), now, number) for number, state, error in outcomes],
        )

    def failures(self) -> Iterator[tuple[str, str]]:
        """Path and error of all that could not be deleted."""
        if not self._has_any(RowState.FAILED):
            return
        yield from self.read(
            "SELECT path, coalesce(error, '') FROM deletions WHERE state = ? ORDER BY path",
            (RowState.FAILED,),
        )

    def folders_of_gone(self) -> Iterator[str]:
        """The folder of each object that is gone, some of them more than once, in any order."""
        after = 0
        while rows := list(self.read(_GONE, (after, _OBJECTS, *GONE, _LINES))):
            after = rows[-1][0]
            for _, path in rows:
                yield path.rpartition("/")[0]

    def repositories_with(self, state: RowState) -> set[str]:
        """The repositories that have rows in *state*."""
        if not self._has_any(state):
            return set()
        return {
            row[0]
            for row in self.read(
                "SELECT DISTINCT repository FROM deletions WHERE state = ?", (state,)
            )
            if row[0] is not None
        }

    def write(self, statement: str, rows: Sequence[Sequence[Any]], *, recount: bool = True) -> None:
        if recount:
            self._counts = None
        try:
            super().write(statement, rows)
        except RunFileError:
            self._counts = None
            raise


def already_there(path: str) -> str:
    """The line about a file at *path* that is not to be written over."""
    return f"{path}: the run file exists already; name another"


def _facts(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, json.dumps(value)) for key, value in meta.items()]


def _encoded(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
