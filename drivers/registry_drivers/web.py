"""HTTP for the object stores: one pool of connections, the operator's CAs and proxies.

Nothing is followed, retried or decoded here. Messages name host and path and leave out the query,
which may hold a signature.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from registry_drivers.errors import DriverConfigError, StorageError, TooLarge, Unavailable

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
CONNECTIONS = 64
_DIGITS = 10  # more seconds than anybody waits
# In the order in which boto3, requests and OpenSSL look for them.
CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

# What OpenSSL says of a certificate that nobody known has signed; waiting does not help.
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
CA_HINT = f"name the CA's file with {CA_VARIABLES[0]} or {CA_VARIABLES[-1]}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def date(self) -> float | None:
        """The server's clock, in seconds since the epoch."""
        return date_of(self.headers.get("date", ""))

    @property
    def wait(self) -> float:
        """Seconds for which a server that is overloaded asks to be left alone; 0 for no word."""
        told = self.headers.get("retry-after", "").strip()
        if self.status not in (429, 503):
            return 0.0
        if told.isascii() and told.isdigit() and len(told) < _DIGITS:
            return float(told)
        until, now = date_of(told), self.date
        return max(0.0, until - now) if until is not None and now is not None else 0.0


def date_of(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date; None when it is none."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None


def ca_bundle(environment: Mapping[str, str] = os.environ) -> str | None:
    """The CA file (or folder) that the environment names.

    :raises DriverConfigError: it is not there.
    """
    for name in CA_VARIABLES:
        if path := environment.get(name):
            if not os.path.exists(path):
                raise DriverConfigError(f"{name} names {path}, which does not exist")
            return path
    return None


def ca_certificates() -> bytes | None:
    """The certificates of :func:`ca_bundle` as PEM."""
    bundle = ca_bundle()
    if bundle is None or os.path.isdir(bundle):
        return None
    return Path(bundle).read_bytes()


class Web:
    """Sends requests from any thread.

    :param verify: whether certificates are checked.
    """

    def __init__(self, *, verify: bool = True) -> None:
        self._verify = verify
        self._pools: dict[tuple[str, str], urllib3.PoolManager] = {}

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        limit: int | None = None,
    ) -> Answer:
        """Send one request and return its whole answer.

        :param limit: bytes of a successful answer that the caller takes at most.
        :raises Unavailable: no answer, or not all of it.
        :raises StorageError: the server's certificate is not trusted.
        :raises TooLarge: the answer has more than *limit* bytes.
        """
        place = urlsplit(url)
        try:
            response = self._pool(place.scheme, place.hostname or "").request(
                method,
                url,
                headers=dict(headers),
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                data = _data_of(response, limit)
                response.drain_conn()
            except StorageError:
                # What comes after it is never taken for the answer to another request.
                response.close()
                raise
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = f"{method} {place.scheme}://{place.netloc}{place.path}: {_reason(error)}"
            if UNTRUSTED in reason:
                raise StorageError(f"{reason}; {CA_HINT}") from None
            raise Unavailable(reason) from None
        lower = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, lower, data)

    def _pool(self, scheme: str, host: str) -> urllib3.PoolManager:
        # Two threads may both make one; the loser's is dropped unused.
        pool = self._pools.get((scheme, host))
        if pool is None:
            pool = self._pools.setdefault((scheme, host), self._make_pool(scheme, host))
        return pool

    def _make_pool(self, scheme: str, host: str) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        context = self._context() if scheme == "https" else None
        proxy = None if not host or proxy_bypass(host) else getproxies().get(scheme)
        if not proxy:
            return urllib3.PoolManager(
                num_pools=4, maxsize=CONNECTIONS, timeout=timeout, ssl_context=context
            )
        place = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = f"{place.username}:{place.password or ''}" if place.username else None
        return urllib3.ProxyManager(
            place._replace(netloc=place.netloc.rpartition("@")[2]).geturl(),
            num_pools=4,
            maxsize=CONNECTIONS,
            timeout=timeout,
            ssl_context=context,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        )

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if not self._verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        if bundle := ca_bundle():
            folder = os.path.isdir(bundle)
            context.load_verify_locations(
                cafile=None if folder else bundle, capath=bundle if folder else None
            )
        elif not _system_has_certificates():
            with contextlib.suppress(ImportError):
                import certifi

                context.load_verify_locations(cafile=certifi.where())
        return context

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            pool.clear()


def _system_has_certificates() -> bool:
    """Small container images have none; the SDKs bring theirs."""
    paths = ssl.get_default_verify_paths()
    return bool(paths.cafile) or (os.path.isdir(paths.capath) and bool(os.listdir(paths.capath)))


def _data_of(response: urllib3.BaseHTTPResponse, limit: int | None) -> bytes:
    if response.status < 200:
        raise Unavailable(f"HTTP {response.status} is not yet an answer")
    if limit is None or response.status >= 300:
        return response.read()
    told = response.headers.get("content-length", "0")
    if not (told.isascii() and told.isdigit()):
        raise Unavailable(f"nobody knows how long an answer of {told!r} bytes is")
    data = b"" if int(told) > limit else response.read(limit + 1)
    if int(told) > limit or len(data) > limit:
        raise TooLarge(f"more than the {limit} bytes allowed")
    return data


def _reason(error: BaseException | None) -> str:
    # urllib3 puts the URL, and with it a signature, into its messages; the cause has none.
    if isinstance(error, urllib3.exceptions.MaxRetryError):
        error = error.reason
    if isinstance(error, urllib3.exceptions.SSLError):
        return f"TLS: {error.args[0] if error.args else error}"
    # A refused connection is a kind of time-out to urllib3.
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "cannot connect" if error.__cause__ is None else f"cannot connect: {error.__cause__}"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    return f"{type(error).__name__}: connection broken"
