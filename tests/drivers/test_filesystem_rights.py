"""What is brought back can be read by whoever reads what lies around it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

from drivers.folders import NOBODY, across_disks, listed, make
from registry_drivers.errors import AccessDenied
from registry_drivers.filesystem import FilesystemStorage

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def private() -> Iterator[None]:
    """The umask of a confined unit."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path, "ours/ab/cd/data").chmod(0o640)
    (tmp_path / "blobs").mkdir()
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


def refuse_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)


def mode(path: Path) -> int:
    return S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("around", [0o755, 0o775, 0o2775, 0o750, 0o700])
def test_folders_have_the_mode_of_the_one_that_they_are_made_in(
    root: Path, storage: FilesystemStorage, around: int
) -> None:
    (root / "blobs").chmod(around)
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert [mode(root / path) for path in ("blobs/ab", "blobs/ab/cd")] == [around] * 2
    assert mode(root / "blobs/ab/cd/data") == 0o640
    assert listed(storage) == ["blobs/ab/cd/data"]
    assert os.listdir(root / "blobs") == ["ab"]


@AS_ROOT
def test_folders_belong_to_whom_the_one_that_they_are_made_in_belongs_to(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "blobs").chmod(0o2750)
    os.chown(root / "blobs", NOBODY, 1234)
    (root / "blobs").chmod(0o2750)
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    for path in ("blobs/ab", "blobs/ab/cd"):
        status = (root / path).stat()
        assert (status.st_uid, status.st_gid, mode(root / path)) == (NOBODY, 1234, 0o2750)


def test_what_is_ours_is_as_private_as_the_umask(root: Path, storage: FilesystemStorage) -> None:
    root.chmod(0o755)
    storage.write("aside/run/note", b"")
    storage.move("ours/ab/cd/data", "aside/run/blobs/ab/data")
    for path in ("aside", "aside/run", "aside/run/blobs", "aside/run/blobs/ab"):
        assert mode(root / path) == 0o700
    assert mode(root / "aside/run/note") == 0o600


@AS_ROOT
@pytest.mark.parametrize("around", [0o750, 0o2770, 0o700])
def test_what_the_registry_could_not_enter_stays_where_it_is(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, around: int
) -> None:
    os.chown(root / "blobs", NOBODY, 1234)
    (root / "blobs").chmod(around)
    refuse_to_give(monkeypatch)
    with pytest.raises(AccessDenied, match=f"the user {NOBODY}, the group 1234 .*CAP_CHOWN"):
        storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert listed(storage) == ["ours/ab/cd/data"]
    assert os.listdir(root / "blobs") == []


@AS_ROOT
@pytest.mark.parametrize("around", [0o755, 0o775])
def test_what_everybody_may_enter_comes_back_with_whatever_owner(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, around: int
) -> None:
    # A network file system that takes root for nobody in particular.
    os.chown(root / "blobs", NOBODY, 1234)
    (root / "blobs").chmod(around)
    refuse_to_give(monkeypatch)
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert mode(root / "blobs/ab/cd") == around


@AS_ROOT
def test_a_member_of_the_owners_group_may_bring_back(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(root / "blobs", NOBODY, 1234)
    (root / "blobs").chmod(0o2770)
    refuse_to_give(monkeypatch)
    monkeypatch.setattr(os, "getgrouplist", lambda *_: [1234])
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert ((root / "blobs/ab").stat().st_gid, mode(root / "blobs/ab")) == (1234, 0o2770)


@AS_ROOT
def test_a_copy_from_another_disk_that_its_owner_could_not_read_is_not_kept(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = root / "ours/ab/cd/data"
    os.chown(file, NOBODY, 1234)
    file.chmod(0o600)
    across_disks(monkeypatch)
    with monkeypatch.context() as patch:
        refuse_to_give(patch)
        with pytest.raises(AccessDenied, match="CAP_CHOWN"):
            storage.move("ours/ab/cd/data", "blobs/data")
    assert listed(storage) == ["ours/ab/cd/data"]
    storage.move("ours/ab/cd/data", "blobs/data")
    status = (root / "blobs/data").stat()
    assert (status.st_uid, status.st_gid, S_IMODE(status.st_mode)) == (NOBODY, 1234, 0o600)


def test_a_folder_that_somebody_else_makes_meanwhile_is_taken(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, "ours/other")
    rename = os.rename

    def beaten(source: str, target: str) -> None:
        if target.endswith("/ab"):
            monkeypatch.setattr(os, "rename", rename)
            make(root, "blobs/ab/theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", beaten)
    storage.move("ours/other", "blobs/ab/data")
    assert sorted(os.listdir(root / "blobs/ab")) == ["data", "theirs"]
    assert os.listdir(root / "blobs") == ["ab"]
