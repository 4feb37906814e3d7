"""Deletes what a run file says, and nothing else does.

The order makes it safe to stop after any single delete: tag-index entries and revision links of
dead manifests first, then layer links, then blobs, then uploads. A link never outlives its blob
but by our death in between, and then it is a link to something dead. Folders go last.

Sweeping fails open: what cannot be deleted is recorded and left.
"""

from __future__ import annotations

import contextlib
import enum
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from types import TracebackType

import msgspec
from msgspec.structs import replace

from registry_drivers.base import Capabilities, Deleter, Deletion, Outcome, Storage
from registry_drivers.errors import NotFound, Replaced, StorageError, Unavailable
from registry_drivers.versions import VersionDeleter
from registry_drivers.withdrawal import unless_withdrawn
from registry_gc.events import Observer
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.machine.threads import submit
from registry_gc.retained import multipart_of
from registry_gc.run_file import RunFile
from registry_gc.runs.rows import OBJECT_KINDS, RowKind, RowState
from registry_gc.runs.version_rows import add_versions_of_deleted, record_freed

_STATES = {
    Deletion.DELETED: RowState.DELETED,
    Deletion.GONE_ALREADY: RowState.GONE_ALREADY,
    Deletion.MOVED: RowState.QUARANTINED,
    Deletion.FAILED: RowState.FAILED,
}


class Stop(enum.Enum):
    """Why a sweep ended before its end."""

    INTERRUPTED = "interrupted"
    REFUSED = "refused"


_BATCHES_AT_ONCE = 8
# Seconds: a batch may take long, as when what goes is copied to another disk.
_LOOKS_EACH = 10.0
_FOLDERS_AT_ONCE = 1000
_LINKED = "a link to it could not be deleted: "
_SILENT = "the storage does not say what became of it"
_WAITS = "it waits in a quarantine"
_ROWS_AT_ONCE = 10_000

Look = Callable[[], Stop | None]
"""Asked before each batch whether deleting is still allowed, and before each further try of one."""

Settled = Callable[[RunFile, Sequence[tuple[int, Outcome]]], None]
"""Told, in the thread that sweeps, of rows whose outcome is known and in the run file."""


class Swept(msgspec.Struct):
    """What a sweep came to.

    ``error``: the first batch of which the storage could not tell what became of it.
    """

    stopped: Stop | None = None
    error: Exception | None = None


class Means(msgspec.Struct, frozen=True):
    """What a sweep is done with, and whom it asks and tells.

    ``look``: asked before each batch, in one that takes long every ten seconds, and before one
    that has failed in passing goes out again, by one thread at a time; anything but None stops.
    ``interrupted``: asked before each single delete, from any thread. ``versions``: deletes uploads
    in parts; None where there can be none. ``purge``: also delete all versions of what this run
    deletes. ``waiting``: the paths whose versions wait in a quarantine; asked once, and only where
    versions are to go. ``stored_as``: which other digests the links of a digest hold: what a link
    of such a name leads to stays with it, where it cannot be deleted. ``settled``: told of each
    batch once its outcome is durable.
    """

    deleter: Deleter
    capabilities: Capabilities
    look: Look
    interrupted: Callable[[], bool]
    observer: Observer
    versions: VersionDeleter | None = None
    purge: bool = False
    waiting: Callable[[], Collection[str]] = frozenset
    stored_as: Callable[[str], Iterable[str]] = lambda _: ()
    settled: Sequence[Settled] = ()


def sweep(run_file: RunFile, means: Means) -> Swept:
    """Delete every planned row, phase by phase; within one, batches may go side by side.

    :raises StorageError: the storage cannot tell what became of a batch.
    """
    return _Sweep(run_file, means).run()


