"""Servers that tests start on loopback, on a free port, and end by their process id."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 60.0
POLL_SECONDS = 0.05


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
) -> Iterator[None]:
    """A process that listens on *ports*; its output is in ``<folder>/log``.

    :param patience: seconds that it has to end by itself.
    :raises RuntimeError: it ended, or does not listen in time.
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
                if all(map(answers, ports)):
                    break
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"{command[0]} ended: {log.read_text(errors='replace')}")
            else:
                raise RuntimeError(f"{command[0]} does not listen: {log.read_text()}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
