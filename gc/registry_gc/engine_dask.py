"""Work units on an existing Dask cluster: listing, reading, and looking which blobs are dead.

Nothing of our own schedules or tries again: a unit whose worker dies is run by another, and its
result counts once. What decides and deletes (run file, cache, lock, sweep) stays in this process.
Each worker opens the storage by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pickle
import platform
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distributed import Client, KilledWorker, WorkerPlugin, as_completed
from distributed.client import FutureCancelledError

from registry_drivers.base import Reader
from registry_gc import __version__
from registry_gc.engine import NO_MORE, Result, Unit, Work, WorkerLost, drain
from registry_gc.layout import BLOBS, REPOSITORIES
from registry_gc.manifests import RULES_VERSION

OpenReader = Callable[[], Reader]
"""Opens the storage anew; can be pickled, as ``functools.partial(open_storage, spec)`` can."""

_CONNECT_SECONDS = 15.0
_ATTEMPTS = 3
_local = threading.local()


class ClusterError(WorkerLost):
    """The cluster cannot be used, or is gone."""


class DaskEngine:
    """An :class:`~registry_gc.engine.Engine` whose workers are those of a cluster.

    :param address: of the scheduler, ``tcp://host:port`` or ``tls://…``.
    :param open_reader: how a worker opens the storage; each thread does so once.
    """

    far = True
    notice = ""

    def __init__(self, reader: Reader, address: str, open_reader: OpenReader) -> None:
        self._reader = reader
        self._address = address
        self._opening = Opening(pickle.dumps(open_reader))
        self._client: Any = None
        self.workers = 1

    def __enter__(self) -> DaskEngine:
        """Connect, and look whether all workers are what this process is.

        :raises ClusterError: no scheduler, no workers, other versions, another storage.
        """
        # One line of ours says it; distributed would add a page.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._client = Client(self._address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ClusterError(f"{self._address}: no Dask scheduler answers: {error}") from error
        try:
            self._look_at_versions()
            # Not with each unit: what a unit is made of is kept by the scheduler, and printed by a
            # worker that fails with it. New workers get it too.
            self._client.register_plugin(self._opening)
            self._look()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._client is not None:
            # A scheduler that is gone has forgotten it.
            with contextlib.suppress(Exception):
                self._client.unregister_worker_plugin(self._opening.name)
            self._client.close(timeout=5)
            self._client = None

    def _look_at_versions(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError as error:
            raise ClusterError(f"{self._address}: the Dask cluster has no workers") from error
        threads = self._client.nthreads()
        self.workers = max(1, sum(threads.values()))
        here = _versions()
        for worker, found in self._asked(_probe()).items():
            if found != here:
                raise ClusterError(
                    f"the Dask worker {worker} has {found}, and here is {here}: install the same "
                    "registry-garbage-collect[dask], with the same extras, on both"
                )

    def _look(self) -> None:
        for _ in range(_ATTEMPTS):
            # Pushes may go on during a dry run, so the look may have to be taken again.
            before = look(self._reader)
            found_there = self._asked(_look_from_worker, self._opening.name)
            if all(seen in (before, look(self._reader)) for seen in found_there.values()):
                return
        raise ClusterError(
            "Dask workers see another storage under this configuration than this process does; is "
            "its address the same everywhere?"
        )

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            answers: dict[str, Any] = self._client.run(function, *arguments)
        except Exception as error:
            # Whatever a worker cannot import or open is raised here, in its own words.
            raise ClusterError(f"{self._address}: a Dask worker is of no use: {error}") from error
        return answers

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        """See :class:`registry_gc.engine.Engine`."""
        shim = _shim()
        source = iter(units)
        extra: deque[Unit] = deque()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = as_completed(loop=self._client.loop)
        running: set[Any] = set()
        try:
            while True:
                while len(running) < 2 * self.workers + 2:
                    unit = next(drain(source, extra), NO_MORE)
                    if unit is NO_MORE:
                        break
                    task = pickle.dumps((self._opening.name, work, unit))
                    future = self._client.submit(shim, task, pure=False, key=_key(work))
                    running.add(future)
                    done.add(future)
                if not running:
                    return
                future = next(done)
                running.discard(future)
                result, requests = future.result()
                self._reader.requests.add(**requests)
                if follow is not None:
                    extra.extend(follow(result))
                yield result
        except KilledWorker as error:
            raise ClusterError(
                "several Dask workers were killed over the same unit, as the system does when "
                f"memory runs out: {error}"
            ) from error
        except (FutureCancelledError, TimeoutError) as error:
            raise ClusterError(f"{self._address}: the Dask scheduler is gone: {error}") from error
        finally:
            for future in running:
                future.cancel()


def _versions() -> dict[str, str]:
    import distributed
    import numpy

    return {
        "registry-garbage-collect": f"{__version__} (rules {RULES_VERSION})",
        "distributed": str(distributed.__version__),
        "numpy": numpy.__version__.partition(".")[0],
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def _probe() -> Callable[[], dict[str, str]]:
    """A function that workers without this package can be sent too: it goes by value."""

    def versions() -> dict[str, str]:
        try:
            from registry_gc import engine_dask
        except ImportError:
            return {"registry-garbage-collect": "not installed, or not with this engine"}
        return engine_dask._versions()

    return versions


def _shim() -> Callable[[bytes], tuple[Any, dict[str, int]]]:
    """What the scheduler is sent: by value, and the rest as bytes, so that it needs no package."""

    def run_unit(task: bytes) -> tuple[Any, dict[str, int]]:
        from registry_gc import engine_dask

        return engine_dask.run_task(task)

    return run_unit


def _key(work: Work[Any, Any]) -> str:
    """A name for a unit that Dask's own pages can show; never used again."""
    return f"{work.__name__}-{uuid.uuid4().hex}"


def look(reader: Reader) -> str:
    """What tells two storages apart: the first pages of both halves of a registry."""
    digest = hashlib.sha256()
    for prefix in (REPOSITORIES, BLOBS):
        for page in reader.list(prefix):
            digest.update("\n".join(page.paths).encode("utf-8", "surrogateescape"))
            break
    return digest.hexdigest()


class Opening(WorkerPlugin):
    """How each worker opens the storage, under a name that tells nothing of it."""

    def __init__(self, pickled: bytes) -> None:
        self.name = f"registry-gc-{uuid.uuid4().hex}"
        self._pickled = pickled

    def setup(self, worker: Any) -> None:
        """On a worker: keep it."""
        _openings[self.name] = self._pickled

    def teardown(self, worker: Any) -> None:
        """On a worker: forget it, as the run is over."""
        _openings.pop(self.name, None)


_openings: dict[str, bytes] = {}


def _look_from_worker(opening: str) -> str:
    return look(_reader(opening))


def _reader(opening: str) -> Reader:
    """This thread's own reader: what it counts is what its unit asked for."""
    readers: dict[str, Reader] = _local.__dict__.setdefault("readers", {})
    if opening not in readers:
        for name in readers.keys() - _openings.keys():
            readers.pop(name).close()
        # The client's own pickle, by way of a cluster that runs whatever the client sends.
        readers[opening] = pickle.loads(_openings[opening])()  # noqa: S301  # see above
    return readers[opening]


def run_task(task: bytes) -> tuple[Any, dict[str, int]]:
    """One unit, in a worker; with what it asked of the storage."""
    opening, work, unit = pickle.loads(task)  # noqa: S301  # see _reader
    reader = _reader(opening)
    before = reader.requests.totals()
    result = work(reader, unit)
    after = reader.requests.totals()
    return result, {name: after[name] - before[name] for name in after}
