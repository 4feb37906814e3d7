"""Which referrers live by what has come to life.

A referrer lives where its subject is live in its repository; or is not linked there, but live
anywhere, be it as a layer. What has been followed once is not asked about again: whoever may push
may push a chain of ten thousand, each the subject of the next, and a look at all of them for each
took forty seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from registry_gc.compact.arrays import distinct, within, without
from registry_gc.compact.key_index import KeyIndex, distinct_keys
from registry_gc.digest import Keys, empty_keys
from registry_gc.marking.pairs import Pairs, manifests_of, pairs_of, repositories_of
from registry_gc.references import Manifests


class Referrers:
    """The linked manifests that have a subject.

    :param linked: every pair that is linked, sorted.
    :param also: the keys that other names of a row's subject stand for, by row of *pairs*.
    """

    def __init__(
        self, pairs: Pairs, linked: Pairs, manifests: Manifests, also: Mapping[int, Keys]
    ) -> None:
        self._manifests = manifests
        self._linked = linked
        subjects = [manifests.subjects_of(manifests_of(pairs)), *also.values()]
        again = [np.repeat(pairs[row : row + 1], len(keys)) for row, keys in also.items()]
        self._unknown = np.concatenate([pairs, *again])
        self._unknown_keys: Keys = np.concatenate(subjects) if len(pairs) else empty_keys()
        self._loaded = -1
        # By the ids of their subjects, once those are known.
        self._pairs = np.empty(0, np.int64)
        self._subjects = np.empty(0, np.int64)
        self._content: _OfContent | None = None
        self._number()

    def of(self, fresh: Pairs, live: Pairs) -> Pairs:
        """Those that live by *fresh*, which is a part of *live*; both are sorted."""
        self._number()
        if not len(self._pairs):
            return self._pairs
        rows = _rows_with(self._subjects, distinct(manifests_of(fresh)))
        pairs = self._pairs[rows]
        there = pairs_of(repositories_of(pairs), self._subjects[rows])
        found: Pairs = pairs[within(live, there) | ~within(self._linked, there)]
        return found

    def to_content(self, live: Pairs, keys_of: Callable[[Pairs], Iterable[Keys]]) -> Pairs:
        """Those not live yet whose subject is not linked there, and live as no manifest.

        As a layer of an artifact, for instance. All live keys are looked through, so it is done
        last, and only where such a referrer is left.

        :param keys_of: what some pairs keep alive.
        """
        if self._content is None:
            self._number()
            there = pairs_of(repositories_of(self._pairs), self._subjects)
            away = ~within(self._linked, there)
            keys = self._manifests.keys_of(self._subjects[away])
            self._content = _OfContent(
                np.concatenate([self._pairs[away], self._unknown]),
                np.concatenate([keys, self._unknown_keys]),
            )
        return self._content.of(live, keys_of)

    def _number(self) -> None:
        """Look for subjects that were not known when they were looked for last."""
        if len(self._manifests) == self._loaded:
            return
        self._loaded = len(self._manifests)
        ids = self._manifests.ids(self._unknown_keys)
        known = ids >= 0
        if not known.any():
            return
        subjects = np.concatenate([self._subjects, ids[known]])
        order = np.argsort(subjects, kind="stable")
        self._subjects = subjects[order]
        self._pairs = np.concatenate([self._pairs, self._unknown[known]])[order]
        self._unknown, self._unknown_keys = self._unknown[~known], self._unknown_keys[~known]


class _OfContent:
    """Referrers *pairs* to *keys* that their repositories do not link."""

    def __init__(self, pairs: Pairs, keys: Keys) -> None:
        self._index = KeyIndex(distinct_keys(keys))
        subjects = self._index.positions(keys)
        order = np.argsort(subjects, kind="stable")
        self._pairs, self._subjects = pairs[order], subjects[order]
        self._met = np.zeros(len(self._index), np.bool_)
        self._looked = np.empty(0, np.int64)

    def of(self, live: Pairs, keys_of: Callable[[Pairs], Iterable[Keys]]) -> Pairs:
        if within(live, self._pairs).all():
            return self._pairs[:0]
        fresh, self._looked = without(live, self._looked), live
        before = self._met.copy()
        for keys in keys_of(fresh):
            at = self._index.positions(keys)
            self._met[at[at >= 0]] = True
        rows = _rows_with(self._subjects, np.flatnonzero(self._met & ~before))
        return without(distinct(self._pairs[rows]), live)


def _rows_with(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of *ordered*, which is sorted, that hold one of *values*, of which each is once."""
    starts = np.searchsorted(ordered, values)
    counts = np.searchsorted(ordered, values, side="right") - starts
    rows = np.arange(int(counts.sum()), dtype=np.int64)
    rows += np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return rows
