"""Manifests are read once, checked, and keep their numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from core_support import Store, Watcher
from registry_drivers.errors import AccessDenied
from registry_drivers.memory import MemoryStorage
from registry_gc.cache import ReferenceCache
from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import Names, empty_keys, key_of, pack
from registry_gc.engine import SerialEngine, ThreadEngine
from registry_gc.manifest_reader import Edge, ManifestState
from registry_gc.manifests import SIZE_LIMIT, ManifestKind
from registry_gc.references import Manifests, Stretch
from registry_tree import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    blob_path,
    descriptor,
    sha256,
    sha512,
)


@pytest.fixture
def store() -> Store:
    return Store()


def manifests_of(store: Store, names: Names | None = None) -> Manifests:
    return Manifests(SerialEngine(store.storage), names or Names(), {}, Watcher())


def edges(manifests: Manifests, digest: str) -> list[tuple[str, Edge]]:
    """What a manifest names, in order."""
    number = manifests.ids(pack([key_of(digest)]))
    _, keys, kinds = manifests.targets_of(number)
    texts = manifests._names.texts(keys)
    return [(text, Edge(kind)) for text, kind in zip(texts, kinds.tolist(), strict=True)]


def state(manifests: Manifests, digest: str) -> ManifestState:
    (number,) = manifests.ids(pack([key_of(digest)]))
    return ManifestState(manifests.batch.states[number])


def test_the_references_of_a_manifest_are_its_edges(store: Store) -> None:
    image, layer = store.tree.image("a", None, layers=[b"1", b"2"], config=b"c"), sha256(b"x")
    entries = [
        descriptor(OCI_MANIFEST, image, 1),
        descriptor(OCI_LAYER, layer, 1),
        {"digest": sha256(b"unknown")},
    ]
    index = store.tree.manifest("a", {"mediaType": OCI_INDEX, "manifests": entries})
    manifests = manifests_of(store)
    manifests.load(pack([key_of(image), key_of(index)]))
    assert edges(manifests, image) == [(sha256(data), Edge.BLOB) for data in (b"c", b"1", b"2")]
    assert edges(manifests, index) == [
        (layer, Edge.BLOB),
        (image, Edge.CHILD),
        (sha256(b"unknown"), Edge.MAYBE),
        (layer, Edge.LINKED),
    ]
    assert (
        manifests.of_kind(ManifestKind.INDEX).sum()
        == manifests.of_kind(ManifestKind.IMAGE).sum()
        == 1
    )


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, OCI_INDEX, None])
@pytest.mark.parametrize("entry", [OCI_LAYER, OCI_MANIFEST, None])
def test_what_is_an_image_and_an_index_at_once_has_the_edges_of_both(
    store: Store, media_type: str | None, entry: str | None
) -> None:
    config, layer, listed = sha256(b"c"), sha256(b"l"), sha256(b"listed")
    content: dict[str, object] = {
        "config": descriptor(OCI_LAYER, config, 1),
        "layers": [descriptor(OCI_LAYER, layer, 1)],
        "manifests": [{"digest": listed} | ({"mediaType": entry} if entry else {})],
    }
    if media_type:
        content["mediaType"] = media_type
    both = store.tree.manifest("a", content)
    manifests = manifests_of(store)
    manifests.load(pack([key_of(both)]))
    by_type = {OCI_LAYER: Edge.LINKED, OCI_MANIFEST: Edge.CHILD, None: Edge.MAYBE}
    assert set(edges(manifests, both)) == {
        (config, Edge.BLOB),
        (layer, Edge.BLOB),
        (listed, by_type[entry]),
        *([(listed, Edge.BLOB)] if entry == OCI_LAYER else []),
    }


def test_edges_of_several_manifests_say_where_they_start(store: Store) -> None:
    images = [store.tree.image("a", None, layers=[b"%d" % n] * 1) for n in range(5)]
    manifests = manifests_of(store)
    keys = pack(map(key_of, images))
    manifests.load(keys)
    ids = manifests.ids(keys)[[3, 1, 3]]
    source, targets, _ = manifests.targets_of(ids)
    assert source.tolist() == [0, 0, 1, 1, 2, 2]
    names = manifests._names.texts(targets)
    assert names == [sha256(b"{}"), sha256(b"3"), sha256(b"{}"), sha256(b"1"), *names[:2]]


@pytest.mark.parametrize(
    ("content", "expected", "reason"),
    [
        (None, ManifestState.MISSING, "not in the store"),
        (b"", ManifestState.MISMATCH, "empty"),
        (b"{}", ManifestState.MISMATCH, "its content has the digest sha256:44136fa3"),
    ],
)
def test_what_is_missing_and_what_is_wrong_are_told_apart(
    store: Store, content: bytes | None, expected: ManifestState, reason: str
) -> None:
    image = store.tree.image("a", None)
    if content is None:
        store.remove(blob_path(image))
    else:
        store.write(blob_path(image), content)
    manifests = manifests_of(store)
    manifests.load(pack([key_of(image)]))
    assert state(manifests, image) is expected
    assert reason in manifests.batch.reasons[0]
    assert edges(manifests, image) == []


def test_what_has_the_right_digest_and_is_no_manifest_is_unreadable(store: Store) -> None:
    blob = store.tree.blob(b"a layer")
    manifests = manifests_of(store)
    manifests.load(pack([key_of(blob)]))
    assert state(manifests, blob) is ManifestState.UNREADABLE


@pytest.mark.parametrize("held", [0, 600, 1 << 18])
def test_nothing_is_mixed_up_between_manifests_that_are_read_together(
    store: Store, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr("registry_gc.manifest_reader._HELD_BYTES", held)
    expected: dict[str, tuple[ManifestState, list[str]]] = {}
    for number in range(40):
        parts = [b"%d/%d" % (number, part) for part in range(number % 4)]
        named = [sha256(data) for data in (b"{}", *parts)]
        match number % 5:
            case 0:
                digest = store.tree.image("a", None, layers=parts)
                expected[digest] = ManifestState.OK, named
            case 1:
                layer = sha512(b"%d" % number)
                more = {"layers": [descriptor(OCI_LAYER, layer, 1)]}
                expected[store.tree.image("a", None, extra=more)] = (
                    ManifestState.OK,
                    [named[0], layer],
                )
            case 2:
                child = sha256(b"child %d" % number)
                document = {
                    "mediaType": OCI_INDEX,
                    "manifests": [descriptor(OCI_MANIFEST, child, 1)],
                }
                expected[store.tree.manifest("a", document)] = ManifestState.OK, [child]
            case 3:
                expected[store.tree.blob(b"a layer %d" % number)] = ManifestState.UNREADABLE, []
            case _:
                digest = store.tree.image("a", None, layers=[b"gone %d" % number])
                store.remove(blob_path(digest))
                expected[digest] = ManifestState.MISSING, []
    manifests = manifests_of(store)
    manifests.load(pack(map(key_of, expected)))
    assert len(manifests) == len(expected)
    for digest, (wanted, targets) in expected.items():
        assert state(manifests, digest) is wanted
        assert [target for target, _ in edges(manifests, digest)] == targets
        (number,) = manifests.ids(pack([key_of(digest)])).tolist()
        assert (number in manifests.batch.reasons) == (wanted is not ManifestState.OK)
        assert bool(manifests.batch.sizes[number]) == (wanted is not ManifestState.MISSING)


def test_a_blob_that_is_too_large_for_a_manifest_is_not_read_to_its_end(store: Store) -> None:
    blob = store.tree.blob(b"x" * (SIZE_LIMIT + 1))
    manifests = manifests_of(store)
    manifests.load(pack([key_of(blob)]))
    assert state(manifests, blob) is ManifestState.UNREADABLE
    assert "too large" in manifests.batch.reasons[0]


def test_a_manifest_that_may_not_be_read_is_an_error_and_not_missing() -> None:
    class Denying(MemoryStorage):
        def read(self, path: str, *, limit: int | None = None) -> bytes:
            raise AccessDenied("no", path=path)

    manifests = Manifests(SerialEngine(Denying()), Names(), {}, Watcher())
    with pytest.raises(AccessDenied):
        manifests.load(pack([key_of(sha256(b"x"))]))
    assert len(manifests) == 0


@pytest.mark.parametrize("algorithm", ["sha512", "sha384", "md5", "shake_128", "made-up"])
def test_a_digest_of_another_algorithm_is_checked_or_not_believed(
    store: Store, algorithm: str
) -> None:
    data = json.dumps({"mediaType": OCI_INDEX, "manifests": []}).encode()
    if algorithm == "sha512":
        digest, wanted = sha512(data), ManifestState.OK
    else:
        digest, wanted = (
            f"{algorithm}:" + "ab" * {"sha384": 48}.get(algorithm, 16),
            ManifestState.MISMATCH,
        )
    store.tree.blob(data, digest)
    names = Names()
    manifests = manifests_of(store, names)
    manifests.load(pack([names.key(digest)]))
    assert state(manifests, digest) is wanted


def test_bytes_are_looked_for_under_every_name_that_a_link_gives_them(store: Store) -> None:
    image = store.tree.image("a", None)
    data = store.storage.snapshot()[blob_path(image)]
    names = Names()
    alias = names.key(sha512(data))
    aliases = {alias: {key_of(sha256(b"gone")), key_of(image)}}
    manifests = Manifests(SerialEngine(store.storage), names, aliases, Watcher())
    manifests.load(pack([alias]))
    assert state(manifests, sha512(data)) is ManifestState.OK


def test_bytes_under_another_name_must_have_the_digest_they_are_wanted_for(store: Store) -> None:
    image = store.tree.image("a", None)
    names = Names()
    alias = names.key(sha512(b"something else"))
    manifests = Manifests(SerialEngine(store.storage), names, {alias: {key_of(image)}}, Watcher())
    manifests.load(pack([alias]))
    assert state(manifests, sha512(b"something else")) is ManifestState.MISMATCH


def test_numbers_stay_when_more_is_loaded_and_nothing_is_read_twice(store: Store) -> None:
    images = [store.tree.image("a", None, layers=[b"%d" % number]) for number in range(40)]
    keys = pack(map(key_of, images))
    manifests = manifests_of(store)
    assert manifests.ids(keys).tolist() == [-1] * 40
    manifests.load(np.concatenate([keys[:10], keys[:10]]))
    before = manifests.ids(keys[:10]).tolist()
    manifests.load(keys)
    assert manifests.ids(keys[:10]).tolist() == before
    assert sorted(manifests.ids(keys).tolist()) == list(range(40))
    assert store.storage.requests.read == 40
    for digest in images:
        assert len(edges(manifests, digest)) == 2


def test_many_loads_are_few_places_to_look_and_every_number_stays(store: Store) -> None:
    images = [store.tree.image("a", None, layers=[b"%d" % number]) for number in range(200)]
    keys = pack(map(key_of, images))
    manifests = manifests_of(store)
    manifests.load(keys[:50])
    expected = manifests.ids(keys[:50]).tolist()
    for number in range(50, 200):
        manifests.load(keys[number : number + 1])
        expected.append(number)
        assert manifests.ids(keys[: number + 1]).tolist() == expected
        # Eight, and as many as halves of all there are.
        assert len(manifests._stretches) <= 16
    assert manifests.keys_of(manifests.ids(keys)).tobytes() == keys.tobytes()


def test_stretches_whose_keys_begin_alike_are_joined_whole() -> None:
    keys = np.sort(pack([b"12345678" + bytes([number]) * 24 for number in range(6)]))
    first, second = Stretch(KeyIndex(keys[::2]), 0), Stretch(KeyIndex(keys[1::2]), 3)
    found = np.full(6, -1, np.int64)
    first.joined(second).ids(keys, found)
    assert found.tolist() == [0, 3, 1, 4, 2, 5]


def test_numbers_do_not_depend_on_which_worker_was_first(store: Store) -> None:
    images = [store.tree.image("a", None, layers=[b"%d" % number]) for number in range(300)]
    keys = pack(map(key_of, images))
    found = []
    for workers in (1, 4, 7):
        with ThreadEngine(store.storage, workers) as engine:
            manifests = Manifests(engine, Names(), {}, Watcher())
            manifests.load(keys)
        found.append(manifests.ids(keys).tolist())
        assert manifests.batch.keys.tobytes() == b"".join(sorted(map(key_of, images)))
    assert found[0] == found[1] == found[2]


def test_subjects_are_found_and_manifests_without_one_are_not(store: Store) -> None:
    image = store.tree.image("a", None)
    signature = store.tree.image("a", None, layers=[b"s"], subject=image)
    by_sha512 = store.tree.image("a", None, layers=[b"t"], subject=sha512(b"x"))
    manifests = manifests_of(store)
    assert len(manifests.with_subject()) == 0
    manifests.load(pack(map(key_of, (image, signature, by_sha512))))
    wanted = manifests.ids(pack(map(key_of, (signature, by_sha512)))).tolist()
    assert manifests.with_subject().tolist() == sorted(wanted)
    assert sha512(b"x") in manifests._names.others.values()


def test_nothing_to_load_is_nothing_to_show(store: Store) -> None:
    watcher = Watcher()
    manifests = Manifests(SerialEngine(store.storage), Names(), {}, watcher)
    manifests.load(empty_keys())
    assert watcher.phases == []
    source, keys, kinds = manifests.targets_of(np.empty(0, np.int64))
    assert len(source) == len(keys) == len(kinds) == 0
    manifests.load(pack([key_of(sha256(b"x"))]))
    assert watcher.phases == [("reading manifests", 1)]
    assert (watcher.advanced, watcher.finished) == (1, 1)


# Remembered from an earlier run


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReferenceCache]:
    cache = ReferenceCache.open(str(tmp_path / "cache"))
    yield cache
    cache.close()


def remembering(store: Store, cache: ReferenceCache) -> Manifests:
    return Manifests(SerialEngine(store.storage), Names(), {}, Watcher(), cache)


def test_what_was_read_before_is_not_read_again_and_says_the_same(
    store: Store, cache: ReferenceCache
) -> None:
    image = store.tree.image("a", None, subject=sha512(b"x"), layers=[b"1"])
    index = store.tree.index("a", None, [image])
    keys = pack(map(key_of, (image, index)))
    first = remembering(store, cache)
    first.load(keys)
    before = store.storage.requests.read
    second = remembering(store, cache)
    second.load(keys)
    assert store.storage.requests.read == before
    for digest in (image, index):
        assert edges(second, digest) == edges(first, digest)
        assert state(second, digest) is ManifestState.OK
    ids = first.with_subject()
    assert second.with_subject().tolist() == ids.tolist()
    assert second.subjects_of(ids).tobytes() == first.subjects_of(ids).tobytes()
    assert second._names.others == first._names.others
    assert (first.remembers, second.remembers) == (False, True)


def test_what_is_remembered_counts_once_its_blob_was_listed_with_its_size(
    store: Store, cache: ReferenceCache
) -> None:
    images = [store.tree.image("a", None, layers=[b"%d" % number]) for number in range(3)]
    keys = pack(map(key_of, images))
    remembering(store, cache).load(keys)
    manifests = remembering(store, cache)
    manifests.load(keys[:2])
    sizes = np.array([store.tree.size(digest) for digest in images])
    manifests.check(keys[:1], sizes[:1])
    manifests.check(keys[1:2], sizes[1:2] + 1)
    assert manifests.unconfirmed().tobytes() == keys[1:2].tobytes()
    # More may be met while the listing is under way: what was seen stays seen.
    manifests.load(keys)
    manifests.check(keys[1:2], sizes[1:2])
    assert manifests.unconfirmed().tobytes() == keys[2:].tobytes()


def test_what_was_not_understood_is_not_remembered(store: Store, cache: ReferenceCache) -> None:
    blob, gone = store.tree.blob(b"no manifest"), sha256(b"gone")
    keys = pack(map(key_of, (blob, gone)))
    remembering(store, cache).load(keys)
    before = store.storage.requests.read
    again = remembering(store, cache)
    again.load(keys)
    assert store.storage.requests.read == before + 2
    assert state(again, blob) is ManifestState.UNREADABLE
    assert state(again, gone) is ManifestState.MISSING


def test_what_is_forgotten_is_read_again(store: Store, cache: ReferenceCache) -> None:
    image, other = store.tree.image("a", None), store.tree.image("a", None, layers=[b"1"])
    keys = pack(map(key_of, (image, other)))
    remembering(store, cache).load(keys)
    cache.forget(keys[:1])
    before = store.storage.requests.read
    remembering(store, cache).load(keys)
    assert store.storage.requests.read == before + 1
