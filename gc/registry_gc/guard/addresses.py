"""Where a registry can be asked: ``http.addr`` of its config, and each ``--registry-url``."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

import msgspec

from registry_gc.config import ConfigError, HttpConfig

_LOOPBACK = ("127.0.0.1", "::1")
# What every registry takes for a name in a header; longer ones fit into no TLS handshake.
_NAME = re.compile(r"(?!.{254})[\w-]{1,63}(\.[\w-]{1,63})*", re.ASCII)


class UnusableAddress(Exception):
    """``http.addr`` does not say where the registry listens; the message says why."""


class Address(msgspec.Struct, frozen=True):
    """One registry to ask.

    :param name: what people call it.
    :param hosts: names or IPs, all of them asked; empty with *unix_socket*.
    :param prefix: the path before ``/v2/`` as a URL has it, without a ``/`` at its end.
    :param tls: whether it speaks TLS; *verify* is whether its certificate must be right.
    :param server_name: the name to ask for in HTTP and TLS, where *hosts* do not say it.
    :param unix_socket: a path, or ``@`` and the name of an abstract socket.
    :param logins: what it may be called in a file of credentials, best first.
    """

    name: str
    hosts: tuple[str, ...]
    port: int
    prefix: str = ""
    tls: bool = False
    verify: bool = True
    server_name: str = ""
    unix_socket: str = ""
    logins: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether nothing that is sent there leaves this machine."""
        return bool(self.unix_socket) or all(map(_is_loopback, self.hosts))

    @property
    def host(self) -> str:
        """The name to ask for; an IPv6 address without its zone, which means nothing elsewhere."""
        host = self.server_name or (self.hosts[0] if self.hosts else "localhost")
        return host.partition("%")[0]

    @property
    def host_header(self) -> str:
        """What HTTP's ``Host`` says."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def configured_address(http: HttpConfig) -> Address | None:
    """Where the config says that the registry listens; None where it says nothing.

    Its certificate is not checked: it names the public host, not this address, and may be one
    that only the clients trust. Who could answer in the registry's place would have to sit on
    its own address, and could at most say "read-only" where the config says so too.
    Credentials are not sent there unless it is local (see ``probe``).

    :raises UnusableAddress: the address cannot be asked.
    """
    prefix = _quoted(http.prefix)
    public = _public_logins(http.host)
    # As the certificate is not checked, a name that cannot be sent is not needed either.
    server_name = _sendable(http.server_name)
    if http.net == "unix":
        socket_name = _socket_name(http.addr)
        return Address(
            f"unix:{socket_name}", (), 0, prefix, http.tls, False, server_name, socket_name, public
        )
    if not http.addr:
        return None
    if http.net not in ("", "tcp"):
        raise UnusableAddress(f"http.net is {http.net!r}: only tcp and unix are known")
    host, port = _split(http.addr)
    hosts = _LOOPBACK if _is_wildcard(host) else (_resolvable(host),)
    named = _LOOPBACK[0] if _is_wildcard(host) else host
    shown = f"[{named}]" if ":" in named else named
    # A registry on every address is most likely called by one of these on its own machine.
    names = ("localhost", "127.0.0.1", "[::1]") if _is_wildcard(host) else (shown,)
    return Address(
        name=f"{'https' if http.tls else 'http'}://{shown}:{port}{prefix}",
        hosts=hosts,
        port=port,
        prefix=prefix,
        tls=http.tls,
        verify=False,
        server_name=server_name,
        logins=(*(f"{name}:{port}" for name in names), *public),
    )


def not_asked(address: Address, others: Iterable[Address]) -> Address | None:
    """What of *address* is none of *others*' sockets; None where nothing is left."""
    hosts = set(address.hosts)
    for other in others:
        if address.unix_socket and address.unix_socket == other.unix_socket:
            return None
        if not other.unix_socket and other.port == address.port:
            hosts -= set(other.hosts)
    if not hosts and not address.unix_socket:
        return None
    return msgspec.structs.replace(
        address, hosts=tuple(host for host in address.hosts if host in hosts)
    )


