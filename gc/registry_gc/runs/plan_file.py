"""A run file that is a plan as well: sealed, so that it can be carried out, or gone on with, later.

A plan is sealed before its first row is deleted. From then on its rows, what was asked for and
which links it has seen do not change any more, and a checksum (XXH3, against rot and slips of the
hand, not against an enemy) says so. What changes is how far each row has come: that is the
journal. A file without a seal is that of a run that died while it was finding out: nothing was
deleted by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
import xxhash

from registry_gc.compact.arrays import gathered
from registry_gc.policy import Policy, Release
from registry_gc.run_file import SCHEMA, RunFile
from registry_gc.runs.database import RunFileError, connect, is_full, reason_of
from registry_gc.runs.links_seen import Words
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.wording.durations import in_words

_POLICY = (
    "delete_untagged",
    "grace",
    "upload_age",
    "upload_without_start",
    "keep_empty_repositories",
    "purge_versions",
    "quarantine",
    "allow_writable",
)
"""What of a policy decides about what goes; its limits are those of whoever carries it out."""

_SEALED = ("run", "created", "listed", "cutoff", "driver", "root", "releases", "emptied", *_POLICY)
_ROWS_AT_ONCE = 10_000
_DERIVED = "phase = ? AND path IN (SELECT path FROM deletions WHERE id <= ? AND phase < ?)"


class PlanRefused(RunFileError):
    """A plan that must not be carried out; ``code`` is that of the finding."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Doubtful(NamedTuple):
    """An open row that a second look did not find again as it was.

    ``changed``: its path is there and dead, but of another size or time.
    """

    number: int
    kind: RowKind
    repository: str | None
    digest: str | None
    path: str
    changed: bool


def no_plan(path: str) -> PlanRefused:
    """The run file at *path* has no plan that could be carried out."""
    return PlanRefused(
        "plan-unusable",
        f"{path}: no plan, but the file of a dry run or of a run that ended before it had one; "
        "nothing was deleted by it. `registry-gc plan` makes a plan",
    )


def policy_facts(policy: Policy) -> dict[str, Any]:
    """What of *policy* decides about what goes, as JSON values."""
    values = msgspec.structs.asdict(policy)
    facts = {name: values[name] for name in _POLICY}
    facts["releases"] = [f"{item.repository}@{item.digest or ''}" for item in policy.releases]
    return facts


