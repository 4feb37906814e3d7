"""Which links a plan has seen, as one 64-bit word each: what is new since needs no clock.

A blob that is pushed again is not written again, only its link is. So what was written after a
plan shows in the links, by their times, if all clocks can be trusted. They cannot: a registry's
clock may lag, or be set back. A link is therefore new, whatever its time says, unless the plan saw
it at that path with that very time. A link that the plan saw by its folder's name alone, since
nothing that is to go depends on its age, is known by whatever time it has. Two links share a word
by chance in one of 2^64 pairs; the new one's time then has the say alone, as it has in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np
import xxhash
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import UNASKED_AGE
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import gathered, within
from registry_gc.digest import Keys, prefixes
from registry_gc.listing.link_store import AT_ONCE, LinkStore
from registry_gc.listing.links import Links

Words = NDArray[np.uint64]


class _Words(NamedTuple):
    """``there``: a word for each link. ``stamped``: the same with its time."""

    there: Words
    stamped: Words


def stamped_words(catalog: Catalog) -> Iterator[Words]:
    """A word with its time for each link of *catalog*, some at a time, in no order.

    Those of tags and their histories included. Signature links are left out: they are written
    with their revision's own link only.
    """
    return (words.stamped for words in _parts(catalog))


def words_there(catalog: Catalog) -> Words:
    """A word for each of the links of :func:`stamped_words` without its time, sorted."""
    links: tuple[Sized, ...] = (
        catalog.revisions,
        catalog.tag_index,
        catalog.tags,
        catalog.layers,
    )
    return gathered((words.there for words in _parts(catalog)), sum(map(len, links)))


def _parts(catalog: Catalog) -> Iterator[_Words]:
    owners = _owners(catalog, "revisions")
    for start in range(0, len(catalog.revisions), AT_ONCE):
        yield _of_links(catalog.revisions.part(slice(start, start + AT_ONCE)), owners)
    yield _of_links(catalog.tag_index, _owners(catalog, "tag_index"))
    yield _of_tags(catalog)
    owners = _owners(catalog, "layers")
    for links in catalog.layers.groups():
        yield _of_links(links, owners)


def word(kind: str, repository: str, keys: Keys, tag: str = "") -> Words:
    """The words of links of one *kind* (a name of the catalog's) in one repository, or tag."""
    return _there(np.array([_owner_word(kind, repository, tag)], np.uint64), keys)


def renew(catalog: Catalog, known: Words) -> int:
    """Make every link of *catalog* young that is not *known*; returns how many there are.

    From here on all that is young is: what such a link names, and what that leads to.
    """
    revisions = catalog.revisions
    whole = revisions.part(slice(None))
    new = ~within(known, _of_links(whole, _owners(catalog, "revisions")).stamped)
    revisions.modified = np.where(new, np.inf, revisions.modified)
    catalog.tag_index, new_entries = _renewed(
        catalog.tag_index, _owners(catalog, "tag_index"), known
    )
    layers, new_layers = LinkStore(), 0
    owners = _owners(catalog, "layers")
    for links in catalog.layers.groups():
        renewed, count = _renewed(links, owners, known)
        layers.add(renewed)
        new_layers += count
    layers.renumber(np.arange(len(catalog.repositories), dtype=np.int32))
    catalog.layers = layers
    new_tags = ~within(known, _of_tags(catalog).stamped)
    catalog.tags.modified = np.where(new_tags, np.inf, catalog.tags.modified)
    new_links = int(np.count_nonzero(new)) + int(np.count_nonzero(new_tags))
    return new_links + new_entries + new_layers


def _renewed(links: Links, owners: Words, known: Words) -> tuple[Links, int]:
    words = _of_links(links, owners)
    unasked = _stamped(words.there, np.full(len(links), UNASKED_AGE))
    new = ~(within(known, words.stamped) | within(known, unasked))
    renewed = replace(links, modified=np.where(new, np.inf, links.modified))
    return renewed, int(np.count_nonzero(new))


def _owners(catalog: Catalog, kind: str) -> Words:
    """The word of each owner of links of this *kind*."""
    names = catalog.repositories
    if kind == "tag_index":
        of_tags = (_owner_word(kind, names[owner], tag) for owner, tag in catalog.tag_folders)
        return np.fromiter(of_tags, np.uint64, len(catalog.tag_folders))
    return np.fromiter((_owner_word(kind, name) for name in names), np.uint64, len(names))


def _of_links(links: Links, owners: Words) -> _Words:
    there = _there(owners[links.owner], links.keys)
    return _Words(there, _stamped(there, links.modified))


def _of_tags(catalog: Catalog) -> _Words:
    words = (
        _owner_word(f"tag to {tag.target}", catalog.repositories[tag.repository], tag.name)
        for tag in catalog.tags
    )
    there = np.fromiter(words, np.uint64, len(catalog.tags))
    return _Words(there, _stamped(there, catalog.tags.modified))


def _owner_word(kind: str, repository: str, tag: str = "") -> int:
    # No name of a repository or tag has a newline.
    text = f"{kind}\n{repository}\n{tag}"
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogateescape"))


def _there(owners: Words, keys: Keys) -> Words:
    return _mixed(owners ^ _mixed(prefixes(keys)))


def _stamped(there: Words, modified: NDArray[np.float64]) -> Words:
    return _mixed(there ^ np.ascontiguousarray(modified, np.float64).view(np.uint64))


def _mixed(words: Words) -> Words:
    """Each bit of a word spread over all of it (the finalizer of SplitMix64)."""
    words = words ^ (words >> np.uint64(30))
    words = words * np.uint64(0xBF58476D1CE4E5B9)
    words = words ^ (words >> np.uint64(27))
    words = words * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed
