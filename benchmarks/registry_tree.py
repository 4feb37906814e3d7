"""Writes registries in the layout that CNCF Distribution keeps on storage.

Used by the demo, the benchmarks and the tests: one place knows how a push looks on disk.
Paths are relative to the storage root; where the bytes go is up to the *sink*.

Source of the layout: CNCF Distribution, ``registry/storage/paths.go``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Sink = Callable[[str, bytes], None]

V2 = "docker/registry/v2"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
ORAS_ARTIFACT = "application/vnd.cncf.oras.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
BUILDKIT_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
EMPTY_JSON = "application/vnd.oci.empty.v1+json"


def sha256(data: bytes) -> str:
    """The digest of *data* as the registry writes it, ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def sha512(data: bytes) -> str:
    """The sha512 digest of *data*, ``sha512:<hex>``."""
    return "sha512:" + hashlib.sha512(data).hexdigest()


def blob_path(digest: str) -> str:
    """Where the bytes of *digest* lie."""
    algorithm, _, encoded = digest.partition(":")
    return f"{V2}/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"


def repository_path(repository: str) -> str:
    """The folder of *repository*."""
    return f"{V2}/repositories/{repository}"


def layer_link_path(repository: str, digest: str) -> str:
    """The file that makes *digest* pullable from *repository*."""
    return f"{repository_path(repository)}/_layers/{digest.replace(':', '/')}/link"


def revision_path(repository: str, digest: str) -> str:
    """The file that makes the manifest *digest* pullable from *repository*."""
    return f"{repository_path(repository)}/_manifests/revisions/{digest.replace(':', '/')}/link"


def tag_path(repository: str, tag: str) -> str:
    """The file that says what *tag* points to."""
    return f"{repository_path(repository)}/_manifests/tags/{tag}/current/link"


def tag_index_path(repository: str, tag: str, digest: str) -> str:
    """The file that says that *tag* once pointed to *digest*."""
    return (
        f"{repository_path(repository)}/_manifests/tags/{tag}/index/{digest.replace(':', '/')}/link"
    )


def folder_sink(root: Path) -> Sink:
    """A sink that writes files below *root*, with the folders they need."""
    made: set[str] = set()
    base = str(root)

    def write(path: str, data: bytes) -> None:
        full = f"{base}/{path}"
        folder = full.rpartition("/")[0]
        if folder not in made:
            os.makedirs(folder, exist_ok=True)
            made.add(folder)
        with open(full, "wb") as file:
            file.write(data)

    return write


class RegistryTree:
    """Pushes, tags and damage, written as a registry would have written them."""

    def __init__(self, sink: Sink) -> None:
        self.write = sink
        self._sizes: dict[str, int] = {}

    def blob(self, data: bytes, digest: str | None = None) -> str:
        """Store *data* once and return its digest; *digest* stores it under another name."""
        name = digest or sha256(data)
        if name not in self._sizes:
            self.write(blob_path(name), data)
            self._sizes[name] = len(data)
        return name

    def size(self, digest: str) -> int:
        """Bytes of a blob that was written here; 0 for any other."""
        return self._sizes.get(digest, 0)

    def link_layer(self, repository: str, digest: str, target: str | None = None) -> None:
        """Link a layer; *target* is what the link says when it is an alias."""
        self.write(layer_link_path(repository, digest), (target or digest).encode())

    def layer(self, repository: str, data: bytes) -> str:
        """Push a layer: blob and link."""
        digest = self.blob(data)
        self.link_layer(repository, digest)
        return digest

    def tag(self, repository: str, tag: str, digest: str) -> None:
        """Point *tag* to *digest*, leaving the older index entries as the registry does."""
        self.write(tag_index_path(repository, tag, digest), digest.encode())
        self.write(tag_path(repository, tag), digest.encode())

    def manifest(
        self, repository: str, document: Mapping[str, Any] | bytes, tag: str | None = None
    ) -> str:
        """Push a manifest: blob, revision link, and tag when one is given."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = self.blob(data)
        self.write(revision_path(repository, digest), digest.encode())
        if tag is not None:
            self.tag(repository, tag, digest)
        return digest

    def image(
        self,
        repository: str,
        tag: str | None = None,
        *,
        layers: Sequence[bytes] = (b"layer",),
        config: bytes = b"{}",
        subject: str | None = None,
        media_type: str = OCI_MANIFEST,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Push an image with its config and layers; returns the manifest's digest."""
        docker = media_type == DOCKER_MANIFEST
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": descriptor(
                DOCKER_CONFIG if docker else OCI_CONFIG,
                self.layer(repository, config),
                len(config),
            ),
            "layers": [
                descriptor(
                    DOCKER_LAYER if docker else OCI_LAYER, self.layer(repository, data), len(data)
                )
                for data in layers
            ],
        }
        if subject is not None:
            document["subject"] = descriptor(OCI_MANIFEST, subject, self.size(subject))
        document.update(extra or {})
        return self.manifest(repository, document, tag)

    def index(
        self,
        repository: str,
        tag: str | None,
        children: Iterable[str],
        *,
        media_type: str = OCI_INDEX,
        child_media_type: str = OCI_MANIFEST,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Push an index of *children*; returns its digest."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                descriptor(child_media_type, child, self.size(child)) for child in children
            ],
        }
        document.update(extra or {})
        return self.manifest(repository, document, tag)

    def upload(self, repository: str, uuid: str, started_at: str | None, data: bytes = b"") -> None:
        """An upload that was begun and not finished."""
        folder = f"{repository_path(repository)}/_uploads/{uuid}"
        if started_at is not None:
            self.write(f"{folder}/startedat", started_at.encode())
        self.write(f"{folder}/data", data)


def descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    """A descriptor as the OCI image specification has it."""
    return {"mediaType": media_type, "digest": digest, "size": size}
