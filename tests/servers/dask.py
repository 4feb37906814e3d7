"""A Dask scheduler and its workers, as processes on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it brings no types

from registry_drivers.base import Reader
from servers.process import free_port, running

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("gc", "drivers", "benchmarks", "tests"))


def echo(reader: Reader, unit: int) -> int:
    """A work unit that needs no storage."""
    return unit


def miss(reader: Reader, unit: str) -> bytes:
    """A work unit that reads a path."""
    return reader.read(unit)


def open_with(secret: str, opening: Callable[[], Reader]) -> Reader:
    """Open a storage with a credential."""
    assert secret
    return opening()


def open_as_told(here: Callable[[], Reader], elsewhere: Callable[[], Reader]) -> Reader:
    """Open a storage, or another one where the environment says so: as a name that differs."""
    return elsewhere() if os.environ.get("ELSEWHERE") else here()


def everything_kept(dask_scheduler: Any) -> list[str]:
    """On the scheduler: what it has of each task, as text."""
    return [
        f"{task.key} {cloudpickle.dumps(task.run_spec)!r}" for task in dask_scheduler.tasks.values()
    ]


@dataclass
class Cluster:
    """A scheduler's address, and its workers.

    ``add`` starts another one, with these variables in its environment too.
    """

    address: str
    add: Callable[..., None] = lambda **more: None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextmanager
def cluster(folder: Path, workers: int, *, sources: str = SOURCES) -> Iterator[Cluster]:
    """A scheduler with *workers* processes of one thread each.

    :param sources: what their PYTHONPATH is.
    """
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": sources, "DASK_TEMPORARY_DIRECTORY": str(folder)}
    scheduler = [
        sys.executable, "-m", "distributed.cli.dask_scheduler",
        "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-jupyter",
    ]  # fmt: skip
    worker = [
        sys.executable, "-m", "distributed.cli.dask_worker", address,
        "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard",
        "--memory-limit", "0", "--death-timeout", "60",
    ]  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(running(scheduler, [port], folder=folder, environment=environment))
        found = Cluster(address)
        log = stack.enter_context((folder / "workers.log").open("wb"))

        def add(**more: str) -> None:
            process = subprocess.Popen(
                worker, env={**environment, **more}, cwd=folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            found.workers.append(process)
            stack.callback(_end, process)

        found.add = add
        for _ in range(workers):
            add()
        yield found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
