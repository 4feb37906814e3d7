"""Blobs that are younger than the grace period although no link shows it.

After a restore from a backup, or a copy of some files, a blob may be young and every link to it
old. Nothing of such a digest is dead, in no repository. Where nothing reaches it, the listing of
blobs tells. Where something does, its age still matters to the repositories whose own links to it
would go: there it is looked at, and nowhere else, as on a filesystem each look has its price.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry_gc.catalog import Catalog
from registry_gc.digest import Keys, empty_keys, pack
from registry_gc.listing.blobs import BlobBatch
from registry_gc.live_set import LiveSet
from registry_gc.mark import Marking
from registry_gc.marking.dead_layers import unneeded_layers
from registry_gc.marking.pairs import manifests_of
from registry_gc.references import Manifests


class YoungBlobs:
    """Tells which blobs are young, of those of which something would go but for their age.

    :param cutoff: seconds since the epoch; None where there is no grace period.
    :ivar doubtful: the live digests of which a link would go, in some repository.
    """

    def __init__(
        self, catalog: Catalog, manifests: Manifests, marking: Marking, cutoff: float | None
    ) -> None:
        self._live = marking.live_set
        self._cutoff = cutoff
        self.doubtful = LiveSet(())
        if cutoff is not None:
            at_most = len(catalog.layers) + len(marking.dead) + len(catalog.tag_index)
            at_most += sum(map(len, catalog.aliases.values()))
            named = _named_by_links_that_go(catalog, manifests, marking)
            live = (keys[self._live.has(keys)] for keys in named)
            self.doubtful = LiveSet.gathered(live, at_most)

    def unasked(self, live: LiveSet) -> LiveSet:
        """Those of *live* whose age does not matter."""
        return live.without(self.doubtful) if len(self.doubtful) else live

    def among(self, batch: BlobBatch) -> Keys:
        """The young ones of *batch* that are live, and have to be known to be young."""
        if self._cutoff is None or not len(self.doubtful):
            return empty_keys()
        return batch.keys[(batch.modified > self._cutoff) & self.doubtful.has(batch.keys)]


def _named_by_links_that_go(
    catalog: Catalog, manifests: Manifests, marking: Marking
) -> Iterator[Keys]:
    yield from unneeded_layers(catalog, manifests, marking)
    yield manifests.keys_of(manifests_of(marking.dead))
    yield from (pack(sorted(stored)) for stored in catalog.aliases.values())
    yield catalog.tag_index.keys
