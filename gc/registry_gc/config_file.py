"""Finds the registry's config file, reads it, and lays the ``REGISTRY_*`` variables over it.

::

    ConfigError     one line: which file, which key, what is wrong, what to do

What the keys mean is :mod:`registry_gc.config`'s.
Follows CNCF Distribution's ``configuration/parser.go``: variables are applied in lexical order,
each parsed as YAML.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

DEFAULT_PATHS = (
    "/etc/distribution/config.yml",  # Distribution 3
    "/etc/docker/registry/config.yml",  # Distribution 2
    "/var/opt/gitlab/registry/config.yml",  # GitLab Omnibus
)
# No registry's config is near this; a device or a log taken for one is not read to its end.
_MAX_BYTES = 1 << 20

# What a variable may change. The rest (REGISTRY_AUTH_FILE, which podman reads too, REGISTRY_URL,
# what Kubernetes sets for a service called "registry") is none of the collector's business.
_SECTIONS = frozenset({"STORAGE", "HTTP", "PROXY", "REDIS", "DATABASE"})
_READONLY = "REGISTRY_STORAGE_MAINTENANCE_READONLY_ENABLED"


class ConfigError(Exception):
    """The config cannot be used as it is; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class RawConfig:
    """A config whose keys nobody has looked at yet.

    ``path`` is the file that was taken, ``variables`` those that changed it.
    """

    path: str
    values: Mapping[str, Any] = field(repr=False)
    variables: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def origin(self, *keys: str) -> str:
        """`` (from VARIABLE)`` where a variable brought the key, else nothing."""
        wanted = "_".join(("REGISTRY", *keys)).upper()
        for name in self.variables:
            if name == "REGISTRY_STORAGE" or f"{name}_".startswith(f"{wanted}_"):
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


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: user {_user()} cannot read it: {reason}") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: is larger than 1 MiB: no config file")
    return data


def _user() -> str:
    try:
        return repr(getpass.getuser())
    except (KeyError, OSError, ImportError):  # a uid without a name, as in many containers
        return "without a name"


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that a number or date which is not written plainly stays the text it is.

    ``0123``, ``12:34`` and ``2024-01-01`` may well be keys, passwords or buckets. Not libyaml's
    loader: that one ends the process with a segmentation fault on deeply nested input (measured).
    """

    def written(self, node: yaml.ScalarNode) -> object:
        text = str(self.construct_scalar(node))
        for kind in (int, float):
            try:
                if str(kind(text)) == text:
                    return kind(text)
            except ValueError:
                continue
        return text


for _tag in ("int", "float", "timestamp", "value"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.written)


def _parse(data: bytes | str, where: str) -> object:
    """The first document in *data*, as Distribution's ``yaml.Unmarshal`` takes it."""
    try:
        loader = _Loader(data)
        try:
            return loader.get_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigError(f"{where}:{line} is not YAML: {_harmless(error)}") from None
    except (yaml.YAMLError, UnicodeError):
        raise ConfigError(f"{where}: is not YAML: it is not text in UTF-8") from None
    except (RecursionError, ValueError):
        raise ConfigError(f"{where}: is not YAML that makes sense: simplify it") from None


def _harmless(error: yaml.MarkedYAMLError) -> str:
    # PyYAML quotes aliases, tags and characters, which may be (part of) an unquoted password.
    problem = re.sub(r"'.*'", "'…'", error.problem or "malformed", flags=re.DOTALL)
    return " ".join(problem.split())


def _overridden(
    values: dict[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """*values* with the variables laid over, the variables' names, and notices."""
    applied: list[str] = []
    notices: list[str] = []
    values = _unfolded(values)
    for name in sorted(environ):
        parts = name.split("_")
        if parts[0] != "REGISTRY" or len(parts) < 2 or parts[1] not in _SECTIONS or "" in parts:
            continue
        value = _parse(environ[name], f"environment variable {name}")
        if name == _READONLY and value is True and _file_decides(values):
            notices.append(
                f"{name} is ignored, as the registry ignores it while its file has"
                " storage.maintenance.readonly: set 'enabled: true' there"
            )
            continue
        values = _unfolded(_with(values, parts[1:], value))
        applied.append(name)
    return values, tuple(applied), tuple(notices)


def _file_decides(values: dict[str, Any]) -> bool:
    # Measured on 2.8.2: a variable never reaches into a mapping two levels below ``storage`` that
    # the file has, so such a registry stays writable. To believe the variable could cost data;
    # to believe one that says false only refuses.
    readonly: object = values
    for key in ("storage", "maintenance", "readonly"):
        readonly = readonly.get(key) if isinstance(readonly, dict) else None
    return isinstance(readonly, dict) and readonly.get("enabled") is not True


def _unfolded(values: dict[str, Any]) -> dict[str, Any]:
    """``storage: inmemory`` is short for a driver without parameters."""
    storage = values.get("storage")
    return {**values, "storage": {storage: {}}} if isinstance(storage, str) else values


def _with(node: Any, parts: list[str], value: object) -> Any:
    # Copies on the way down: a YAML alias may have put one mapping in two places.
    if not parts:
        return value
    if node is None:
        node = {}
    if not isinstance(node, dict):
        return node  # as in Distribution, there is nothing below a string or a list
    upper = parts[0]
    key = next((key for key in node if str(key).upper() == upper), upper.lower())
    return {**node, key: _with(node.get(key), parts[1:], value)}
