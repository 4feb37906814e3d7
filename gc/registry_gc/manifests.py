"""What a manifest references: bytes in, references out. Pure.

Every field that may name content is read whatever the media type says, so that a manifest which
lies about its type, or has none, keeps more alive, never less. What cannot be understood raises
:class:`UnreadableManifest`, and the caller holds on to everything that it might have named.

Source: OCI image specification 1.1; Docker's image manifest v2 schemas 1 and 2; ORAS.
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec

from registry_gc.digest import InvalidDigest, check_digests, plain_keys

RULES_VERSION = 3
"""Raised whenever the same bytes would yield other references: caches carry it."""

SIZE_LIMIT = 32 << 20
"""Bytes. Distribution refuses manifests over 4 MiB; what is far larger is no manifest."""

SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
IMAGES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    }
)
INDEXES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.index.v1+json",
    }
)
ARTIFACTS = frozenset(
    {
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.cncf.oras.artifact.manifest.v1+json",
    }
)
MANIFESTS = SCHEMA_1 | IMAGES | INDEXES | ARTIFACTS


class ManifestKind(enum.IntEnum):
    """What a manifest is."""

    IMAGE = 1
    INDEX = 2
    ARTIFACT = 3
    SCHEMA_1 = 4


class UnreadableManifest(ValueError):
    """Bytes that are no manifest we understand; the message says why."""


class References(msgspec.Struct, frozen=True):
    """What one manifest names, as digests in the order of the manifest, each once.

    ``blobs``: config, layers, artifact blobs, and entries of an index that are blobs (a BuildKit
    cache has them). ``children``: entries of an index that are manifests. ``maybe``: entries
    whose media type does not tell; they are read, and followed when they are manifests.
    ``linked``: entries called blobs, followed when some repository links them as manifests.
    ``subject``: what this describes. ``blob_keys``: the keys of ``blobs``, one after the other,
    where all are sha256 digests.
    """

    kind: ManifestKind
    blobs: tuple[str, ...]
    children: tuple[str, ...]
    maybe: tuple[str, ...]
    linked: tuple[str, ...]
    subject: str | None
    blob_keys: bytes | None = None


# None can hold itself, so Python's collector need not know of them: a tenth of the decoding.
class _Descriptor(msgspec.Struct, gc=False):
    digest: str
    mediaType: str | None = None  # the manifest's own spelling


class _FsLayer(msgspec.Struct, gc=False):
    blobSum: str  # the manifest's own spelling


class _Manifest(msgspec.Struct, gc=False):
    mediaType: str | None = None  # the manifest's own spelling
    schemaVersion: int | None = None  # the manifest's own spelling
    config: _Descriptor | None = None
    # Programs in Go write an empty list as null; that is another thing than no list at all.
    layers: list[_Descriptor] | msgspec.UnsetType | None = msgspec.UNSET
    blobs: list[_Descriptor] | msgspec.UnsetType | None = msgspec.UNSET
    manifests: list[_Descriptor] | msgspec.UnsetType | None = msgspec.UNSET
    fsLayers: list[_FsLayer] | None = None  # the manifest's own spelling
    subject: _Descriptor | None = None


_DECODER = msgspec.json.Decoder(_Manifest)
# The name of the type is what msgspec says of it.
_TWICE = type("a key that is there twice", (), {})()
_MOST_DIGITS = 1000
_LISTS = [f'"{name}"'.encode() for name in _Manifest.__struct_fields__ if name != "mediaType"]
_NAMES = {name.casefold(): name for name in (*_Manifest.__struct_fields__, "digest", "blobSum")}


def parse(data: bytes) -> References:
    """The references of the manifest *data*.

    :raises UnreadableManifest: not JSON, not an object, a field of another type than the
        specification's, a text that is no digest, or nothing that a manifest must have.
    """
    try:
        manifest = _DECODER.decode(data)
        plain = _plain_image(manifest, data)
        if plain is not None:
            return plain
    except (ValueError, RecursionError):
        # Whatever is wrong, or only unusual, is found out the long way.
        pass
    try:
        manifest = _decode(data)
        kind = _kind(manifest)
    except (ValueError, RecursionError) as error:
        raise UnreadableManifest(f"not a manifest: {error}") from error
    if kind is None:
        raise UnreadableManifest(_complaint(manifest))
    try:
        return _references(kind, manifest)
    except InvalidDigest as error:
        raise UnreadableManifest(str(error)) from error


def parse_many(contents: Sequence[bytes]) -> list[References | UnreadableManifest]:
    """What :func:`parse` returns or raises for each of *contents*, in their order.

    The digests of all ordinary images are checked by one call, which takes half of the time.
    """
    texts = [_plain_texts(data) for data in contents]
    named = [*chain.from_iterable(blobs for blobs in texts if blobs is not None)]
    keys = plain_keys(named)
    found: list[References | UnreadableManifest] = []
    start = 0
    for data, blobs in zip(contents, texts, strict=True):
        own = None
        if blobs is not None:
            stop = start + 32 * len(blobs)
            # Where one of them is no sha256 digest, it is found out which.
            own = plain_keys(blobs) if keys is None else keys[start:stop]
            start = stop
        if blobs is not None and own is not None:
            found.append(References(ManifestKind.IMAGE, tuple(blobs), (), (), (), None, own))
        else:
            found.append(_parsed(data))
    return found


def _plain_texts(data: bytes) -> list[str] | None:
    """What an image as nearly all are names, not looked at; None for any other manifest."""
    try:
        manifest = _DECODER.decode(data)
    except (ValueError, RecursionError):
        return None
    return None if manifest.subject is not None else _plain_blobs(manifest, data)


def _parsed(data: bytes) -> References | UnreadableManifest:
    try:
        return parse(data)
    except UnreadableManifest as error:
        return error


def _plain_image(manifest: _Manifest, data: bytes) -> References | None:
    """The references of an image as nearly all are, in a third of the time; None for others.

    :raises InvalidDigest: a text is no digest.
    """
    blobs = _plain_blobs(manifest, data)
    keys = None if blobs is None else plain_keys(blobs)
    if blobs is None or keys is None:
        return None
    named = None if manifest.subject is None else manifest.subject.digest
    if named is not None:
        check_digests([named])
    return References(ManifestKind.IMAGE, tuple(blobs), (), (), (), named, blob_keys=keys)


def _plain_blobs(manifest: _Manifest, data: bytes) -> list[str] | None:
    """The texts of an image that names nothing twice and nothing elsewhere; None for others."""
    config, layers, subject = manifest.config, manifest.layers, manifest.subject
    if (
        config is None
        or not isinstance(layers, list)
        or (manifest.mediaType is not None and manifest.mediaType not in IMAGES)
        or manifest.manifests is not msgspec.UNSET
        or manifest.blobs is not msgspec.UNSET
        or manifest.fsLayers is not None
    ):
        return None
    blobs = [config.digest, *[layer.digest for layer in layers]]
    # More texts that look like digests than were found: a key in another spelling, perhaps.
    # Digests that are spelled with escapes do not look like it.
    if len(blobs) + (subject is not None) != data.count(b'"sha') or b"\\u" in data:
        return None
    return blobs if len(set(blobs)) == len(blobs) else None


def _media_type(text: str | None) -> str:
    return (text or "").partition(";")[0].strip().lower()


def _kind(manifest: _Manifest) -> ManifestKind | None:
    """What *manifest* is, or None when it lacks what that must have."""
    media_type = _media_type(manifest.mediaType)
    if manifest.fsLayers is not None and (manifest.schemaVersion == 1 or media_type in SCHEMA_1):
        return ManifestKind.SCHEMA_1
    if media_type in ARTIFACTS:
        return ManifestKind.ARTIFACT
    is_index = manifest.manifests is not msgspec.UNSET
    is_image = manifest.config is not None and manifest.layers is not msgspec.UNSET
    if media_type in INDEXES or (is_index and media_type not in IMAGES):
        return ManifestKind.INDEX if is_index else None
    if is_image:
        return ManifestKind.IMAGE
    return ManifestKind.ARTIFACT if manifest.blobs is not msgspec.UNSET else None


def _complaint(manifest: _Manifest) -> str:
    media_type = _media_type(manifest.mediaType) or "no media type"
    return f"neither an image, an index nor an artifact ({media_type[:100]})"


def _decode(data: bytes) -> _Manifest:
    """The fields of *data*, with keys in any case, as Go's decoder and so Distribution takes them.

    Looking for such keys takes as long as decoding. So it is done only where something is missing,
    or where there are more texts that look like digests than were found. Those may also be what
    a key said that is there twice, as decoders take the last of them.

    :raises ValueError: one that means something is there twice.
    """
    try:
        manifest = _DECODER.decode(data)
    except msgspec.ValidationError:
        if not _may_have_odd_keys(data):
            raise
    else:
        whole = _kind(manifest) is not None and _count(manifest) == data.count(b'"sha')
        whole = whole and b"\\u" not in data and _types_told_once(manifest, data)
        if whole:
            return manifest
        if not _may_have_odd_keys(data):
            return manifest if _keys_told_once(manifest, data) else _told_once(data)
    return msgspec.convert(json.loads(data, object_pairs_hook=_exact_case), _Manifest)


def _count(manifest: _Manifest) -> int:
    """How many digests the fields hold."""
    lists = _list(manifest.layers), _list(manifest.blobs), _list(manifest.manifests)
    single = (manifest.config is not None) + (manifest.subject is not None)
    return single + sum(map(len, lists)) + len(manifest.fsLayers or ())


def _types_told_once(manifest: _Manifest, data: bytes) -> bool:
    """Whether no entry of an index has two media types, which decide whether it is followed."""
    entries = _list(manifest.manifests)
    single = manifest, manifest.config, manifest.subject
    typed = sum(thing is not None and thing.mediaType is not None for thing in single)
    typed += sum(entry.mediaType is not None for entry in entries)
    return not entries or data.count(b'"mediaType"') <= typed


def _keys_told_once(manifest: _Manifest, data: bytes) -> bool:
    """Whether no key that means something can be there twice; a glance, where it suffices.

    Texts that look like digests are ordinary in annotations: images name their base so.
    """
    named = data.count(b'"digest"') + data.count(b'"blobSum"')
    return (
        named == _count(manifest)
        and all(data.count(name) < 2 for name in _LISTS)
        and _types_told_once(manifest, data)
    )


def _told_once(data: bytes) -> _Manifest:
    """The fields of *data*, of which each key that means something must be there once.

    :raises ValueError: it is not. Keys of what is nothing to us, as annotations, may be.
    """
    document = json.loads(data, object_pairs_hook=_with_doubts, parse_int=_integer)
    return msgspec.convert(document, _Manifest)


def _with_doubts(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a key that is there twice has a value that no field of ours takes."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        found |= {key: _TWICE for key, count in counts.items() if count > 1}
    return found


def _integer(digits: str) -> int:
    # Python refuses to make a number of more than 4,300 digits; none of them means anything.
    return int(digits) if len(digits) < _MOST_DIGITS else 0


def _may_have_odd_keys(data: bytes) -> bool:
    return not data.isascii() or _odd_key().search(data) is not None


@functools.cache
def _odd_key() -> re.Pattern[bytes]:
    """A key with capitals where it has none, or none where it has some; or one in escapes."""
    # Compiled where it is needed, which is seldom: at every start it took 2 ms and more.
    return re.compile(
        rb'"(?:(?!mediaType"|schemaVersion"|fsLayers"|blobSum")[a-z]*+[A-Z][A-Za-z]*+'
        rb'|mediatype|schemaversion|fslayers|blobsum)"\s*+:|\\u'
    )


def _exact_case(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with the keys that mean something in their own spelling.

    :raises ValueError: one is there twice. Which of them counts is not for us to say.
    """
    exact = {_NAMES.get(key.casefold(), key): value for key, value in pairs}
    if len(exact) != len(pairs):
        raise ValueError("a key is there twice")
    return exact


