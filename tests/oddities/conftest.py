"""The registry that an oddity is put into."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with one live image, so that no run meets an empty one."""
    disk = Disk(tmp_path)
    disk.tree.image("kept", "v1", layers=[b"kept"], config=b'{"kept": 1}')
    return disk
