"""What Google's JSON API answers: pages of listings, outcomes of deletes, errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import Column, MalformedListing, json_columns
from registry_drivers.multipart import Part
from registry_drivers.object_client import is_passing

T = TypeVar("T")


class Item(msgspec.Struct):
    name: str
    size: str = "0"
    updated: str = ""
    md5: str = msgspec.field(default="", name="md5Hash")


class Items(msgspec.Struct):
    """An answer of ``objects.list``."""

    kind: str
    items: list[Item] = msgspec.field(default_factory=list)
    prefixes: list[str] = msgspec.field(default_factory=list)
    token: str = msgspec.field(default="", name="nextPageToken")


class Rewrite(msgspec.Struct):
    done: bool = False
    token: str = msgspec.field(default="", name="rewriteToken")
    rewritten: str = msgspec.field(default="", name="totalBytesRewritten")


decode_rewrite = msgspec.json.Decoder(Rewrite).decode
decode_items = msgspec.json.Decoder(Items).decode
_WANTED = (b"name", b"size", b"updated", b"md5Hash")
decode_item = msgspec.json.Decoder(Item).decode


def cut_page(document: bytes) -> tuple[Items, list[Column]]:
    """What stands around the rows of a listing, and the rows as columns.

    Cut out of the text, which costs a third of making an object of each; where a text is not
    as it usually is, all of it is parsed.
    """
    start, stop = document.find(b"["), document.rfind(b"]")
    if document[:start].rstrip().endswith(b":") and stop > start:
        cut = json_columns(document[start : stop + 1], _WANTED)
        if cut is not None:
            return whole(document[: start + 1] + document[stop:]), cut
    answer = whole(document)
    items = answer.items
    return answer, [
        _encoded([item.name for item in items]),
        _encoded([item.size for item in items]),
        _encoded([item.updated for item in items]),
        _encoded([item.md5 for item in items]),
    ]


def whole(document: bytes) -> Items:
    """An answer of ``objects.list``.

    :raises MalformedListing: it is something else.
    """
    items = decoded(decode_items, document)
    if items.kind != "storage#objects":
        raise MalformedListing("the answer is no listing")
    return items


def _encoded(texts: Sequence[str]) -> Sequence[bytes]:
    # At once, which costs a third of doing it one by one; names have no NUL.
    return "\0".join(texts).encode().split(b"\0") if texts else ()


def outcome_of(key: str, part: Part) -> Outcome | str:
    """What became of a key; the reason as text for a fault that may pass."""
    if part.done:
        return Outcome(key, Deletion.DELETED)
    if part.status == 404:
        return Outcome(key, Deletion.GONE_ALREADY)
    code, message = told(part.data)
    text = f"{code}: {message} (HTTP {part.status})"
    return text if is_passing(part.status, code) else Outcome(key, Deletion.FAILED, text)


def decoded(decode: Callable[[bytes], T], data: bytes) -> T:
    """What *decode* makes of an answer.

    :raises MalformedListing: it is something else.
    """
    try:
        return decode(data)
    except msgspec.DecodeError as error:
        raise MalformedListing(f"the answer is not what was asked for: {error}") from error


def told(content: bytes) -> tuple[str, str]:
    """Reason and message of an error of the JSON API."""
    try:
        error = json.loads(content)["error"]
        return str(error.get("errors", [{}])[0].get("reason", "error")), str(error["message"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "error", content[:200].decode("utf-8", "replace").strip()
