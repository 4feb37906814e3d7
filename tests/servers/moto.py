"""moto's S3 server: versions, object lock, policies."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from servers.process import free_port, running

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
REGION = "us-east-1"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """An S3 server on loopback."""

    port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> S3Client:
        """The official client, for what tests do beside the driver."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def bucket(self, **options: Any) -> str:
        """A new, empty bucket."""
        name = f"bucket-{next(_numbers)}"
        self.client.create_bucket(Bucket=name, **options)
        return name

    def parameters(self, bucket: str, **others: Any) -> dict[str, Any]:
        """What a registry's config says about *bucket*."""
        return {
            "accesskey": self.access_key,
            "secretkey": self.secret_key,
            "region": REGION,
            "regionendpoint": self.url,
            "bucket": bucket,
            **others,
        }


# It looks at a condition, and then writes. A store does both at once, and so does this one when no
# other thread's turn comes in between: at a read or a write of a socket, and never for the time.
_SERVE = "import sys; sys.setswitchinterval(3600); from moto.server import main; main()"


@contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """A server that keeps everything in memory; *folder* holds its log."""
    port = free_port()
    command = [sys.executable, "-c", _SERVE, "-H", "127.0.0.1", "-p", str(port)]
    with running(command, [port], folder=folder):
        server = S3Server(port)
        with closing(server.client):
            yield server
