"""Hands metrics over: to a file for node_exporter's textfile collector, or to a Pushgateway."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from registry_gc.metrics import JOB, KEPT, PREFIX
from registry_gc.report.whole_file import replace_file

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

_SECONDS = 15.0
_MOST_BYTES = 16 << 20


class MetricsError(Exception):
    """The metrics could not be handed over; says where and why."""


def library_is_missing() -> str:
    """What to install, or ``""`` when it is there."""
    try:
        import prometheus_client  # noqa: F401  # whether it is there
    except ImportError as error:
        return f"metrics need {error.name}: pip install 'registry-garbage-collect[metrics]'"
    return ""


class _Fixed:
    """Families as a collector."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _registry(families: Sequence[Metric]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(_Fixed(families))
    return registry


def write_file(path: str, families: Sequence[Metric], *, keep_all: bool = False) -> None:
    """Replace *path* at one blow; what this run could not tell is taken from the old file.

    :param keep_all: take everything else that is there, too: another command told it.

    The new file may be read by everybody: node_exporter runs as a user of its own.

    :raises MetricsError: it cannot be written, or another program's file is there.
    """
    from prometheus_client import generate_latest

    try:
        told = {family.name for family in families}
        old = [one for one in _old(path) if one.name not in told]
        kept = [one for one in old if keep_all or one.name in KEPT]
        data = generate_latest(_registry([*families, *kept]))
        replace_file(path, data, 0o644)
    except OSError as error:
        raise MetricsError(f"{path}: {error.strerror or error}") from error


def _old(path: str) -> list[Metric]:
    """The families of the last run's file; none where there is none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise MetricsError(f"{path}: no file, left as it is")
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return []
    if text.strip() and not text.startswith(f"# HELP {PREFIX}"):
        raise MetricsError(f"{path}: holds something else than these metrics, left as it is")
    try:
        return list(text_string_to_metric_families(text))
    except ValueError:
        # Half a file, such as a disk leaves that lost its power: there is nothing to keep.
        return []


def push(url: str, storage: str, families: Sequence[Metric]) -> None:
    """Send to the gateway at *url*, for the job ``registry-gc`` and this storage.

    By POST, which leaves what is not sent as it was. A user and password in *url* are used for
    basic authentication, and shown nowhere.

    :raises MetricsError: the gateway did not take it.
    """
    from prometheus_client import pushadd_to_gateway
    from prometheus_client.exposition import basic_auth_handler, default_handler

    plain, user, password = split_url(url)

    def handler(
        url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        if user is None:
            return default_handler(url, method, timeout, headers, data)
        return basic_auth_handler(url, method, timeout, headers, data, user, password)

    try:
        pushadd_to_gateway(plain, JOB, _registry(families), {"storage": storage}, _SECONDS, handler)
    except (OSError, ValueError) as error:
        body = getattr(error, "read", bytes)()[:300].decode("utf-8", "replace").strip()
        raise MetricsError(f"{plain}: {error}" + (f": {body}" if body else "")) from error


def split_url(url: str) -> tuple[str, str | None, str]:
    """*url* without its user and password, and both of them.

    :raises ValueError: it is no HTTP address.
    """
    from urllib.parse import unquote

    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        # What it says may quote a password that holds a character which ends an address.
        whole = False
    if not whole:
        raise ValueError(
            "no address of a Pushgateway; such as http://localhost:9091 (what is not a letter or a "
            "digit in a user or password has to be written as %XX)"
        )
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    if parts.username is None:
        return plain.rstrip("/"), None, ""
    return plain.rstrip("/"), unquote(parts.username), unquote(parts.password or "")
