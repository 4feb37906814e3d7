"""What is brought back can be read by whoever reads what lies around it."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

from drivers.folders import NOBODY, across_disks, listed, make
from registry_drivers.errors import AccessDenied, StorageError
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


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(owner: int, user: int, group: int, mask: int, others: int) -> bytes:
    """A list as the kernel takes it, with a rule for user 5000."""
    no_one = 0xFFFFFFFF
    rules = (1, owner, no_one), (2, user, 5000), (4, group, no_one), (16, mask, no_one)
    last = (32, others, no_one)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *rule) for rule in (*rules, last))


class Lists:
    """Lists of a file system that has them, in the place of the one that the tests run on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._of: dict[tuple[int, str], bytes] = {}
        for name in ("getxattr", "setxattr", "removexattr"):
            monkeypatch.setattr(os, name, getattr(self, name), raising=False)

    def getxattr(self, path: str, name: str) -> bytes:
        try:
            return self._of[os.stat(path).st_ino, name]
        except KeyError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self._of[os.stat(path).st_ino, name] = value
        if name == ACCESS:
            rights = dict(struct.unpack_from("<HH", value, at) for at in range(4, len(value), 8))
            os.chmod(path, rights[1] << 6 | rights[16] << 3 | rights[32])

    def removexattr(self, path: str, name: str) -> None:
        del self._of[os.stat(path).st_ino, name]


@pytest.fixture(params=["of the disk", "made up"])
def lists(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access control lists can be set: real ones where this disk has them."""
    if request.param == "of the disk":
        try:
            os.setxattr(root / "blobs", DEFAULT, acl(7, 5, 5, 5, 0))
            os.removexattr(root / "blobs", DEFAULT)
            return
        except (AttributeError, OSError):
            pass  # those that are made up stand for them
    Lists(monkeypatch)


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


@pytest.mark.usefixtures("lists")
def test_who_is_let_in_by_a_list_is_let_into_what_comes_back(
    root: Path, storage: FilesystemStorage
) -> None:
    os.setxattr(root / "blobs", ACCESS, let_in := acl(7, 5, 0, 5, 0))
    os.setxattr(root / "blobs", DEFAULT, later := acl(7, 7, 0, 7, 0))
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    for path in (root / "blobs/ab", root / "blobs/ab/cd"):
        assert os.getxattr(path, ACCESS) == let_in
        assert os.getxattr(path, DEFAULT) == later
        assert mode(path) == 0o750


@pytest.mark.usefixtures("lists")
def test_where_folders_only_hand_a_list_on_the_mode_says_who_may_enter(
    root: Path, storage: FilesystemStorage
) -> None:
    (root / "blobs").chmod(0o755)
    os.setxattr(root / "blobs", DEFAULT, later := acl(7, 7, 0, 7, 0))
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert os.getxattr(root / "blobs/ab/cd", DEFAULT) == later
    assert mode(root / "blobs/ab/cd") == 0o755
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.getxattr(root / "blobs/ab/cd", ACCESS)


@pytest.mark.usefixtures("lists")
def test_what_a_list_lets_in_and_cannot_be_given_stays_where_it_is(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    os.setxattr(root / "blobs", ACCESS, acl(7, 5, 0, 5, 0))
    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(StorageError, match=r"cannot be made readable .* and an ACL"):
        storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert listed(storage) == ["ours/ab/cd/data"]
    assert os.listdir(root / "blobs") == []


@pytest.mark.usefixtures("lists")
def test_a_list_that_cannot_be_read_is_not_taken_for_none(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "getxattr", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert listed(storage) == ["ours/ab/cd/data"]


@pytest.mark.usefixtures("lists")
def test_a_copy_from_another_disk_has_the_list_of_what_it_is_of(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.setxattr(root / "ours/ab/cd/data", ACCESS, let_in := acl(6, 4, 0, 4, 0))
    across_disks(monkeypatch)
    storage.move("ours/ab/cd/data", "blobs/data")
    assert os.getxattr(root / "blobs/data", ACCESS) == let_in


@AS_ROOT
@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize(("by_name", "comes_back"), [(5, True), (0, False)])
def test_an_owner_who_is_not_given_what_is_his_needs_a_rule_of_the_list(
    root: Path,
    storage: FilesystemStorage,
    monkeypatch: pytest.MonkeyPatch,
    by_name: int,
    comes_back: bool,
) -> None:
    # The bits of the group would let him in; they are the mask, and the group has nothing.
    os.setxattr(root / "blobs", ACCESS, acl(7, by_name, 0, 5, 0))
    os.chown(root / "blobs", 5000, 1234)
    refuse_to_give(monkeypatch)
    if comes_back:
        storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
        return
    with pytest.raises(AccessDenied, match="cannot be made readable"):
        storage.move("ours/ab/cd/data", "blobs/ab/cd/data")


def test_where_there_are_no_lists_at_all_the_mode_is_enough(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "getxattr", raising=False)
    (root / "blobs").chmod(0o755)
    storage.move("ours/ab/cd/data", "blobs/ab/cd/data")
    assert mode(root / "blobs/ab/cd") == 0o755
