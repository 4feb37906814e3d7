"""Symbolic links are followed and never removed; hard links are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drivers.conformance import entries_of
from drivers.folders import (
    BLOBS,
    HEX,
    OTHER_HEX,
    TAGS,
    hollow,
    listed,
    make,
)
from registry_drivers.base import Deletion
from registry_drivers.errors import (
    NotFound,
    StorageError,
)
from registry_drivers.filesystem import FilesystemStorage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


def test_folders_and_files_behind_links_are_listed_and_read(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, f"disk/ab/{HEX}/data", b"blob")
    make(root, "file", b"content")
    (root / "reg/blobs").mkdir(parents=True)
    (root / "reg/blobs/sha256").symlink_to("../../disk")
    (root / "reg/link").symlink_to(root / "file")
    path = f"reg/blobs/sha256/ab/{HEX}/data"
    assert listed(storage, "reg/") == [path, "reg/link"]
    assert storage.read(path) == b"blob"
    assert storage.read("reg/link") == b"content"
    assert storage.stat("reg/link").size == 7
    assert storage.children("reg/").files == ("link",)
    assert storage.children("reg/blobs/").folders == ("sha256",)


def test_a_link_is_never_unlinked_and_what_lies_behind_a_folders_link_is(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, "disk/a/file")
    (root / "reg").mkdir()
    (root / "reg/folder").symlink_to("../disk")
    (root / "reg/file").symlink_to("../disk/a/file")
    outcomes = {o.path: o for o in storage.delete(["reg/file", "reg/folder", "reg/folder/a/file"])}
    for path in ("reg/file", "reg/folder"):
        assert outcomes[path].result is Deletion.FAILED
        assert "symbolic link" in outcomes[path].error
    assert outcomes["reg/folder/a/file"].result is Deletion.DELETED
    assert storage.remove_folders(["reg/folder/a"], floor="reg/") == 1
    assert (root / "reg/folder").is_symlink()
    assert (root / "disk").is_dir()
    with pytest.raises(StorageError, match="never moved"):
        storage.move("reg/file", "elsewhere")


@pytest.mark.parametrize("target", [".", "..", "../..", "../b/.."])
def test_a_loop_of_links_is_named(root: Path, storage: FilesystemStorage, target: str) -> None:
    make(root, "a/b/file")
    (root / "a/b/loop").symlink_to(target)
    with pytest.raises(StorageError, match="loop") as caught:
        listed(storage, "a/b/")
    assert caught.value.path.endswith("a/b/loop")


def test_a_loop_over_two_links_is_named(root: Path, storage: FilesystemStorage) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    (root / "a/x").symlink_to("../b")
    (root / "b/y").symlink_to("../a")
    with pytest.raises(StorageError, match="loop"):
        listed(storage)


def test_links_that_lead_to_each_other_are_named(root: Path, storage: FilesystemStorage) -> None:
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    for call in (
        lambda: listed(storage),
        lambda: storage.children(""),
        lambda: storage.read("x"),
        lambda: storage.stat("x"),
        lambda: storage.stat_many(["x"]),
    ):
        with pytest.raises(StorageError) as caught:
            call()
        assert caught.value.path in ("x", "y")
        assert not isinstance(caught.value, NotFound)


def test_two_links_to_one_folder_are_no_loop(root: Path, storage: FilesystemStorage) -> None:
    make(root, "disk/f")
    (root / "one").symlink_to("disk")
    (root / "two").symlink_to("disk")
    assert listed(storage) == ["disk/f", "one/f", "two/f"]


def test_a_link_to_nothing_is_an_error_and_not_a_missing_file(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "r").mkdir()
    (root / "r/blobs").symlink_to("/nonexistent/mount")
    for call in (
        lambda: listed(storage),
        lambda: listed(storage, "r/blobs/"),
        lambda: listed(storage, "r/blobs/sha256/"),
        lambda: storage.children("r/"),
        lambda: storage.children("r/blobs/"),
        lambda: storage.read("r/blobs"),
        lambda: storage.read("r/blobs/sha256/data"),
        lambda: storage.stat("r/blobs/sha256/data"),
        lambda: storage.stat_many(["r/blobs/sha256/data"]),
        lambda: storage.stat_many(["r/blobs/sha256/data", "r/x"]),
        lambda: list(storage.delete(["r/blobs/sha256/data"])),
    ):
        with pytest.raises(StorageError, match="link to nothing") as caught:
            call()
        assert caught.value.path == "r/blobs"
        assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize("link", [f"{BLOBS}{HEX}", f"{BLOBS}{HEX}/data", f"{TAGS}t/current/link"])
def test_a_link_to_nothing_where_the_shortcuts_look_is_an_error(
    root: Path, storage: FilesystemStorage, link: str
) -> None:
    make(root, f"{BLOBS}{OTHER_HEX}/data")
    make(root, f"{TAGS}t/index/sha256/{HEX}/link")
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to("nothing")
    with pytest.raises(StorageError, match="link to nothing") as caught:
        listed(storage)
    assert caught.value.path == link


def test_a_linked_folder_without_files_is_not_hollow(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "disk").mkdir()
    (root / "a").mkdir()
    (root / "a/link").symlink_to("../disk")
    assert hollow(storage) == ["disk"]


def test_files_with_another_hard_link_are_shared(root: Path, storage: FilesystemStorage) -> None:
    one = make(root, f"{BLOBS}{HEX}/data")
    make(root, f"{BLOBS}{OTHER_HEX}/data")
    os.link(one, make(root, "a/b").with_name("c"))
    rows = entries_of(storage.list(""))
    assert [path for path, row in rows.items() if row.shared] == ["a/c", f"{BLOBS}{HEX}/data"]
    assert storage.stat("a/c").shared
    assert storage.stat_many(["a/c"]) == [storage.stat("a/c")]
    assert not storage.stat("a/b").shared


def test_moving_one_hard_link_onto_another_leaves_one(
    root: Path, storage: FilesystemStorage
) -> None:
    os.link(make(root, "a"), root / "b")
    storage.move("a", "b")
    assert listed(storage) == ["b"]
