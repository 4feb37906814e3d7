"""The servers that tests start: on ports that nobody else takes, and again where one fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers.process import STARTS, answers, first_that_starts, free_port, running
from servers.service import Service

LISTENS = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()
"""


def test_a_free_port_is_none_that_the_kernel_hands_out() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40
    assert first < 24_000 or max(ports) < first
    assert not any(map(answers, ports))


@pytest.mark.parametrize("fails", [0, STARTS - 1, STARTS])
def test_a_server_that_ends_at_its_start_is_started_again(tmp_path: Path, fails: int) -> None:
    folders: list[str] = []

    @contextmanager
    def start(folder: Path) -> Iterator[int]:
        folders.append(folder.name)
        port = free_port()
        ends = len(folders) <= fails
        code = "import sys; sys.exit('no room')" if ends else LISTENS
        with running([sys.executable, "-c", code, str(port)], [port], folder=folder):
            yield port

    if fails < STARTS:
        with first_that_starts(start, tmp_path):
            pass
    else:
        with pytest.raises(RuntimeError, match="no room"), first_that_starts(start, tmp_path):
            pass
    assert folders == [f"start-{number}" for number in range(1, min(fails + 1, STARTS) + 1)]


def test_a_registry_is_started_when_its_port_is_free_at_last(tmp_path: Path) -> None:
    with Service(tmp_path).over() as service:
        port, log = service.registry.port, tmp_path / "log"
        with socket.create_server(("127.0.0.1", port)):
            process = subprocess.Popen([service.path("start")], stdout=subprocess.DEVNULL)
            while not (log.exists() and b"address already in use" in log.read_bytes()):
                assert process.poll() is None
                time.sleep(0.01)
        assert process.wait() == 0
        assert service.up


def test_a_registry_that_cannot_start_is_told(tmp_path: Path) -> None:
    with Service(tmp_path).over() as service:
        service.registry.config.write_text("version: 0.1\nstorage: {}\n")
        done = subprocess.run([service.path("start")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "configuration error" in done.stderr
