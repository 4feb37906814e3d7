"""Where work units run: here, in threads, or in worker processes.

A *work* is a module-level function of ``(reader, unit)`` that returns values that can be pickled.
Threads suit storage that is waited for. A warm filesystem is bound by the interpreter instead:
over 36,640 blobs, two threads took 1.4 times as long as one, two processes 0.55 times. A process
that has to wait after all does parts of its unit at once (:mod:`registry_gc.machine.overlap`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from types import TracebackType
from typing import Any, Protocol, TypeVar

from registry_drivers.base import Reader
from registry_drivers.withdrawal import unless_withdrawn
from registry_gc.interrupts import signals_held
from registry_gc.machine.overlap import Overlap
from registry_gc.machine.shortage import is_out_of_threads

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Work = Callable[[Reader, Unit], Result]


NO_MORE: Any = object()
"""Stands for the unit after the last."""


class WorkerLost(Exception):
    """A worker process ended by itself, or was ended."""


class Engine(Protocol):
    """Runs work units and hands back their results."""

    @property
    def workers(self) -> int:
        """How many units run at once."""

    @property
    def far(self) -> bool:
        """Whether workers are other machines, to which units and results travel."""

    @property
    def notice(self) -> str:
        """What the operator should know of how it runs; empty where all is as asked for."""

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each unit, or of each of its parts, in the order of completion.

        ``follow`` is asked after each result for units that came to light with it. Units are
        drawn lazily: memory holds a few per worker. The first error ends the run.

        :raises WorkerLost: a worker is gone, and with it what it was doing.
        """

    def __enter__(self) -> Engine:
        """Begin; workers are ready."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all workers."""


class SerialEngine:
    """Runs each unit in the caller, in order; with an *overlap* its parts at once, if need be."""

    far = False

    def __init__(self, reader: Reader, overlap: Overlap | None = None, notice: str = "") -> None:
        self.notice = notice
        # As for two: who has all in one unit has no parts of it.
        self.workers = 1 if overlap is None else 2
        self._reader = reader
        self._overlap = overlap

    def __enter__(self) -> SerialEngine:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        """See :class:`Engine`."""
        extra: deque[Unit] = deque()
        for unit in drain(iter(units), extra):
            for result in self._results(work, unit):
                if follow is not None:
                    extra.extend(follow(result))
                yield result

    def _results(self, work: Work[Unit, Result], unit: Unit) -> Sequence[Result]:
        if self._overlap is None:
            return [work(self._reader, unit)]
        return self._overlap.run(work, self._reader, unit)


def drain(units: Iterator[Unit], extra: deque[Unit]) -> Iterator[Unit]:
    """Units that came to light first, then the planned ones, until both are used up."""
    while True:
        if extra:
            yield extra.popleft()
            continue
        try:
            yield next(units)
        except StopIteration:
            if not extra:
                return


class _PoolEngine:
    """What threads and processes share: a window of units under way."""

    far = False
    notice = ""

    def __init__(self, reader: Reader, workers: int) -> None:
        self._reader = reader
        self.workers = workers
        self._executor: Executor | None = None

    def _submit(self, work: Work[Any, Any], unit: Any) -> Future[Any]:
        raise NotImplementedError

    def _unwrap(self, value: Any) -> Sequence[Any]:
        """The results in what a future came to."""
        return [value]

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def run(
        self,
        work: Work[Unit, Result],
        units: Iterable[Unit],
        follow: Callable[[Result], Iterable[Unit]] | None = None,
    ) -> Iterator[Result]:
        """See :class:`Engine`."""
        source = iter(units)
        extra: deque[Unit] = deque()
        running: set[Future[Any]] = set()
        try:
            while True:
                while len(running) < 2 * self.workers:
                    unit = next(drain(source, extra), NO_MORE)
                    if unit is NO_MORE:
                        break
                    running.add(self._submit(work, unit))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    results: Sequence[Result] = self._unwrap(future.result())
                    for result in results:
                        if follow is not None:
                            extra.extend(follow(result))
                        yield result
        except BrokenExecutor as error:
            raise WorkerLost(
                "a worker process was killed, as the system does when memory runs out: "
                "run again, perhaps with --workers 1"
            ) from error
        finally:
            for future in running:
                future.cancel()


class ThreadEngine(_PoolEngine):
    """Runs units in threads, which share the reader."""

    def __init__(self, reader: Reader, workers: int) -> None:
        super().__init__(reader, workers)
        self._ending = threading.Event()

    def __enter__(self) -> ThreadEngine:
        from concurrent.futures import ThreadPoolExecutor

        from registry_gc.machine.allocator import tame_allocator

        tame_allocator()
        # Threads that wait for a busy interpreter ask for it each time, which costs CPU: with 16
        # of them over 300,000 blobs a quarter, in the one pair of runs that was measured. Waiting
        # for the network is not held up: numpy and sockets let go of the interpreter themselves.
        self._switching = sys.getswitchinterval()
        sys.setswitchinterval(0.05)
        self._processors = _keep_to_one_processor()
        self._ending.clear()
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="registry-gc")
        return self

    def __exit__(self, *error: object) -> None:
        # Whoever is interrupted, has failed or has enough waits for what is under way, and wants
        # none of it: nothing of it is tried again for minutes.
        self._ending.set()
        super().__exit__(*error)
        sys.setswitchinterval(self._switching)
        _go_back_to(self._processors)

    def _submit(self, work: Work[Any, Any], unit: Any) -> Future[Any]:
        assert self._executor is not None
        return self._executor.submit(self._unless_ending, work, unit)

    def _unless_ending(self, work: Work[Any, Any], unit: Any) -> Any:
        with unless_withdrawn(self._is_wanted):
            return work(self._reader, unit)

    def _is_wanted(self) -> bool:
        return not self._ending.is_set()


