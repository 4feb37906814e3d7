"""Stores that cannot begin a listing in the middle, shared out by beginnings: each key once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from registry_drivers.object_store import ObjectStorage
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.listing.name_cuts import share_out
from registry_gc.listing.ranges import Range, Walk, first_ranges
from registry_tree import RegistryTree, layer_link_path, sha256
from stores import Place, Servers, store

# Names that are parts of others, that stores put in different order, or that mean nothing.
ODD = (
    "a",
    "a-b",
    "a.b",
    "a_b",
    "a/b",
    "ab",
    "abc/d",
    "b",
    "team/x",
    "team-1/x",
    "teams",
    "_x",
    "é",
)


def odd_registry() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    for name in ODD:
        for push in range(3):
            tree.image(name, f"v{push}", layers=[b"%d of %s" % (push, name.encode())])
    for number in range(250):
        digest = sha256(b"%d" % number)
        files[layer_link_path("enormous", digest)] = digest.encode()
    files[f"{REPOSITORIES}abstract"] = b"a stranger that is called like others"
    files[f"{REPOSITORIES}team-1/notes.txt"] = b"another"
    return files


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture(scope="module", params=["azure", "seaweedfs"])
def filled(request: pytest.FixtureRequest, servers: Servers) -> Place:
    place = servers.place(request.param)
    store(place, odd_registry())
    return place


@pytest.mark.parametrize(("page_size", "pages"), [(3, 1), (7, 2), (20, 3)])
def test_every_key_is_listed_once_and_by_several_ranges(
    filled: Place, page_size: int, pages: int
) -> None:
    with filled.opened() as storage:
        assert isinstance(storage, ObjectStorage)
        # Its first answer tells that SeaweedFS cannot.
        keys = Counter(path for page in storage.list("") for path in page.paths)
        assert not storage.capabilities.seekable
        assert set(keys) == set(odd_registry())
        storage.page_size = page_size
        found: Counter[str] = Counter()
        walks = 0
        for prefix in (REPOSITORIES, BLOBS):
            (first,), strays = first_ranges(storage, prefix, 4)
            assert not strays
            todo = [Range(first.prefixes, pages=pages, names=first.names)]
            while todo:
                walk = Walk(storage, todo.pop())
                found.update(path for page in walk.pages() for path in page.paths)
                walks += 1
                if walk.rest is not None:
                    todo += share_out(storage, walk.rest)
        assert found == keys
        assert walks > 4
