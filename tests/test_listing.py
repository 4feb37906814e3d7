"""From pages to columns: what a path means, and that nothing else is taken for it."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core_support import NOW, OLD, YOUNG, Store, Watcher, marked
from registry_drivers.base import UNKNOWN_MD5, Entry, Page, Paths, Reader, Storage
from registry_drivers.errors import AccessDenied, NotFound
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage
from registry_drivers.wrappers import Wrapper
from registry_gc.catalog import Catalog, is_registry
from registry_gc.digest import Names, key_of, pack
from registry_gc.engine import Engine, SerialEngine, ThreadEngine
from registry_gc.events import Silence
from registry_gc.layout import BLOBS, REPOSITORIES, V2
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.blobs import BlobBatch, list_blobs
from registry_gc.listing.links import MORE, LinkList, read_links
from registry_gc.listing.ranges import Range
from registry_gc.listing.reading import read_catalog, read_texts
from registry_gc.listing.repositories import list_repositories
from registry_gc.listing.tags import TagList
from registry_tree import (
    RegistryTree,
    blob_path,
    folder_sink,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)

HEX = "ab" * 32


def catalog_of(storage: Reader, engine: Engine | None = None) -> Catalog:
    return read_catalog(storage, engine or SerialEngine(storage), Silence())


def blobs_of(storage: MemoryStorage | FilesystemStorage) -> BlobBatch:
    """All blobs as one batch."""
    batches = list(stream_blobs(storage, SerialEngine(storage)))
    (batch,) = batches
    return batch


def links(catalog: Catalog, kind: str) -> list[tuple[str, str]]:
    """Repository and digest of every link of a kind."""
    found = getattr(catalog, kind)
    owners = [catalog.repositories[owner] for owner in found.owner]
    return list(zip(owners, catalog.names.texts(found.keys), strict=True))


# Blobs


def test_a_blob_has_its_key_its_size_and_its_age() -> None:
    store = Store()
    for number in range(20):
        store.tree.blob(b"%d" % number)
    store.age = YOUNG
    young = store.tree.blob(b"young one")
    batch = blobs_of(store.storage)
    rows = {
        key.tobytes(): (size, age)
        for key, size, age in zip(
            batch.keys, batch.sizes.tolist(), batch.modified.tolist(), strict=True
        )
    }
    assert len(rows) == 21
    assert rows[key_of(young)] == (len(b"young one"), YOUNG)
    assert rows[key_of(sha256(b"7"))] == (1, OLD)
    assert (batch.strangers, batch.rest) == (0, None)


def test_a_blob_that_is_stored_by_another_algorithm_is_one() -> None:
    store = Store()
    for data in (b"x", b"y"):
        store.tree.blob(data, sha512(data))
    batch = blobs_of(store.storage)
    assert sorted(batch.others.values()) == sorted([sha512(b"x"), sha512(b"y")])
    assert {key.tobytes() for key in batch.keys} == set(batch.others)


@pytest.mark.parametrize(
    "path",
    [
        f"{BLOBS}sha256/{HEX[:2]}/{HEX}/link",
        f"{BLOBS}sha256/{HEX[:2]}/{HEX}/other",
        f"{BLOBS}sha256/00/{HEX}/data",
        f"{BLOBS}sha256/{HEX}/data",
        f"{BLOBS}sha256/{HEX[:2]}/{HEX[:-1]}/data",
        f"{BLOBS}sha256/{HEX[:2]}/{HEX}/data/data",
        f"{BLOBS}sha256/{HEX[:2].upper()}/{HEX.upper()}/data",
        f"{BLOBS}sha256/{HEX[:2]}/{HEX}",
        f"{BLOBS}sha256/{HEX[:2]}/data",
        f"{BLOBS}SHA256/{HEX[:2]}/{HEX}/data",
        f"{BLOBS}sha512/{HEX[:2]}/{HEX}/data",
        f"{BLOBS}md5/{HEX[:2]}/{HEX}/data",
        f"{BLOBS}made-up/{HEX[:2]}/{HEX}/data",
        f"{BLOBS}made-up/ab/abc/data",
        f"{BLOBS}{HEX[:2]}/{HEX}/data",
        f"{BLOBS}x/sha256/{HEX[:2]}/{HEX}/data",
        f"{BLOBS}data",
    ],
)
@pytest.mark.parametrize("times", [1, 8])
def test_what_is_no_blob_is_a_stranger_and_never_one_of_them(path: str, times: int) -> None:
    storage = MemoryStorage()
    paths = {path.replace(HEX[:-1], f"{HEX[:-2]}{number}") for number in range(times)}
    for one in paths:
        storage.put(one, b"stray")
    batch = blobs_of(storage)
    assert (len(batch.keys), batch.strangers) == (0, len(paths))


def test_a_stray_among_blobs_hides_none_of_them() -> None:
    """All rows of one folder are looked at together; one in the wrong place is no reason."""
    storage = MemoryStorage()
    right = [f"00{number:062x}" for number in range(10)]
    wrong = [f"ff{number:062x}" for number in range(2)]
    for encoded in right + wrong:
        storage.put(f"{BLOBS}sha256/00/{encoded}/data", b"")
    batch = blobs_of(storage)
    assert sorted(key.tobytes().hex() for key in batch.keys) == right
    assert batch.strangers == 2


def test_a_file_with_another_hard_link_frees_nothing(tmp_path: Path) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    shared, alone = tree.blob(b"shared"), tree.blob(b"alone")
    (tmp_path / "elsewhere").hardlink_to(tmp_path / blob_path(shared))
    batch = list_blobs(FilesystemStorage(str(tmp_path)), Range((BLOBS,)))
    sizes = {
        key.tobytes(): size for key, size in zip(batch.keys, batch.sizes.tolist(), strict=True)
    }
    assert sizes == {key_of(shared): 0, key_of(alone): len(b"alone")}


# Repositories


def fill(tree: RegistryTree) -> None:
    for number in range(12):
        tree.image("many", f"v{number}", layers=[b"%d" % number, b"shared"])
    for name in ("a", "a-b", "a.b", "a/b", "b"):
        tree.image(name, "v1", layers=[name.encode()])
    tree.image("a/b", None, layers=[b"untagged"])
    tree.tag("many", "moved", tree.image("many", "moved", layers=[b"old"]))
    tree.image("many", "moved", layers=[b"new"])
    tree.upload("a", "u1", "2020-01-01T00:00:00Z", b"half")


@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_object_stores_and_folders_give_the_same_catalog(tmp_path: Path, page_size: int) -> None:
    store = Store(page_size=page_size)
    fill(store.tree)
    fill(RegistryTree(folder_sink(tmp_path)))
    disk = FilesystemStorage(str(tmp_path))
    one = catalog_of(store.storage)
    with ThreadEngine(disk, 3) as engine:
        other = catalog_of(disk, engine)
    assert one.repositories == other.repositories == ["a", "a-b", "a.b", "a/b", "b", "many"]
    assert [*one.tag_folders] == [*other.tag_folders]
    for kind in ("revisions", "layers"):
        assert links(one, kind) == links(other, kind)
    for each in (one, other):
        assert each.tag_index.owner.tolist() == one.tag_index.owner.tolist()
        assert each.tag_index.keys.tobytes() == one.tag_index.keys.tobytes()
    told = [[(t.repository, t.name, t.path, t.target) for t in c.tags] for c in (one, other)]
    assert told[0] == told[1]
    uploads = [[(u.repository, u.uuid, sorted(u.files)) for u in c.uploads] for c in (one, other)]
    assert uploads[0] == uploads[1]
    assert one.uploads[0].started_at == other.uploads[0].started_at == "2020-01-01T00:00:00Z"
    assert one.strangers == other.strangers == 0
    assert one.damaged == other.damaged == []


def test_links_are_ordered_by_repository_and_digest() -> None:
    store = Store(page_size=2)
    fill(store.tree)
    catalog = catalog_of(store.storage)
    for kind in ("revisions", "layers"):
        found = links(catalog, kind)
        assert found == sorted(found)
        assert len(found) == len(set(found))


def test_a_repository_is_found_by_any_of_its_folders() -> None:
    store = Store()
    store.write(f"{repository_path('m')}/_manifests/tags/v1/current/link", b"")
    store.write(layer_link_path("l", sha256(b"x")), b"")
    store.tree.upload("u", "x", None)
    store.write(f"{repository_path('s')}/_stray", b"")
    assert catalog_of(store.storage).repositories == ["l", "m", "s", "u"]


def test_tags_cost_no_read_where_the_listing_tells_the_content_of_their_links() -> None:
    store = Store()
    fill(store.tree)
    catalog = catalog_of(store.storage)
    assert all(tag.target for tag in catalog.tags)
    assert store.storage.requests.read == 1  # the start of the upload
    moved = next(tag for tag in catalog.tags if tag.name == "moved")
    assert moved.target is not None
    assert store.storage.snapshot()[moved.path] == moved.target.encode()


def test_a_tag_whose_link_is_none_of_its_own_candidates_is_read() -> None:
    store = Store()
    one = store.tree.image("a", "v1", layers=[b"1"])
    other = store.tree.image("b", "v1", layers=[b"2"])
    store.write(tag_path("a", "v1"), other.encode())
    catalog = catalog_of(store.storage)
    assert [tag.target for tag in catalog.tags] == [other, other]
    assert one != other


def test_the_candidates_of_one_tag_say_nothing_about_another() -> None:
    """An MD5 is trusted only beside the digests that the same tag has had."""
    store = Store()
    store.tree.image("a", "v1", layers=[b"1"])
    other = store.tree.image("a", "v2", layers=[b"2"])
    text = sha256(b"unknown").encode()
    page = Page.of(
        [
            Entry(tag_path("a", "v1"), 71, OLD, hashlib.md5(other.encode()).digest()),
            Entry(tag_index_path("a", "v2", other), 71, OLD, hashlib.md5(text).digest()),
        ]
    )

    class Listing(MemoryStorage):
        def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
            return iter([page])

    batch = list_repositories(Listing(), Range((REPOSITORIES,)))
    assert batch.tags.known.tolist() == [False]


def test_a_tag_is_no_object_while_its_repository_is_listed() -> None:
    """What stays of each, beside its name: a row of four columns, and one of its history's."""
    names, tags, history = Names(), 40_000, LinkList()
    digest = sha256(b"the same")
    tracemalloc.start()
    try:
        found = TagList(names)
        for number in range(tags):
            folder = found.number(0, f"v{number:05}")
            found.add(folder, OLD, digest, UNKNOWN_MD5, b"", 71)
            history.add(folder, pack([names.key(digest)]), np.array([OLD]))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (len(found.folders()), len(found.columns().folder), len(history.packed())) == (tags,) * 3
    assert kept / tags < 250
    assert {*found.columns().folder.tolist()} == {*range(tags)}
    assert {*history.packed().owner.tolist()} == {*range(tags)}


