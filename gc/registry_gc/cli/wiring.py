"""What every command does before and after its work: config, storage, guard, state, errors."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import click

from registry_drivers.base import Reader, Storage
from registry_drivers.errors import DriverConfigError, StorageError
from registry_drivers.factory import open_storage
from registry_drivers.parameters import DEFAULT_ROOT, Parameters
from registry_gc.blob_cache.forgetting import BlobCache, NoCache, RedisCache
from registry_gc.collect import Job
from registry_gc.compact.spool import SpoolError
from registry_gc.config import Config, load_config
from registry_gc.configuring.file import ConfigError
from registry_gc.engine import Engine
from registry_gc.guard import Guard, GuardOptions
from registry_gc.layout import V2
from registry_gc.lock import LockError
from registry_gc.progress import JsonLogging, Progress, say
from registry_gc.runs.state_dir import default_state_dir, open_state_dir


def complain(message: str) -> None:
    """Say on stderr what failed; a closed stderr is no failure of its own."""
    say("error", message, as_json=logs_json())


def note(message: str) -> None:
    """Say on stderr what the operator should know."""
    say("note", message, as_json=logs_json())


def logs_json() -> bool:
    """Whether the command that runs was called with ``--log-format json``."""
    context = click.get_current_context(silent=True)
    return context is not None and context.params.get("log_format") == "json"


def log_as_json() -> None:
    """Have libraries log, and Python warn, as JSON lines too."""
    logging.basicConfig(handlers=[JsonLogging()], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)


def is_terminal() -> bool:
    """Whether stderr is a terminal; Python has no stderr where the caller closed it."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def look_for_cycles_rarely() -> None:
    """Spare a command that lists a registry most of Python's garbage collection.

    It makes millions of small objects and no cycles: looking for those takes a sixth of the time.
    What is there now stays for ever; worker processes share it.
    """
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 10)


def read_config(path: str | None, progress: Progress) -> Config:
    """The registry's config at *path*, or at the first default path that exists; says which.

    :raises ConfigError: there is none, or it cannot be understood.
    """
    config = load_config(path, os.environ)
    if path is None:
        progress.notice(f"using {config.path}")
    for notice in config.notices:
        progress.notice(notice)
    return config


_WRITTEN = {
    "cache": "--cache",
    "run_file": "the run file",
    "metrics_file": "--metrics-file",
    "audit_log": "--audit-log",
    "html": "--html",
}


def config_of(options: Mapping[str, Any], progress: Progress) -> Config:
    """The config that *options* name, as :func:`read_config`; nothing is to be written over it.

    :raises ConfigError: as there, or an option that names an output names the config.
    """
    config = read_config(options["config"], progress)
    for name, shown in _WRITTEN.items():
        # No path, or none that is there: the option's own check says so.
        with suppress(OSError, ValueError):
            if options.get(name) and os.path.samefile(str(options[name]), config.path):
                raise ConfigError(f"{config.path}: {shown} names the config itself")
    _refuse_inside(config, options)
    return config


def _refuse_inside(config: Config, options: Mapping[str, Any]) -> None:
    """Raise where something is to be written among what is collected, and would go the next time.

    :raises ConfigError: so it is.
    """
    if config.driver != "filesystem":
        return
    root = str(config.storage.parameters.get("rootdirectory") or DEFAULT_ROOT)
    # No path at all: the driver, or the option's own check, says so.
    with suppress(OSError, ValueError):
        content = os.path.realpath(os.path.join(root, V2))
        for name, shown in {**_WRITTEN, "state_dir": "--state-dir"}.items():
            path = os.path.realpath(str(options.get(name) or os.devnull))
            if os.path.commonpath([content, path]) == content:
                raise ConfigError(
                    f"{shown}: {options[name]} lies in {content}, where the registry keeps what is "
                    "collected: choose a place elsewhere"
                )


def storage_of(config: Config, requests_per_second: float | None = None) -> Storage:
    """The storage that *config* names, at the lower of the config's and the given rate.

    :raises ConfigError: its section cannot be understood, or its extra is not installed.
    """
    try:
        given = Parameters(config.driver, config.storage.parameters)
        own = given.number("maxrequestspersecond", 0)
        storage = open_storage(config.storage)
    except DriverConfigError as error:
        raise ConfigError(f"{config.path}: {error}") from error
    rates = [requests_per_second, own]
    wanted = [rate for rate in rates if rate and rate > 0]
    if not wanted:
        return storage
    from registry_drivers.wrappers import throttled

    return throttled(storage, min(wanted))


