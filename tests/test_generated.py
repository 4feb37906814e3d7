"""The generated registry is one: what it lists is in order, and what it says of itself is true."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import pytest

from core_support import planned_paths
from generated import SHA256, GeneratedStorage
from generated_shape import Shape
from registry_drivers.errors import NotFound
from registry_drivers.memory import MemoryStorage
from registry_gc.policy import Policy

V2 = "docker/registry/v2/"
SHAPE = Shape(repositories=7, blobs=720, teams=3)


@pytest.fixture
def storage(tmp_path: Path) -> GeneratedStorage:
    return GeneratedStorage(SHAPE, folder=str(tmp_path))


def paths(storage: GeneratedStorage, prefix: str, after: str | None = None) -> list[str]:
    return [path for page in storage.list(prefix, start_after=after) for path in page.paths]


def test_a_listing_is_in_order_and_has_every_blob_once(storage: GeneratedStorage) -> None:
    blobs = paths(storage, V2 + "blobs/")
    assert blobs == sorted(set(blobs))
    assert len(blobs) == SHAPE.blobs
    whole = paths(storage, V2)
    assert whole == sorted(set(whole))
    assert whole == blobs + paths(storage, V2 + "repositories/")


def test_a_listing_goes_on_after_any_path(storage: GeneratedStorage) -> None:
    whole = paths(storage, V2)
    chosen = random.Random(1).sample(range(len(whole)), 60)
    for at in chosen:
        assert paths(storage, V2, whole[at]) == whole[at + 1 :]
    for bucket in ("00", "7f", "ff"):
        bound = f"{SHA256}{bucket}/"
        assert paths(storage, V2 + "blobs/", bound) == [
            path for path in whole if bound < path < V2 + "r"
        ]
        assert paths(storage, bound) == [path for path in whole if path.startswith(bound)]


def test_folders_are_those_of_the_listed_paths(storage: GeneratedStorage) -> None:
    whole = paths(storage, V2)
    folders = {path[: path.index("/_") + 1] for path in whole if "/_" in path}
    parents = {folder[: folder[:-1].rindex("/") + 1] for folder in folders}
    for prefix in {V2, V2 + "blobs/", V2 + "repositories/", *folders, *parents}:
        below = {path[len(prefix) :].partition("/")[0] for path in whole if path.startswith(prefix)}
        assert storage.children(prefix).folders == tuple(sorted(below))


def test_manifests_have_the_digests_they_are_stored_under(storage: GeneratedStorage) -> None:
    found = 0
    for page in storage.list(V2 + "blobs/"):
        for entry in page.entries():
            try:
                data = storage.read(entry.path)
            except NotFound:
                continue
            found += 1
            assert hashlib.sha256(data).hexdigest() == entry.path.split("/")[-2]
            assert len(data) == entry.size
    assert found == SHAPE.manifests


@pytest.mark.parametrize("untagged", [False, True])
def test_a_plan_is_that_of_the_same_registry_in_memory(
    storage: GeneratedStorage, untagged: bool
) -> None:
    copy = MemoryStorage(storage.now)
    for entry in itertools.chain.from_iterable(page.entries() for page in storage.list(V2)):
        try:
            data = storage.read(entry.path)
        except NotFound:
            data = b"x"
            if entry.path.endswith("/link"):
                data = b"sha256:" + entry.path.split("/")[-2].encode()
        copy.put(entry.path, data, entry.modified)
    policy = Policy(delete_untagged=untagged)
    planned = planned_paths(storage, policy)
    assert planned == planned_paths(copy, policy)
    assert planned


def test_each_page_is_a_request_and_takes_its_time(tmp_path: Path) -> None:
    storage = GeneratedStorage(Shape(30, 3001), folder=str(tmp_path))
    pages = list(storage.list(V2 + "blobs/"))
    assert [len(page) for page in pages] == [1000, 1000, 1000, 1]
    assert storage.requests.list == 4
    assert storage.cpu > 0
