"""Ranges tile a listing: every path is seen once, whatever is cut where."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from registry_drivers.base import Children, Entry, Page, Reader
from registry_drivers.errors import StorageError
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.wrappers import ReadOnly
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.listing.cuts import split_rest
from registry_gc.listing.name_cuts import share_out
from registry_gc.listing.ranges import PAGES, Names, Range, Walk, first_ranges
from registry_tree import RegistryTree, folder_sink, repository_path

TAGS = ("v1", "v10", "v12", "v1.2", "v2", "v9a", "9", "_x", "Z", "latest")
NAMES = ("a", "a-b", "a.b", "a/b", "a/b/c", "a0", "b", "é", "日本", "z", "_x", "A")


class Recording(ReadOnly):
    """Remembers after what it was asked to list."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.bounds: list[str] = []

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        if start_after is not None:
            self.bounds.append(start_after)
        return super().list(prefix, start_after=start_after)


class Unseekable(MemoryStorage):
    """An object store whose listings can only begin at their beginning, as Azure's.

    :param order: what it sorts paths by.
    """

    def __init__(self, page_size: int = 3, order: Callable[[str], Any] = str.encode) -> None:
        super().__init__()
        self.capabilities = replace(self.capabilities, seekable=False)
        self.size = page_size
        self.order = order
        self.asked: list[tuple[str, str]] = []

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        assert start_after is None
        return self.list_names(prefix)

    def list_names(self, beginning: str, *, token: str = "") -> Iterator[Page]:
        paths = sorted(self.snapshot(), key=self.order)
        paths = [path for path in paths if path.startswith(beginning)]
        at = int(token or "0")
        self.asked.append((beginning, token))
        while True:
            self.requests.add(list=1)
            stop = at + self.size
            page = Page.of([Entry(path, 0, 0.0) for path in paths[at:stop]])
            if len(page):
                yield replace(page, token=str(stop) if stop < len(paths) else "")
            if stop >= len(paths):
                return
            at = stop


def in_tree(path: str) -> list[bytes]:
    """Folder by folder, as SeaweedFS lists."""
    return [part.encode() for part in path.split("/")]


def in_utf16(path: str) -> bytes:
    """As JavaScript, and so Azurite, compares."""
    return path.encode("utf-16-be")


ORDERS: list[Callable[[str], Any]] = [str.encode, in_tree, in_utf16]


def worked_off(reader: Reader, first: list[Range]) -> Iterator[list[str]]:
    """What each walk lists when ranges are worked off and cut like the catalog does."""
    todo = list(first)
    for _ in range(10_000):
        if not todo:
            return
        walk = Walk(reader, todo.pop())
        yield [path for page in walk.pages() for path in page.paths]
        if walk.rest is not None:
            cut = share_out if walk.rest.names else split_rest
            todo += cut(reader, walk.rest)
    raise AssertionError("the ranges never end")


def seen(reader: Reader, first: list[Range]) -> Counter[str]:
    """How often each path is listed."""
    return Counter(path for walk in worked_off(reader, first) for path in walk)


paths = st.lists(
    st.builds(
        "{}{}/{}".format,
        st.just(REPOSITORIES),
        st.sampled_from(NAMES),
        st.sampled_from(
            [
                "_layers/x/link",
                "_layers/y/link",
                "_manifests/tags/t/current/link",
                "_uploads/u/data",
                *(f"_manifests/tags/{tag}/current/link" for tag in TAGS),
                *(f"_layers/sha256/{digit * 64}/link" for digit in "0459af"),
                *(f"_manifests/revisions/sha256/{digit * 64}/link" for digit in "19e"),
            ]
        ),
    ),
    unique=True,
    max_size=40,
)