@pytest.mark.parametrize("md5", [None, b"\0" * 16, b"x" * 16])
def test_an_md5_that_is_not_that_of_the_content_makes_a_read_and_nothing_worse(
    md5: bytes | None,
) -> None:
    """Encrypted buckets list an ETag that is no MD5."""
    store = Store()
    image = store.tree.image("a", "v1")

    class Listing(MemoryStorage):
        def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
            for page in store.storage.list(prefix, start_after=start_after):
                entries = [Entry(e.path, e.size, e.modified, md5) for e in page.entries()]
                yield Page.of(entries)

    storage = Listing()
    for path, data in store.storage.snapshot().items():
        storage.put(path, data)
    catalog = catalog_of(storage)
    assert [tag.target for tag in catalog.tags] == [image]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty link"),
        (b"sha256:12", "holds no digest"),
        (b"\0" * 71, "holds no digest"),
        (b"\xff" * 71, "holds no digest"),
        (b"x" * 2000, "a link of over 1024 bytes"),
    ],
)
def test_a_tag_that_holds_no_digest_is_a_tag_without_target_and_damaged(
    content: bytes, reason: str
) -> None:
    store = Store()
    store.tree.image("a", "v1")
    store.write(tag_path("a", "v1"), content)
    catalog = catalog_of(store.storage)
    assert [(tag.name, tag.target) for tag in catalog.tags] == [("v1", None)]
    assert [(d.path, d.reason) for d in catalog.damaged] == [(tag_path("a", "v1"), reason)]