class _Sweep:
    """One sweep under way."""

    def __init__(self, run_file: RunFile, means: Means) -> None:
        self._run_file = run_file
        self._means = means
        self._swept = Swept()
        self._looking = _Looking(means.look, means.interrupted)
        # On a filesystem the order of single deletes is kept; elsewhere a batch is one request, in
        # which there is no order anyway, and the wait for it is what takes the time.
        at_most = min(means.capabilities.workers, _BATCHES_AT_ONCE)
        self._workers = 1 if means.capabilities.folders else at_most

    def run(self) -> Swept:
        """All kinds in their order, until something speaks against the next."""
        swept = self._swept
        with ThreadPoolExecutor(self._workers, thread_name_prefix="registry-gc-sweep") as pool:
            for kind in RowKind:
                self._take_out(kind)
                planned = self._run_file.count(kind, RowState.PLANNED).rows
                if not planned:
                    continue
                self._means.observer.phase(f"deleting {kind.label}", planned, "objects")
                try:
                    self._delete_all(kind, pool)
                finally:
                    self._means.observer.finish()
                swept.stopped = swept.stopped or self._looking.seen()
                if swept.stopped is not None or swept.error is not None:
                    break
        if swept.error is not None and swept.stopped is None:
            raise swept.error
        return swept

    def _take_out(self, kind: RowKind) -> None:
        """Before a kind: what has become of the others decides which of its rows go."""
        means = self._means
        if kind is RowKind.VERSIONS:
            if means.purge:
                add_versions_of_deleted(self._run_file)
            _spare(self._run_file, means.waiting, means.observer)
        if kind is RowKind.BLOB and (
            staying := self._run_file.blobs_of_failed_links(means.stored_as)
        ):
            rows = [(number, path) for number, path, _ in staying]
            kept = [Outcome(path, Deletion.FAILED, _LINKED + why) for _, path, why in staying]
            self._record(_Batch(rows, kept, None))

    def _delete_all(self, kind: RowKind, pool: ThreadPoolExecutor) -> None:
        swept, looking = self._swept, self._looking
        send = _sender(kind, self._means.deleter, self._means.versions)
        with _UnderWay(self._record) as under_way:
            for rows in self._run_file.batches(kind, self._means.capabilities.delete_batch):
                swept.stopped = looking()
                if swept.stopped is not None or swept.error is not None:
                    break
                under_way.add(submit(pool, partial(_delete, rows, send, looking)))
                if len(under_way) >= self._workers:
                    under_way.record_first()

    def _record(self, batch: _Batch) -> None:
        # A path that the storage has listed twice has two rows, and each its outcome.
        numbers: dict[str, list[int]] = {}
        for number, path in reversed(batch.rows):
            numbers.setdefault(path, []).append(number)
        outcomes: list[tuple[int, Outcome]] = []
        for done in batch.outcomes:
            of_path = numbers[done.path]
            outcomes.append((of_path.pop() if of_path[1:] else of_path[0], done))
        states = [(number, _STATES[done.result], done.error) for number, done in outcomes]
        self._run_file.record(states)
        if freed := [(number, done.bytes) for number, done in outcomes if done.bytes]:
            record_freed(self._run_file, freed)
        for tell in self._means.settled:
            tell(self._run_file, outcomes)
        self._swept.error = self._swept.error or batch.error
        self._means.observer.advance(len(batch.outcomes))


def _spare(run_file: RunFile, waiting: Callable[[], Collection[str]], observer: Observer) -> None:
    """Take back the versions of what waits in a quarantine by now.

    Whoever made the plan may have seen none: it says what other runs have hidden since, or what
    an earlier one hid of a key that was pushed again and is deleted by this run.
    """
    if not run_file.count(RowKind.VERSIONS, RowState.PLANNED).rows or not (paths := waiting()):
        return
    spared = 0
    for rows in run_file.batches(RowKind.VERSIONS, _ROWS_AT_ONCE):
        found = [(number, RowState.TAKEN_BACK, _WAITS) for number, path in rows if path in paths]
        if found:
            run_file.record(found)
        spared += len(found)
    if spared:
        observer.notice(f"old versions of {spared} objects stay, as those wait in a quarantine")


class _Looking:
    """Asks from any thread whether to go on. Who has said no once is not asked again."""

    def __init__(self, look: Look, interrupted: Callable[[], bool]) -> None:
        self._look = look
        self.interrupted = interrupted
        self._turn = threading.Lock()
        self._stopped: Stop | None = None
        self._looked = time.monotonic()

    def __call__(self) -> Stop | None:
        with self._turn:
            if self._stopped is None:
                self._stopped = self._look()
                self._looked = time.monotonic()
        return self.seen()

    def ends_batch(self) -> bool:
        """Whether no further path of a batch may go out; looks where the last look is long past."""
        long_past = time.monotonic() - self._looked >= _LOOKS_EACH
        return (self() if long_past else self.seen()) is not None

    def seen(self) -> Stop | None:
        """As far as is known, without a look."""
        return self._stopped or (Stop.INTERRUPTED if self.interrupted() else None)

    def may_try_again(self) -> bool:
        """Whether a batch that has failed in passing may go out again."""
        try:
            return not self.interrupted() and self() is None
        except Exception:
            # Nobody can say so. The sweep looks for itself before it goes on, and tells why.
            return False


class _Batch(msgspec.Struct, frozen=True):
    """What became of one batch; rows without an outcome are as they were."""

    rows: list[tuple[int, str]]
    outcomes: list[Outcome]
    error: Exception | None


