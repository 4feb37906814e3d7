"""Asks a token server, which is somebody else's, and may take for ever.

Imported only where a registry names one.
"""

from __future__ import annotations

import socket
import ssl
from urllib.parse import SplitResult, quote

from registry_gc.guard.whole_answer import connection, cut_after

# What a path and a query may hold beside letters and digits; what is quoted already stays so.
_SAFE = "/%:@!$&'()*+,;=~?-._"


def get(url: SplitResult, authorization: str, timeout: float, limit: int) -> tuple[int, bytes]:
    """Status and body, at most *limit* bytes of it, of a GET of *url*; follows nothing.

    :param timeout: seconds for a connection, and for everything after it together.
    :raises TimeoutError: it takes longer.
    :raises OSError: there is no answer.
    :raises http.client.HTTPException: what it answers is not HTTP.
    :raises ValueError: there is no such host or port.
    """
    assert url.hostname
    tls = url.scheme == "https"
    host = url.hostname.encode("idna").decode("ascii") if ":" not in url.hostname else url.hostname
    named = f"[{host}]" if ":" in host else host
    headers = {
        "Host": f"{named}:{url.port}" if url.port else named,
        "Authorization": authorization,
        "Connection": "close",
    }
    path = quote(url.path or "/", _SAFE)
    connected = socket.create_connection((host, url.port or (443 if tls else 80)), timeout)
    try:
        if tls:
            context = ssl.create_default_context()
            connected = context.wrap_socket(
                connected, server_hostname=host, do_handshake_on_connect=False
            )
        with cut_after(connected, timeout):
            if isinstance(connected, ssl.SSLSocket):
                connected.do_handshake()
            asking = connection(connected, timeout)
            asking.request("GET", f"{path}?{quote(url.query, _SAFE)}", headers=headers)
            with asking.getresponse() as response:
                return response.status, response.read(limit)
    finally:
        connected.close()
