"""The two ways to collect that most oddities are tried in, and a layer with its descriptor."""

from __future__ import annotations

import pytest

from model import HOUR
from registry_tree import OCI_LAYER, descriptor
from running import Disk

BOTH = pytest.mark.parametrize("mode", [(), ("-m",)], ids=["plain", "-m"])
Mode = tuple[str, ...]
DAY = 24 * HOUR


def layer(disk: Disk, repository: str, data: bytes) -> dict[str, object]:
    """Push a layer and describe it."""
    return descriptor(OCI_LAYER, disk.tree.layer(repository, data), len(data))
