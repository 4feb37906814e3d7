"""Writing, moving and removing: whole or not at all, and never too much."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.folders import (
    NOBODY,
    across_disks,
    listed,
    make,
    without_hard_links,
)
from registry_drivers import filesystem_patience, filesystem_write
from registry_drivers.errors import (
    NotFound,
    StorageError,
    Unavailable,
)
from registry_drivers.filesystem import FilesystemStorage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


def test_mount_points_and_the_floor_stay(root: Path, storage: FilesystemStorage) -> None:
    (root / "r/a/b").mkdir(parents=True)
    assert storage.remove_folders(["r", "rx"], floor="r/") == 0
    assert storage.remove_folders(["r/a"], floor="r/") == 0
    assert storage.remove_folders(["r/a/b"], floor="r/a/") == 1
    assert (root / "r/a").is_dir()
    assert storage.remove_folders(["r/a"], floor="") == 2
    assert root.is_dir()


def test_a_mount_point_stops_the_way_up_quietly(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "r/a/b").mkdir(parents=True)
    rmdir = os.rmdir

    def busy(path: str) -> None:
        if path.endswith("r/a"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", busy)
    assert storage.remove_folders(["r/a/b"], floor="") == 1


def test_a_move_to_another_disk_keeps_age_and_mode(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(root, "a/b", b"content")
    os.utime(file, (1000, 1000.5))
    file.chmod(0o640)
    across_disks(monkeypatch)
    storage.move("a/b", "c/d")
    assert listed(storage) == ["c/d"]
    assert storage.stat("c/d").modified == 1000.5
    assert (root / "c/d").stat().st_mode & 0o777 == 0o640


def test_a_move_to_another_disk_removes_what_one_that_was_killed_has_left(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f".registry-gc-{digit * 32}.tmp" for digit in "0a1"]
    kept = ["other.tmp", ".registry-gc-1.tmp", names[1], names[2]]
    for name in ("a", *(f"b/{name}" for name in (names[0], *kept[:2]))):
        make(root, name)
    (root / "b" / names[1]).mkdir()
    (root / "b" / names[2]).symlink_to(root / "nowhere")
    across_disks(monkeypatch)
    storage.move("a", "b/c")
    # Whoever is just at it, in spite of the lock, keeps it.
    assert (root / "b" / names[0]).exists()
    monkeypatch.setattr(filesystem_write, "_BEGAN", time.time() + 60)
    storage.move("b/c", "b2/c")
    storage.move("b2/c", "b/c")
    assert {path.name for path in (root / "b").iterdir()} == {"c", *kept}


def test_a_move_to_another_disk_that_is_full_keeps_the_source(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, "a/b", b"content")
    make(root, "c/d", b"old")
    across_disks(monkeypatch)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copystat", full)
    with pytest.raises(StorageError, match="No space"):
        storage.move("a/b", "c/d")
    monkeypatch.undo()
    assert listed(storage) == ["a/b", "c/d"]
    assert storage.read("c/d") == b"old"


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_write_that_fails_leaves_no_trace(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    make(root, "a/old", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    without_hard_links(monkeypatch)
    for path in ("a/new",) if if_absent else ("a/new", "a/old"):
        with pytest.raises(StorageError, match="No space"):
            storage.write(path, b"data", if_absent=if_absent)
    assert listed(storage) == ["a/old"]
    assert storage.read("a/old") == b"old"


@pytest.mark.parametrize("if_absent", [False, True])
def test_a_file_system_that_cannot_sync_a_file_takes_writes_all_the_same(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, if_absent: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    storage.write("a/lock", b"data", if_absent=if_absent)
    assert (root / "a/lock").read_bytes() == b"data"
    # The copy of a blob, whose original goes then, has to be on disk.
    make(root, "a/b", b"content")
    across_disks(monkeypatch)
    with pytest.raises(StorageError, match="Invalid argument"):
        storage.move("a/b", "c/d")
    assert listed(storage) == ["a/b", "a/lock"]


def test_a_write_that_fails_half_way_without_hard_links_leaves_no_trace(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "a").mkdir()
    without_hard_links(monkeypatch)
    calls = iter([None, OSError(errno.EIO, "broken")])

    def second_fails(_: int) -> None:
        if (error := next(calls)) is not None:
            raise error

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(StorageError, match="broken"):
        storage.write("a/lock", b"data", if_absent=True)
    assert listed(storage) == []


def test_a_link_whose_answer_was_lost_counts_as_made(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    storage.write("lock", b"data", if_absent=True)
    assert listed(storage) == ["lock"]


def test_a_write_below_a_file_is_an_error_and_no_missing_file(
    root: Path, storage: FilesystemStorage
) -> None:
    make(root, "a")
    make(root, "b")
    (root / "folder").mkdir()
    calls: list[Callable[[], None]] = [
        lambda: storage.write("a/b", b""),
        lambda: storage.write("a/b/c", b""),
        lambda: storage.write("folder", b""),
        lambda: storage.move("b", "a/c"),
        lambda: storage.move("b", "folder"),
    ]
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        assert not isinstance(caught.value, NotFound)
    assert listed(storage) == ["a", "b"]


def test_a_folder_is_never_moved(root: Path, storage: FilesystemStorage) -> None:
    make(root, "a/b")
    with pytest.raises(NotFound, match="folder"):
        storage.move("a", "c")
    assert listed(storage) == ["a/b"]


def test_what_root_makes_belongs_to_the_folders_owner(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "reg").mkdir()
    owner = NOBODY if os.geteuid() == 0 else os.geteuid()
    os.chown(root / "reg", owner, -1)
    storage.write("reg/a/b/file", b"")
    for path in ("reg/a", "reg/a/b", "reg/a/b/file"):
        assert (root / path).stat().st_uid == owner


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on sshfs and NFS: that a folder was there is remembered when it is gone."""
    monkeypatch.setattr(os.path, "isdir", lambda path: not path.endswith(".tmp"))


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("path", ["ours/lock", "ours/aside/run/note"])
def test_a_folder_that_is_only_remembered_is_made_anew_to_write_in_it(
    root: Path, storage: FilesystemStorage, path: str
) -> None:
    storage.write(path, b"data", if_absent=True)
    assert storage.read(path) == b"data"
    assert [*(root / path).parent.iterdir()] == [root / path]


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("disks", [1, 2])
def test_a_folder_that_is_only_remembered_is_made_anew_to_move_into_it(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, disks: int
) -> None:
    make(root, "a/b", b"content")
    if disks == 2:
        across_disks(monkeypatch)
    storage.move("a/b", "c/d/e")
    assert listed(storage) == ["c/d/e"]
    with pytest.raises(NotFound):
        storage.move("a/b", "f/g")
    assert sorted(os.listdir(root)) == ["a", "c"]


