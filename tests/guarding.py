"""A guard to ask, servers that answer it, and what it says in short."""

from __future__ import annotations

import datetime
import ipaddress
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from real import RealRegistry
from registry_drivers.factory import StorageSpec
from registry_drivers.memory import MemoryStorage
from registry_gc.config import Config, HttpConfig, load_config
from registry_gc.guard import Guard, GuardOptions, Verdict
from servers.process import free_port

READ_ONLY = (200, [("Allow", "GET, HEAD")])
WRITABLE = (200, [("Allow", "DELETE, GET, HEAD, PATCH, POST, PUT")])
PROBE = "/v2/registry-gc/probe/blobs/uploads/"


@dataclass(frozen=True)
class Seen:
    """One request that a server got."""

    method: str
    path: str
    host: str
    authorization: str


Reply = tuple[int, list[tuple[str, str]]] | tuple[int, list[tuple[str, str]], bytes]
Script = Callable[[Seen], Reply]


@dataclass
class Server:
    """A server on a free port of 127.0.0.1."""

    port: int
    seen: list[Seen] = field(default_factory=list)

    @property
    def addr(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.addr}"


def handler(script: Script, seen: list[Seen]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            request = Seen(
                self.command,
                self.path,
                self.headers.get("Host", ""),
                self.headers.get("Authorization", ""),
            )
            seen.append(request)
            reply = script(request)
            body = reply[2] if len(reply) == 3 else b""
            self.send_response(reply[0])
            for name, value in reply[1]:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_OPTIONS = do_GET = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def address_string(self) -> str:
            return "test"

    return Handler


@contextmanager
def serving(script: Script | Reply, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Answer every request as *script* says, until the block ends."""
    answer: Script = script if callable(script) else lambda _: script
    seen: list[Seen] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(answer, seen))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Server(server.server_address[1], seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def config(addr: str = "", *, readonly: bool = True, **http: Any) -> Config:
    return Config(
        path="config.yml",
        storage=StorageSpec("inmemory", {}),
        readonly=readonly,
        http=HttpConfig(addr=addr, **http),
    )


def check(
    config: Config,
    *,
    storage: MemoryStorage | None = None,
    urls: tuple[str, ...] = (),
    stopped: bool = False,
    assume: bool = False,
    auth: Path | None = None,
    timeout: float = 5.0,
) -> Verdict:
    options = GuardOptions(
        registry_urls=urls,
        registry_stopped=stopped,
        assume_readonly=assume,
        auth_file=str(auth) if auth else None,
        timeout=timeout,
    )
    return Guard(config, storage or MemoryStorage(), options).check()


def codes(verdict: Verdict) -> list[str]:
    for finding in verdict.findings:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", finding.code)
        assert finding.message
        assert "\n" not in finding.message
    return [finding.code for finding in verdict.findings]


def closed() -> str:
    """An address that refuses connections."""
    return f"127.0.0.1:{free_port()}"


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for the name ``registry.test`` and, where asked, 127.0.0.1."""

    file: Path
    context: ssl.SSLContext


def certificate(folder: Path, *, loopback: bool, days: int = 1) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry.test")])
    names: list[x509.GeneralName] = [x509.DNSName("registry.test")]
    if loopback:
        names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "registry.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + built.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return Certificate(file, context)


def verdict_of(registry: RealRegistry, **options: Any) -> Verdict:
    made = load_config(str(registry.config), {})
    return check(made, **options)


@contextmanager
def started(registry: RealRegistry) -> Iterator[None]:
    """Serve with a config that :class:`RealRegistry` itself could not ask."""
    process = subprocess.Popen(
        ["docker-registry", "serve", str(registry.config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        assert any("listening on" in line for line in process.stderr)
        yield
    finally:
        process.terminate()
        process.communicate()


def raw(answer: bytes | None, ended: threading.Event) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if answer is None:
                    ended.wait()
                else:
                    connection.recv(4096)
                    connection.sendall(answer)

    return serve


@contextmanager
def speaking(answer: bytes | None) -> Iterator[str]:
    """Answer with raw bytes; None never answers."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=raw(answer, ended), args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


class Dripping:
    """Answers its first client *head*, and then a bit at a time until nobody listens."""

    pieces = 3000

    def __init__(self, head: bytes) -> None:
        self.sent = 0
        self._head = head

    def _drip(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(self._head)
            while self.sent < self.pieces:
                connection.sendall(b" ")
                self.sent += 1
                time.sleep(0.01)
            connection.sendall(b"\r\n\r\n")

    @contextmanager
    def running(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._drip, args=(listener,))
            thread.start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            thread.join()