class PlanFile(RunFile):
    """A run file, and the plan that it holds once it is sealed."""

    _room: tempfile.TemporaryDirectory[str] | None = None
    """Where a plan that is only tried out has its files."""

    @classmethod
    def open(cls, path: str) -> Self:
        """The plan at *path*, to be gone on with.

        :raises PlanRefused: it is damaged, or no plan at all.
        """
        file = cls.__new__(cls)
        file.path, file.notices, file._counts = path, [], None
        if not os.path.isfile(path):
            raise PlanRefused("plan-unusable", f"{path}: there is no such file")
        try:
            file._connection = connect(path)
            try:
                file._refuse_if_no_plan()
            except BaseException:
                file._connection.close()
                raise
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise RunFileError(f"{path}: another process writes to it: {error}") from error
            raise PlanRefused(
                "plan-altered", f"{path}: damaged, or no run file: {error}"
            ) from error
        return file

    def _refuse_if_no_plan(self) -> None:
        (schema,) = self._connection.execute("PRAGMA user_version").fetchone()
        names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
        if schema != SCHEMA or not {"meta", "deletions"} <= names:
            raise PlanRefused("plan-unusable", f"{self.path}: no run file of this version")
        ((sound,),) = self._connection.execute("PRAGMA quick_check(1)").fetchall()
        if sound != "ok":
            raise PlanRefused("plan-altered", f"{self.path}: damaged: {' '.join(sound.split())}")
        self._connection.execute("PRAGMA synchronous = FULL")

    # Sealing

    def seal(self, seen: Iterable[Words]) -> None:
        """Say that the plan is whole; from now on what is written survives a loss of power.

        :param seen: the words of all links that the plan rests on, some at a time, in any order.
        """
        self._statement("CREATE TABLE links (part INTEGER PRIMARY KEY, words BLOB NOT NULL)")
        for part, words in enumerate(seen):
            values = [(part, words.tobytes())]
            self.write("INSERT INTO links VALUES (?, ?)", values, recount=False)
        ((last,),) = self.read("SELECT coalesce(max(id), 0) FROM deletions")
        self.record_meta(seal=self._checksum(self.meta(), last), sealed_rows=last)
        self.make_durable()

    def check(self, driver: str, root: str, now: float, max_age: float) -> None:
        """Look whether this plan may be carried out.

        :param driver: of the storage; *root* is what the storage calls itself.
        :param now: the storage's time, in seconds since the epoch; *max_age* in seconds.
        :raises PlanRefused: it may not.
        """
        try:
            self._check(driver, root, now, max_age)
        except PlanRefused:
            raise
        except (RunFileError, ValueError, TypeError, LookupError) as error:
            raise PlanRefused("plan-altered", f"{self.path}: damaged: {error}") from error

    def _check(self, driver: str, root: str, now: float, max_age: float) -> None:
        meta = self.meta()
        if not meta.get("planned"):
            raise no_plan(self.path)
        self._check_seal(meta)
        if (meta["driver"], meta["root"]) != (driver, root):
            raise PlanRefused(
                "plan-elsewhere",
                f"{self.path}: the plan is for {meta['driver']} {meta['root']}, and this is "
                f"{driver} {root}",
            )
        age = now - float(meta["listed"])
        if age < -_CLOCKS_DIFFER:
            raise PlanRefused(
                "plan-from-the-future",
                f"{self.path}: the plan was made {-age:.0f} s from now: a clock was set back, so "
                "that no time in it can be relied on; make another",
            )
        if age > max_age:
            raise PlanRefused(
                "plan-too-old",
                f"{self.path}: the plan is {in_words(age)} old, more than the "
                f"{in_words(max_age)} that --max-age allows; make another",
            )

    def _check_seal(self, meta: dict[str, Any]) -> None:
        last = meta.get("sealed_rows")
        altered = not isinstance(last, int) or meta.get("seal") != self._checksum(meta, last)
        if not altered:
            # Versions of what was deleted are the only rows that a sweep itself appends.
            ((strange,),) = self.read(
                f"SELECT count(*) FROM deletions WHERE id > ? AND NOT ({_DERIVED})",  # noqa: S608  # above
                (last, RowKind.VERSIONS.phase, last, RowKind.VERSIONS.phase),
            )
            altered = bool(strange)
        if altered:
            raise PlanRefused(
                "plan-altered",
                f"{self.path}: its rows or options are not those that were sealed; make another",
            )

    def _checksum(self, meta: dict[str, Any], last: int) -> str:
        checksum = xxhash.xxh3_128()
        # What is missing is not what is null: a row of them that was deleted is an alteration.
        facts = {name: meta[name] for name in _SEALED if name in meta}
        checksum.update(json.dumps(facts, sort_keys=True).encode())
        for (words,) in self.read("SELECT words FROM links ORDER BY part"):
            checksum.update(words)
        after = 0
        while rows := list(
            self.read(
                "SELECT id, phase, kind, repository, digest, path, size, modified, reason "
                "FROM deletions WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
                (after, last, _ROWS_AT_ONCE),
            )
        ):
            after = rows[-1][0]
            checksum.update(json.dumps(rows).encode())
        return checksum.hexdigest()

    # What was planned

    def policy(self, limits: Policy) -> Policy:
        """The policy that the plan was made by, with the limits of *limits*."""
        meta = self.meta()
        return Policy(
            **{name: meta[name] for name in _POLICY},
            # As policy_facts writes them: where all of a repository is released, nothing follows.
            releases=tuple(Release.parse(text.removesuffix("@")) for text in meta["releases"]),
            max_delete=limits.max_delete,
            allow_empty=limits.allow_empty,
            accept_shrink=limits.accept_shrink,
        )

    def seen(self) -> Words:
        """The words of the links that the plan has seen, sorted."""
        ((size,),) = self.read("SELECT coalesce(sum(length(words)), 0) FROM links")
        parts = self.read("SELECT words FROM links ORDER BY part")
        return gathered((np.frombuffer(words, np.uint64) for (words,) in parts), size // 8)

    def all_rows(self) -> Iterator[tuple[Any, ...]]:
        """Every row in the order of deletion: kind, repository, digest, path, size, …

        … modified, reason, state, error, finished.
        """
        yield from self.read(
            "SELECT kind, repository, digest, path, size, modified, reason, state, error, finished "
            "FROM deletions ORDER BY phase, id"
        )

    # The second look

    def try_out(self) -> None:
        """From now on, work on a copy that ends with this process: the file stays as it is.

        :raises RunFileError: there is no room for it.
        """
        try:
            self._room = tempfile.TemporaryDirectory(prefix="registry-gc-")
            # SQLite's own temporary file: it has no name, so that nothing is left of it.
            copy = connect("")
            self._connection.backup(copy)
        except (OSError, sqlite3.Error) as error:
            raise RunFileError(f"{self.path}: no room for a copy: {error}") from error
        self._connection.close()
        self._connection = copy

    def close(self) -> None:
        """Close the file, and leave nothing beside it."""
        super().close()
        if self._room is not None:
            self._room.cleanup()

    def _move(self, error: sqlite3.Error) -> None:
        """Go on elsewhere; but what is only tried is not worth a file that stays."""
        if self._room is not None:
            raise error
        super()._move(error)

    def scratch(self) -> PlanFile:
        """An empty file beside this one, for what a second look finds dead."""
        # Another process may carry the same plan out while this one tries: its file has that name.
        path = f"{self.path}.look" if self._room is None else os.path.join(self._room.name, "look")
        # Left by a run that was killed while it looked.
        with contextlib.suppress(OSError):
            os.unlink(path)
        return PlanFile.create(path)

    def index_paths(self) -> None:
        """Make paths quick to find, for :meth:`doubtful`."""
        self._statement("CREATE INDEX by_path ON deletions (path)")

    def doubtful(self, look: str) -> Iterator[list[Doubtful]]:
        """The open rows that are not, exactly as they are, rows of the file at *look*.

        Rows of old versions are left out: no listing of the registry shows those. Nothing may be
        written before the last was taken.
        """
        self._statement("ATTACH DATABASE ? AS look", look)
        try:
            kinds = {kind.phase: kind for kind in RowKind}
            after = 0
            while rows := list(self.read(_DOUBTFUL, (after, *_OPEN, _ROWS_AT_ONCE))):
                after = rows[-1][0]
                yield [
                    Doubtful(number, kinds[phase], repository, digest, path, bool(changed))
                    for number, phase, repository, digest, path, changed in rows
                ]
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("DETACH DATABASE look")

    def open_versions(self) -> dict[str, tuple[int, float | None]]:
        """The rows of old versions that are still to be done, by path.

        Of each its number, and when the youngest of them was written or deleted, in seconds since
        the epoch; None where a sweep has appended the row for what it had deleted itself.
        """
        rows = self.read(
            "SELECT path, id, CASE WHEN id <= ? THEN modified END FROM deletions "
            "WHERE phase = ? AND state IN (?, ?)",
            (
                self.meta()["sealed_rows"],
                RowKind.VERSIONS.phase,
                RowState.PLANNED,
                RowState.FAILED,
            ),
        )
        return {path: (number, youngest) for path, number, youngest in rows}

    def try_failed_again(self) -> None:
        """Make rows that failed rows that are planned."""
        self.write(
            "UPDATE deletions SET state = ?, error = NULL, finished = NULL WHERE state = ?",
            [(RowState.PLANNED, RowState.FAILED)],
        )

    def _statement(self, statement: str, *values: object) -> None:
        """Run a statement of another kind than :meth:`_write` takes, which a full disk may stop."""
        try:
            try:
                self._connection.execute(statement, values)
            except sqlite3.OperationalError as error:
                if not is_full(error):
                    raise
                self._move(error)
                self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise RunFileError(f"{self.path}: {reason_of(error)}") from error


_CLOCKS_DIFFER = 60.0
"""Seconds that a storage's clock, known by its answers to the second, may seem to go back."""

_OPEN = (RowState.PLANNED, RowState.FAILED, RowKind.VERSIONS.phase)
_DOUBTFUL = """
SELECT id, phase, repository, digest, path,
       EXISTS (SELECT 1 FROM look.deletions AS dead WHERE dead.path = row.path)
FROM main.deletions AS row
WHERE id > ? AND state IN (?, ?) AND phase <> ? AND NOT EXISTS (
    SELECT 1 FROM look.deletions AS dead
    WHERE dead.path = row.path AND dead.phase = row.phase AND dead.digest IS row.digest
      AND dead.repository IS row.repository AND dead.size = row.size
      AND dead.modified IS row.modified)
ORDER BY id LIMIT ?
"""
