"""Forgets quarantines in which nothing waits any more, and what of one does not.

What a delete marker hides is told by lists alone. Those still name what is back until they are
written anew: then its versions would wait for nothing, and the run be told of to its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from registry_drivers.base import Reader, Storage
from registry_drivers.paths import temporaries
from registry_drivers.versions import Undeleter
from registry_gc.layout import OWN, V2
from registry_gc.quarantine.aside import (
    Aside,
    Kept,
    asides,
    contents,
    lists_of,
    notes_of,
    read_list,
)
from registry_gc.quarantine.bring_back import Back, LookOrStop, Result


def is_there(result: Result) -> bool:
    """Whether it is in its place now, by us or already: who stopped half-way comes again."""
    return result.back in (Back.BACK, Back.THERE)


def forget_hidden(
    storage: Storage, versions: object | None, paths: Collection[str], look: LookOrStop
) -> None:
    """Take *paths*, which are in their places, out of all runs' lists of what markers hide.

    Of all: the object that is back is the same for each of them. Costs a read of each list, and a
    write of each that has one of them. Nobody else may be setting aside: a list is written before
    its paths are deleted. Safe to stop anywhere, as a list that names too much spares too much.

    :param versions: what tells of the storage's versions, if it has any.
    :param look: called before each list is changed.
    """
    if not paths or not isinstance(versions, Undeleter):
        return
    for aside in asides(storage):
        changed = False
        for place in lists_of(storage, aside):
            listed = read_list(storage, place)
            left = [path for path in listed if path not in paths]
            if len(left) == len(listed):
                continue
            look()
            changed = True
            if left:
                # In its place, at one blow: at no moment does a path that is hidden stand nowhere.
                storage.write(place, msgspec.json.encode(left))
                continue
            for _ in storage.delete([place]):
                pass
        if changed and is_empty(storage, aside):
            look()
            clear(storage, aside)


def clear(storage: Storage, aside: Aside) -> None:
    """Remove what tells of a quarantine in which nothing is left, and its empty folders.

    With it goes what a run that was killed had not made whole there.
    """
    if storage.capabilities.folders:
        _clear_unfinished(storage, aside)
    for note in notes_of(storage, aside):
        # One by one and in this order: what is left always tells since when it waits.
        for _ in storage.delete([note]):
            pass
    if storage.capabilities.folders:
        storage.remove_folders([aside.home.rstrip("/")], floor=OWN)


def _clear_unfinished(storage: Storage, aside: Aside) -> None:
    hollow: set[str] = set()
    unfinished: list[str] = []
    for page in storage.list(aside.home):
        hollow.update(page.hollow)
        unfinished += temporaries(page.paths)
    for outcome in storage.delete(unfinished):
        hollow.add(outcome.path.rpartition("/")[0])
    storage.remove_folders(sorted(hollow, reverse=True), floor=aside.home)


def clear_empty(storage: Storage, sources: Iterable[Kept]) -> None:
    """After a restore: remove what is empty now of the quarantines that *sources* came from."""
    runs = {kept.aside for kept in sources}
    if storage.capabilities.folders:
        folders = {kept.aside.place(kept.path).rpartition("/")[0] for kept in sources}
        storage.remove_folders(sorted(folders, reverse=True), floor=OWN)
    for aside in sorted(runs, key=lambda aside: aside.run):
        if is_empty(storage, aside):
            clear(storage, aside)


def is_empty(reader: Reader, aside: Aside) -> bool:
    """Whether nothing is left in a quarantine."""
    return not any(batch for batch in contents(reader, aside, V2))
