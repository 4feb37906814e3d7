"""Files for others to read: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile

_MOST_OF_A_NAME = 64


def replace_file(path: str, data: bytes, mode: int) -> None:
    """Put *data* at *path* at one blow; a symlink stays one.

    :param mode: who may read it: a temporary file is for its owner alone.
    :raises OSError: it cannot be written; a file that was at *path* is there still.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    # Hidden and without its ending until it is whole: whatever is called *.prom is read.
    prefix = f".{name[:_MOST_OF_A_NAME]}."
    handle, temporary = tempfile.mkstemp(prefix=prefix, dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(handle, mode)
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
