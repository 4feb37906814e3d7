"""Which referrers live: with their subject, wherever that lives."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from core_support import Store, marked
from registry_gc.marking.pairs import pairs_of
from registry_tree import (
    OCI_ARTIFACT,
    OCI_LAYER,
    OCI_MANIFEST,
    blob_path,
    descriptor,
    revision_path,
    sha256,
    sha512,
)


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


@pytest.mark.parametrize("link", ["subject", "layer"])
def test_what_has_been_followed_is_not_asked_about_with_each_link_of_a_chain(
    monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    looked = 0

    def counted(owner: NDArray[np.integer], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        nonlocal looked
        looked += len(ids)
        return pairs_of(owner, ids)

    monkeypatch.setattr("registry_gc.marking.referrers.pairs_of", counted)
    store = Store()
    length = 50
    before = store.tree.image("a", "v1", layers=[b"0"])
    for number in range(1, length):
        subject = before if link == "subject" else sha256(b"%d" % (number - 1))
        layer = b"%d" % number
        before = store.tree.image("a", None, layers=[layer], subject=subject)
    for number in range(length):
        store.tree.image("b", None, layers=[b"other"], subject=sha256(b"nothing %d" % number))
    found = marked(store.storage)
    assert len(found.live) == length
    assert len(found.dead) == length
    assert looked <= 2 * length
