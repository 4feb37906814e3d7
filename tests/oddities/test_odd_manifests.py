"""Every oddity of manifests that FACTS.md names, and how a collection answers."""

from __future__ import annotations

import pytest

from oddities.support import BOTH, Mode, layer
from registry_tree import (
    BUILDKIT_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    EMPTY_JSON,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    ORAS_ARTIFACT,
    SCHEMA1,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    tag_path,
)
from running import Disk, empty_folders

SIGNED_SCHEMA1 = SCHEMA1.replace("+json", "+prettyjws")
EMPTY = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@BOTH
def test_signatures_live_and_die_with_their_schema_1_image(disk: Disk, mode: Mode) -> None:
    paths = {}
    for tag in ("v1", None):
        data = f"layer of {tag}".encode()
        document = {
            "schemaVersion": 1,
            "mediaType": SCHEMA1,
            "fsLayers": [{"blobSum": disk.tree.layer("a", data)}],
        }
        image = disk.tree.manifest("a", document, tag)
        signature = disk.tree.blob(f"signature for {tag}".encode())
        folder = revision_path("a", image).removesuffix("/link")
        path = f"{folder}/signatures/{signature.replace(':', '/')}/link"
        disk.write(path, signature.encode())
        paths[tag] = (path, blob_path(signature))
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert all(disk.has(path) for path in paths["v1"])
    assert all(disk.has(path) is (not mode) for path in paths[None])
    assert not empty_folders(disk.root)


@BOTH
def test_a_revision_whose_manifest_is_gone_is_damaged_and_keeps_nothing(
    disk: Disk, mode: Mode
) -> None:
    image = disk.tree.image("a", "v1", layers=[b"of the lost one"])
    disk.remove(blob_path(image))
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert [row["path"] for row in result.json["damaged"]] == [revision_path("a", image)]
    assert result.held == set()
    assert not disk.has_blob(sha256(b"of the lost one"))
    # A tag still points to it, so the revision is reached and its link stays.
    assert disk.has(revision_path("a", image))


@BOTH
def test_a_manifest_that_is_not_what_its_digest_says_is_held(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("a", "v1", layers=[b"x"])
    other = disk.tree.image("kept", "v2", layers=[b"y"])
    disk.write(blob_path(image), (disk.root / blob_path(other)).read_bytes())
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert result.held == {"a"}
    assert disk.has_layer("a", sha256(b"x"))


@BOTH
def test_a_repository_that_reaches_a_broken_child_elsewhere_is_held_too(
    disk: Disk, mode: Mode
) -> None:
    child = disk.tree.image("owner", "v1", layers=[b"x"])
    disk.tree.index("sparse", "v1", [child])
    spare = disk.tree.layer("sparse", b"spare")
    disk.write(blob_path(child), b"")
    result = disk.collect(*mode)
    assert result.held == {"owner", "sparse"}
    assert disk.has_layer("sparse", spare)


def image_document(disk: Disk, media_type: str | None) -> dict[str, object]:
    """An image in repository ``a`` with one layer, ``needed``."""
    needed, config = layer(disk, "a", b"needed"), layer(disk, "a", b'{"a": 1}')
    if media_type in (SCHEMA1, SIGNED_SCHEMA1):
        blob_sum = {"blobSum": needed["digest"]}
        return {"schemaVersion": 1, "mediaType": media_type, "fsLayers": [blob_sum]}
    if media_type in (OCI_ARTIFACT, ORAS_ARTIFACT):
        return {"mediaType": media_type, "blobs": [needed]}
    document = {"schemaVersion": 2, "config": config, "layers": [needed]}
    return document if media_type is None else {**document, "mediaType": media_type}


MEDIA_TYPES = [
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    OCI_ARTIFACT,
    ORAS_ARTIFACT,
    SCHEMA1,
    SIGNED_SCHEMA1,
    None,
]


@BOTH
@pytest.mark.parametrize("tag", ["v1", None])
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_every_kind_of_manifest_keeps_what_it_references_while_it_lives(
    disk: Disk, mode: Mode, tag: str | None, media_type: str | None
) -> None:
    image = disk.tree.manifest("a", image_document(disk, media_type), tag)
    if media_type in (SCHEMA1, SIGNED_SCHEMA1, OCI_ARTIFACT, ORAS_ARTIFACT):
        # These have no config; the one that was pushed is an orphan.
        disk.remove(layer_link_path("a", sha256(b'{"a": 1}')))
    result = disk.collect(*mode)
    assert result.exit_code == 0
    lives = tag is not None or not mode
    assert disk.has_manifest("a", image) is lives
    assert disk.has_layer("a", sha256(b"needed")) is lives


@BOTH
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, None])
@pytest.mark.parametrize("child_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_every_kind_of_index_keeps_its_children(
    disk: Disk, mode: Mode, media_type: str | None, child_type: str
) -> None:
    child = disk.tree.image("a", None, layers=[b"x"], media_type=child_type)
    document: dict[str, object] = {
        "schemaVersion": 2,
        "manifests": [descriptor(child_type, child, 1)],
    }
    if media_type:
        document["mediaType"] = media_type
    index = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_manifest("a", index)
    assert disk.has_image("a", child)


