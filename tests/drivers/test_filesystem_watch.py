"""A disk that goes away while it is used makes nothing missing.

An unmounted disk leaves its mount point: an empty folder with another inode, as is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.folders import listed, make
from registry_drivers import filesystem_watch
from registry_drivers.base import Named
from registry_drivers.errors import NotFound, StorageError
from registry_drivers.filesystem import FilesystemStorage

V2 = "docker/registry/v2"
REPOSITORIES = f"{V2}/repositories"
HEX = "ab" * 32
BLOB = f"{V2}/blobs/sha256/ab/{HEX}/data"
LINK = f"{REPOSITORIES}/app/_layers/sha256/{HEX}/link"
FOLDERS = ["", "docker", "docker/registry", V2, REPOSITORIES, f"{V2}/blobs", f"{V2}/blobs/sha256"]

Call = Callable[[FilesystemStorage, str], object]


def folder_of_digests(path: str) -> Named:
    *above, _, _ = path.split("/")
    return "/".join(above) + "/", [HEX]


CALLS: dict[str, Call] = {
    "read": lambda storage, path: storage.read(path),
    "read range": lambda storage, path: storage.read_range(path, 0, 1),
    "stat": lambda storage, path: storage.stat(path),
    "stat many": lambda storage, path: storage.stat_many([path, path + "2"]),
    "list": lambda storage, path: listed(storage),
    "list one folder": lambda storage, path: listed(storage, path.rpartition("/")[0] + "/"),
    "list the rest": lambda storage, path: list(storage.list(f"{V2}/", start_after=f"{V2}/a")),
    "list by name": lambda storage, path: list(storage.list_unasked(f"{V2}/")),
    "list among": lambda storage, path: list(storage.list_among([folder_of_digests(path)])),
    "children": lambda storage, path: storage.children(path.rpartition("/")[0] + "/"),
    "delete": lambda storage, path: list(storage.delete([path])),
    "write": lambda storage, path: storage.write("registry-gc/note", b""),
    "move": lambda storage, path: storage.move(path, "registry-gc/aside"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path / "registry", BLOB)
    make(tmp_path / "registry", LINK)
    return tmp_path / "registry"


def unmount(folder: Path) -> Path:
    gone = folder.with_name("gone")
    folder.rename(gone)
    folder.mkdir()
    return gone


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_disk_that_is_unmounted_makes_nothing_missing(
    root: Path, folder: str, call: Call
) -> None:
    storage = FilesystemStorage(str(root))
    unmount(root / folder)
    with pytest.raises(StorageError, match="replaced or unmounted") as caught:
        call(storage, BLOB if "blobs" in folder else LINK)
    assert not isinstance(caught.value, NotFound)
    assert list((root / folder).iterdir()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_listing_of_a_disk_that_is_unmounted_meanwhile_fails(root: Path, folder: str) -> None:
    storage = FilesystemStorage(str(root))
    pages = storage.list("")
    next(pages)
    unmount(root / folder)
    with pytest.raises(StorageError, match="replaced or unmounted"):
        list(pages)


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_mount_point_that_goes_with_its_disk_is_not_missing(
    root: Path, folder: str, call: Call
) -> None:
    storage = FilesystemStorage(str(root))
    (root / folder).rename((root / folder).with_name("gone"))
    with pytest.raises(StorageError, match="replaced or unmounted") as caught:
        call(storage, BLOB if "blobs" in folder else LINK)
    assert not isinstance(caught.value, NotFound)


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_a_symbolic_link_to_a_mount_point_is_watched(
    root: Path, tmp_path: Path, folder: str
) -> None:
    disk = tmp_path / "disk"
    (root / folder).rename(disk)
    (root / folder).symlink_to(disk)
    storage = FilesystemStorage(str(root))
    assert listed(storage) == [BLOB, LINK]
    unmount(disk)
    with pytest.raises(StorageError, match="replaced or unmounted"):
        listed(storage)


def test_whatever_is_mounted_below_the_root_is_watched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lines as Linux writes them; the octal number is a space.
    team = f"{REPOSITORIES}/a team"
    make(root, f"{team}/app/_uploads/1/startedat")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
        f"23 1 0:22 / {root}-beside rw shared:6 - tmpfs none rw\n"
        f"24 1 0:23 / {root}/{team.replace(' ', chr(92) + '040')} rw shared:7 - tmpfs none rw\n"
    )
    monkeypatch.setattr(filesystem_watch, "_MOUNTS", mounts)
    storage = FilesystemStorage(str(root))
    assert len(listed(storage)) == 3
    unmount(root / team)
    with pytest.raises(StorageError, match="replaced or unmounted") as caught:
        storage.children(f"{team}/")
    assert caught.value.path == team


def test_a_system_that_tells_no_mounts_is_no_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem_watch, "_MOUNTS", tmp_path / "none")
    assert len(listed(FilesystemStorage(str(root)))) == 2


def test_the_same_disk_again_is_no_other(root: Path) -> None:
    storage = FilesystemStorage(str(root))
    gone = unmount(root / REPOSITORIES)
    with pytest.raises(StorageError):
        listed(storage)
    (root / REPOSITORIES).rmdir()
    gone.rename(root / REPOSITORIES)
    assert listed(storage) == [BLOB, LINK]


def test_a_folder_that_is_made_while_it_is_used_is_none_that_was_replaced(tmp_path: Path) -> None:
    storage = FilesystemStorage(str(tmp_path))
    assert listed(storage) == []
    make(tmp_path, BLOB)
    assert listed(storage) == [BLOB]
    unmount(tmp_path / V2)
    with pytest.raises(StorageError, match="replaced or unmounted"):
        listed(storage)


def test_a_folder_that_we_remove_ourselves_is_none_that_was_unmounted(tmp_path: Path) -> None:
    (tmp_path / REPOSITORIES).mkdir(parents=True)
    storage = FilesystemStorage(str(tmp_path))
    assert storage.remove_folders([REPOSITORIES], floor=f"{V2}/") == 1
    assert listed(storage) == []
