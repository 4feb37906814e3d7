"""What is a root because it is young, or because something young names it."""

from __future__ import annotations

import pytest

from core_support import GRACE, UNTAGGED_GO_WITH_GRACE, YOUNG, Store, marked
from registry_gc.digest import key_of, pack
from registry_gc.policy import Policy
from registry_tree import layer_link_path, revision_path, sha256, sha512, tag_index_path, tag_path


def test_a_young_revision_is_a_root(store: Store) -> None:
    old = store.tree.image("a", None, layers=[b"old"])
    image = store.tree.image("a", None, layers=[b"young"])
    store.touch(revision_path("a", image))
    assert marked(store.storage).dead == {("a", old), ("a", image)}
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE)
    assert found.dead == {("a", old)}
    assert sha256(b"young") in found.digests


def test_a_young_link_of_a_manifest_makes_it_young_in_every_repository(store: Store) -> None:
    image = store.tree.image("a", None)
    store.write(revision_path("b", image), image.encode())
    store.touch(revision_path("b", image))
    assert marked(store.storage, UNTAGGED_GO_WITH_GRACE).dead == set()


@pytest.mark.parametrize("policy", [GRACE, UNTAGGED_GO_WITH_GRACE])
def test_a_young_layer_link_keeps_what_it_names(store: Store, policy: Policy) -> None:
    layer = store.tree.layer("a", b"just pushed")
    old = store.tree.layer("a", b"long ago")
    store.touch(layer_link_path("a", layer))
    found = marked(store.storage, policy)
    assert layer in found.digests
    assert old not in found.digests


def test_a_young_link_by_another_name_keeps_what_it_says_under_every_name(store: Store) -> None:
    layer = store.tree.blob(b"x")
    store.tree.link_layer("a", sha512(b"x"), layer)
    store.touch(layer_link_path("a", sha512(b"x")))
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE)
    assert {layer, sha512(b"x")} == found.digests
    assert {key.tobytes() for key in found.marking.young} == {key_of(layer), key_of(sha512(b"x"))}


def test_what_a_young_entry_of_a_tags_index_names_is_a_root_there(store: Store) -> None:
    old = store.tree.image("a", "v1", layers=[b"old"])
    new = store.tree.image("a", "v1", layers=[b"new"])
    store.remove(revision_path("a", old))
    store.touch(tag_index_path("a", "v1", old))
    assert marked(store.storage).live == {("a", new)}
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE)
    assert found.live == {("a", old), ("a", new)}
    assert sha256(b"old") in found.digests


def test_a_young_tag_makes_its_target_young_in_every_repository(store: Store) -> None:
    image = store.tree.image("a", None)
    store.tree.tag("b", "v1", image)
    store.write(revision_path("b", image), image.encode())
    store.touch(tag_path("b", "v1"))
    assert marked(store.storage, UNTAGGED_GO_WITH_GRACE).dead == set()


def test_a_young_entry_of_a_manifest_that_is_gone_is_no_error(store: Store) -> None:
    gone = sha256(b"gone")
    referrer = store.tree.image("b", None, subject=gone)
    store.age = YOUNG
    store.write(tag_index_path("a", "v1", gone), b"x" * 71)
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE)
    assert found.live == {("a", gone), ("b", referrer)}
    assert (found.held, found.damaged) == (set(), set())
    assert marked(store.storage).dead == {("b", referrer)}


def test_what_refers_to_a_manifest_that_is_gone_stays_with_the_broken_tag_that_had_it(
    store: Store,
) -> None:
    """All that such a tag ever pointed to is a root: it may be what it points to now."""
    gone = sha256(b"gone")
    referrer = store.tree.image("b", None, subject=gone)
    store.write(tag_index_path("a", "v1", gone), gone.encode())
    store.write(tag_path("a", "v1"), b"")
    found = marked(store.storage)
    assert ("b", referrer) in found.live
    assert found.held == {"a"}


def test_a_young_blob_that_is_a_linked_manifest_is_a_root(store: Store) -> None:
    """As after a restore from a backup: links are old, the blob is new."""
    image = store.tree.image("a", None, layers=[b"x"])
    found = marked(store.storage, UNTAGGED_GO_WITH_GRACE, young=pack([key_of(image)]))
    assert found.live == {("a", image)}
    assert sha256(b"x") in found.digests


def test_at_the_cut_off_itself_nothing_is_young(store: Store) -> None:
    image = store.tree.image("a", None)
    cutoff = store.storage.now() - UNTAGGED_GO_WITH_GRACE.grace
    store.touch(revision_path("a", image), cutoff)
    assert marked(store.storage, UNTAGGED_GO_WITH_GRACE).dead == {("a", image)}
    store.touch(revision_path("a", image), cutoff + 0.001)
    assert marked(store.storage, UNTAGGED_GO_WITH_GRACE).dead == set()