@BOTH
def test_a_buildkit_cache_keeps_its_layers(disk: Disk, mode: Mode) -> None:
    parts = [layer(disk, "a", data) for data in (b"one", b"two")]
    config = disk.tree.layer("a", b'{"cache": 1}')
    children = [*parts, descriptor(BUILDKIT_CONFIG, config, 1)]
    disk.tree.manifest(
        "a", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}, "cache"
    )
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert all(disk.has_layer("a", sha256(data)) for data in (b"one", b"two", b'{"cache": 1}'))


@BOTH
def test_a_foreign_layer_that_is_absent_is_no_error(disk: Disk, mode: Mode) -> None:
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": sha256(b"on some other server"),
        "size": 1,
        "urls": ["https://example.com/layer"],
    }
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": layer(disk, "a", b"{}"),
        "layers": [foreign, layer(disk, "a", b"own")],
    }
    image = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["damaged"] == []
    assert disk.has_manifest("a", image)
    assert disk.has_layer("a", sha256(b"own"))


@BOTH
def test_a_missing_child_is_no_error_and_the_others_are_kept(disk: Disk, mode: Mode) -> None:
    child = disk.tree.image("a", None, layers=[b"x"])
    index = disk.tree.index("a", "v1", [sha256(b"never mirrored"), child])
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["damaged"] == []
    assert disk.has_manifest("a", index)
    assert disk.has_image("a", child)


@BOTH
def test_a_child_that_is_stored_but_linked_nowhere_is_followed(disk: Disk, mode: Mode) -> None:
    child = disk.tree.image("a", None, layers=[b"x"])
    disk.remove(revision_path("a", child))
    disk.tree.index("a", "v1", [child])
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_blob(child)
    assert disk.has_layer("a", sha256(b"x"))


def test_a_subject_does_not_live_by_its_referrer(disk: Disk) -> None:
    subject = disk.tree.image("a", None, layers=[b"x"])
    referrer = disk.tree.image("a", "sbom", layers=[b"sbom"], subject=subject)
    disk.collect("-m")
    assert disk.has_image("a", referrer)
    assert not disk.has_blob(subject)


@pytest.mark.parametrize("index", [True, False], ids=["index", "image"])
def test_a_referrer_dies_with_its_subject(disk: Disk, index: bool) -> None:
    subject = disk.tree.image("a", None, layers=[b"x"])
    if index:
        extra = {"subject": descriptor(OCI_MANIFEST, subject, 1)}
        referrer = disk.tree.index("a", None, [], extra=extra)
    else:
        referrer = disk.tree.image("a", None, layers=[b"y"], subject=subject)
    result = disk.collect("-m")
    assert not disk.has_blob(referrer)
    assert not disk.has_blob(subject)
    assert result.json["manifests"]["deleted"] == 2