def _keep_to_one_processor() -> set[int]:
    """Have this thread and all that it starts run on one processor; returns where it might before.

    They take turns at the interpreter anyway. On two processors each turn begins with a wait for
    the other one's caches: with 16 threads a listing took twice the CPU and twice the time.
    """
    processors: set[int] = set()
    # Not every system has this, and not every container allows it.
    with contextlib.suppress(OSError, AttributeError):
        processors = os.sched_getaffinity(0)
        # Another run beside this one is kept to another, as likely as not.
        os.sched_setaffinity(0, {sorted(processors)[os.getpid() % len(processors)]})
    return processors


def _go_back_to(processors: set[int]) -> None:
    """What is started from here on, such as a registry, may run on all of *processors* again."""
    with contextlib.suppress(OSError, AttributeError):
        if processors:
            os.sched_setaffinity(0, processors)


class ProcessEngine(_PoolEngine):
    """Runs units in forked processes; each inherits the reader as it is when they start.

    Enter it before anything starts a thread or opens a database: a fork copies neither safely.
    """

    def __enter__(self) -> Engine:
        """Begin; where no processes may be started, one that does all of the work here."""
        before = multiprocessing.active_children()
        try:
            self._begin()
        except (OSError, ImportError, RuntimeError) as error:
            # No room for another process, thread or pipe, or no /dev/shm for what they share.
            self._abandon(before)
            return SerialEngine(
                self._reader,
                Overlap(),
                f"one process does all of the work, as no others could be started: {error}",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._executor = ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("fork"),
            initializer=_begin_worker,
            initargs=(self._reader, os.getpid()),
        )
        # The first task forks all workers, now, while there is no other thread. Who is interrupted
        # between two of them would wait for those that are there, and they for work, for ever.
        with signals_held(), _dying_in_silence():
            first = self._submit(_nothing, None)
            while not wait([first], timeout=1).done:
                # It ends without a word where it cannot start the thread that feeds workers.
                manager = getattr(self._executor, "_executor_manager_thread", None)
                if manager is not None and not manager.is_alive():
                    raise RuntimeError("can't start new thread")
            first.result()

    def _abandon(self, before: Sequence[object]) -> None:
        """End those workers that could be started; they would wait for work for ever."""
        for child in multiprocessing.active_children():
            if child not in before:
                child.kill()
                child.join()
        if self._executor is not None:
            # There may be no thread to wait for.
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None

    def _submit(self, work: Work[Any, Any], unit: Any) -> Future[Any]:
        assert self._executor is not None
        return self._executor.submit(_work_in_process, work, unit)

    def _unwrap(self, value: Any) -> Sequence[Any]:
        results: Sequence[Any]
        results, requests = value
        self._reader.requests.add(**requests)
        return results


@contextlib.contextmanager
def _dying_in_silence() -> Iterator[None]:
    """A thread that cannot start another says nothing: what is done about it is told in a line."""
    before = threading.excepthook

    def told(died: threading.ExceptHookArgs) -> None:
        if not is_out_of_threads(died.exc_value):
            before(died)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


_worker_reader: Reader | None = None
_worker_overlap = Overlap()


def _nothing(reader: Reader, unit: None) -> None:
    pass


def _begin_worker(reader: Reader, parent: int) -> None:
    global _worker_reader
    _worker_reader = reader
    # Ctrl-C reaches the whole group; the parent decides, and workers only ever read.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    except RuntimeError:
        os._exit(1)  # no room for a thread: the parent hears that this worker is gone


def _die_with(parent: int) -> None:
    """End this worker when its parent is gone, as after kill -9: siblings keep the pipe open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work_in_process(work: Work[Any, Any], unit: Any) -> tuple[list[Any], dict[str, int]]:
    assert _worker_reader is not None
    before = _worker_reader.requests.totals()
    results = _worker_overlap.run(work, _worker_reader, unit)
    after = _worker_reader.requests.totals()
    return results, {name: after[name] - before[name] for name in after}


def engine_for(reader: Reader, workers: int | None) -> Engine:
    """The engine that suits *reader*; *workers* as the operator asks, None for what fits it."""
    count = workers or reader.capabilities.workers
    if count <= 1:
        # One processor is no reason to ask a disk one question at a time; being told so is.
        waits = workers is None and reader.capabilities.processes
        return SerialEngine(reader, Overlap() if waits else None)
    if reader.capabilities.processes and hasattr(os, "fork"):
        return ProcessEngine(reader, count)
    return ThreadEngine(reader, count)
