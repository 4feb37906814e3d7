"""Who uses the storage: as a naive count says, and as collections would free it."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from core_support import DAY, NOW, OLD, YOUNG, Store, Watcher
from model import expect, read_blobs, read_links, read_manifest
from registry_drivers.base import Reader
from registry_drivers.memory import MemoryStorage
from registry_gc.digest import pack
from registry_gc.engine import SerialEngine
from registry_gc.events import Observer, Silence
from registry_gc.policy import Policy
from registry_gc.usage import figures as module
from registry_gc.usage.figures import Share, Usage, group_of, usage_of
from registry_gc.usage.inventory import Inventory, Stored, take_inventory
from registry_tree import blob_path, sha256, sha512, tag_path
from strategies import Registry, damaged, registries, well_formed

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
POLICIES = (Policy(), Policy(delete_untagged=True))


def inventory_of(
    storage: Reader,
    *,
    grace: float = 0.0,
    cache: str | None = None,
    observer: Observer | None = None,
) -> Inventory:
    """All that *storage* holds."""
    policies = [Policy(delete_untagged=policy.delete_untagged, grace=grace) for policy in POLICIES]
    engine, cutoff = SerialEngine(storage), storage.now() - grace
    return take_inventory(storage, engine, policies, cutoff, observer or Silence(), cache)


def usage(storage: Reader, depth: int = 1, top: int = 5, grace: float = 0.0) -> Usage:
    """Who uses what of *storage*."""
    return usage_of(inventory_of(storage, grace=grace), depth, top, storage.now())


def by_name(shares: tuple[Share, ...]) -> dict[str, Share]:
    """Shares by their names."""
    return {share.name: share for share in shares}


def stored_in_memory(registry: Registry) -> MemoryStorage:
    """The files of *registry*, as old as it says."""
    storage = MemoryStorage(lambda: registry.now)
    for path, file in registry.files.items():
        storage.put(path, file.data, registry.now - file.age)
    return storage


def used_by_name(registry: Registry) -> dict[str, set[str]]:
    """The stored blobs that each repository uses, counted as slowly as can be."""
    links, blobs = read_links(registry.files), read_blobs(registry.files)
    linked = {link.digest for link in links if link.kind == "revision"}
    aliases: dict[str, set[str]] = {}
    for link in links:
        if link.digest and link.content not in ("", link.digest):
            aliases.setdefault(link.digest, set()).add(link.content)
    used: dict[str, set[str]] = {}
    for link in links:
        mine = used.setdefault(link.repository, set())
        todo = {link.content if link.kind == "current" else link.digest}
        followed = link.kind in ("current", "revision")
        if link.kind == "entry":
            continue
        while todo:
            digest = todo.pop()
            mine.add(digest)
            todo |= aliases.get(digest, set()) - mine
            if followed and digest in blobs:
                said = read_manifest(digest, registry.files[blobs[digest]].data, linked)
                for target in said.references:
                    mine |= {target, *aliases.get(target, ())}
                todo |= said.children - {digest}
    return {name: mine & blobs.keys() for name, mine in used.items()}


@given(well_formed())
@QUICK
def test_logical_unique_and_shared_bytes_are_those_of_a_naive_count(registry: Registry) -> None:
    blobs = read_blobs(registry.files)
    used = used_by_name(registry)

    def size(digests: set[str]) -> int:
        return sum(len(registry.files[blobs[digest]].data) for digest in digests)

    found = usage(stored_in_memory(registry))
    for share in found.repositories:
        mine = used.get(share.name, set())
        others = {d for name, theirs in used.items() if name != share.name for d in theirs}
        assert share.blobs == len(mine)
        assert share.logical == size(mine)
        assert share.unique == size(mine - others)
        assert share.shared == size(mine & others)
    for group in found.groups:
        names = {name for name in used if group_of(name, 1) == group.name}
        mine = {digest for name in names for digest in used[name]}
        others = {d for name, theirs in used.items() if name not in names for d in theirs}
        assert (group.logical, group.unique) == (size(mine), size(mine - others))
    everything = {digest for mine in used.values() for digest in mine}
    assert found.totals.blobs == len(blobs)
    assert found.totals.stored == size(set(blobs))
    assert found.totals.unused == size(blobs.keys() - everything)


@pytest.mark.parametrize("examples", [well_formed, damaged])
def test_what_is_reclaimable_is_what_collections_would_delete(examples: object) -> None:
    assert callable(examples)

    @given(examples())
    @QUICK
    def agrees(registry: Registry) -> None:
        found = usage(stored_in_memory(registry))
        for delete_untagged in (False, True):
            expected = expect(registry.files, delete_untagged=delete_untagged, now=registry.now)
            uploads = sum(
                len(registry.files[path].data) for path in expected.dead if "/_uploads/" in path
            )
            totals = found.totals
            goes = totals.reclaimable_untagged if delete_untagged else totals.reclaimable
            blobs = (
                totals.reclaimable_untagged_blobs if delete_untagged else totals.reclaimable_blobs
            )
            assert blobs == len(expected.blobs)
            assert goes == expected.bytes + uploads
        assert {share.name for share in found.repositories if share.held} == expected.held
        # What is held is untagged all the same.
        dead = len(expected.revisions)
        assert found.totals.untagged >= dead
        assert expected.held or found.totals.untagged == dead

    agrees()


@given(registries())
@QUICK
def test_shares_and_ages_add_up(registry: Registry) -> None:
    found = usage(stored_in_memory(registry), depth=2)
    totals = found.totals
    assert sum(age.blobs for age in found.ages) == totals.blobs
    assert sum(age.bytes for age in found.ages) == totals.stored
    assert sum(share.logical for share in found.repositories) == totals.logical
    assert sum(group.repositories for group in found.groups) == totals.repositories
    for shares in (found.repositories, found.groups):
        assert sum(share.tags for share in shares) == totals.tags
        assert sum(share.manifests for share in shares) == totals.manifests
        assert sum(share.unique for share in shares) <= totals.stored - totals.unused
    for share in found.repositories:
        assert share.reclaimable <= share.reclaimable_untagged


# --- examples -----------------------------------------------------------------------------------


@pytest.fixture
def store() -> Store:
    return Store()


def test_an_empty_registry_is_all_zeros(store: Store) -> None:
    found = usage(store.storage)
    assert found.totals.blobs == found.totals.stored == found.totals.repositories == 0
    for nothing in (found.repositories, found.groups, found.largest_blobs, found.largest_images):
        assert len(nothing) == 0


def test_a_group_counts_what_its_repositories_share_once(store: Store) -> None:
    base = b"b" * 1000
    store.tree.image("shop/web", "1", layers=[base])
    store.tree.image("shop/api", "1", layers=[base], config=b"{ }")
    store.tree.image("tools", "1", layers=[b"t" * 50], config=b"{  }")
    groups = by_name(usage(store.storage).groups)
    assert set(groups) == {"shop", "tools"}
    assert groups["shop"].repositories == 2
    shares = by_name(usage(store.storage).repositories)
    assert groups["shop"].logical == shares["shop/web"].logical + shares["shop/api"].logical - 1000
    assert groups["shop"].unique == groups["shop"].logical
    assert shares["shop/web"].shared == 1000


def test_a_layer_that_is_named_by_another_algorithm_counts_where_it_is_used(store: Store) -> None:
    data = b"l" * 700
    target, name = store.tree.blob(data), sha512(data)
    store.tree.link_layer("a", name, target)
    document = {"schemaVersion": 2, "config": {"digest": target}, "layers": [{"digest": name}]}
    store.tree.manifest("a", document, "1")
    found = usage(store.storage)
    assert by_name(found.repositories)["a"].logical == found.totals.stored
    assert found.totals.unused == 0
    assert found.largest_images[0].bytes == found.totals.stored


def test_the_age_is_that_of_the_first_and_the_last_push(store: Store) -> None:
    store.age = NOW - 100 * DAY
    store.tree.image("a", "1", layers=[b"one"])
    store.age = NOW - 3 * DAY
    store.tree.image("a", "2", layers=[b"two"])
    store.tree.upload("b", "u", None)
    shares = by_name(usage(store.storage).repositories)
    assert shares["a"].oldest == NOW - 100 * DAY
    assert shares["a"].newest == NOW - 3 * DAY
    assert shares["b"].oldest is shares["b"].newest is None


def test_blobs_fall_into_the_class_of_their_age(store: Store) -> None:
    for days in (0.5, 3, 29, 31, 400, 5000):
        store.age = NOW - days * DAY
        store.tree.blob(b"x" * int(days * 2))
    counts = {age.label: age.blobs for age in usage(store.storage).ages}
    assert counts == {
        "1 day": 1, "1 week": 1, "1 month": 1, "3 months": 1, "6 months": 0, "1 year": 0,
        "2 years": 1, "older": 1,
    }  # fmt: skip


def test_the_largest_images_are_named_with_all_that_they_lead_to(store: Store) -> None:
    base = b"b" * 5000
    children = [
        store.tree.image("a", None, layers=[base, bytes([n]) * 300], config=b"{}") for n in (1, 2)
    ]
    index = store.tree.index("a", "multi", children)
    store.tree.tag("a", "again", index)
    single = store.tree.image("a", "single", layers=[b"s" * 8000], config=b"{}")
    largest, second = usage(store.storage, top=2).largest_images
    # The bound of the index counts its base twice; its size is that of the base once.
    assert (largest.digest, second.digest) == (single, index)
    assert second.tags == ("again", "multi")
    of_children = sum(store.tree.size(child) for child in children)
    assert second.bytes == store.tree.size(index) + of_children + 5000 + 2 * 300 + 2


def test_the_oldest_images_are_those_whose_youngest_tag_is_oldest(store: Store) -> None:
    store.age = NOW - 50 * DAY
    old = store.tree.image("a", "old", layers=[b"one"])
    store.age = NOW - 90 * DAY
    older = store.tree.image("a", "older", layers=[b"two"])
    store.age = NOW - DAY
    store.tree.tag("a", "new", older)
    found = usage(store.storage, top=1).oldest_images
    assert [(image.digest, image.pushed) for image in found] == [(old, NOW - 50 * DAY)]


def test_blobs_are_told_with_their_users_and_what_becomes_of_them(store: Store) -> None:
    orphan, layer = b"o" * 900, b"l" * 800
    store.tree.blob(orphan)
    store.tree.image("a", None, layers=[layer])
    store.tree.image("b", None, layers=[layer])
    found = {blob.digest: blob for blob in usage(store.storage).largest_blobs}
    assert found[sha256(orphan)].fate == "goes"
    assert found[sha256(orphan)].repository is None
    assert found[sha256(layer)].fate == "goes with -m"
    assert (found[sha256(layer)].repositories, found[sha256(layer)].repository) == (2, "a")
    assert [blob.bytes for blob in usage(store.storage, top=2).largest_blobs] == [900, 800]


def test_what_is_younger_than_the_grace_period_is_not_reclaimable(store: Store) -> None:
    store.tree.blob(b"old orphan")
    store.age = YOUNG
    store.tree.blob(b"young orphan")
    store.tree.image("a", None, layers=[b"young"])
    found = usage(store.storage, grace=3600.0).totals
    assert found.reclaimable == found.reclaimable_untagged == len(b"old orphan")


def test_a_young_manifest_with_old_links_keeps_what_it_names(store: Store) -> None:
    digest = store.tree.image("a", None, layers=[b"needed"])
    store.touch(blob_path(digest))
    assert usage(store.storage).totals.reclaimable_untagged_blobs == 3
    assert usage(store.storage, grace=3600.0).totals.reclaimable_untagged_blobs == 0


def test_what_no_tag_leads_to_is_untagged_also_where_it_is_young_or_held(store: Store) -> None:
    store.tree.image("a", "1")
    untagged = store.tree.image("a", None, layers=[b"old"])
    store.tree.image("a", None, layers=[b"of an untagged one"], subject=untagged)
    store.age = YOUNG
    store.tree.image("a", None, layers=[b"young"])
    store.age = OLD
    assert usage(store.storage, grace=3600.0).totals.untagged == 3
    store.write(tag_path("a", "holds-no-digest"), b"")
    store.tree.manifest("b", b"{no manifest", "1")
    store.tree.image("b", None, layers=[b"another"])
    found = by_name(usage(store.storage, grace=3600.0).repositories)
    assert {name: (share.untagged, share.held) for name, share in found.items()} == {
        "a": (3, True),
        "b": (1, True),
    }


def test_manifests_are_marked_by_both_policies_and_read_once(store: Store) -> None:
    for name in ("a", "b"):
        store.tree.image(name, "1", layers=[b"same"])
        store.tree.image(name, None, layers=[b"other"])
    before = store.storage.requests.totals()["read"]
    inventory_of(store.storage)
    reads = store.storage.requests.totals()["read"] - before
    assert reads == 2


def test_a_cache_that_is_wrong_is_not_believed(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = str(tmp_path_factory.mktemp("cache") / "references.sqlite")
    store.tree.image("a", "1", layers=[b"layer"])
    lost = store.tree.image("a", "2", layers=[b"of the lost one"])
    inventory_of(store.storage, cache=cache)
    store.remove(blob_path(lost))
    watcher = Watcher()
    inventory = inventory_of(store.storage, cache=cache, observer=watcher)
    assert "1 manifests that an earlier run has read are gone" in watcher.notices[0]
    assert usage_of(inventory, 1, 5, NOW).totals == usage(store.storage).totals


def test_many_manifests_are_looked_at_part_by_part(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        store.tree.image(f"r{number % 4}", f"{number}", layers=[b"same", bytes([number]) * 40])
    whole = usage(store.storage)
    monkeypatch.setattr("registry_gc.listing.link_store.AT_ONCE", 2)
    monkeypatch.setattr("registry_gc.references._EDGES_AT_ONCE", 2)
    assert usage(store.storage) == whole


@pytest.mark.parametrize("count", [0, 1, 3, 10])
def test_the_first_rows_are_those_of_the_smallest_values(count: int) -> None:
    values = np.array([5, 1, 4, 1, 3])
    assert module._first(values, count).tolist() == [1, 3, 4, 2, 0][:count]


@pytest.mark.parametrize(
    ("name", "depth", "group"),
    [("a/b/c", 1, "a"), ("a/b/c", 2, "a/b"), ("a", 2, "a"), ("a/b", 2, "a/b")],
)
def test_a_group_is_the_first_components_of_a_name(name: str, depth: int, group: str) -> None:
    assert group_of(name, depth) == group


def test_keys_that_begin_alike_are_told_apart() -> None:
    keys = pack(sorted(b"same 8 b" + bytes([n]) * 24 for n in (1, 2, 3)))
    stored = Stored(keys, np.array([10, 20, 30]), np.zeros(3))
    asked = pack([b"same 8 b" + bytes([n]) * 24 for n in (3, 9, 1, 2)])
    sources, rows = stored.find(np.arange(4), asked, {})
    assert sorted(zip(sources.tolist(), rows.tolist(), strict=True)) == [(0, 2), (2, 0), (3, 1)]
