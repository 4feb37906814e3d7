"""Finds the registry's config file, reads it, and lays the ``REGISTRY_*`` variables over it.

::

    ConfigError     one line: which file, which key, what is wrong, what to do

What the keys mean is :mod:`registry_gc.config`'s; YAML is that of
:mod:`registry_gc.configuring.yaml_text`.
Follows CNCF Distribution's ``configuration/parser.go``: variables are applied in lexical order,
each parsed as YAML. Where the storage is one that only GitLab's registry knows, names of variables
mean what they mean there.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry_drivers.parameters import resolved
from registry_gc.configuring.yaml_text import YamlError, load

DEFAULT_PATHS = (
    "/etc/distribution/config.yml",  # Distribution 3
    "/etc/docker/registry/config.yml",  # Distribution 2
    "/var/opt/gitlab/registry/config.yml",  # GitLab Omnibus
)
# No registry's config is near this; a device or a log taken for one is not read to its end.
_MAX_BYTES = 1 << 20

# What a variable may change, and the keys there that mean something to the collector; below
# ``storage`` that is the driver's. The rest (REGISTRY_AUTH_FILE, which podman reads too,
# REGISTRY_URL, what Kubernetes sets for a service called "registry") is none of its business.
SECTIONS: Mapping[str, frozenset[str]] = {
    "storage": frozenset(),
    "http": frozenset({"addr", "net", "prefix", "host", "tls", "draintimeout"}),
    "proxy": frozenset({"remoteurl"}),
    "redis": frozenset({"addr", "addrs", "username", "password", "db", "tls"})
    | {"mastername", "mainname", "sentinelusername", "sentinelpassword"},
    "database": frozenset({"enabled"}),
    "auth": frozenset({"htpasswd", "token"}),
    "openshift": frozenset({"server"}),
    "middleware": frozenset({"registry", "repository", "storage"}),
}
KEYS: Mapping[str, frozenset[str]] = {"version": frozenset(), **SECTIONS}
# Of these sections, variables with whole names alone: REGISTRY_AUTH and REGISTRY_AUTH_TOKEN may be
# a client's login, REGISTRY_OPENSHIFT_PORT is what Kubernetes sets.
_WHOLE_NAMES: Mapping[str, frozenset[tuple[str, ...]]] = {
    "auth": frozenset({("htpasswd", "realm"), ("token", "issuer"), ("token", "service")}),
    "openshift": frozenset({("server", "addr")}),
    "middleware": frozenset(),
}
# To Distribution 3, variables name a field that in the file is not there: what is in it stands
# right below ``redis`` (measured on 3.1.1). 2.8 and GitLab know no such variable; they read
# ``addr``.
_INLINED = ("redis", "options")
_ADDRESSES = ("redis", "addrs")
_NOT_INLINED = frozenset({"addr", "tls", "mainname"})
_READONLY = "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED"
# Drivers that only GitLab's registry has. Its ``customSplit`` leaves their names whole in the name
# of a variable, and these words of theirs, the longest that fits.
_GITLABS = frozenset({"s3_v2", "azure_v2"})
_WORDS = (
    "S3_V2 AZURE_V2 CREDENTIALS_TYPE TENANT_ID CLIENT_ID DEFAULT_CREDENTIALS CLIENT_SECRET"
    " SHARED_KEY MAX_RETRIES RETRY_TRY_TIMEOUT RETRY_DELAY MAX_RETRY_DELAY DEBUG_LOG"
    " DEBUG_LOG_EVENTS API_POOL_INITIAL_INTERVAL API_POOL_MAX_INTERVAL API_POOL_MAX_ELAPSED_TIME"
    " CHECKSUM_ALGORITHM CHECKSUM_DISABLED STORAGE_CLASS REDUCED_REDUNDANCY"
    " BUCKET_OWNER_FULL_CONTROL"
)
# Its driver for Google keeps the fields of a service account whole.
_OF_GOOGLE = "REGISTRY_STORAGE_GCS_CREDENTIALS_"
_ACCOUNT = (
    "TYPE PROJECT_ID PRIVATE_KEY_ID PRIVATE_KEY CLIENT_EMAIL CLIENT_ID AUTH_URI TOKEN_URI"
    " AUTH_PROVIDER_X509_CERT_URL CLIENT_X509_CERT_URL UNIVERSE_DOMAIN"
)
_WHOLE = re.compile(
    rf"(?<![^_])(?:{'|'.join(sorted(_WORDS.split(), key=len, reverse=True))})(?![^_])"
)


class ConfigError(Exception):
    """The config cannot be used as it is; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class RawConfig:
    """A config whose keys nobody has looked at yet.

    ``path`` is the file that was taken, ``variables`` those that changed it, with the keys that
    each stands for.
    """

    path: str
    values: Mapping[str, Any] = field(repr=False)
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def origin(self, *keys: str) -> str:
        """`` (from VARIABLE)`` where a variable brought the key, else nothing."""
        wanted = tuple(key.lower() for key in keys)
        for name, parts in self.variables.items():
            if parts == ("storage",) or parts[: len(wanted)] == wanted:
                return f" (from {name})"
        return ""


