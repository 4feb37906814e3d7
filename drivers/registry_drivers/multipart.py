"""Batches of requests in one: ``multipart/mixed`` bodies, as Google and Azure take them."""

from __future__ import annotations

import email
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from registry_drivers.web import Answer


@dataclass(frozen=True, slots=True)
class Part:
    """One answer out of a batch; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def done(self) -> bool:
        """Whether what was asked for was done: a 1xx is not yet an answer."""
        return 200 <= self.status < 300


def batch_of(requests: Sequence[str], prefix: str) -> tuple[bytes, str]:
    """Body and content type of a batch.

    :param requests: request lines and headers, without a blank line at the end.
    :param prefix: what comes before the number in each Content-ID.
    """
    boundary = f"batch_{uuid.uuid4()}"
    parts = [
        f"--{boundary}\r\n"
        "Content-Type: application/http\r\n"
        "Content-Transfer-Encoding: binary\r\n"
        f"Content-ID: {prefix}{number}{'>' if prefix.startswith('<') else ''}\r\n\r\n"
        f"{request}\r\n\r\n\r\n"
        for number, request in enumerate(requests)
    ]
    body = f"{''.join(parts)}--{boundary}--\r\n"
    return body.encode(), f"multipart/mixed; boundary={boundary}"


def parts_of(answer: Answer) -> dict[int, Part]:
    """The answers in *answer* by the number of their request; some may be missing."""
    kind = answer.headers.get("content-type", "")
    message = email.message_from_bytes(b"Content-Type: %b\r\n\r\n" % kind.encode() + answer.data)
    found: dict[int, Part] = {}
    for part in message.walk():
        number = re.search(r"(\d+)>?$", part.get("Content-ID", ""))
        payload = part.get_payload(decode=True)
        if number is None or not isinstance(payload, bytes):
            continue
        head, _, body = payload.lstrip().replace(b"\r\n", b"\n").partition(b"\n\n")
        line, _, rest = head.partition(b"\n")
        status = re.match(rb"HTTP/[\d.]+ (\d{3})", line)
        if status:
            headers = email.message_from_bytes(rest).items()
            found[int(number[1])] = Part(
                int(status[1]), {name.lower(): value for name, value in headers}, body
            )
    return found
