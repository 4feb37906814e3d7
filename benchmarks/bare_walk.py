"""What reading a registry on disk costs any Python program: a walk that finds orphans.

One process; no check but that of digests, no grace, no guard, no plan. It is no collector: it
trusts all that it reads. Prints how many blobs there are, and how many of them nothing references.
``python bare_walk.py ROOT``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator

import msgspec


class _Descriptor(msgspec.Struct):
    digest: str


class _Manifest(msgspec.Struct):
    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []


def _names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        chunks = []
        while chunk := os.read(handle, 1 << 16):
            chunks.append(chunk)
    finally:
        os.close(handle)
    return b"".join(chunks)


def _revisions(folder: str) -> Iterator[str]:
    """The manifests of all repositories; reads the tags and lists the links on the way."""
    for name in _names(folder):
        below = f"{folder}/{name}"
        if name == "_manifests":
            yield from _names(f"{below}/revisions/sha256")
            for tag in _names(f"{below}/tags"):
                _read(f"{below}/tags/{tag}/current/link")
                _names(f"{below}/tags/{tag}/index/sha256")
        elif name == "_layers":
            _names(f"{below}/sha256")
        elif not name.startswith("_"):
            yield from _revisions(below)


def main() -> None:
    """Walk ROOT."""
    registry = f"{sys.argv[1]}/docker/registry/v2"
    blobs = f"{registry}/blobs/sha256"
    decode = msgspec.json.Decoder(_Manifest).decode
    live = set(_revisions(f"{registry}/repositories"))
    for revision in list(live):
        data = _read(f"{blobs}/{revision[:2]}/{revision}/data")
        assert hashlib.sha256(data).hexdigest() == revision
        manifest = decode(data)
        named = [*manifest.layers, *manifest.manifests, *filter(None, [manifest.config])]
        live.update(descriptor.digest.removeprefix("sha256:") for descriptor in named)
    stored = [name for bucket in _names(blobs) for name in _names(f"{blobs}/{bucket}")]
    orphans = [name for name in stored if name not in live]
    size = sum(os.stat(f"{blobs}/{name[:2]}/{name}/data").st_size for name in orphans)
    print(f"{len(stored)} blobs, {len(orphans)} orphans of {size} bytes")


if __name__ == "__main__":
    main()