def read_config(path: str | None, environ: Mapping[str, str], defaults: Sequence[str]) -> RawConfig:
    """The content of *path*, or of the file that *environ* names, or of the first default.

    :raises ConfigError: there is none, it cannot be read, or is no mapping in YAML.
    """
    file, data = _find(path, environ, defaults)
    values = _parse(data, file)
    if values is None:
        raise ConfigError(f"{file}: is empty: it must name a storage driver under 'storage'")
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: is no mapping: it must have a key 'storage'")
    return RawConfig(file, *_overridden(values, environ))


def _find(
    path: str | None, environ: Mapping[str, str], defaults: Sequence[str]
) -> tuple[str, bytes]:
    if path == "":
        # A variable that is not set, most likely; the default may be another registry.
        raise ConfigError("the config file's name is empty; leave it out for the default one")
    named = path or environ.get("REGISTRY_CONFIGURATION_PATH")
    if named:
        try:
            return named, _read(named)
        except FileNotFoundError:
            source = "" if path else " (named by REGISTRY_CONFIGURATION_PATH)"
            raise ConfigError(f"{named}: there is no such file{source}") from None
    for candidate in defaults:
        try:
            return candidate, _read(candidate)
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise ConfigError(
        f"no config file: name one, or set REGISTRY_CONFIGURATION_PATH; tried {', '.join(defaults)}"
    )


def must_be_a_file(path: str | None, environ: Mapping[str, str]) -> None:
    """Raise where what is named can be read once only. What is not there is told by who reads it.

    :raises ConfigError: it is a pipe or a device.
    """
    named = path or environ.get("REGISTRY_CONFIGURATION_PATH")
    try:
        kind = os.stat(named or "").st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        what = "a device" if stat.S_ISCHR(kind) or stat.S_ISBLK(kind) else "a pipe"
        raise ConfigError(
            f"{named}: is {what}, and with commands the config is read more than once: name a file"
        )


_once: dict[tuple[int, int], bytes] = {}
"""What pipes have held: who opens one again gets nothing, or waits for ever."""


def _read(path: str) -> bytes:
    try:
        status = os.stat(path)
        which = (status.st_dev, status.st_ino)
        if which in _once:
            return _once[which]
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        # To whom a folder or a broken disk cannot be read is no matter.
        who = f"user {_user()} " if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path}: {who}cannot read it: {reason}") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: is larger than 1 MiB: no config file")
    if stat.S_ISFIFO(status.st_mode):
        _once[which] = data
    return data


def _user() -> str:
    try:
        return repr(getpass.getuser())
    except (KeyError, OSError, ImportError):  # a uid without a name, as in many containers
        return "without a name"


def _parse(data: bytes | str, where: str, path: Sequence[str] = ()) -> object:
    try:
        return load(data, path, KEYS)
    except YamlError as error:
        line = f" line {error.line}:" if error.line else ""
        raise ConfigError(f"{where}:{line} {error}") from None


