"""What the registry's own config says, as one frozen value.

Follows CNCF Distribution's ``configuration/configuration.go``: keys count only in lower case, and
what has no meaning for the collector is left alone. No value of a key gets into an error or a
``repr``, since any of them may be a secret. Reading the file is that of
:mod:`registry_gc.configuring.file`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from registry_drivers.factory import StorageSpec
from registry_drivers.parameters import resolved
from registry_gc.configuring.file import (
    DEFAULT_PATHS,
    KEYS,
    SECTIONS,
    ConfigError,
    RawConfig,
    read_config,
)
from registry_gc.configuring.tags_elsewhere import TagsElsewhere, tags_elsewhere
from registry_gc.wording.durations import parse_duration

__all__ = [
    "DEFAULT_PATHS",
    "Config",
    "ConfigError",
    "HttpConfig",
    "UploadPurging",
    "load_config",
]


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


_BESIDE_DRIVERS = _keys("maintenance cache delete redirect tag")
_S3 = _keys(
    "accesskey secretkey sessiontoken region regionendpoint bucket rootdirectory encrypt keyid"
    " secure skipverify v4auth forcepathstyle pathstyle accelerate usedualstack usefipsendpoint"
    " storageclass maxrequestspersecond maxretries parallelwalk chunksize objectacl loglevel"
)
_AZURE = _keys(
    "accountname accountkey connectionstring container realm serviceurl rootdirectory credentials"
    " credentials_type legacyrootprefix trimlegacyrootprefix max_retries retry_delay skipverify"
)
# The drivers' names, in all their spellings, and the parameters that mean something to them.
_DRIVERS: Mapping[str, frozenset[str]] = {
    "filesystem": _keys("rootdirectory maxthreads"),
    "inmemory": _keys(""),
    "s3": _S3,
    "s3_v2": _S3,
    "s3aws": _S3,
    "gcs": _keys(
        "bucket keyfile credentials rootdirectory chunksize maxconcurrency parallelwalk useragent"
    ),
    "azure": _AZURE,
    "azure_v2": _AZURE,
}
# Drivers that a registry has, or once had.
_NOT_HERE = _keys("oss swift")
_AZURE_CREDENTIALS = _keys("type clientid tenantid secret")


class HttpConfig(msgspec.Struct, frozen=True):
    """Where the registry listens. ``addr`` is as in the file: ``:5000``, or a socket's path.

    ``server_name`` is the host that its certificate is for, where the config tells. ``drains``: it
    finishes what is being uploaded after it has closed its port.
    """

    addr: str = ""
    net: str = ""
    prefix: str = ""
    host: str = ""
    tls: bool = False
    server_name: str = ""
    drains: bool = False


class UploadPurging(msgspec.Struct, frozen=True):
    """The operator's word on abandoned uploads. ``age_seconds`` counts from their last change.

    Not ``enabled`` with ``dryrun`` either: the registry then only says what it would remove.
    """

    enabled: bool = True
    age_seconds: float = 168 * 3600.0


@dataclass(frozen=True, slots=True)
class Config:
    """What the collector needs to know from a registry's config.

    ``path`` is the file that was taken; ``notices`` are lines that the operator should see.
    """

    path: str
    storage: StorageSpec
    readonly: bool = False
    http: HttpConfig = field(default_factory=HttpConfig)
    proxy_remote_url: str | None = field(default=None, repr=False)
    database: Literal["off", "on", "prefer"] = "off"
    tags_elsewhere: TagsElsewhere | None = None
    blob_descriptor_cache: str | None = None
    redis: Mapping[str, Any] | None = field(default=None, repr=False)
    upload_purging: UploadPurging = field(default_factory=UploadPurging)
    notices: tuple[str, ...] = ()

    @property
    def driver(self) -> str:
        """The storage driver's name, as the config spells it."""
        return self.storage.driver


def load_config(
    path: str | None, environ: Mapping[str, str], *, defaults: Sequence[str] = DEFAULT_PATHS
) -> Config:
    """Read *path*, or the file that *environ* names, or the first of *defaults* that is there.

    :raises ConfigError: there is none, or it cannot be read, or it is not a usable config.
    """
    raw = read_config(path, environ, defaults)
    top = _Section(raw.path, "", raw.values)
    top.known(KEYS)
    # Without one no registry starts; what it would say is not in doubt.
    if top.text("version") not in ("", "0.1"):
        raise top.error("version", "only version 0.1 of the config format is known")
    if raw.values.get("storage") is None:
        raise top.error("storage", "is missing: name one driver, such as filesystem")
    storage = top.section("storage").known(_BESIDE_DRIVERS | _DRIVERS.keys())
    maintenance = storage.section("maintenance").known({"readonly", "uploadpurging"})
    readonly = maintenance.section("readonly").known({"enabled"})
    return Config(
        path=raw.path,
        storage=_storage(storage, raw),
        readonly=readonly.flag("enabled", default=False),
        http=_http(top.section("http")),
        proxy_remote_url=top.section("proxy").known(SECTIONS["proxy"]).text("remoteurl") or None,
        database=_database(top.section("database").known(SECTIONS["database"])),
        tags_elsewhere=tags_elsewhere(raw.values),
        blob_descriptor_cache=_cache(storage.section("cache")),
        redis=top.section("redis").known(SECTIONS["redis"]).values or None,
        upload_purging=_upload_purging(maintenance.section("uploadpurging")),
        notices=raw.notices,
    )


