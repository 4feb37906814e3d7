"""Storages to lock, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from locking.holders import Clock
from registry_drivers.base import Storage
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.memory import MemoryStorage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> MemoryStorage:
    """An object store."""
    return MemoryStorage(now=clock)


@pytest.fixture
def disk(tmp_path: Path) -> FilesystemStorage:
    """A registry on disk."""
    (tmp_path / "docker/registry/v2").mkdir(parents=True)
    return FilesystemStorage(str(tmp_path))


@pytest.fixture(params=["memory", "disk"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Each of the two."""
    made: Storage = request.getfixturevalue(request.param)
    return made
