"""The registry's memory of blobs (``storage.cache``), and how it forgets what is deleted.

A registry answers from this cache whether it has a blob. One that remembers a deleted blob tells
the next push that the layer is there already, and the image is lost. So what is deleted is taken
out of Redis too: after its deletion was confirmed, and before the registry can write again. The
run file says of each row when; what a run that died did not get to, the next one does.

To forget too much costs the registry one look at its storage; to forget too little loses images.

Keys (CNCF Distribution 2.8 and 3, ``registry/storage/cache/redis/redis.go``; GitLab's the same):
``blobs::<digest>``, a hash; ``repository::<name>::blobs``, a set of digests, layers and (3) also
manifests; ``repository::<name>::blobs::<digest>``, a hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from registry_drivers.base import Deletion, Outcome
from registry_gc.blob_cache.same_storage import same_storage
from registry_gc.blob_cache.sending import Command, Sending, Unreachable
from registry_gc.events import Observer
from registry_gc.guard import Finding, Verdict
from registry_gc.run_file import RunFile
from registry_gc.runs.cached_rows import CachedRows
from registry_gc.runs.database import RunFileError
from registry_gc.runs.rows import GONE, MAYBE_GONE, Cached, RowState

if TYPE_CHECKING:
    from registry_gc.blob_cache.journals import Journals
    from registry_gc.blob_cache.redis_config import RedisConfig

_BATCH = 1000  # rows, of at most four commands each, in one round trip


class Forgotten(msgspec.Struct, frozen=True):
    """What became of the cache, for the report.

    ``removed`` counts rows of the run file whose entries are gone; ``left`` those whose entries
    may still be there, ``earlier`` of them rows of earlier runs; ``run_file`` names them.
    ``restart``: only a restart of the registry makes it forget.
    """

    kind: str | None = None
    removed: int = 0
    left: int = 0
    earlier: int = 0
    restart: bool = False
    run_file: str = ""

    @property
    def warning(self) -> str:
        """What the operator has to know where entries are left."""
        return (
            f"{self.left} deleted blobs and links may still be in the registry's Redis, which"
            " answers pushes with them: before it takes writes, run again, or go on with"
            f" `registry-gc apply {self.run_file}`, or empty that Redis"
        )


class BlobCache(Protocol):
    """What a collection does about the registry's cache."""

    @property
    def lost(self) -> bool:
        """Whether a removal has failed since the last :meth:`check`."""

    def heed(self, interrupted: Callable[[], bool]) -> None:
        """Take no time once *interrupted* says that somebody has asked for an end."""

    def check(self) -> Finding | None:
        """Why nothing may be deleted now; None where something may."""

    def catch_up(self, driver: str, root: str) -> Sequence[str]:
        """Forget what earlier runs on that storage have deleted and did not get to.

        Returns the run files of which something may be left.
        """

    def begin(self, run_file: RunFile) -> Finding | None:
        """Called before the first delete, with the lock held; a finding stops the run."""

    def settled(self, run_file: RunFile, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Forget what was deleted; see :data:`registry_gc.sweep.Settled`."""

    def finish(self, run_file: RunFile, *, unsettled: bool) -> None:
        """Called after the last delete, however that came about, with the lock held.

        :param unsettled: rows may have been sent of which nobody knows, or has written down, what
            became of them.
        """

    def state(self, storage: tuple[str, str] | None = None) -> Forgotten:
        """What it came to; with what earlier runs on *storage*, its driver and root, have left."""

    def close(self) -> None:
        """Let go of what was opened."""


def with_cache(check: Callable[[], Verdict], cache: BlobCache) -> Callable[[], Verdict]:
    """A guard that also refuses while *cache* cannot be made to forget."""

    def both() -> Verdict:
        verdict = check()
        stale = cache.check()
        return verdict if stale is None else Verdict("refused", (*verdict.findings, stale))

    return both


class NoCache:
    """A registry that remembers nothing, or (``inmemory``) nothing that can be reached."""

    lost = False

    def __init__(self, kind: str | None = None) -> None:
        self._kind = kind
        self._deleted = False

    def heed(self, interrupted: Callable[[], bool]) -> None:
        """Nothing takes time."""

    def check(self) -> Finding | None:
        """Nothing speaks against it."""
        return None

    def catch_up(self, driver: str, root: str) -> Sequence[str]:
        """Nothing to do."""
        return ()

    def begin(self, run_file: RunFile) -> Finding | None:
        """Nothing to do."""
        return None

    def settled(self, run_file: RunFile, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Remember whether there is anything to forget."""
        self._deleted |= any(outcome.result is not Deletion.FAILED for _, outcome in outcomes)

    def finish(self, run_file: RunFile, *, unsettled: bool) -> None:
        """Nothing to do."""

    def state(self, storage: tuple[str, str] | None = None) -> Forgotten:
        """A restart is needed where a process remembers what was deleted."""
        return Forgotten(self._kind, restart=self._kind is not None and self._deleted)

    def close(self) -> None:
        """Nothing to do."""


class RedisCache:
    """The Redis that the registry shares; None where its config names none.

    :param journals: where the files of other runs are, of which some entries may not have been
        removed, and where this run's file is noted for later ones.
    """

    def __init__(
        self,
        config: RedisConfig | None,
        observer: Observer,
        journals: Journals,
    ) -> None:
        self._config = config
        self._observer = observer
        self._journals = journals
        self._sending = Sending(config)
        self._behind = True
        self._removed = 0
        self._left = 0
        self._run_file = ""

    @property
    def lost(self) -> bool:
        """Whether a removal has failed since the last :meth:`check`."""
        return self._sending.lost

    def heed(self, interrupted: Callable[[], bool]) -> None:
        """Try nothing twice once *interrupted* says that somebody has asked for an end."""
        self._sending.interrupted = interrupted

    def check(self) -> Finding | None:
        """Whether Redis answers, and lets us remove entries.

        Costs one round trip, with the very commands that are needed, on keys that are not there.
        """
        if self._config is None:
            return Finding(
                "redis-unreachable",
                "storage.cache.blobdescriptor is redis, but no redis.addr or redis.addrs says"
                " where it is: add what the registry uses",
            )
        try:
            self._sending.send(
                [("DEL", "blobs::registry-gc"), *_link_commands("registry-gc", "none")]
            )
        except Unreachable as error:
            return Finding(
                "redis-unreachable",
                f"the registry's Redis at {self._config.name} cannot be cleaned of what is"
                f" deleted: {error}",
            )
        self._sending.lost = False
        return None

    def begin(self, run_file: RunFile) -> Finding | None:
        """Do what earlier runs did not get to, and from now on remember that this one may not."""
        meta = run_file.meta()
        if self._behind:
            self.catch_up(meta["driver"], meta["root"])
        found = self.check()
        if found is None:
            run_file.record_meta(blob_cache="redis")
            # Only now: the file may have moved to be written to. Should it move later on, what it
            # leaves behind names all that this run means to delete.
            self._journals.begun(run_file.path, meta["driver"], meta["root"])
        return found

    def catch_up(self, driver: str, root: str) -> Sequence[str]:
        """Remove what other runs on that storage have left; what fails is left for the next one."""
        self._behind = False
        self._take_up()
        paths = self._journals.paths(driver, root)
        return [path for path in paths if not self._finish_earlier(path, (driver, root))]

    def settled(self, run_file: RunFile, outcomes: Sequence[tuple[int, Outcome]]) -> None:
        """Remove the entries of what was deleted.

        What fails is left for :meth:`check`, which the sweep asks before it goes on, and
        :meth:`finish`: an error here must not keep outcomes from being written down.
        """
        if self.lost:
            return
        gone = [number for number, outcome in outcomes if outcome.result is not Deletion.FAILED]
        try:
            self._remove(run_file, CachedRows(run_file).of(gone))
        except Unreachable:
            self._sending.lost = True

    def finish(self, run_file: RunFile, *, unsettled: bool) -> None:
        """Remove what is left, all of it once more, and what may be gone too.

        A registry that was asked for a blob just before its deletion may have written its entry
        just after the removal. What is still planned counts only if *unsettled*: after a sweep
        that was only stopped none of it was sent, and there may be millions.
        """
        self._take_up()
        cached = CachedRows(run_file)
        doubtful = MAYBE_GONE if unsettled else (RowState.FAILED,)
        try:
            for batch in cached.batches(_BATCH, *GONE):
                if self.lost:
                    break
                self._send([row for row, _ in batch])
                cached.record_uncached([row.number for row, known in batch if not known])
            self._forget_doubtful(cached, *doubtful)
        except Unreachable:
            self._sending.lost = True
        self._removed, self._left = cached.count(*GONE)
        if self.lost:
            self._left += cached.count(*doubtful)[1]
        self._run_file = run_file.path
        if not self._left:
            run_file.record_meta(blob_cache="forgotten")
            self._journals.done(run_file.path)

    def state(self, storage: tuple[str, str] | None = None) -> Forgotten:
        """How many entries are gone, and how many may be left."""
        earlier, path = self._left_earlier(*storage) if storage is not None else (0, "")
        left = self._left + earlier
        return Forgotten(
            "redis", self._removed, left, earlier, run_file=self._run_file if self._left else path
        )

    def close(self) -> None:
        """Close the connections."""
        self._sending.close()

    def _take_up(self) -> None:
        """Look with one short try whether a Redis that was lost is there again."""
        if self.lost:
            self.check()

    def _left_earlier(self, driver: str, root: str) -> tuple[int, str]:
        """How much other runs on that storage have left, and a run file that names some of it."""
        total, name = 0, ""
        for path in self._journals.paths(driver, root):
            try:
                run_file = RunFile.existing(path)
                try:
                    left = _left(run_file, driver, root)
                finally:
                    run_file.close()
            except RunFileError:
                continue  # who catches up says so
            if left and path != self._run_file:
                total, name = total + left, path
        return total, name

    def _finish_earlier(self, path: str, storage: tuple[str, str]) -> bool:
        """Remove the entries of all that another run has, or may have, deleted.

        Returns whether none of them is left, or the run was about another storage.
        """
        try:
            run_file = RunFile.existing(path)
        except RunFileError as error:
            self._observer.notice(f"whether its entries are in Redis is not known: {error}")
            for note in self._journals.notes_of(path):
                self._observer.notice(
                    f"{note} says that this is the file of a run which did not remove all of its"
                    " entries: empty that Redis before the registry takes writes, then remove"
                    f" {note}"
                )
            return False
        try:
            meta = run_file.meta()
            if not same_storage((meta.get("driver"), meta.get("root")), storage):
                return True
            if meta.get("blob_cache") != "redis":
                self._journals.done(path)
                return True
            if self.lost:
                self._behind = True
                return False
            cached = CachedRows(run_file)
            # One that was killed may have deleted what it had not written down yet.
            self._forget_doubtful(cached, *MAYBE_GONE)
            rows = 0
            for batch in cached.batches(_BATCH, *GONE):
                left = [row for row, known in batch if not known]
                self._remove(run_file, left)
                rows += len(left)
            run_file.record_meta(blob_cache="forgotten")
            self._journals.done(path)
            if rows:
                self._observer.notice(f"removed from Redis what the run of {path} had left: {rows}")
            return True
        except Unreachable:
            self._sending.lost = self._behind = True
            return False  # the check that follows says so
        except RunFileError as error:
            self._observer.notice(f"entries of an earlier run may be left in Redis: {error}")
            return False
        finally:
            run_file.close()

    def _remove(self, run_file: RunFile, rows: Sequence[Cached]) -> None:
        if not rows:
            return
        self._send(rows)
        CachedRows(run_file).record_uncached([row.number for row in rows])

    def _forget_doubtful(self, cached: CachedRows, *states: RowState) -> None:
        """Remove the entries of rows that may be gone, as long as Redis is there.

        That is not written down: who goes on with that run has to do it again.
        """
        if self.lost:
            return
        for batch in cached.batches(_BATCH, *states):
            self._send([row for row, _ in batch])

    def _send(self, rows: Sequence[Cached]) -> None:
        self._sending.send([command for row in rows for command in _commands(row)])


def _left(run_file: RunFile, driver: str, root: str) -> int:
    """How many rows of an earlier run Redis may remember."""
    meta = run_file.meta()
    if meta.get("blob_cache") != "redis":
        return 0
    if not same_storage((meta.get("driver"), meta.get("root")), (driver, root)):
        return 0
    # One that was killed may have deleted what it had not written down.
    return CachedRows(run_file).count(*GONE, *MAYBE_GONE)[1]


def _commands(row: Cached) -> Iterator[Command]:
    """What makes the registry forget *row*."""
    if row.repository is None:
        yield ("DEL", f"blobs::{row.digest}")
        return
    yield from _link_commands(row.repository, row.digest)
    if not row.digest.startswith("sha256:"):
        # A link of another name than the blob has; its entry says which blob it stands for, and
        # the blob's own row knows nothing of it.
        yield ("DEL", f"blobs::{row.digest}")


def _link_commands(repository: str, digest: str) -> Iterator[Command]:
    # A name that is no UTF-8 is none of the registry's, but must not end a run either.
    members = f"repository::{repository}::blobs".encode("utf-8", "surrogateescape")
    yield ("SREM", members, digest)
    yield ("DEL", members + f"::{digest}".encode())
