"""What a manifest says of its parts, with their sizes: bytes in, parts out. Pure.

For those who look whether everything is there. Deliberately not :mod:`registry_gc.manifests`,
which collections live by: this is a second reading of the same specifications, with another JSON
library and no shortcuts, so that a mistake in the one is not repeated by the other.

Sources: as those of :mod:`registry_gc.manifests`.
"""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from registry_gc.digest import InvalidDigest, check_digest
from registry_gc.manifests import ARTIFACTS, IMAGES, INDEXES, MANIFESTS, SCHEMA_1


class Role(enum.IntEnum):
    """What a part is to its manifest.

    ``CHILD`` is a manifest. ``ENTRY`` is listed by an index, and its media type does not tell
    whether it is a manifest or a blob; ``LISTED`` is too, and called a blob, as a BuildKit cache
    lists its layers. ``FOREIGN`` has addresses of its own, and need not be here.
    """

    CONFIG = 0
    LAYER = 1
    CHILD = 2
    ENTRY = 3
    LISTED = 4
    FOREIGN = 5


UNSTATED = -1
"""The size of a part of which the manifest does not say it, as schema 1 never does."""

_NO_SIZE = 1 << 63
"""Bytes. What states as many states nothing: collections do not read sizes, and no file has it."""
_TWICE = object()
_MOST_DIGITS = 1000  # far fewer than the 4,300 at which Python refuses to make a number of them


@dataclass(frozen=True, slots=True)
class Part:
    """One descriptor; ``size`` in bytes, or :data:`UNSTATED`."""

    role: Role
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Described:
    """A manifest's parts in its own order, and what it describes itself, if anything."""

    parts: tuple[Part, ...]
    subject: str | None
    schema_1: bool


class Indescribable(ValueError):
    """Bytes that are no manifest; the message says why."""


def describe(data: bytes) -> Described:
    """The parts of the manifest *data*.

    :raises Indescribable: not JSON, or not in the form that the specifications give it.
    """
    try:
        document = json.loads(data, object_pairs_hook=_lower_case, parse_int=_integer)
        if not isinstance(document, dict):
            raise Indescribable("not a JSON object")
        return _described(document)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Indescribable):
            raise
        raise Indescribable(str(error)) from error


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < _MOST_DIGITS else _NO_SIZE


def _lower_case(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with its keys in lower case, since Go's decoder takes them in any.

    A key that is there twice in one spelling has a value that nothing of ours may have.
    """
    folded = {key.casefold(): value for key, value in pairs}
    if len(folded) != len(pairs) and len(folded) != len(dict(pairs)):
        raise Indescribable("a key is there twice, in two spellings")
    if len(folded) != len(pairs):
        counts = Counter(key.casefold() for key, _ in pairs)
        folded |= {key: _TWICE for key, count in counts.items() if count > 1}
    return folded


def _described(document: dict[str, Any]) -> Described:
    media_type = _media_type(document.get("mediatype"))
    schema_1 = "fslayers" in document and (
        document.get("schemaversion") == 1 or media_type in SCHEMA_1
    )
    _check_form(document, media_type, schema_1=schema_1)
    parts = [*_parts(document)]
    subject = document.get("subject")
    return Described(
        parts=tuple(dict.fromkeys(parts)),
        subject=None if subject is None else _digest(subject),
        schema_1=schema_1,
    )


def _check_form(document: dict[str, Any], media_type: str, *, schema_1: bool) -> None:
    """See that *document* has what makes it an image, an index or an artifact.

    :raises Indescribable: it has not.
    """
    is_image = document.get("config") is not None and "layers" in document
    if schema_1 or media_type in ARTIFACTS:
        whole = True
    elif media_type in INDEXES:
        whole = "manifests" in document
    elif media_type in IMAGES:
        whole = is_image or "blobs" in document
    else:
        whole = is_image or "manifests" in document or "blobs" in document
    if not whole:
        raise Indescribable(f"neither image, index nor artifact ({media_type[:100] or 'no type'})")


def _parts(document: dict[str, Any]) -> Iterator[Part]:
    if document.get("config") is not None:
        yield _part(document["config"], Role.CONFIG)
    for name in ("layers", "blobs"):
        for item in _items(document, name):
            yield _part(item, Role.FOREIGN if _is_foreign(item) else Role.LAYER)
    for item in _items(document, "fslayers"):
        yield Part(Role.LAYER, _digest(item, "blobsum"), UNSTATED)
    for item in _items(document, "manifests"):
        yield _part(item, _entry_role(_media_type(item.get("mediatype"))))


def _is_foreign(item: dict[str, Any]) -> bool:
    """Whether a layer lies elsewhere: it has addresses, or a type that nobody pushes."""
    media_type = _media_type(item.get("mediatype"))
    return bool(item.get("urls")) or ".foreign." in media_type or "nondistributable" in media_type


def _entry_role(media_type: str) -> Role:
    """What an entry of an index is; a BuildKit cache lists layers and a config of its own."""
    if media_type in MANIFESTS:
        return Role.CHILD
    marks = (".layer.", ".rootfs.", "application/vnd.buildkit.")
    return Role.LISTED if any(mark in media_type for mark in marks) else Role.ENTRY


def _items(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of a list that may be null, as Go writes an empty one, or not there."""
    items = document.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Indescribable(f"{name}: not a list of objects")
    return items


def _part(item: Any, role: Role) -> Part:
    digest = _digest(item)
    size = item.get("size")
    stated = isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _NO_SIZE
    return Part(role, digest, size if stated else UNSTATED)


def _digest(item: Any, name: str = "digest") -> str:
    digest = item.get(name) if isinstance(item, dict) else None
    if not isinstance(digest, str):
        raise Indescribable(f"a part without its {name}")
    try:
        return check_digest(digest)
    except InvalidDigest as error:
        raise Indescribable(str(error)) from error


def _media_type(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Indescribable("a media type that is no text")
    return value.partition(";")[0].strip().lower()
