"""How much is held in memory at once, so small that a small registry needs many such windows.

One place for all names, since tests that shrink windows which nobody uses any more prove nothing:
a name that is gone fails every test that asks for any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Bytes or rows, by the name of the module and of the number in it.
WINDOWS = {
    "compact.spool.IN_MEMORY": 1 << 12,
    "compact.spool._WINDOW": 1 << 14,
    "compact.arrays._CHUNK": 1 << 10,
    "compact.arrays._ROWS_AT_ONCE": 1 << 8,
    "cache._AT_ONCE": 64,
    "listing.merge.AT_ONCE": 1 << 9,
    "compact.key_index._CHUNK": 1 << 10,
    "references._EDGES_AT_ONCE": 1 << 9,
    "references._IDS_AT_ONCE": 1 << 8,
    "marking.live_keys._IDS_AT_ONCE": 1 << 8,
    "listing.link_store.AT_ONCE": 1 << 9,
    "runs.links_seen.AT_ONCE": 1 << 9,
    "marking.link_ages.FEW": 0,
    "marking.link_ages._AT_ONCE": 1 << 8,
    "marking.dead_layers._WORDS_AT_ONCE": 1 << 10,
    "marking.dead_layers._PART": 1 << 8,
    "marking.dead_layers._PAIRS_AT_ONCE": 1 << 8,
    "marking.dead_layers._BYTES_IN_MEMORY": 1 << 12,
    "run_file._CHUNK": 100,
    "listing.ranges.PAGES": 1,
}
"""For a registry of some ten thousand blobs."""

TINY = {
    **dict.fromkeys(WINDOWS, 2),
    "compact.spool.IN_MEMORY": 64,
    "compact.spool._WINDOW": 64,
    "compact.arrays._CHUNK": 3,
    "marking.link_ages.FEW": 0,
    "listing.merge.AT_ONCE": 2,
    "listing.reading._TAGS_AT_ONCE": 2,
    "marking.dead_layers._PAIRS_AT_ONCE": 2,
    "marking.dead_layers._BYTES_IN_MEMORY": 64,
    "compact.key_index._CHUNK": 3,
    "runs.links_seen.AT_ONCE": 2,
    "marking.live_keys._IDS_AT_ONCE": 2,
    "runs.plan_file._ROWS_AT_ONCE": 2,
    "listing.ranges.PAGES": 1,
    "references._IDS_AT_ONCE": 2,
    "run_file._ROWS_AT_ONCE": 3,
}
"""For one of a few images."""


@contextmanager
def windows(sizes: dict[str, int]) -> Iterator[None]:
    """Have windows of these *sizes* for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(f"registry_gc.{name}", size)
        yield
