"""Deletes what a run file says, and nothing else does.

The order makes it safe to stop after any single delete: tag-index entries and revision links of
dead manifests first, then layer links, then blobs, then uploads. A link never outlives its blob
but by our death in between, and then it is a link to something dead. Folders go last.

Sweeping fails open: what cannot be deleted is recorded and left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from registry_drivers.base import Capabilities, Deleter, Deletion, Outcome
from registry_gc.events import Observer
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.run_file import Kind, RowState, RunFile

_STATES = {
    Deletion.DELETED: RowState.DELETED,
    Deletion.GONE_ALREADY: RowState.GONE_ALREADY,
    Deletion.FAILED: RowState.FAILED,
}


class Stop(enum.Enum):
    """Why a sweep ended before its end."""

    INTERRUPTED = "interrupted"
    REFUSED = "refused"


Look = Callable[[], Stop | None]
"""Asked before each batch whether deleting is still allowed."""


@dataclass(slots=True)
class Swept:
    """What a sweep came to. ``folders``: parents of what was deleted, for tidying."""

    stopped: Stop | None = None
    folders: set[str] = field(default_factory=set)


def sweep(
    run_file: RunFile,
    deleter: Deleter,
    capabilities: Capabilities,
    look: Look,
    interrupted: Callable[[], bool],
    observer: Observer,
) -> Swept:
    """Delete every planned row, phase by phase.

    :param look: asked before each batch; anything but None stops.
    :param interrupted: asked before each single delete.
    :raises StorageError: the storage cannot tell what became of a batch.
    """
    swept = Swept()
    for kind in Kind:
        planned = run_file.count(kind, RowState.PLANNED).rows
        if not planned:
            continue
        observer.phase(f"deleting {kind.label}s", planned, "objects")
        for batch in run_file.batches(kind, capabilities.delete_batch):
            swept.stopped = look()
            if swept.stopped is None:
                _delete(batch, run_file, deleter, interrupted, swept)
                observer.advance(len(batch))
            if swept.stopped is not None:
                observer.finish()
                return swept
        observer.finish()
    return swept


def _delete(
    batch: list[tuple[int, str]],
    run_file: RunFile,
    deleter: Deleter,
    interrupted: Callable[[], bool],
    swept: Swept,
) -> None:
    numbers = {path: number for number, path in batch}

    def paths() -> Iterator[str]:
        for _, path in batch:
            if interrupted():
                swept.stopped = Stop.INTERRUPTED
                return
            yield path

    outcomes: list[Outcome] = []
    try:
        outcomes.extend(deleter.delete(paths()))
    finally:
        run_file.record(
            [(numbers[done.path], _STATES[done.result], done.error) for done in outcomes]
        )
    swept.folders.update(
        done.path.rpartition("/")[0] for done in outcomes if done.result is not Deletion.FAILED
    )


def tidy(
    deleter: Deleter,
    capabilities: Capabilities,
    folders: set[str],
    *,
    keep_repositories: bool,
) -> None:
    """Remove folders that have become empty; on object stores there are none.

    With *keep_repositories* the ``_manifests``, ``_layers`` and ``_uploads`` folders stay, so
    that the registry's catalogue goes on naming a repository that holds nothing.
    """
    if not capabilities.folders:
        return
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(_floor(folder, keep_repositories), []).append(folder)
    for floor, below in sorted(groups.items()):
        inside = [folder for folder in below if folder.startswith(floor) and folder + "/" != floor]
        # The deepest first: a parent can only be empty after its children have gone.
        inside.sort(key=lambda folder: folder.count("/"), reverse=True)
        deleter.remove_folders(inside, floor=floor)


def _floor(folder: str, keep_repositories: bool) -> str:
    """The folder at which tidying stops: never ``blobs/<alg>`` or ``repositories`` itself."""
    if folder.startswith(BLOBS):
        return BLOBS + folder[len(BLOBS) :].partition("/")[0] + "/"
    if not keep_repositories:
        return REPOSITORIES
    name, mark, below = folder.partition("/_")
    return f"{name}{mark}{below.partition('/')[0]}/" if mark else folder + "/"