def guard_of(
    config: Config, storage: Storage, options: Mapping[str, Any], before: Config | None = None
) -> Guard:
    """The guard, with what the command line says about the registry.

    :param before: the config before a command that may have edited it.
    """
    return Guard(config, storage, guard_options(options, before))


def guard_options(options: Mapping[str, Any], before: Config | None = None) -> GuardOptions:
    """What the command line says about the registry; *before* as in :func:`guard_of`."""
    return GuardOptions(
        registry_urls=tuple(options["registry_urls"]),
        registry_stopped=options["registry_stopped"],
        assume_readonly=options["assume_readonly"],
        auth_file=options["registry_auth_file"],
        before=before.http if before is not None else None,
    )


def blob_cache_of(
    config: Config,
    state_dir: str,
    progress: Progress,
    begun: Callable[[str], None] | None = None,
    also: tuple[str, ...] = (),
) -> BlobCache:
    """What makes the registry forget what is deleted, and what earlier runs have deleted.

    :param begun: see :class:`registry_gc.blob_cache.journals.Journals`, as for *also*.
    :raises ConfigError: its ``redis`` section cannot be understood.
    """
    if config.blob_descriptor_cache == "redis":
        from registry_gc.blob_cache.journals import Journals
        from registry_gc.blob_cache.redis_config import redis_config

        redis = redis_config(config.path, config.redis or {})
        return RedisCache(redis, progress, Journals(state_dir, begun, also))
    # Distribution takes any other name for none, with a warning.
    return NoCache("inmemory" if config.blob_descriptor_cache == "inmemory" else None)


def close(job: Job) -> None:
    """Let go of what a job holds."""
    job.blob_cache.close()
    job.storage.close()


def wanted_state_dir(options: Mapping[str, Any]) -> str:
    """The state directory that is asked for, there or not."""
    return str(options["state_dir"] or default_state_dir(os.environ, os.geteuid()))


def state_folder(options: Mapping[str, Any], progress: Progress) -> str:
    """The state directory, or a temporary one, which is said."""
    state = open_state_dir(wanted_state_dir(options))
    for notice in state.notices:
        progress.notice(notice)
    return state.path


def cache_path(options: Mapping[str, Any], state_dir: str, storage: Storage) -> str | None:
    """Where references are remembered: by default only where reading a manifest is a request.

    And between a plan and its execution, which shall not take long: ``remember`` asks for that.
    """
    if options["no_cache"]:
        return None
    if options["cache"]:
        return os.path.abspath(str(options["cache"]))
    if storage.capabilities.folders and not options.get("remember"):
        return None
    return os.path.join(state_dir, "references.sqlite")


def dask_engine(
    options: Mapping[str, Any], config: Config, storage: Storage
) -> Callable[[Reader], Engine] | None:
    """The engine that ``--dask`` asks for.

    :raises ConfigError: not for this storage, the extra is not installed, or no TLS is set up.
    """
    address = options["dask"]
    if address is None:
        return None
    if storage.capabilities.folders:
        raise ConfigError(
            "--dask is for object stores: a folder of the same name may be another one on each "
            "worker, and what it lacks would be taken for dead"
        )
    if options["max_requests_per_second"]:
        raise ConfigError("--dask and --max-requests-per-second exclude each other")
    if Parameters(config.driver, config.storage.parameters).number("maxrequestspersecond", 0):
        raise ConfigError(
            f"{config.path}: storage.{config.driver}.maxrequestspersecond cannot be held by many "
            "machines together: --dask and it exclude each other"
        )
    try:
        from registry_gc.engines.dask_cluster import DaskEngine, check_transport
    except ImportError as error:
        raise ConfigError(
            f"--dask needs a package that cannot be imported ({error}): "
            "pip install 'registry-garbage-collect[dask]'"
        ) from error
    from functools import partial

    try:
        check_transport(address)
    except ValueError as error:
        raise ConfigError(f"--dask {address}: {error}") from error
    opening = partial(open_storage, config.storage)
    return lambda reader: DaskEngine(reader, address, opening)


def exit_code_of(work: Callable[[], int]) -> int:
    """Run a command's *work*; what can go wrong with a registry becomes a line and a code."""
    try:
        return work()
    except (ConfigError, DriverConfigError) as error:
        complain(str(error))
        return 2
    except LockError as error:
        complain(str(error))
        return 4
    except (StorageError, SpoolError) as error:
        complain(str(error))
        return 1


@contextmanager
def registry(path: str | None, progress: Progress) -> Iterator[tuple[Config, Storage]]:
    """The config at *path* and its storage, closed at the end.

    :raises ConfigError: see :func:`read_config` and :func:`storage_of`.
    """
    config = read_config(path, progress)
    storage = storage_of(config)
    try:
        yield config, storage
    finally:
        storage.close()
