"""``registry-gc explain``: why something is kept or goes, in words or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import humanize

from registry_drivers.wrappers import ReadOnly
from registry_gc import __version__
from registry_gc.cli.output import Output
from registry_gc.cli.wiring import is_terminal, read_config, storage_of
from registry_gc.cli.working import Failed, engine_of, refuse_empty, run_work
from registry_gc.explain.explainer import (
    About,
    AboutDigest,
    AboutRepository,
    AboutTag,
    Explainer,
)
from registry_gc.explain.fates import Fate
from registry_gc.explain.lookup import Unknown
from registry_gc.explain.trails import Trail
from registry_gc.policy import Policy
from registry_gc.progress import Progress
from registry_gc.report.counts import counted
from registry_gc.survey import Surveyor
from registry_gc.usage.freed import Freed, Marker
from registry_gc.wording.moments import utc_minute
from registry_gc.wording.shown import shown

_SHOWN = 10
"""Lines of one sort in text; JSON has all."""
_STEPS = 12
"""Steps of one trail in text; a chain of referrers may have thousands."""
_KINDS = {AboutDigest: "digest", AboutTag: "tag", AboutRepository: "repository"}


def run_explain(options: Mapping[str, Any]) -> int:
    """Explain what *options* ask for; returns the exit code."""
    return run_work(options, lambda output, _: _run(options, output))


def _run(options: Mapping[str, Any], output: Output) -> int:
    progress = Progress(bars=is_terminal())
    config = read_config(options["config"], progress)
    storage = storage_of(config, options["max_requests_per_second"])
    policy = Policy(
        delete_untagged=options["delete_untagged"],
        grace=options["grace"],
        releases=tuple(options["releases"]),
    )
    try:
        reader = ReadOnly(storage)
        with engine_of(reader, options, progress) as engine:
            refuse_empty(reader)
            cutoff = storage.now() - policy.grace
            surveyor = Surveyor(reader, engine, policy, cutoff, progress)
            survey = surveyor.mark(surveyor.catalog())
            marker = Marker(reader, engine, survey.manifests, policy, cutoff)
            explainer = Explainer(reader, survey.catalog, survey.manifests, marker, cutoff)
            about = explainer.explain(options["what"])
    except Unknown as error:
        raise Failed(str(error)) from error
    finally:
        progress.finish()
        storage.close()
    if options["output"] == "json":
        kind = {
            "schema": 1,
            "version": __version__,
            "about": _KINDS[type(about)],
            "delete_untagged": policy.delete_untagged,
            "error": None,
            "exit_code": 0,
        }
        output.lines([json.dumps({**kind, **asdict(about)}, indent=2)])
    else:
        output.lines(map(shown, _lines(about)))
    return 0


def _lines(about: About) -> Iterator[str]:
    match about:
        case AboutDigest():
            yield from _digest_lines(about)
        case AboutTag():
            yield from _tag_lines(about)
        case AboutRepository():
            yield from _repository_lines(about)


def _digest_lines(about: AboutDigest) -> Iterator[str]:
    size = "not in the store"
    if about.size is not None and about.modified is not None:
        when = utc_minute(about.modified)
        size = f"{humanize.naturalsize(about.size)}, written {when}"
    where = f"{about.repository}@" if about.repository else ""
    yield f"{where}{about.digest}: {about.fate}"
    yield f"  {about.kind}, {size}"
    yield from (f"  {reason}" for reason in about.reasons)
    if about.subject:
        yield f"  describes {about.subject}"
    yield from _some("reached by", [_trail(trail) for trail in about.trails])
    yield from _some(
        "referred to by", [f"{name}@{digest} {how} it" for name, how, digest in about.referrers]
    )
    yield from _some(
        "linked as",
        [
            f"{link.kind} in {link.repository}: "
            + (f"would go, {link.goes}" if link.goes else "stays")
            for link in about.links
        ],
    )


def _trail(trail: Trail) -> str:
    root = f"{trail.repository}:{trail.tag}" if trail.tag else trail.repository
    steps = []
    for step in trail.steps:
        arrow = "" if not step.relation else f" -> {step.relation} "
        steps.append(f"{arrow or ' -> '}{step.kind} {step.digest}")
    if len(steps) > _STEPS:
        left = humanize.intcomma(len(steps) - _STEPS)
        steps[_STEPS // 2 : -_STEPS // 2] = [f" -> … {left} more (--output json has all) …"]
    why = "" if trail.tag else f" ({trail.root})"
    return f"{root}{why}{''.join(steps)}"


def _some(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"  {title}"
        yield from (f"    {line}" for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"    and {humanize.intcomma(len(lines) - _SHOWN)} more (--output json has all)"


def _tag_lines(about: AboutTag) -> Iterator[str]:
    yield f"{about.repository}:{about.tag}: a tag is never deleted by a collection"
    yield from (f"  {reason}" for reason in about.reasons)
    if about.others:
        yield f"  the same as {', '.join(about.others[:_SHOWN])}"
    yield f"  deleting it, then collecting with -m, would free {_freed(about.frees)}"
    if about.target is None:
        yield "  it holds no digest"
    else:
        yield from (f"  {line}" for line in _digest_lines(about.target))


def _repository_lines(about: AboutRepository) -> Iterator[str]:
    number = humanize.intcomma
    yield f"{about.repository}: {about.fate}"
    label = "held: " if about.fate is Fate.HELD else ""
    yield from (f"  {label}{reason}" for reason in about.reasons)
    tags = f" ({', '.join(about.tags[:_SHOWN])}{', …' if len(about.tags) > _SHOWN else ''})"
    yield (
        f"  {counted(len(about.tags), 'tag')}{tags if about.tags else ''}, "
        f"{counted(about.manifests, 'manifest')}, {counted(about.layer_links, 'layer link')}, "
        f"{counted(about.uploads, 'upload')}"
    )
    for kind, count in sorted(about.goes.items()):
        yield f"  would go: {number(count)} of kind {kind}"
    yield f"  deleting it, then collecting with -m, would free {_freed(about.frees)}"


def _freed(freed: Freed) -> str:
    return (
        f"{humanize.naturalsize(freed.bytes)} ({counted(freed.bytes, 'byte')}) in "
        f"{counted(freed.blobs, 'blob')}, {counted(freed.manifests, 'manifest')}"
    )
