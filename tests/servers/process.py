"""Servers that tests start on loopback, on a free port, and end by their process id."""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

START_SECONDS = 60.0
POLL_SECONDS = 0.05
STARTS = 3
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 12_000
# hypothesis seeds the common one, and two processes of tests would ask for the same ports.
_RANDOM = random.SystemRandom()
_Server = TypeVar("_Server")


def free_port() -> int:
    """A port of loopback that nobody listens on now.

    None of those that the kernel hands out by itself, or that other tests ask for here, in the
    seconds that a server needs to start.
    """
    first = int(_RANGE.read_text().split()[0])
    # pytest-xdist tells each of its processes which it is.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (first - _LOWEST) // workers
    lowest = _LOWEST + worker * share
    while True:
        port = _RANDOM.randrange(lowest, lowest + share) if first > 2 * _LOWEST else 0
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens on *port*."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def running(
    command: Sequence[str],
    ports: Sequence[int],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    patience: float = 10.0,
    ready: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """A process that listens on *ports*; its output is in ``<folder>/log``.

    :param patience: seconds that it has to end by itself.
    :param ready: whether it does what it is there for, asked once it listens.
    :raises RuntimeError: it ended, or does not listen, or is not *ready*, in time.
    """
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        try:
            for _ in range(int(START_SECONDS / POLL_SECONDS)):
                # A port may answer though it is not this process that has it.
                if all(map(answers, ports)) and ready() and process.poll() is None:
                    break
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"{command[0]} ended: {log.read_text(errors='replace')}")
            else:
                raise RuntimeError(f"{command[0]} is not ready: {log.read_text()}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def first_that_starts(
    start: Callable[[Path], AbstractContextManager[_Server]], folder: Path
) -> Iterator[_Server]:
    """A server of others' that may fail to start, each time in a new folder below *folder*.

    :raises RuntimeError: it has failed :data:`STARTS` times.
    """
    with ExitStack() as stack:
        for number in range(1, STARTS + 1):
            place = folder / f"start-{number}"
            place.mkdir()
            try:
                server = stack.enter_context(start(place))
            except RuntimeError:
                if number == STARTS:
                    raise
            else:
                break
        yield server
