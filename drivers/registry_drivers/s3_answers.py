"""What S3's XML says, and what it has to be told: keys, pages, deletes and their errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes
from xml.sax.saxutils import escape

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import Column, MalformedListing, columns, key_of, text_of, unescape
from registry_drivers.errors import AccessDenied, StorageError, Unsupported
from registry_drivers.object_client import Answered, is_passing

_WHITE = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}
# Source: XML 1.0, production 2.
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


_NOT_THERE = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})

# Whatever stands before the name: so the search is for a fixed text, which is five times as fast.
_KEY_COUNT = re.compile(rb"KeyCount(?: [^>]*)?>\s*([0-9]+)\s*</")
_MOST_KEYS = re.compile(rb"MaxKeys(?: [^>]*)?>\s*([0-9]+)\s*</")
# Before or after the rows, beside a prefix, a bound and tokens; a search through the rows would
# cost more than all the rest.
_BESIDE_ROWS = 8192

_ERROR = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Error[\s>]")


def is_not_there(said: str) -> bool:
    """Whether an error's code or message says that an object is gone, a version or an upload.

    Amazon's store says nothing against deleting what is gone; a proxy's own "not found" is no word
    on the object.
    """
    return said.partition(":")[0] in _NOT_THERE


def is_foreign(document: bytes) -> bool:
    """Whether what comes with "not found" is somebody else's: a proxy's page, as a rule.

    A store sends an error with a code, and some send nothing, which is no page either.
    """
    said = document.strip()
    return bool(said) and not any(word in said for word in (b"<Error", b"Code>", b"NoSuch"))


def is_error(document: bytes) -> bool:
    """Whether an answer is an error, whatever its status: S3 sends 200 before it knows."""
    return _ERROR.match(document) is not None


def xml_holds(key: str) -> bool:
    """Whether XML can name *key*; one that it cannot would spoil a whole request."""
    return not _NOT_IN_XML.search(key)


def delete_body(versions: Sequence[tuple[str, str]]) -> bytes:
    """What DeleteObjects is sent: keys, each with a version's id or an empty one for none."""
    objects = "".join(
        f"<Object><Key>{escape(key, _WHITE)}</Key>"
        f"{f'<VersionId>{escape(version)}</VersionId>' if version else ''}</Object>"
        for key, version in versions
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{objects}<Quiet>false</Quiet></Delete>"
    ).encode()


def refused_delete(error: StorageError, *, versions: bool) -> StorageError:
    """*error* of a whole DeleteObjects, with that name and the permission that it may lack.

    A listing and a read have come to their ends by then, so that nothing else says which request
    it was. What is passing, or is about the bucket or the config, says enough.
    """
    if type(error) not in (AccessDenied, Unsupported, StorageError):
        return error
    text = f"DeleteObjects: {error.message}"
    # Other codes are about the signature, the session or the clock.
    if isinstance(error, AccessDenied) and error.message.startswith(("AccessDenied", "error")):
        text += f"; it needs {'s3:DeleteObjectVersion' if versions else 's3:DeleteObject'}"
    return type(error)(text, path=error.path, driver=error.driver)


def is_truncated(document: bytes, *ends: bytes) -> bool:
    """Whether a listing goes on.

    :param ends: how a whole document may end; a page that was cut off is no page.
    """
    if not document.rstrip().endswith(ends):
        raise MalformedListing("the answer is no whole listing")
    truncated = text_of(document, b"IsTruncated").strip().lower()
    if truncated not in ("true", "false"):
        raise MalformedListing("the listing does not say whether it is whole")
    return truncated == "true"


def next_token(document: bytes, rows: int) -> str:
    """What asks for what comes after a page of objects with *rows*; empty after the last.

    A page that says both that it is the last and where it goes on is not believed: what comes then
    is asked for, and nothing when it was the last. (Listings of uploads, of parts and, on some
    stores, of versions say so too. Nothing is missed there but what could have been deleted.)
    """
    truncated = is_truncated(document, b"ListBucketResult>")
    token = text_of(document, b"NextContinuationToken")
    if truncated and not token:
        raise MalformedListing("the listing goes on, but does not say where")
    return token if truncated or rows else ""


def is_full(document: bytes, rows: int, asked: int) -> bool:
    """Whether a page of objects has as many *rows* as it may have.

    :param asked: how many it was asked to have. A store that gives fewer says how many.
    """
    told = _beside_rows(_MOST_KEYS, document)
    most = asked if told is None or len(told[1]) > 9 else min(asked, int(told[1]))
    return rows > 0 and rows >= most


def check_count(document: bytes, rows: int) -> None:
    """Look whether a page of objects has the *rows* that it says it has, if it says so.

    More than it says are no fault: Ceph and NooBaa, as others once did, count no folders.

    :raises MalformedListing: it has fewer. What one listing leaves out would be taken for gone.
    """
    told = _beside_rows(_KEY_COUNT, document)
    # A number of more digits is none that a page can have, nor one that Python likes to read.
    if told is not None and (len(told[1]) > 9 or rows < int(told[1])):
        raise MalformedListing(
            f"the listing has {rows} rows, and says that it has {told[1][:20].decode()}"
        )


def _beside_rows(wanted: re.Pattern[bytes], document: bytes) -> re.Match[bytes] | None:
    """Where *wanted* is before or after the rows of a listing."""
    found = wanted.search(document, 0, _BESIDE_ROWS)
    return found or wanted.search(document, max(0, len(document) - _BESIDE_ROWS))


def next_key(document: bytes) -> str:
    """The last key of a page of versions or uploads, after which the next one begins."""
    (key,) = names_of(document, [escape(text_of(document, b"NextKeyMarker")).encode()])
    if not key:
        raise MalformedListing("the listing goes on, but does not say where")
    return key_of(key)


def names_of(document: bytes, names: Column) -> Column:
    """Keys as they are, from how they stand in the document."""
    joined = b"".join(names)
    if b"&" in joined:
        names = [unescape(name) for name in names]
    if (b"%" in joined or b"+" in joined) and text_of(document, b"EncodingType") == "url":
        names = [unquote_to_bytes(name.replace(b"+", b" ")) for name in names]
    return names


def errors_of(document: bytes) -> Answered:
    """What an answer to DeleteObjects says against keys."""
    found: Answered = {}
    for key, code, message in zip(
        *columns(document, b"Error", [b"Key", b"Code", b"Message"]), strict=True
    ):
        name = key_of(unescape(key))
        said = unescape(code).decode("utf-8", "replace")
        text = f"{said}: {unescape(message).decode('utf-8', 'replace')}".rstrip(": ")
        if is_not_there(said):
            found[name] = Outcome(name, Deletion.GONE_ALREADY)
        else:
            found[name] = text if is_passing(200, said) else Outcome(name, Deletion.FAILED, text)
    return found
