"""What manifests reference, remembered from run to run: a manifest never changes.

One row for each manifest, keyed by its digest, with a checksum over the row. Rows of other
extraction rules are thrown away when the file is opened, damaged ones when they are met; a
manifest that could not be understood is never remembered. Trouble with the file costs time, not
safety: whatever it does not tell is read from the storage.

Beside them lies what tags pointed to (:mod:`registry_gc.listing.tag_memory`), under the same rules.

That a manifest is remembered does not say that its blob is still there and whole. Its listed size
says so, and is compared later (:meth:`registry_gc.references.Manifests.check`).
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Any, NamedTuple

import msgspec
import xxhash

from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import Keys, pack
from registry_gc.manifests import RULES_VERSION

SCHEMA = 3
_APPLICATION = 0x52474343  # what SQLite's header says of the file: "RGCC"
_FORMAT = f"{SCHEMA}.{RULES_VERSION}"
# A look-up costs about as much as twenty rows of a scan.
_SCAN_WORTH = 20
_AT_ONCE = 4096
_LENGTHS = struct.Struct(">5q").pack
_TABLES = {
    "manifests": "key BLOB PRIMARY KEY, size INTEGER, kind INTEGER, subject BLOB, edges BLOB, "
    "targets BLOB, others TEXT, checksum INTEGER",
    "tags": "key BLOB PRIMARY KEY, stamp BLOB, target TEXT, checksum INTEGER",
}


Row = tuple[Any, ...]


class Found(NamedTuple):
    """Several remembered manifests, column by column; see :class:`Remembered`."""

    keys: tuple[bytes, ...]
    sizes: tuple[int, ...]
    kinds: tuple[int, ...]
    subjects: tuple[bytes, ...]
    edges: tuple[bytes, ...]
    targets: tuple[bytes, ...]
    others: tuple[str, ...]


class Remembered(NamedTuple):
    """One manifest; ``targets`` are keys, one after the other, ``edges`` a byte for each."""

    key: bytes
    size: int
    kind: int
    subject: bytes
    edges: bytes
    targets: bytes
    others: str


class TagRow(NamedTuple):
    """Where a tag's link is, as a key; what the listing said of it; the digest it held."""

    key: bytes
    stamp: bytes
    target: str


