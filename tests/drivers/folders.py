"""What the tests of the file system driver share: making trees, and making the system fail."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from drivers.conformance import paths_of
from registry_drivers.base import Deletion
from registry_drivers.filesystem import FilesystemStorage

HEX = "ab" + "0" * 62
OTHER_HEX = "ab" + "1" * 62
BLOBS = "docker/registry/v2/blobs/sha256/ab/"
TAGS = "docker/registry/v2/repositories/r/_manifests/tags/"
NOBODY = 65534


def make(root: Path, path: str, data: bytes = b"x") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def listed(storage: FilesystemStorage, prefix: str = "") -> list[str]:
    return paths_of(storage.list(prefix))


def hollow(storage: FilesystemStorage, prefix: str = "") -> list[str]:
    return [folder for page in storage.list(prefix) for folder in page.hollow]


def result(storage: FilesystemStorage, path: str) -> Deletion:
    (outcome,) = storage.delete([path])
    return outcome.result


def without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


def across_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def other_disk(source: str, target: str) -> None:
        if os.path.dirname(source) != os.path.dirname(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", other_disk)
