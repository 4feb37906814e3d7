"""The walk: its shortcuts, what they do not see, and what is hollow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from drivers.folders import (
    BLOBS,
    HEX,
    OTHER_HEX,
    TAGS,
    hollow,
    listed,
    make,
    result,
)
from registry_drivers import filesystem_entries, filesystem_walk
from registry_drivers.base import UNASKED, Deletion
from registry_drivers.errors import (
    IsFolder,
    StorageError,
)
from registry_drivers.filesystem import FilesystemStorage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are opened from now on."""
    names: list[str] = []
    scandir = os.scandir

    def spy(path: Any) -> Any:
        names.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", spy)
    return names


def test_a_digests_folder_is_not_opened_when_its_file_is_there(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [
        f"{BLOBS}{HEX}/data",
        "repositories/r/_layers/sha256/" + HEX + "/link",
        "repositories/r/_manifests/revisions/sha256/" + HEX + "/link",
        "repositories/r/_manifests/tags/t/current/link",
        "repositories/r/_manifests/tags/t/index/sha256/" + HEX + "/link",
    ]
    for path in expected:
        make(root, path)
    folders = opened(monkeypatch)
    assert listed(storage) == expected
    assert not [folder for folder in folders if HEX in folder or "current" in folder]


def test_files_beside_the_expected_one_are_seen_by_children_only(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, f"{BLOBS}{HEX}/data")
    make(root, f"{BLOBS}{HEX}/data.1234.tmp")
    assert listed(storage) == [f"{BLOBS}{HEX}/data"]
    assert storage.children(f"{BLOBS}{HEX}/").files == ("data", "data.1234.tmp")
    assert listed(storage, f"{BLOBS}{HEX}/") == [
        f"{BLOBS}{HEX}/data",
        f"{BLOBS}{HEX}/data.1234.tmp",
    ]


def test_strangers_among_digests_are_listed_in_order(
    root: Path, storage: FilesystemStorage
) -> None:
    made = [
        f"{BLOBS}{HEX}/data",
        f"{BLOBS}{OTHER_HEX}/other",
        f"{BLOBS}{OTHER_HEX}/sub/deeper",
        f"{BLOBS}ab-stray",
        f"{BLOBS}foo/data",
        f"{BLOBS}foo/more",
    ]
    for path in made:
        make(root, path)
    assert listed(storage, BLOBS) == sorted(made)
    assert set(listed(storage)) == set(made)


def test_a_digests_name_on_a_file_or_an_odd_leaf_is_listed(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, f"{BLOBS}{HEX}")
    make(root, f"{BLOBS}{OTHER_HEX}/data/inside")
    assert listed(storage) == [f"{BLOBS}{HEX}", f"{BLOBS}{OTHER_HEX}/data/inside"]


def test_hollow_folders_are_told_deepest_first(root: Path, storage: FilesystemStorage) -> None:
    make(root, f"{BLOBS}{HEX}/data")
    (root / BLOBS / OTHER_HEX / "deeper").mkdir(parents=True)
    (root / "docker/registry/v2/repositories/r/_uploads").mkdir(parents=True)
    assert listed(storage) == [f"{BLOBS}{HEX}/data"]
    assert hollow(storage) == [
        f"{BLOBS}{OTHER_HEX}/deeper",
        f"{BLOBS}{OTHER_HEX}",
        "docker/registry/v2/repositories/r/_uploads",
        "docker/registry/v2/repositories/r",
        "docker/registry/v2/repositories",
    ]
    assert storage.remove_folders(hollow(storage), floor="") == 5
    assert hollow(storage) == []


def test_a_listed_folder_that_is_empty_is_hollow_itself(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "a/b").mkdir(parents=True)
    assert hollow(storage, "a/b/") == ["a/b"]
    assert hollow(storage, "missing/") == []
    (root / "a/b").rmdir()
    (root / "a").rmdir()
    assert hollow(storage) == []


def test_a_tag_of_another_shape_is_listed_in_full(root: Path, storage: FilesystemStorage) -> None:
    made = [
        f"{TAGS}a/current/link",
        f"{TAGS}a/index/sha256/{HEX}/link",
        f"{TAGS}b-no-current/index/sha256/{HEX}/link",
        f"{TAGS}c-no-index/current/link",
        f"{TAGS}d-odd-index/current/link",
        f"{TAGS}d-odd-index/index/md5/{HEX[:32]}/link",
        f"{TAGS}e-stray",
        f"{TAGS}f/current/link",
        f"{TAGS}f/index/sha256/stray",
        f"{TAGS}g/current/other",
    ]
    for path in made:
        make(root, path)
    assert listed(storage) == made


def test_what_belongs_to_the_disk_and_not_to_the_registry_is_left_out(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "blobs/lost+found").mkdir(parents=True)
    make(root, "blobs/a")
    assert storage.children("blobs/").folders == ()
    assert hollow(storage) == []
    assert listed(storage) == ["blobs/a"]


def test_names_that_are_no_utf8_survive(root: Path, storage: FilesystemStorage) -> None:
    folder = os.fsencode(root) + b"/a\xff"
    os.mkdir(folder)
    with open(folder + b"/b\xfe", "wb") as file:
        file.write(b"odd")
    (path,) = listed(storage)
    assert os.fsencode(path) == b"a\xff/b\xfe"
    assert storage.read(path) == b"odd"
    assert storage.children(storage.children("").folders[0] + "/").files == ("b\udcfe",)
    assert result(storage, path) is Deletion.DELETED


def test_folders_nested_without_end_are_refused(root: Path, storage: FilesystemStorage) -> None:
    path = root
    for _ in range(320):
        path /= "d"
        path.mkdir()
    with pytest.raises(StorageError, match="deep"):
        listed(storage)


def test_a_listing_counts_the_folders_it_opened(root: Path, storage: FilesystemStorage) -> None:
    for number in range(5):
        make(root, f"{BLOBS}ab{number:062x}/data")
    before = storage.requests.list
    assert len(listed(storage, BLOBS)) == 5
    assert storage.requests.list == before + 1


def test_what_vanishes_between_listing_and_asking_is_no_error(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("u/1/data", "u/1/startedat", "u/2/data", "w"):
        make(root, path)
    scandir = os.scandir

    def purge(path: Any) -> Any:
        entries = scandir(path)
        path = str(path)
        if path.endswith("u/"):
            for name in ("1/data", "1/startedat"):
                (root / "u" / name).unlink()
            (root / "u/1").rmdir()
        if path.endswith("/2/"):
            (root / "w").unlink()
        return entries

    monkeypatch.setattr(os, "scandir", purge)
    assert listed(storage) == ["u/2/data"]


def test_a_digests_folder_that_vanishes_is_no_error(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, f"{BLOBS}{HEX}/data")
    sorted_out = filesystem_entries.sorted_out

    def more(entries: Any) -> Any:
        for plain, others in sorted_out(entries):
            yield [*plain, OTHER_HEX], others

    monkeypatch.setattr(filesystem_walk, "sorted_out", more)
    assert listed(storage, BLOBS) == [f"{BLOBS}{HEX}/data"]


def test_what_a_tag_points_to_is_read_on_the_way_and_counted(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, f"{TAGS}a/current/link", b"sha256:" + HEX.encode())
    make(root, f"{TAGS}a/index/sha256/{HEX}/link")
    make(root, f"{TAGS}b-empty/current/link", b"")
    make(root, f"{TAGS}b-empty/index/sha256/{HEX}/link")
    make(root, f"{TAGS}c-long/current/link", b"y" * 5000)
    make(root, f"{TAGS}c-long/index/sha256/{HEX}/link")
    (root / TAGS / "d-pipe/current").mkdir(parents=True)
    os.mkfifo(root / TAGS / "d-pipe/current/link")
    make(root, f"{TAGS}d-pipe/index/sha256/{HEX}/link")
    (root / TAGS / "e-folder/current/link").mkdir(parents=True)
    make(root, f"{TAGS}e-folder/index/sha256/{HEX}/link")
    (page,) = storage.list(TAGS)
    paths = list(page.paths)
    assert {paths[row]: content for row, content in page.contents.items()} == {
        f"{TAGS}a/current/link": b"sha256:" + HEX.encode(),
        f"{TAGS}b-empty/current/link": b"",
    }
    assert f"{TAGS}d-pipe/current/link" in paths
    assert page.sizes[paths.index(f"{TAGS}c-long/current/link")] == 5000
    assert storage.requests.read == 3
    (rest,) = storage.list(TAGS, start_after=f"{TAGS}a/current/link")
    assert dict(rest.contents) == {list(rest.paths).index(f"{TAGS}b-empty/current/link"): b""}


REVISIONS = "docker/registry/v2/repositories/r/_manifests/revisions/sha256/"
LAYERS = "docker/registry/v2/repositories/r/_layers/sha256/"


def told(storage: FilesystemStorage, prefix: str = "") -> list[tuple[str, bool]]:
    """Every path, and whether its file was looked at."""
    return [
        (entry.path, entry.size != UNASKED)
        for page in storage.list_unasked(prefix)
        for entry in page.entries()
    ]


def test_by_name_no_layer_link_is_looked_at(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (OTHER_HEX, HEX):
        make(root, f"{LAYERS}{name}/link")
    make(root, f"{REVISIONS}{HEX}/link")
    looked: list[str] = []
    stat = os.stat

    def spy(path: Any, **options: Any) -> os.stat_result:
        looked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", spy)
    assert told(storage) == [
        *((f"{LAYERS}{name}/link", False) for name in sorted((HEX, OTHER_HEX))),
        (f"{REVISIONS}{HEX}/link", True),
    ]
    assert [path for path in looked if path.endswith("/link")] == [f"{HEX}/link"]


def test_by_name_no_entry_of_a_tags_history_is_looked_at(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a short history, which is listed at once, nor of a long one."""
    many = [f"{number:064x}" for number in range(40)]
    for tag, names in (("few", [OTHER_HEX, HEX]), ("many", many)):
        make(root, f"{TAGS}{tag}/current/link", b"sha256:" + HEX.encode())
        for name in names:
            make(root, f"{TAGS}{tag}/index/sha256/{name}/link")
    make(root, f"{TAGS}other/current/link", b"sha256:" + HEX.encode())
    make(root, f"{TAGS}other/index/sha256/{HEX}/link")
    make(root, f"{TAGS}other/index/sha512/{HEX * 2}/link")
    expected = [
        (f"{TAGS}few/current/link", True),
        *((f"{TAGS}few/index/sha256/{name}/link", False) for name in sorted((HEX, OTHER_HEX))),
        (f"{TAGS}many/current/link", True),
        *((f"{TAGS}many/index/sha256/{name}/link", False) for name in many),
        (f"{TAGS}other/current/link", True),
        (f"{TAGS}other/index/sha256/{HEX}/link", False),
        (f"{TAGS}other/index/sha512/{HEX * 2}/link", True),
    ]
    assert told(storage) == expected
    assert [path for path, _ in expected] == listed(storage)
    # A system that does not count the folders in a folder changes nothing.
    monkeypatch.setattr("registry_drivers.filesystem_walk._ONE_FOLDER", 0)
    assert told(storage) == expected
    assert [path for path, _ in expected] == listed(storage)


@pytest.mark.parametrize("odd", ["file", "short", "link", "sha512", "empty", "none", "a file"])
def test_a_history_with_something_odd_is_listed_whole(
    root: Path, storage: FilesystemStorage, tmp_path_factory: pytest.TempPathFactory, odd: str
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    index = root / TAGS / "a" / "index"
    make(root, f"{TAGS}a/current/link", b"sha256:" + HEX.encode())
    if odd not in ("sha512", "none", "a file"):
        make(root, f"{TAGS}a/index/sha256/{HEX}/link")
    found = [f"{HEX}/link"]
    match odd:
        case "file":
            make(root, f"{TAGS}a/index/sha256/{OTHER_HEX}")
            found.append(OTHER_HEX)
        case "short":
            make(root, f"{TAGS}a/index/sha256/abcd/link")
            found.append("abcd/link")
        case "link":
            (outside / "link").write_bytes(b"x")
            (index / "sha256" / OTHER_HEX).symlink_to(outside)
            found.append(f"{OTHER_HEX}/link")
        case "empty":
            (index / "sha256" / OTHER_HEX).mkdir()
        case "sha512":
            make(root, f"{TAGS}a/index/sha512/{HEX * 2}/link")
        case "none":
            index.mkdir()
        case "a file":
            make(root, f"{TAGS}a/index/stray")
    paths = {
        "sha512": [f"{TAGS}a/index/sha512/{HEX * 2}/link"],
        "none": [],
        "a file": [f"{TAGS}a/index/stray"],
    }.get(odd, [f"{TAGS}a/index/sha256/{name}" for name in sorted(found)])
    assert listed(storage) == [f"{TAGS}a/current/link", *paths]
    # By its name, an empty folder stands for the link in it.
    missing = [f"{TAGS}a/index/sha256/{OTHER_HEX}/link"] if odd == "empty" else []
    assert [path for path, _ in told(storage)] == sorted([*listed(storage), *missing])
    if odd in ("file", "short", "link"):
        assert all(looked for _, looked in told(storage))


@pytest.mark.parametrize("odd", ["file", "capitals", "short", "long", "link", "dangling"])
def test_beside_something_odd_every_layer_link_is_looked_at(
    root: Path,
    storage: FilesystemStorage,
    tmp_path_factory: pytest.TempPathFactory,
    odd: str,
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    make(root, f"{LAYERS}{HEX}/link")
    match odd:
        case "file":
            make(root, f"{LAYERS}{OTHER_HEX}")
        case "capitals":
            make(root, f"{LAYERS}{'AB' * 32}/link")
        case "short":
            make(root, f"{LAYERS}{'ab' * 16}/link")
        case "long":
            make(root, f"{LAYERS}{'ab' * 64}/link")
        case "link":
            (outside / "link").write_bytes(b"x")
            (root / LAYERS / OTHER_HEX).symlink_to(outside)
        case "dangling":
            (root / LAYERS / OTHER_HEX).symlink_to(outside / "nowhere")
            with pytest.raises(StorageError):
                told(storage)
            return
    assert told(storage) == [(path, True) for path in listed(storage)]
    assert len(told(storage)) == 2


def test_by_name_an_empty_folder_of_layers_is_hollow(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / LAYERS).mkdir(parents=True)
    (page,) = storage.list_unasked(LAYERS)
    assert page.hollow == (LAYERS[:-1],)


def test_among_layers_what_is_no_link_is_listed_as_it_is(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, f"{LAYERS}{HEX}/link")
    make(root, f"{LAYERS}{OTHER_HEX}/other")
    (root / LAYERS / ("cd" * 32)).mkdir()
    names = sorted((HEX, OTHER_HEX, "cd" * 32, "ef" * 32))
    (page,) = storage.list_among([(LAYERS, names)])
    assert list(page.paths) == sorted([f"{LAYERS}{HEX}/link", f"{LAYERS}{OTHER_HEX}/other"])
    assert page.hollow == (LAYERS + "cd" * 32,)


def test_layer_links_by_name_come_in_pages(root: Path, storage: FilesystemStorage) -> None:
    names = [f"{number:064x}" for number in range(5000)]
    for name in names:
        (root / LAYERS / name).mkdir(parents=True)
    pages = [*storage.list_unasked("docker/")]
    assert [len(page) for page in pages] == [4096, 904]
    assert [path for page in pages for path in page.paths] == [f"{LAYERS}{n}/link" for n in names]


def test_a_file_after_very_many_folders_is_seen(root: Path, storage: FilesystemStorage) -> None:
    for number in range(3000):
        (root / LAYERS / f"{number:064x}").mkdir(parents=True)
    make(root, f"{LAYERS}stray")
    assert told(storage, LAYERS) == [(f"{LAYERS}stray", True)]
    below = storage.children(LAYERS)
    assert (len(below.folders), below.files) == (3000, ("stray",))


def test_among_layers_of_many_repositories_each_is_told_in_turn(
    root: Path, storage: FilesystemStorage
) -> None:
    folders = [LAYERS.replace("/r/", f"/{name}/") for name in ("a/b", "gone", "c")]
    for folder in (folders[0], folders[2]):
        make(root, f"{folder}{HEX}/link")
    (page,) = storage.list_among([(folder, [HEX]) for folder in folders])
    assert list(page.paths) == [f"{folders[0]}{HEX}/link", f"{folders[2]}{HEX}/link"]
    assert not [*storage.list_among([])]


@pytest.mark.parametrize("inside", ["", "/stray"])
def test_a_folder_where_a_link_is_to_be_is_listed_as_one_of_no_bytes(
    root: Path, storage: FilesystemStorage, inside: str
) -> None:
    links = [f"{TAGS}v1/current/link", f"{TAGS}v1/index/sha256/{HEX}/link"]
    for link in links:
        (root / link).mkdir(parents=True)
        if inside:
            make(root, link + inside)
    expected = [path for link in links for path in ([link, link + inside] if inside else [link])]
    assert listed(storage) == expected
    assert hollow(storage) == []
    sizes = {
        path: size
        for page in storage.list("")
        for path, size in zip(page.paths, page.sizes, strict=True)
    }
    assert [sizes[link] for link in links] == [0, 0]
    with pytest.raises(IsFolder):
        storage.read(links[0])


def test_a_folder_where_the_data_of_a_blob_is_to_be_is_never_tidied_away(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / f"{BLOBS}{HEX}/data").mkdir(parents=True)
    (root / f"{BLOBS}{OTHER_HEX}/other").mkdir(parents=True)
    assert listed(storage) == []
    assert hollow(storage) == [f"{BLOBS}{OTHER_HEX}/other", f"{BLOBS}{OTHER_HEX}"]
