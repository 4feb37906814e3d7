"""Azurite, Microsoft's emulator of Blob Storage, from npm.

``make test`` installs it into the virtual environment: ``npm install --prefix <venv>/azurite``.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry_drivers.azure import AzureStorage, open_azure
from servers.process import free_port, running

# The account that every Azurite has; its key is in Microsoft's documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_numbers = itertools.count(1)


@dataclass(frozen=True)
class AzureServer:
    """A blob service on loopback."""

    port: int

    @property
    def url(self) -> str:
        """The account's blob service."""
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def container(self) -> str:
        """A new, empty container."""
        name = f"container-{next(_numbers)}"
        storage = open_azure(self.parameters(name))
        storage._request("PUT", query={"restype": "container"}, body=b"")
        storage.close()
        return name

    def parameters(self, container: str, **others: Any) -> dict[str, Any]:
        """What a registry's config says about *container*."""
        return {
            "accountname": ACCOUNT,
            "accountkey": KEY,
            "serviceurl": self.url,
            "container": container,
            **others,
        }

    def open(self, **others: Any) -> AzureStorage:
        """A storage in a container of its own."""
        return open_azure(self.parameters(self.container(), **others))


@contextmanager
def azurite(folder: Path) -> Iterator[AzureServer]:
    """A server that keeps everything in memory; *folder* holds its log."""
    place = Path(sys.prefix, "azurite", "node_modules", ".bin", "azurite-blob")
    program = str(place) if place.exists() else shutil.which("azurite-blob")
    if program is None:
        raise RuntimeError(f"there is no {place}: `make test` installs it")
    port = free_port()
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    command += ["--inMemoryPersistence", "--silent", "--disableTelemetry"]
    with running(command, [port], folder=folder):
        yield AzureServer(port)