class _UnderWay:
    """Batches that have gone out, in their order. Whatever goes wrong, each is written down."""

    def __init__(self, record: Callable[[_Batch], None]) -> None:
        self._record = record
        self._batches: deque[Future[_Batch]] = deque()

    def __enter__(self) -> _UnderWay:
        return self

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Future[_Batch]) -> None:
        self._batches.append(batch)

    def record_first(self) -> None:
        """Wait for the first one and write it down."""
        self._record(self._batches.popleft().result())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do so with all of them; one that cannot be written down does not keep the others."""
        first: BaseException | None = None
        while self._batches:
            try:
                self.record_first()
            except BaseException as refusal:
                first = first or refusal
        if first is not None and error is None:
            raise first


_Send = Callable[[Iterable[str]], Iterator[Outcome]]


def _sender(kind: RowKind, deleter: Deleter, versions: VersionDeleter | None) -> _Send:
    """What deletes rows of a kind. Nothing that purges can touch a current object."""
    if kind in OBJECT_KINDS:
        return deleter.delete
    assert versions is not None
    if kind is RowKind.VERSIONS:
        return versions.delete_versions
    abort = versions.abort

    def send(paths: Iterable[str]) -> Iterator[Outcome]:
        for path in paths:
            for outcome in abort([multipart_of(path)]):
                yield replace(outcome, path=path)

    return send


def _delete(rows: list[tuple[int, str]], send: _Send, looking: _Looking) -> _Batch:
    unanswered: Counter[str] = Counter()

    def paths() -> Iterator[str]:
        for _, path in rows:
            if looking.ends_batch():
                return
            unanswered[path] += 1
            yield path

    outcomes: list[Outcome] = []
    try:
        with unless_withdrawn(looking.may_try_again):
            for outcome in send(paths()):
                outcomes.append(outcome)  # noqa: PERF402  # what came before an error must be kept
    except Exception as error:
        # Even of a bug: what is gone is gone, and has to be written down before it is told.
        return _Batch(rows, outcomes, error)
    unanswered.subtract(outcome.path for outcome in outcomes)
    # A row is never left as if nobody had tried.
    outcomes += [Outcome(path, Deletion.FAILED, _SILENT) for path in (+unanswered).elements()]
    return _Batch(rows, outcomes, None)


def tidy(
    deleter: Deleter,
    capabilities: Capabilities,
    folders: Iterable[str],
    *,
    keep_repositories: bool,
    ended: Callable[[], bool] = lambda: False,
) -> None:
    """Remove folders that have become empty; on object stores there are none.

    *folders* are taken a thousand at a time, as there may be as many as files were deleted; one
    may come before what is in it. *ended* is asked before each thousand; the others stay then.

    With *keep_repositories* the ``_manifests``, ``_layers`` and ``_uploads`` folders stay, so
    that the registry's catalogue goes on naming a repository that holds nothing.

    :raises StorageError: after all others were tried, for the first that could not be removed;
        at once where the storage does not answer.
    """
    if not capabilities.folders:
        return
    refusal: StorageError | None = None
    coming = iter(folders)
    while (some := set(islice(coming, _FOLDERS_AT_ONCE))) and not ended():
        for floor, below in _deepest_first(some, keep_repositories):
            try:
                deleter.remove_folders(below, floor=floor)
            except (Unavailable, Replaced):
                # It was tried again for long, and each of the others would take as long; or is
                # gone.
                raise
            except StorageError as error:
                refusal = refusal or error
    if refusal is not None:
        raise refusal


def _deepest_first(folders: set[str], keep_repositories: bool) -> Iterator[tuple[str, list[str]]]:
    """*folders* by where tidying stops. One that is emptied takes its parents with it."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        groups.setdefault(_floor(folder, keep_repositories), []).append(folder)
    for floor, below in sorted(groups.items()):
        inside = [folder for folder in below if folder.startswith(floor) and folder + "/" != floor]
        # A parent can only be empty after its children have gone.
        yield floor, sorted(inside, key=lambda folder: folder.count("/"), reverse=True)


def discard(storage: Storage, paths: Iterable[str], before: float) -> set[str]:
    """Delete what runs that were killed had not made whole; returns the folders it lay in.

    :param paths: files that are ours by their names.
    :param before: seconds since the epoch; whoever writes a younger one may be at it.
    """
    old = []
    for path in paths:
        with contextlib.suppress(NotFound):
            if storage.stat(path).modified < before:
                old.append(path)
    gone = (out.path for out in storage.delete(old) if out.result is Deletion.DELETED)
    return {path.rpartition("/")[0] for path in gone}


def _floor(folder: str, keep_repositories: bool) -> str:
    """The folder at which tidying stops: never ``blobs/<alg>`` or ``repositories`` itself."""
    if folder.startswith(BLOBS):
        return BLOBS + folder[len(BLOBS) :].partition("/")[0] + "/"
    if not keep_repositories:
        return REPOSITORIES
    name, mark, below = folder.partition("/_")
    return f"{name}{mark}{below.partition('/')[0]}/" if mark else folder + "/"
