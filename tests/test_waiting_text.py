"""Text that waits in memory, then in a file."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.compact.waiting_text import WaitingText

PLAIN = tempfile.TemporaryFile
SURROGATES = st.text(st.characters(), max_size=40)


@given(texts=st.lists(SURROGATES), limit=st.sampled_from([0, 1, 20, 1 << 20]))
def test_all_that_was_added_comes_back_in_order(texts: list[str], limit: int) -> None:
    waiting = WaitingText(limit)
    for text in texts:
        waiting.add(text)
    assert "".join(waiting.take()) == "".join(texts)


class Full:
    """A file on a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self._file = PLAIN(buffering=0)
        self._room = room

    def write(self, data: memoryview) -> int:
        left = self._room - self._file.tell()
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[:left])

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._file.close()


def test_a_full_disk_loses_what_it_has_no_room_for_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering, dir: Full(5))
    waiting = WaitingText(1)
    waiting.add("one ")
    with pytest.raises(OSError, match="No space"):
        waiting.add("two ")
    waiting.keep_rest()
    waiting.add("end")
    assert "".join(waiting.take()) == "one end"


def test_what_one_disk_has_no_room_for_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = {None: 5, "next": 0, "last": 9}

    def make(buffering: int, dir: str | None) -> Full:
        if dir == "next":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return Full(rooms[dir])

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    waiting = WaitingText(1, [*rooms])
    for text in ("one ", "two ", "four "):
        waiting.add(text)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            waiting.add("five ")
    assert "".join(waiting.take()) == "one two four "
