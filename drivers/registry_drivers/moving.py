"""Many objects to other paths of the same storage, each confirmed by itself.

On a file system a move is a rename. An object store has none: there the copies of a batch are made
side by side, each is looked at, and only then the originals go, in one request. Whoever dies in
between leaves both, never neither.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, runtime_checkable

from registry_drivers.base import Deletion, Outcome, Storage
from registry_drivers.errors import NotFound, Replaced, StorageError, Unavailable
from registry_drivers.withdrawal import asked_as_here, is_withdrawn

Move = tuple[str, str]
"""From where to where."""

_COPIES_A_BATCH = 128
"""Between two looks at whether to go on; as many deletes fit into one request everywhere but GCS,
which takes 100."""


@runtime_checkable
class Copier(Protocol):
    """A storage that copies by itself, without the bytes coming here."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object, replacing what is there; returns when the copy is known to be whole.

        :raises NotFound: there is no *source*.
        """


class Mover:
    """Moves many objects of one storage; safe to call from several threads.

    Shares one pool of threads among all callers, so that they do not ask more at once than the
    storage likes.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._copier = storage if isinstance(storage, Copier) else None
        self._pool: ThreadPoolExecutor | None = None
        self._guard = threading.Lock()

    def move(self, moves: Iterable[Move]) -> Iterator[Outcome]:
        """Move objects, replacing what is there; one outcome for each, named by its source.

        Lazy, as :meth:`~registry_drivers.base.Deleter.delete` is. ``MOVED`` when it is known to be
        whole at its new path and gone from the old one; where the copy is whole and the original
        cannot be deleted, it fails.

        :raises Unavailable: the storage does not answer; what was moved before has been told.
        :raises Replaced: it is not the storage that it was; as before.
        """
        remaining = iter(moves)
        if self._copier is None:
            for source, target in remaining:
                yield self._rename(source, target)
            return
        while batch := list(islice(remaining, _COPIES_A_BATCH)):
            yield from self._copy_and_delete(self._copier, batch)

    def close(self) -> None:
        """End the threads."""
        with self._guard:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def _rename(self, source: str, target: str) -> Outcome:
        try:
            self._storage.move(source, target)
        except NotFound:
            return Outcome(source, Deletion.GONE_ALREADY)
        except (Unavailable, Replaced):
            # Said of the storage, not of this object: the others would only fail after it.
            raise
        except StorageError as error:
            return Outcome(source, Deletion.FAILED, error.message)
        return Outcome(source, Deletion.MOVED)

    def _threads(self) -> ThreadPoolExecutor:
        with self._guard:
            if self._pool is None:
                workers = self._storage.capabilities.workers
                self._pool = ThreadPoolExecutor(workers, thread_name_prefix="registry-move")
            return self._pool

    def _copy_and_delete(self, copier: Copier, batch: Sequence[Move]) -> Iterator[Outcome]:
        def copy(move: Move) -> StorageError | None:
            try:
                copier.copy(*move)
            except StorageError as error:
                return error
            return None

        down: Unavailable | None = None
        copied: dict[str, str] = {}
        done = self._threads().map(asked_as_here(copy), batch)
        for (source, target), error in zip(batch, done, strict=True):
            if error is None:
                copied[source] = target
            elif isinstance(error, NotFound):
                yield Outcome(source, Deletion.GONE_ALREADY)
            elif isinstance(error, Unavailable):
                down = down or error
            else:
                yield Outcome(source, Deletion.FAILED, error.message)
        if copied and is_withdrawn():
            # Copies may take minutes, and what was allowed when they began may be no more.
            for source, target in copied.items():
                reason = f"was copied to {target} but not deleted: that is not allowed any more"
                yield Outcome(source, Deletion.FAILED, reason)
            copied = {}
        for outcome in self._storage.delete(list(copied)):
            if outcome.result is Deletion.FAILED:
                reason = f"was copied to {copied[outcome.path]} but not deleted: {outcome.error}"
                yield Outcome(outcome.path, Deletion.FAILED, reason)
            else:
                yield Outcome(outcome.path, Deletion.MOVED)
        if down is not None:
            raise down