def test_a_link_that_may_not_be_read_ends_the_run() -> None:
    store = Store()
    store.tree.image("a", "v1")
    store.write(tag_path("a", "v1"), b"unlike any candidate")

    class Denying(MemoryStorage):
        def read(self, path: str, *, limit: int | None = None) -> bytes:
            raise AccessDenied("no", path=path)

    storage = Denying(lambda: NOW)
    for path, data in store.storage.snapshot().items():
        storage.put(path, data)
    with pytest.raises(AccessDenied):
        catalog_of(storage)


def test_links_of_ordinary_size_and_algorithm_are_not_read() -> None:
    store = Store()
    fill(store.tree)
    before = store.storage.requests.read
    catalog_of(store.storage)
    assert store.storage.requests.read - before == 1


@pytest.mark.parametrize("content", [b"", b"sha256:12", b"x" * 100])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_damaged_link_is_told_and_still_names_what_its_path_names(
    content: bytes, rows: int
) -> None:
    store = Store()
    digests = [store.tree.layer("a", b"%d" % number) for number in range(rows)]
    path = layer_link_path("a", digests[-1])
    store.write(path, content)
    catalog = catalog_of(store.storage)
    assert links(catalog, "layers") == [("a", digest) for digest in sorted(digests)]
    assert [damage.path for damage in catalog.damaged] == [path]
    assert catalog.aliases == {}


