"""A SQLite file that goes on in memory-backed storage when its disk is full.

A full disk is the usual reason to collect, and must not stop a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from registry_gc.runs.state_dir import IN_MEMORY, temporary_folder


class RunFileError(Exception):
    """The run file cannot be written anywhere, or is not one of ours."""


class Database:
    """An open file at ``path``. ``notices`` says where it had to move, and why."""

    def __init__(self, path: str, connection: sqlite3.Connection) -> None:
        self.path = path
        self.notices: list[str] = []
        self._connection = connection

    def close(self) -> None:
        """Close the file, and leave no journal beside it."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def read(self, query: str, values: Sequence[object] = ()) -> Iterator[Any]:
        """The rows that *query* finds.

        :raises RunFileError: as do :meth:`read_many` and :meth:`write`.
        """
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.Error as error:
            raise RunFileError(f"{self.path}: {reason_of(error)}") from error

    def read_many(self, query: str, values: Sequence[object], count: int) -> Iterator[list[Any]]:
        """As :meth:`read`, *count* rows at a time; for rows that are small and many."""
        try:
            found = self._connection.execute(query, values)
            while rows := found.fetchmany(count):
                yield rows
        except sqlite3.Error as error:
            raise RunFileError(f"{self.path}: {reason_of(error)}") from error

    def write(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run *statement* for each of *rows*, all or none; elsewhere where the disk is full."""
        try:
            try:
                with self._connection:
                    self._connection.executemany(statement, rows)
            except sqlite3.OperationalError as error:
                if not is_full(error):
                    raise
                self._move(error)
                with self._connection:
                    self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise RunFileError(f"{self.path}: {reason_of(error)}") from error

    def _move(self, error: sqlite3.Error) -> None:
        """Go on in memory-backed storage with all that was committed."""
        path = memory_path(os.path.basename(self.path))
        target = connect(path)
        with contextlib.suppress(sqlite3.Error):
            self._connection.rollback()
        try:
            self._connection.backup(target)
            (level,) = self._connection.execute("PRAGMA synchronous").fetchone()
            target.execute(f"PRAGMA synchronous = {level}")
        except sqlite3.Error:
            target.close()
            raise
        self._connection.close()
        self.notices.append(
            f"{self.path}: {reason_of(error)}; the run file goes on as {path}, which does not "
            "survive a reboot"
        )
        self.path, self._connection = path, target


def no_room(path: str, error: OSError | sqlite3.Error) -> bool:
    """Whether *error*, met when *path* was to be made, is that of a full disk or a quota."""
    if isinstance(error, sqlite3.Error):
        if is_full(error):
            return True
        # SQLite tells of any file that it cannot make in the same words.
        try:
            with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))):
                return False
        except OSError as refusal:
            error = refusal
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def reason_of(error: OSError | sqlite3.Error) -> str:
    """What *error* says; SQLite has no word for a limit of this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    too_large = getattr(error, "errno", None) == errno.EFBIG
    if limit == resource.RLIM_INFINITY or not (too_large or is_full(error)):
        return str(error)
    return f"{error}; no file of this process may be larger than {limit} bytes (ulimit -f)"


def is_full(error: OSError | sqlite3.Error) -> bool:
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith(("SQLITE_FULL", "SQLITE_IOERR"))


def connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        # The rollback journal keeps everything in this one file between writes.
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        # Until the plan is whole nothing rests on it; see RunFile.make_durable.
        connection.execute("PRAGMA synchronous = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: str, fill: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A file with all that *fill* writes to it, which has its name only then.

    A run that is killed while it makes one leaves nothing that stands in the way of the next.
    """
    # No process number: in a container the next process often has the same.
    folder, name = os.path.split(os.path.abspath(path))
    handle, new = tempfile.mkstemp(".new", f"{name}.", folder)
    os.close(handle)
    try:
        with contextlib.closing(connect(new)) as connection, connection:
            fill(connection)
        _name(new, path)
    finally:
        # What a full disk took of it is no run file, and takes room.
        for left in (new, f"{new}-journal"):
            with contextlib.suppress(OSError):
                os.unlink(left)
    return connect(path)


def _name(new: str, path: str) -> None:
    """Give *new* the name *path*, never in the place of another file."""
    try:
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.replace(new, path)


def memory_path(name: str) -> str:
    try:
        return os.path.join(temporary_folder(*IN_MEMORY, None), name)
    except OSError as error:
        raise RunFileError(f"no place for the run file: {error}") from error
