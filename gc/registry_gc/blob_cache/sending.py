"""Sends commands to the registry's Redis, and again where that may help.

All commands are removals, which do no harm when they are sent twice. The client library's own
tries are not used: they multiply, so that a Redis which hangs held up a run for minutes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from registry_gc.blob_cache.redis_config import RedisConfig

Command = tuple[str | bytes, ...]

_PAUSES = (0.2, 0.4, 0.8, 1.0)  # seconds before another try: a restart of Redis, not more
_PATIENCE = 20.0  # seconds after which there is no other try
_TIMEOUT = 5.0  # seconds, for a connection and for each answer
_SHORT_TIMEOUT = 1.0

# What the libraries below say, in their words, and what that means.
_HINTS = (
    ("certificate_required", "it wants a TLS client certificate: {pair}"),
    ("key_values_mismatch", "redis.tls.key is not the key of redis.tls.certificate"),
    ("hostname mismatch", "its TLS certificate is for another name: name it as that does"),
    ("ip address mismatch", "its TLS certificate is for another address: name it as that does"),
    ("certificate has expired", "its TLS certificate has expired: renew it"),
    (
        "certificate_verify_failed",
        "its TLS certificate cannot be verified: redis.tls.rootcas has to name who signed it",
    ),
    ("[ssl", "TLS with it fails: is redis.tls right, and does it speak TLS on that port?"),
)
_PAIR = "redis.tls.certificate and redis.tls.key"
_CLUSTER = "it is one node of a cluster: name all of its nodes in redis.addrs"
# A connection that ends like this may have been meant to be another kind of connection.
_ENDED = ("connection closed by server", "connection reset by peer", "eof occurred", "timeout conn")


class Unreachable(Exception):
    """Redis did not do what it was asked to; the message says why."""


class Sending:
    """A connection to the Redis of *config*, made when it is needed, from any thread.

    ``lost``: a removal has failed; until Redis answers again, each call is one short try.
    ``interrupted``: asked before another try, whether somebody has asked for an end.
    """

    def __init__(self, config: RedisConfig | None) -> None:
        self.lost = False
        self.interrupted: Callable[[], bool] = lambda: False
        self._config = config
        self._client: Any = None
        self._reached = False
        self._timeout = _TIMEOUT
        # The guard is asked in threads of its own.
        self._turn = threading.Lock()

    def send(self, commands: Sequence[Command]) -> None:
        """Send *commands*, and wait for all answers.

        :raises Unreachable: one of them failed.
        """
        assert self._config is not None
        try:
            from registry_gc.blob_cache.redis_client import FAILURES, may_pass
        except ImportError as error:
            raise Unreachable(
                "the client library is not installed: pip install 'registry-garbage-collect[redis]'"
            ) from error
        began = time.monotonic()
        with self._turn:
            for pause in (*_PAUSES, None):
                try:
                    self._send(self._config, commands)
                    self._reached = True
                    return
                except FAILURES as error:
                    self._drop()
                    late = time.monotonic() - began > _PATIENCE
                    hasty = late or self.lost or self.interrupted()
                    if pause is None or hasty or not may_pass(error):
                        raise Unreachable(_told(error, self._config, self._reached)) from error
                time.sleep(pause)

    def close(self) -> None:
        """Close the connections."""
        with self._turn:
            self._drop()

    def _send(self, config: RedisConfig, commands: Sequence[Command]) -> None:
        from registry_gc.blob_cache.redis_client import connect

        timeout = _SHORT_TIMEOUT if self.lost else _TIMEOUT
        if timeout != self._timeout:
            self._drop()
        if self._client is None:
            self._client, self._timeout = connect(config, timeout), timeout
        # Not one transaction: in a cluster the keys lie on several nodes.
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        pipeline.execute()

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _told(error: Exception, config: RedisConfig, reached: bool) -> str:
    """What *error* says, and what that means where the libraries' words do not tell.

    :param reached: it has answered before, so the config is right.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    low = said.lower()
    if type(error).__name__ in ("MovedError", "AskError"):
        return f"{_CLUSTER} ({said})"
    for words, meaning in _HINTS:
        if words in low:
            return f"{meaning.format(pair=_PAIR)} ({said})"
    if reached or not any(words in low for words in _ENDED):
        return said
    if not config.tls:
        return f"{said}; where it wants TLS, redis.tls has to say so"
    wants = "" if config.certificate else f", and does it want a client certificate ({_PAIR})?"
    return f"{said}; does it speak TLS on that port{wants or '?'}"