def test_a_link_by_another_algorithm_tells_what_the_name_stands_for() -> None:
    store = Store()
    digest = store.tree.blob(b"x")
    store.tree.link_layer("a", sha512(b"x"), digest)
    store.tree.link_layer("b", sha512(b"y"))
    catalog = catalog_of(store.storage)
    assert catalog.aliases == {key_of(sha512(b"x")): {key_of(digest)}}
    assert links(catalog, "layers") == [("a", sha512(b"x")), ("b", sha512(b"y"))]
    assert catalog.damaged == []


def test_a_link_that_holds_another_sha256_digest_keeps_both_and_is_told() -> None:
    store = Store()
    store.write(layer_link_path("a", sha256(b"x")), (sha256(b"y") + "\n").encode())
    catalog = catalog_of(store.storage)
    assert catalog.aliases == {key_of(sha256(b"x")): {key_of(sha256(b"y"))}}
    assert len(catalog.damaged) == 1


def test_signature_links_belong_to_their_revision() -> None:
    store = Store()
    image, signature = store.tree.image("a", "v1"), store.tree.blob(b"signature")
    folder = revision_path("a", image).removesuffix("link")
    path = f"{folder}signatures/{signature.replace(':', '/')}/link"
    store.write(path, signature.encode())
    (found,) = catalog_of(store.storage).signatures
    assert (found.revision, found.digest, found.path) == (image, signature, path)


@pytest.mark.parametrize(
    "path",
    [
        "file",
        "_layers/sha256/x/link",
        f"_layers/sha256/{HEX}/link",
        "a/_layers/file",
        f"a/_layers/sha256/{HEX}/data",
        f"a/_layers/sha256/{HEX}/other",
        f"a/_layers/sha256/{HEX}/x/link",
        f"a/_layers/sha256/{HEX.upper()}/link",
        f"a/_layers/sha256/{HEX[:-1]}/link",
        f"a/_layers/sha512/{HEX}/link",
        f"a/_layers/{HEX}/link",
        "a/_layers/..../ab/link",
        f"a/_manifests/{HEX}/link",
        f"a/_manifests/revisions/sha256/{HEX}",
        f"a/_manifests/revisions/sha256/{HEX}/data",
        f"a/_manifests/revisions/sha256/{HEX}/signatures/x",
        f"a/_manifests/revisions/sha256/{HEX}/signatures/sha256/{HEX[:-1]}/link",
        f"a/_manifests/revisions/sha256/{HEX[:-1]}/signatures/sha256/{HEX}/link",
        "a/_manifests/tags/v1/link",
        "a/_manifests/tags/v1/current/other",
        "a/_manifests/tags/v1/current/x/link",
        f"a/_manifests/tags/v1/index/{HEX}/link",
        f"a/_manifests/tags/v1/index/sha256/{HEX[:-1]}/link",
        f"a/_manifests/tags/v1/x/index/sha256/{HEX}/link",
        "a/_uploads/file",
        "a/_other/x",
        "a/_other/_layers/sha256/x/link",
        f"a/_other/_layers/sha256/{HEX}/link",
    ],
)
def test_what_is_no_part_of_a_repository_is_a_stranger(path: str) -> None:
    storage = MemoryStorage()
    storage.put(REPOSITORIES + path, b"x" * 71)
    catalog = catalog_of(storage)
    assert catalog.strangers == 1
    assert len(catalog.revisions) == len(catalog.layers) == len(catalog.tag_index) == 0
    assert not catalog.tags
    assert not catalog.uploads
    assert not catalog.signatures
    # Whatever it is, the repository that it lies in is not empty.
    assert catalog.with_strangers == set(range(len(catalog.repositories)))


