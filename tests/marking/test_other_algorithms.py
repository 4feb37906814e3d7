"""What a reference by another algorithm keeps, and whom a name that nothing resolves holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from core_support import NOW, Store, marked
from registry_drivers.errors import StorageError
from registry_drivers.memory import MemoryStorage
from registry_gc.listing.links import OddLink, read_odd_links
from registry_gc.marking.holding import Holding
from registry_tree import (
    OCI_ARTIFACT,
    OCI_LAYER,
    blob_path,
    descriptor,
    layer_link_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)


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


@pytest.mark.parametrize("linked", [False, True])
def test_a_tag_of_a_name_of_which_nothing_is_stored_holds_its_repository(
    store: Store, linked: bool
) -> None:
    lost = sha512(b"lost")
    perhaps = store.tree.image("a", None)
    if linked:
        store.write(revision_path("a", lost), lost.encode())
    store.write(tag_path("a", "v1"), lost.encode())
    store.write(tag_index_path("a", "v1", lost), lost.encode())
    found = marked(store.storage)
    assert found.held == {"a"}
    assert perhaps in found.digests


def test_a_link_of_that_name_which_cannot_be_read_says_nothing(store: Store) -> None:
    store.write(layer_link_path("a", sha512(b"layer")), b"sha25")
    store.tree.image("a", "v1", extra={"layers": [descriptor(OCI_LAYER, sha512(b"layer"), 5)]})
    found = marked(store.storage)
    assert found.held == {"a"}
    assert found.damaged == {layer_link_path("a", sha512(b"layer"))}


@pytest.mark.parametrize("kind", ["layers", "revisions"])
@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("cut", [0, 5, 20, 70])
def test_a_link_that_was_cut_on_its_way_is_read_again(cut: int, folders: bool, kind: str) -> None:
    store = Store()
    store.storage = _Cutting(cut)
    if folders:
        store.storage.capabilities = replace(store.storage.capabilities, folders=True)
    image = store.tree.image("a", None)
    named = sha512(store.storage.snapshot()[blob_path(image)])
    path = (revision_path if kind == "revisions" else layer_link_path)("a", named)
    store.write(path, image.encode())
    store.tree.index("a", "v1", [named])
    store.storage.path, store.storage.times = path, 2
    found = marked(store.storage)
    assert image in found.digests
    assert not found.held
    assert not found.damaged
    # For ever: it is neither believed, nor held against the repository.
    store.storage.times = 1 << 30
    with pytest.raises(StorageError, match=f"a link of 71 bytes, of which {cut} are read"):
        marked(store.storage)


def test_a_link_that_was_written_anew_since_it_was_listed_is_what_it_is_now(store: Store) -> None:
    store.tree.link_layer("a", sha512(b"layer"), store.tree.blob(b"layer"))
    link = OddLink(layer_link_path("a", sha512(b"layer")), sha512(b"layer"), 0)
    assert read_odd_links(store.storage, (link,)) == [(link.path, sha256(b"layer"), "")]


class _Cutting(MemoryStorage):
    """Cuts some answers for one path short."""

    path = ""
    times = 0

    def __init__(self, cut: int) -> None:
        super().__init__(lambda: NOW)
        self._cut = cut

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        data = super().read(path, limit=limit)
        if path != self.path or not self.times:
            return data
        self.times -= 1
        return data[: self._cut]


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


def test_the_keys_of_all_manifests_are_not_asked_for_to_find_such_names(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        store.tree.image("a", f"v{number}")
    store.tree.tag("b", "v1", sha512(b"lost"))
    asked: list[int] = []
    hold = Holding._where_lost

    def counting(self: Any, pairs: Any, keys: Any, how: str) -> None:
        asked.append(len(keys) if how == "linked" else 0)
        hold(self, pairs, keys, how)

    monkeypatch.setattr(Holding, "_where_lost", counting)
    assert marked(store.storage).held == {"b"}
    assert sum(asked) == 1
