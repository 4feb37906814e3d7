"""What deleting a tag or a repository would free: marked with it and without it, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, distinct, within, without
from registry_gc.digest import Keys, empty_keys, pack
from registry_gc.engine import Engine
from registry_gc.layout import blob_path
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.blobs import BlobKeys, stat_blobs
from registry_gc.listing.link_store import LinkStore, Revisions
from registry_gc.listing.links import Links
from registry_gc.listing.tags import TagColumns, Tags
from registry_gc.live_set import LiveSet
from registry_gc.mark import Marking, mark
from registry_gc.marking.pairs import pairs_of
from registry_gc.marking.young_blobs import YoungBlobs
from registry_gc.plan import dead_blobs
from registry_gc.policy import Policy
from registry_gc.references import Manifests

_BLOBS_A_UNIT = 256


@dataclass(frozen=True, slots=True)
class Freed:
    """What a collection with ``-m`` would delete more than it would now; sizes in bytes.

    ``manifests``: revisions, counted for each repository, as a collection counts them.
    """

    manifests: int
    blobs: int
    bytes: int


class _Stats(NamedTuple):
    """Of those that are stored: keys, bytes that deleting frees, seconds since the epoch."""

    keys: Keys
    sizes: NDArray[np.int64]
    modified: NDArray[np.float64]


def without_tag(catalog: Catalog, repository: int, tag: str) -> Catalog:
    """*catalog* as it were after the tag was deleted through the registry, history included."""
    folders = [number for number, it in enumerate(catalog.tag_folders) if it == (repository, tag)]
    index = catalog.tag_index
    return replace(
        catalog,
        tags=_tags(catalog, ~among(catalog.tags.folder, folders)),
        tag_index=_kept(index, ~among(index.owner, folders)),
    )


def without_repository(catalog: Catalog, repository: int) -> Catalog:
    """*catalog* as it were if the repository held nothing."""
    index = catalog.tag_index
    layers = LinkStore()
    for links in catalog.layers.groups():
        layers.add(_kept(links, links.owner != repository))
    layers.renumber(np.arange(len(catalog.repositories), dtype=np.int32))
    return replace(
        catalog,
        tags=_tags(catalog, catalog.tags.owner != repository),
        revisions=Revisions(_kept(catalog.revisions, catalog.revisions.owner != repository)),
        layers=layers,
        tag_index=_kept(index, catalog.tag_folders.owner[index.owner] != repository),
        signatures=[link for link in catalog.signatures if link.repository != repository],
    )


def _tags(catalog: Catalog, rows: NDArray[np.bool_]) -> Tags:
    tags = catalog.tags
    columns = TagColumns(
        folder=tags.folder[rows],
        modified=tags.modified[rows],
        keys=tags.keys[rows],
        known=tags.known[rows],
        stamps=tags.stamps[rows],
    )
    return Tags(catalog.repositories, catalog.tag_folders, catalog.names, columns)


def _kept(links: Links | Revisions, rows: NDArray[np.bool_]) -> Links:
    return Links(links.owner[rows], links.keys[rows], links.modified[rows])


class Marker:
    """Marks a catalog, or what would be left of it, as a collection does.

    :param cutoff: seconds since the epoch; nothing younger is dead.
    """

    def __init__(
        self, reader: Reader, engine: Engine, manifests: Manifests, policy: Policy, cutoff: float
    ) -> None:
        self._reader = reader
        self._engine = engine
        self._manifests = manifests
        self.policy = policy
        self._cutoff = cutoff

    def marked(self, catalog: Catalog, policy: Policy) -> tuple[Marking, Keys]:
        """What is live; and the blobs whose age keeps something, as no link shows it.

        Such a blob may be a manifest whose links are all old, and then it is a root.
        """
        marking = self._mark(catalog, policy, empty_keys())
        if not policy.grace:
            return marking, empty_keys()
        live = LiveSet([marking.digests])
        ages = YoungBlobs(catalog, self._manifests, marking, self._cutoff)
        found = [empty_keys()]
        for batch in stream_blobs(self._reader, self._engine, ages.unasked(live)):
            found.append(dead_blobs(batch, live, self._cutoff, catalog.names).young)
            found.append(ages.among(batch))
        late = distinct(np.concatenate(found))
        return (self._mark(catalog, policy, late) if len(late) else marking), late

    def _mark(self, catalog: Catalog, policy: Policy, late: Keys) -> Marking:
        return mark(self._reader, catalog, self._manifests, policy, self._cutoff, young=late)

    def freed(self, catalog: Catalog, rest: Catalog) -> Freed:
        """What lives in *catalog* and would not in *rest*, by the rules of ``-m``."""
        policy = replace(self.policy, delete_untagged=True)
        before, late = self.marked(catalog, policy)
        known = self._doubtful(catalog, before)
        while True:
            after = self._mark(rest, policy, late)
            stats = self._stats(rest, without(before.digests, after.digests))
            # Of what lives on elsewhere, age matters where more links to it would go now.
            doubtful = self._stats(rest, without(self._doubtful(rest, after), known))
            known = distinct(np.concatenate([known, doubtful.keys]))
            young = np.concatenate(
                [found.keys[found.modified > self._cutoff] for found in (stats, doubtful)]
            )
            if not len(young):
                break
            # What is young stays, and is a root when it is a manifest.
            late = np.concatenate([late, young])
        # What an index lists lives in its repository, linked there or not, and stored or not.
        linked = distinct(pairs_of(catalog.revisions.owner, catalog.revisions.ids(self._manifests)))
        manifests = within(linked, without(before.live, after.live))
        return Freed(int(manifests.sum()), len(stats.keys), int(stats.sizes.sum()))

    def _doubtful(self, catalog: Catalog, marking: Marking) -> Keys:
        """What is live, and keeps a link that would go if it is young."""
        if not self.policy.grace:
            return empty_keys()
        ages = YoungBlobs(catalog, self._manifests, marking, self._cutoff)
        return distinct(marking.digests[ages.doubtful.has(marking.digests)])

    def _stats(self, catalog: Catalog, keys: Keys) -> _Stats:
        others = catalog.names.others
        odd = [key.tobytes() for key in keys if key.tobytes() in others] if others else []
        plain = without(keys, pack(sorted(odd))) if odd else keys
        units = [
            BlobKeys(plain[at : at + _BLOBS_A_UNIT].tobytes())
            for at in range(0, len(plain), _BLOBS_A_UNIT)
        ]
        found = [_Stats(empty_keys(), np.empty(0, np.int64), np.empty(0, np.float64))]
        found += [
            _Stats(batch.keys, batch.sizes, batch.modified)
            for batch in self._engine.run(stat_blobs, units)
        ]
        for key in odd:
            try:
                entry = self._reader.stat(blob_path(others[key]))
            except NotFound:
                continue
            size = 0 if entry.shared else entry.size
            found.append(_Stats(pack([key]), np.array([size]), np.array([entry.modified])))
        return _Stats(*(np.concatenate(column) for column in zip(*found, strict=True)))