def test_many_strangers_under_one_head_are_counted_each() -> None:
    storage = MemoryStorage()
    for number in range(20):
        storage.put(f"{REPOSITORIES}a/_other/sha256/{number:064x}/link", b"")
        storage.put(f"{REPOSITORIES}a/_layers/sha512/{number:064x}/link", b"")
        storage.put(f"{REPOSITORIES}a/_layers/sha256/{number:064x}/data", b"")
    catalog = catalog_of(storage)
    assert (catalog.strangers, len(catalog.layers)) == (60, 0)


@pytest.mark.parametrize("tag", ["_foo", "index", "current", "link", HEX, f"sha256-{HEX}", "v1_-"])
def test_tags_of_any_name_are_tags(tag: str) -> None:
    store = Store()
    image = store.tree.image("a", tag)
    catalog = catalog_of(store.storage)
    assert [(found.name, found.target) for found in catalog.tags] == [(tag, image)]
    assert [*catalog.tag_folders] == [(0, tag)]
    assert catalog.strangers == 0


@pytest.mark.parametrize("name", ["tags", "link", "index/revisions", "sha256", "data", "a/a/a/a/a"])
def test_repositories_of_any_name_are_repositories(name: str) -> None:
    store = Store()
    store.tree.image(name, "v1")
    catalog = catalog_of(store.storage)
    assert (catalog.repositories, catalog.strangers) == ([name], 0)
    assert len(catalog.layers) == 2


def test_a_tag_without_its_current_link_is_only_a_folder() -> None:
    store = Store()
    image = store.tree.image("a", "v1")
    store.remove(tag_path("a", "v1"))
    catalog = catalog_of(store.storage)
    assert not len(catalog.tags)
    assert [*catalog.tag_folders] == [(0, "v1")]
    assert catalog.names.texts(catalog.tag_index.keys) == [image]


# Uploads


def test_an_upload_is_all_its_files_and_as_young_as_the_youngest() -> None:
    store = Store(page_size=1)
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z", b"half")
    store.age = YOUNG
    store.write(f"{repository_path('a')}/_uploads/u/hashstates/sha256/0", b"state")
    (upload,) = catalog_of(store.storage).uploads
    assert len(upload.files) == len(upload.sizes) == 3
    assert sum(upload.sizes) == len(b"2020-01-01T00:00:00Z") + len(b"half") + len(b"state")
    assert (upload.youngest, upload.started_at) == (YOUNG, "2020-01-01T00:00:00Z")


def test_an_upload_that_vanishes_or_has_nonsense_for_a_start_is_no_error() -> None:
    store = Store()
    store.tree.upload("a", "large", "x" * 5000, b"half")
    store.tree.upload("a", "bytes", None, b"half")
    store.write(f"{repository_path('a')}/_uploads/bytes/startedat", b"\xff\xfe")
    store.write(f"{repository_path('a')}/_uploads/nested/hashstates/startedat", b"2020")
    found = {upload.uuid: upload.started_at for upload in catalog_of(store.storage).uploads}
    assert found == {"large": None, "bytes": "\N{REPLACEMENT CHARACTER}" * 2, "nested": None}


# Reading links


def test_links_that_vanish_are_left_out() -> None:
    storage = MemoryStorage()
    # Lenient about what is meant, and not about what is there.
    storage.put("there", sha256(b"x").encode() + b"\n")
    assert read_links(storage, ("there", "gone")) == [("there", sha256(b"x"), MORE)]


