"""What is live, rule by rule; with ``-m`` unless a test says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from core_support import (
    GRACE,
    OLD,
    UNTAGGED_GO,
    UNTAGGED_GO_WITH_GRACE,
    YOUNG,
    Store,
    marked,
)
from registry_drivers.errors import Unavailable
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_gc.digest import key_of, pack
from registry_gc.engine import ThreadEngine
from registry_gc.policy import Policy, Release
from registry_tree import (
    BUILDKIT_CONFIG,
    OCI_ARTIFACT,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    SCHEMA1,
    RegistryTree,
    blob_path,
    descriptor,
    folder_sink,
    layer_link_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)

KEEP_UNTAGGED = Policy()


@pytest.fixture
def store() -> Store:
    return Store()


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


# Referrers


def test_untagged_referrers_live_with_their_subject_in_chains(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"image"])
    chain = [image]
    for number in range(5):
        chain.append(store.tree.image("a", None, layers=[b"%d" % number], subject=chain[-1]))
    dead = store.tree.image("a", None, layers=[b"dead"])
    of_dead = store.tree.image("a", None, layers=[b"of dead"], subject=dead)
    found = marked(store.storage)
    assert found.live == {("a", digest) for digest in chain}
    assert found.dead == {("a", dead), ("a", of_dead)}
    assert sha256(b"4") in found.digests
    assert sha256(b"of dead") not in found.digests


def test_an_index_and_an_artifact_can_be_referrers_and_keep_what_they_name(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"image"])
    inner = store.tree.image("a", None, layers=[b"inner"])
    subject = {"subject": descriptor(OCI_MANIFEST, image, 1)}
    index = store.tree.index("a", None, [inner], extra=subject)
    blob = store.tree.layer("a", b"sbom")
    artifact = store.tree.manifest(
        "a", {"mediaType": OCI_ARTIFACT, "blobs": [descriptor("text/plain", blob, 4)], **subject}
    )
    found = marked(store.storage)
    assert found.live == {("a", digest) for digest in (image, index, inner, artifact)}
    assert {blob, sha256(b"inner")} < found.digests


def test_the_referrer_of_a_child_lives_with_the_index(store: Store) -> None:
    child = store.tree.image("a", None, layers=[b"child"])
    store.tree.index("a", "v1", [child])
    signature = store.tree.image("a", None, layers=[b"signature"], subject=child)
    assert ("a", signature) in marked(store.storage).live


def test_a_referrer_whose_subject_lives_only_in_another_repository_lives(store: Store) -> None:
    image = store.tree.image("b", "v1", layers=[b"image"])
    signature = store.tree.image("a", None, layers=[b"signature"], subject=image)
    assert ("a", signature) in marked(store.storage).live


def test_a_referrer_whose_subject_is_linked_here_and_dead_is_dead_whatever_is_elsewhere(
    store: Store,
) -> None:
    image = store.tree.image("b", "v1", layers=[b"image"])
    store.tree.image("a", None, layers=[b"image"])
    signature = store.tree.image("a", None, layers=[b"signature"], subject=image)
    found = marked(store.storage)
    assert found.live == {("b", image)}
    assert found.dead == {("a", image), ("a", signature)}


def test_a_referrer_whose_subject_is_not_linked_there_and_lives_as_a_layer_lives(
    store: Store,
) -> None:
    image = store.tree.image("a", None, layers=[b"image"])
    signature = store.tree.image("a", None, layers=[b"signature"], subject=image)
    other = store.tree.image("a", None, layers=[b"of that"], subject=signature)
    carries = {"mediaType": OCI_ARTIFACT, "blobs": [descriptor(OCI_LAYER, image, 1)]}
    artifact = store.tree.manifest("b", carries, "v1")
    # Linked there and untagged, it is dead there, whatever is elsewhere.
    assert marked(store.storage).live == {("b", artifact)}
    store.remove(revision_path("a", image))
    found = marked(store.storage)
    assert found.live == {("b", artifact), ("a", signature), ("a", other)}
    assert sha256(b"of that") in found.digests
    assert sha256(b"image") not in found.digests


def test_a_referrer_whose_subject_lives_nowhere_is_dead(store: Store) -> None:
    store.tree.image("a", "v1")
    signature = store.tree.image("a", None, layers=[b"x"], subject=sha256(b"never pushed"))
    assert ("a", signature) in marked(store.storage).dead


def test_the_referrer_of_a_missing_child_of_a_live_index_lives(store: Store) -> None:
    missing = sha256(b"never pushed")
    store.tree.index("a", "v1", [missing])
    signature = store.tree.image("a", None, layers=[b"x"], subject=missing)
    assert ("a", signature) in marked(store.storage).live


def test_a_subject_keeps_nothing_alive_by_itself(store: Store) -> None:
    image = store.tree.image("a", None, layers=[b"image"])
    store.tree.image("a", "signature", layers=[b"signature"], subject=image)
    found = marked(store.storage)
    assert found.dead == {("a", image)}
    assert image not in found.digests


def test_a_referrer_that_names_its_subject_by_sha512_lives_with_it(store: Store) -> None:
    image = store.tree.image("a", "v1")
    data = store.storage.snapshot()[blob_path(image)]
    store.tree.link_layer("a", sha512(data), image)
    signature = store.tree.image("a", None, layers=[b"x"], subject=sha512(data))
    assert ("a", signature) in marked(store.storage).live


# Other algorithms


@pytest.mark.parametrize("owner", ["a", "b"])
def test_a_reference_by_sha512_keeps_what_a_link_says_it_is(store: Store, owner: str) -> None:
    layer = store.tree.blob(b"layer")
    store.tree.link_layer(owner, sha512(b"layer"), layer)
    store.tree.image(
        "a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]}, layers=[]
    )
    found = marked(store.storage)
    assert {layer, sha512(b"layer")} < found.digests
    assert not found.held


def test_a_reference_by_sha512_keeps_the_blob_of_that_name(store: Store) -> None:
    store.tree.blob(b"layer", sha512(b"layer"))
    store.tree.image("a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]})
    found = marked(store.storage)
    assert sha512(b"layer") in found.digests
    assert not found.held


def test_all_that_links_say_about_a_name_is_kept(store: Store) -> None:
    for repository, data in (("a", b"1"), ("b", b"2")):
        store.tree.blob(data)
        store.tree.link_layer(repository, sha512(b"layer"), sha256(data))
    store.tree.image("a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]})
    assert {sha256(b"1"), sha256(b"2")} < marked(store.storage).digests


def test_a_name_of_which_nothing_is_stored_holds_whoever_reaches_it(store: Store) -> None:
    other = store.tree.layer("a", b"perhaps this one")
    image = store.tree.image(
        "a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]}
    )
    store.tree.index("b", "v1", [image])
    store.tree.image("c", None)
    found = marked(store.storage)
    assert found.held == {"a", "b"}
    assert other in found.digests
    reasons = {hold.reason for hold in found.marking.holds}
    assert reasons == {"referenced, but stored under no known name"}


def test_a_link_of_that_name_which_cannot_be_read_says_nothing(store: Store) -> None:
    store.write(layer_link_path("a", sha512(b"layer")), b"sha25")
    store.tree.image("a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]})
    found = marked(store.storage)
    assert found.held == {"a"}
    assert found.damaged == {layer_link_path("a", sha512(b"layer"))}


@pytest.mark.parametrize("kind", ["layers", "revisions"])
def test_a_manifest_by_sha512_is_read_where_its_link_says_that_it_is(
    store: Store, kind: str
) -> None:
    image = store.tree.image("a", None, layers=[b"layer"])
    data = store.storage.snapshot()[blob_path(image)]
    alias = sha512(data)
    path = (revision_path if kind == "revisions" else layer_link_path)("a", alias)
    store.write(path, image.encode())
    store.tree.index("a", "v1", [alias])
    found = marked(store.storage)
    assert ("a", alias) in found.live
    assert {image, alias, sha256(b"layer")} < found.digests
    assert not found.held


def test_a_tag_may_point_to_a_manifest_by_sha512(store: Store) -> None:
    image = store.tree.image("a", None, layers=[b"layer"])
    data = store.storage.snapshot()[blob_path(image)]
    store.write(revision_path("a", sha512(data)), image.encode())
    store.tree.tag("a", "v1", sha512(data))
    found = marked(store.storage)
    assert {image, sha256(b"layer")} < found.digests
    assert not found.held


def test_a_manifest_whose_digest_nobody_can_check_holds(store: Store) -> None:
    data = store.storage
    image = json.dumps({"mediaType": OCI_ARTIFACT, "blobs": []}).encode()
    store.tree.blob(image, "made-up:xyz")
    store.tree.tag("a", "v1", "made-up:xyz")
    assert marked(data).held == {"a"}


# Held


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"schemaVersion":2}'])
def test_a_manifest_that_cannot_be_read_holds_every_repository_that_links_or_reaches_it(
    store: Store, content: bytes
) -> None:
    bad = store.tree.image("linking", None, layers=[b"1"])
    untagged = store.tree.image("linking", None, layers=[b"2"])
    orphan = store.tree.layer("linking", b"orphan")
    store.tree.index("reaching", "v1", [bad])
    healthy = store.tree.image("healthy", None, layers=[b"3"])
    store.write(blob_path(bad), content)
    found = marked(store.storage)
    assert found.held == {"linking", "reaching"}
    assert {(hold.repository, hold.digest) for hold in found.marking.holds} == {
        ("linking", bad),
        ("reaching", bad),
    }
    assert ("linking", untagged) in found.live
    assert {sha256(b"1"), sha256(b"2"), orphan, bad} <= found.digests
    assert found.dead == {("healthy", healthy)}


def test_a_valid_manifest_of_another_digest_holds_and_is_not_believed(store: Store) -> None:
    bad = store.tree.image("a", "v1", layers=[b"1"])
    document = {"mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, sha256(b"x"), 1)]}
    store.write(blob_path(bad), json.dumps(document).encode())
    found = marked(store.storage)
    assert found.held == {"a"}
    assert found.damaged == {blob_path(bad)}
    assert sha256(b"x") not in found.digests


def test_what_a_held_repository_reaches_can_hold_others(store: Store) -> None:
    """A dead revision that becomes live through the hold may itself reach damage."""
    bad = store.tree.image("a", None)
    worse = store.tree.image("c", None, layers=[b"worse"])
    store.tree.index("a", None, [store.tree.index("b", None, [worse])])
    store.write(blob_path(bad), b"{")
    store.write(blob_path(worse), b"{")
    assert marked(store.storage).held == {"a", "c"}
    reasons = {(hold.repository, hold.digest) for hold in marked(store.storage).marking.holds}
    assert ("a", worse) in reasons


def test_a_held_repository_makes_referrers_of_its_manifests_live(store: Store) -> None:
    bad = store.tree.image("a", None, layers=[b"1"])
    image = store.tree.image("a", None, layers=[b"2"])
    signature = store.tree.image("b", None, layers=[b"3"], subject=image)
    store.write(blob_path(bad), b"{")
    assert ("b", signature) in marked(store.storage).live


@pytest.mark.parametrize("policy", [UNTAGGED_GO, KEEP_UNTAGGED])
def test_a_tag_that_holds_no_digest_holds_and_all_it_ever_pointed_to_is_a_root(
    store: Store, policy: Policy
) -> None:
    old = store.tree.image("a", "v1", layers=[b"old"])
    new = store.tree.image("a", "v1", layers=[b"new"])
    for digest in (old, new):
        store.remove(revision_path("a", digest))
    store.write(tag_path("a", "v1"), b"")
    found = marked(store.storage, policy)
    assert found.held == {"a"}
    assert {("a", old), ("a", new)} <= found.live
    assert {sha256(b"old"), sha256(b"new")} < found.digests
    assert [hold.digest for hold in found.marking.holds] == [None]


def test_release_of_a_manifest_lifts_that_hold_only(store: Store) -> None:
    bad = [store.tree.image("a", None, layers=[b"%d" % number]) for number in range(2)]
    for digest in bad:
        store.write(blob_path(digest), b"{")
    one = replace(UNTAGGED_GO, releases=(Release("a", bad[0]),))
    both = replace(UNTAGGED_GO, releases=tuple(Release("a", digest) for digest in bad))
    elsewhere = replace(UNTAGGED_GO, releases=(Release("b"),))
    assert marked(store.storage, one).held == {"a"}
    assert marked(store.storage, both).held == set()
    assert marked(store.storage, both).dead == {("a", digest) for digest in bad}
    assert marked(store.storage, elsewhere).held == {"a"}


def test_release_of_a_repository_lifts_all_its_holds_and_no_other(store: Store) -> None:
    for name in ("a", "b"):
        bad = store.tree.image(name, None, layers=[name.encode()])
        store.write(blob_path(bad), b"{")
        store.tree.image(name, "v1", layers=[b"tagged"])
        store.write(tag_path(name, "v1"), b"")
    policy = replace(UNTAGGED_GO, releases=(Release("a"),))
    assert marked(store.storage, policy).held == {"b"}


def test_a_storage_error_is_no_hold(store: Store) -> None:
    image = store.tree.image("a", "v1")
    other = store.tree.image("b", "v1")
    assert image == other

    class Failing(MemoryStorage):
        def read(self, path: str, *, limit: int | None = None) -> bytes:
            if path == blob_path(image):
                raise Unavailable("try later", path=path)
            return super().read(path, limit=limit)

    storage = Failing()
    for path, data in store.storage.snapshot().items():
        storage.put(path, data)
    with pytest.raises(Unavailable):
        marked(storage)


def test_a_stat_that_fails_ends_the_run_too(store: Store) -> None:
    """Whether a sha512 name is stored decides over a hold: not knowing is not "no"."""
    store.tree.image("a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]})

    class Failing(MemoryStorage):
        def stat(self, path: str):  # type: ignore[no-untyped-def]  # never returns
            raise Unavailable("try later", path=path)

    storage = Failing()
    for path, data in store.storage.snapshot().items():
        storage.put(path, data)
    with pytest.raises(Unavailable):
        marked(storage)


def test_a_revision_whose_manifest_is_gone_keeps_nothing_and_holds_nothing(store: Store) -> None:
    lost = store.tree.image("a", None, layers=[b"x"])
    store.remove(blob_path(lost))
    for policy in (UNTAGGED_GO, KEEP_UNTAGGED):
        found = marked(store.storage, policy)
        assert not found.held
        assert found.damaged == {revision_path("a", lost)}
        assert sha256(b"x") not in found.digests


# Grace


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
