"""The lines that scripts written for the stock command expect, and a summary for people.

Source of the lines: CNCF Distribution 3.1.1, ``registry/storage/garbagecollect.go``. There they
come in the order of Go's maps; here they are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator

import humanize
import numpy as np

from registry_gc.compact.arrays import distinct
from registry_gc.job import Plan
from registry_gc.manifest_reader import ManifestState
from registry_gc.marking.pairs import manifests_of, repositories_of
from registry_gc.report.model import Report
from registry_gc.runs.rows import RowKind
from registry_gc.wording.shown import shown


def plan_lines(plan: Plan, verbose: bool) -> Iterator[str]:
    """Every repository, what is marked, what is eligible for deletion; some many lines at once."""
    if verbose:
        yield from map(shown, _marking_lines(plan))
    else:
        yield from map(shown, plan.catalog.repositories)
    blobs = plan.run_file.count(RowKind.BLOB).rows
    manifests = plan.run_file.count(RowKind.REVISION).rows
    yield ""
    yield (
        f"{len(plan.marking.live_set)} blobs marked, {blobs} blobs and {manifests} manifests "
        "eligible for deletion"
    )
    yield from map(shown, _manifest_lines(plan))
    yield from plan.run_file.lines(RowKind.BLOB, "blob eligible for deletion: {digest}", shown)
    form = "{repository}: layer link eligible for deletion: {digest}"
    yield from plan.run_file.lines(RowKind.LAYER_LINK, form, shown)


def _manifest_lines(plan: Plan) -> Iterator[str]:
    """Dead manifests, each with the tags that pointed to it once."""
    for name, entries in plan.run_file.manifests():
        history = " ".join(sorted(map(_tag, entries)))
        yield f"manifest eligible for deletion: {{{name} [{history}]}}"


def _tag(entry: str) -> str:
    return entry.partition("/_manifests/tags/")[2].partition("/")[0]


def _marking_lines(plan: Plan) -> Iterator[str]:
    """Repositories with the manifests and blobs they keep, each once in a repository.

    Distribution 3 names a blob only where it is met first, 2.8 for each manifest.
    """
    live = plan.marking.live  # sorted, so by repository
    bounds = np.searchsorted(repositories_of(live), np.arange(len(plan.catalog.repositories) + 1))
    names = plan.catalog.names
    keys, states = plan.manifests.batch.keys, plan.manifests.batch.states
    for number, repository in enumerate(plan.catalog.repositories):
        yield repository
        ids = manifests_of(live[bounds[number] : bounds[number + 1]])
        ids = ids[np.argsort(keys[ids])]
        marked: set[bytes] = set()
        for manifest in ids[states[ids] != ManifestState.MISSING].tolist():
            yield f"{repository}: marking manifest {names.text(keys[manifest].tobytes())} "
            _, targets, _ = plan.manifests.targets_of(np.array([manifest]))
            for target in distinct(targets):
                key = target.tobytes()
                if key not in marked:
                    marked.add(key)
                    yield f"{repository}: marking blob {names.text(key)}"


def summary_lines(report: Report) -> Iterator[str]:
    """What the run came to, in human units."""
    return map(shown, _summary_lines(report))


def _summary_lines(report: Report) -> Iterator[str]:
    yield ""
    done = not report.dry_run
    size = humanize.naturalsize
    tallies = (report.blobs, report.uploads, report.versions, report.multipart_uploads)
    freed = sum(tally.deleted_bytes for tally in tallies)
    found = sum(tally.eligible_bytes for tally in tallies)
    aside = report.quarantine.seconds is not None
    if done and aside:
        kept = sum(tally.quarantined_bytes for tally in tallies)
        yield (
            f"quarantined {size(kept)} and freed {size(freed)} of {size(found)} found, "
            f"in {_seconds(report)}"
        )
    elif done:
        yield f"freed {size(freed)} of {size(found)} found, in {_seconds(report)}"
    elif aside:
        kept = report.blobs.eligible_bytes
        yield (
            f"a collection would quarantine {size(kept)} and free {size(found - kept)}; "
            f"found out in {_seconds(report)}"
        )
    else:
        yield f"a collection would free {size(found)}; found out in {_seconds(report)}"
    yield f"  repositories  {_number(report.repositories)}, {_number(report.emptied)} emptied"
    for name, tally in (
        ("manifests", report.manifests),
        ("layer links", report.layer_links),
        ("blobs", report.blobs),
        ("uploads", report.uploads),
        ("old versions", report.versions),
        ("upload parts", report.multipart_uploads),
    ):
        if tally.eligible == 0 and tally in (report.versions, report.multipart_uploads):
            continue
        line = f"  {name:13} {_number(tally.eligible)} eligible"
        if tally.eligible_bytes:
            line += f" ({size(tally.eligible_bytes)})"
        if name == "blobs":
            line += f" of {_number(report.blobs_total)}"
        if done and tally.quarantined:
            line += f", {_number(tally.quarantined)} quarantined"
        if done and (tally.deleted or not tally.quarantined):
            line += f", {_number(tally.deleted)} deleted"
        yield line
    yield from _quarantine_lines(report)
    yield from _retained_lines(report)
    if report.taken_back:
        yield f"  taken back    {_number(report.taken_back)}, not dead any more"
    if report.already_gone:
        yield f"  gone already  {_number(report.already_gone)}"
    if report.strangers:
        yield f"  strangers     {_number(report.strangers)} files that are not a registry's, kept"
    if report.verified:
        yield f"  verified      {_number(report.verified.manifests)} live manifests"
    yield from _cache_lines(report)
    yield from _command_lines(report)
    yield from _problem_lines(report)
    if report.run_file:
        yield f"  run file      {report.run_file}"


def _quarantine_lines(report: Report) -> Iterator[str]:
    """Until when what was set aside waits, and what came back."""
    seconds = report.quarantine.seconds
    tallies = (report.manifests, report.layer_links, report.blobs)
    if seconds is not None and any(tally.quarantined for tally in tallies):
        how = ", hidden by delete markers" if report.quarantine.marked else ""
        yield f"  quarantine    run {report.run} waits {humanize.precisedelta(seconds)}{how}"
    if report.quarantine.recalled:
        yield f"  brought back  {_number(report.quarantine.recalled)} that are live"
    if report.quarantine.missed:
        yield f"  to come back  {_number(report.quarantine.missed)} that are live"


def _retained_lines(report: Report) -> Iterator[str]:
    """What the storage goes on keeping."""
    size = humanize.naturalsize
    for keep in report.keeps:
        yield f"  kept          {keep.message}"
    if report.retained.objects:
        yield (
            f"  leftovers     {size(report.retained.bytes)} in old versions of "
            f"{_number(report.retained.objects)} objects that were deleted before this run"
        )
    if report.retained.soft_deleted:
        yield f"  soft-deleted  {size(report.retained.soft_deleted)}, until the storage lets go"
    for path in report.retained.recoverable:
        yield f"  recoverable   {path}: live, but deleted; old versions of it are there"


def _command_lines(report: Report) -> Iterator[str]:
    for ran in report.commands:
        yield f"  {ran.name:13} {ran.error or f'command done in {ran.seconds:.1f} s'}"


def _cache_lines(report: Report) -> Iterator[str]:
    """What the registry still remembers of what is gone."""
    if report.forgotten.removed:
        yield f"  forgotten     {_number(report.forgotten.removed)} in the registry's Redis"
    if report.forgotten.left:
        yield f"  remembered    {_number(report.forgotten.left)} in the registry's Redis"
    if report.forgotten.restart:
        yield "  restart       the registry, before it takes writes: it remembers deleted blobs"


def _problem_lines(report: Report) -> Iterator[str]:
    for hold in report.held:
        what = f"{hold.repository}@{hold.digest}" if hold.digest else hold.repository
        yield f"  held          {what}: {hold.reason}"
    for damage in report.damaged:
        yield f"  damaged       {damage.path}: {damage.reason}"
    for path, error in report.failed:
        yield f"  not deleted   {path}: {error}"


def _number(count: int) -> str:
    return humanize.intcomma(count)


def _seconds(report: Report) -> str:
    return f"{report.seconds_total:.1f} s"
