"""What the command is called on: something kept, something untagged, something nobody names."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.image("a", None, layers=[b"untagged"])
    disk.tree.layer("a", b"orphan")
    disk.age()
    return disk
