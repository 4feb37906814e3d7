"""A Redis that remembers nothing yet, and a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from running import Disk
from servers.redis import RedisServer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis").running() as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An image that lives in ``a``, and in ``b`` a link to its layer and a dead blob."""
    disk = Disk(tmp_path / "disk")
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("b", b"kept")
    disk.tree.layer("b", b"orphan")
    return disk