def test_links_under_keys_that_are_no_paths_are_damaged() -> None:
    ((path, digest, reason),) = read_links(MemoryStorage(), ("a//b/link",))
    assert (path, digest) == ("a//b/link", None)
    assert "no path" in reason
    assert read_texts(MemoryStorage(), ("a//b/_uploads/u/startedat",)) == []


class _Vanishing(Wrapper):
    """Storage in which one path is listed, and gone when it is read."""

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__(storage)
        self._gone = path

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        for page in super().list(prefix, start_after=start_after):
            yield replace(page, contents={})

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        if path == self._gone:
            raise NotFound("gone", path=path)
        return super().read(path, limit=limit)


def test_a_tag_that_is_listed_and_then_gone_is_a_tag_of_which_nobody_knows_the_target(
    tmp_path: Path,
) -> None:
    RegistryTree(folder_sink(tmp_path)).image("a", "v1", layers=[b"x"])
    link = f"{repository_path('a')}/_manifests/tags/v1/current/link"
    catalog = catalog_of(_Vanishing(FilesystemStorage(str(tmp_path)), link))
    assert [(tag.name, tag.target) for tag in catalog.tags] == [("v1", None)]
    assert [(damage.path, damage.reason) for damage in catalog.damaged] == [
        (link, "vanished while it was read")
    ]


class _Lagging(Wrapper):
    """Storage of which the listing leaves out some paths that are there."""

    def __init__(self, storage: Storage, *hidden: str) -> None:
        super().__init__(storage)
        self._hidden = hidden
        self.asked: list[str] = []

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        for page in super().list(prefix, start_after=start_after):
            rows = [row for row, path in enumerate(page.paths) if path not in self._hidden]
            paths = Paths.of([page.paths[row] for row in rows])
            yield Page(paths, page.sizes[rows], page.modified[rows], None)

    def stat(self, path: str) -> Entry:
        self.asked.append(path)
        return super().stat(path)


def pushed_twice(*tags: str) -> tuple[Store, list[str]]:
    """A registry in which each of *tags* has moved; and what they point to."""
    store = Store()
    targets = []
    for tag in tags:
        store.tree.image("a", tag, layers=[b"old " + tag.encode()])
        targets.append(store.tree.image("a", tag, layers=[b"new " + tag.encode()]))
    return store, targets


@pytest.mark.parametrize("threads", [1, 4])
def test_a_tag_that_the_listing_leaves_out_is_a_tag_where_its_history_is_listed(
    threads: int,
) -> None:
    store, targets = pushed_twice("v1", "v2", "v3")
    store.touch(tag_path("a", "v1"))
    storage = _Lagging(store.storage, tag_path("a", "v1"), tag_path("a", "v3"))
    watcher = Watcher()
    with ThreadEngine(storage, threads) as engine:
        catalog = read_catalog(storage, engine, watcher)
    assert [(tag.name, tag.target) for tag in catalog.tags] == [
        ("v1", targets[0]),
        ("v2", targets[1]),
        ("v3", targets[2]),
    ]
    assert catalog.tags.modified.tolist() == [YOUNG, OLD, OLD]
    assert storage.asked == [tag_path("a", "v1"), tag_path("a", "v3")]
    (notice,) = watcher.notices
    assert notice.startswith(f"2 tags were not listed, and are there: {tag_path('a', 'v1')}; ")
    assert catalog.damaged == []


def test_the_image_of_a_tag_that_the_listing_leaves_out_stays() -> None:
    store, targets = pushed_twice("v1", "v2")
    storage = _Lagging(store.storage, tag_path("a", "v1"))
    assert {digest for _, digest in marked(storage).live} == set(targets)


def test_a_tag_that_is_gone_while_its_history_stays_is_no_tag() -> None:
    store, targets = pushed_twice("v1", "v2")
    store.remove(tag_path("a", "v1"))
    storage = _Lagging(store.storage)
    found = marked(storage)
    assert [tag.name for tag in found.catalog.tags] == ["v2"]
    assert {digest for _, digest in found.live} == {targets[1]}
    assert storage.asked == [tag_path("a", "v1")]


