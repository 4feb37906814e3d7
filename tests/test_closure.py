"""The second, exact working out of what is live, against the naive model and the first one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_support import NOW, Store, marked
from model import HOUR, expect, read_blobs
from registry_drivers.memory import MemoryStorage
from registry_gc.digest import Names, key_of, pack
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.listing.reading import read_catalog
from registry_gc.manifests import UnreadableManifest, parse
from registry_gc.policy import Policy
from registry_gc.verify.closure import Closure, close
from registry_gc.verify.descriptors import UNSTATED, Indescribable, Part, Role, describe
from registry_gc.verify.library import Library
from registry_tree import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    SCHEMA1,
    blob_path,
    descriptor,
    revision_path,
    sha256,
    tag_index_path,
    tag_path,
)
from strategies import Registry, damaged


def in_memory(registry: Registry) -> MemoryStorage:
    """The files of *registry*, with their ages, in a storage whose clock stands still."""
    storage = MemoryStorage(lambda: NOW)
    for path, file in registry.files.items():
        storage.put(path, file.data, NOW - file.age)
    return storage


def young_blobs(registry: Registry, grace: float) -> list[bytes]:
    """The keys of blobs that are young themselves, which the listing of blobs tells a run."""
    blobs = read_blobs(registry.files)
    return [key_of(digest) for digest, path in blobs.items() if registry.files[path].age < grace]


def closed(
    storage: MemoryStorage, policy: Policy, young: Iterable[bytes] = ()
) -> tuple[Closure, Names, list[str]]:
    """What is live, the texts of its keys, and the names of its repositories."""
    engine = SerialEngine(storage)
    catalog = read_catalog(storage, engine, Silence())
    library = Library(engine, catalog, Silence())
    closure = close(storage, library, catalog, policy, NOW - policy.grace, young)
    return closure, catalog.names, catalog.repositories


@settings(max_examples=150)
@given(damaged(), st.booleans(), st.booleans())
def test_the_closure_is_what_the_model_and_the_marking_call_live(
    registry: Registry, delete_untagged: bool, grace: bool
) -> None:
    policy = Policy(delete_untagged=delete_untagged, grace=HOUR if grace else 0.0)
    storage = in_memory(registry)
    expected = expect(registry.files, delete_untagged=delete_untagged, grace=policy.grace)
    young = young_blobs(registry, policy.grace)
    closure, names, repositories = closed(storage, policy, young)
    first = marked(storage, policy, young=pack(sorted(young)))
    assert {repositories[number] for number in closure.held} == expected.held
    assert set(names.texts(closure.digests)) == first.digests
    assert set(names.texts(closure.digests)) | texts(names, closure.young) >= expected.marked
    pairs = {(repositories[r], names.text(key)) for r, keys in closure.live.items() for key in keys}
    assert pairs == first.live


@pytest.mark.parametrize("age", [HOUR / 2, 2 * HOUR], ids=["young", "old"])
def test_what_a_tag_pointed_to_once_is_live_for_both_though_it_is_gone(age: float) -> None:
    store = Store(age=NOW - 2 * HOUR)
    lost = store.tree.image("a", "v1", layers=[b"layer"])
    store.remove(blob_path(lost))
    store.remove(revision_path("a", lost))
    store.write(tag_path("a", "v1"), b"")
    store.touch(tag_index_path("a", "v1", lost), NOW - age)
    storage = store.storage
    policy = Policy(delete_untagged=True, grace=HOUR)
    closure, names, repositories = closed(storage, policy)
    assert {repositories[number] for number in closure.held} == {"a"}
    assert ("a", lost) in marked(storage, policy).live
    assert key_of(lost) in closure.live[0]
    assert set(names.texts(closure.digests)) == marked(storage, policy).digests
    assert lost in names.texts(closure.digests)


def texts(names: Names, keys: Iterable[bytes]) -> set[str]:
    """The digests of some keys."""
    return {names.text(key) for key in keys}


CONFIG, LAYER = sha256(b"config"), sha256(b"layer")


def image(**changes: Any) -> dict[str, Any]:
    """An image of one config and one layer."""
    whole = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/x", CONFIG, 6),
        "layers": [descriptor(OCI_LAYER, LAYER, 5)],
    }
    return {**whole, **changes}


def described(document: object) -> list[Part]:
    """The parts of a document."""
    return [*describe(json.dumps(document).encode()).parts]


def test_an_image_has_a_config_and_layers_with_their_sizes() -> None:
    assert described(image()) == [Part(Role.CONFIG, CONFIG, 6), Part(Role.LAYER, LAYER, 5)]


def test_keys_count_in_any_case_as_the_registry_takes_them() -> None:
    odd = {key.upper(): value for key, value in image().items()}
    assert described(odd) == described(image())


@pytest.mark.parametrize(
    "layer",
    [
        {**descriptor(OCI_LAYER, LAYER, 5), "urls": ["http://elsewhere/"]},
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", LAYER, 5),
        descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", LAYER, 5),
    ],
)
def test_a_layer_that_lies_elsewhere_is_foreign(layer: dict[str, Any]) -> None:
    assert described(image(layers=[layer]))[1] == Part(Role.FOREIGN, LAYER, 5)


def test_an_index_tells_manifests_layers_and_what_may_be_either_apart() -> None:
    entries = [
        descriptor(OCI_MANIFEST, CONFIG, 1),
        descriptor(OCI_LAYER, LAYER, 2),
        {"digest": CONFIG},
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    assert [(part.role, part.size) for part in described(document)] == [
        (Role.CHILD, 1),
        (Role.LISTED, 2),
        (Role.ENTRY, UNSTATED),
    ]


def test_schema_1_states_no_sizes() -> None:
    document = {"schemaVersion": 1, "mediaType": SCHEMA1, "fsLayers": [{"blobSum": LAYER}]}
    assert described(document) == [Part(Role.LAYER, LAYER, UNSTATED)]
    assert describe(json.dumps(document).encode()).schema_1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"layers": []}',
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(image()).encode()[:-1] + b', "layers": []}',
        json.dumps(image())
        .encode()
        .replace(b'"digest"', f'"digest": "{LAYER}", "digest"'.encode()),
        json.dumps(image(layers=[{"digest": "sha256:short"}])).encode(),
        json.dumps(image(layers={"digest": LAYER})).encode(),
        json.dumps(image(layers=[5])).encode(),
        json.dumps(image(mediaType=5)).encode(),
    ],
)
def test_what_is_no_manifest_for_the_collection_is_none_here(data: bytes) -> None:
    with pytest.raises(Indescribable):
        describe(data)
    with pytest.raises(UnreadableManifest):
        parse(data)


def test_a_key_in_two_spellings_is_not_decided_upon() -> None:
    with pytest.raises(Indescribable, match="twice"):
        described({**image(), "Layers": []})
