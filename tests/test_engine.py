"""Work units run, wherever: each once, lazily, with errors and deaths told."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import synchronize
from typing import Any

import pytest
from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, Unavailable
from registry_drivers.memory import MemoryStorage
from registry_drivers.withdrawal import is_withdrawn
from registry_gc.engine import (
    Engine,
    ProcessEngine,
    SerialEngine,
    ThreadEngine,
    WorkerLost,
    engine_for,
)
from registry_gc.interrupts import Interrupted, Interrupts

Make = Callable[[Reader], Engine]

ALL = pytest.mark.parametrize(
    "make",
    [
        SerialEngine,
        lambda reader: ThreadEngine(reader, 1),
        lambda reader: ThreadEngine(reader, 3),
        lambda reader: ProcessEngine(reader, 1),
        lambda reader: ProcessEngine(reader, 2),
    ],
    ids=["serial", "one thread", "threads", "one process", "processes"],
)


# Work, which processes can only be given by name.


def square(reader: Reader, number: int) -> int:
    return number * number


def read(reader: Reader, path: str) -> bytes:
    return reader.read(path)


def fail(reader: Reader, number: int) -> int:
    if number == 3:
        raise Unavailable("try later", path="some/path", driver="inmemory")
    return number


def crash(reader: Reader, number: int) -> int:
    raise ZeroDivisionError(f"unit {number}")


def die(reader: Reader, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def interrupt(reader: Reader, number: int) -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return str(signal.getsignal(signal.SIGINT))


def pid(reader: Reader, number: int) -> int:
    return os.getpid()


@pytest.fixture
def reader() -> MemoryStorage:
    storage = MemoryStorage()
    for number in range(20):
        storage.put(f"p/{number}", b"%d" % number)
    return storage


@ALL
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_each_unit_is_done_once(make: Make, reader: MemoryStorage, count: int) -> None:
    with make(reader) as engine:
        assert sorted(engine.run(square, range(count))) == [n * n for n in range(count)]
        # And again: an engine is for many runs.
        assert sorted(engine.run(square, range(count))) == [n * n for n in range(count)]


@ALL
def test_units_that_come_to_light_are_done_too(make: Make, reader: MemoryStorage) -> None:
    def follow(result: int) -> list[int]:
        return [result + 1, result + 2] if result < 100 else []

    with make(reader) as engine:
        found = sorted(engine.run(square, [2], follow))
    assert found == sorted([4, 25, 36, 26 * 26, 27 * 27, 37 * 37, 38 * 38])


@ALL
def test_units_are_drawn_as_they_are_needed(make: Make, reader: MemoryStorage) -> None:
    drawn = 0

    def units() -> Iterator[int]:
        nonlocal drawn
        for number in range(10_000):
            drawn += 1
            yield number

    with make(reader) as engine:
        results = engine.run(square, units())
        next(results)
        assert drawn <= 2 * engine.workers
        next(results)
        assert drawn <= 2 * engine.workers + 2


@ALL
def test_units_that_are_falsy_or_none_are_units(make: Make, reader: MemoryStorage) -> None:
    with make(reader) as engine:
        assert list(engine.run(truth, [None])) == ["None"]
        assert sorted(engine.run(truth, [0, None, "", ()])) == ["", "()", "0", "None"]


def truth(reader: Reader, unit: object) -> str:
    return str(unit)


@ALL
def test_the_first_error_ends_the_run_with_all_that_it_says(
    make: Make, reader: MemoryStorage
) -> None:
    with make(reader) as engine:
        with pytest.raises(Unavailable) as caught:
            list(engine.run(fail, range(100)))
        error = caught.value
        assert (error.path, error.driver, error.message) == ("some/path", "inmemory", "try later")
        with pytest.raises(ZeroDivisionError, match="unit 7"):
            list(engine.run(crash, [7]))
        # The engine survives, and so could another try.
        assert list(engine.run(square, [3])) == [9]


@ALL
def test_an_error_in_what_makes_the_units_is_raised(make: Make, reader: MemoryStorage) -> None:
    def units() -> Iterator[int]:
        yield 1
        raise NotFound("no more")

    with make(reader) as engine, pytest.raises(NotFound, match="no more"):
        list(engine.run(square, units()))


@ALL
def test_an_error_in_what_follows_is_raised(make: Make, reader: MemoryStorage) -> None:
    def follow(result: int) -> list[int]:
        raise NotFound("no more")

    with make(reader) as engine, pytest.raises(NotFound, match="no more"):
        list(engine.run(square, range(10), follow))


@ALL
def test_a_run_may_be_left_in_the_middle(make: Make, reader: MemoryStorage) -> None:
    with make(reader) as engine:
        results = engine.run(square, range(100))
        next(results)
        del results
        assert sorted(engine.run(square, range(3))) == [0, 1, 4]


@ALL
def test_requests_are_counted_whoever_sends_them(make: Make, reader: MemoryStorage) -> None:
    with make(reader) as engine:
        found = sorted(engine.run(read, [f"p/{number}" for number in range(20)]))
    assert found == sorted(b"%d" % number for number in range(20))
    assert reader.requests.totals()["read"] == 20


def test_threads_work_side_by_side(reader: MemoryStorage) -> None:
    together = threading.Barrier(3)

    def meet(reader: Reader, number: int) -> int:
        return together.wait(timeout=60)

    with ThreadEngine(reader, 3) as engine:
        assert sorted(engine.run(meet, range(3))) == [0, 1, 2]


def processors(reader: Reader, number: int) -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


def test_what_fails_in_a_thread_is_not_tried_again_when_the_run_is_over(
    reader: MemoryStorage,
) -> None:
    begun, withdrawn = threading.Event(), []

    def work(_: Reader, number: int) -> None:
        withdrawn.append(is_withdrawn())
        if number == 1:
            begun.set()
            while not is_withdrawn():
                pass
            withdrawn.append(True)
            return
        begun.wait()
        raise Unavailable("gone")

    with pytest.raises(Unavailable), ThreadEngine(reader, 2) as engine:
        list(engine.run(work, [1, 2]))
    assert withdrawn == [False, False, True]


def test_threads_share_a_processor_and_what_comes_after_them_has_all(
    reader: MemoryStorage,
) -> None:
    before = os.sched_getaffinity(0)
    with ThreadEngine(reader, 3) as engine:
        (shared,) = {*engine.run(processors, range(30))}
    assert len(shared) == 1
    assert shared <= before == os.sched_getaffinity(0)
    line = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    assert subprocess.check_output(line, text=True).strip() == str(sorted(before))


def test_threads_work_where_nobody_may_choose_processors(
    reader: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with ThreadEngine(reader, 3) as engine:
        assert sorted(engine.run(square, range(3))) == [0, 1, 4]
    monkeypatch.delattr(os, "sched_getaffinity")
    with ThreadEngine(reader, 3) as engine:
        assert sorted(engine.run(square, range(3))) == [0, 1, 4]


def test_processes_are_other_processes_and_no_more_than_wanted(reader: MemoryStorage) -> None:
    with ProcessEngine(reader, 2) as engine:
        pids = set(engine.run(pid, range(50)))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_a_worker_leaves_ctrl_c_to_its_parent(reader: MemoryStorage) -> None:
    with ProcessEngine(reader, 2) as engine:
        assert set(engine.run(interrupt, range(4))) == {str(signal.SIG_IGN)}


def test_a_worker_that_is_killed_ends_the_run_with_a_message(reader: MemoryStorage) -> None:
    with ProcessEngine(reader, 2) as engine, pytest.raises(WorkerLost, match="--workers 1"):
        list(engine.run(die, range(10)))


def test_all_workers_have_ended_when_the_engine_has(reader: MemoryStorage) -> None:
    with ProcessEngine(reader, 2) as engine:
        pids = set(engine.run(pid, range(50)))
    for number in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("worker", [1, 2])
def test_a_signal_while_workers_begin_is_raised_when_they_have_ended(
    reader: MemoryStorage, number: int, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn: Any = ProcessPoolExecutor._spawn_process  # type: ignore[attr-defined]  # not public
    begun: list[int] = []

    def spawned(self: ProcessPoolExecutor) -> None:
        spawn(self)
        begun.append(1)
        if len(begun) == worker:
            signal.raise_signal(number)

    monkeypatch.setattr(ProcessPoolExecutor, "_spawn_process", spawned)
    interrupts = Interrupts()
    with (
        interrupts.installed(),
        pytest.raises(Interrupted),
        ProcessEngine(reader, 2) as engine,
    ):
        list(engine.run(pid, [1]))
    assert len(begun) == 2
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("worker", [1, 2, 3])
def test_where_no_process_can_be_forked_one_does_all(
    reader: MemoryStorage, worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, begun = os.fork, iter(range(1, 100))

    def forked() -> int:
        if next(begun) == worker:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", forked)
    with ProcessEngine(reader, 3) as engine:
        assert "Resource temporarily unavailable" in engine.notice
        assert multiprocessing.active_children() == []
        assert sorted(engine.run(square, range(4))) == [0, 1, 4, 9]


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, OSError, ImportError])
def test_where_processes_can_share_nothing_one_does_all(
    reader: MemoryStorage, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def semaphore(*_: object, **__: object) -> None:
        raise error("/dev/shm is not there")

    monkeypatch.setattr(synchronize.Lock, "__init__", semaphore)
    with ProcessEngine(reader, 2) as engine:
        assert "/dev/shm is not there" in engine.notice
        assert sorted(engine.run(square, range(4))) == [0, 1, 4, 9]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("started", [0, 1, 2])
def test_where_no_thread_can_be_started_one_process_does_all(
    reader: MemoryStorage, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, counted = threading.Thread.start, iter(range(100))

    def begin(thread: threading.Thread) -> None:
        if next(counted) >= started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    with ProcessEngine(reader, 2) as engine:
        # Two here, and one in each worker, where the count is what it was when they began.
        assert bool(engine.notice) is (started < 2)
        assert sorted(engine.run(square, range(4))) == [0, 1, 4, 9]
    assert multiprocessing.active_children() == []


def test_workers_die_with_a_parent_that_is_killed() -> None:
    """They hold the pipe's other end: it closes when the last of them is gone."""
    code = (
        "import os, signal\n"
        "from registry_drivers.memory import MemoryStorage\n"
        "from registry_gc.engine import ProcessEngine\n"
        "ProcessEngine(MemoryStorage(), 2).__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ours, theirs = os.pipe()
    places = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": places},
        pass_fds=[theirs],
        check=False,
    )
    os.close(theirs)
    assert done.returncode == -signal.SIGKILL
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_the_engine_suits_the_storage(reader: MemoryStorage) -> None:
    assert isinstance(engine_for(reader, None), ThreadEngine)
    assert engine_for(reader, None).workers == reader.capabilities.workers
    assert engine_for(reader, 7).workers == 7
    assert isinstance(engine_for(reader, 1), SerialEngine)
    assert isinstance(engine_for(reader, 1), SerialEngine)
    reader.capabilities = replace(reader.capabilities, processes=True, workers=1)
    assert isinstance(engine_for(reader, None), SerialEngine)
    assert isinstance(engine_for(reader, 2), ProcessEngine)