@settings(max_examples=200)
@given(paths, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_every_path_of_an_object_store_is_seen_once(
    names: list[str], page_size: int, pages: int, stray: bool
) -> None:
    storage = MemoryStorage(page_size=page_size)
    if stray:
        names = [*names, f"{REPOSITORIES}stray", f"{REPOSITORIES}a/stray"]
    for name in names:
        storage.put(name, b"")
    for outside in ("docker/registry/v2/blobs/x/data", "docker/registry/v2/repositories-/x"):
        storage.put(outside, b"")
    assert seen(storage, [Range((REPOSITORIES,), pages=pages)]) == Counter(set(names))


def test_a_long_listing_is_cut_into_ranges_that_go_on_side_by_side() -> None:
    storage = MemoryStorage(page_size=2)
    for number in range(200):
        storage.put(f"{REPOSITORIES}r{number:03}/_layers/x/link", b"")
    (first,), strays = first_ranges(storage, REPOSITORIES, 4)
    assert (first, strays) == (Range((REPOSITORIES,), pages=PAGES), [])
    walk = Walk(storage, first)
    assert sum(map(len, walk.pages())) == 2 * PAGES
    assert walk.rest is not None
    parts = split_rest(storage, walk.rest)
    assert len(parts) > 4
    assert seen(storage, [first]).total() == 200


def test_a_short_listing_is_not_cut_and_costs_its_pages_only() -> None:
    storage = MemoryStorage(page_size=10)
    for number in range(85):
        storage.put(f"{REPOSITORIES}r{number:03}/_layers/x/link", b"")
    assert seen(storage, first_ranges(storage, REPOSITORIES, 4)[0]).total() == 85
    assert storage.requests.list == 9


@given(paths, st.integers(1, 3))
def test_bounds_at_which_folders_are_cut_end_with_a_slash(names: list[str], pages: int) -> None:
    """SeaweedFS skips the whole subtree under a bound that does not."""
    storage = MemoryStorage(page_size=1)
    for name in names:
        storage.put(name, b"")
    recording = Recording(storage)
    seen(recording, [Range((REPOSITORIES,), pages=pages)])
    assert all(bound.endswith("/") or bound in names for bound in recording.bounds)


def test_one_huge_folder_is_gone_down_into() -> None:
    storage = MemoryStorage(page_size=2)
    names = [f"{repository_path('only')}/_manifests/tags/{number}/x" for number in range(9)]
    names += [f"{repository_path(f'only/r{number:03}')}/_layers/x/link" for number in range(120)]
    for name in names:
        storage.put(name, b"")
    first = Range((REPOSITORIES,), pages=20)
    assert seen(storage, [first]) == Counter(names)
    walk = Walk(storage, first)
    list(walk.pages())
    assert walk.rest is not None
    parts = split_rest(storage, walk.rest)
    assert len(parts) > 3
    assert all((part.start_after or "").startswith(f"{REPOSITORIES}only/r") for part in parts)


def hexes(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{chance.getrandbits(256):064x}" for _ in range(count)]


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        (REPOSITORIES, repository_path("one/big") + "/_layers/sha256/{}/link"),
        (REPOSITORIES, repository_path("big") + "/_manifests/revisions/sha256/{}/link"),
        (BLOBS, BLOBS + "sha256/{:.2}/{}/data"),
    ],
)
def test_one_enormous_folder_of_digests_is_shared_between_many(prefix: str, path: str) -> None:
    storage = MemoryStorage(page_size=10)
    names = [path.format(*[name] * path.count("{")) for name in hexes(3000, 7)]
    names += [f"{repository_path('zz')}/_layers/sha256/{name}/link" for name in hexes(9, 8)]
    for name in names:
        storage.put(name, b"")
    walks = list(worked_off(storage, [Range((prefix,), pages=PAGES)]))
    expected = [name for name in names if name.startswith(prefix)]
    assert sorted(path for walk in walks for path in walk) == sorted(expected)
    # What is listed by one worker alone is about as much as decides whether to cut.
    assert max(map(len, walks)) <= 2 * PAGES * 10
    assert len(walks) > 15
    pages = -(-len(expected) // 10)
    assert storage.requests.list <= pages + len(walks) + 3


@pytest.mark.parametrize("name", ["v{}", "{:05}", "1.0.{}-rc1", "build-{}/../{}"])
def test_the_tags_of_one_repository_are_shared_between_many(name: str) -> None:
    storage = MemoryStorage(page_size=10)
    folder = repository_path("big") + "/_manifests/tags/"
    tags = {name.replace("/../", "-").format(*[number] * 2) for number in range(3000)}
    tags |= {hashlib.sha1(tag.encode()).hexdigest() for tag in list(tags)[:500]}
    names = [f"{folder}{tag}/current/link" for tag in tags]
    names.append(f"{repository_path('zz')}/_manifests/tags/x/current/link")
    for path in names:
        storage.put(path, b"")
    walks = list(worked_off(storage, [Range((REPOSITORIES,), pages=PAGES)]))
    assert sorted(path for walk in walks for path in walk) == sorted(names)
    assert max(map(len, walks)) <= 2 * PAGES * 10
    assert storage.requests.list <= 1.5 * len(names) / 10 + 3


def test_what_a_listing_of_folders_leaves_out_is_listed_all_the_same() -> None:
    class Forgetful(ReadOnly):
        """Names of two folders one."""

        def children(self, prefix: str) -> Children:
            below = super().children(prefix)
            return Children(below.folders[::2], ())

    storage = MemoryStorage(page_size=3)
    names = [f"{repository_path(f'r{number:03}')}/_layers/x/link" for number in range(300)]
    names += [f"{REPOSITORIES}r{number:03}-stray" for number in range(0, 300, 7)]
    for name in names:
        storage.put(name, b"")
    assert seen(Forgetful(storage), [Range((REPOSITORIES,), pages=2)]) == Counter(names)


def test_a_store_that_is_found_out_to_list_in_its_own_order_is_not_cut() -> None:
    class Surprising(Unseekable):
        """Says so only when it has answered."""

        def __init__(self) -> None:
            super().__init__()
            self.capabilities = replace(self.capabilities, seekable=True)

        def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
            self.capabilities = replace(self.capabilities, seekable=False)
            # Folder by folder, as SeaweedFS does: "a/x" before "a-b/x".
            paths = sorted(self.snapshot(), key=lambda path: path.split("/"))
            for at in range(0, len(paths), 3):
                yield Page.of([Entry(path, 0, 0.0) for path in paths[at : at + 3]])

    storage = Surprising()
    names = {f"{REPOSITORIES}{a}{b}/_layers/x/link" for a in NAMES for b in ("", "-x", ".x", "0")}
    for name in names:
        storage.put(name, b"")
    first, _ = first_ranges(storage, REPOSITORIES, 4)
    assert seen(storage, [replace(unit, pages=1) for unit in first]) == Counter(names)


def test_a_range_of_several_folders_lists_them_all() -> None:
    storage = MemoryStorage(page_size=1)
    for name in ("a/x", "b/x", "b/y", "c/x"):
        storage.put(name, b"")
    assert seen(storage, [Range(("a/", "c/", "nothing/"))]) == Counter(["a/x", "c/x"])


def test_a_page_is_clipped_at_the_end_of_its_range() -> None:
    storage = MemoryStorage(page_size=100)
    for name in ("p/a/x", "p/a-b/x", "p/b/x", "p/b/y"):
        storage.put(name, b"")
    found = seen(storage, [Range(("p/",), stop_before="p/a/")])
    assert found == Counter(["p/a-b/x"])
    assert seen(storage, [Range(("p/",), start_after="p/a/", stop_before="p/b/")]) == Counter(
        ["p/a/x"]
    )
    assert seen(storage, [Range(("p/",), start_after="p/b/")]) == Counter(["p/b/x", "p/b/y"])


def test_names_that_are_no_utf8_are_ordered_by_their_bytes() -> None:
    storage = MemoryStorage(page_size=1)
    names = [f"{REPOSITORIES}{name}/x" for name in ("a", "\udcff", "é", "\U0001f600", "\uffff")]
    for name in names:
        storage.put(name, b"")
    assert seen(storage, [Range((REPOSITORIES,), pages=1)]) == Counter(names)


# Where a listing cannot begin in the middle


parts = st.lists(
    st.sampled_from(
        ["a", "b", "ab", "a-b", "a.b", "a_b", "_x", "é", "\uff5e", "\U0001f600", "A", "0"]
    ),
    min_size=1,
    max_size=4,
).map("/".join)
odd_names = st.one_of(
    parts.map(f"{REPOSITORIES}{{}}".format),
    st.builds(
        "{}{}/{}".format,
        st.just(REPOSITORIES),
        parts,
        st.sampled_from(
            [
                "_uploads/u/data",
                *(f"_layers/sha256/{number:02x}{'0' * 62}/link" for number in range(0, 256, 7)),
                *(f"_manifests/revisions/sha256/{digit * 64}/link" for digit in "0359bdef"),
                *(f"_manifests/tags/{tag}/current/link" for tag in ("v1", "v1.0", "v")),
            ]
        ),
    ),
    st.builds(f"{BLOBS}{{}}".format, parts),
    st.integers(0, 255).map(lambda n: f"{BLOBS}sha256/{n:02x}/{n:02x}{'0' * 62}/data"),
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.large_base_example])
@given(
    names=st.sets(odd_names, max_size=70),
    order=st.sampled_from(ORDERS),
    page_size=st.integers(1, 3),
    pages=st.integers(1, 3),
)
def test_by_beginnings_of_names_every_path_is_seen_once(
    names: set[str], order: Callable[[str], Any], page_size: int, pages: int
) -> None:
    storage = Unseekable(page_size, order)
    for name in (*names, "docker/registry/v2/other/x"):
        storage.put(name, b"")
    for prefix in (REPOSITORIES, BLOBS):
        first = Range((prefix,), pages=pages, names=Names())
        expected = Counter(name for name in names if name.startswith(prefix))
        assert seen(storage, [first]) == expected


