"""What a plan is made for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from applying.support import CONFIG, DAY
from running import Disk
from windows import windows


@pytest.fixture
def by_name() -> Iterator[None]:
    """Layer links are told by name, as in large registries: less is known of them then."""
    with windows({"marking.link_ages.FEW": 0}):
        yield


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry in which an image was untagged by a push, and a layer was never used."""
    disk = Disk(tmp_path)
    disk.tree.image("app", "latest", layers=[b"base", b"old"], config=CONFIG)
    disk.tree.image("app", "latest", layers=[b"base", b"new"])
    disk.tree.layer("app", b"never used")
    disk.tree.image("other", "v1", layers=[b"base"])
    disk.age(30 * DAY)
    return disk
