"""Storage to repositories, tags, revisions, links and uploads; all but blobs.

One listing, cut into units (:mod:`registry_gc.listing.units`), then one read for each link that the
listing could not tell the content of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from registry_drivers.base import Reader
from registry_drivers.errors import InvalidPath, NotFound, TooLarge
from registry_gc.catalog import Catalog, Damage
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import REPOSITORIES
from registry_gc.listing.links import VANISHED, OddLink, read_links, read_odd_links
from registry_gc.listing.merge import Merge
from registry_gc.listing.ranges import Range, first_ranges
from registry_gc.listing.repositories import (
    RepositoryBatch,
    name_repositories,
)
from registry_gc.listing.tag_memory import TagMemory
from registry_gc.listing.units import cut_repositories, still_to_list
from registry_gc.listing.unlisted_tags import with_unlisted

_LINKS_A_UNIT = 128
_TAGS_AT_ONCE = 1 << 15  # bounds what of their paths is in memory


def read_catalog(
    reader: Reader, engine: Engine, observer: Observer, memory: TagMemory | None = None
) -> Catalog:
    """List ``repositories/`` and read the links that need it.

    :param memory: what earlier runs have read of tags.
    :raises StorageError: a folder or a link could not be read; nobody may go on without it.
    """

    def listed(units: list[Range]) -> Iterator[RepositoryBatch]:
        return (cut.batch for cut in engine.run(cut_repositories, units, still_to_list))

    return _catalog(reader, engine, observer, memory, listed)


def name_catalog(
    reader: Reader, engine: Engine, observer: Observer, memory: TagMemory | None = None
) -> Catalog:
    """As :func:`read_catalog`, with the ages of no more layer links than the listing brings.

    Those of the others are ``UNASKED_AGE`` until :mod:`registry_gc.marking.link_ages` asks for
    them. A link of which nobody asks the age may be damaged or missing: its folder is there.
    """
    if not reader.capabilities.folders:
        return read_catalog(reader, engine, observer, memory)

    def listed(units: list[Range]) -> Iterator[RepositoryBatch]:
        return engine.run(name_repositories, [unit.prefixes for unit in units])

    return _catalog(reader, engine, observer, memory, listed)


def _catalog(
    reader: Reader,
    engine: Engine,
    observer: Observer,
    memory: TagMemory | None,
    listed: Callable[[list[Range]], Iterator[RepositoryBatch]],
) -> Catalog:
    observer.phase("listing repositories", None, "repositories")
    merge = Merge()
    units, strays = first_ranges(reader, REPOSITORIES, engine.workers)
    merge.add_strays(strays, reader.capabilities.folders)
    for batch in listed(units):
        merge.add(batch)
        observer.advance(len(batch.repositories))
    observer.finish()
    catalog, odd = merge.catalog()
    if not reader.capabilities.folders:
        # A folder is what it says; the pages of an object store may lag behind.
        catalog.tags = with_unlisted(
            engine, catalog.repositories, catalog.tags, catalog.tag_index, observer
        )
    _read_tags(engine, catalog, observer, memory)
    catalog.tags.forget_stamps()
    learn_links(engine, catalog, odd)
    _read_upload_starts(engine, catalog)
    return catalog


def _read_all(
    engine: Engine, paths: list[str], observer: Observer | None = None
) -> dict[str, tuple[str | None, str]]:
    units = [tuple(paths[at : at + _LINKS_A_UNIT]) for at in range(0, len(paths), _LINKS_A_UNIT)]
    contents: dict[str, tuple[str | None, str]] = {}
    for batch in engine.run(read_links, units):
        contents.update((path, (digest, reason)) for path, digest, reason in batch)
        if observer is not None:
            observer.advance(len(batch))
    return contents


def _read_tags(
    engine: Engine, catalog: Catalog, observer: Observer, memory: TagMemory | None
) -> None:
    """Learn the targets of the tags that the listing did not tell."""
    tags = catalog.tags
    unknown = np.flatnonzero(~tags.known)
    if memory is not None and len(unknown):
        memory.recall(tags, unknown, catalog.names)
        unknown = np.flatnonzero(~tags.known)
    if not len(unknown):
        return
    observer.phase("reading tags", len(unknown), "tags")
    for start in range(0, len(unknown), _TAGS_AT_ONCE):
        rows = unknown[start : start + _TAGS_AT_ONCE].tolist()
        paths = [tags.path(row) for row in rows]
        contents = _read_all(engine, paths, observer)
        # The others of them have been read by now; a store that was behind may have caught up.
        contents |= _read_all(engine, [path for path in paths if path not in contents])
        for row, path in zip(rows, paths, strict=True):
            # A tag that was listed and cannot be found now was deleted, or is being written
            # anew: nobody knows where to, so it counts as one that holds no digest.
            target, reason = contents.get(path, (None, VANISHED))
            if target is None:
                catalog.damaged.append(Damage(path, reason))
            else:
                tags.learn(row, catalog.names.key(target))
        if memory is not None:
            memory.remember(tags, rows, paths, catalog.names)
    observer.finish()


def learn_links(engine: Engine, catalog: Catalog, odd: list[OddLink]) -> None:
    """Learn aliases from links of another algorithm, and which links are damaged.

    :raises StorageError: one is not as long as it was listed to be.
    """
    units = [tuple(odd[at : at + _LINKS_A_UNIT]) for at in range(0, len(odd), _LINKS_A_UNIT)]
    contents: dict[str, tuple[str | None, str]] = {}
    for batch in engine.run(read_odd_links, units):
        contents.update((path, (digest, reason)) for path, digest, reason in batch)
    for link in sorted(odd, key=lambda link: link.path):
        if link.path not in contents:
            continue
        target, reason = contents[link.path]
        if target is None:
            catalog.damaged.append(Damage(link.path, reason))
        elif target != link.named:
            named = catalog.names.key(link.named)
            catalog.aliases.setdefault(named, set()).add(catalog.names.key(target))
            catalog.alias_links.add(link.path)
            if link.named.startswith("sha256:"):
                catalog.damaged.append(Damage(link.path, f"holds {target}"))


def _read_upload_starts(engine: Engine, catalog: Catalog) -> None:
    """Learn when each upload began, for those that still say so."""
    starts = {
        path: upload
        for upload in catalog.uploads
        for path in upload.files
        if path.endswith(f"/_uploads/{upload.uuid}/startedat")
    }
    paths = sorted(starts)
    units: Iterable[tuple[str, ...]] = [
        tuple(paths[at : at + _LINKS_A_UNIT]) for at in range(0, len(paths), _LINKS_A_UNIT)
    ]
    for batch in engine.run(read_texts, units):
        for path, text in batch:
            starts[path].started_at = text


def read_texts(reader: Reader, paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Read small text files; those that have vanished are left out."""
    found: list[tuple[str, str]] = []
    for path in paths:
        try:
            found.append((path, reader.read(path, limit=4096).decode("utf-8", "replace").strip()))
        except (NotFound, TooLarge, InvalidPath):
            # A read-only registry still purges uploads; and what is no time, or lies under a key
            # that is no path, says nothing.
            continue
    return found
