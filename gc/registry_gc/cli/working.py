"""What a command that is no collection does before and after its work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import DriverConfigError, StorageError
from registry_gc import __version__
from registry_gc.catalog import is_registry
from registry_gc.cli.output import Output
from registry_gc.cli.wiring import complain, config_of, storage_of
from registry_gc.compact.spool import SpoolError
from registry_gc.config import Config
from registry_gc.configuring.file import ConfigError
from registry_gc.engine import Engine, WorkerLost, engine_for
from registry_gc.interrupts import Interrupted, Interrupts
from registry_gc.lock import Lock, LockError, LockHeld
from registry_gc.machine.shortage import NO_MEMORY, NO_THREADS, is_out_of_threads
from registry_gc.permission import Refused
from registry_gc.progress import Progress
from registry_gc.quarantine.still_allowed import Changed


class Failed(Exception):
    """What was asked for cannot be answered; the message says why."""


FAILURES = (
    Failed, Refused, LockError, StorageError, Interrupted, Changed, WorkerLost, SpoolError,
    MemoryError,
)  # fmt: skip
"""What can go wrong with a registry, a storage, an operator or a small machine."""


def failure(error: Exception) -> tuple[int, str]:
    """The exit code for one of :data:`FAILURES`, and the line that says what happened."""
    if isinstance(error, Interrupted):
        return error.exit_code, f"interrupted by {error}"
    if isinstance(error, Refused | LockError):
        return 4, str(error)
    if isinstance(error, MemoryError):
        return 1, NO_MEMORY
    return 5 if isinstance(error, Changed) else 1, str(error)


def run_work(options: Mapping[str, Any], work: Callable[[Output, Interrupts], int]) -> int:
    """Run a command's *work*; whatever can go wrong becomes a line on stderr and an exit code.

    An answer that a full disk has lost is 1. And a document, where *options* ask for one and *work*
    has written none: programs get one for every exit but 2.
    """
    output = Output()
    interrupts = Interrupts()
    try:
        with interrupts.installed():
            return output.exit_code(work(output, interrupts))
    except (ConfigError, DriverConfigError) as error:
        complain(str(error))
        return 2
    except FAILURES as error:
        code, why = failure(error)
        if options["output"] == "json" and not output.begun:
            output.lines([failure_document(code, why)])
        complain(why)
        return code
    except RuntimeError as error:
        if not is_out_of_threads(error):
            raise
        why = f"{error}: {NO_THREADS}"
        if options["output"] == "json" and not output.begun:
            output.lines([failure_document(1, why)])
        complain(why)
        return 1
    finally:
        output.close()


def failure_document(code: int, why: str) -> str:
    """What programs read where a command has nothing else to tell; ``schema`` 1."""
    told = {"schema": 1, "version": __version__, "error": why, "exit_code": code}
    return json.dumps(told, indent=2)


def refuse_empty(reader: Reader) -> None:
    """Raise where there is no registry to look at.

    :raises Failed: nothing of one is there.
    """
    if not is_registry(reader):
        raise Failed(
            f"{reader.root}: no registry there (docker/registry/v2 holds nothing); is it mounted, "
            "and is the root directory right?"
        )


@contextmanager
def registry_at(options: Mapping[str, Any], progress: Progress) -> Iterator[tuple[Config, Storage]]:
    """The config that *options* name and its storage, at the rate they allow; closed at the end.

    :raises ConfigError: the config, or its storage, cannot be understood.
    """
    config = config_of(options, progress)
    storage = storage_of(config, options["max_requests_per_second"])
    try:
        yield config, storage
    finally:
        storage.close()


@contextmanager
def engine_of(reader: Reader, options: Mapping[str, Any], progress: Progress) -> Iterator[Engine]:
    """The engine that suits *reader*, ready; says where it does not run as asked for."""
    with engine_for(reader, options["workers"]) as engine:
        if engine.notice:
            progress.notice(engine.notice)
        yield engine


@contextmanager
def locked(
    storage: Storage,
    interrupts: Interrupts,
    progress: Progress,
    barred: Callable[[], str] = str,
) -> Iterator[Lock]:
    """Hold the lock of *storage*; no signal comes between getting it and giving it back.

    :param barred: why another run of this machine keeps this one out; empty where none does.
    :raises LockError: another run has it, or keeps this one out.
    :raises Changed: it was lost meanwhile, and nobody has been told.
    """
    if why := barred():
        raise LockHeld(why)
    with interrupts.deferred():
        lock = Lock.acquire(storage, str(uuid4()))
    try:
        # Again: who starts a registry has looked first that nobody has the lock.
        if why := barred():
            raise LockHeld(why)
        interrupts.check()
        while lock.notices:
            progress.notice(lock.notices.pop(0))
        yield lock
    finally:
        with interrupts.deferred():
            lock.release(interrupts)
        while lock.notices:
            progress.notice(lock.notices.pop(0))
    if lock.lost:
        raise Changed(lock.lost)
