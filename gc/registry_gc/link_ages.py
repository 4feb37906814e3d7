"""Sizes and ages of layer links, where a filesystem was not asked for those of all.

A look at a link costs more than all else that is done for it: in a registry that nobody has looked
at lately half of a dry run's time was spent on the 36,000 links to layers that are live anyway. So
links are told by the names of their folders first, and asked for where their age may matter:

A young link keeps what it names. That changes something only where what it names would go
otherwise, in whatever repository: a layer link, a manifest, a blob, an entry in a tag's history.
All links to such a digest are looked at, those in the repositories that need it too. What no
link is looked at for is live for other reasons.

In a registry with few links, which costs little, and in one that has something else to be careful
about, all are looked at; so damaged links of live layers are found there. In others it is
``registry-gc verify`` that finds them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNASKED_AGE
from registry_gc.catalog import Catalog, learn_links
from registry_gc.compact.arrays import distinct, within
from registry_gc.dead_layers import unneeded_layers
from registry_gc.digest import Keys, pack, prefixes
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.listing.link_store import LinkStore
from registry_gc.listing.links import Links, OddLink
from registry_gc.listing.repositories import list_layer_links
from registry_gc.mark import Marking
from registry_gc.references import Manifests

FEW = 10_000
"""Links that are always looked at: 30 ms, or some tenths of a second on an idle disk."""
_AT_ONCE = 1 << 10

_Unit = tuple[tuple[str, bytes], ...]


class LinkAges:
    """Asks for what is not known of the layer links of *catalog*, which it changes."""

    def __init__(self, engine: Engine, observer: Observer, catalog: Catalog) -> None:
        self._engine = engine
        self._observer = observer
        self._catalog = catalog
        self._odd: list[OddLink] = []
        self._youngest = UNASKED_AGE

    def learn_few(self) -> None:
        """Look at all links, where those are few."""
        if 0 < self._catalog.layers.unasked <= FEW:
            self._learn(None)

    def learn_doubtful(self, manifests: Manifests, marking: Marking, cutoff: float) -> bool:
        """Look at the links whose age may change *marking*; whether one of them does."""
        if not self._catalog.layers.unasked:
            return False
        # What a held repository would free without its hold depends on every link there.
        self._learn(None if marking.holds else self._doubtful(manifests, marking))
        return bool(self._odd) or self._youngest > cutoff

    def _doubtful(self, manifests: Manifests, marking: Marking) -> NDArray[np.uint64]:
        """The beginnings of all digests of which something might go."""
        catalog = self._catalog
        words = [prefixes(keys) for keys in unneeded_layers(catalog, manifests, marking)]
        # Registries before 2.1 linked manifests under _layers too. There are few beside layers.
        words += [prefixes(catalog.revisions.keys), prefixes(catalog.tag_index.keys)]
        words.append(prefixes(catalog.tags.keys[catalog.tags.known]))
        words += [prefixes(pack(sorted(stored))) for stored in catalog.aliases.values()]
        return distinct(np.concatenate(words))

    def _learn(self, doubtful: NDArray[np.uint64] | None) -> None:
        catalog = self._catalog
        known = LinkStore()
        self._observer.phase("looking at layer links", None, "links")
        numbers = {name: number for number, name in enumerate(catalog.repositories)}
        for batch in self._engine.run(list_layer_links, self._units(known, doubtful)):
            owners = np.array([numbers[name] for name in batch.repositories], np.int32)
            found = batch.layers
            if len(found):
                known.add(Links(owners[found.owner], found.keys, found.modified))
                self._youngest = max(self._youngest, float(found.modified.max()))
            self._odd += batch.odd
            catalog.hollow += batch.hollow
            catalog.strangers += batch.strangers
            catalog.with_strangers.update(int(owners[owner]) for owner in batch.with_strangers)
            catalog.names.others.update(batch.others)
            self._observer.advance(len(found))
        self._observer.finish()
        known.renumber(np.arange(len(catalog.repositories), dtype=np.int32))
        catalog.layers.close()
        catalog.layers = known
        learn_links(self._engine, catalog, self._odd)

    def _units(self, known: LinkStore, doubtful: NDArray[np.uint64] | None) -> Iterator[_Unit]:
        """What is to be looked at; all that is not goes into *known* as it is."""
        waiting: list[tuple[str, bytes]] = []
        count = 0
        for links in self._catalog.layers.groups():
            wanted = links.modified == UNASKED_AGE
            if doubtful is not None:
                wanted &= within(doubtful, prefixes(links.keys))
            known.add(Links(links.owner[~wanted], links.keys[~wanted], links.modified[~wanted]))
            for owner, keys in _by_owner(links.owner[wanted], links.keys[wanted]):
                waiting.append((self._catalog.repositories[owner], keys.tobytes()))
                count += len(keys)
                if count >= _AT_ONCE:
                    yield tuple(waiting)
                    waiting, count = [], 0
        if waiting:
            yield tuple(waiting)


def _by_owner(owners: NDArray[np.int32], keys: Keys) -> Iterator[tuple[int, Keys]]:
    """The keys of each owner in *owners*, some at a time."""
    edges = np.flatnonzero(owners[1:] != owners[:-1]) + 1
    for some in np.split(np.arange(len(owners)), edges):
        for start in range(0, len(some), _AT_ONCE):
            rows = some[start : start + _AT_ONCE]
            yield int(owners[rows[0]]), keys[rows]
