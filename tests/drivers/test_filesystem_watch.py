"""A disk that goes away while it is used makes nothing missing.

An unmounted disk leaves its mount point: an empty folder with another inode, as is made here.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from drivers.folders import listed, make, result
from registry_drivers import filesystem_mounts
from registry_drivers.base import Deletion, Named, Page
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


class Mounts:
    """What the system says is mounted: lines as Linux writes them."""

    def __init__(self, file: Path, patch: pytest.MonkeyPatch) -> None:
        self._file = file
        patch.setattr(filesystem_mounts, "_MOUNTS", file)
        self.set()

    def set(self, *mounts: tuple[Path | str, str], device: str = "99:1") -> None:
        """These alone, by path and kind; each is mounted on the one before."""
        lines = ["22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw"]
        for number, (path, kind) in enumerate(mounts, start=30):
            escaped = str(path).replace(" ", "\\040")
            lines.append(
                f"{number} {number - 1} {device} / {escaped} rw shared:7 - {kind} /dev/x rw"
            )
        self._file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounts:
    return Mounts(tmp_path / "mountinfo", monkeypatch)


# What Python splits lines or words at, and the kernel does not escape.
@pytest.mark.parametrize("team", ["team", "a team", "a\u00a0team", "a\x0cteam", "a\u2028t\u2028m"])
def test_whatever_is_mounted_below_the_root_is_watched(
    root: Path, mounts: Mounts, team: str
) -> None:
    folder = f"{REPOSITORIES}/{team}"
    make(root, f"{folder}/app/_uploads/1/startedat")
    mounts.set((f"{root}-beside", "tmpfs"), (root / folder, "ext4"))
    storage = FilesystemStorage(str(root))
    assert len(listed(storage)) == 3
    unmount(root / folder)
    with pytest.raises(StorageError, match="replaced or unmounted") as caught:
        storage.children(f"{folder}/")
    assert caught.value.path == folder


def test_so_is_what_is_mounted_behind_a_symbolic_link(
    root: Path, tmp_path: Path, mounts: Mounts
) -> None:
    make(root, f"{REPOSITORIES}/team/app/_uploads/1/startedat")
    disk = tmp_path / "disk"
    (root / REPOSITORIES).rename(disk)
    (root / REPOSITORIES).symlink_to(disk)
    mounts.set((disk / "team", "ext4"))
    storage = FilesystemStorage(str(root))
    assert len(listed(storage)) == 3
    unmount(disk / "team")
    with pytest.raises(StorageError, match="replaced or unmounted") as caught:
        listed(storage)
    assert caught.value.path == f"{REPOSITORIES}/team"


@pytest.mark.parametrize("where", ["team", "group/team"])
@pytest.mark.parametrize("below", ["", "/data"])
def test_a_link_to_what_was_mounted_when_we_began_is_no_empty_folder(
    root: Path, tmp_path: Path, mounts: Mounts, where: str, below: str
) -> None:
    disk = tmp_path / "disk"
    make(disk, f"{below[1:]}/app/_uploads/1/startedat".lstrip("/"))
    link = root / REPOSITORIES / where
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(f"{disk}{below}")
    mounts.set((tmp_path, "ext4"), (disk, "ext4"))
    # Its device is not the one that the system told, as that of a subvolume.
    assert len(listed(FilesystemStorage(str(root)))) == 3
    storage = FilesystemStorage(str(root))
    mounts.set((tmp_path, "ext4"))
    above = f"{REPOSITORIES}/{where}".rpartition("/")[0] + "/"
    asks: list[Callable[[], object]] = [lambda: listed(storage), lambda: storage.children(above)]
    for ask in asks:
        with pytest.raises(StorageError, match="unmounted while we used it") as caught:
            ask()
        assert caught.value.path == f"{REPOSITORIES}/{where}"


def test_a_link_to_another_disk_is_watched_from_when_it_is_passed(root: Path) -> None:
    shared = Path("/dev/shm")
    assert shared.stat().st_dev != root.stat().st_dev
    with TemporaryDirectory(dir=shared) as folder:
        disk = Path(folder, "disk")
        make(disk, "app/_uploads/1/startedat")
        (root / REPOSITORIES / "team").symlink_to(disk)
        storage = FilesystemStorage(str(root))
        assert len(listed(storage)) == 3
        unmount(disk)
        with pytest.raises(StorageError, match="replaced or unmounted") as caught:
            listed(storage)
        assert caught.value.path == f"{REPOSITORIES}/team"


@pytest.mark.parametrize("call", ["delete", "move"])
def test_nothing_goes_after_something_was_mounted(root: Path, mounts: Mounts, call: str) -> None:
    storage = FilesystemStorage(str(root))
    assert len(listed(storage)) == 2
    mounts.set((root / REPOSITORIES / "app", "ext4"))
    with pytest.raises(StorageError, match="mounted while we used it") as caught:
        CALLS[call](storage, BLOB)
    assert caught.value.path == f"{REPOSITORIES}/app"
    assert (root / BLOB).exists()


@pytest.mark.parametrize(
    "mounted",
    [
        ["docker/overlay2/abc/merged"],
        ["docker/volumes"],
        ["docker/registry-gc"],
        ["docker/registry/.zfs/snapshot/daily"],
        ["../registry-other/docker/registry/v2"],
    ],
)
def test_what_is_mounted_elsewhere_is_not_ours(
    root: Path, mounts: Mounts, mounted: list[str]
) -> None:
    storage = FilesystemStorage(str(root))
    mounts.set(*((os.path.normpath(root / path), "overlay") for path in mounted))
    assert result(storage, BLOB) is Deletion.DELETED
    storage = FilesystemStorage(str(root))
    mounts.set()
    assert storage.stat(LINK).size == 1


def test_what_an_nfs_server_mounts_when_somebody_comes_by_is_no_change(
    root: Path, mounts: Mounts
) -> None:
    mounts.set((root, "nfs4"))
    storage = FilesystemStorage(str(root))
    mounts.set((root, "nfs4"), (root / REPOSITORIES / "app", "nfs4"))
    assert result(storage, BLOB) is Deletion.DELETED
    mounts.set((root, "ext4"), (root / REPOSITORIES / "app", "nfs4"))
    with pytest.raises(StorageError, match="mounted while we used it"):
        list(storage.delete([LINK]))


@pytest.mark.parametrize(
    ("kind", "watched"), [("ext4", True), ("fuse.sshfs", False), ("overlay", False)]
)
def test_a_file_system_that_numbers_folders_anew_is_believed(
    root: Path, mounts: Mounts, kind: str, watched: bool
) -> None:
    device = root.stat().st_dev
    mounts.set((root, kind), device=f"{os.major(device)}:{os.minor(device)}")
    storage = FilesystemStorage(str(root))
    unmount(root / REPOSITORIES)
    if watched:
        with pytest.raises(StorageError, match="replaced or unmounted"):
            listed(storage)
    else:
        assert listed(storage, f"{REPOSITORIES}/") == []


def number_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system give each folder another inode whenever it is asked."""
    really = os.stat
    numbers = itertools.count(1 << 40)

    def ask(path: Any, **named: Any) -> os.stat_result:
        status = really(path, **named)
        if not stat.S_ISDIR(status.st_mode):
            return status
        mode, _, *more = status
        return os.stat_result((mode, next(numbers), *more))

    monkeypatch.setattr(os, "stat", ask)


