"""Manifests and links that came out wrong: no crash, and nothing live becomes dead."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

import pytest

from core_support import NOW, Store, planned_paths
from model import V2
from mutations import digests, mutated, real_manifests
from registry_drivers.memory import MemoryStorage
from registry_gc.digest import key_of
from registry_gc.manifest_reader import Edge, ManifestState, Wanted, read_manifests
from registry_gc.manifests import References, UnreadableManifest, parse, parse_many
from registry_gc.policy import Policy
from registry_gc.verify.descriptors import Indescribable, describe
from registry_gc.verify.library import read_described
from registry_tree import RegistryTree, blob_path, repository_path, sha256, sha512

A_REGISTRY = 250
"""Repositories in one registry, each with one file that is wrong."""

PARTS = 8
"""Of the inputs, each a test of its own: a night's work is spread, and may end between two."""


@pytest.fixture
def inputs(long: bool) -> int:
    """How many inputs a test takes."""
    return 1_000_000 if long else 10_000


@pytest.mark.timeout(7200)
def test_no_manifest_crashes_the_parser_or_hides_what_it_names(inputs: int) -> None:
    chance = random.Random(20240501)
    real = [json.dumps(document).encode() for document in real_manifests(digests(3))]
    read = 0
    for _ in range(inputs):
        data = mutated(chance, chance.choice(real))
        try:
            references = parse(data)
        except UnreadableManifest:
            continue
        try:
            described = describe(data)
        except Indescribable:
            continue
        read += 1
        named = {*references.blobs, *references.children, *references.maybe, *references.linked}
        assert {part.digest for part in described.parts} <= named, data
        assert references.subject == described.subject, data
        # As those who verify keep it: nothing of it is too large for a column.
        storage = MemoryStorage(lambda: NOW)
        storage.put(blob_path(sha256(data)), data)
        ((_, manifest),), _ = read_described(storage, Wanted(key_of(sha256(data)), {}))
        assert len(manifest.sizes) == len(described.parts), data
    assert read > inputs // 10, "hardly any input was a manifest"


def one_by_one(data: bytes) -> References | str:
    try:
        return parse(data)
    except UnreadableManifest as error:
        return str(error)


@pytest.mark.timeout(7200)
def test_many_manifests_are_parsed_as_each_of_them_is(inputs: int) -> None:
    chance = random.Random(20261122)
    done = 0
    while done < inputs:
        names = digests(chance.randrange(3, 99))
        real = [json.dumps(document).encode() for document in real_manifests(names)]
        some = [*real, real[0], *(mutated(chance, chance.choice(real)) for _ in range(10))]
        # With and without images alone: what is wrong with one changes nothing in another.
        some += [real[0]] * chance.choice((0, 50))
        chance.shuffle(some)
        if chance.random() < 0.2:
            some = [data for data in some if data in real[:3]]
        found = [str(one) if isinstance(one, Exception) else one for one in parse_many(some)]
        assert found == [one_by_one(data) for data in some]
        done += len(some)
        for data, one in zip(some, found, strict=True):
            if isinstance(one, References):
                assert edges_read(data) == edges_of(one), data
    assert parse_many([]) == []


def edges_of(references: References) -> list[tuple[bytes, Edge]]:
    """What the references of a manifest are as edges."""
    return [
        (key_of(digest), edge)
        for digests, edge in (
            (references.blobs, Edge.BLOB),
            (references.children, Edge.CHILD),
            (references.maybe, Edge.MAYBE),
            (references.linked, Edge.LINKED),
        )
        for digest in digests
    ]


def edges_read(data: bytes) -> list[tuple[bytes, Edge]]:
    """The edges of a manifest that is read from a storage."""
    storage = MemoryStorage(lambda: NOW)
    storage.put(blob_path(sha256(data)), data)
    batch = read_manifests(storage, Wanted(key_of(sha256(data)), {}))
    assert batch.states.tolist() == [ManifestState.OK]
    assert batch.offsets.tolist() == [0, len(batch.targets)]
    keys = (key.tobytes() for key in batch.targets)
    return [(key, Edge(edge)) for key, edge in zip(keys, batch.edges.tolist(), strict=True)]


