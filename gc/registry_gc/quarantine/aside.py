"""What runs have set aside instead of deleting it: where it lies, and who sets it aside.

::

    docker/registry/registry-gc/quarantine/<run>/
        run.json             how long it is to wait, and since when
        <original path>      what was moved here: a rename, or a copy within the store
        deleted/<id>         paths that a delete marker hides, as a JSON list: a bucket that keeps
                             versions keeps them by itself, at no further cost. What is back is
                             taken out of it again

That is all that a restore needs; the run file may be lost. A quarantine frees no space.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from registry_drivers.base import Deletion, Outcome, Page, Reader, Storage
from registry_drivers.errors import NotFound, StorageError
from registry_drivers.paths import is_temporary
from registry_drivers.versions import Undeleter
from registry_gc.layout import OWN, REPOSITORIES, V2

QUARANTINE = OWN + "quarantine/"
_NOTE = "run.json"
_LISTS = "deleted/"
_NOTE_LIMIT = 64 << 10
_BATCH = 1000
_NOTED_SECONDS = 60.0
"""How far the time in ``run.json`` may lie behind the last move, beside the time of one batch."""


class _Note(msgspec.Struct):
    """``run.json``; times in seconds since the epoch, by the storage's clock.

    ``plan``: the run that made the plan, by which `registry-gc runs` knows all who carry it out.
    """

    run: str
    began: float
    moved: float
    seconds: float
    plan: str = ""
    schema: int = 1


class Aside(msgspec.Struct, frozen=True):
    """What one run has set aside.

    ``plan``: the run whose plan it carried out, itself or another; empty where nobody knows.
    ``moved``: when it last did, by the storage's clock; ``seconds``: how long it is to wait. Both
    are None where ``run.json`` is gone, or says nothing.
    """

    run: str
    moved: float | None = None
    seconds: float | None = None
    plan: str = ""

    @property
    def ids(self) -> tuple[str, ...]:
        """What it may be called by: its own run, and the one whose plan that carried out."""
        return (self.run, self.plan) if self.plan else (self.run,)

    @property
    def home(self) -> str:
        """The folder, with ``/`` at its end."""
        return f"{QUARANTINE}{self.run}/"

    def place(self, path: str) -> str:
        """Where what was at *path* lies now."""
        return self.home + path

    def until(self) -> float | None:
        """When it has waited long enough; None where nobody knows."""
        if self.moved is None or self.seconds is None:
            return None
        return self.moved + self.seconds


class Kept(NamedTuple):
    """One thing in quarantine, by its original path. ``marked``: a delete marker hides it there.

    ``size`` in bytes, 0 where it is marked; ``modified`` as the listing has it.
    """

    path: str
    aside: Aside
    marked: bool
    size: int = 0
    modified: float = 0.0


def anything_waits(reader: Reader) -> bool:
    """Whether some run has a quarantine; one listing, and no look into any."""
    return bool(reader.children(QUARANTINE).folders)


def asides(reader: Reader) -> list[Aside]:
    """Every run's quarantine, the youngest first; one listing where there is none."""
    found = [read_aside(reader, run) for run in reader.children(QUARANTINE).folders]
    if not reader.capabilities.folders:
        # Some gateways list a folder in which nothing is left.
        found = [aside for aside in found if aside.moved is not None or _holds(reader, aside)]
    return sorted(found, key=lambda aside: (-(aside.moved or 0.0), aside.run))


def _holds(reader: Reader, aside: Aside) -> bool:
    return any(len(page) for page in reader.list(aside.home))


def read_aside(reader: Reader, run: str) -> Aside:
    """What ``run.json`` of *run* says.

    :raises StorageError: it could not be read, which is not that it is missing.
    """
    aside = Aside(run)
    try:
        data = reader.read(f"{aside.home}{_NOTE}", limit=_NOTE_LIMIT)
        note = msgspec.json.decode(data, type=_Note)
    except (NotFound, msgspec.DecodeError):
        return aside
    if not (0 <= note.moved < math.inf and 0 <= note.seconds < math.inf):
        # Nobody has written that: it would be due at once, or never.
        return aside
    return replace(aside, moved=note.moved, seconds=note.seconds, plan=note.plan)


def contents(reader: Reader, aside: Aside, below: str = V2) -> Iterator[list[Kept]]:
    """What one run has set aside of what was *below* a folder, some at a time.

    :raises StorageError: it could not be listed, or one of its lists not be read.
    """
    for page in reader.list(aside.home + below):
        found = _kept(aside, page)
        yield found
        if reader.capabilities.folders:
            # Where a folder has the file that is expected, its listing shows no other.
            for kept in found:
                for beside in _signatures(reader, kept):
                    yield _kept(aside, beside)
    for place in lists_of(reader, aside):
        yield [
            Kept(path, aside, True) for path in read_list(reader, place) if path.startswith(below)
        ]


def _kept(aside: Aside, page: Page) -> list[Kept]:
    cut = len(aside.home)
    rows = zip(page.paths, page.sizes.tolist(), page.modified.tolist(), strict=True)
    # A copy that was not made whole, by a run that was killed, is nothing that was set aside.
    return [
        Kept(path[cut:], aside, False, size, time)
        for path, size, time in rows
        if not is_temporary(path)
    ]


def _signatures(reader: Reader, kept: Kept) -> Iterator[Page]:
    """What lies beside a revision's link: the signatures of schema 1."""
    folder, _, name = kept.path.rpartition("/")
    if name != "link" or "/_manifests/revisions/" not in folder or "/signatures/" in folder:
        return
    place = kept.aside.place(folder) + "/"
    if "signatures" in reader.children(place).folders:
        yield from reader.list(f"{place}signatures/")