class ReferenceCache(msgspec.Struct):
    """The file at ``path``; ``notices`` says what was wrong with it."""

    path: str
    notices: list[str]
    _connection: sqlite3.Connection | None

    @classmethod
    def open(cls, path: str) -> ReferenceCache:
        """Open or make the file; one that is damaged, or no cache, is put aside and begun anew.

        Put aside, not removed: a slip in ``--cache`` may name any file. What is no file, such as
        a device, stays where it is. So does a cache that only cannot be used now, because the disk
        is full or answers with errors, or another run has it: that passes, and it is a good one.
        """
        notices: list[str] = []
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
            if os.path.exists(path) and not os.path.isfile(path):
                notices.append(f"the cache {path} is not used: it is no regular file")
                return cls(path, notices, None)
            return cls(path, notices, _open(path, notices))
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            if not _is_damage(error):
                notices.append(f"the cache {path} cannot be used: {error}")
                return cls(path, notices, None)
            reason = error
        try:
            os.replace(path, f"{path}.damaged")
            notices.append(
                f"the cache {path} is begun anew, and what was there is {path}.damaged: {reason}"
            )
            return cls(path, notices, _open(path, notices))
        except (sqlite3.Error, OSError) as error:
            notices.append(f"the cache {path} cannot be used: {error}")
            return cls(path, notices, None)

    def find(self, keys: Keys) -> Iterator[Found]:
        """The remembered ones of *keys*, which are sorted and each there once; some at a time."""
        for found in self._whole("manifests", keys, _checksum):
            yield Found(*[*zip(*found, strict=True)][:-1])

    def find_tags(self, keys: Keys) -> Iterator[TagRow]:
        """As :meth:`find`, of tags."""
        for found in self._whole("tags", keys, _tag_checksum):
            for key, stamp, target, _ in found:
                yield TagRow(key, stamp, target)

    def _whole(self, table: str, keys: Keys, checksum: Callable[..., int]) -> Iterator[list[Row]]:
        """The rows of *keys* that are not damaged."""
        if self._connection is None or not len(keys):
            return
        damaged = 0
        try:
            wanted = KeyIndex(keys)
            for rows in self._rows(self._connection, table, keys):
                whole = _undamaged(rows, checksum)
                damaged += len(rows) - len(whole)
                there = wanted.has(pack(row[0] for row in whole))
                found = whole if there.all() else [*compress(whole, there.tolist())]
                if found:
                    yield found
        except sqlite3.Error as error:
            self._give_up(error)
        if damaged:
            self.notices.append(f"{self.path}: {damaged} damaged rows, which are read again")

    def _rows(self, connection: sqlite3.Connection, table: str, keys: Keys) -> Iterator[list[Row]]:
        query = f"SELECT * FROM {table} WHERE key "  # noqa: S608  # one of _TABLES
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # as above
        if len(keys) * _SCAN_WORTH < count:
            for start in range(0, len(keys), _AT_ONCE):
                found = [
                    connection.execute(query + "= ?", (key.tobytes(),)).fetchone()
                    for key in keys[start : start + _AT_ONCE]
                ]
                yield [row for row in found if row is not None]
            return
        cursor = connection.execute(
            query + "BETWEEN ? AND ? ORDER BY key", (keys[0].tobytes(), keys[-1].tobytes())
        )
        while rows := cursor.fetchmany(_AT_ONCE):
            yield rows

    def add(self, manifests: Iterable[Remembered]) -> None:
        """Remember *manifests*, all or, on an error, none."""
        rows = sorted((*manifest, _checksum(*manifest)) for manifest in manifests)
        self._write("INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def add_tags(self, tags: Iterable[TagRow]) -> None:
        """Remember *tags* instead of what was known of them; all or, on an error, none."""
        rows = sorted((*tag, _tag_checksum(*tag)) for tag in tags)
        self._write("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", rows)

    def forget(self, keys: Keys) -> None:
        """Remember *keys* no longer."""
        self._write("DELETE FROM manifests WHERE key = ?", [(key.tobytes(),) for key in keys])

    def _write(self, statement: str, rows: list[Any]) -> None:
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _give_up(self, error: Exception) -> None:
        self.notices.append(f"the cache {self.path} is not used any further: {error}")
        self.close()


def others_of(text: str) -> dict[bytes, str]:
    """Read a row's ``others``: texts of the keys that are not sha256 digests."""
    return {bytes.fromhex(key): name for key, name in json.loads(text).items()} if text else {}


def others_text(others: dict[bytes, str]) -> str:
    """The form in which a row keeps :func:`others_of`."""
    return json.dumps({key.hex(): name for key, name in sorted(others.items())}) if others else ""


def _undamaged(rows: list[Row], checksum: Callable[..., int]) -> list[Row]:
    try:
        return [row for row in rows if row[-1] == checksum(*row[:-1])]
    except (TypeError, AttributeError, struct.error):
        # A row of other types than ours is as damaged as one of other values.
        return [found for row in rows for found in _undamaged([row], checksum)] if rows[1:] else []


def _checksum(
    key: bytes, size: int, kind: int, subject: bytes, edges: bytes, targets: bytes, others: str
) -> int:
    # Of one piece: a call for each column took longer than the rest of reading a row. Key and
    # subject have a fixed width, the lengths of the others are in it.
    text = others.encode()
    lengths = _LENGTHS(size, kind, len(edges), len(targets), len(key))
    return xxhash.xxh3_64_intdigest(b"".join((lengths, key, subject, edges, targets, text))) >> 1


def _tag_checksum(key: bytes, stamp: bytes, target: str) -> int:
    # Key and stamp have a fixed width.
    return xxhash.xxh3_64_intdigest(b"".join((key, stamp, target.encode()))) >> 1


class _AnotherKind(sqlite3.DatabaseError):
    """Some other program's database."""


def _is_damage(error: Exception) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    # Of a schema that is no text Python cannot even say what SQLite has against it.
    # SQLITE_ERROR: our statements do not fit it, because a table or a column is missing.
    return isinstance(error, _AnotherKind | UnicodeDecodeError) or name.startswith(
        ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_ERROR")
    )


def _open(path: str, notices: list[str]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION:
            raise _AnotherKind("a database of another kind")
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute("CREATE TABLE IF NOT EXISTS meta (format TEXT NOT NULL)")
        row = connection.execute("SELECT format FROM meta").fetchone()
        if row is None or row[0] != _FORMAT:
            if row is not None:
                notices.append(
                    f"the cache {path} is of another version of this program, and begun anew"
                )
            with connection:
                connection.execute("DELETE FROM meta")
                connection.execute("INSERT INTO meta VALUES (?)", (_FORMAT,))
                for table, columns in _TABLES.items():
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
                    connection.execute(f"CREATE TABLE {table} ({columns}) WITHOUT ROWID")
        for table in _TABLES:
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # as above
    except sqlite3.Error:
        connection.close()
        raise
    return connection
