"""What Azure's XML says: pages of listings, outcomes of deletes, errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes
from xml.sax.saxutils import escape

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import (
    MalformedListing,
    columns,
    http_times,
    integers,
    key_of,
    md5s_of_base64,
    page_of,
    text_of,
    unescape,
)
from registry_drivers.multipart import Part
from registry_drivers.object_client import LINE_END, Level, Listed, is_passing

_ENCODED_NAME = re.compile(rb'<Name Encoded="true">([^<]*)</Name>')


def whole_listing(document: bytes) -> bytes:
    """*document* with names as they are in XML, those too that XML cannot hold.

    :raises MalformedListing: it is no listing, or not all of it.
    """
    if not document.rstrip().endswith(b"</EnumerationResults>") or (b"<NextMarker" not in document):
        raise MalformedListing("the answer is no whole listing")
    if b"<Name Encoded" in document:
        document = _ENCODED_NAME.sub(
            lambda match: b"<Name>%b</Name>" % _escaped(unquote_to_bytes(match[1])), document
        )
    return document


def page_in(document: bytes, folder: bytes, after: bytes) -> Listed:
    """A page of a listing, without the names up to *after*: listings cannot begin at one."""
    wanted = [b"Name", b"Last-Modified", b"Etag", b"Content-Length", b"Content-MD5"]
    keys, modified, etags, sizes, md5s = columns(document, b"Blob", wanted)
    if b"&" in b"".join(keys):
        keys = [unescape(key) for key in keys]
    if b"<ResourceType>directory" in document:
        # Accounts with a hierarchical namespace list their directories as blobs.
        (kinds,) = columns(document, b"Blob", [b"ResourceType"])
        pairs = zip(keys, kinds, strict=True)
        keys = [key + b"/" if kind == b"directory" else key for key, kind in pairs]
    page = page_of(
        keys,
        integers(sizes),
        http_times(modified),
        md5s_of_base64(md5s),
        folder=folder,
        after=after,
        etags=etags,
    )
    return Listed(page, text_of(document, b"NextMarker"), keys)


def level_in(document: bytes) -> Level:
    """A page of what is directly below a folder."""
    (folders,) = columns(document, b"BlobPrefix", [b"Name"])
    (files,) = columns(document, b"Blob", [b"Name"])
    return Level(
        [key_of(unescape(name)) for name in folders],
        [key_of(unescape(name)) for name in files],
        text_of(document, b"NextMarker"),
    )


def _escaped(name: bytes) -> bytes:
    return escape(name.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def outcome_of(key: str, part: Part) -> Outcome | str:
    """What became of a key; the reason as text for a fault that may pass."""
    if part.done:
        return Outcome(key, Deletion.DELETED)
    code, message = told(part.headers, part.data)
    if code == "BlobNotFound":
        return Outcome(key, Deletion.GONE_ALREADY)
    text = f"{code}: {message} (HTTP {part.status})"
    return text if is_passing(part.status, code) else Outcome(key, Deletion.FAILED, text)


def told(headers: Mapping[str, str], data: bytes) -> tuple[str, str]:
    """Code and message of an error; a HEAD has a header only."""
    code = headers.get("x-ms-error-code", "") or text_of(data, b"Code")
    # The first line: after it come the request's id and time.
    lines = LINE_END.split(text_of(data, b"Message").lstrip())
    return code, lines[0] if lines[0] else "the storage refused"
