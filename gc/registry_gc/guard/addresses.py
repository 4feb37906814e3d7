"""Where a registry can be asked: ``http.addr`` of its config, and each ``--registry-url``."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import msgspec

from registry_gc.config import ConfigError, HttpConfig

_LOOPBACK = ("127.0.0.1", "::1")


class UnusableAddress(Exception):
    """``http.addr`` does not say where the registry listens; the message says why."""


class Address(msgspec.Struct, frozen=True):
    """One registry to ask.

    :param name: what people call it.
    :param hosts: names or IPs, all of them asked; empty with *unix_socket*.
    :param prefix: the path before ``/v2/``, without a ``/`` at its end.
    :param tls: whether it speaks TLS; *verify* is whether its certificate must be right.
    :param server_name: the name to ask for in TLS, where *hosts* do not say it.
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
    def host_header(self) -> str:
        """What HTTP's ``Host`` says."""
        host = self.server_name or (self.hosts[0] if self.hosts else "localhost")
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def configured_address(http: HttpConfig) -> Address | None:
    """Where the config says that the registry listens; None where it says nothing.

    Its certificate is not checked: it names the public host, not this address, and may be one
    that only the clients trust. Who could answer in the registry's place would have to sit on
    its own address, and could at most say "read-only" where the config says so too.
    Credentials are not sent there unless it is local (see ``probe``).

    :raises UnusableAddress: the address cannot be asked.
    """
    if not http.addr:
        return None
    prefix = "/" + http.prefix.strip("/") if http.prefix.strip("/") else ""
    public = _public_logins(http.host)
    if http.net == "unix":
        return Address(
            f"unix:{http.addr}", (), 0, prefix, http.tls, False, http.server_name, http.addr, public
        )
    if http.net not in ("", "tcp"):
        raise UnusableAddress(f"http.net is {http.net!r}: only tcp and unix are known")
    host, port = _split(http.addr)
    hosts = _LOOPBACK if _is_wildcard(host) else (host,)
    shown = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
    # A registry on every address is most likely called by one of these on its own machine.
    names = ("localhost", "127.0.0.1", "[::1]") if _is_wildcard(host) else (shown,)
    return Address(
        name=f"{'https' if http.tls else 'http'}://{shown}:{port}{prefix}",
        hosts=hosts,
        port=port,
        prefix=prefix,
        tls=http.tls,
        verify=False,
        server_name=http.server_name,
        logins=(*(f"{name}:{port}" for name in names), *public),
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


def _split(addr: str) -> tuple[str, int]:
    host, colon, service = addr.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed):
        raise UnusableAddress(f"http.addr is {addr!r}: it must be [HOST]:PORT")
    try:
        # Go takes names of services too.
        port = int(service) if service.isdecimal() else socket.getservbyname(service, "tcp")
    except (OSError, UnicodeError):
        raise UnusableAddress(f"http.addr is {addr!r}: there is no such port") from None
    if not 0 < port < 65536:
        raise UnusableAddress(f"http.addr is {addr!r}: that is no fixed port")
    return host[1:-1] if bracketed else host, port


def _is_wildcard(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _public_logins(host: str) -> tuple[str, ...]:
    try:
        parts = urlsplit(host)
        if not parts.hostname:
            return ()
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ()
    return (f"{parts.hostname}:{port}", parts.hostname)
