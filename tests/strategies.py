"""Hypothesis strategies that make registries, push by push and mishap by mishap.

A registry is drawn as a short story: each step is something that clients, operators or crashes
do to a registry. The story is kept, so that a failing example can be read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from model import HOUR, V2, File
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
    RegistryTree,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
)

REPOSITORIES = ("a", "a/b", "b", "c/d")
TAGS = ("v1", "v2", "latest")
LAYERS = tuple(f"layer {number}".encode() for number in range(5))
CONFIGS = tuple(json.dumps({"config": number}).encode() for number in range(3))
ABSENT = sha256(b"never pushed")
DAY = 24 * HOUR
OLD, YOUNG = 2 * HOUR, 60.0


@dataclass
class Registry:
    """Files with their ages, and how they came to be."""

    files: dict[str, File] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    manifests: list[tuple[str, str]] = field(default_factory=list)
    index_children: set[str] = field(default_factory=set)
    age: float = OLD
    now: float = field(default_factory=time.time)
    tree: RegistryTree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tree = RegistryTree(self.write)

    def write(self, path: str, data: bytes) -> None:
        """The sink of the tree: files are as old as the step that writes them."""
        self.files[path] = File(data, self.age)

    def paths(self, *parts: str) -> list[str]:
        """The paths that contain all *parts*, sorted."""
        return sorted(path for path in self.files if all(part in path for part in parts))

    def tell(self, text: str) -> None:
        """Add a sentence to the story."""
        self.story.append(text if self.age == OLD else f"{text} (young)")

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        # What hypothesis prints of a failing example: the story, not a thousand paths.
        printer.text("Registry:\n  " + "\n  ".join(self.story))


Draw = st.DrawFn
Step = Callable[[Draw, Registry], None]


def _repository(draw: Draw) -> str:
    return draw(st.sampled_from(REPOSITORIES))


def _tag(draw: Draw) -> str | None:
    return draw(st.sampled_from((*TAGS, None)))


def _layers(draw: Draw) -> list[bytes]:
    return draw(st.lists(st.sampled_from(LAYERS), max_size=3))


def _known_manifest(draw: Draw, registry: Registry) -> str:
    return draw(st.sampled_from([digest for _, digest in registry.manifests] + [ABSENT]))


def _pushed(registry: Registry, repository: str, digest: str, what: str, tag: str | None) -> None:
    registry.manifests.append((repository, digest))
    registry.tell(f"{what} {digest[7:15]} -> {repository}:{tag}")


def push_image(draw: Draw, registry: Registry) -> None:
    """A plain image, in one of the media types, or in none."""
    repository, tag, layers = _repository(draw), _tag(draw), _layers(draw)
    config = draw(st.sampled_from(CONFIGS))
    media_type = draw(st.sampled_from((OCI_MANIFEST, DOCKER_MANIFEST, None)))
    if media_type is None:
        described = [descriptor(OCI_LAYER, registry.tree.layer(repository, x), 1) for x in layers]
        own = descriptor(OCI_LAYER, registry.tree.layer(repository, config), 1)
        digest = registry.tree.manifest(
            repository, {"schemaVersion": 2, "config": own, "layers": described}, tag
        )
    else:
        digest = registry.tree.image(
            repository, tag, layers=layers, config=config, media_type=media_type
        )
    names = ", ".join(layer.decode() for layer in layers)
    _pushed(registry, repository, digest, f"image [{names}; {config.decode()}]", tag)


def push_referrer(draw: Draw, registry: Registry) -> None:
    """An image or an index with a ``subject``, which may be in another repository or nowhere."""
    repository, tag = _repository(draw), _tag(draw)
    subject = _known_manifest(draw, registry)
    if draw(st.booleans()):
        digest = registry.tree.image(repository, tag, layers=_layers(draw), subject=subject)
    else:
        extra = {"subject": descriptor(OCI_MANIFEST, subject, 1)}
        children = draw(st.lists(st.just(_known_manifest(draw, registry)), max_size=1))
        digest = registry.tree.index(repository, tag, children, extra=extra)
    _pushed(registry, repository, digest, f"referrer of {subject[7:15]}", tag)


def push_index(draw: Draw, registry: Registry) -> None:
    """An index of manifests of any repository, or of none: sparse ones are ordinary."""
    repository, tag = _repository(draw), _tag(draw)
    choice = st.sampled_from([digest for _, digest in registry.manifests] + [ABSENT])
    children = draw(st.lists(choice, min_size=1, max_size=3, unique=True))
    media_type = draw(st.sampled_from((OCI_INDEX, DOCKER_LIST)))
    bare = {} if draw(st.booleans()) else {"annotations": {"a": "b"}}
    digest = registry.tree.index(repository, tag, children, media_type=media_type, extra=bare)
    registry.index_children.update(children)
    listed = ", ".join(child[7:15] for child in children)
    _pushed(registry, repository, digest, f"index [{listed}]", tag)


def push_own_index(draw: Draw, registry: Registry) -> None:
    """A multi-architecture image as clients push it: all children are in the repository."""
    repository, tag = _repository(draw), _tag(draw)
    own = sorted({digest for name, digest in registry.manifests if name == repository})
    own = [d for d in own if revision_path(repository, d) in registry.files]
    if not own:
        return
    children = draw(st.lists(st.sampled_from(own), min_size=1, max_size=3, unique=True))
    digest = registry.tree.index(
        repository, tag, children, media_type=draw(st.sampled_from((OCI_INDEX, DOCKER_LIST)))
    )
    registry.index_children.update(children)
    listed = ", ".join(child[7:15] for child in children)
    _pushed(registry, repository, digest, f"own index [{listed}]", tag)


def push_artifact(draw: Draw, registry: Registry) -> None:
    """An artifact manifest, OCI's withdrawn one or ORAS'."""
    repository, tag, layers = _repository(draw), _tag(draw), _layers(draw)
    kind = draw(st.sampled_from((OCI_ARTIFACT, ORAS_ARTIFACT)))
    blobs = [registry.tree.layer(repository, x) for x in layers]
    if draw(st.booleans()):
        blobs.append(_known_manifest(draw, registry))  # carried as a blob
    document: dict[str, object] = {
        "mediaType": kind,
        "blobs": [descriptor(OCI_LAYER, digest, 1) for digest in blobs],
    }
    if draw(st.booleans()):
        document["subject"] = descriptor(OCI_MANIFEST, _known_manifest(draw, registry), 1)
    digest = registry.tree.manifest(repository, document, tag)
    _pushed(registry, repository, digest, "artifact", tag)


def push_schema1(draw: Draw, registry: Registry) -> None:
    """A schema 1 image, with the signature that old registries kept beside it."""
    repository, tag = _repository(draw), _tag(draw)
    layers = draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=2))
    document: dict[str, object] = {
        "schemaVersion": 1,
        "fsLayers": [{"blobSum": registry.tree.layer(repository, data)} for data in layers],
    }
    if draw(st.booleans()):
        document["mediaType"] = SCHEMA1
    digest = registry.tree.manifest(repository, document, tag)
    if draw(st.booleans()):
        signature = registry.tree.blob(b"signature of " + digest.encode())
        folder = revision_path(repository, digest).rpartition("/")[0]
        registry.write(
            f"{folder}/signatures/{signature.replace(':', '/')}/link", signature.encode()
        )
    _pushed(registry, repository, digest, "schema 1 image", tag)


def push_cache(draw: Draw, registry: Registry) -> None:
    """A BuildKit cache: an index whose children are layers and a config.

    What is called a layer may be a manifest, and linked in another repository.
    """
    repository, tag, layers = _repository(draw), _tag(draw), _layers(draw)
    tree = registry.tree
    children = [descriptor(OCI_LAYER, tree.layer(repository, data), 1) for data in layers]
    children.append(descriptor(BUILDKIT_CONFIG, tree.layer(repository, b"cache"), 1))
    if draw(st.booleans()):
        children.append(descriptor(OCI_LAYER, _known_manifest(draw, registry), 1))
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
    _pushed(registry, repository, tree.manifest(repository, document, tag), "cache", tag)


def push_alias(draw: Draw, registry: Registry) -> None:
    """An image that names a layer by sha512; link, blob or neither may be there."""
    repository, tag = _repository(draw), _tag(draw)
    data = draw(st.sampled_from(LAYERS))
    alias, digest = sha512(data), sha256(data)
    kept = draw(st.sampled_from(("linked", "linked elsewhere", "stored so", "lost")))
    if kept.startswith("linked"):
        owner = repository if kept == "linked" else _repository(draw)
        registry.tree.blob(data)
        registry.tree.link_layer(owner, alias, digest)
        if draw(st.booleans()):
            registry.tree.link_layer(owner, digest)
    elif kept == "stored so":
        registry.tree.blob(data, alias)
        registry.tree.link_layer(repository, alias)
    config = descriptor(OCI_LAYER, registry.tree.layer(repository, CONFIGS[0]), 1)
    layers = [descriptor(OCI_LAYER, alias, 1)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    digest = registry.tree.manifest(repository, document, tag)
    _pushed(registry, repository, digest, f"image with {data.decode()} by sha512, {kept},", tag)


def copy_manifest(draw: Draw, registry: Registry) -> None:
    """A manifest that is stored is pushed into another repository: only a link is new."""
    if not registry.manifests:
        return
    _, digest = draw(st.sampled_from(registry.manifests))
    repository, tag = _repository(draw), _tag(draw)
    registry.write(revision_path(repository, digest), digest.encode())
    if tag is not None:
        registry.tree.tag(repository, tag, digest)
    _pushed(registry, repository, digest, "copy of", tag)


def move_tag(draw: Draw, registry: Registry) -> None:
    """A tag is set to a manifest that its repository has."""
    known = [pair for pair in registry.manifests if revision_path(*pair) in registry.files]
    if known:
        repository, digest = draw(st.sampled_from(known))
        tag = draw(st.sampled_from(TAGS))
        registry.tree.tag(repository, tag, digest)
        registry.tell(f"tag {repository}:{tag} = {digest[7:15]}")


def delete_tag(draw: Draw, registry: Registry) -> None:
    """A tag is deleted with its index, as the registry does."""
    tags = registry.paths("/current/link")
    if tags:
        folder = draw(st.sampled_from(tags)).removesuffix("current/link")
        for path in registry.paths(folder):
            del registry.files[path]
        registry.tell(f"delete {folder}")


def delete_manifest(draw: Draw, registry: Registry) -> None:
    """A manifest is deleted through the API: its link goes, and the tags that point to it."""
    known = [pair for pair in registry.manifests if revision_path(*pair) in registry.files]
    if known:
        _delete_manifest(registry, *draw(st.sampled_from(known)))


def delete_free_manifest(draw: Draw, registry: Registry) -> None:
    """As :func:`delete_manifest`, but never a part of an index."""
    known = [
        (repository, digest)
        for repository, digest in registry.manifests
        if revision_path(repository, digest) in registry.files
        and digest not in registry.index_children
    ]
    if known:
        _delete_manifest(registry, *draw(st.sampled_from(known)))


def _delete_manifest(registry: Registry, repository: str, digest: str) -> None:
    del registry.files[revision_path(repository, digest)]
    for current in registry.paths(f"{repository_path(repository)}/_manifests/tags", "/current/"):
        if registry.files[current].data == digest.encode():
            for path in registry.paths(current.removesuffix("current/link")):
                del registry.files[path]
    registry.tell(f"delete {repository}@{digest[7:15]}")


def add_orphan(draw: Draw, registry: Registry) -> None:
    """A layer that was pushed and never used, with a link or without."""
    data = draw(st.sampled_from((*LAYERS, b"orphan")))
    if draw(st.booleans()):
        repository = _repository(draw)
        registry.tree.layer(repository, data)
        registry.tell(f"layer {data.decode()} -> {repository}")
    else:
        registry.tree.blob(data)
        registry.tell(f"blob {data.decode()}")


def begin_upload(draw: Draw, registry: Registry) -> None:
    """An upload that nobody finished, of any age."""
    repository = _repository(draw)
    age = draw(st.sampled_from((HOUR, 10 * DAY)))
    began = datetime.fromtimestamp(registry.now - age, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    number = sum("/startedat" in path or "_uploads" in path for path in registry.files)
    told = draw(st.sampled_from((began, began, None)))
    before, registry.age = registry.age, draw(st.sampled_from((age, OLD)))
    registry.tree.upload(repository, f"upload-{number}", told, b"begun")
    registry.age = before
    registry.tell(f"upload upload-{number} in {repository}, started {told}")


def rest(draw: Draw, registry: Registry) -> None:
    """Nothing happens: what hypothesis puts in the place of steps that a failure does not need."""


def become_young(draw: Draw, registry: Registry) -> None:
    """From here on, what is written was written just now."""
    registry.age = YOUNG


def restore_blob(draw: Draw, registry: Registry) -> None:
    """A blob comes back from a backup: it is young, and the links to it are not."""
    blobs = registry.paths("/blobs/", "/data")
    if blobs:
        path = draw(st.sampled_from(blobs))
        registry.files[path] = File(registry.files[path].data, YOUNG)
        registry.tell(f"restore {path}")


def truncate(draw: Draw, registry: Registry) -> None:
    """A crash leaves a file of any kind with half its bytes, or none."""
    known = [path for path in registry.files if "_uploads" not in path and "stray" not in path]
    if known:
        path = draw(st.sampled_from(sorted(known)))
        file = registry.files[path]
        # A link cut in half is as unreadable as an empty one; a layer is never looked into.
        size = len(file.data) // 2 if draw(st.booleans()) else 0
        registry.files[path] = File(file.data[:size], file.age)
        registry.tell(f"truncate {path} to {size}")


def lose(draw: Draw, registry: Registry) -> None:
    """A file vanishes; its folder may stay."""
    if registry.files:
        path = draw(st.sampled_from(sorted(registry.files)))
        del registry.files[path]
        registry.tell(f"lose {path}")


def stray(draw: Draw, registry: Registry) -> None:
    """A file that is no part of a registry lies somewhere."""
    path = draw(
        st.sampled_from(
            (
                f"{V2}/blobs/stray",
                f"{V2}/blobs/sha256/stray/data",
                f"{V2}/blobs/sha256/aa/.nfs0001",
                f"{V2}/repositories/a/stray",
                f"{V2}/repositories/a/_manifests/stray",
                f"{V2}/repositories/b/_layers/sha256/stray/link",
                f"{V2}/repositories/b/_manifests/tags/v1/stray",
                blob_path(sha256(LAYERS[0])) + ".0000.tmp",
            )
        )
    )
    registry.write(path, b"stray")
    registry.tell(f"stray {path}")


def unlink_layer(draw: Draw, registry: Registry) -> None:
    """A layer is deleted through the API although an image needs it."""
    links = registry.paths("/_layers/")
    if links:
        path = draw(st.sampled_from(links))
        del registry.files[path]
        registry.tell(f"unlink {path}")


def link_manifest_as_layer(draw: Draw, registry: Registry) -> None:
    """A registry before 2.1 also linked a manifest as if it were a layer."""
    if registry.manifests:
        repository, digest = draw(st.sampled_from(registry.manifests))
        registry.write(layer_link_path(repository, digest), digest.encode())
        registry.tell(f"layer link {repository} -> {digest[7:15]}")


def spoil_tag(draw: Draw, registry: Registry) -> None:
    """A tag's link is there and says nothing."""
    tags = registry.paths("/current/link")
    if tags:
        path = draw(st.sampled_from(tags))
        registry.files[path] = File(b"", registry.files[path].age)
        registry.tell(f"empty {path}")