class _Section(msgspec.Struct, frozen=True):
    """A mapping in the config, with what an error must say about it."""

    file: str
    path: str
    values: Mapping[str, Any]

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def error(self, key: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.where(key)}: {problem}")

    def known(self, keys: Iterable[str]) -> _Section:
        """Check that no key which means something is written in another case."""
        known = frozenset(keys)
        for key in self.values:
            lower = str(key).lower()
            if key != lower and lower in known:
                raise self.error(
                    str(key), f"the registry does not see keys in this case: write {lower!r}"
                )
        return self

    def section(self, key: str) -> _Section:
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"is a {_kind(value)}: write a mapping of keys below it")
        return _Section(self.file, self.where(key), value or {})

    def flag(self, key: str, default: bool) -> bool:
        value = resolved(self.values.get(key))
        if value is not None and not isinstance(value, bool):
            raise self.error(key, f"is a {_kind(value)}: write true or false, without quotes")
        return default if value is None else value

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if isinstance(value, (dict, list)):
            raise self.error(key, f"is a {_kind(value)}: write a single value")
        if isinstance(value, bool):
            return "true" if value else "false"
        return "" if value is None else str(value)


def _kind(value: object) -> str:
    value = resolved(value)
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list):
        return "list"
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _storage(storage: _Section, raw: RawConfig) -> StorageSpec:
    known = ", ".join(name for name in _DRIVERS if name != "inmemory")
    drivers = [str(key) for key in storage.values if key not in _BESIDE_DRIVERS]
    named = [driver + raw.origin("storage", driver) for driver in drivers]
    for driver, name in zip(drivers, named, strict=True):
        if driver in _NOT_HERE:
            raise storage.error(
                name, f"is a driver of the registry's that this tool has not: it has {known}"
            )
        if driver not in _DRIVERS:
            raise storage.error(name, f"is no storage driver that is known: use one of {known}")
    if len(drivers) > 1:
        raise ConfigError(f"{storage.file}: storage: has drivers {' and '.join(named)}: keep one")
    if not drivers:
        raise ConfigError(f"{storage.file}: storage: names no driver: add one of {known}")
    (driver,) = drivers
    parameters = storage.section(driver).known(_DRIVERS[driver])
    if isinstance(parameters.values.get("credentials"), dict) and _DRIVERS[driver] is _AZURE:
        parameters.section("credentials").known(_AZURE_CREDENTIALS)
    return StorageSpec(driver, _for_this_system(driver, parameters.values))


def _for_this_system(driver: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """*parameters*, the root as the system's calls take it.

    To the registry a folder's name is UTF-8. In another locale, Python would ask for another name.
    """
    root = parameters.get("rootdirectory")
    if driver != "filesystem" or not isinstance(root, str) or root.isascii():
        return dict(parameters)
    try:
        name = os.fsdecode(root.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # half of a character; the driver says so
        name = root
    return {**parameters, "rootdirectory": name}


def _http(http: _Section) -> HttpConfig:
    http.known(SECTIONS["http"])
    tls = http.section("tls").known({"certificate", "key", "letsencrypt"})
    acme = tls.section("letsencrypt").known({"cachefile", "hosts"})
    host = http.text("host")
    hosts = acme.values.get("hosts")
    try:
        server_name = urlsplit(host).hostname or ""
    except ValueError:
        raise http.error("host", "is no URL: write it like https://registry.example.com") from None
    if not server_name and isinstance(hosts, list) and hosts:
        server_name = str(hosts[0])
    return HttpConfig(
        addr=http.text("addr"),
        net=http.text("net"),
        prefix=http.text("prefix"),
        host=host,
        tls=bool(tls.text("certificate") or acme.text("cachefile")),
        server_name=server_name,
        drains=_drains(http.text("draintimeout")),
    )


def _drains(timeout: str) -> bool:
    try:
        return parse_duration(timeout) > 0
    except ValueError:
        # Go takes a number too, of nanoseconds; with what is no duration no registry starts.
        return timeout.isdecimal() and bool(timeout.strip("0"))


def _database(database: _Section) -> Literal["off", "on", "prefer"]:
    enabled = resolved(database.values.get("enabled"))
    # GitLab's registry takes these three words in quotes too, and no other text.
    if enabled is None or enabled is False or enabled == "false":
        return "off"
    return "prefer" if enabled == "prefer" else "on"


def _cache(cache: _Section) -> str | None:
    cache.known({"blobdescriptor", "layerinfo"})
    # The older name counts only where the newer is absent, as in Distribution.
    key = "blobdescriptor" if "blobdescriptor" in cache.values else "layerinfo"
    return cache.text(key) or None


def _upload_purging(purging: _Section) -> UploadPurging:
    purging.known({"enabled", "age", "interval", "dryrun"})
    enabled = purging.flag("enabled", default=True) and not purging.flag("dryrun", default=False)
    if purging.values.get("age") is None:
        return UploadPurging(enabled=enabled)
    try:
        return UploadPurging(enabled=enabled, age_seconds=parse_duration(purging.text("age")))
    except ValueError as error:
        if not purging.flag("enabled", default=True):
            return UploadPurging(enabled=False)  # the registry does not look at the age then
        raise purging.error("age", str(error)) from None
