"""Connects to a Redis, a cluster of them, or the one that Sentinels name.

Imported only where a registry has one: the client library is an extra.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from registry_gc.blob_cache.redis_config import RedisConfig

_TIMEOUT = 5.0  # seconds, for a connection and for each answer
_RETRIES = 4  # within three seconds: a restart of Redis, not more
# What is around them in a bundle is comments, in whatever language; Go reads no other blocks.
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[\x00-\x7f]*?-----END CERTIFICATE-----")
# These the library has no types for.
_SENTINEL: Any = Sentinel
_NODE: Any = ClusterNode


def connect(config: RedisConfig) -> Any:
    """A client for *config*; most connect only when they are asked something.

    :raises RedisError: no node of a cluster answers.
    :raises OSError: a file of certificates or a key cannot be read.
    :raises ValueError: there is no certificate in a file of authorities.
    """
    common: dict[str, Any] = {
        "socket_timeout": _TIMEOUT,
        "socket_connect_timeout": _TIMEOUT,
        "protocol": 2,  # also what servers before 6 speak
        **_tls(config),
    }
    login: dict[str, Any] = {
        "username": config.username or None,
        "password": config.password or None,
    }
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.1), _RETRIES)
    if config.master:
        sentinel_login: dict[str, Any] = {
            "username": config.sentinel_username or None,
            "password": config.sentinel_password or None,
            # Who asks for the master tries again itself.
            "retry": Retry(NoBackoff(), 0),
        }
        sentinels = _SENTINEL(
            list(config.addresses),
            sentinel_kwargs={**common, **sentinel_login},
            **common,
            **login,
        )
        return sentinels.master_for(config.master, db=config.db, retry=retry)
    if config.cluster:
        nodes = [_NODE(host, port) for host, port in config.addresses]
        return RedisCluster(startup_nodes=nodes, **common, **login)
    ((host, port),) = config.addresses
    where: dict[str, Any] = {"host": host, "port": port} if port else {"unix_socket_path": host}
    return Redis(**where, db=config.db, retry=retry, **common, **login)


def _tls(config: RedisConfig) -> dict[str, Any]:
    if not config.tls:
        return {}
    for path in filter(None, (config.certificate, config.key)):
        # Of a file that it cannot read the library does not tell the name.
        with open(path, "rb"):
            pass
    authorities = "\n".join(map(_certificates, config.authorities))
    return {
        "ssl": True,
        "ssl_cert_reqs": "required" if config.verify else "none",
        "ssl_check_hostname": config.verify,
        "ssl_certfile": config.certificate or None,
        "ssl_keyfile": config.key or None,
        "ssl_ca_data": authorities or None,
    }


def _certificates(path: str) -> str:
    found = _CERTIFICATE.findall(Path(path).read_bytes())
    if not found:
        # Without any, the system's would be taken.
        raise ValueError(f"{path}: there is no certificate in it (redis.tls.rootcas)")
    return "\n".join(block.decode("ascii") for block in found)
