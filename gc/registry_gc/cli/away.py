"""A collection while the registry is out of use: the commands around it, and what they say."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NoReturn

from msgspec.structs import replace

from registry_drivers.errors import StorageError
from registry_gc.catalog import is_registry
from registry_gc.cli.outlets import audit_log_of
from registry_gc.cli.output import Output
from registry_gc.cli.resume import is_stopped
from registry_gc.cli.unfinished import tell_unfinished
from registry_gc.cli.wiring import (
    blob_cache_of,
    close,
    complain,
    guard_options,
    logs_json,
    note,
    read_config,
    state_folder,
    storage_of,
)
from registry_gc.collect import Job
from registry_gc.config import Config
from registry_gc.configuring.file import ConfigError, must_be_a_file
from registry_gc.guard import Finding, Verdict
from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer
from registry_gc.guard.registries import Registries
from registry_gc.interrupts import Interrupts
from registry_gc.lock import blocker
from registry_gc.progress import Progress, wait_at_most
from registry_gc.report.model import Report
from registry_gc.run_file import already_there
from registry_gc.runs.database import RunFileError
from registry_gc.runs.earlier import Found, found_at
from registry_gc.service.afterwards import Ask, missing, there
from registry_gc.service.away import Commands, Service, settled
from registry_gc.service.between import Between, OutOfUse, place_of
from registry_gc.service.commands import Shared, misspelt
from registry_gc.service.supervisor import End, supervise
from registry_gc.service.turn import while_nobody_deletes
from registry_gc.wording.shown import shown

_STDERR_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_PAIRS = (("stop_command", "start_command"), ("readonly_command", "readwrite_command"))


def commands_of(options: Mapping[str, Any]) -> Commands:
    """The commands that *options* give, at least one of them.

    :raises ConfigError: one is given without its other half, or both pairs are, or one is no
        command to the shell.
    """
    given = [pair for pair in _PAIRS if any(options[name] for name in pair)]
    names = [tuple("--" + name.replace("_", "-") for name in pair) for pair in given]
    if len(given) > 1:
        raise ConfigError(f"{names[0][0]} and {names[1][0]}: give one, as one is enough")
    leave, back = (options[name] for name in given[0])
    if not leave or not back:
        raise ConfigError(f"{names[0][0]} and {names[0][1]}: give both, or none")
    for name, command in zip(names[0], (leave, back), strict=True):
        if not command.strip():
            raise ConfigError(f"{name}: is blank, which does nothing; for that, give 'true'")
        if wrong := misspelt(command):
            raise ConfigError(f"{name}: the shell does not understand it: {shown(wrong)}")
    stops = given[0] == _PAIRS[0]
    said = note if logs_json() else None
    return Commands(leave, back, stops, options["command_timeout"], said)


def run_with_commands(
    options: Mapping[str, Any],
    run: Callable[[Mapping[str, Any], Commands, Service | None], int],
) -> int:
    """Run a collection with the commands that *options* give; returns the exit code.

    :param run: runs it in this process, with options; without a service it runs no commands.
    """
    # Who called us may have it ignored: then nobody is told how any command has ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        commands = commands_of(options)
        must_be_a_file(options["config"], os.environ)
    except ConfigError as error:
        complain(str(error))
        return 2
    if options["dry_run"]:
        return run(options, commands, None)
    # Once, for both processes: where it cannot be written, each look makes another folder.
    state_dir = state_folder(options, Progress(bars=False, as_json=logs_json()))
    options = {**options, "state_dir": state_dir}
    # A terminal that stands still must not keep the registry down either.
    wait_at_most(_STDERR_SECONDS)
    try:
        before = read_config(options["config"], Progress(bars=False, notices=False))
    except ConfigError as error:
        complain(str(error))
        return 2
    service = Service(commands, Shared(), before, partial(_alone, before))
    ask = _asking(options, service)
    service.note_there = lambda: there(ask)
    service.look = lambda: missing(ask, service.shared.answered, stops=commands.stops)
    with ExitStack() as stack:
        between = _between(state_dir, before, service, stack)

        def work() -> int:
            if between is not None:
                # On a full disk what this process starts is known by its parent.
                with contextlib.suppress(OSError):
                    between.mine()
            return run(options, commands, service)

        end = supervise(service, work, lambda: _forget(options, service), complain, note)
        if end.why:
            _tell_for_the_dead(options, service, end)
        return end.code


def _between(state_dir: str, config: Config, service: Service, stack: ExitStack) -> Between | None:
    """Keep other runs of this machine out, or have *service* say that another one does.

    :param stack: lets them in again.
    """
    try:
        between = Between(place_of(state_dir, config.storage))
    except OutOfUse as out:
        service.barred = str(out)
        return None
    except OSError as error:
        note(f"another run of this machine may begin while the registry is started: {error}")
        return None
    stack.callback(between.close)
    service.over = between.end
    return between


def _tell_for_the_dead(options: Mapping[str, Any], service: Service, end: End) -> None:
    """Say in place of a collection that was killed what it came to."""
    output = Output()
    if not service.shared.away:
        # Who reads slowly keeps no other run out.
        service.over()
    if not service.shared.reported:
        tell_unfinished(options, output, end.code, end.why, service.ran)
    for line in filter(None, (service.stale, service.lost)):
        complain(line)
    if service.missing:
        note(service.missing)
    output.close()


def _asking(options: Mapping[str, Any], service: Service) -> Ask:
    """What asks the registries that were there before the first command; nothing rests on it."""

    def ask() -> list[tuple[Address, Answer]]:
        assert service.before is not None
        given = replace(guard_options(options), timeout=_ANSWER_SECONDS)
        return Registries(service.before, given).ask()

    return ask


@contextmanager
def _alone(config: Config) -> Iterator[None]:
    """Keep every run from deleting; what cannot be opened keeps no registry from being started."""
    with ExitStack() as stack:
        try:
            storage = storage_of(config)
            stack.callback(storage.close)
            stack.enter_context(while_nobody_deletes(storage, note))
        except Exception as error:
            note(f"the registry is brought back without the lock: {error}")
        yield


def _forget(
    options: Mapping[str, Any], service: Service, interrupted: Callable[[], bool] = lambda: False
) -> None:
    """Remove from the registry's Redis what the run did not get to, or say that it is there still.

    :param interrupted: whether somebody has asked for an end, so that nothing is tried twice.
    """
    run_file = service.shared.run_file  # empty where the run had not come to that
    progress = Progress(bars=False, as_json=logs_json())
    config = service.before
    if config is None or config.blob_descriptor_cache != "redis":
        config = read_config(options["config"], progress)
    also = (run_file,) if run_file else ()
    cache = blob_cache_of(config, options["state_dir"], progress, also=also)
    cache.heed(interrupted)
    storage = storage_of(config)
    try:
        left = cache.catch_up(storage.driver, storage.root)
        stale = cache.check()
        if stale is not None:
            complain(stale.message)
        if run_file in left or cache.state((storage.driver, storage.root)).left:
            service.stale = (
                "THE REGISTRY'S REDIS MAY REMEMBER BLOBS THAT ARE GONE, and answers pushes with"
                f" them: empty it (FLUSHDB) before anybody pushes; {run_file or left[0]} names what"
                " was deleted"
            )
    finally:
        cache.close()
        storage.close()


def run_away(
    service: Service,
    options: Mapping[str, Any],
    job_of: Callable[[Progress | None], Job],
    run: Callable[[Job], Report],
    interrupts: Interrupts,
) -> Report:
    """Take the registry out of use, run the collection, bring the registry back.

    :param job_of: makes the job anew, as the config may have been edited; with an observer of
        its own, or the usual one.
    :raises ConfigError: there is no job to be made of it.
    """
    with ExitStack() as stack:
        if service.barred:
            barred = Verdict("refused", (Finding("locked", service.barred),))
            return run(replace(job_of(None), check=lambda: barred))
        # Open to the end: who reads a pipe would take its closing for the end of all.
        refusing = _refusing(service.commands, options, job_of, stack)
        if refusing is not None:
            return run(replace(job_of(None), check=refusing))
        return _with_commands(_taken_away(service, options, job_of, run, interrupts), service)


def _taken_away(
    service: Service,
    options: Mapping[str, Any],
    job_of: Callable[[Progress | None], Job],
    run: Callable[[Job], Report],
    interrupts: Interrupts,
) -> Report:
    report: Report | None = None

    def before() -> None:
        # A run that has ended without a report may have deleted something all the same.
        nothing = not service.shared.run_file if report is None else not report.forgotten.left
        if nothing:
            return
        try:
            _forget(options, service, interrupts)
        except Exception as error:  # nothing may keep the registry from being started
            service.stale = f"THE REGISTRY MAY REMEMBER BLOBS THAT ARE GONE: {error}"

    try:
        # The collection looks first of all whether there was a signal, and has a report for it.
        with interrupts.deferred():
            failed = service.leave()
            job = job_of(None)
            service.shared.remote = not job.storage.capabilities.folders
            if failed is not None:
                job = replace(job, check=lambda: Verdict("refused", (failed,)))
            else:
                _settle(job, interrupts)
        report = run(job)
        return report
    finally:
        # A signal right here ends this process; the other one then brings the registry back.
        with interrupts.deferred():
            service.back(before)


def _refusing(
    commands: Commands,
    options: Mapping[str, Any],
    job_of: Callable[[Progress | None], Job],
    stack: ExitStack,
) -> Callable[[], Verdict] | None:
    """The guard of a run that would come to nothing with the registry out of use too, if it would.

    :param stack: closes the audit log that was tried.
    :raises ConfigError: the run file is that of a run with other options, or the audit log's
        address cannot be understood.
    """
    silent = Progress(bars=False, notices=False)
    job = job_of(silent)
    try:
        if not is_stopped(job, silent) and found_at(job.run_file, job.storage) is Found.OTHER:
            return partial(_fail, RunFileError(already_there(job.run_file)))
        audit = audit_log_of(options, job.run)
        if audit is not None:
            stack.callback(audit.close)
        check = job.check if audit is None else audit.guarded(job.check)
        refusal = _refusal(commands, replace(job, check=check))
    finally:
        close(job)
    return None if refusal is None else lambda: refusal


def _fail(error: Exception) -> NoReturn:
    raise error


def _refusal(commands: Commands, job: Job) -> Verdict | None:
    """What would refuse *job* with the registry out of use too; None where nothing does."""
    try:
        if not is_registry(job.storage):
            return Verdict("refused", ())  # the collection says what it found instead
        verdict = commands.verdict_without(job.check())
        held = blocker(job.storage)
    except StorageError as error:
        return Verdict("unknown", (Finding("storage-unreadable", str(error)),))
    if held is not None:
        return Verdict("refused", (*verdict.findings, Finding("locked", str(held))))
    return None if verdict.allowed else verdict


def _settle(job: Job, interrupts: Interrupts) -> None:
    try:
        settled(job.check, interrupts)
    except StorageError:
        return  # the collection, which asks again, says so


def _with_commands(report: Report, service: Service) -> Report:
    forgotten = report.forgotten
    if forgotten.left and not service.stale:
        report, forgotten = _caught_up(report), replace(forgotten, left=0, earlier=0)
    if service.missing:
        # Nobody knows whether that is a new process.
        return replace(report, commands=tuple(service.ran), forgotten=forgotten)
    if not service.lost:
        # A new process remembers nothing.
        return replace(
            report, commands=tuple(service.ran), forgotten=replace(forgotten, restart=False)
        )
    return replace(
        report,
        commands=tuple(service.ran),
        forgotten=forgotten,
        error=report.error or service.lost,
        exit_code=1,
    )


def _caught_up(report: Report) -> Report:
    """What *report* comes to when Redis is back before the registry is."""
    warning = report.forgotten.warning
    error = (report.error or "").removesuffix(warning).removesuffix("; ")
    return replace(report, error=error or None, exit_code=report.own_code)
