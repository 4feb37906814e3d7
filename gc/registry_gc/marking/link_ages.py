"""Sizes and ages of links, where a filesystem was not asked for those of all.

A look at a link costs more than all else that is done for it: in a registry that nobody has looked
at lately half of a dry run's time was spent on the 36,000 links to layers that are live anyway. So
links to layers, and those in tags' histories, are told by the names of their folders first, and
asked for where their age may matter:

A young link keeps what it names. That changes something only where what it names would go
otherwise, in whatever repository: a layer link, a manifest, a blob, an entry in a tag's history.
All layer links to such a digest are looked at, those in the repositories that need it too. What no
link is looked at for is live for other reasons. An entry in a tag's history is looked at unless
what it names is a manifest that lives wherever something like that names it, and is there.

In a registry with few links, which costs little, and in one that has something else to be careful
about, all are looked at; so damaged links of what is live are found there. In others it
is ``registry-gc verify`` that finds them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import UNASKED_AGE
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import distinct, slices, within
from registry_gc.digest import Keys, pack, prefixes
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import tag_folder
from registry_gc.listing.histories import Entries, stat_entries
from registry_gc.listing.link_store import LinkStore
from registry_gc.listing.links import Links, OddLink
from registry_gc.listing.reading import learn_links
from registry_gc.listing.repositories import RepositoryBatch, list_layer_links
from registry_gc.manifest_reader import ManifestState
from registry_gc.mark import Marking
from registry_gc.marking.dead_layers import unneeded_layers
from registry_gc.marking.pairs import manifests_of, pairs_of
from registry_gc.references import Manifests

FEW = 10_000
"""Links that are always looked at: 30 ms, or some tenths of a second on an idle disk."""
_AT_ONCE = 1 << 10

_Unit = tuple[tuple[str, bytes], ...]


class LinkAges:
    """Asks for what is not known of the links of *catalog*, which it changes."""

    def __init__(self, engine: Engine, observer: Observer, catalog: Catalog) -> None:
        self._engine = engine
        self._observer = observer
        self._catalog = catalog
        self._youngest = UNASKED_AGE
        self._odd = False
        self._surprised = False

    def learn_few(self) -> None:
        """Look at all links, where those are few."""
        unasked = self._unasked()
        if 0 < self._catalog.layers.unasked + int(np.count_nonzero(unasked)) <= FEW:
            self._learn(None, unasked)

    def learn_doubtful(self, manifests: Manifests, marking: Marking, cutoff: float) -> bool:
        """Look at the links whose age may change *marking*; whether one of them does."""
        unasked = self._unasked()
        if not self._catalog.layers.unasked and not unasked.any():
            return False
        if marking.holds:
            # What a held repository would free without its hold depends on every link there.
            self._learn(None, unasked)
        else:
            going = self._going(manifests, marking)
            unasked &= ~self._lives_on(manifests, marking, going)
            self._learn(self._doubtful(going), unasked)
            if self._surprised:
                # Another name for a digest, or a tag that leads nowhere: what matters is another.
                self._learn(None, self._unasked())
        return self._odd or self._surprised or self._youngest > cutoff

    def _unasked(self) -> NDArray[np.bool_]:
        """Which entries in tags' histories nobody has looked at."""
        unasked: NDArray[np.bool_] = self._catalog.tag_index.modified == UNASKED_AGE
        return unasked

    def _going(self, manifests: Manifests, marking: Marking) -> NDArray[np.uint64]:
        """The beginnings of the digests of which links of layers or signatures might go."""
        catalog = self._catalog
        words = [prefixes(keys) for keys in unneeded_layers(catalog, manifests, marking)]
        words.append(prefixes(pack(catalog.names.key(link.digest) for link in catalog.signatures)))
        return distinct(np.concatenate(words))

    def _doubtful(self, going: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The beginnings of all digests of which something might go."""
        catalog = self._catalog
        # Registries before 2.1 linked manifests under _layers too. There are few beside layers.
        words = [going, prefixes(catalog.revisions.keys), prefixes(catalog.tag_index.keys)]
        words.append(prefixes(catalog.tags.keys[catalog.tags.known]))
        words += [prefixes(pack(sorted(stored))) for stored in catalog.aliases.values()]
        return distinct(np.concatenate(words))

    def _lives_on(
        self, manifests: Manifests, marking: Marking, going: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Which entries in tags' histories change nothing, however young they are."""
        index = self._catalog.tag_index
        lives = np.zeros(len(index), np.bool_)
        # A young link of one name keeps what is stored under another.
        if self._catalog.aliases or not len(manifests):
            return lives
        numbers = np.zeros(len(index), np.int32)
        dead = [manifests_of(marking.dead)]
        for rows in slices(len(index)):
            ids = manifests.ids(index.keys[rows])
            owners = self._catalog.tag_folders.owner[index.owner[rows]]
            known = np.maximum(ids, 0)
            alive = (ids >= 0) & within(marking.live, pairs_of(owners, known))
            # A young entry keeps those to the same manifest where that is not linked any more.
            dead.append(distinct(known[~alive]))
            numbers[rows], lives[rows] = known, alive
        # Whether a tag's target was ever pushed is told by its history where it is not stored.
        doubtful = ~manifests.in_state(ManifestState.OK)
        doubtful[np.concatenate(dead)] = True
        for rows in slices(len(index)):
            lives[rows] &= ~doubtful[numbers[rows]]
            lives[rows] &= ~within(going, prefixes(index.keys[rows]))
        return lives

    def _learn(self, doubtful: NDArray[np.uint64] | None, wanted: NDArray[np.bool_]) -> None:
        """Look at the layer links to what is *doubtful*, and at the *wanted* rows of histories.

        :param doubtful: beginnings of digests; None to look at all.
        """
        names = self._other_names()
        odd: list[OddLink] = []
        if self._catalog.layers.unasked:
            odd += self._learn_layers(doubtful)
        if wanted.any():
            odd += self._learn_entries(np.flatnonzero(wanted))
        learn_links(self._engine, self._catalog, odd)
        self._odd |= bool(odd)
        self._surprised |= self._other_names() > names

    def _other_names(self) -> int:
        return sum(map(len, self._catalog.aliases.values()))

    def _learn_layers(self, doubtful: NDArray[np.uint64] | None) -> Iterator[OddLink]:
        catalog = self._catalog
        known = LinkStore()
        self._observer.phase("looking at layer links", None, "links")
        numbers = {name: number for number, name in enumerate(catalog.repositories)}
        for batch in self._engine.run(list_layer_links, self._units(known, doubtful)):
            owners = np.array([numbers[name] for name in batch.repositories], np.int32)
            found = batch.layers
            known.add(Links(owners[found.owner], found.keys, found.modified))
            self._youngest = max(self._youngest, found.modified.max(initial=UNASKED_AGE))
            self._take(batch, owners)
            yield from batch.odd
            self._observer.advance(len(found))
        self._observer.finish()
        known.renumber(np.arange(len(catalog.repositories), dtype=np.int32))
        catalog.layers.close()
        catalog.layers = known

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

    def _learn_entries(self, rows: NDArray[np.intp]) -> Iterator[OddLink]:
        catalog, index = self._catalog, self._catalog.tag_index
        numbers = {name: number for number, name in enumerate(catalog.repositories)}
        modified = index.modified.copy()
        self._observer.phase("looking at tags' histories", len(rows), "links")
        for found in self._engine.run(stat_entries, self._entries(rows)):
            asked = rows[found.first : found.first + len(found.modified)]
            modified[asked] = found.modified
            for batch in found.instead:
                owners = np.array([numbers[name] for name in batch.repositories], np.int32)
                self._take(batch, owners)
            yield from found.odd
            self._observer.advance(len(asked))
        self._observer.finish()
        index = replace(index, modified=modified)
        there = ~np.isnan(modified)
        if not there.all():
            self._surprised = True
            index = Links(index.owner[there], index.keys[there], modified[there])
        self._youngest = max(self._youngest, index.modified.max(initial=UNASKED_AGE))
        catalog.tag_index = index

    def _entries(self, rows: NDArray[np.intp]) -> Iterator[Entries]:
        """The links in *rows* of tags' histories, as work units."""
        catalog, index = self._catalog, self._catalog.tag_index
        for first in range(0, len(rows), _AT_ONCE):
            some = rows[first : first + _AT_ONCE]
            encoded = index.keys[some].tobytes().hex()
            folder, last = "", -1
            paths = []
            for at, number in enumerate(index.owner[some].tolist()):
                if number != last:
                    owner, tag = catalog.tag_folders[number]
                    folder, last = tag_folder(catalog.repositories[owner], tag), number
                digest = encoded[64 * at : 64 * at + 64]
                paths.append(f"{folder}index/sha256/{digest}/link")
            yield Entries(first, paths)

    def _take(self, batch: RepositoryBatch, owners: NDArray[np.int32]) -> None:
        """Take over what a *batch* has found beside links; *owners*: who its repositories are."""
        catalog = self._catalog
        catalog.hollow += batch.hollow
        catalog.unfinished += batch.unfinished
        catalog.strangers += batch.strangers
        catalog.with_strangers.update(int(owners[owner]) for owner in batch.with_strangers)
        catalog.names.others.update(batch.others)


def _by_owner(owners: NDArray[np.int32], keys: Keys) -> Iterator[tuple[int, Keys]]:
    """The keys of each owner in *owners*, some at a time."""
    edges = np.flatnonzero(owners[1:] != owners[:-1]) + 1
    for some in np.split(np.arange(len(owners)), edges):
        for start in range(0, len(some), _AT_ONCE):
            rows = some[start : start + _AT_ONCE]
            yield int(owners[rows[0]]), keys[rows]
