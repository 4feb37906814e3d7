"""Which layer links no live manifest of their repository needs; they are most of all links.

What each repository needs is as much again as all edges of live manifests. So neither is held in
memory: repositories are taken some at a time, with what they need and what they link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.arrays import among, distinct, within
from registry_gc.catalog import Catalog
from registry_gc.digest import Keys, pack, prefixes
from registry_gc.key_index import KeyIndex
from registry_gc.layout import layer_link
from registry_gc.link_store import ROW, links_of, rows_of
from registry_gc.listing import Links
from registry_gc.mark import Marking, Pairs, manifests_of, repositories_of
from registry_gc.references import Manifests
from registry_gc.spool import Spool

_WORDS_AT_ONCE = 1 << 20
# Spreads repositories over the 64 bits that a digest's prefix has; any odd number would do.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_PART = 1 << 14


class Resolver:
    """Tells which links say what a live digest of another algorithm stands for.

    In whatever repository, of whatever kind, any of them may be the last one: without it the next
    run would not find what is stored for a reference, and delete it. And those that say something
    young stay, as any link to it does.
    """

    def __init__(self, catalog: Catalog, marking: Marking) -> None:
        self._catalog = catalog
        young = KeyIndex(marking.young)
        self._names = KeyIndex(
            pack(
                name
                for name, stored in sorted(catalog.aliases.items())
                if marking.live_set.has(pack([name]))[0] or young.has(pack(stored)).any()
            )
        )

    def keeps(self, keys: Keys, path: Callable[[int, str], str]) -> NDArray[np.bool_]:
        """Tell it of links of *keys*; *path* says for a position and a digest where it is."""
        found = self._names.has(keys)
        for at in np.flatnonzero(found).tolist():
            digest = self._catalog.names.text(keys[at].tobytes())
            found[at] = path(at, digest) in self._catalog.alias_links
        return found


class DeadLayers(msgspec.Struct, frozen=True):
    """Layer links that go, and ``kept``: of which repositories at least one stays."""

    rows: Spool
    kept: NDArray[np.bool_]

    def parts(self) -> Iterator[Links]:
        """The links, some at a time, by owner and key."""
        for start in range(0, len(self.rows), _PART):
            yield links_of(self.rows.read(start, start + _PART))


def dead_layers(
    catalog: Catalog, manifests: Manifests, marking: Marking, resolver: Resolver
) -> DeadLayers:
    """Find them, in order of repository and digest."""
    young = KeyIndex(marking.young)
    dead_rows = Spool(ROW)
    kept = np.zeros(len(catalog.repositories), np.bool_)
    for low, high, words in _needed(catalog, manifests, marking.live):
        waiting: list[Links] = []
        for links in catalog.layers.groups(low, high):
            dead = ~within(words, _mixed(links.owner, links.keys))
            dead &= ~young.has(links.keys)
            dead &= ~resolver.keeps(links.keys, _paths(catalog, links))
            dead &= ~among(links.owner, marking.held)
            kept[links.owner[~dead]] = True
            waiting.append(Links(links.owner[dead], links.keys[dead], links.modified[dead]))
        dead_rows.append(rows_of(_ordered(waiting)))
    return DeadLayers(dead_rows, kept)


def needed_among(
    catalog: Catalog,
    manifests: Manifests,
    marking: Marking,
    owners: NDArray[np.int64],
    keys: Keys,
) -> NDArray[np.bool_]:
    """Tell for layer links of the repositories *owners* to *keys*, linked or not, who needs them.

    True where a live manifest of that repository references the digest, or is it.
    """
    words = _mixed(owners, keys)
    found = np.zeros(len(words), np.bool_)
    if not len(words):
        return found
    others = _other_names(catalog.aliases)
    for of_owners, named in _named(manifests, marking.live, others):
        found |= within(distinct(_mixed(of_owners, named)), words)
    return found


def _paths(catalog: Catalog, links: Links) -> Callable[[int, str], str]:
    return lambda at, digest: layer_link(catalog.repositories[links.owner[at]], digest)


def _ordered(parts: list[Links]) -> Links:
    parts = parts or [Links.empty()]
    owner = np.concatenate([part.owner for part in parts])
    keys = np.concatenate([part.keys for part in parts])
    modified = np.concatenate([part.modified for part in parts])
    order = np.lexsort((prefixes(keys), owner))
    return Links(owner[order], keys[order], modified[order])


def _mixed(owner: NDArray[np.integer], keys: Keys) -> NDArray[np.uint64]:
    """One 64-bit word for a digest in a repository; sharing one can only keep a link."""
    mixed: NDArray[np.uint64] = prefixes(keys) ^ (owner.astype(np.uint64) * _SPREAD)
    return mixed


def _needed(
    catalog: Catalog, manifests: Manifests, live: Pairs
) -> Iterator[tuple[int, int, NDArray[np.uint64]]]:
    """Ranges of repositories, from and up to, with the sorted words of what they need."""
    bounds = _bounds(len(catalog.repositories), manifests, live)
    spool = Spool(np.dtype(np.uint64))
    places: list[list[tuple[int, int]]] = [[] for _ in bounds]
    for owners, keys in _named(manifests, live, _other_names(catalog.aliases)):
        words = _mixed(owners, keys)
        # 16-bit numbers are sorted by radix, in one pass.
        ranges = np.searchsorted(bounds, owners, "right").astype(np.uint16) - np.uint16(1)
        order = np.argsort(ranges, kind="stable")
        start = spool.append(words[order])
        counts = np.bincount(ranges, minlength=len(bounds)).tolist()
        for place, count in zip(places, counts, strict=True):
            if count:
                place.append((start, start + count))
            start += count
    ends = [*bounds[1:].tolist(), len(catalog.repositories)]
    for low, high, place in zip(bounds.tolist(), ends, places, strict=True):
        parts = [spool.read(start, stop) for start, stop in place]
        yield low, high, distinct(np.concatenate([np.empty(0, np.uint64), *parts]))


def _bounds(repositories: int, manifests: Manifests, live: Pairs) -> NDArray[np.int64]:
    """Where ranges of repositories begin that need about equally much."""
    counts = manifests.batch.counts[manifests_of(live)].astype(np.int64) + 1
    total = np.cumsum(counts)
    wanted = min(1 << 15, 1 + (int(total[-1]) if len(total) else 0) // _WORDS_AT_ONCE)
    if wanted == 1:
        return np.zeros(1, np.int64)
    at = np.searchsorted(total, np.arange(1, wanted) * (int(total[-1]) // wanted))
    inner = repositories_of(live[at])
    return distinct(np.concatenate([np.zeros(1, np.int64), inner]))


def _named(
    manifests: Manifests, live: Pairs, others: Mapping[bytes, list[bytes]]
) -> Iterator[tuple[NDArray[np.int64], Keys]]:
    """What live manifests are and name, and whose they are, some at a time."""
    ids, owners = manifests_of(live), repositories_of(live)
    for start in range(0, len(ids), _WORDS_AT_ONCE):
        some = slice(start, start + _WORDS_AT_ONCE)
        yield owners[some], manifests.batch.keys[ids[some]]
    names = KeyIndex(pack(sorted(others)))
    for source, keys, _ in manifests.targets_in_parts(ids):
        yield owners[source], keys
        # One digest under two names: who needs either keeps the links of both.
        for row in np.flatnonzero(names.has(keys)).tolist() if len(names) else ():
            same = pack(others[keys[row].tobytes()])
            yield np.repeat(owners[source[row : row + 1]], len(same)), same


def _other_names(aliases: Mapping[bytes, set[bytes]]) -> dict[bytes, list[bytes]]:
    """For each digest with two names: the others."""
    found: dict[bytes, set[bytes]] = {}
    for name, stored in aliases.items():
        for other in stored:
            found.setdefault(name, set()).add(other)
            found.setdefault(other, set()).add(name)
    return {name: sorted(others) for name, others in found.items()}
