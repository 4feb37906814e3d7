"""Wires one collection together: config, storage, guard, observers, output, exit code."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from registry_drivers.errors import DriverConfigError
from registry_gc.apply import apply
from registry_gc.blob_cache.forgetting import with_cache
from registry_gc.cli.output import Output
from registry_gc.cli.policy import caution, policy_of
from registry_gc.cli.records import Recorder, Records
from registry_gc.cli.resume import is_stopped
from registry_gc.cli.runs import prune_runs
from registry_gc.cli.wiring import (
    blob_cache_of,
    cache_path,
    close,
    complain,
    config_of,
    dask_engine,
    guard_of,
    is_terminal,
    log_as_json,
    logs_json,
    look_for_cycles_rarely,
    note,
    state_folder,
    storage_of,
    wanted_state_dir,
)
from registry_gc.collect import Job, Plan, collect, objections
from registry_gc.config import Config
from registry_gc.configuring.file import ConfigError
from registry_gc.events import Observer
from registry_gc.guard import DRAINS, Finding, Verdict
from registry_gc.guard.tags import refused_for, tags_elsewhere
from registry_gc.guard.writable import while_writable
from registry_gc.interrupts import Interrupted, Interrupts
from registry_gc.machine.shortage import NO_MEMORY
from registry_gc.progress import Progress
from registry_gc.report.document import as_json
from registry_gc.report.model import Report
from registry_gc.report.text import plan_lines, summary_lines
from registry_gc.runs.shrink import memory_path
from registry_gc.runs.state_dir import run_file_path
from registry_gc.service.between import out_of_use, place_of, same_place

if TYPE_CHECKING:
    from registry_gc.service.away import Commands, Service

_COMMANDS = ("stop_command", "start_command", "readonly_command", "readwrite_command")


class Doing(Protocol):
    """What is done with a job: it is collected, planned, or applied."""

    def __call__(
        self,
        job: Job,
        observer: Observer,
        interrupts: Interrupts,
        show: Callable[[Plan], None] | None = None,
        /,
    ) -> Report:
        """Do it, and say what it came to."""


def run_collection(options: Mapping[str, Any], doing: Doing | None = None) -> int:
    """Run the collection that *options* describe; returns the exit code.

    :param doing: what to do instead of collecting, or going on with a collection.
    """
    if not any(options[name] for name in _COMMANDS):
        return _run_here(options, doing)
    from registry_gc.cli.away import run_with_commands

    return run_with_commands(options, lambda given, *away: _run_here(given, doing, *away))


def _run_here(
    options: Mapping[str, Any],
    doing: Doing | None,
    commands: Commands | None = None,
    service: Service | None = None,
) -> int:
    look_for_cycles_rarely()
    # Nobody who does not read on may keep a registry down: what there is to say comes after it.
    output = Output(patient=service is not None)
    interrupts = Interrupts()
    try:
        with interrupts.installed(), interrupts.until(options["deadline"]):
            code = _run(options, output, interrupts, doing, commands, service)
        if options["dry_run"]:  # what it has found out is all that it is for
            code = output.exit_code(code)
    except Interrupted as interrupt:
        # Before the collection has begun, or while its report is shown.
        code = interrupt.exit_code
        complain(interrupt.reason)
        if service is None or not service.lost:
            _tell_unfinished(options, output, service, code, interrupt.reason)
    except MemoryError:
        code = 1
        complain(NO_MEMORY)
        if service is None or not service.lost:
            _tell_unfinished(options, output, service, code, NO_MEMORY)
    finally:
        if service is not None and service.lost:
            _tell_unfinished(options, output, service, 1, service.lost)
        # Last of all, whatever else there was to say.
        if service is not None:
            _say_loudly(service)
            if not service.shared.away:
                service.over()
            code = _hand_over(output, service, code, as_json=options["output"] == "json")
        else:
            output.close()
    return 1 if service is not None and service.lost else code


def _hand_over(output: Output, service: Service, code: int, *, as_json: bool) -> int:
    """Write what has waited for the registry to be back; returns the exit code after that."""
    interrupts = Interrupts()
    said: bool | None = None
    try:
        # A document is whole or worth nothing; lines end with a signal, as they always do.
        with interrupts.installed(), interrupts.deferred() if as_json else nullcontext():
            said = output.close()
    except Interrupted as interrupt:
        if said is None:
            code, said = interrupt.exit_code, True
            complain(interrupt.reason)
            output.close()
    service.shared.reported = output.reported
    if said:
        # They were said before that, which may take for ever; and are the last to be read.
        _say_loudly(service)
    return code


def _say_loudly(service: Service) -> None:
    for line in filter(None, (service.stale, service.lost)):
        complain(line)
    if service.missing:
        note(service.missing)


def _tell_unfinished(
    options: Mapping[str, Any], output: Output, service: Service | None, code: int, why: str
) -> None:
    """Tell of a run that has no report, unless that is told, or the other process tells it."""
    if output.reported or (service is not None and service.shared.away):
        return
    from registry_gc.cli.unfinished import tell_unfinished

    output.keep_rest()
    output.reported = True
    tell_unfinished(options, output, code, why, service.ran if service is not None else ())


def _run(
    options: Mapping[str, Any],
    output: Output,
    interrupts: Interrupts,
    doing: Doing | None,
    commands: Commands | None,
    service: Service | None,
) -> int:
    quiet, text = options["quiet"], options["output"] == "text"
    progress = Progress(bars=not quiet and is_terminal(), as_json=logs_json())
    if logs_json():
        log_as_json()
    recorder: Recorder | None = None

    def show(plan: Plan) -> None:
        assert recorder is not None
        recorder.planned(plan)
        if text and not quiet:
            output.lines(plan_lines(plan, options["verbose"]))

    try:
        records = Records.of(options, progress)

        def run(job: Job) -> Report:
            nonlocal recorder
            try:
                with interrupts.deferred():  # from here on, a signal has a report
                    done = doing or (apply if is_stopped(job, progress) else collect)
                    recorder = records.recorder(job)
                return done(recorder.job, records.observer, interrupts, show)
            except Interrupted:
                raise  # told of by who catches it
            except Exception:
                if recorder is not None:
                    recorder.crashed()
                raise
            finally:
                # A signal now would take the report with it.
                with interrupts.deferred():
                    progress.finish()
                    close(job)

        if service is None:
            report = run(_job(options, progress, commands, service))
        else:
            from registry_gc.cli.away import run_away

            report = run_away(
                service,
                options,
                lambda watcher: _job(options, watcher or progress, commands, service),
                run,
                interrupts,
            )
    except (ConfigError, DriverConfigError) as error:
        complain(str(error))
        return 2
    output.keep_rest()
    assert recorder is not None
    lost = service.lost if service is not None else ""
    with interrupts.deferred():
        # With what became of the commands: a registry that stays down is a run that failed.
        report = recorder.ended(_with_lost(report, lost))
        output.reported = True
        # An error in the config has no document, whoever finds it.
        if not text and report.exit_code != 2:
            output.lines([as_json(report)])
    if text and not quiet and report.run_file is not None and report.seconds_mark:
        output.lines(summary_lines(report))
    # A registry that is left out of use has a line of its own, the last one.
    own = (report.error or "").removeprefix(lost).removeprefix("; ")
    _say(replace(report, error=own or None))
    prune_runs(options, report.run_file)
    return report.exit_code


def _with_lost(report: Report, lost: str) -> Report:
    """The report, with that the registry may be down before what else there is to say."""
    if not lost or report.error == lost:
        return report
    return replace(report, error="; ".join(filter(None, (lost, report.error))))


def tell_at_once(report: Report, options: Mapping[str, Any]) -> int:
    """Tell of a run that has ended before it began; returns the exit code."""
    output = Output()
    try:
        if options["output"] == "json":
            output.lines([as_json(report)])
        _say(report)
    finally:
        output.close()
    return report.exit_code


def _job(
    options: Mapping[str, Any],
    progress: Progress,
    commands: Commands | None,
    service: Service | None,
) -> Job:
    config = config_of(options, progress)
    storage = storage_of(config, options["max_requests_per_second"])
    stopped = options["registry_stopped"] or (commands is not None and commands.stops)
    before = service.before if service is not None else None
    guard = guard_of(config, storage, {**options, "registry_stopped": stopped}, before)
    drains = config.http.drains or (before is not None and before.http.drains)
    if drains and (stopped or commands is not None):
        progress.notice(DRAINS)
    run = str(uuid.uuid4())
    sealed = options.get("sealed", False)
    if options["allow_writable"]:
        caution(config, progress)
    state_dir = state_folder(options, progress)
    begun = service.shared.begun if service is not None else None
    # A read-only registry may do without; the one that takes writes again remembers there.
    cached = before if before is not None and _redis(before) else config
    cache = blob_cache_of(cached, state_dir, progress, begun)
    check = with_cache(_as_before(config, before, guard.check), cache)
    tagged = tags_elsewhere(config)
    if options["delete_untagged"]:
        check = refused_for(check, tagged)
    if commands is not None and options["dry_run"]:
        check = commands.guessing(check)
    return Job(
        storage=storage,
        policy=policy_of(config, options),
        # Where a plan is carried out, it says whether that may be lifted.
        check=while_writable(check) if options["allow_writable"] and not sealed else check,
        run_file=_run_file(options, state_dir, run),
        cache=cache_path(options, state_dir, storage),
        dry_run=options["dry_run"],
        verify=options["verify"],
        workers=options["workers"],
        blob_cache=cache,
        engine=dask_engine(options, config, storage),
        run=run,
        seen=memory_path(state_dir, storage.driver, storage.root),
        config=os.path.abspath(config.path),
        tags_elsewhere=tagged,
        # Nobody looks into a folder that is there for this run alone.
        listed=not options["run_file"] and state_dir == wanted_state_dir(options),
        barred=str
        if service is not None
        else partial(out_of_use, place_of(state_dir, config.storage)),
    )


def _as_before(
    config: Config, before: Config | None, check: Callable[[], Verdict]
) -> Callable[[], Verdict]:
    """*check*, but where *config* is about other things than *before* the command: it refuses.

    What was looked at then, and is kept from other runs of this machine, is another storage; and
    the registry may write there still, or remember in another Redis what is deleted.
    """
    if before is None:
        return check
    if not same_place(before.storage, config.storage):
        what = "another storage"
    elif _redis(before) and _redis(config) and before.redis != config.redis:
        what = "another Redis"
    else:
        return check
    found = Finding(
        "config-changed",
        f"{config.path}: names {what} than before the command: only what says where the registry"
        " listens, and that it is read-only, may change",
    )
    return lambda: Verdict("refused", (found,))


def _redis(config: Config) -> bool:
    return config.blob_descriptor_cache == "redis"


def _run_file(options: Mapping[str, Any], state_dir: str, run: str) -> str:
    if options["run_file"]:
        return os.path.abspath(str(options["run_file"]))
    return run_file_path(state_dir, run, time.time())


def _say(report: Report) -> None:
    """One line on stderr for everything but plain success."""
    if report.error is not None:
        complain(report.error)
    elif report.dry_run and report.verdict != "allowed":
        reasons = "; ".join(finding.message for finding in objections(report.findings))
        note(f"a collection would be refused: {reasons}")
    if report.dry_run and report.forgotten.left:
        note(report.forgotten.warning)
    if report.forgotten.restart:
        note(
            "restart the registry before it takes writes: it remembers deleted blobs"
            " (storage.cache.blobdescriptor is inmemory)"
        )
    if report.exit_code == 3:
        note(
            f"{len(report.held)} held, {len(report.damaged)} damaged, "
            f"{len(report.failed)} not deleted; the report says which and why"
        )