def given_address(url: str) -> Address:
    """The registry that a ``--registry-url`` names.

    :raises ConfigError: it is no URL of a registry.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"--registry-url {_shown(url)}: is no URL") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--registry-url: put user and password into --registry-auth-file instead")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"--registry-url {_shown(url)}: write it like https://registry.example.com:5000"
        )
    if parts.query or parts.fragment or not url.isascii() or any(c <= " " for c in url):
        raise ConfigError(f"--registry-url {_shown(url)}: has more than host, port and path")
    if port == 0 or parts.netloc.endswith(":"):
        # A variable that is not set, most likely; at 80 or 443 may be another registry.
        raise ConfigError(f"--registry-url {_shown(url)}: write a port after the ':', or none")
    tls = parts.scheme == "https"
    default = 443 if tls else 80
    path = parts.path.rstrip("/").removesuffix("/v2")
    shown = f"[{host}]" if ":" in host else host
    logins = [f"{shown}:{port or default}"]
    if (port or default) == default:
        logins.append(shown)
    return Address(
        name=f"{parts.scheme}://{parts.netloc}{path}",
        hosts=(host,),
        port=port or default,
        prefix=path,
        tls=tls,
        server_name=host,
        logins=tuple(logins),
    )


def _shown(url: str) -> str:
    # Something that is no URL may still hold a password before an '@'.
    return repr(url.rpartition("@")[2] if "@" in url else url)


def _quoted(prefix: str) -> str:
    """``http.prefix``, which the registry compares with a URL's path after unquoting that."""
    path = prefix.strip("/")
    try:
        path = quote(path, safe="/!$&'()*+,:;=@~", errors="surrogateescape")
    except UnicodeEncodeError:
        raise UnusableAddress("http.prefix has half of a character") from None
    return "/" + path if path else ""


def _socket_name(addr: str) -> str:
    """Where a registry with ``net: unix`` listens, as Go reads *addr*."""
    if not addr:
        # Linux then gives it a name, another one at each start.
        raise UnusableAddress("http.net is unix, and http.addr is not set: write a socket's path")
    if not addr.startswith(("/", "@")):
        raise UnusableAddress(
            f"http.addr is {addr!r}, in whatever folder it was started in: write the whole path"
        )
    return addr


def _split(addr: str) -> tuple[str, int]:
    host, colon, service = addr.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise UnusableAddress(f"http.addr is {addr!r}: it must be [HOST]:PORT")
    service = service or "0"  # Go takes any free port for both
    try:
        # Go takes names of services too.
        port = int(service) if service.isdecimal() else socket.getservbyname(service, "tcp")
    except (OSError, UnicodeError):
        raise UnusableAddress(f"http.addr is {addr!r}: there is no such port") from None
    if not 0 < port < 65536:
        raise UnusableAddress(f"http.addr is {addr!r}: that is no fixed port, write one")
    return host[1:-1] if bracketed else host, port


def _resolvable(host: str) -> str:
    """*host* as the system's resolver takes it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _sendable(host) or host
    # Only link-local addresses have a zone; of others Linux ignores it, and resolves none with it.
    return host if address.is_link_local else host.partition("%")[0]


def _sendable(name: str) -> str:
    """*name* as HTTP and TLS take it; empty where they take it in no form."""
    try:
        name = name if name.isascii() else name.encode("idna").decode()
        if not _NAME.fullmatch(name):
            ipaddress.ip_address(name)
    except ValueError:
        return ""
    return name


def _is_wildcard(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _public_logins(host: str) -> tuple[str, ...]:
    try:
        parts = urlsplit(host)
        if not parts.hostname:
            return ()
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ()
    return (f"{parts.hostname}:{port}", parts.hostname)
