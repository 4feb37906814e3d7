"""The registry in which something is marked."""

from __future__ import annotations

import pytest

from core_support import Store


@pytest.fixture
def store() -> Store:
    return Store()
