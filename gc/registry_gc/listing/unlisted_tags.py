"""Tags that a listing has left out: their history is listed, their ``current/link`` is not.

A registry never leaves a tag so: it writes the entry of the history first, then ``current/link``,
and deletes the folder of a tag as a whole. What stands so is a delete that was broken off, a push
under way, or a listing that lags behind. By the last two a tag would be taken for gone, and its
image with it, so each is asked for: one request, which hardly any registry needs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from registry_drivers.base import Reader
from registry_drivers.errors import InvalidPath, NotFound
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import tag_current
from registry_gc.listing.links import Links
from registry_gc.listing.tags import NO_STAMP, TagColumns, Tags

_PATHS_A_UNIT = 128
_FOLDERS_AT_ONCE = 1 << 15  # bounds what of their paths is in memory
_SHOWN = 3


class _Found(NamedTuple):
    folder: int
    modified: float
    path: str


def with_unlisted(
    engine: Engine, repositories: list[str], tags: Tags, index: Links, observer: Observer
) -> Tags:
    """*tags*, with those that have entries in *index* and are there, though nobody listed them.

    Nobody knows yet what these point to.

    :raises StorageError: one could not be asked for; nobody may take it for gone.
    """
    listed = np.zeros(len(tags.folders), dtype=np.bool_)
    listed[tags.folder] = True
    folders = np.unique(index.owner)
    folders = folders[~listed[folders]]
    if not len(folders):
        return tags
    observer.phase("looking for tags that are not listed", len(folders), "tags")
    found: list[_Found] = []
    for start in range(0, len(folders), _FOLDERS_AT_ONCE):
        some: list[int] = folders[start : start + _FOLDERS_AT_ONCE].tolist()
        found += _look(engine, repositories, tags, some, observer)
    observer.finish()
    if not found:
        return tags
    shown = "; ".join(sorted(tag.path for tag in found)[:_SHOWN])
    observer.notice(
        f"{len(found)} tags were not listed, and are there: {shown}; what this storage lists is "
        "behind what it holds, or somebody is writing"
    )
    return tags.with_more(TagColumns.of([(it.folder, it.modified, None, NO_STAMP) for it in found]))


def _look(
    engine: Engine, repositories: list[str], tags: Tags, folders: list[int], observer: Observer
) -> list[_Found]:
    places: dict[str, int] = {}
    for folder in folders:
        owner, name = tags.folders[folder]
        places[tag_current(repositories[owner], name)] = folder
    paths = list(places)
    units = [tuple(paths[at : at + _PATHS_A_UNIT]) for at in range(0, len(paths), _PATHS_A_UNIT)]
    found: list[_Found] = []
    for answers in engine.run(look_for, units):
        found += [_Found(places[path], age, path) for path, age in answers if age is not None]
        observer.advance(len(answers))
    return found


def look_for(reader: Reader, paths: tuple[str, ...]) -> list[tuple[str, float | None]]:
    """Since when each of *paths* is there; None where it is not."""
    return [(path, _age(reader, path)) for path in paths]


def _age(reader: Reader, path: str) -> float | None:
    try:
        return reader.stat(path).modified
    except (NotFound, InvalidPath):
        # Gone; or a key that is no path, under which no registry has a tag.
        return None