def _list(field: list[_Descriptor] | msgspec.UnsetType | None) -> list[_Descriptor]:
    return field if isinstance(field, list) else []


def _references(kind: ManifestKind, manifest: _Manifest) -> References:
    blobs = [] if manifest.config is None else [manifest.config.digest]
    blobs += [descriptor.digest for descriptor in _list(manifest.layers)]
    blobs += [descriptor.digest for descriptor in _list(manifest.blobs)]
    blobs += [layer.blobSum for layer in manifest.fsLayers or ()]
    children: list[str] = []
    maybe: list[str] = []
    linked: list[str] = []
    for child in _list(manifest.manifests):
        media_type = _media_type(child.mediaType)
        if media_type in MANIFESTS:
            children.append(child.digest)
        elif _is_blob(media_type):
            linked.append(child.digest)
        else:
            maybe.append(child.digest)
    subject = None if manifest.subject is None else manifest.subject.digest
    named = blobs + children + maybe + linked
    check_digests(named if subject is None else [*named, subject])
    stored = _once(blobs + linked)
    return References(
        kind=kind,
        blobs=stored,
        children=_once(children),
        maybe=_once(maybe),
        linked=_once(linked),
        subject=subject,
        blob_keys=plain_keys(stored),
    )


def _once(digests: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(digests)) if digests else ()


def _is_blob(media_type: str) -> bool:
    """Tell whether an index entry's media type says that it is no manifest.

    A BuildKit cache is an index of layers and one config.
    """
    return (
        ".layer." in media_type
        or ".rootfs." in media_type
        or media_type.startswith("application/vnd.buildkit.")
    )
