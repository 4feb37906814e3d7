"""``registry-gc restore``: what a run has set aside comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import humanize

from registry_drivers.base import Storage
from registry_drivers.factory import versions_of
from registry_gc import __version__
from registry_gc.cli.output import Output
from registry_gc.cli.quarantine_records import Telling
from registry_gc.cli.wiring import complain, is_terminal, logs_json, note
from registry_gc.cli.working import (
    FAILURES,
    Failed,
    failure,
    locked,
    registry_at,
    run_work,
)
from registry_gc.interrupts import Interrupts
from registry_gc.layout import REPOSITORIES, SHA256_BLOBS
from registry_gc.permission import Refused
from registry_gc.progress import Progress
from registry_gc.quarantine.aside import Aside, Kept, asides
from registry_gc.quarantine.bring_back import Back, BringingBack, exists, meaning_of
from registry_gc.quarantine.clearing import clear_empty, forget_hidden, is_there
from registry_gc.quarantine.restore import Restored, UnknownWhat, What, select
from registry_gc.quarantine.still_allowed import StillAllowed
from registry_gc.report.counts import counted
from registry_gc.wording.moments import utc_minute
from registry_gc.wording.shown import shown


def run_restore(options: Mapping[str, Any]) -> int:
    """Restore what *options* name; returns the exit code."""
    return run_work(options, lambda output, interrupts: _run(options, output, interrupts))


def _run(options: Mapping[str, Any], output: Output, interrupts: Interrupts) -> int:
    progress = Progress(bars=not options["quiet"] and is_terminal(), as_json=logs_json())
    with registry_at(options, progress) as (_, storage):
        if options["what"] is None:
            return _list(options, storage, output)
        try:
            if options["dry_run"]:
                return _show(options, storage, output)
            return _restore(options, storage, output, progress, interrupts)
        finally:
            progress.finish()


def _selected(options: Mapping[str, Any], storage: Storage, done: Restored) -> list[Kept]:
    """What shall come back; what is damaged is lost in *done*."""
    known = [name for aside in asides(storage) for name in aside.ids]
    try:
        what = What.parse(options["what"], known)
    except UnknownWhat as error:
        raise Failed(str(error)) from error
    damaged: dict[str, str] = {}
    items = select(storage, versions_of(storage), what, damaged)
    done.lost += damaged.items()
    if not items and not damaged:
        raise Failed(f"{what.text}: nothing of that is in quarantine")
    return items


def _restore(
    options: Mapping[str, Any],
    storage: Storage,
    output: Output,
    progress: Progress,
    interrupts: Interrupts,
) -> int:
    done = Restored()
    telling = Telling(options, storage, "restore", progress)
    why = ""
    try:
        verdict = telling.guarded()()
        if not verdict.allowed:
            raise Refused(f"refused, nothing was moved: {verdict.findings[-1].message}")
        with locked(storage, interrupts, progress) as lock:
            look = StillAllowed.on(storage, lock, interrupts, telling.guarded())
            items = _selected(options, storage, done)
            if not options["allow_empty"]:
                _refuse_unmounted(storage, items)
            progress.phase("bringing back", len(items), "objects")
            versions = versions_of(storage)
            there: set[str] = set()
            for result in BringingBack(storage, versions, look).run(items):
                done.add(result)
                if is_there(result):
                    there.add(result.kept.path)
                telling.restored(result, f"asked for: {options['what']}")
                progress.advance(1)
                if options["verbose"] and result.back is Back.BACK and _says(options, "text"):
                    output.lines([shown(result.kept.path)])
            progress.finish()
            look()
            forget_hidden(storage, versions, there, look)
            clear_empty(storage, items)
        code = 3 if done.lost or done.failed else 0
    except FAILURES as error:
        # What is back, is back, and is told.
        code, why = failure(error)
    with interrupts.deferred():
        code, why = telling.ended(code, why, *_figures(done))
    if _says(options, "json"):
        output.lines([json.dumps(document(options, storage, done, code, why), indent=2)])
    elif _says(options, "text") and (done.kinds or not why):
        output.lines(map(shown, _lines(done)))
    if why:
        complain(why)
    elif code:
        note(f"{len(done.lost)} lost, {len(done.failed)} failed; they are still in quarantine")
    return code


def _refuse_unmounted(storage: Storage, items: Sequence[Kept]) -> None:
    """Raise where *items* would come back to a folder that a disk belongs over, which hides them.

    :raises Refused: nothing is there, and something was when they were set aside.
    """
    if not storage.capabilities.folders:
        return
    for top in (SHA256_BLOBS, REPOSITORIES):
        if any(kept.path.startswith(top) for kept in items) and not storage.children(top).folders:
            raise Refused(
                f"refused, nothing was moved: there is nothing in {storage.root}/{top[:-1]}: is "
                "its disk mounted? If all of it is in quarantine, --allow-empty"
            )


def _figures(done: Restored) -> tuple[dict[str, int], dict[str, int]]:
    objects = {
        "restored": sum(done.kinds.values()),
        "there": done.there,
        "lost": len(done.lost),
        "failed": len(done.failed),
    }
    return objects, {"restored": done.bytes}


def _says(options: Mapping[str, Any], form: str) -> bool:
    return options["output"] == form and (form == "json" or not options["quiet"])


def document(
    options: Mapping[str, Any], storage: Storage, done: Restored, code: int, why: str = ""
) -> dict[str, Any]:
    """What came back, as the JSON document that programs read; ``schema`` 1."""
    return {
        "schema": 1,
        "version": __version__,
        "storage": {"driver": storage.driver, "root": storage.root},
        "what": options["what"],
        "dry_run": options["dry_run"],
        "restored": dict(sorted(done.kinds.items())),
        "restored_bytes": done.bytes,
        "already_there": done.there,
        "lost": [{"path": path, "reason": reason} for path, reason in done.lost],
        "failed": [{"path": path, "error": error} for path, error in done.failed],
        "error": why or None,
        "exit_code": code,
    }


def _lines(done: Restored, verb: str = "restored") -> Iterator[str]:
    for path, reason in done.lost:
        yield f"lost: {path}: {reason}"
    for path, error in done.failed:
        yield f"not restored: {path}: {error}"
    counts = [counted(count, kind) for kind, count in sorted(done.kinds.items())]
    size = f" ({humanize.naturalsize(done.bytes)})" if done.bytes else ""
    yield f"{verb} {', '.join(counts) or 'nothing'}{size}"
    if done.there:
        yield f"{humanize.intcomma(done.there)} were there already and stay as they are"


def _show(options: Mapping[str, Any], storage: Storage, output: Output) -> int:
    """What a restore would bring back; asks for no lock."""
    done = Restored()
    items = []
    code, why = 0, ""
    try:
        for kept in _selected(options, storage, done):
            if exists(storage, kept.path):
                done.there += 1
                continue
            items.append(kept)
            done.kinds[meaning_of(kept.path).kind] += 1
            done.bytes += kept.size
    except FAILURES as error:
        code, why = failure(error)
    if _says(options, "json"):
        output.lines([json.dumps(document(options, storage, done, code, why), indent=2)])
    elif _says(options, "text") and not why:
        output.lines(map(shown, sorted(kept.path for kept in items)))
        output.lines(map(shown, _lines(done, "would restore")))
    if why:
        complain(why)
    return code


def _list(options: Mapping[str, Any], storage: Storage, output: Output) -> int:
    """Which runs are in quarantine."""
    found = asides(storage)
    if options["output"] == "json":
        rows = [
            {
                "run": aside.run,
                "plan": aside.plan or None,
                "moved": aside.moved,
                "seconds": aside.seconds,
            }
            for aside in found
        ]
        told = {"schema": 1, "version": __version__, "runs": rows, "error": None, "exit_code": 0}
        output.lines([json.dumps(told, indent=2)])
    elif not options["quiet"]:
        output.lines(map(shown, _run_lines(found)))
    return 0


def _run_lines(found: Sequence[Aside]) -> Iterator[str]:
    for aside in found:
        until = aside.until()
        if aside.moved is None or until is None:
            yield f"{aside.run}  of unknown age: only purge --older-than deletes it"
        else:
            since, due = utc_minute(aside.moved), utc_minute(until)
            plan = f", by the plan of {aside.plan}" if aside.plan not in ("", aside.run) else ""
            yield f"{aside.run}  set aside {since}, to be purged from {due}{plan}"
    if not found:
        yield "nothing is in quarantine"
