"""Text that has to wait: in memory while it is little, then in files without a name.

Where a disk is full, the next of some folders takes what comes after that.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

BYTES_IN_MEMORY = 4 << 20
"""From more on it is a file."""
_PIECE = 1 << 18


class WaitingText:
    """Takes text, and gives it back once, from the beginning."""

    def __init__(
        self, limit: int = BYTES_IN_MEMORY, folders: Sequence[str | None] = (None,)
    ) -> None:
        """*folders* of the files, one after the other; None is the system's own choice."""
        self._limit = limit
        self._memory: list[bytes] = []
        self._size = 0
        self._files: list[BinaryIO] = []
        self._folders = list(folders)

    def keep_rest(self) -> None:
        """What is still to come is little, and no full disk loses it."""
        self._limit = sys.maxsize

    def add(self, text: str) -> None:
        """Add *text*, whole or, on an error, not at all.

        :raises OSError: there is no room for it.
        """
        data = text.encode("utf-8", "surrogatepass")
        self._memory.append(data)
        self._size += len(data)
        if self._size <= self._limit:
            return
        try:
            self._spill()
        except OSError:
            # What came before stays; this and what is still to come would grow without an end.
            self._size -= len(self._memory.pop())
            raise

    def _spill(self) -> None:
        refusal = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            if self._files:
                self._append(self._files[-1])
                return
        except OSError as error:
            refusal = error
        while self._folders:
            folder = self._folders.pop(0)
            try:
                file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # take() does
                self._files.append(file)
                self._append(file)
                return
            except OSError as error:
                refusal = error
        raise refusal

    def _append(self, file: BinaryIO) -> None:
        """Write what is in memory, whole or, on an error, not at all."""
        end = file.seek(0, os.SEEK_END)
        try:
            for data in self._memory:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise
        self._memory, self._size = [], 0

    def take(self) -> Iterator[str]:
        """All of it, in pieces.

        :raises OSError: the file does not give it back.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        for file in self._files:
            with file:
                file.seek(0)
                while piece := file.read(_PIECE):
                    yield decoder.decode(piece)
        for data in self._memory:
            yield decoder.decode(data)
        self._memory = []
