"""Rows that may be very many: in memory while they are few, then in a file without a name.

What a registry links and references is several times what it stores; only what is live has a
claim on memory. A disk without room for the file is no reason to stop: its rows stay in memory.
One that does not give back what was written to it ends the run: :class:`SpoolError`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 4 << 20
"""Bytes of rows from which on a spool is a file."""
_WINDOW = 4 << 20
"""Bytes that one read of scattered rows spans at most."""


class SpoolError(Exception):
    """What was written to the temporary file cannot be read back: nothing rests on a part of it."""


class Spool:
    """An append-only array of *dtype*.

    :param limit: bytes that may stay in memory.
    """

    def __init__(self, dtype: np.dtype[Any], limit: int | None = None) -> None:
        self._dtype = dtype
        self._limit = IN_MEMORY if limit is None else limit
        self._file: int | None = None
        self._in_file = 0
        self._parts: list[NDArray[Any]] = []
        self._length = 0
        self._refused = False

    def __len__(self) -> int:
        return self._length

    def append(self, rows: NDArray[Any]) -> int:
        """Add *rows*; returns the number of the first of them."""
        first = self._length
        if len(rows):
            self._parts.append(rows)
            self._length += len(rows)
            if (self._length - self._in_file) * self._dtype.itemsize > self._limit:
                self._spill()
        return first

    def settle(self) -> None:
        """Put the end into the file too, if there is one: not much more will come for a while."""
        if self._file is not None and self._parts:
            self._spill()

    def _spill(self) -> None:
        """Write what is in memory to the file, or keep it where there is no room."""
        if self._refused:
            return
        width = self._dtype.itemsize
        done = 0
        try:
            if self._file is None:
                self._file = _nameless_file()
            for part in self._parts:
                data = memoryview(np.ascontiguousarray(part).view(np.uint8).data)
                while data:
                    written = os.pwrite(self._file, data, (self._in_file * width) + done)
                    done += written
                    data = data[written:]
        except OSError:
            self._refused = True
            return
        self._parts = []
        self._in_file = self._length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The rows from *start* up to *stop*.

        :raises SpoolError: they are in the file, and it does not give them back.
        """
        stop = min(stop, self._length)
        if start >= stop:
            return np.empty(0, self._dtype)
        memory = self._memory()
        if start >= self._in_file:
            return memory[start - self._in_file : stop - self._in_file]
        head = self._from_file(start, min(stop, self._in_file))
        if stop <= self._in_file:
            return head
        return np.concatenate([head, memory[: stop - self._in_file]])

    def _memory(self) -> NDArray[Any]:
        if len(self._parts) != 1:
            whole = np.concatenate(self._parts) if self._parts else np.empty(0, self._dtype)
            self._parts = [whole]
        return self._parts[0]

    def _from_file(self, start: int, stop: int) -> NDArray[Any]:
        found = np.empty(stop - start, self._dtype)
        self._fill(found, start)
        return found

    def _fill(self, found: NDArray[Any], start: int) -> None:
        """Read rows of the file, from *start* on, into all of *found*."""
        assert self._file is not None
        width = self._dtype.itemsize
        view = memoryview(found.view(np.uint8).data)
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._file, [view[done:]], start * width + done)
            except OSError as error:
                raise SpoolError(
                    f"a temporary file in {tempfile.gettempdir()} cannot be read back: {error}; "
                    "TMPDIR names another place for it"
                ) from error
            if not count:
                raise SpoolError(
                    f"a temporary file in {tempfile.gettempdir()} has become shorter; TMPDIR names "
                    "another place for it"
                )
            done += count

    def take(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[Any]:
        """The rows of ranges, one after the other: *counts* rows from each of *starts* on.

        Ranges that follow one another closely are read at once, those that touch without a copy.

        :raises SpoolError: see :meth:`read`.
        """
        filled = np.flatnonzero(counts)
        if len(filled) < len(counts):
            starts, counts = starts[filled], counts[filled]
        if len(starts) > 1 and (starts[1:] < starts[:-1]).any():
            return self._scattered(starts, counts)
        found = np.empty(int(counts.sum()), self._dtype)
        stops = starts + counts
        gaps = starts[1:] != stops[:-1]
        ends = np.cumsum(counts)
        window = max(1, _WINDOW // self._dtype.itemsize)
        at = done = 0
        while at < len(starts):
            first = int(starts[at])
            last = int(np.searchsorted(starts, first + window))
            stop, end = int(stops[at:last].max()), int(ends[last - 1])
            if not gaps[at : last - 1].any():
                self._read_into(found[done:end], first)
            else:
                rows = _rows(starts[at:last] - first, counts[at:last])
                found[done:end] = self.read(first, stop)[rows]
            at, done = last, end
        return found

    def _scattered(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[Any]:
        """As :meth:`take`, for ranges in any order."""
        order = np.argsort(starts, kind="stable")
        found = self.take(starts[order], counts[order])
        places = np.empty(len(order), np.int64)
        places[order] = np.cumsum(counts[order]) - counts[order]
        again: NDArray[Any] = found[_rows(places, counts)]
        return again

    def _read_into(self, found: NDArray[Any], start: int) -> None:
        """Read rows from *start* on into all of *found*."""
        in_file = max(0, min(len(found), self._in_file - start))
        if in_file:
            self._fill(found[:in_file], start)
        if in_file < len(found):
            first = start + in_file - self._in_file
            found[in_file:] = self._memory()[first : first + len(found) - in_file]

    def close(self) -> None:
        """Let go of memory and file."""
        self._parts = []
        self._length = self._in_file = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        # Its only room is the file; who forgets to close it must not fill the disk.
        with contextlib.suppress(Exception):
            self.close()


def _rows(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the rows of ranges, one after the other."""
    rows = np.arange(int(counts.sum()), dtype=np.int64)
    rows += np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return rows


def _nameless_file() -> int:
    handle, path = tempfile.mkstemp(prefix="registry-gc-")
    with contextlib.suppress(OSError):  # who clears temporary folders may have been quicker
        os.unlink(path)
    return handle
