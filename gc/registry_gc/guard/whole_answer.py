"""Reads an HTTP answer whole, in time, or not at all.

Python's ``http.client`` takes the end of a connection for the end of the headers: of an answer that
is cut inside of ``Allow: GET, HEAD, POST`` is left what a registry in read-only mode says.
Imported only where somebody answers: ``http.client`` takes as long to import as a small registry
to collect.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Lines(io.BufferedReader):
    """Lines that have an end."""

    def readline(self, size: int | None = -1, /) -> bytes:
        """The next line, empty where nothing of it came.

        :raises ConnectionError: it was cut.
        """
        line = super().readline(size)
        if line and not line.endswith(b"\n") and len(line) != size:
            raise ConnectionResetError("cut")
        self.last = line
        return line


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self._lines = _Lines(self.fp.detach())
        self.fp = self._lines

    def begin(self) -> None:
        """Read status and headers.

        :raises ConnectionError: the headers have no end.
        """
        super().begin()
        if self._lines.last not in (b"\r\n", b"\n"):
            raise ConnectionResetError("cut")


def connection(connected: socket.socket, timeout: float) -> http.client.HTTPConnection:
    """HTTP over *connected*, which belongs to the caller."""
    made = http.client.HTTPConnection("registry", timeout=timeout)
    made.response_class = _Response
    made.sock = connected
    return made


@contextmanager
def cut_after(connected: socket.socket, seconds: float) -> Iterator[None]:
    """Whoever has not answered in so many seconds is heard no more, however often it says a bit.

    :raises TimeoutError: so it was.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            # Not by ssl's own method, which would have the rest read without TLS.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if late.is_set():
            raise TimeoutError from error
        raise
    else:
        # To who reads a body, it has come to its end.
        if late.is_set():
            raise TimeoutError
    finally:
        timer.cancel()
