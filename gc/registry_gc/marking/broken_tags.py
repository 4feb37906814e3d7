"""Tags that do not say what they point to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.listing.links import VANISHED
from registry_gc.manifest_reader import ManifestState
from registry_gc.policy import Policy
from registry_gc.references import Manifests


def broken_tags(catalog: Catalog, manifests: Manifests, policy: Policy) -> dict[int, str]:
    """The rows of the tags that are broken, where that has not been released, and why.

    A registry writes an entry of the tag's index before it points the tag there. So a digest
    that is in neither the index nor the store was never written: the link has rotted.
    """
    tags = catalog.tags
    ids = manifests.ids(tags.keys[tags.known])
    missing = manifests.in_state(ManifestState.MISSING)[ids]
    lost = np.flatnonzero(tags.known)[missing].tolist()
    broken: dict[int, str] = {}
    vanished = {it.path for it in catalog.damaged if it.reason == VANISHED}
    for row in sorted([*np.flatnonzero(~tags.known).tolist(), *lost]):
        tag = tags[row]
        reason = VANISHED if tag.path in vanished else "holds no digest"
        if tag.target is not None:
            reason = f"points to {tag.target}, which was never pushed"
            if _was_ever(catalog, row):
                continue
        if not policy.released(catalog.repositories[tag.repository], tag.target):
            broken[row] = reason
    return broken


def entries_of(catalog: Catalog, tags: list[int]) -> NDArray[np.bool_]:
    """Tell for each tag-index entry whether it is of one of *tags*, which are rows."""
    named = np.zeros(len(catalog.tag_folders), dtype=np.bool_)
    named[catalog.tags.folder[tags]] = True
    found: NDArray[np.bool_] = named[catalog.tag_index.owner]
    return found


def _was_ever(catalog: Catalog, row: int) -> bool:
    """Whether the target of the tag in *row* is in its index."""
    index, folder = catalog.tag_index, int(catalog.tags.folder[row])
    rows = slice(*np.searchsorted(index.owner, [folder, folder + 1]).tolist())
    key = catalog.tags.keys[row].tobytes()
    return key in {entry.tobytes() for entry in index.keys[rows]}
