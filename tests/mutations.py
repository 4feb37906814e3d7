"""Ways in which a file of a registry comes out wrong: cut, flipped, doubled, spliced, blown up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from registry_tree import (
    BUILDKIT_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    ORAS_ARTIFACT,
    SCHEMA1,
    descriptor,
    sha256,
    sha512,
)

Mutation = Callable[[random.Random, bytes], bytes]

_ODD_VALUES: Sequence[Any] = (
    None, True, 0, -1, 1e999, "", [], {}, [[]], "sha256:", "sha256:" + "A" * 64, {"digest": 5},
    "\ud800", 1 << 63, 10**4299, [None], "application/vnd.oci.image.index.v1+json; charset=utf-8",
)  # fmt: skip


def real_manifests(digests: Sequence[str]) -> list[dict[str, Any]]:
    """A manifest of every kind as clients push them, about *digests*, three at least."""
    config, layer, other = digests[:3]
    parts = [descriptor(OCI_LAYER, layer, 10), descriptor(OCI_LAYER, other, 20)]
    platform = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    children = [
        {**descriptor(OCI_MANIFEST, digest, 500), "platform": platform} for digest in digests[:3]
    ]
    image = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config, 2),
        "layers": parts,
        "annotations": {"org.opencontainers.image.created": "2024-01-01T00:00:00Z", "é": "\u2028"},
    }
    subject = descriptor(OCI_MANIFEST, other, 300)
    cache = [*parts, descriptor(BUILDKIT_CONFIG, config, 5)]
    return [
        image,
        {**image, "mediaType": DOCKER_MANIFEST},
        {key: value for key, value in image.items() if key != "mediaType"},
        {**image, "subject": subject, "artifactType": "application/vnd.example"},
        {**image, "layers": [{**parts[0], "urls": ["http://elsewhere/layer"]}, parts[1]]},
        {**image, "layers": [descriptor(OCI_LAYER, sha512(b"layer"), 10), parts[1]]},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children, "subject": subject},
        {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": children},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": cache},
        {"mediaType": OCI_ARTIFACT, "blobs": parts, "subject": subject},
        {"mediaType": ORAS_ARTIFACT, "blobs": parts, "subject": subject},
        {"schemaVersion": 1, "mediaType": SCHEMA1, "name": "a", "tag": "v1",
         "fsLayers": [{"blobSum": layer}, {"blobSum": other}, {"blobSum": layer}],
         "history": [{"v1Compatibility": "{\"id\": \"x\"}"}]},
    ]  # fmt: skip


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flip(chance: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _splice(chance: random.Random, data: bytes) -> bytes:
    start, stop, at = (chance.randrange(len(data) + 1) for _ in range(3))
    return data[:at] + data[min(start, stop) : max(start, stop)] + data[at:]


def _remove(chance: random.Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 40) :]


def _insert(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    pieces = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"[" * 5000, b'"', b"\\u0044", b"null", b"}")
    return data[:at] + chance.choice(pieces) + data[at:]


def _pad(chance: random.Random, data: bytes) -> bytes:
    padding = chance.choice((b" ", b"\n", b"\r\n", b"\0" * 64, b"{}", data))
    return chance.choice((data + padding, padding + data))


def _structure(chance: random.Random, data: bytes) -> bytes:
    """Change the document: other keys, other values, more of them."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(chance, data)
    if not isinstance(document, dict | list) or not document:
        return _flip(chance, data)
    holder, key = chance.choice(_places(document))
    kind = chance.randrange(5)
    if kind == 0:
        holder[key] = chance.choice(_ODD_VALUES)
    elif kind == 1 and isinstance(holder, dict):
        spelt = chance.choice((str.upper, str.lower, str.title, str.swapcase))
        holder[spelt(key)] = holder[key] if chance.random() < 0.5 else holder.pop(key)
    elif kind == 2:
        del holder[key]
    elif kind == 3 and isinstance(holder, list):
        holder += holder * chance.randrange(1, 30)
    elif isinstance(holder, dict):
        holder[chance.choice(("manifests", "layers", "blobs", "fsLayers", "subject"))] = holder[key]
    return json.dumps(document, indent=chance.choice((None, 3))).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a document, as what holds it and its key."""
    found: list[tuple[Any, Any]] = []
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _places(value[key])
    return found


MUTATIONS: tuple[Mutation, ...] = (
    _cut, _flip, _flip, _splice, _remove, _insert, _pad, _structure, _structure, _structure,
)  # fmt: skip


def mutated(chance: random.Random, data: bytes) -> bytes:
    """*data*, changed once or a few times."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        data = chance.choice(MUTATIONS)(chance, data)
    return data[:200_000]


def digests(count: int) -> list[str]:
    """Some digests."""
    return [sha256(b"%d" % number) for number in range(count)]
