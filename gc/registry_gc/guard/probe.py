"""Asks a registry whether it takes writes, and leaves no trace there.

The question is ``OPTIONS /v2/<name>/blobs/uploads/``, to which CNCF's and GitLab's registry
answer with the methods they allow: ``GET, HEAD`` when read-only. A ``POST`` to a writable
registry would begin an upload, so nothing but ``OPTIONS`` is ever sent to one.
Each question has a connection of its own: one that is kept could lead to a process that is
about to end, or always to the same node behind a name.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer, AnswerKind

if TYPE_CHECKING:
    from registry_gc.guard.credentials import Credentials, Login

PROBE_NAME = "registry-gc/probe"
_WRITING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
# What connecting to an IPv6 address says on a machine without IPv6.
_NO_SUCH_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH})
# A name with more addresses than that is a load balancer's; asking them all would take a while.
_MOST_ADDRESSES = 16


_LOG_IN = "log in anew, into the file of --registry-auth-file"
# What is wrong with a certificate, and what helps; by OpenSSL's X509_V_ERR_ numbers: not yet valid,
# has expired, hostname and IP address mismatch.
_OUTDATED = ("its certificate is out of date", "renew it, or stop the registry")
_MISNAMED = (
    "its certificate is for another name",
    "give the name in the certificate with --registry-url",
)
_CERTIFICATES = {9: _OUTDATED, 10: _OUTDATED, 62: _MISNAMED, 64: _MISNAMED}
# Alerts of a registry with http.tls.clientcas, to which no certificate is shown; by TLS 1.3 and
# by older Go.
_WANTS_ONE = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE"})
_UNTRUSTED = (
    "its certificate is not trusted",
    "name the authority's file in SSL_CERT_FILE, or add it to the system's",
)
# Distribution says so to every request while one of its own checks fails (measured on 3.1.1).
_UNHEALTHY = (
    "if this is the registry's own address, one of its health checks fails, which its log names; "
    "else give that address with --registry-url"
)


class _Target(msgspec.Struct, frozen=True):
    """One socket address of a registry."""

    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes] | bytes


class Probe:
    """Asks registries; safe to use from several threads.

    :param credentials: for registries that answer 401; without, that stays unknown.
    :param timeout: seconds to wait for a connection, and for an answer.
    """

    def __init__(self, credentials: Credentials | None, timeout: float) -> None:
        self._credentials = credentials
        self._timeout = timeout
        # What each address accepted last, so that a token is fetched once and not each 10 s.
        self._accepted: dict[Address, str] = {}
        self._guard = threading.Lock()

    def ask(self, address: Address) -> Answer:
        """What *address* answers, or the least reassuring of what its IPs answer."""
        try:
            targets = list(_targets(address))
        except (OSError, UnicodeError) as error:
            return Answer(AnswerKind.SILENT, f"its name cannot be resolved: {_why(error)}")
        answers: list[Answer] = []
        absent: list[Answer] = []
        for target in targets[:_MOST_ADDRESSES]:
            try:
                answers.append(self._ask(address, target))
            except OSError as error:
                no_ipv6 = target.family == socket.AF_INET6 and error.errno in _NO_SUCH_FAMILY
                (absent if no_ipv6 else answers).append(_failure(error, address))
            except ValueError:  # a host or a prefix that does not fit into a header
                answers.append(
                    Answer(AnswerKind.SILENT, "its host or its path cannot be asked for")
                )
        if len(targets) > _MOST_ADDRESSES:
            # One that is read-only proves nothing about the others.
            asked = f"has {len(targets)} addresses, of which {_MOST_ADDRESSES} were asked"
            answers.append(Answer(AnswerKind.SILENT, f"{asked}: name each by --registry-url"))
        # IPv6 that this machine does not have says nothing, unless there is nothing else.
        order = list(AnswerKind)
        return min(answers or absent, key=lambda answer: order.index(answer.kind))

    def _ask(self, address: Address, target: _Target) -> Answer:
        """One socket address' answer.

        :raises OSError: there is none.
        """
        with self._guard:
            authorization = self._accepted.get(address, "")
        answer, offers = self._options(address, target, authorization)
        login = self._login(address)
        if answer.kind is not AnswerKind.UNAUTHORIZED or login is None:
            return answer
        from registry_gc.guard.credentials import NoToken

        try:
            authorization = self._authorization(address, login, offers)
        except NoToken as error:
            return Answer(AnswerKind.UNAUTHORIZED, str(error), error.remedy or _LOG_IN)
        answer, _ = self._options(address, target, authorization)
        if answer.kind is AnswerKind.UNAUTHORIZED:
            refused = f"{answer.detail} and does not accept the credentials"
            return Answer(AnswerKind.UNAUTHORIZED, refused, _LOG_IN)
        with self._guard:
            self._accepted[address] = authorization
        return answer

    def _login(self, address: Address) -> Login | None:
        if self._credentials is None:
            return None
        if address.tls and not address.verify and not address.local:
            # Whoever answers there has not shown who it is: --registry-url with the name in its
            # certificate is the way to send it a password.
            return None
        own = not address.verify and address.local
        return self._credentials.find(address.logins, only=own)

    def _authorization(self, address: Address, login: Login, offers: list[str]) -> str:
        if login.token:
            return f"Bearer {login.token}"
        from registry_gc.guard.credentials import challenges, fetch_token

        schemes = challenges(offers)
        if "bearer" not in schemes:
            return login.basic
        scope = f"repository:{PROBE_NAME}:pull"
        token = fetch_token(schemes["bearer"], login, scope, tls=address.tls, timeout=self._timeout)
        return f"Bearer {token}"

    def _options(
        self, address: Address, target: _Target, authorization: str
    ) -> tuple[Answer, list[str]]:
        """The answer of one request, and what authentication it offers."""
        headers = {"Host": address.host_header, "User-Agent": "registry-gc", "Connection": "close"}
        if authorization:
            headers["Authorization"] = authorization
        with self._connect(address, target) as connected:
            from http.client import HTTPException

            from registry_gc.guard.whole_answer import connection, cut_after

            path = f"{address.prefix}/v2/{PROBE_NAME}/blobs/uploads/"
            asking = connection(connected, self._timeout)
            try:
                with cut_after(connected, self._timeout):
                    if address.tls:
                        _shake_hands(connected)
                    asking.request("OPTIONS", path, headers=headers)
                    response = asking.getresponse()
            except HTTPException as error:
                if isinstance(error, OSError):  # the connection was closed without an answer
                    raise
                return Answer(AnswerKind.ODD, "answers something that is not HTTP"), []
            if response.headers.defects:
                # What stands below a line that is no header is not among the headers.
                response.close()
                return Answer(AnswerKind.ODD, "answers something that is not HTTP"), []
            with response:
                allow = response.headers.get_all("Allow") or []
                offers = response.headers.get_all("WWW-Authenticate") or []
                return _judge(response.status, allow), offers

    def _connect(self, address: Address, target: _Target) -> socket.socket:
        connected = socket.socket(target.family, socket.SOCK_STREAM)
        try:
            connected.settimeout(self._timeout)
            connected.connect(target.sockaddr)
            if not address.tls:
                return connected
            import ssl

            context = ssl.create_default_context()
            if not address.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            # That takes several pieces, which may come as slowly as those of an answer.
            return context.wrap_socket(
                connected, server_hostname=address.host, do_handshake_on_connect=False
            )
        except BaseException:
            connected.close()
            raise


def _shake_hands(connected: socket.socket) -> None:
    import ssl

    assert isinstance(connected, ssl.SSLSocket)
    connected.do_handshake()


def _targets(address: Address) -> Iterator[_Target]:
    if address.unix_socket:
        # UTF-8 to the registry, whatever the locale is here: a socket that is not found is taken
        # for that of a registry that is stopped.
        path = address.unix_socket.encode("utf-8", "surrogateescape")
        # As in Go, an '@' stands for the NUL that an abstract socket's name begins with.
        yield _Target(socket.AF_UNIX, b"\0" + path[1:] if path.startswith(b"@") else path)
        return
    seen = set()
    for host in address.hosts:
        # For text, Python loads what it needs for names that are not ASCII: 2 ms.
        name = host.encode() if host.isascii() else host
        for found in socket.getaddrinfo(name, address.port, type=socket.SOCK_STREAM):
            target = _Target(found[0], found[4])
            if target not in seen:
                seen.add(target)
                yield target


def _judge(status: int, allow: list[str]) -> Answer:
    if status in (401, 403):
        return Answer(AnswerKind.UNAUTHORIZED, f"answers {status}")
    methods = {method.strip().upper() for line in allow for method in line.split(",")} - {""}
    listed = f"Allow: {', '.join(sorted(methods))}" if methods else "no Allow"
    # Anything but success is somebody else's word: a proxy's 405 lists what the proxy allows.
    if status not in (200, 204):
        return Answer(AnswerKind.ODD, f"answers {status}", _UNHEALTHY if status == 503 else "")
    if methods & _WRITING:
        return Answer(AnswerKind.WRITABLE, f"answers {listed[:100]}")
    # A registry that takes no writes says this and no more; a front that answers by itself, and
    # hands a POST on, says more.
    if methods == {"GET", "HEAD"}:
        return Answer(AnswerKind.READ_ONLY, f"answers {listed[:100]}")
    return Answer(AnswerKind.ODD, f"answers {status} with {listed[:100]}")


def _failure(error: OSError, address: Address) -> Answer:
    refused: tuple[type[OSError], ...] = (ConnectionRefusedError,)
    if address.unix_socket:
        # The registry removes its socket file when it ends.
        refused += (FileNotFoundError,)
    if isinstance(error, refused):
        return Answer(AnswerKind.REFUSES)
    return Answer(AnswerKind.SILENT, _why(error), _remedy(error))


def _remedy(error: Exception) -> str:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATES.get(error.verify_code, _UNTRUSTED)[1]
    if isinstance(error, ssl.SSLError) and error.reason in _WANTS_ONE:
        return "stop it and pass --registry-stopped, or pass --assume-readonly"
    return ""


def _why(error: Exception) -> str:
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        what, _ = _CERTIFICATES.get(error.verify_code, _UNTRUSTED)
        return f"{what}: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason in _WANTS_ONE:
        return "it wants a client certificate (http.tls.clientcas), and is given none"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error.reason or 'no handshake'}"
    if isinstance(error, TimeoutError):
        return "it takes too long"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection was closed" if isinstance(error, ConnectionError) else "it is no name"
