"""A system that fails in passing and then calls missing what is there: nothing is lost by it.

As a file server that restarts: its first answer is ESTALE, and until all is exported again, ENOENT.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers.folders import BLOBS, HEX, OTHER_HEX, TAGS, make
from registry_drivers import filesystem_patience
from registry_drivers.errors import NotFound, StorageError
from registry_drivers.filesystem import FilesystemStorage

REPOSITORIES = TAGS.partition("/_manifests/")[0].rpartition("/")[0] + "/"
REPOSITORY = TAGS.partition("_manifests/")[0]


@pytest.fixture
def storage(tmp_path: Path) -> FilesystemStorage:
    for name in ("v1", "v2"):
        make(tmp_path, f"{TAGS}{name}/current/link", b"sha256:" + HEX.encode())
        make(tmp_path, f"{TAGS}{name}/index/sha256/{HEX}/link")
    make(tmp_path, f"{TAGS}v2/index/sha512/{HEX}{HEX}/link")
    for digest in (HEX, OTHER_HEX):
        make(tmp_path, f"{REPOSITORY}_manifests/revisions/sha256/{digest}/link")
        make(tmp_path, f"{REPOSITORY}_layers/sha256/{digest}/link")
        make(tmp_path, f"{BLOBS}{digest}/data")
    # What has no file of its own is looked at by its name.
    (tmp_path / REPOSITORY / "_layers/sha256" / ("0" * 64)).mkdir()
    storage = FilesystemStorage(str(tmp_path))
    storage.children("")
    return storage


class Entry:
    """As of a file system that names what is in a folder, and not of what kind that is."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name, self.path = entry.name, entry.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return stat.S_ISDIR(self._mode(os.stat if follow_symlinks else os.lstat))

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self._mode(os.lstat))

    def _mode(self, ask: Callable[[str], os.stat_result]) -> int:
        try:
            return ask(self.path).st_mode
        except FileNotFoundError:
            return 0


class Entries:
    def __init__(self, folder: Any, real: Any) -> None:
        path = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) else folder
        self._real = real(path)

    def __enter__(self) -> Iterator[Entry]:
        return map(Entry, self._real)

    def __exit__(self, *_: object) -> None:
        self._real.close()


class Restart:
    """The system's calls on *below*, of which one fails in passing and all that follow as missing.

    :param at: how many calls come through before.
    :param missing: how many files are said to be missing after it.
    :param first: what the one that fails in passing says.
    """

    def __init__(
        self, below: str, at: int, missing: int, kinds: bool, first: int = errno.ESTALE
    ) -> None:
        self.calls = 0
        self._first = first
        self._below, self._at, self._missing, self._kinds = below, at, missing, kinds

    def __call__(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "scandir", "stat", "lstat", "listdir"):
            patch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def ask(what: Any, *more: Any, **how: Any) -> Any:
            if isinstance(what, int) or "dir_fd" in how or self._below in what:
                self.calls += 1
                late = self.calls - 1 - self._at
                if late == 0:
                    raise OSError(self._first, os.strerror(self._first), what)
                if 0 < late <= self._missing:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), what)
            if name == "scandir" and not self._kinds:
                return Entries(what, real)
            return real(what, *more, **how)

        return ask


ASKED: dict[str, Callable[[FilesystemStorage], object]] = {
    "list": lambda storage: [
        (path, size)
        for page in storage.list(REPOSITORIES)
        for path, size in zip(page.paths, page.sizes, strict=True)
    ],
    "unasked": lambda storage: [
        path for page in storage.list_unasked(REPOSITORIES) for path in page.paths
    ],
    "blobs": lambda storage: [path for page in storage.list(BLOBS) for path in page.paths],
    "among": lambda storage: [
        path for page in storage.list_among([(BLOBS, [HEX, OTHER_HEX])]) for path in page.paths
    ],
    "children": lambda storage: storage.children(TAGS),
    "many": lambda storage: storage.stat_many([f"{BLOBS}{HEX}/data", f"{BLOBS}{OTHER_HEX}/data"]),
    "read": lambda storage: storage.read(f"{TAGS}v1/current/link"),
}


def answer(ask: Callable[[FilesystemStorage], object], storage: FilesystemStorage) -> object:
    """What *storage* says; None where it says that it cannot tell."""
    try:
        return ask(storage)
    except NotFound:
        raise
    except StorageError:
        return None


@pytest.mark.parametrize("first", [errno.ESTALE, errno.EIO], ids=["ESTALE", "EIO"])
@pytest.mark.parametrize("kinds", [True, False], ids=["kinds", "no kinds"])
@pytest.mark.parametrize("missing", [0, 1, 2, 3, 10**6])
@pytest.mark.parametrize("name", ASKED)
def test_at_whatever_call_it_begins_nothing_is_lost(
    storage: FilesystemStorage,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    missing: int,
    kinds: bool,
    first: int,
) -> None:
    monkeypatch.setattr(filesystem_patience, "PAUSES", (0.0, 0.0, 0.0))
    below = BLOBS if name in ("blobs", "among", "many") else f"{REPOSITORY}_"
    right = [ASKED[name](storage), None]
    if name == "unasked":
        # It need not look; where it has to, it says what is there.
        right.append([path for page in storage.list(REPOSITORIES) for path in page.paths])
    at, ended = 0, False
    while not ended:
        restart = Restart(below, at, missing, kinds, first)
        with monkeypatch.context() as patch:
            restart(patch)
            assert answer(ASKED[name], storage) in right, at
        ended = restart.calls <= at
        at += 1
    assert at > 1


def test_a_folder_of_the_registry_that_failed_before_it_was_seen_is_not_taken_for_missing(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart = Restart(REPOSITORIES[:-1], 0, 10**6, kinds=True)
    with monkeypatch.context() as patch:
        restart(patch)
        # Opening a storage looks at it, and says nothing yet.
        other = FilesystemStorage(storage.root)
        assert restart.calls
        assert answer(ASKED["list"], other) is None
    assert answer(ASKED["list"], other) == answer(ASKED["list"], storage)


@pytest.mark.parametrize("link", [False, True], ids=["lstat", "stat"])
def test_what_fails_in_passing_while_it_is_made_sure_that_it_is_missing_is_not_missing(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    path = f"{TAGS}v1/current/link"
    ask = os.lstat

    def fail(asked: Any, *more: Any, **how: Any) -> os.stat_result:
        if asked == f"{storage.root}/{TAGS}v1/current":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), asked)
        return ask(asked, *more, **how)

    (Path(storage.root) / path).unlink()
    monkeypatch.setattr(filesystem_patience, "PAUSES", ())
    monkeypatch.setattr(os, "stat" if link else "lstat", fail)
    assert answer(lambda storage: storage.read(path), storage) is None
