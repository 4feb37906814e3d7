"""Where the registry's Redis is, as its config says.

Pure. Two registries write the same thing in two ways. CNCF Distribution (``configuration.go``,
``handlers/app.go``): ``addr`` in 2.8, ``addrs`` in 3, there with ``mastername`` for Sentinel and
``tls`` with ``certificate``, ``key`` and ``rootcas``. GitLab's: ``addr``, a list with commas for
Sentinel and cluster, ``mainname`` for Sentinel, ``tls`` with ``enabled`` and ``insecure``.
In both, several addresses without such a name are a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from registry_drivers.parameters import resolved
from registry_gc.configuring.file import ConfigError

_MOST_DIGITS = 10  # Python refuses to read numbers of thousands


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """How to reach a Redis.

    :param addresses: host and port of each; port 0 where the host is a socket's path.
    :param master: the name that Sentinels at *addresses* know it by; empty without Sentinel.
    :param tls: whether to speak TLS; *verify* is whether the certificate must be right.
    :param authorities: files in PEM with what the certificate is checked against, else the
        system's.
    """

    addresses: tuple[tuple[str, int], ...]
    username: str = ""
    password: str = field(default="", repr=False)
    db: int = 0
    master: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False
    verify: bool = True
    certificate: str = ""
    key: str = ""
    authorities: tuple[str, ...] = ()

    @property
    def cluster(self) -> bool:
        """Whether the addresses are nodes of one cluster."""
        return len(self.addresses) > 1 and not self.master

    @property
    def name(self) -> str:
        """What people call it."""
        where = ", ".join(_shown(host, port) for host, port in self.addresses)
        return f"{self.master} ({where})" if self.master else where


def redis_config(path: str, section: Mapping[str, Any]) -> RedisConfig | None:
    """What the *section* ``redis`` of the config at *path* says; None where it names no address.

    :raises ConfigError: it cannot be understood.
    """
    read = _Reader(path, section)
    addresses = read.addresses()
    if not addresses:
        return None
    tls = _Reader(path, read.mapping("tls"), "redis.tls.")
    certificate, key = tls.text("certificate"), tls.text("key")
    authorities = tls.texts("rootcas")
    both = bool(certificate and key)  # one alone is ignored, as Distribution does
    return RedisConfig(
        addresses=addresses,
        username=read.text("username"),
        password=read.text("password"),
        db=read.number("db"),
        master=read.text("mastername") or read.text("mainname"),
        sentinel_username=read.text("sentinelusername"),
        sentinel_password=read.text("sentinelpassword"),
        tls=bool(certificate or key or authorities) or tls.flag("enabled"),
        verify=not tls.flag("insecure"),
        certificate=certificate if both else "",
        key=key if both else "",
        authorities=authorities,
    )


class _Reader:
    """Values of one section; no error quotes one, since any may be a secret."""

    def __init__(self, path: str, values: Mapping[str, Any], where: str = "redis.") -> None:
        self._path = path
        self._values = values
        self._where = where

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._path}: {self._where}{key}: {problem}")

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "write a mapping of keys below it")
        return value or {}

    def text(self, key: str) -> str:
        value = self._values.get(key)
        if isinstance(value, (dict, list, bool)):
            raise self.error(key, "write a single value")
        return "" if value is None else str(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._values.get(key)
        if isinstance(value, str):
            return (value,)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise self.error(key, "write a list of texts")
        return tuple(value or ())

    def number(self, key: str) -> int:
        value = resolved(self._values.get(key))
        text = str(value) if isinstance(value, int) else self.text(key)
        if text and not (text.isdecimal() and len(text) < _MOST_DIGITS):
            raise self.error(key, "write a number")
        return int(text or 0)

    def flag(self, key: str) -> bool:
        value = resolved(self._values.get(key))
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "write true or false, without quotes")
        return bool(value)

    def addresses(self) -> tuple[tuple[str, int], ...]:
        one = [part.strip() for part in self.text("addr").split(",") if part.strip()]
        many = [part.strip() for part in self.texts("addrs") if part.strip()]
        if one and many and set(one) != set(many):
            # 2.8 and GitLab read the one, 3 reads the other; nothing says which this registry is.
            raise self.error("addrs", "is not what redis.addr says: keep the one that counts")
        key = "addrs" if many else "addr"
        return tuple(self._address(key, text) for text in many or one)

    def _address(self, key: str, text: str) -> tuple[str, int]:
        if text.startswith("/"):
            return text, 0
        host, _, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        number = int(port) if port.isdecimal() and len(port) < _MOST_DIGITS else 0
        if not 0 < number < 65536 or (":" in host and not bracketed):
            raise self.error(key, "write each address like redis.example.com:6379")
        return (host[1:-1] if bracketed else host) or "localhost", number


def _shown(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