ORDINARY: tuple[Step, ...] = (
    push_image,
    push_image,
    push_own_index,
    move_tag,
    delete_tag,
    delete_free_manifest,
    add_orphan,
    begin_upload,
)
UNUSUAL: tuple[Step, ...] = (
    push_image,
    push_image,
    push_index,
    push_index,
    push_referrer,
    push_referrer,
    push_artifact,
    push_schema1,
    push_cache,
    push_alias,
    copy_manifest,
    copy_manifest,
    move_tag,
    delete_tag,
    delete_manifest,
    add_orphan,
    begin_upload,
    unlink_layer,
    link_manifest_as_layer,
    restore_blob,
    become_young,
)
MISHAPS: tuple[Step, ...] = (truncate, lose, stray, spoil_tag)


@st.composite
def registries(draw: Draw, steps: tuple[Step, ...] = UNUSUAL, longest: int = 12) -> Registry:
    """A registry with at least one image, and up to *longest* further *steps*."""
    registry = Registry()
    digest = registry.tree.image("a", "kept", layers=[b"kept"], config=CONFIGS[0])
    _pushed(registry, "a", digest, "image", "kept")
    # A least number of steps raises the average; resting is how an example still gets small.
    for step in draw(st.lists(st.sampled_from((rest, *steps)), min_size=5, max_size=longest)):
        step(draw, registry)
    return registry


def well_formed() -> st.SearchStrategy[Registry]:
    """Registries that Distribution itself collects without loss or complaint (without ``-m``)."""
    return registries(ORDINARY)


def damaged() -> st.SearchStrategy[Registry]:
    """Registries with everything, mishaps included."""
    return registries((*UNUSUAL, *MISHAPS, *MISHAPS))
