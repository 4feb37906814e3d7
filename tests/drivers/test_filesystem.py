"""The file system driver: the common suite on several kinds of disks, and its root."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from drivers.conformance import DriverConformance, entries_of
from drivers.folders import (
    BLOBS,
    HEX,
    across_disks,
    make,
    without_hard_links,
)
from registry_drivers.base import Storage
from registry_drivers.errors import (
    DriverConfigError,
    NoFile,
    NotFound,
    StorageError,
)
from registry_drivers.filesystem import FilesystemStorage, open_filesystem
from registry_drivers.filesystem_rows import Rows


class TestFilesystem(DriverConformance):
    many = 200

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return FilesystemStorage(str(tmp_path))


class TestFilesystemWithSmallPages(DriverConformance):
    many = 50

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        monkeypatch.setattr(Rows, "PAGE_ROWS", 3)
        return FilesystemStorage(str(tmp_path))


class TestFilesystemThroughALink(DriverConformance):
    """The registry's folder is a symbolic link, as when it was moved to a larger disk."""

    many = 50

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        (tmp_path / "disk").mkdir()
        (tmp_path / "registry").symlink_to("disk")
        return FilesystemStorage(str(tmp_path / "registry"))


class TestFilesystemWithoutHardLinks(DriverConformance):
    """FAT, SMB and some network file systems."""

    many = 20

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        without_hard_links(monkeypatch)
        return FilesystemStorage(str(tmp_path))


