"""Credentials for the probe: a ``config.json`` of docker's or an ``auth.json`` of podman's.

Nothing here is ever printed: neither ``repr`` nor errors hold a password or a token.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from registry_gc.config import ConfigError

_MAX_BYTES = 1 << 20
_OPTION = "--registry-auth-file"


class NoToken(Exception):
    """A token server did not give a token; the message says why, without credentials."""

    remedy = "see to its token server, or stop the registry"


class NotAccepted(NoToken):
    """It knows no such user, or another password."""

    remedy = ""


@dataclass(frozen=True, slots=True)
class Login:
    """What one registry accepts: user and password, or a token as it is."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of ``Authorization`` for HTTP Basic."""
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Logins by the registry's ``host:port`` or ``host``."""

    logins: Mapping[str, Login] = field(repr=False)

    def find(self, names: Sequence[str], *, only: bool = False) -> Login | None:
        """The login for the first of *names*; with *only*, a single login serves for any name."""
        for name in names:
            if name.lower() in self.logins:
                return self.logins[name.lower()]
        if only and len(self.logins) == 1:
            return next(iter(self.logins.values()))
        return None


def load_credentials(path: str) -> Credentials:
    """Read the logins in *path*.

    :raises ConfigError: it cannot be read, is not such a file, or holds no login.
    """
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"{_OPTION} {path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise ConfigError(f"{_OPTION} {path}: is not JSON") from None
    entries = document.get("auths") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise ConfigError(f'{_OPTION} {path}: has no mapping "auths": it must be like docker\'s')
    logins: dict[str, Login] = {}
    for name, entry in entries.items():
        login = _login(path, name, entry)
        if login is not None:
            logins[_host(name)] = login
    if not logins:
        raise ConfigError(
            f"{_OPTION} {path}: holds no password; one kept by a credential helper is not looked"
            " up: write a file with one, such as skopeo login --authfile does"
        )
    return Credentials(logins)


def _login(path: str, name: str, entry: object) -> Login | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{_OPTION} {path}: auths.{name}: is not a mapping")
    values = {
        key: entry.get(key) or "" for key in ("auth", "username", "password", "registrytoken")
    }
    if not all(isinstance(value, str) for value in values.values()):
        raise ConfigError(f"{_OPTION} {path}: auths.{name}: its values must be strings")
    if values["registrytoken"]:
        return Login(token=values["registrytoken"])
    if values["auth"]:
        try:
            text = base64.b64decode(values["auth"], validate=True).decode()
        except (binascii.Error, UnicodeError, ValueError):
            raise ConfigError(f"{_OPTION} {path}: auths.{name}.auth: is not base64") from None
        user, colon, password = text.partition(":")
        if not colon:
            raise ConfigError(f"{_OPTION} {path}: auths.{name}.auth: is not USER:PASSWORD")
        return Login(user, password.rstrip("\0"))
    if values["username"]:
        return Login(values["username"], values["password"])
    return None


def _host(name: str) -> str:
    # Docker's older keys are URLs: https://registry.example.com/v1/
    _, separator, rest = name.partition("://")
    return re.sub(r"/(v[12]/?)?$", "", rest if separator else name).lower()


def challenges(headers: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """The parameters of each scheme that the ``WWW-Authenticate`` *headers* offer, lower case."""
    from urllib.request import parse_http_list  # slow to import, and rarely asked

    found: dict[str, Mapping[str, str]] = {}
    for header in headers:
        # Several challenges may share one line: each begins with a word before the first '='.
        for part in re.split(r",\s*(?=[A-Za-z]+\s+[A-Za-z_]+\s*=)", header):
            scheme, _, rest = part.strip().partition(" ")
            parameters: dict[str, str] = {}
            for item in parse_http_list(rest):
                key, _, value = item.partition("=")
                parameters[key.strip().lower()] = value.strip().strip('"')
            found.setdefault(scheme.lower(), parameters)
    return found


def fetch_token(
    challenge: Mapping[str, str], login: Login, scope: str, *, tls: bool, timeout: float
) -> str:
    """Ask the token server that a Bearer *challenge* names, as docker and podman do.

    :param scope: what to ask for where the challenge does not say.
    :param tls: the registry was asked over TLS, so that its token server must be, too.
    :param timeout: seconds to wait for a connection, and for the whole answer.
    :raises NoToken: no token came.
    """
    # Takes time to import, and most registries never ask for a token.
    from http.client import HTTPException

    from registry_gc.guard.token_server import get

    realm = challenge.get("realm", "")
    try:
        parts = urlsplit(realm)
        server = parts.hostname
    except ValueError:
        server = None
    if not server or parts.scheme not in ("http", "https") or parts.username is not None:
        raise NoToken("its token server has no usable address")
    if tls and parts.scheme != "https":
        raise NoToken(f"its token server {server} would get the password without TLS")
    fields = {"account": login.user, "scope": challenge.get("scope") or scope}
    if challenge.get("service"):
        fields["service"] = challenge["service"]
    query = "&".join(filter(None, (parts.query, urlencode(fields))))
    try:
        status, body = get(parts._replace(query=query), login.basic, timeout, _MAX_BYTES)
    except TimeoutError as error:
        raise NoToken(f"its token server {server} takes too long") from error
    except (HTTPException, OSError, ValueError) as error:
        raise NoToken(f"its token server {server} does not answer") from error
    if status in (401, 403):
        raise NotAccepted(f"its token server {server} does not accept the credentials ({status})")
    if status != 200:
        raise NoToken(f"its token server {server} answers {status}")
    return _token(body, server)


def _token(body: bytes, server: str) -> str:
    try:
        document: Any = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    token = None
    if isinstance(document, dict):
        token = document.get("token") or document.get("access_token")
    # It goes into a header: nothing but visible ASCII.
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise NoToken(f"its token server {server} gives no token")
    return token