@pytest.mark.parametrize("call", [name for name in CALLS if name.startswith("list")])
def test_folders_that_are_numbered_anew_are_not_replaced_while_they_are_listed(
    root: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    device = root.stat().st_dev
    mounts.set((root, "overlay"), device=f"{os.major(device)}:{os.minor(device)}")
    storage = FilesystemStorage(str(root))
    whole = paths_of(CALLS[call](storage, LINK))
    number_anew(monkeypatch)
    assert paths_of(CALLS[call](storage, LINK)) == whole


def test_a_folder_that_is_numbered_anew_is_still_what_an_alias_leads_to(
    root: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = root.stat().st_dev
    mounts.set((root, "fuse.x"), device=f"{os.major(device)}:{os.minor(device)}")
    empty = root / REPOSITORIES / "empty"
    empty.mkdir()
    (root / REPOSITORIES / "alias").symlink_to(empty)
    number_anew(monkeypatch)
    storage = FilesystemStorage(str(root))
    assert storage.remove_folders([f"{REPOSITORIES}/empty"], floor=f"{REPOSITORIES}/") == 0
    assert empty.is_dir()


def test_a_system_that_tells_no_mounts_is_no_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem_mounts, "_MOUNTS", tmp_path / "none")
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


@pytest.mark.parametrize("line", ["30 29 none / / rw - x y rw", "30 29", "", "a b c d e f g"])
def test_a_line_of_another_form_is_left_out(root: Path, mounts: Mounts, line: str) -> None:
    mounts._file.write_text(f"{line}\n")
    assert len(listed(FilesystemStorage(str(root)))) == 2


class Flickering:
    """A folder or file that the system does not find, once, although it is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
        self.end, self.times = end, 0
        for name in ("open", "scandir", "listdir", "stat"):
            monkeypatch.setattr(os, name, self.missing(getattr(os, name)))

    def missing(self, really: Callable[..., object]) -> Callable[..., object]:
        def ask(path: object, *more: object, **named: object) -> object:
            if not self.times and str(path).rstrip("/").endswith(self.end):
                self.times += 1
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return really(path, *more, **named)

        return ask


def paths_of(found: object) -> object:
    """What a call has found, as far as that is the same each time."""
    if isinstance(found, list):
        pages = [page for page in found if isinstance(page, Page)]
        return [path for page in pages for path in page.paths] if pages else found
    return found


@pytest.mark.parametrize("end", ["/_layers/sha256", "/_layers", "/app", "/repositories", "/link"])
@pytest.mark.parametrize("call", ["list", "list by name", "list among", "children", "read", "stat"])
def test_what_is_there_again_was_not_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, end: str, call: str
) -> None:
    asks: dict[str, Call] = {
        **CALLS,
        "list": lambda storage, _: list(storage.list(f"{V2}/")),
        "children": lambda storage, path: storage.children(path.rpartition(f"/{HEX}")[0] + "/"),
    }
    storage = FilesystemStorage(str(root))
    whole = paths_of(asks[call](storage, LINK))
    flicker = Flickering(monkeypatch, end)
    try:
        found = paths_of(asks[call](storage, LINK))
    except NotFound:
        pytest.fail("it is there")
    except StorageError:
        assert flicker.times
    else:
        assert found == whole


def mounted(*rows: tuple[str, str, Path | str]) -> str:
    """Lines of mountinfo from device, folder of its file system, and where that is."""
    return "".join(
        f"{number} 1 {device} {folder} {where} rw - ext4 /dev/x rw\n"
        for number, (device, folder, where) in enumerate(rows, start=30)
    )


@pytest.mark.parametrize(
    ("source", "device", "place", "refused"),
    [
        (f"{REPOSITORIES}/app/_layers", "99:1", f"{REPOSITORIES}/other/_layers", True),
        (f"{REPOSITORIES}/app/_layers/sha256", "99:1", f"{REPOSITORIES}/b/_layers/sha256", True),
        (f"{V2}/blobs/sha256/ab", "99:1", f"{V2}/blobs/sha256/cd", True),
        (f"{REPOSITORIES}/app", "99:1", f"{REPOSITORIES}/other", False),  # an alias of the whole
        (f"{REPOSITORIES}/app/_layers", "99:2", f"{REPOSITORIES}/other/_layers", False),
        ("elsewhere/_layers", "99:1", f"{REPOSITORIES}/other/_layers", False),
        (f"{REPOSITORIES}-old/app/_layers", "99:1", f"{REPOSITORIES}/other/_layers", False),
    ],
)
@pytest.mark.parametrize("top", ["/", "/disk"])
def test_a_bind_mount_that_gives_a_part_a_second_name_is_refused(
    root: Path, mounts: Mounts, source: str, device: str, place: str, refused: bool, top: str
) -> None:
    make(root, f"{place}/sha256/{HEX}/link")
    inner = f"{top.rstrip('/')}/{source}"
    mounts._file.write_text(mounted(("99:1", top, root), (device, inner, root / place)))
    storage = FilesystemStorage(str(root))
    if refused:
        with pytest.raises(StorageError, match="a mount of what is listed below"):
            listed(storage)
    else:
        assert listed(storage)


LAYERS = f"{REPOSITORIES}/app/_layers"


@pytest.mark.parametrize(
    "rows",
    [
        [("99:1", f"/{LAYERS}", LAYERS)],
        [("99:1", f"/{LAYERS}", LAYERS), ("99:1", f"/{LAYERS}/sha256", f"{LAYERS}/sha256")],
        [("99:1", "/elsewhere", LAYERS), ("99:1", f"/{LAYERS}", LAYERS)],
        [("99:1", f"/{REPOSITORIES}/other/_layers", LAYERS), ("99:2", "/", LAYERS)],
        [("99:1", f"/{REPOSITORIES}/b/_layers", LAYERS), ("99:2", "/", f"{REPOSITORIES}/app")],
    ],
    ids=["onto itself", "twice", "over another", "hidden", "hidden by its repository's disk"],
)
def test_a_mount_in_its_own_place_or_that_nobody_sees_is_no_second_name(
    root: Path, mounts: Mounts, rows: list[tuple[str, str, str]]
) -> None:
    places = [(device, folder, root / place) for device, folder, place in rows]
    mounts._file.write_text(mounted(("99:1", "/", root), *places))
    assert listed(FilesystemStorage(str(root)))


def test_of_nfs_nobody_can_tell(root: Path, mounts: Mounts) -> None:
    places = [root / REPOSITORIES / name / "_layers" for name in ("a", "b")]
    for place in places:
        make(root, f"{place.relative_to(root)}/sha256/{HEX}/link")
    lines = mounted(("99:1", "/", root), *(("99:2", "/", place) for place in places))
    mounts._file.write_text(lines.replace("ext4", "nfs4"))
    assert listed(FilesystemStorage(str(root)))


def test_one_folder_mounted_at_two_places_is_refused(root: Path, mounts: Mounts) -> None:
    places = [root / REPOSITORIES / name / "_layers" for name in ("a", "b")]
    for place in places:
        place.mkdir(parents=True)
    rows = [("99:2", "/layers", place) for place in places]
    mounts._file.write_text(mounted(("99:1", "/", root), *rows))
    with pytest.raises(StorageError, match="a mount of what is listed below"):
        listed(FilesystemStorage(str(root)))
