"""Work units on an existing Dask cluster: listing, reading, and looking which blobs are dead.

Nothing of our own schedules or tries again: a unit whose worker dies is run by another, and its
result counts once. What decides and deletes (run file, cache, lock, sweep) stays in this process.
:mod:`registry_gc.engines.dask_worker` is what runs there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import threading
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from distributed import Client, KilledWorker, Security, as_completed
from distributed.client import FutureCancelledError
from distributed.comm.core import connect

from registry_drivers.base import Reader
from registry_gc.engine import NO_MORE, Result, Unit, Work, drain
from registry_gc.engines.dask_worker import (
    Answer,
    ClusterError,
    Doubt,
    Opening,
    look,
    look_from_worker,
    versions,
)
from registry_gc.interrupts import Interrupted

OpenReader = Callable[[], Reader]
"""Opens the storage anew; can be pickled, as ``functools.partial(open_storage, spec)`` can."""

_CONNECT_SECONDS = 15.0
_END_SECONDS = 5.0
_ATTEMPTS = 3
_ANOTHER_STORAGE = (
    "Dask workers see another storage under this configuration than this process does; is "
    "its address the same everywhere?"
)
# Each of them may have a level of its own.
_LOGGERS = ("distributed", "distributed.client", "distributed.comm", "distributed.core")


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
        # What this process saw when it looked last, and how often which thread saw something else.
        self._seen = ""
        self._doubts: Counter[str] = Counter()
        self.workers = 1

    def __enter__(self) -> DaskEngine:
        """Connect, and look whether all workers are what this process is.

        :raises ClusterError: no scheduler, no workers, other versions, another storage.
        """
        # One line of ours says it; distributed would add a page.
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            # A client waits for ever for who accepts a connection and says nothing.
            asyncio.run(_answers(self._address))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._client = Client(self._address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise ClusterError(
                f"{self._address}: no Dask scheduler answers: {_told(error)}"
            ) from error
        try:
            self._look_at_versions()
            # Not with each unit: what a unit is made of is kept by the scheduler, and printed by a
            # worker that fails with it. New workers get it too.
            self._register()
            self._look()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._client is not None:
            # A worker that hangs never says that it has forgotten.
            forgetting = threading.Thread(target=self._forget, args=(self._client,), daemon=True)
            forgetting.start()
            try:
                forgetting.join(_END_SECONDS)
            finally:
                self._client.close(timeout=_END_SECONDS)
                self._client = None

    def _forget(self, client: Any) -> None:
        # A scheduler that is gone has forgotten it.
        with contextlib.suppress(Exception):
            client.unregister_worker_plugin(self._opening.name)

    def _register(self) -> None:
        try:
            self._client.register_plugin(self._opening)
        except Interrupted:
            raise
        except Exception as error:
            # A worker that came since they were asked, and cannot be one of them.
            raise self._of_no_use(error) from error

    def _look_at_versions(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError as error:
            raise ClusterError(f"{self._address}: the Dask cluster has no workers") from error
        threads = self._client.nthreads()
        self.workers = max(1, sum(threads.values()))
        here = versions()
        for worker, found in self._asked(_probe()).items():
            if found != here:
                raise _other_versions(worker, found, here)

    def _look(self) -> None:
        for _ in range(_ATTEMPTS):
            # Pushes may go on during a dry run, so the look may have to be taken again.
            before = look(self._reader)
            found_there = self._asked(look_from_worker, self._opening.name)
            self._seen = look(self._reader)
            if all(seen in (before, self._seen) for seen in found_there.values()):
                return
        raise ClusterError(_ANOTHER_STORAGE)

    def _agrees(self, doubt: Doubt | None) -> bool:
        """Whether the result that came with *doubt* may be used; if not, the unit is run again.

        :raises ClusterError: the same thread sees something else time and again.
        """
        if doubt is None or doubt.seen == self._seen:
            return True
        # Pushes go on during a dry run, and this run's own deletes are seen too.
        self._seen = look(self._reader)
        if doubt.seen == self._seen:
            return True
        self._doubts[doubt.thread] += 1
        if self._doubts[doubt.thread] >= _ATTEMPTS:
            raise ClusterError(_ANOTHER_STORAGE)
        return False

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            answers: dict[str, Any] = self._client.run(function, *arguments)
        except Interrupted:
            raise
        except Exception as error:
            # Whatever a worker cannot import or open is raised here, in its own words.
            raise self._of_no_use(error) from error
        return answers

    def _of_no_use(self, error: Exception) -> ClusterError:
        return ClusterError(f"{self._address}: a Dask worker is of no use: {_told(error)}")

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        """See :class:`registry_gc.engine.Engine`."""
        here = versions()
        shim = _shim(here)
        source = iter(units)
        extra: deque[Unit] = deque()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = as_completed(loop=self._client.loop)
        running: dict[Any, Unit] = {}

        def send(unit: Unit) -> None:
            task = pickle.dumps((self._opening.name, self._seen, work, unit))
            future = self._client.submit(shim, task, pure=False, key=_key(work))
            running[future] = unit
            done.add(future)

        try:
            while True:
                while len(running) < 2 * self.workers + 2:
                    unit = next(drain(source, extra), NO_MORE)
                    if unit is NO_MORE:
                        break
                    send(unit)
                if not running:
                    return
                future = next(done)
                unit = running.pop(future)
                answer = future.result()
                if isinstance(answer, dict):
                    raise _other_versions("that came later", answer, here)
                result, requests, doubt = answer
                self._reader.requests.add(**requests)
                if not self._agrees(doubt):
                    send(unit)
                    continue
                if follow is not None:
                    extra.extend(follow(result))
                yield result
        except KilledWorker as error:
            raise ClusterError(
                "several Dask workers were killed over the same unit, as the system does when "
                f"memory runs out: {_told(error)}"
            ) from error
        except (FutureCancelledError, TimeoutError) as error:
            raise ClusterError(
                f"{self._address}: the Dask scheduler is gone: {_told(error)}"
            ) from error
        finally:
            for future in running:
                future.cancel()


def check_transport(address: str) -> None:
    """Look whether this process can speak as *address* asks.

    :raises ValueError: ``tls`` without certificates that Dask's configuration names.
    """
    if address.startswith("tls://"):
        try:
            given = Security().get_connection_args("client")["ssl_context"]
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(_told(error)) from error
        if given is None:
            raise ValueError("Dask's configuration names no certificates for TLS")


async def _answers(address: str) -> None:
    """Connect once, which is to shake hands too.

    :raises OSError: nobody is there, or nobody says anything.
    """
    options = Security().get_connection_args("client")
    try:
        async with asyncio.timeout(_CONNECT_SECONDS + 1):
            comm = await connect(address, timeout=_CONNECT_SECONDS, **options)
            await comm.close()
    except TimeoutError as error:
        raise OSError("somebody accepts the connection and says nothing") from error


def _told(error: BaseException) -> str:
    """What *error* says, in one line; some say nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _other_versions(worker: str, found: dict[str, str], here: dict[str, str]) -> ClusterError:
    return ClusterError(
        f"the Dask worker {worker} has {found}, and here is {here}: install the same "
        "registry-garbage-collect[dask], with the same extras, on both"
    )


def _probe() -> Callable[[], dict[str, str]]:
    """A function that workers without this package can be sent too: it goes by value."""

    def found() -> dict[str, str]:
        try:
            from registry_gc.engines import dask_worker
        except ImportError:
            return {"registry-garbage-collect": "not installed, or not with this engine"}
        return dask_worker.versions()

    return found


def _shim(here: dict[str, str]) -> Callable[[bytes], Answer | dict[str, str]]:
    """What the scheduler is sent: by value, and the rest as bytes, so that it needs no package.

    A worker that came when the others had been asked for their versions may be of another one. It
    does nothing then, but answers with what it is.
    """
    probe = _probe()

    def run_unit(task: bytes) -> Answer | dict[str, str]:
        found = probe()
        if found != here:
            return found
        from registry_gc.engines import dask_worker

        return dask_worker.run_task(task)

    return run_unit


def _key(work: Work[Any, Any]) -> str:
    """A name for a unit that Dask's own pages can show; never used again."""
    return f"{work.__name__}-{uuid.uuid4().hex}"
