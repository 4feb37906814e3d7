"""Which repositories are held, for what cannot be read or believed, and what releases them."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from core_support import KEEP_UNTAGGED, UNTAGGED_GO, Store, marked
from registry_drivers.errors import Unavailable
from registry_drivers.memory import MemoryStorage
from registry_gc.policy import Policy, Release
from registry_tree import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    blob_path,
    descriptor,
    revision_path,
    sha256,
    sha512,
    tag_path,
)


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
