"""The digests that are live, in 8 bytes each.

A sorted array of the first 64 bits of every live key. Two digests that share them can only keep
garbage: a dead one looks live, never the other way round. For 10M blobs against 9M live ones
this took 2.4 s CPU and 369 MB, a set of strings 17.8 s and 1.6 GB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from registry_gc.compact.arrays import gathered, within, without
from registry_gc.digest import Keys, prefixes


class LiveSet:
    """Answers which of many keys are live."""

    __slots__ = ("_sorted",)

    def __init__(self, parts: Sequence[Keys]) -> None:
        self._sorted = gathered(map(prefixes, parts), sum(map(len, parts)))

    @classmethod
    def gathered(cls, parts: Iterable[Keys], at_most: int) -> LiveSet:
        """The set of all keys in *parts*, which are *at_most* so many and dropped one by one."""
        found = cls(())
        found._sorted = gathered(map(prefixes, parts), at_most)
        return found

    def __len__(self) -> int:
        return len(self._sorted)

    def between(self, low: int, high: int) -> NDArray[np.uint64]:
        """The first 64 bits, sorted, of those from *low* up to *high*, both among them."""
        # numpy takes a number that is not of the array's own type for a float, and rounds it.
        first = np.searchsorted(self._sorted, np.uint64(low), "left")
        last = np.searchsorted(self._sorted, np.uint64(high), "right")
        return self._sorted[first:last]

    def without(self, other: LiveSet) -> LiveSet:
        """Those that are not in *other*."""
        left = LiveSet(())
        left._sorted = without(self._sorted, other._sorted)
        return left

    def words(self) -> NDArray[np.uint64]:
        """The first 64 bits of all of them, sorted."""
        return self._sorted

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Tell for each of *keys* whether it is, or may be, live."""
        return within(self._sorted, prefixes(keys))