def test_a_short_listing_is_no_more_than_its_pages() -> None:
    storage = Unseekable(page_size=10)
    for number in range(95):
        storage.put(f"{REPOSITORIES}r{number:03}/_layers/x/link", b"")
    (first,), strays = first_ranges(storage, REPOSITORIES, 4)
    assert strays == []
    assert seen(storage, [first]).total() == 95
    assert storage.requests.list == 10


@pytest.mark.parametrize("order", ORDERS)
def test_a_long_listing_is_shared_out_by_beginnings(order: Callable[[str], Any]) -> None:
    storage = Unseekable(10, order)
    for number in range(400):
        for part in range(10):
            storage.put(f"{REPOSITORIES}team-{number:03}/_layers/{part}/link", b"")
    walks = list(worked_off(storage, first_ranges(storage, REPOSITORIES, 4)[0]))
    assert sum(map(len, walks)) == 4000
    # What is listed by one worker alone is about as much as decides whether to cut.
    assert max(map(len, walks)) <= 2 * PAGES * 10
    assert len(walks) > 15
    # Pages, one more for each range that had been cut, and a listing of the folder.
    assert storage.requests.list <= 400 + len(walks) + 3
    begun = [asked for asked, token in storage.asked if not token]
    assert begun.count(REPOSITORIES) == 1


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        (REPOSITORIES, repository_path("one/big") + "/_layers/sha256/{}/link"),
        (REPOSITORIES, repository_path("big") + "/_manifests/revisions/sha256/{}/link"),
        (BLOBS, BLOBS + "sha256/{:.2}/{}/data"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
def test_one_enormous_folder_of_digests_is_shared_out_by_their_first_digits(
    prefix: str, path: str, order: Callable[[str], Any]
) -> None:
    storage = Unseekable(10, order)
    names = [path.format(*[name] * path.count("{")) for name in hexes(3000, 7)]
    names += [f"{repository_path('zz')}/_layers/sha256/{name}/link" for name in hexes(9, 8)]
    names += [f"{repository_path('aa')}/_layers/sha256/{name}/link" for name in hexes(9, 9)]
    for name in names:
        storage.put(name, b"")
    walks = list(worked_off(storage, first_ranges(storage, prefix, 4)[0]))
    expected = [name for name in names if name.startswith(prefix)]
    assert sorted(path for walk in walks for path in walk) == sorted(expected)
    assert max(map(len, walks)) <= 3 * PAGES * 10
    assert len(walks) > 10
    pages = -(-len(expected) // 10)
    assert storage.requests.list <= pages + len(walks) + 6


def test_small_folders_are_not_worth_a_range_each() -> None:
    storage = Unseekable(page_size=10)
    for number in range(130):
        storage.put(f"{REPOSITORIES}{chr(ord('a') + number // 6)}{number:03}/_layers/x/link", b"")
    assert seen(storage, first_ranges(storage, REPOSITORIES, 4)[0]).total() == 130
    assert storage.requests.list <= 13 + 1


def test_a_store_that_lists_in_no_known_order_is_listed_by_one() -> None:
    storage = Unseekable(2, lambda path: hashlib.md5(path.encode()).digest())
    names = [f"{REPOSITORIES}{number}/_layers/x/link" for number in range(200)]
    for name in names:
        storage.put(name, b"")
    assert seen(storage, first_ranges(storage, REPOSITORIES, 4)[0]) == Counter(names)
    assert {asked for asked, _ in storage.asked} == {REPOSITORIES}


def test_a_store_that_comes_out_of_order_after_it_was_cut_is_refused() -> None:
    storage = Unseekable(2)
    for number in range(60):
        storage.put(f"{REPOSITORIES}a/{number:03}/_layers/x/link", b"")
    storage.put(f"{REPOSITORIES}b/_layers/x/link", b"")
    storage.put(f"{REPOSITORIES}c/_layers/x/link", b"")
    walk = Walk(storage, Range((REPOSITORIES,), pages=2, names=Names()))
    list(walk.pages())
    assert walk.rest is not None
    here, *_ = share_out(storage, walk.rest)
    storage.order = lambda path: tuple(-ord(char) for char in path)
    with pytest.raises(StorageError, match="no order"):
        list(Walk(storage, here).pages())


def test_names_that_come_up_meanwhile_are_listed_by_how_they_begin() -> None:
    storage = Unseekable(page_size=2)
    for number in range(100):
        storage.put(f"{REPOSITORIES}r{number:03}/_layers/x/link", b"")
    walk = Walk(storage, Range((REPOSITORIES,), pages=2, names=Names()))
    found = Counter(path for page in walk.pages() for path in page.paths)
    assert walk.rest is not None
    pieces = share_out(storage, walk.rest)
    storage.put(f"{REPOSITORIES}r055-new/_layers/x/link", b"")
    assert found + seen(storage, pieces) == Counter(storage.snapshot().keys())


# Folders


def every_file(root: Path, prefix: str) -> set[str]:
    return {
        f"{os.path.relpath(folder, root)}/{name}"
        for folder, _, names in os.walk(root / prefix)
        for name in names
    }


@pytest.mark.parametrize("workers", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("images", [0, 1, 3, 40])
def test_every_file_in_folders_is_seen_once_or_is_a_stray(
    tmp_path: Path, workers: int, images: int
) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    for number in range(images):
        name = NAMES[number % 10]
        tree.image(name, f"v{number}", layers=[b"%d" % number])
        tree.upload(name, f"upload-{number}", "2020-01-01T00:00:00Z")
    sink = folder_sink(tmp_path)
    for path in ("stray", "a/stray", "a/_manifests/stray", "a/_manifests/tags/stray", "b/_x/y/z"):
        sink(REPOSITORIES + path, b"")
    for path in ("stray", "sha256/stray", "sha256/aa/stray", "sha256/aa/b/c", "sha512/x/y/z/data"):
        sink(BLOBS + path, b"")
    storage = FilesystemStorage(str(tmp_path))
    for prefix in (REPOSITORIES, BLOBS):
        ranges, strays = first_ranges(storage, prefix, workers)
        found = seen(storage, ranges)
        found.update(strays)
        assert found == Counter(every_file(tmp_path, prefix))
        assert not any(stray.endswith(("/link", "/data")) for stray in strays)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_few_blobs_are_blobs_however_many_workers_there_are(tmp_path: Path, workers: int) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    tree.image("a", "v1", layers=[b"x"])
    ranges, strays = first_ranges(FilesystemStorage(str(tmp_path)), BLOBS, workers)
    assert strays == []
    assert len(ranges) >= 1


def test_there_are_several_ranges_for_each_worker(tmp_path: Path) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    for number in range(60):
        tree.image(f"group/r{number}", "v1", layers=[b"%d" % number])
    storage = FilesystemStorage(str(tmp_path))
    for prefix in (REPOSITORIES, BLOBS):
        ranges, _ = first_ranges(storage, prefix, 4)
        assert 16 <= len(ranges) <= 64
        assert len(first_ranges(storage, prefix, 1)[0]) == 1


def test_repositories_that_are_called_like_parts_of_one_are_seen(tmp_path: Path) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    for name in ("tags", "revisions/tags", "blobs/sha256", "link", "data/link"):
        tree.image(name, "v1", layers=[name.encode()])
    storage = FilesystemStorage(str(tmp_path))
    for workers in (1, 2, 8):
        ranges, strays = first_ranges(storage, REPOSITORIES, workers)
        assert seen(storage, ranges) == Counter(every_file(tmp_path, REPOSITORIES))
        assert strays == []


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_folder_with_nothing_in_it_is_told_as_hollow(tmp_path: Path, workers: int) -> None:
    empty = repository_path("empty")
    (tmp_path / empty / "_layers").mkdir(parents=True)
    (tmp_path / REPOSITORIES / "bare").mkdir()
    RegistryTree(folder_sink(tmp_path)).image("a", "v1")
    storage = FilesystemStorage(str(tmp_path))
    ranges, _ = first_ranges(storage, REPOSITORIES, workers)
    hollow = {
        folder for unit in ranges for page in Walk(storage, unit).pages() for folder in page.hollow
    }
    assert f"{empty}/_layers" in hollow
    assert f"{REPOSITORIES}bare" in hollow
    assert not any(folder.startswith(f"{REPOSITORIES}a/") for folder in hollow)


def test_a_root_without_anything_has_no_paths(tmp_path: Path) -> None:
    storage = FilesystemStorage(str(tmp_path))
    for workers in (1, 4):
        ranges, strays = first_ranges(storage, BLOBS, workers)
        assert not seen(storage, ranges)
        assert strays == []