class TestFilesystemOverTwoDisks(DriverConformance):
    """Every rename between two folders has to copy, as between two disks."""

    many = 20

    @pytest.fixture
    def storage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
        across_disks(monkeypatch)
        return FilesystemStorage(str(tmp_path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def storage(root: Path) -> FilesystemStorage:
    return FilesystemStorage(str(root))


def test_a_root_that_does_not_exist_is_never_an_empty_registry(root: Path) -> None:
    storage = FilesystemStorage(str(root / "missing"))
    for call in (
        lambda: list(storage.list("")),
        lambda: list(storage.list("a/")),
        lambda: storage.children("a/"),
        lambda: storage.read("a"),
        lambda: storage.stat("a"),
        lambda: storage.write("a", b""),
        lambda: storage.move("a", "b"),
        lambda: list(storage.delete(["a"])),
    ):
        with pytest.raises(NotFound, match="rootdirectory") as caught:
            call()
        assert caught.value.path == str(root / "missing")
    assert not (root / "missing").exists()


def test_a_root_that_is_a_file_is_refused(root: Path) -> None:
    storage = FilesystemStorage(str(make(root, "file")))
    with pytest.raises(NotFound, match="not a directory"):
        list(storage.list(""))


def test_of_many_files_each_is_one_request(root: Path, storage: FilesystemStorage) -> None:
    for path in ("a/b", "a/c/d"):
        make(root, path)
    assert len(storage.stat_many(["a/b", "a/c/d", "a/c", "a/missing"])) == 4
    assert storage.requests.read == 4


def test_the_root_is_absolute_and_not_resolved(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "disk").mkdir()
    (root / "link").symlink_to("disk")
    monkeypatch.chdir(root)
    assert FilesystemStorage("link/").root == str(root / "link")


def test_a_folder_that_is_replaced_while_it_is_listed_fails_the_listing(root: Path) -> None:
    make(root, "a/b/1")
    make(root, "a/c/2")
    storage = FilesystemStorage(str(root))
    pages = storage.list("a/")
    next(pages)
    (root / "a").rename(root / "old")
    (root / "a").mkdir()
    with pytest.raises(StorageError, match="replaced while it was listed"):
        list(pages)


def test_pipes_and_sockets_are_listed_and_never_waited_for(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(root / "pipe")
    (root / BLOBS / HEX).mkdir(parents=True)
    os.mkfifo(root / BLOBS / HEX / "data")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    rows = entries_of(storage.list(""))
    # What is called like a blob is not shown as one.
    assert {path: row.size for path, row in rows.items()} == {"pipe": 0, "socket": 0}
    assert not next(iter(storage.list(""))).hollow
    asks: list[Callable[[str], object]] = [
        storage.read,
        storage.stat,
        lambda path: storage.read_range(path, 0, 1),
    ]
    for path in ("pipe", "socket", f"{BLOBS}{HEX}/data"):
        for ask in asks:
            with pytest.raises(NoFile, match="neither a file nor a folder"):
                ask(path)
    assert storage.stat_many([f"{BLOBS}{HEX}/data"]) == [None]


def test_a_file_that_grows_while_it_is_read_stays_within_the_limit(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large enough that its size is asked for.
    file = make(root, "a", 20_000 * b"x")
    fstat = os.fstat

    def grow(handle: int) -> os.stat_result:
        status = fstat(handle)
        with file.open("ab") as more:
            more.write(b"67890")
        return status

    monkeypatch.setattr(os, "fstat", grow)
    with pytest.raises(StorageError, match="beyond"):
        storage.read("a", limit=20_002)
    assert storage.read("a", limit=100_000) == 20_000 * b"x" + 2 * b"67890"


def test_a_small_file_that_grows_between_two_reads_is_read_to_its_end(
    root: Path, storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(root, "a", b"12345")
    read = os.read
    reads: list[int] = []

    def grow(handle: int, count: int) -> bytes:
        data = read(handle, count)
        reads.append(count)
        if len(reads) == 1:
            with file.open("ab") as more:
                more.write(b"67890")
        return data

    monkeypatch.setattr(os, "read", grow)
    assert storage.read("a", limit=100) == b"1234567890"


def test_the_default_root_is_the_registrys_own() -> None:
    assert open_filesystem({}).root == "/var/lib/registry"


@pytest.mark.parametrize("maxthreads", [100, "25", "100"])
def test_parameters_are_taken_as_the_config_has_them(root: Path, maxthreads: object) -> None:
    storage = open_filesystem({"rootdirectory": str(root), "maxthreads": maxthreads})
    assert storage.root == str(root)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rootdirectory", ""),
        ("rootdirectory", None),
        ("rootdirectory", ["a"]),
        ("maxthreads", "many"),
        ("maxthreads", 2.5),
        ("maxthreads", {}),
    ],
)
def test_a_wrong_parameter_is_named(name: str, value: object) -> None:
    with pytest.raises(DriverConfigError, match=rf"storage\.filesystem\.{name}"):
        open_filesystem({name: value})


@pytest.mark.parametrize("content", [b"x" * 100, b"x" * 100_000])
@pytest.mark.parametrize("failing", [{1}, {2}, {1, 2}, {2, 3}])
def test_a_read_that_fails_is_no_end(
    root: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, failing: set[int]
) -> None:
    path = f"{BLOBS}{HEX}/data"
    make(root, path, content)
    storage = FilesystemStorage(str(root))
    really, calls = os.read, iter(range(1, 1000))

    def read(handle: int, size: int) -> bytes:
        if next(calls) in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really(handle, size)

    monkeypatch.setattr(os, "read", read)
    with contextlib.suppress(StorageError):
        assert storage.read(path) == content


def test_a_file_that_ends_before_its_size_is_not_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{BLOBS}{HEX}/data"
    make(root, path, b"x" * 100_000)
    storage = FilesystemStorage(str(root))
    really = os.read
    monkeypatch.setattr(os, "read", lambda handle, size: really(handle, min(size, 50_000))[:50_000])
    assert len(storage.read(path)) == 100_000  # short reads are none
    answers = iter([None, b"x" * 100, b""])

    def read(handle: int, size: int) -> bytes:
        answer = next(answers)
        if answer is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return answer

    monkeypatch.setattr(os, "read", read)
    with pytest.raises(StorageError, match="gave 100 of its 100000 bytes"):
        storage.read(path)
