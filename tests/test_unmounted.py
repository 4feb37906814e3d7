"""A run whose disk goes away, at every moment at which it asks that disk for something."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model import V2
from registry_tree import sha256
from running import Disk, collect, files_below, scratch
from windows import TINY, windows

_ASKS = {"os.scandir", "os.listdir", "open"}
_heard: list[Callable[[str], None]] = []


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _heard and event in _ASKS and isinstance(arguments[0], str):
        _heard[0](arguments[0])


# There is no taking it back; it does nothing while nobody listens.
sys.addaudithook(_hear)


@contextmanager
def each_time(below: Path, act: Callable[[int], None]) -> Iterator[None]:
    """Call *act* before each request for something *below* a folder, with its number from 1."""
    count = 0

    def hear(path: str) -> None:
        nonlocal count
        if path.startswith(str(below)):
            count += 1
            act(count)

    _heard.append(hear)
    try:
        yield
    finally:
        _heard.clear()


def made(folder: Path) -> Disk:
    disk = Disk(folder)
    for name in ("app", "group/app", "z"):
        disk.tree.image(name, "v1", layers=[b"base", name.encode()])
        disk.tree.image(name, layers=[b"base", b"untagged " + name.encode()])
    disk.tree.blob(b"orphan")
    disk.age()
    return disk


@pytest.mark.parametrize("size", [{}, TINY], ids=["as it is", "tiny windows"])
@pytest.mark.parametrize("top", ["repositories", "blobs"])
def test_nothing_that_is_needed_goes(top: str, size: dict[str, int]) -> None:
    with scratch() as folder, windows(size):
        before = made(folder / "whole")
        files = files_below(before.root)
        requests = 0

        def count(number: int) -> None:
            nonlocal requests
            requests = number

        with each_time(before.root / V2 / top, count):
            collect(before.root, "-m", "--workers", "1")
        whole = files_below(before.root)
        assert len(whole) < len(files)
        assert requests > 10
        codes = [unmounted(folder / "again", top, at + 1, 1, whole) for at in range(requests)]
        # The last are those of the sweep, which goes on.
        assert all(codes[: requests // 2])


@pytest.mark.parametrize("top", ["repositories", "blobs"])
def test_nor_when_worker_processes_ask(top: str) -> None:
    with scratch() as folder:
        before = made(folder / "whole")
        collect(before.root, "-m")
        whole = files_below(before.root)
        for moment in range(1, 12):
            unmounted(folder / "again", top, moment, 2, whole)


@pytest.mark.parametrize("options", [("-m",), ("-m", "--quarantine", "1h")], ids=" ".join)
@pytest.mark.parametrize("how", ["unmounted", "its process has ended"])
def test_a_disk_that_goes_in_the_last_batch_is_no_failure_of_single_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], how: str
) -> None:
    disk = made(tmp_path)
    place, gone = disk.root, disk.root.with_name("gone")
    rename = os.rename
    blobs = 0

    def vanish(act: Callable[..., None]) -> Callable[..., None]:
        def acting(path: str, *more: str) -> None:
            nonlocal blobs
            blobs += f"{V2}/blobs/" in path and path.endswith("/data")
            if blobs > 1:
                if how != "unmounted":
                    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
                if not gone.exists():
                    rename(place, gone)
                    place.mkdir()
            act(path, *more)

        return acting

    monkeypatch.setattr(os, "unlink", vanish(os.unlink))
    monkeypatch.setattr(os, "rename", vanish(os.rename))
    result = collect(disk.root, *options)
    assert result.exit_code == 1
    assert "unmounted while we used it" in result.json["error"]
    assert result.json["failed"] == []


def unmounted(folder: Path, top: str, moment: int, workers: int, whole: set[str]) -> int:
    """The exit code of a run in which *top* is an empty folder from that *moment* on."""
    disk = made(folder)
    place, gone = disk.root / V2 / top, folder / "gone"

    def unmount(number: int) -> None:
        if number == moment and not gone.exists():
            place.rename(gone)
            place.mkdir()

    with each_time(place, unmount):
        result = collect(disk.root, "-m", "--workers", str(workers))
    if gone.exists():
        assert os.listdir(place) == [], (moment, "the mount point was written to")
        place.rmdir()
        gone.rename(place)
    assert whole <= files_below(disk.root), (moment, sorted(whole - files_below(disk.root)))
    assert disk.has_blob(sha256(b"base"))
    shutil.rmtree(folder)
    return result.exit_code
