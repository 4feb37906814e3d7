"""Where the run files lie of which some entries may still be in the registry's Redis.

Those in the state directory are found there. One that lies elsewhere (``--run-file``, a plan that
is carried out, a full disk) is named by a note in the state directory, from before its first
delete until all of its entries are gone. Where no note can be written there, it is in a temporary
folder, as the state directory itself is where that cannot be written: all of those are looked at.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import xxhash

from registry_gc.blob_cache.same_storage import same_storage
from registry_gc.runs.database import RunFileError
from registry_gc.runs.state_dir import (
    IN_MEMORY,
    fallback_folders,
    replace_json,
    run_files,
    temporary_folder,
)

_FOLDER = "unforgotten"


class _Note(NamedTuple):
    """Names a run file, and the storage that it is about."""

    run_file: str
    driver: str
    root: str


class Journals:
    """The run files of earlier runs, and of this one.

    :param begun: told of this run's file before anything is deleted, whatever note there is.
    :param also: further run files.
    """

    def __init__(
        self,
        state_dir: str,
        begun: Callable[[str], None] | None = None,
        also: tuple[str, ...] = (),
    ) -> None:
        self._state_dir = state_dir
        self._told = begun
        self._also = also

    def paths(self, driver: str, root: str) -> list[str]:
        """The run files that there are, of that storage or of any, the oldest of a folder first."""
        found = [path for folder in self._folders() for path in run_files(folder)]
        for path, note in self._notes():
            if note is None:
                # Who reads it as a run file says that it is none.
                found.append(path)
            elif same_storage((note.driver, note.root), (driver, root)):
                found.append(note.run_file)
        return list(dict.fromkeys([*found, *self._also]))

    def begun(self, path: str, driver: str, root: str) -> None:
        """Have a later run find the run file at *path*; on disk when this returns.

        :raises RunFileError: no note can be written anywhere.
        """
        path = os.path.abspath(path)
        if path not in run_files(self._state_dir):
            self._write(_Note(path, driver, root))
        if self._told is not None:
            self._told(path)

    def done(self, path: str) -> None:
        """No entry of the run file at *path* is left. A note that stays is looked at again."""
        path = os.path.abspath(path)
        for name, note in self._notes():
            if note is not None and note.run_file == path:
                with contextlib.suppress(OSError):
                    os.unlink(name)

    def notes_of(self, path: str) -> list[str]:
        """The notes that name the run file at *path*."""
        return [name for name, note in self._notes() if note is not None and note.run_file == path]

    def _folders(self) -> list[str]:
        return list(dict.fromkeys([self._state_dir, *fallback_folders()]))

    def _notes(self) -> Iterator[tuple[str, _Note | None]]:
        """Each note's own path, and what it says; None where that cannot be read."""
        for folder in self._folders():
            for path in sorted(glob.glob(os.path.join(glob.escape(folder), _FOLDER, "*.json"))):
                yield path, _read(path)

    def _write(self, note: _Note) -> None:
        try:
            _write(os.path.join(self._state_dir, _FOLDER), note)
        except OSError as error:
            try:
                _write(os.path.join(temporary_folder(*IN_MEMORY, None), _FOLDER), note)
            except OSError:
                raise RunFileError(
                    f"{self._state_dir}: no note about {note.run_file} can be written, so that no"
                    f" later run would remove from Redis what this one had left: {error}"
                ) from error


def _read(path: str) -> _Note | None:
    try:
        with open(path, "rb") as file:
            return _Note(**json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: str, note: _Note) -> None:
    name = xxhash.xxh3_64_hexdigest(os.fsencode(note.run_file))
    replace_json(os.path.join(folder, f"{name}.json"), note._asdict())