@dataclass
class Fuzzed:
    """A registry in which each repository has lost one file to a mutation.

    ``protected``: paths that must not go, by the repository that they belong to.
    """

    chance: random.Random
    store: Store = field(default_factory=Store)
    written: set[str] = field(default_factory=set)
    protected: dict[str, set[str]] = field(default_factory=dict)
    changed: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def _write(self, path: str, data: bytes) -> None:
        # No repository has anything of another's: what one keeps alive is its own.
        self.written.add(path)
        self.store.write(path, data)

    def add(self, number: int) -> None:
        """One more repository: what it keeps alive, and a mutation of one of its files."""
        name = f"r{number}"
        tree = RegistryTree(self._write)
        self.written.clear()
        text = name.encode()
        image = tree.image(name, "v1", layers=[text + b"1", text + b"2"], config=text)
        # A registry links a layer under the name it was pushed by, and under its own.
        alias = tree.layer(name, text + b"alias")
        tree.link_layer(name, sha512(text + b"alias"), alias)
        layer = {"mediaType": "application/x", "digest": sha512(text + b"alias"), "size": 9}
        tree.image(name, "alias", layers=[], config=text, extra={"layers": [layer]})
        tree.index(name, "multi", [image])
        own = set(self.written)
        if self.chance.random() < 0.5:
            self._pushed(tree, name, [text + b"1", text + b"2", text])
            self.protected[name] = own
            return
        manifests = [p for p in own if "/blobs/" in p and self._is_manifest(p)]
        links = [path for path in own if path.endswith("/link")]
        path = self.chance.choice(sorted(manifests if self.chance.random() < 0.5 else links))
        data = mutated(self.chance, self.store.storage.read(path))
        self.store.write(path, data)
        self.changed[name] = (path, data)
        # What was mutated may itself go, such as an entry of a tag's history that is dead now.
        self.protected[name] = own - {path}

    def _is_manifest(self, path: str) -> bool:
        return self.store.storage.read(path).startswith(b'{"schemaVersion"')

    def _pushed(self, tree: RegistryTree, name: str, parts: list[bytes]) -> None:
        """A client pushes a mutated manifest, and tags it: the registry took it as it is."""
        document = self.chance.choice(real_manifests([tree.layer(name, part) for part in parts]))
        data = mutated(self.chance, json.dumps(document).encode())
        digest = tree.manifest(name, data, "pushed")
        self.changed[name] = (blob_path(digest), data)


@pytest.mark.timeout(14400)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_file_that_came_out_wrong_makes_anything_live_dead(inputs: int, part: int) -> None:
    chance = random.Random(20240502 + part)
    for first in range(0, inputs // PARTS, A_REGISTRY):
        registry = Fuzzed(chance)
        for number in range(first, first + A_REGISTRY):
            registry.add(number)
        for policy in (Policy(), Policy(delete_untagged=True)):
            going = planned_paths(registry.store.storage, policy)
            for name, paths in registry.protected.items():
                assert not paths & going, (policy, name, registry.changed[name])


@pytest.mark.parametrize(
    "what",
    ["the tag", "the alias"],
)
def test_a_hex_digit_that_has_changed_in_a_link_holds_the_repository(what: str) -> None:
    store = Store()
    tree = store.tree
    image = tree.image("a", "v1", layers=[b"layer"])
    path = f"{repository_path('a')}/_manifests/tags/v1/current/link"
    if what == "the alias":
        tree.link_layer("a", sha512(b"named"), tree.layer("a", b"named"))
        layer = {"mediaType": "application/x", "digest": sha512(b"named"), "size": 5}
        tree.image("a", "v2", layers=[], extra={"layers": [layer]})
        (path,) = [name for name in store.storage.snapshot() if "/_layers/sha512/" in name]
    rotten = store.storage.read(path)[:-1]
    store.write(path, rotten + (b"0" if store.storage.read(path)[-1:] != b"0" else b"1"))
    going = planned_paths(store.storage)
    assert blob_path(image) not in going
    assert blob_path(sha256(b"layer")) not in going
    assert not [gone for gone in going if gone.startswith(f"{V2}/blobs") and what == "the alias"]
