"""A proxy on loopback that counts requests and goes wrong where it is told to.

It shows what servers for tests cannot be made to do: throttle, break connections, lose answers,
hold objects.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked; ``path`` with its query, names of headers in lower case."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Instead of the server's answer. The server never sees the request.

    ``chunked``: it does not say beforehand how long it is.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False


class Broken:
    """The connection is closed before the server sees the request."""


class Lost:
    """The server does what it was asked, and its answer gets lost."""


class Cut:
    """Half of the server's answer arrives, then the connection is closed."""


class Shortened:
    """Half of the server's answer arrives, and claims to be all."""


Fault = Answer | Broken | Lost | Cut | Shortened
Rule = Callable[[Request], Fault | None]


class FaultProxy:
    """What goes through, and what is to happen to it.

    :ivar requests: what came, in the order in which it came.
    :ivar rule: called with each request; what it returns happens, None is as it should be.
    :ivar rewrite: makes of each body that the server answers what the client is told.
    """

    def __init__(self, target: str, *, own_host: bool = False) -> None:
        place = urlsplit(target)
        self.own_host = own_host
        self.host, self.port = place.hostname or "", place.port or 80
        self.requests: list[Request] = []
        self.rule: Rule = lambda _: None
        self.rewrite: Callable[[bytes], bytes] = lambda body: body
        self.address = ("", 0)
        self.scheme = "http"

    @property
    def url(self) -> str:
        """Where clients are to ask."""
        return f"{self.scheme}://127.0.0.1:{self.address[1]}"

    def fail(self, *faults: Fault, where: Callable[[Request], bool] = lambda _: True) -> None:
        """Let the next requests *where* it says so meet *faults*, one after the other."""
        waiting = list(faults)

        def rule(request: Request) -> Fault | None:
            return waiting.pop(0) if waiting and where(request) else None

        self.rule = rule

    def always(self, fault: Fault) -> None:
        """Let all requests meet *fault*."""
        self.rule = lambda _: fault

    def reset(self) -> None:
        """No faults, nothing counted."""
        self.rule = lambda _: None
        self.requests.clear()


@contextmanager
def stub(rule: Rule, context: ssl.SSLContext | None = None) -> Iterator[FaultProxy]:
    """A server of which *rule* gives all answers, such as one for tokens."""
    with fault_proxy("http://127.0.0.1:9", context) as server:
        server.rule = rule
        yield server


@contextmanager
def fault_proxy(
    target: str, context: ssl.SSLContext | None = None, *, own_host: bool = False
) -> Iterator[FaultProxy]:
    """A proxy in front of *target*; speaks TLS with *context*.

    The server is told the host that the client meant, which may be part of a signature; with
    *own_host* its own.
    """
    proxy = FaultProxy(target, own_host=own_host)

    class Handler(_Handler):
        faults = proxy

    server = _Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        proxy.scheme = "https"
    proxy.address = ("127.0.0.1", server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not trust us, is no error of the proxy."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultProxy

    def _serve(self) -> None:
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, body, headers)
        self.faults.requests.append(request)
        fault = self.faults.rule(request)
        if isinstance(fault, Broken):
            self._break()
        elif isinstance(fault, Answer):
            if fault.chunked:
                self._answer_in_chunks(fault)
            else:
                self._answer(fault.status, fault.headers, fault.body)
        else:
            self._forward(body, fault)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("content-length", "0")))

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        server = http.client.HTTPConnection(self.faults.host, self.faults.port, timeout=60)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() == "host" and self.faults.own_host:
                    value = f"{self.faults.host}:{self.faults.port}"
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    server.putheader(name, value)
            server.endheaders(body or None)
            response = server.getresponse()
            data = self.faults.rewrite(response.read())
            headers = dict(response.getheaders())
        finally:
            server.close()
        if isinstance(fault, Lost):
            self._break()
            return
        if isinstance(fault, Shortened):
            data = data[: len(data) // 2]
        self._answer(response.status, headers, data, cut=isinstance(fault, Cut))

    def _answer(
        self, status: int, headers: Mapping[str, str], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = str(len(body))
        if self.command == "HEAD":
            length = next((v for n, v in headers.items() if n.lower() == "content-length"), "0")
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self._break()

    def _answer_in_chunks(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in {**answer.headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body))

    def _break(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_OPTIONS = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