def test_where_no_tag_is_missing_from_the_listing_none_is_asked_for(tmp_path: Path) -> None:
    store, _ = pushed_twice("v1", "v2")
    storage = _Lagging(store.storage)
    assert len(catalog_of(storage).tags) == 2
    assert storage.asked == []
    # A folder says what is in it.
    RegistryTree(folder_sink(tmp_path)).image("a", "v1", layers=[b"x"])
    (tmp_path / tag_path("a", "v1")).unlink()
    storage = _Lagging(FilesystemStorage(str(tmp_path)))
    assert len(catalog_of(storage).tags) == 0
    assert storage.asked == []


def test_a_tag_that_is_not_listed_and_cannot_be_asked_for_ends_the_run() -> None:
    class Broken(_Lagging):
        def stat(self, path: str) -> Entry:
            raise AccessDenied("not yours", path=path)

    store, _ = pushed_twice("v1")
    with pytest.raises(AccessDenied):
        catalog_of(Broken(store.storage, tag_path("a", "v1")))


def test_a_tag_that_is_listed_and_not_found_is_asked_for_once_more(tmp_path: Path) -> None:
    class Late(_Vanishing):
        """Found when it is asked for again."""

        asked = 0

        def read(self, path: str, *, limit: int | None = None) -> bytes:
            self.asked += path == self._gone
            return super().read(path, limit=limit) if self.asked < 2 else self._found(path)

        def _found(self, path: str) -> bytes:
            return self._storage.read(path)

    digest = RegistryTree(folder_sink(tmp_path)).image("a", "v1", layers=[b"x"])
    storage = Late(FilesystemStorage(str(tmp_path)), tag_path("a", "v1"))
    catalog = catalog_of(storage)
    assert [(tag.name, tag.target) for tag in catalog.tags] == [("v1", digest)]
    assert catalog.damaged == []
    assert storage.asked == 2


def test_a_tag_that_has_vanished_holds_its_repository_for_that_reason(tmp_path: Path) -> None:
    RegistryTree(folder_sink(tmp_path)).image("a", "v1", layers=[b"x"])
    found = marked(_Vanishing(FilesystemStorage(str(tmp_path)), tag_path("a", "v1")))
    assert [hold.reason for hold in found.marking.holds] == [
        "the tag v1 vanished while it was read"
    ]


# The root


@pytest.mark.parametrize("folder", ["blobs", "repositories"])
def test_a_root_with_either_folder_is_a_registrys(folder: str) -> None:
    storage = MemoryStorage()
    assert not is_registry(storage)
    storage.put("docker/registry/v2x/blobs/x", b"")
    assert not is_registry(storage)
    storage.put(f"{V2}{folder}/x", b"")
    assert is_registry(storage)


def test_names_that_are_no_utf8_are_names(tmp_path: Path) -> None:
    tree = RegistryTree(folder_sink(tmp_path))
    tree.image("odd-\udcff", "t\udcfe", layers=[b"x"])
    catalog = catalog_of(FilesystemStorage(str(tmp_path)))
    assert catalog.repositories == ["odd-\udcff"]
    assert [tag.name for tag in catalog.tags] == ["t\udcfe"]


@given(st.lists(st.sampled_from(["a", "a-b", "a/b", "b"]), max_size=8), st.integers(1, 4))
def test_cut_anywhere_the_catalog_is_the_same(names: list[str], page_size: int) -> None:
    """Batches of single pages put together are what one batch would have been."""
    store, small = Store(), Store(page_size=page_size)
    for each in (store, small):
        for number, name in enumerate(names):
            each.tree.image(name, f"v{number % 3}", layers=[b"%d" % (number % 4)])
    whole = catalog_of(store.storage)
    cut = catalog_of(small.storage)
    assert whole.repositories == cut.repositories
    assert [*whole.tag_folders] == [*cut.tag_folders]
    for kind in ("revisions", "layers", "tag_index"):
        one, other = getattr(whole, kind), getattr(cut, kind)
        assert np.array_equal(one.owner, other.owner)
        assert one.keys.tobytes() == other.keys.tobytes()
        assert np.array_equal(one.modified, other.modified)
    assert [(t.name, t.target) for t in whole.tags] == [(t.name, t.target) for t in cut.tags]
