"""Real Redis servers: Debian's redis-server, alone, behind a Sentinel, or as a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from redis import Redis

from servers.process import START_SECONDS, free_port, running
from servers.tls import Tls

POLL_SECONDS = 0.05


class RedisServer:
    """A Redis on a free port of loopback; what it holds is gone when it ends.

    *options* are those of its command line, such as ``--requirepass x``.
    """

    def __init__(self, folder: Path, *options: str, tls: Tls | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.tls = tls
        self._options = options
        self._password: str | None = None
        if "--requirepass" in options:
            self._password = options[options.index("--requirepass") + 1]
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[RedisServer]:
        """Serve until the block ends."""
        port = ["--port", str(self.port)]
        if self.tls is not None:
            port = ["--port", "0", "--tls-port", str(self.port)]
            port += ["--tls-cert-file", str(self.tls.server), "--tls-key-file"]
            port += [str(self.tls.server), "--tls-ca-cert-file", str(self.tls.authority)]
        command = [_program(), *port, "--bind", "127.0.0.1", "--save", "", *self._options]
        with running(command, [self.port], folder=self.folder):
            yield self

    def client(self) -> Any:
        """A client that needs to be closed; use it in a ``with``."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            password=self._password,
            decode_responses=True,
            ssl=self.tls is not None,
            ssl_ca_certs=str(self.tls.authority) if self.tls else None,
            ssl_certfile=str(self.tls.server) if self.tls else None,
            ssl_keyfile=str(self.tls.server) if self.tls else None,
        )

    def names(self) -> set[str]:
        """The names of all keys."""
        with self.client() as client:
            return set(client.keys())

    def members(self, key: str) -> set[str]:
        """The members of a set."""
        with self.client() as client:
            return set(client.smembers(key))

    def remember(
        self, repository: str, digest: str, stored: str | None = None, db: int = 0
    ) -> None:
        """Write what a registry does when it has looked up *digest*, stored under another name."""
        with self.client() as client:
            client.select(db)
            for name in {digest, stored or digest}:
                values = {"digest": stored or digest, "size": 7, "mediatype": "x"}
                client.hset(f"blobs::{name}", mapping=values)
                client.sadd(f"repository::{repository}::blobs", name)
                client.hset(f"repository::{repository}::blobs::{name}", "mediatype", "x")

    def send(self, *command: str) -> Any:
        """Send one command."""
        with self.client() as client:
            return client.execute_command(*command)


@contextmanager
def cluster(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A cluster of one node that has all slots."""
    # Where its nodes talk to each other; by itself it takes one that may be in use.
    bus = ["--cluster-port", str(free_port())]
    server = RedisServer(folder, "--cluster-enabled", "yes", *bus, *options)
    with server.running():
        server.send("CLUSTER", "ADDSLOTS", *map(str, range(16384)))
        _wait(lambda: "cluster_state:ok" in str(server.send("CLUSTER", "INFO")))
        yield server


@contextmanager
def sentinel(folder: Path, master: RedisServer, name: str, *lines: str) -> Iterator[str]:
    """A Sentinel that watches *master*, a running one, as *name*; yields its address."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "sentinel.conf"
    config.write_text(
        "\n".join(
            [
                f"port {port}",
                "bind 127.0.0.1",
                f"sentinel monitor {name} 127.0.0.1 {master.port} 1",
                *lines,
                "",
            ]
        )
    )
    with running([_program(), str(config), "--sentinel"], [port], folder=folder):
        yield f"127.0.0.1:{port}"


def _program() -> str:
    found = shutil.which("redis-server")
    assert found, "redis-server is not installed; `make test` installs it"
    return found


def _wait(ready: Any, pause: float = POLL_SECONDS) -> None:
    for _ in range(int(START_SECONDS / pause)):
        if ready():
            return
        Event().wait(pause)
    raise AssertionError("Redis does not get ready")


def entries(redis: RedisServer, digests: Sequence[str]) -> set[str]:
    """The keys and members of sets that name one of *digests*."""
    found = set()
    for key in redis.names():
        found |= {key for digest in digests if digest in key}
        if key.endswith("::blobs"):
            found |= {f"{key} {digest}" for digest in redis.members(key) & set(digests)}
    return found
