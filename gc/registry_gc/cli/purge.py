"""``registry-gc purge``: what has waited in quarantine long enough goes for good."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import humanize

from registry_drivers.base import Storage
from registry_drivers.errors import NotFound
from registry_drivers.factory import versions_of
from registry_drivers.wrappers import ReadOnly
from registry_gc import __version__
from registry_gc.catalog import is_registry
from registry_gc.cli.output import Output
from registry_gc.cli.quarantine_records import Telling
from registry_gc.cli.wiring import (
    cache_path,
    complain,
    guard_of,
    is_terminal,
    logs_json,
    note,
    state_folder,
    wanted_state_dir,
)
from registry_gc.cli.working import (
    FAILURES,
    engine_of,
    failure,
    locked,
    registry_at,
    run_work,
)
from registry_gc.collect import objections
from registry_gc.engine import Engine
from registry_gc.guard import Guard
from registry_gc.guard.watch import GuardWatch
from registry_gc.interrupts import Interrupts
from registry_gc.limits import Limits
from registry_gc.permission import Refused
from registry_gc.policy import Policy
from registry_gc.progress import Progress
from registry_gc.quarantine.bring_back import LookOrStop, Result
from registry_gc.quarantine.purge import Purge, Purged
from registry_gc.quarantine.recall import missed, recall
from registry_gc.quarantine.still_allowed import StillAllowed
from registry_gc.report.counts import counted
from registry_gc.runs.shrink import memory_path
from registry_gc.service.between import out_of_use, place_of
from registry_gc.survey import NoBlobs, Survey, Surveyor
from registry_gc.wording.moments import utc_minute
from registry_gc.wording.shown import shown


def run_purge(options: Mapping[str, Any]) -> int:
    """Purge the quarantine that *options* name; returns the exit code."""
    return run_work(options, lambda output, interrupts: _run(options, output, interrupts))


def _run(options: Mapping[str, Any], output: Output, interrupts: Interrupts) -> int:
    progress = Progress(bars=not options["quiet"] and is_terminal(), as_json=logs_json())
    with registry_at(options, progress) as (config, storage):
        guard = guard_of(config, storage, options)
        telling = Telling(options, storage, "purge", progress)
        barred = partial(out_of_use, place_of(wanted_state_dir(options), config.storage))
        purging = _Purging(options, storage, guard, telling, progress, interrupts, barred)
        why = ""
        try:
            with engine_of(ReadOnly(storage), options, progress) as engine:
                purging.run(engine)
            code = purging.exit_code()
        except FAILURES as error:
            code, why = failure(error)
        finally:
            progress.finish()
        with interrupts.deferred():
            code, why = telling.ended(code, why, *purging.figures())
        if options["output"] == "json":
            output.lines([json.dumps(purging.document(code, why), indent=2)])
        elif not options["quiet"]:
            output.lines(map(shown, purging.lines(ended=not why)))
    if why:
        complain(why)
    elif code:
        note("something was held, damaged or could not be deleted; it stays in quarantine")
    return code


class _Purging:
    def __init__(
        self,
        options: Mapping[str, Any],
        storage: Storage,
        guard: Guard,
        telling: Telling,
        progress: Progress,
        interrupts: Interrupts,
        barred: Callable[[], str],
    ) -> None:
        self._barred = barred
        self._options = options
        self._storage = storage
        self._check_guard = telling.guarded(guard.check)
        self._telling = telling
        self._progress = progress
        self._interrupts = interrupts
        self._dry_run: bool = options["dry_run"]
        self._recalled = 0
        self._missed = 0
        self._held: Sequence[str] = ()
        self._purged: list[Purged] = []

    def run(self, engine: Engine) -> None:
        """Look whether it is allowed, mark, bring back, purge."""
        self._ask()
        if self._dry_run:
            self._look_only(engine)
            return
        with (
            locked(self._storage, self._interrupts, self._progress, self._barred) as lock,
            GuardWatch(self._check_guard) as watch,
        ):
            look = StillAllowed.on(self._storage, lock, self._interrupts, watch.check)
            versions = versions_of(self._storage)
            surveyor = self._surveyor(engine)

            def mark() -> Survey:
                look()
                return surveyor.plan_blobs(surveyor.catalog(), NoBlobs())

            survey = mark()
            if reasons := self._doubts(survey):
                raise Refused(f"refused, nothing was deleted: {reasons}")
            survey, self._recalled, lost = recall(
                self._storage,
                versions,
                survey,
                mark,
                look,
                self._progress,
                self._told,
                surveyor.cache,
            )
            self._telling.flush()
            self._telling.held(survey)
            with self._interrupts.deferred():
                self._purge(survey, look, lost)
            self._interrupts.check()

    def _told(self, result: Result) -> None:
        self._telling.restored(result, "a live manifest needs it")

    def _look_only(self, engine: Engine) -> None:
        surveyor = self._surveyor(engine)
        survey = surveyor.plan_blobs(surveyor.catalog(), NoBlobs())
        if reasons := self._barred() or self._doubts(survey):
            note(f"a purge would be refused: {reasons}")
        found = missed(self._storage, survey, versions_of(self._storage), surveyor.cache)
        live = [kept.path for kept in found]
        self._missed = len(live)
        self._purge(survey, None, live)

    def _purge(self, survey: Survey, look: LookOrStop | None, live: Sequence[str] = ()) -> None:
        self._held = [hold.repository for hold in survey.marking.holds]
        purge = Purge(
            self._storage,
            versions_of(self._storage),
            survey,
            self._options["older_than"],
            look,
            live,
            self._telling.deleted,
        )
        self._progress.phase("purging", None, "runs")
        for purged in purge.run():
            self._purged.append(purged)
            self._progress.advance(1)
        self._progress.finish()

    def _surveyor(self, engine: Engine) -> Surveyor:
        # Every revision is a root here: nobody asked to delete what has no tag.
        cache = cache_path(
            self._options, state_folder(self._options, self._progress), self._storage
        )
        now = self._storage.now()
        reader = ReadOnly(self._storage)
        return Surveyor(reader, engine, Policy(), now, self._progress, cache)

    def _ask(self) -> None:
        """Whether anything may be deleted; a dry run may always look.

        :raises Refused: it may not.
        """
        try:
            there = is_registry(self._storage)
        except NotFound as error:
            raise Refused(f"refused, nothing was deleted: {error}") from error
        if not there:
            raise Refused(
                f"refused, nothing was deleted: {self._storage.root}: no registry there; "
                "is it mounted, and is the root directory right?"
            )
        verdict = self._check_guard()
        for line in verdict.notes:
            self._progress.notice(line)
        if verdict.allowed:
            return
        reasons = "; ".join(finding.message for finding in objections(verdict.findings))
        if not self._dry_run:
            raise Refused(f"refused, nothing was deleted: {reasons}")
        note(f"a purge would be refused: {reasons}")

    def _doubts(self, survey: Survey) -> str:
        """Half a tree, or a wrong one, has nothing that is live: all in quarantine would go."""
        state = state_folder(self._options, self._progress)
        memory = memory_path(state, self._storage.driver, self._storage.root)
        allowed = {name: self._options[name] for name in ("allow_empty", "accept_shrink")}
        found = Limits(Policy(**allowed), memory, self._progress).doubts(survey)
        return "; ".join(doubt.message for doubt in found)

    def exit_code(self) -> int:
        """3 where something stayed that should not have."""
        return 3 if self._held or any(purged.failed for purged in self._purged) else 0

    def figures(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many objects, and how many bytes, by what became of them."""
        objects = {
            "deleted": sum(purged.objects for purged in self._purged),
            "kept": sum(purged.kept for purged in self._purged),
            "failed": sum(len(purged.failed) for purged in self._purged),
            "restored": self._recalled,
        }
        return objects, {"deleted": sum(purged.bytes for purged in self._purged)}

    def document(self, code: int, why: str) -> dict[str, Any]:
        """What was purged, as the JSON document that programs read; ``schema`` 1."""
        return {
            "schema": 1,
            "version": __version__,
            "storage": {"driver": self._storage.driver, "root": self._storage.root},
            "dry_run": self._dry_run,
            "recalled": self._recalled,
            "missed": self._missed,
            "held": sorted(set(self._held)),
            "runs": [_row(purged) for purged in self._purged],
            "error": why or None,
            "exit_code": code,
        }

    def lines(self, *, ended: bool) -> Iterator[str]:
        """What was purged, for people."""
        would = "would be " if self._dry_run else ""
        if self._recalled or self._missed:
            count = humanize.intcomma(self._recalled or self._missed)
            yield f"{count} blobs and links that are live {would or 'were '}brought back"
        for purged in self._purged:
            if not purged.due:
                until = "nobody knows when" if purged.until is None else utc_minute(purged.until)
                yield f"{purged.run}  waits until {until}"
                continue
            size = humanize.naturalsize(purged.bytes)
            line = f"{purged.run}  {counted(purged.objects, 'object')} {would}deleted"
            line += f", {size} {would}freed"
            if purged.hidden:
                line += f", and what the versions of {purged.hidden:,} of them take"
            if purged.already_gone:
                line += f", {purged.already_gone:,} gone already"
            yield line + (f", {purged.kept} kept" if purged.kept else "")
            yield from (f"  not deleted   {path}: {error}" for path, error in purged.failed)
        if ended and not self._purged:
            yield "nothing is in quarantine"


def _row(purged: Purged) -> dict[str, Any]:
    return {
        "run": purged.run,
        "since": purged.since,
        "until": purged.until,
        "due": purged.due,
        "deleted": purged.objects,
        "deleted_bytes": purged.bytes,
        "hidden": purged.hidden,
        "kept": purged.kept,
        "already_gone": purged.already_gone,
        "failed": [{"path": path, "error": error} for path, error in purged.failed],
    }
