"""Where audit lines go: a file that is only ever appended to, or syslog."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import SysLogHandler
from typing import Any, Protocol

_SYSLOG = "syslog"
_PORT = 514
_SECONDS = 10.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(OSError):
    """The disk is full; there may be room later."""


class Sink(Protocol):
    """Takes lines, all of them or, on an error, none."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Append *lines*, each with its newline; durable when this returns, where it can be.

        Without any, find out whether lines could be written.

        :raises NoRoom: the disk is full.
        :raises OSError: any other reason why they are not there.
        """

    def close(self) -> None:
        """Let go of it."""


def sink_of(target: str) -> Sink:
    """What ``--audit-log`` names: a path, or ``syslog`` with where it is and which facility.

    :raises ValueError: it names no place.
    """
    kind, _, where = target.partition(":")
    if kind != _SYSLOG:
        return FileSink(target)
    if where in SysLogHandler.facility_names:
        return SyslogSink("/dev/log", SysLogHandler.facility_names[where])
    if not where or where.startswith("/"):
        return SyslogSink(where or "/dev/log")
    stream = where.startswith("tcp:")
    host, _, port = where.removeprefix("tcp:").removeprefix("udp:").rpartition(":")
    if not host:
        host, port = port, str(_PORT)
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{target!r}: {port!r} is no port")
    return SyslogSink((host.strip("[]"), int(port)), stream=stream)


class FileSink:
    """A file, opened for appending alone; other runs may write to it too."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = -1
        self._regular = True

    def write(self, lines: Sequence[bytes]) -> None:
        """Append *lines* in one piece."""
        try:
            if self._is_removed():
                self.close()
            if self._handle < 0:
                self._open()
            if lines:
                with self._alone():
                    self._append(b"".join(lines))
        except OSError as error:
            kind = NoRoom if error.errno in _NO_ROOM else OSError
            raise kind(error.errno, error.strerror, self._path) from error

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _is_removed(self) -> bool:
        """Whether the file has no name any more: whatever is written there is gone at the end.

        One that was moved has one, and gets what is still to come.
        """
        return self._handle >= 0 and self._regular and not os.fstat(self._handle).st_nlink

    def _open(self) -> None:
        # A pipe that nobody reads must not make the run wait: it is refused.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(self._path, flags, 0o640)
        self._regular = stat.S_ISREG(os.fstat(handle).st_mode)
        if self._regular:
            os.set_blocking(handle, True)
        self._handle = handle

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs from writing into the middle of what is written here."""
        if not self._regular:
            yield
            return
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._handle).st_size
        # What a run that was killed, or a full disk, has cut short stays a line of its own.
        left = memoryview(data if self._ends_a_line(size) else b"\n" + data)
        try:
            while left:
                left = left[self._taken(left) :]
            if self._regular:
                os.fsync(self._handle)
        except OSError:
            # The lines are written again, so none may be there half. Where the file takes
            # nothing but appending (`chattr +a`), the newline above keeps the damage to one line.
            if self._regular:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, size)
            raise

    def _taken(self, data: memoryview) -> int:
        """How much is written of *data*; a pipe that nobody reads on is not waited for for ever."""
        poll = select.poll()
        poll.register(self._handle, select.POLLOUT)
        try:
            return os.write(self._handle, data)
        except BlockingIOError:
            if not poll.poll(_SECONDS * 1000):
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads it") from None
            return 0

    def _ends_a_line(self, size: int) -> bool:
        if not self._regular or not size:
            return True
        try:
            with open(self._path, "rb") as file:
                same = os.path.samestat(os.fstat(file.fileno()), os.fstat(self._handle))
                file.seek(size - 1)
                # What was rotated away meanwhile is not worth another look.
                return not same or file.read(1) == b"\n"
        except OSError:
            return True


class SyslogSink:
    """A syslog daemon: a socket on this machine, or one elsewhere by UDP or TCP."""

    def __init__(
        self,
        address: str | tuple[str, int],
        facility: int = SysLogHandler.LOG_AUTHPRIV,
        *,
        stream: bool = False,
    ) -> None:
        self._address = address
        self._stream = stream
        self._begin = b"<%d>registry-gc: " % (facility << 3 | SysLogHandler.LOG_INFO)
        self._socket: socket.socket | None = None

    def write(self, lines: Sequence[bytes]) -> None:
        """Send *lines*, each as a message."""
        try:
            try:
                self._send(lines)
            except OSError:
                # A daemon that was restarted since has another socket; a second fault is one.
                self.close()
                self._send(lines)
        except OSError as error:
            self.close()
            raise OSError(error.errno, f"{error.strerror or error}: {self._where()}") from error

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _where(self) -> str:
        if isinstance(self._address, str):
            return self._address
        return f"{self._address[0]}:{self._address[1]}"

    def _send(self, lines: Sequence[bytes]) -> None:
        if self._is_closed():
            self.close()
        self._socket = self._socket or self._connected()
        for line in lines:
            # A stream has no messages: the newline ends one (RFC 6587, 3.4.2).
            self._socket.sendall(self._begin + (line if self._stream else line.rstrip(b"\n")))

    def _is_closed(self) -> bool:
        """Whether the daemon has closed a stream; the first message sent there is lost silently."""
        if self._socket is None or not self._stream:
            return False
        # With a timeout of its own the socket waits, whatever the flags say.
        self._socket.settimeout(0.0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._socket.settimeout(_SECONDS)

    def _connected(self) -> socket.socket:
        if isinstance(self._address, str):
            return self._local(self._address)
        if self._stream:
            return socket.create_connection(self._address, _SECONDS)
        family, kind, protocol, _, address = socket.getaddrinfo(
            *self._address, type=socket.SOCK_DGRAM
        )[0]
        return _connect(socket.socket(family, kind, protocol), address)

    def _local(self, path: str) -> socket.socket:
        try:
            found = _connect(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), path)
            self._stream = False
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
            found = _connect(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
            self._stream = True
        return found


def _connect(found: socket.socket, address: str | tuple[Any, ...]) -> socket.socket:
    try:
        found.settimeout(_SECONDS)
        found.connect(address)
    except OSError:
        found.close()
        raise
    return found
