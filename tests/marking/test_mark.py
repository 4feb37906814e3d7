"""What lives, rule by rule: roots, children, signatures; with ``-m`` unless a test says not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core_support import KEEP_UNTAGGED, OLD, Store, marked
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.engine import ThreadEngine
from registry_tree import (
    BUILDKIT_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    SCHEMA1,
    RegistryTree,
    blob_path,
    descriptor,
    folder_sink,
    revision_path,
    sha256,
    tag_path,
)


def parts_of(store: Store, digest: str) -> set[str]:
    """Config and layers of an image."""
    document = json.loads(store.storage.snapshot()[blob_path(digest)])
    return {part["digest"] for part in [document["config"], *document["layers"]]}


# Roots


def test_without_m_every_revision_is_a_root(store: Store) -> None:
    tagged, untagged = store.tree.image("a", "v1"), store.tree.image("a", None, layers=[b"2"])
    found = marked(store.storage, KEEP_UNTAGGED)
    assert found.live == {("a", tagged), ("a", untagged)}
    assert found.dead == set()


def test_with_m_the_roots_are_what_tags_point_to_now(store: Store) -> None:
    old = store.tree.image("a", "v1", layers=[b"old"])
    new = store.tree.image("a", "v1", layers=[b"new"])
    untagged = store.tree.image("a", None, layers=[b"untagged"])
    found = marked(store.storage)
    assert found.live == {("a", new)}
    assert found.dead == {("a", old), ("a", untagged)}
    assert found.digests == {new, *parts_of(store, new)}


def test_a_tag_of_a_manifest_that_its_repository_does_not_link_is_a_root(store: Store) -> None:
    image = store.tree.image("a", None)
    store.tree.tag("b", "v1", image)
    found = marked(store.storage)
    assert ("b", image) in found.live
    assert found.dead == {("a", image)}
    assert parts_of(store, image) < found.digests


@pytest.mark.parametrize(
    "tag", ["sha256-{}", "sha256-{}.sig", "sha256-{}.att", "sha256-{}.sbom", "latest"]
)
def test_fallback_and_cosign_tags_are_tags_like_any_other(store: Store, tag: str) -> None:
    image = store.tree.image("a", None, layers=[b"described"])
    signature = store.tree.image("a", None, layers=[b"signature"])
    target = store.tree.index("a", tag.format(image[7:]), [signature])
    found = marked(store.storage)
    assert found.live == {("a", target), ("a", signature)}
    assert found.dead == {("a", image)}


def test_a_tag_whose_manifest_is_gone_keeps_nothing_and_is_told(store: Store) -> None:
    lost, kept = store.tree.image("a", "lost", layers=[b"1"]), store.tree.image("a", "v1")
    store.remove(blob_path(lost))
    found = marked(store.storage)
    assert found.damaged == {revision_path("a", lost)}
    assert not found.held
    assert sha256(b"1") not in found.digests
    assert ("a", kept) in found.live
    store.remove(revision_path("a", lost))
    assert marked(store.storage).damaged == {tag_path("a", "lost")}


def test_a_link_that_holds_nothing_and_leads_nowhere_is_told_once(store: Store) -> None:
    lost = store.tree.image("a", "v1")
    store.remove(blob_path(lost))
    store.write(revision_path("a", lost), b"")
    (damage,) = marked(store.storage).marking.damaged
    assert (damage.path, damage.reason) == (revision_path("a", lost), "empty link")


# Children


def test_the_children_of_an_index_live_at_any_depth(store: Store) -> None:
    leaf = store.tree.image("a", None, layers=[b"leaf"])
    indexes = [leaf]
    for _ in range(30):
        indexes.append(store.tree.index("a", None, [indexes[-1]]))
    store.tree.tag("a", "v1", indexes[-1])
    found = marked(store.storage)
    assert found.live == {("a", digest) for digest in indexes}
    assert sha256(b"leaf") in found.digests


def test_a_child_lives_by_content_where_only_another_repository_links_it(store: Store) -> None:
    child = store.tree.image("b", None, layers=[b"layer"])
    index = store.tree.index("a", "v1", [child])
    found = marked(store.storage)
    assert found.dead == {("b", child)}
    assert found.digests == {index, child, *parts_of(store, child)}


def test_a_missing_child_is_no_error_and_the_rest_is_marked(store: Store) -> None:
    child = store.tree.image("a", None, layers=[b"layer"])
    index = store.tree.index("a", "v1", [sha256(b"never pushed"), child])
    found = marked(store.storage)
    assert {("a", index), ("a", child)} <= found.live
    assert (found.held, found.damaged) == (set(), set())
    assert sha256(b"layer") in found.digests


def test_a_child_that_is_marked_in_one_repository_is_marked_in_the_other_too(store: Store) -> None:
    child = store.tree.image("a", None, layers=[b"layer"])
    store.tree.image("b", None, layers=[b"layer"])
    store.tree.index("a", "v1", [child])
    store.tree.index("b", "v1", [child])
    found = marked(store.storage)
    assert {("a", child), ("b", child)} <= found.live


def test_the_parts_of_a_buildkit_cache_live_and_are_not_read(store: Store) -> None:
    parts = [
        descriptor(OCI_LAYER, store.tree.layer("a", b"not a manifest"), 1),
        descriptor(BUILDKIT_CONFIG, store.tree.layer("a", b"nor this"), 1),
    ]
    cache = store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": parts}, "cache")
    before = store.storage.requests.read
    found = marked(store.storage)
    assert store.storage.requests.read - before == 1
    assert found.digests == {cache, *(str(part["digest"]) for part in parts)}
    assert not found.held


def test_an_entry_without_a_type_is_followed_when_it_is_a_manifest(store: Store) -> None:
    image, layer = store.tree.image("b", None, layers=[b"x"]), store.tree.layer("a", b"{")
    entries = [{"digest": image, "size": 1}, {"digest": layer, "size": 1}]
    index = store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": entries}, "v1")
    found = marked(store.storage)
    assert found.live == {("a", index), ("a", image)}
    assert found.digests == {index, image, layer, *parts_of(store, image)}
    assert not found.held


@pytest.mark.parametrize("media_type", [None, "application/x", OCI_LAYER])
def test_an_entry_that_is_linked_as_a_manifest_is_one_whatever_its_type_says(
    store: Store, media_type: str | None
) -> None:
    image = store.tree.image("a", None, layers=[b"x"])
    entries = [{"digest": image, "mediaType": media_type, "size": 1}]
    store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": entries}, "v1")
    found = marked(store.storage)
    assert ("a", image) in found.live
    assert sha256(b"x") in found.digests


def test_a_link_that_alone_tells_an_entry_to_be_a_manifest_stays_for_the_next_run(
    store: Store,
) -> None:
    image = store.tree.image("b", None, layers=[b"x"])
    signature = store.tree.image("b", None, layers=[b"signature"], subject=image)
    other = store.tree.image("b", None, layers=[b"y"])
    entries = [{"digest": image, "mediaType": OCI_LAYER, "size": 1}]
    index = store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": entries}, "v1")
    found = marked(store.storage)
    assert found.live == {("a", index), ("a", image), ("b", image), ("b", signature)}
    assert found.dead == {("b", other)}
    store.remove(tag_path("a", "v1"))
    assert not marked(store.storage).live


def test_a_link_of_what_is_gone_stays_where_an_entry_without_a_type_names_it(store: Store) -> None:
    image = store.tree.image("b", None, layers=[b"x"])
    signature = store.tree.image("a", None, layers=[b"signature"], subject=image)
    store.remove(blob_path(image))
    index = store.tree.manifest(
        "a", {"mediaType": OCI_INDEX, "manifests": [{"digest": image, "size": 1}]}, "v1"
    )
    found = marked(store.storage)
    assert found.live == {("a", index), ("a", image), ("a", signature), ("b", image)}
    assert not found.dead


@pytest.mark.parametrize("media_type", [None, "application/x", OCI_LAYER])
def test_an_unreadable_entry_that_is_linked_as_a_manifest_holds(
    store: Store, media_type: str | None
) -> None:
    image = store.tree.image("b", "v1", layers=[b"x"])
    store.write(blob_path(image), b"{")
    entries = [{"digest": image, "mediaType": media_type, "size": 1}]
    store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": entries}, "v1")
    assert marked(store.storage).held == {"a", "b"}


# Schema 1


def schema1(tree: RegistryTree, repository: str, tag: str | None, layer: bytes) -> tuple[str, str]:
    """A schema 1 image and the blob of its signature."""
    document = {
        "schemaVersion": 1,
        "mediaType": SCHEMA1,
        "fsLayers": [{"blobSum": tree.layer(repository, layer)}],
    }
    image = tree.manifest(repository, document, tag)
    signature = tree.blob(b"signature of " + layer)
    folder = revision_path(repository, image).removesuffix("link")
    tree.write(f"{folder}signatures/{signature.replace(':', '/')}/link", signature.encode())
    return image, signature


def test_the_signatures_of_live_schema_1_images_live_and_those_of_dead_ones_do_not(
    store: Store,
) -> None:
    live, kept = schema1(store.tree, "a", "v1", b"1")
    dead, dropped = schema1(store.tree, "a", None, b"2")
    found = marked(store.storage)
    assert (found.live, found.dead) == ({("a", live)}, {("a", dead)})
    assert found.digests == {live, kept, sha256(b"1")}
    assert dropped not in found.digests
    assert dropped in marked(store.storage, KEEP_UNTAGGED).digests


def test_signatures_are_found_in_folders_too_where_the_listing_leaves_them_out(
    tmp_path: Path,
) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    live, kept = schema1(tree, "a", "v1", b"1")
    storage = FilesystemStorage(str(tmp_path))
    found = marked(storage)
    assert found.digests == {live, kept, sha256(b"1")}
    (tmp_path / blob_path(live)).write_bytes(b"{")
    assert kept in marked(storage).digests


def test_the_signatures_of_a_held_repository_live(store: Store) -> None:
    image, signature = schema1(store.tree, "a", None, b"1")
    store.write(blob_path(image), b"{")
    assert signature in marked(store.storage).digests


# All of it


def test_nothing_is_nothing(store: Store) -> None:
    found = marked(store.storage)
    assert (found.live, found.dead) == (set(), set())
    assert found.held == found.digests == found.damaged == set()


def test_each_manifest_is_read_once_however_many_repositories_have_it(store: Store) -> None:
    for number in range(10):
        child = store.tree.image(f"r{number}", "v1")
        store.tree.index(f"r{number}", "v2", [child])
    before = store.storage.requests.read
    marked(store.storage)
    assert store.storage.requests.read - before == 2


def test_threads_find_what_one_after_the_other_finds(store: Store) -> None:
    for number in range(150):
        image = store.tree.image(f"r{number % 7}", None, layers=[b"%d" % number])
        store.tree.image(f"r{number % 7}", None, layers=[b"s%d" % number], subject=image)
        if number % 3:
            store.tree.index(f"r{number % 5}", f"v{number}", [image])
    one = marked(store.storage)
    with ThreadEngine(store.storage, 4) as engine:
        other = marked(store.storage, engine=engine)
    assert (one.live, one.dead, one.digests) == (other.live, other.dead, other.digests)
    assert one.manifests.batch.keys.tobytes() == other.manifests.batch.keys.tobytes()
    assert one.marking.live.tolist() == other.marking.live.tolist()


def test_marking_twice_asks_the_storage_for_nothing_more(store: Store) -> None:
    image = store.tree.image("a", None, layers=[b"x"])
    store.tree.index("a", "v1", [image])
    found = marked(store.storage)
    before = store.storage.requests.read
    found.manifests.load(found.catalog.revisions.keys)
    assert store.storage.requests.read == before


def test_a_config_that_is_shared_by_all_is_live_once(store: Store) -> None:
    for number in range(5):
        store.tree.image("a", f"v{number}", layers=[b"%d" % number])
    found = marked(store.storage)
    assert len(found.digests) == 5 + 5 + 1
    assert len(found.marking.digests) == 11


def test_an_image_that_references_itself_or_its_index_cannot_be_made_and_hurts_nobody(
    store: Store,
) -> None:
    """With made-up digests it can at least be written down."""
    one, two = sha256(b"one"), sha256(b"two")
    for name, other in ((one, two), (two, one)):
        document = {
            "mediaType": OCI_INDEX,
            "manifests": [descriptor(OCI_INDEX, other, 1)],
            "subject": descriptor(OCI_INDEX, name, 1),
        }
        store.write(blob_path(name), json.dumps(document).encode())
        store.write(revision_path("a", name), name.encode())
    assert marked(store.storage).held == {"a"}


def test_old_layer_links_of_manifests_are_ordinary_layer_links(store: Store) -> None:
    """Registries before 2.1 linked manifests under ``_layers``, too."""
    image = store.tree.image("a", "v1")
    store.tree.link_layer("a", image)
    found = marked(store.storage)
    assert found.live == {("a", image)}


def test_config_and_artifact_types_do_not_matter_for_what_lives(store: Store) -> None:
    config = store.tree.layer("a", b"config")
    document = {
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/x",
        "config": descriptor(OCI_CONFIG, config, 1),
        "layers": [],
    }
    artifact = store.tree.manifest("a", document, "v1")
    assert marked(store.storage).digests == {artifact, config}
    assert store.age == OLD
