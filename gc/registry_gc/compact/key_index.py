"""Sorting 32-byte keys, and finding them again: by their first 64 bits, then exactly.

numpy compares keys of dtype ``V32`` one by one; their first eight bytes as numbers it sorts and
searches ten times as fast, and nearly always they decide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registry_gc.digest import Keys, empty_keys, prefixes

_CHUNK = 1 << 16


class KeyIndex:
    """Finds keys among sorted *keys*, each there once."""

    __slots__ = ("_words", "keys")

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._words = prefixes(keys)

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, wanted: Keys) -> NDArray[np.int64]:
        """Where each of *wanted* is; -1 for those that are not there."""
        found = np.full(len(wanted), -1, np.int64)
        if not len(self.keys):
            return found
        for start in range(0, len(wanted), _CHUNK):
            self._find(wanted[start : start + _CHUNK], found[start : start + _CHUNK])
        return found

    def _find(self, wanted: Keys, found: NDArray[np.int64]) -> None:
        words = prefixes(wanted)
        at = np.searchsorted(self._words, words)
        at[at == len(self.keys)] = 0
        near = np.flatnonzero(self._words[at] == words)
        same = self.keys[at[near]] == wanted[near]
        found[near[same]] = at[near[same]]
        # Others may follow that begin with the same 64 bits.
        for row in near[~same].tolist():
            place = int(at[row]) + 1
            while place < len(self.keys) and self._words[place] == words[row]:
                if self.keys[place] == wanted[row]:
                    found[row] = place
                place += 1

    def has(self, wanted: Keys) -> NDArray[np.bool_]:
        """Tell for each of *wanted* whether it is there."""
        there: NDArray[np.bool_] = self.positions(wanted) >= 0
        return there


def distinct_keys(keys: Keys) -> Keys:
    """The keys, sorted, each once."""
    if not len(keys):
        return empty_keys()
    words = prefixes(keys)
    order = np.argsort(words, kind="stable")
    # Memory that is not written to is not taken; copies of everything would be.
    found = np.empty(len(keys), keys.dtype)
    kept = 0
    for start in range(0, len(keys), _CHUNK):
        some = order[start : start + _CHUNK]
        ordered = keys[some]
        fresh = np.ones(len(some), np.bool_)
        fresh[1:] = ordered[1:] != ordered[:-1]
        if kept:
            fresh[0] = ordered[0] != found[kept - 1]
        tied = np.flatnonzero(fresh)[1:] if not kept else np.flatnonzero(fresh)
        before = order[start + tied - 1]
        if (words[some[tied]] == words[before]).any():
            # Different keys that begin alike: their order is still open.
            return _distinct_slowly(keys)
        count = int(np.count_nonzero(fresh))
        found[kept : kept + count] = ordered[fresh]
        kept += count
    found.resize(kept, refcheck=False)  # nobody else has seen it yet
    return found


def _distinct_slowly(keys: Keys) -> Keys:
    ordered = np.sort(keys)
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]