def _overridden(
    values: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """*values* with the variables laid over, the variables with their keys, and notices."""
    applied: dict[str, tuple[str, ...]] = {}
    notices: list[str] = []
    made: set[tuple[str, ...]] = set()
    values = _unfolded(values)
    for name in sorted(environ):
        parts = _parts(name, values)
        if not parts:
            continue
        where = f"environment variable {name}"
        if name != name.upper():
            # To the registry, ``filesystem`` is another section than the file's, and replaces it.
            raise ConfigError(f"{where}: write it in upper case")
        value = _parse(_utf8(environ[name]), where, parts)
        closed = _closed(values, parts, made)
        # To believe a variable that takes read-only away only refuses.
        if closed and (name != _READONLY or resolved(value) is True):
            if resolved(_at(values, parts)) != resolved(value):
                notices.append(
                    f"{name} is ignored, as the registry ignores it while its file has"
                    f" {'.'.join(closed)}: set {parts[len(closed)]!r} there"
                )
            continue
        if _for_version_3(name) and parts != _ADDRESSES and not _at(values, _ADDRESSES):
            # Sorted after whatever sets addresses; those of 2.8 and GitLab are another key.
            notices.append(f"{name} is ignored: it is Distribution 3's, which reads redis.addrs")
            continue
        made |= {parts[:end] for end in range(3, len(parts)) if _at(values, parts[:end]) is None}
        if parts == _INLINED:
            parts, value = parts[:1], _inlined(values.get("redis"), value)
        values = _unfolded(_with(values, parts, value))
        applied[name] = parts
    return values, applied, tuple(notices)


def _utf8(value: str) -> str:
    """What the registry finds in a variable: UTF-8, whatever the locale made of it here."""
    if value.isascii():
        return value
    return os.fsencode(value).decode("utf-8", "surrogateescape")


def _parts(name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys that the variable *name* stands for; none when it is not for the collector.

    :param values: the config, with the variables before this one.
    """
    prefix, *given = _split(name, values.get("storage"))
    parts = tuple(part.lower() for part in given)
    if prefix != "REGISTRY" or not parts or "" in parts:
        return ()
    if given[0] == "STORAGE":
        return parts
    # Of these, the registry knows fields, in upper case. The rest may be what Kubernetes sets for
    # a service called "registry-http".
    known = SECTIONS.get(parts[0])
    if known is None or name != name.upper():
        return ()
    if parts[0] in _WHOLE_NAMES:
        return parts if parts[1:] in _WHOLE_NAMES[parts[0]] else ()
    if parts[:2] == _INLINED:
        if not parts[2:]:
            return parts
        parts, known = ("redis", *parts[2:]), known - _NOT_INLINED
    return parts if known.issuperset(parts[1:2]) else ()


def _split(name: str, storage: object) -> list[str]:
    """*name* in words, as the registry that has *storage* splits it.

    Distribution knows no key with a ``_`` in a variable. Its reading stays where it could be meant:
    beside a driver ``s3``, ``S3_V2`` is its key ``v2``; GitLab's registry has two drivers then.
    """
    if name.startswith(_OF_GOOGLE) and name.removeprefix(_OF_GOOGLE) in _ACCOUNT.split():
        return [*_OF_GOOGLE.removesuffix("_").split("_"), name.removeprefix(_OF_GOOGLE)]
    drivers = storage.keys() if isinstance(storage, dict) else frozenset()
    words = _WHOLE.sub(lambda found: found[0].replace("_", "\0"), name).split("_")
    whole = [word.replace("\0", "_") for word in words]
    named = whole[2].lower() if len(whole) > 2 else ""
    if drivers & _GITLABS or (named in _GITLABS and named.removesuffix("_v2") not in drivers):
        return whole
    return name.split("_")


def _for_version_3(name: str) -> bool:
    return name.startswith("REGISTRY_REDIS_OPTIONS_")


def _inlined(section: object, value: object) -> object:
    """The *section* ``redis`` after all that is inlined there was replaced by *value*."""
    if not isinstance(value, dict):
        return value  # whoever reads it says that it is no mapping
    kept = section.items() if isinstance(section, dict) else ()
    return {**value, **{key: found for key, found in kept if key in _NOT_INLINED}}


def _closed(
    values: dict[str, Any], parts: tuple[str, ...], made: set[tuple[str, ...]]
) -> tuple[str, ...]:
    """The keys of the mapping on the way to *parts* that no variable reaches into, or none.

    Measured on 2.8.2: below ``storage.<key>``, variables fill a mapping that variables *made*, but
    never one that was written, in the file or in a variable. To believe a variable there could
    cost data: a registry that should be read-only stays writable.
    """
    if parts[0] == "storage":
        for end in range(3, len(parts)):
            if isinstance(_at(values, parts[:end]), dict) and parts[:end] not in made:
                return parts[:end]
    return ()


def _at(values: Any, parts: tuple[str, ...]) -> object:
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _unfolded(values: dict[str, Any]) -> dict[str, Any]:
    """``storage: inmemory`` is short for a driver without parameters."""
    storage = values.get("storage")
    return {**values, "storage": {storage: {}}} if isinstance(storage, str) else values


def _with(node: Any, parts: tuple[str, ...], value: object) -> Any:
    # Copies on the way down: a YAML alias may have put one mapping in two places.
    if not parts:
        return value
    if node is None:
        node = {}
    if not isinstance(node, dict):
        return node  # as in Distribution, there is nothing below a string or a list
    key = next((key for key in node if str(key).lower() == parts[0]), parts[0])
    return {**node, key: _with(node.get(key), parts[1:], value)}
