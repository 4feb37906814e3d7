"""Which layer links no live manifest of their repository needs; they are most of all links.

What each repository needs is as much again as all edges of live manifests. So neither is held in
memory: repositories are taken some at a time, with what they need and what they link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, distinct, within
from registry_gc.compact.key_index import KeyIndex
from registry_gc.compact.spool import Spool
from registry_gc.digest import Keys, pack, prefixes
from registry_gc.layout import layer_link
from registry_gc.listing.link_store import LinkRows
from registry_gc.listing.links import Links
from registry_gc.mark import Marking
from registry_gc.marking.pairs import Pairs, manifests_of, repositories_of
from registry_gc.references import Manifests

_WORDS_AT_ONCE = 1 << 18
_RANGES = 256  # each may have a file open
_BYTES_IN_MEMORY = 2 << 20
# Spreads repositories over the 64 bits that a digest's prefix has; any odd number would do.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_PART = 1 << 14
_PAIRS_AT_ONCE = 1 << 16


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

    def __bool__(self) -> bool:
        return bool(len(self._names))

    def keeps(self, keys: Keys, path: Callable[[int, str], str]) -> NDArray[np.bool_]:
        """Tell it of links of *keys*; *path* says for a position and a digest where it is."""
        found = self._names.has(keys)
        for at in np.flatnonzero(found).tolist():
            digest = self._catalog.names.text(keys[at].tobytes())
            found[at] = path(at, digest) in self._catalog.alias_links
        return found


class DeadLayers(msgspec.Struct, frozen=True):
    """Layer links that go, and ``kept``: of which repositories at least one stays."""

    rows: LinkRows
    kept: NDArray[np.bool_]

    def parts(self) -> Iterator[Links]:
        """The links, some at a time, by owner and key."""
        for start in range(0, len(self.rows), _PART):
            yield self.rows.read(start, start + _PART)


def dead_layers(
    catalog: Catalog, manifests: Manifests, marking: Marking, resolver: Resolver
) -> DeadLayers:
    """Find them, in order of repository and digest."""
    young = KeyIndex(marking.young)
    dead_rows = LinkRows()
    kept = np.zeros(len(catalog.repositories), np.bool_)
    for some, words in _needed(catalog, manifests, marking.live):
        waiting: list[Links] = []
        for links, dead in _unneeded(catalog, some, words):
            kept[links.owner[~dead]] = True
            links = _those(links, dead)
            dead = ~young.has(links.keys)
            dead &= ~resolver.keeps(links.keys, _paths(catalog, links))
            dead &= ~among(links.owner, marking.held)
            kept[links.owner[~dead]] = True
            waiting.append(_those(links, dead))
        dead_rows.append(_ordered(waiting))
    return DeadLayers(dead_rows, kept)


def unneeded_layers(catalog: Catalog, manifests: Manifests, marking: Marking) -> Iterator[Keys]:
    """What those layer links name that no live manifest of their repository needs, in parts."""
    for some, words in _needed(catalog, manifests, marking.live):
        for links, unneeded in _unneeded(catalog, some, words):
            yield links.keys[unneeded]


def _unneeded(
    catalog: Catalog, some: _Repositories, words: NDArray[np.uint64]
) -> Iterator[tuple[Links, NDArray[np.bool_]]]:
    for links in catalog.layers.groups(some.low, some.high):
        yield links, ~within(words, some.words(links.owner, links.keys))


def _those(links: Links, where: NDArray[np.bool_]) -> Links:
    return Links(links.owner[where], links.keys[where], links.modified[where])


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


class _Repositories(msgspec.Struct, frozen=True):
    """The repositories from *low* up to *high*."""

    low: int
    high: int

    def words(self, owner: NDArray[np.integer], keys: Keys) -> NDArray[np.uint64]:
        """One 64-bit word for a digest in one of them; sharing one can only keep a link.

        First the repository, so that what is looked up together lies side by side; the rest is
        of the digest, which has 50 bits there where the range has as many as 16,000 repositories.
        """
        bits = (self.high - self.low - 1).bit_length()
        found = prefixes(keys)
        if bits:
            found >>= np.uint64(bits)
            found |= (owner - self.low).astype(np.uint64) << np.uint64(64 - bits)
        return found


def _needed(
    catalog: Catalog, manifests: Manifests, live: Pairs
) -> Iterator[tuple[_Repositories, NDArray[np.uint64]]]:
    """Ranges of repositories, with the sorted words of what they need."""
    bounds = _bounds(len(catalog.repositories), manifests, live)
    ends = [*bounds[1:].tolist(), len(catalog.repositories)]
    ranges = list(map(_Repositories, bounds.tolist(), ends))
    spools = [Spool(np.dtype(np.uint64), _BYTES_IN_MEMORY // len(ranges)) for _ in ranges]
    for owners, keys in _named(manifests, live, _other_names(catalog.aliases)):
        # 16-bit numbers are sorted by radix, in one pass.
        numbers = np.searchsorted(bounds, owners, "right").astype(np.uint16) - np.uint16(1)
        order = np.argsort(numbers, kind="stable")
        stops = np.cumsum(np.bincount(numbers, minlength=len(bounds))).tolist()
        start = 0
        for some, spool, stop in zip(ranges, spools, stops, strict=True):
            if stop > start:
                rows = order[start:stop]
                spool.append(some.words(owners[rows], keys[rows]))
            start = stop
    for some, spool in zip(ranges, spools, strict=True):
        yield some, distinct(spool.read(0, len(spool)))
        spool.close()


def _bounds(repositories: int, manifests: Manifests, live: Pairs) -> NDArray[np.int64]:
    """Where ranges of repositories begin that need about equally much."""
    needed = np.zeros(repositories, np.int64)
    for start in range(0, len(live), _PAIRS_AT_ONCE):
        some = live[start : start + _PAIRS_AT_ONCE]
        owners = repositories_of(some)
        first = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]]))
        counts = manifests.batch.counts[manifests_of(some)].astype(np.int64) + 1
        needed[owners[first]] += np.add.reduceat(counts, first)
    total = np.cumsum(needed)
    everything = int(total[-1]) if len(total) else 0
    wanted = min(_RANGES, 1 + everything // _WORDS_AT_ONCE)
    inner = np.searchsorted(total, np.arange(1, wanted) * (everything // wanted))
    return distinct(np.concatenate([np.zeros(1, np.int64), inner]))


def _named(
    manifests: Manifests, live: Pairs, others: Mapping[bytes, list[bytes]]
) -> Iterator[tuple[NDArray[np.int64], Keys]]:
    """What live manifests are and name, and whose they are, some at a time."""
    # By manifest, as their references are kept; in one buffer.
    turned = manifests_of(live)
    turned <<= 32
    turned |= repositories_of(live)
    turned.sort()
    names = KeyIndex(pack(sorted(others)))
    for start in range(0, len(turned), _PAIRS_AT_ONCE):
        some = turned[start : start + _PAIRS_AT_ONCE]
        ids, owners = repositories_of(some), manifests_of(some)
        yield owners, manifests.keys_of(ids)
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