@pytest.mark.parametrize("kind", [OCI_ARTIFACT, ORAS_ARTIFACT, OCI_INDEX, OCI_MANIFEST])
def test_every_kind_of_referrer_lives_with_its_subject(disk: Disk, kind: str) -> None:
    subject = disk.tree.image("a", "v1", layers=[b"x"])
    part = layer(disk, "a", b"part")
    document: dict[str, object] = {
        "mediaType": kind,
        "subject": descriptor(OCI_MANIFEST, subject, 1),
    }
    if kind == OCI_INDEX:
        document |= {"schemaVersion": 2, "manifests": [part]}
    elif kind == OCI_MANIFEST:
        document |= {"schemaVersion": 2, "config": part, "layers": []}
    else:
        document["blobs"] = [part]
    referrer = disk.tree.manifest("a", document)
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_manifest("a", referrer)
    assert disk.has_layer("a", sha256(b"part"))


def test_a_child_of_a_referrer_and_a_referrer_of_a_child_live_too(disk: Disk) -> None:
    child = disk.tree.image("a", None, layers=[b"child"])
    disk.tree.index("a", "v1", [child])
    of_child = disk.tree.image("a", None, layers=[b"of child"], subject=child)
    inner = disk.tree.image("a", None, layers=[b"inner"])
    extra = {"subject": descriptor(OCI_MANIFEST, of_child, 1)}
    disk.tree.index("a", None, [inner], extra=extra)
    disk.collect("-m")
    assert disk.has_image("a", of_child)
    assert disk.has_image("a", inner)


@pytest.mark.parametrize(
    ("linked_here", "lives_elsewhere", "lives"),
    [(False, True, True), (False, False, False), (True, True, False)],
)
def test_a_referrer_kept_apart_from_its_subject_lives_while_that_lives_anywhere(
    disk: Disk, linked_here: bool, lives_elsewhere: bool, lives: bool
) -> None:
    subject = disk.tree.image("images", "v1" if lives_elsewhere else None, layers=[b"x"])
    referrer = disk.tree.image("signatures", None, layers=[b"signature"], subject=subject)
    if linked_here:
        disk.write(revision_path("signatures", subject), subject.encode())
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_image("signatures", referrer) is lives


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_fallback_and_cosign_tags_are_tags_like_any_other(disk: Disk, suffix: str) -> None:
    image = disk.tree.image("a", None, layers=[b"x"])
    tag = image.replace(":", "-") + suffix
    referrer = disk.tree.image("a", None, layers=[b"signature"])
    disk.tree.index("a", tag, [referrer])
    disk.collect("-m")
    assert not disk.has_blob(image)
    assert disk.has(tag_path("a", tag))
    assert disk.has_image("a", referrer)


def test_the_empty_descriptor_lives_while_one_artifact_needs_it(disk: Disk) -> None:
    def artifact(repository: str, tag: str | None, data: bytes) -> str:
        config = descriptor(EMPTY_JSON, disk.tree.layer(repository, b"{}"), 2)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "text/plain",
            "config": config,
            "layers": [layer(disk, repository, data)],
        }
        return disk.tree.manifest(repository, document, tag)

    kept = artifact("a", "v1", b"one")
    for name in ("b", "c", "d"):
        artifact(name, None, name.encode())
    disk.collect("-m")
    assert disk.has_blob(EMPTY)
    assert disk.has_image("a", kept)
    assert not disk.has(repository_path("b"))


def test_collection_deletes_no_tag(disk: Disk) -> None:
    disk.tree.image("a", "v1", layers=[b"x"])
    disk.tree.image("a", "v1", layers=[b"y"])
    disk.remove(blob_path(disk.tree.image("a", "broken", layers=[b"z"])))
    tags = {path for path in disk.files() if "/current/link" in path}
    disk.collect("-m")
    assert {path for path in disk.files() if "/current/link" in path} == tags
