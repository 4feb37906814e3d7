"""Connects to a Redis, a cluster of them, or the one that Sentinels name.

Imported only where a registry has one: the client library is an extra.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from registry_gc.blob_cache.redis_config import RedisConfig

# The last two: a host, a password or a certificate that the library cannot make use of.
FAILURES = (RedisError, RedisClusterException, OSError, ValueError, TypeError)
"""What sending to Redis raises."""
# What is around them in a bundle is comments, in whatever language; Go reads no other blocks.
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[\x00-\x7f]*?-----END CERTIFICATE-----")
# These the library has no types for.
_SENTINEL: Any = Sentinel
_NODE: Any = ClusterNode


def may_pass(error: Exception) -> bool:
    """Whether *error*, one of :data:`FAILURES`, may be over soon."""
    lost = isinstance(error, LostConnection | NoAnswer | RedisClusterException | OSError)
    return lost and not isinstance(error, AuthenticationError)


def connect(config: RedisConfig, timeout: float) -> Any:
    """A client for *config* that tries once; most connect only when they are asked something.

    :param timeout: seconds, for a connection and for each answer.
    :raises RedisError: no node of a cluster answers.
    :raises OSError: a file of certificates or a key cannot be read.
    :raises ValueError: there is no certificate in a file of authorities.
    """
    common: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "protocol": 2,  # also what servers before 6 speak
        **_tls(config),
    }
    login: dict[str, Any] = {
        "username": config.username or None,
        "password": config.password or None,
    }
    retry = Retry(NoBackoff(), 0)
    if config.master:
        sentinel_login: dict[str, Any] = {
            "username": config.sentinel_username or None,
            "password": config.sentinel_password or None,
            "retry": retry,
        }
        sentinels = _SENTINEL(
            list(config.addresses),
            sentinel_kwargs={**common, **sentinel_login},
            **common,
            **login,
        )
        return sentinels.master_for(config.master, db=config.db, retry=retry)
    if config.cluster:
        # Its own tries are for nodes whose slots have moved.
        nodes = [_NODE(host, port) for host, port in config.addresses]
        return RedisCluster(startup_nodes=nodes, **common, **login)
    ((host, port),) = config.addresses
    where: dict[str, Any] = {"host": host, "port": port} if port else {"unix_socket_path": host}
    return Redis(**where, db=config.db, retry=retry, **common, **login)


def _tls(config: RedisConfig) -> dict[str, Any]:
    if not config.tls:
        return {}
    for key, path in (("certificate", config.certificate), ("key", config.key)):
        if path:
            # Of a file that it cannot read the library does not tell the name.
            _read(path, key)
    authorities = "\n".join(map(_certificates, config.authorities))
    return {
        "ssl": True,
        "ssl_cert_reqs": "required" if config.verify else "none",
        "ssl_check_hostname": config.verify,
        "ssl_certfile": config.certificate or None,
        "ssl_keyfile": config.key or None,
        "ssl_ca_data": authorities or None,
    }


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (redis.tls.{key})", path) from error


def _certificates(path: str) -> str:
    found = _CERTIFICATE.findall(_read(path, "rootcas"))
    if not found:
        # Without any, the system's would be taken.
        raise ValueError(f"{path}: there is no certificate in it (redis.tls.rootcas)")
    return "\n".join(block.decode("ascii") for block in found)
