"""Sets as sorted numpy arrays.

numpy's own ``unique``, ``isin``, ``union1d`` and ``setdiff1d`` look for masked arrays first, and
for that import ``numpy.ma``: 20 ms, a tenth of what a small registry takes altogether.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def distinct(values: NDArray[Scalar]) -> NDArray[Scalar]:
    """The values, sorted, each once."""
    if len(values) < 2:
        return values
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]  # the ufunc does not know the dtype of keys
    return ordered[first]


def within(ordered: NDArray[Scalar], values: NDArray[Scalar]) -> NDArray[np.bool_]:
    """Tell for each of *values* whether it is in *ordered*, which is sorted."""
    return locate(ordered, values)[1]


def locate(
    ordered: NDArray[Scalar], values: NDArray[Scalar]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each of *values* is in *ordered*, which is sorted, and whether it is there at all."""
    if not len(ordered) or not len(values):
        return np.zeros(len(values), dtype=np.intp), np.zeros(len(values), dtype=np.bool_)
    at = np.searchsorted(ordered, values)
    at[at == len(ordered)] = 0
    return at, ordered[at] == values


def among(values: NDArray[Any], few: Collection[int]) -> NDArray[np.bool_]:
    """Tell for each of the integers *values* whether it is one of a few."""
    return within(np.array(sorted(few), dtype=values.dtype), values)


def union(some: NDArray[Scalar], more: NDArray[Scalar]) -> NDArray[Scalar]:
    """All values of both, sorted, each once."""
    return distinct(np.concatenate([some, more]))


def without(ordered: NDArray[Scalar], unwanted: NDArray[Scalar]) -> NDArray[Scalar]:
    """The values of *ordered* that are not in *unwanted*, which is sorted."""
    return ordered[~within(unwanted, ordered)]


def slices(count: int) -> Iterator[slice]:
    """Some of *count* rows at a time, for columns of which there is no room for copies."""
    for start in range(0, count, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)


def gathered(parts: Iterable[NDArray[np.uint64]], at_most: int) -> NDArray[np.uint64]:
    """All values of *parts*, sorted, each once, in one buffer that is never copied.

    :param at_most: so many values there are at most. Memory that is not written to is not taken,
        so the bound may be generous.
    """
    words = np.empty(at_most, np.uint64)
    end = 0
    for part in parts:
        words[end : end + len(part)] = part
        end += len(part)
    words[:end].sort()
    kept = 0
    for start in range(0, end, _CHUNK):
        chunk = words[start : min(end, start + _CHUNK)]
        fresh = np.ones(len(chunk), np.bool_)
        fresh[1:] = chunk[1:] != chunk[:-1]
        if kept:
            fresh[0] = chunk[0] != words[kept - 1]
        found = chunk[fresh]
        words[kept : kept + len(found)] = found
        kept += len(found)
    words.resize(kept, refcheck=False)  # nobody else has seen it yet
    return words


_CHUNK = 1 << 18
_ROWS_AT_ONCE = 1 << 14