@pytest.mark.usefixtures("remembered")
def test_a_folder_is_not_made_anew_where_its_disk_has_gone(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = root / "docker/registry"
    mounted.mkdir(parents=True)
    storage.children("")
    create = os.open

    def unmount(path: str, *how: int) -> int:
        if path.endswith(".tmp") and mounted.is_dir():
            mounted.rmdir()
        return create(path, *how)

    monkeypatch.setattr(os, "open", unmount)
    with pytest.raises(StorageError, match="replaced or unmounted while we used it"):
        storage.write("docker/registry/registry-gc/lock", b"")
    assert not mounted.exists()


def test_a_move_whose_answer_was_lost_is_not_taken_for_a_file_that_was_gone(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, "a/b", b"content")
    rename = os.rename

    def answer_lost(source: str, target: str) -> None:
        rename(source, target)
        if source.endswith("a/b"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "rename", answer_lost)
    monkeypatch.setattr(filesystem_patience, "PAUSES", (0.0,))
    storage.move("a/b", "c/d")
    assert listed(storage) == ["c/d"]


def test_an_older_target_is_not_taken_for_what_was_to_be_moved_when_that_is_gone(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(root, "a/b", b"new")
    make(root, "c/d", b"old")

    def taken(*_: str) -> None:
        source.unlink()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "rename", taken)
    monkeypatch.setattr(filesystem_patience, "PAUSES", (0.0,))
    with pytest.raises(Unavailable):
        storage.move("a/b", "c/d")
    assert (root / "c/d").read_bytes() == b"old"


@pytest.mark.parametrize("age", [0, 100])
def test_a_copy_on_another_disk_is_known_by_its_size_and_age(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, age: int
) -> None:
    source = make(root, "a/b", b"new")
    copy = make(root, "c/d", b"new")
    now = source.stat().st_mtime
    os.utime(copy, (now - age, now - age))
    ask = os.lstat

    def other_disk(path: str) -> os.stat_result:
        status = ask(path)
        if path != str(copy):
            return status
        return os.stat_result((*status[:2], status.st_dev + 1, *status[3:]))

    def lose_answer(*_: str) -> None:
        source.unlink()
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "lstat", other_disk)
    monkeypatch.setattr(os, "rename", lose_answer)
    monkeypatch.setattr(filesystem_patience, "PAUSES", (0.0,))
    with pytest.raises(Unavailable) if age else contextlib.nullcontext():
        storage.move("a/b", "c/d")
