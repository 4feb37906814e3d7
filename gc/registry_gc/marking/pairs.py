"""A manifest as one repository sees it, as one number: ``repository << 32 | manifest id``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]

MANIFEST = (1 << 32) - 1
"""The bits of a pair that are the manifest's id."""


def repositories_of(pairs: Pairs) -> NDArray[np.int64]:
    """The repository of each pair."""
    return pairs >> 32


def manifests_of(pairs: Pairs) -> NDArray[np.int64]:
    """The manifest id of each pair."""
    return pairs & MANIFEST


def pair_of(repository: int, manifest: int) -> int:
    """One manifest as one repository sees it."""
    return repository << 32 | manifest


def pairs_of(owner: NDArray[np.integer], ids: NDArray[np.int64]) -> Pairs:
    """Manifests *ids* as the repositories *owner* see them."""
    return (owner.astype(np.int64) << 32) | ids