def lists_of(reader: Reader, aside: Aside) -> list[str]:
    """Where the lists lie of what delete markers of a run hide."""
    folder = aside.home + _LISTS
    return [folder + name for name in reader.children(folder).files]


def read_list(reader: Reader, path: str) -> list[str]:
    """The paths that one list names.

    :raises StorageError: it could not be read, or is none.
    """
    data = reader.read(path)
    try:
        return msgspec.json.decode(data, type=list[str])
    except msgspec.DecodeError as error:
        raise StorageError(
            f"is not the list that we wrote: {error}", path=path, driver=reader.driver
        ) from error


def notes_of(reader: Reader, aside: Aside) -> list[str]:
    """The files of a quarantine that are ours; ``run.json``, without which nobody knows, last."""
    lists = lists_of(reader, aside)
    return lists + [aside.home + _NOTE] * (_NOTE in reader.children(aside.home).files)


def hidden(reader: Reader) -> frozenset[str]:
    """The paths that only a delete marker hides, of all runs: their versions wait."""
    return hidden_by(reader, asides(reader))


def hidden_by(reader: Reader, runs: Iterable[Aside]) -> frozenset[str]:
    """The paths that delete markers of *runs* hide."""
    return frozenset(
        path
        for aside in runs
        for place in lists_of(reader, aside)
        for path in read_list(reader, place)
    )


class Quarantining:
    """A :class:`~registry_drivers.base.Deleter` that sets aside what it is told to delete.

    Uploads are deleted: there is no image in them. Safe to call from several threads.

    :param plan: the run whose plan *run* carries out, itself or another.
    :param seconds: how long it is to wait before a purge.
    :param versions: what tells of the storage's versions, if it has any. Where what is deleted is
        known to be kept for *seconds* anyway, nothing is copied.
    """

    def __init__(
        self,
        storage: Storage,
        run: str,
        plan: str,
        seconds: float,
        versions: object | None = None,
    ) -> None:
        from registry_drivers.moving import Mover

        self._storage = storage
        self._aside = Aside(run, plan=plan)
        self._seconds = seconds
        self._mover = Mover(storage)
        self._guard = threading.Lock()
        self._noted: _Note | None = None
        self.marks = isinstance(versions, Undeleter) and versions.keeps_for(seconds)
        """Whether delete markers do it."""

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.base.Deleter`; ``MOVED`` for what is set aside now."""
        remaining = iter(paths)
        size = 1 if self._storage.capabilities.folders else _BATCH
        while batch := list(islice(remaining, size)):
            self._note()
            uploads = [path for path in batch if is_upload(path)]
            if uploads:
                yield from self._storage.delete(uploads)
            kept = [path for path in batch if not is_upload(path)]
            if kept:
                yield from self._hide(kept) if self.marks else self._move(kept)

    def remove_folders(self, folders: Iterable[str], *, floor: str) -> int:
        """See :class:`~registry_drivers.base.Deleter`."""
        return self._storage.remove_folders(folders, floor=floor)

    def close(self) -> None:
        """End the threads, and write down when the last move was."""
        self._mover.close()
        if self._noted is not None:
            # The time that is there already is of this run, and old by a minute at most.
            with contextlib.suppress(StorageError):
                self._note(again=True)

    def _move(self, paths: Sequence[str]) -> Iterator[Outcome]:
        return self._mover.move((path, self._aside.place(path)) for path in paths)

    def _hide(self, paths: Sequence[str]) -> Iterator[Outcome]:
        # Before the delete: else a run that dies in between leaves versions that nobody knows of.
        name = f"{self._aside.home}{_LISTS}{uuid4().hex}"
        self._storage.write(name, msgspec.json.encode(paths))
        for outcome in self._storage.delete(paths):
            moved = outcome.result is Deletion.DELETED
            yield replace(outcome, result=Deletion.MOVED) if moved else outcome

    def _note(self, *, again: bool = False) -> None:
        """Write down since when all that is here waits, before anything more comes."""
        with self._guard:
            now = self._storage.now()
            noted = self._noted
            if noted is not None and not again and now - noted.moved < _NOTED_SECONDS:
                return
            began = now if noted is None else noted.began
            note = _Note(self._aside.run, began, now, self._seconds, self._aside.plan)
            try:
                self._storage.write(self._aside.home + _NOTE, msgspec.json.encode(note))
            except StorageError:
                if noted is None:
                    # A full disk may have had room for the folder, which would wait for ever.
                    with contextlib.suppress(StorageError):
                        clear_hollow(self._storage, [self._aside.run])
                raise
            self._noted = note


def clear_hollow(storage: Storage, runs: Iterable[str] | None = None) -> None:
    """Remove the folders of quarantines in which there is nothing; of all, or of some *runs*.

    :raises StorageError: one of them could not be removed.
    """
    if not storage.capabilities.folders:
        return
    names = storage.children(QUARANTINE).folders if runs is None else runs
    # Those that are not empty stay as they are.
    storage.remove_folders([f"{QUARANTINE}{name}" for name in names], floor=OWN)


def is_upload(path: str) -> bool:
    """Whether *path* is part of an upload."""
    # The name of a repository has no part that begins so; that of a tag may.
    below = path[len(REPOSITORIES) :].partition("/_")[2]
    return path.startswith(REPOSITORIES) and below.startswith("uploads/")
