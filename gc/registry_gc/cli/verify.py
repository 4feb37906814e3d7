"""``registry-gc verify``: look whether every tag is whole, and list what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import humanize

from registry_drivers.base import Storage
from registry_gc import __version__
from registry_gc.cli.output import Output
from registry_gc.cli.wiring import is_terminal, note, read_config, storage_of
from registry_gc.cli.working import engine_of, refuse_empty, run_work
from registry_gc.progress import Progress
from registry_gc.report.counts import counted
from registry_gc.verify.every_tag import MissingChild, Problem, TrueSizes, Verified, verify
from registry_gc.wording.shown import shown


def run_verify(options: Mapping[str, Any]) -> int:
    """Verify the storage that *options* name; returns the exit code."""
    return run_work(options, lambda output, _: _run(options, output))


def _run(options: Mapping[str, Any], output: Output) -> int:
    quiet = options["quiet"]
    progress = Progress(bars=not quiet and is_terminal())
    config = read_config(options["config"], progress)
    storage = storage_of(config, options["max_requests_per_second"])
    try:
        reader = TrueSizes(storage)
        with engine_of(reader, options, progress) as engine:
            refuse_empty(reader)
            found = verify(
                reader,
                engine,
                progress,
                untagged=options["untagged"],
                content=options["content"],
            )
        wrong = bool(found.problems) or (options["whole_indexes"] and bool(found.missing_children))
        code = 3 if wrong else 0
        if options["output"] == "json":
            output.lines([json.dumps(document(found, storage, options, code), indent=2)])
        elif not quiet:
            output.lines(map(shown, _lines(found)))
    finally:
        progress.finish()
        storage.close()
    if found.changed:
        note(f"{len(found.changed)} tags changed while they were looked at; run again for those")
    if code and quiet:
        note(_faults(found))
    return code


def document(
    found: Verified, storage: Storage, options: Mapping[str, Any], code: int
) -> dict[str, Any]:
    """What was found, as the JSON document that programs read; ``schema`` 1."""
    return {
        "schema": 1,
        "version": __version__,
        "storage": {"driver": storage.driver, "root": storage.root},
        "content": options["content"],
        "untagged": options["untagged"],
        "repositories": found.repositories,
        "tags": found.tags,
        "manifests": found.manifests,
        "blobs": found.blobs,
        "bytes_read": found.bytes,
        "broken_tags": found.broken,
        "problems": [_problem(problem) for problem in found.problems],
        "missing_children": [_child(child) for child in found.missing_children],
        "changed": found.changed,
        "requests": storage.requests.totals(),
        "error": None,
        "exit_code": code,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "repository": problem.repository,
        "tag": problem.tag,
        "digest": problem.digest,
        "what": problem.what.value,
        "path": problem.path,
        "reason": problem.reason,
    }


def _child(child: MissingChild) -> dict[str, Any]:
    return {
        "repository": child.repository,
        "tag": child.tag,
        "index": child.index,
        "digest": child.digest,
        "stored": child.stored,
    }


def _faults(found: Verified) -> str:
    faults, tags = counted(len(found.problems), "fault"), counted(len(found.broken), "tag")
    return f"{faults}, {tags} not whole"


def _lines(found: Verified) -> Iterator[str]:
    for problem in found.problems:
        where = f"{problem.repository}:{problem.tag}" if problem.tag else problem.repository
        what = f"{problem.what} {problem.digest}" if problem.digest else str(problem.what)
        yield f"{where or 'in no repository'}: {what}: {problem.reason}"
    yield from (f"not whole: {tag}" for tag in found.broken)
    for child in found.missing_children:
        where = child.repository + (f":{child.tag}" if child.tag else "")
        elsewhere = "in another repository only" if child.stored else "not in the store"
        yield f"{where}: missing child {child.digest} of {child.index}: {elsewhere}"
    read = f", {humanize.naturalsize(found.bytes)} read" if found.bytes else ""
    verdict = "every tag is whole"
    if found.problems:
        verdict = _faults(found)
    if found.missing_children:
        verdict += f"; {counted(len(found.missing_children), 'missing child')} of indexes"
    yield (
        f"{counted(found.repositories, 'repository')}, {counted(found.tags, 'tag')}, "
        f"{counted(found.manifests, 'manifest')}, {counted(found.blobs, 'blob')}{read}: {verdict}"
    )
