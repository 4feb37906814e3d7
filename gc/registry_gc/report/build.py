"""The report of a session: what it found and did, read from its run file."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
import uuid
from collections.abc import Sequence

from msgspec.structs import replace

from registry_drivers.errors import StorageError
from registry_gc import __version__
from registry_gc.blob_cache.forgetting import Forgotten
from registry_gc.guard import Finding
from registry_gc.lock import blocker
from registry_gc.report.model import Quarantine, Report, Tally, Verification
from registry_gc.run_file import RunFile
from registry_gc.runs.database import RunFileError
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.runs.version_rows import unfreed
from registry_gc.session import Session


def report_of(session: Session, code: int) -> Report:
    """What *session* came to; *code* is its exit code, 3 where only the report can tell that."""
    try:
        return _report(session, session.run_file, code)
    except RunFileError as error:
        # The journal can be read no more; the rest can still be told.
        assert session.run_file is not None
        session.error = session.error or str(error)
        report = _report(session, None, 1 if code in (0, 3) else code)
        return replace(report, run_file=session.run_file.path)


def report_of_none(
    run_file: str | None, code: int, error: str, findings: Sequence[Finding] = ()
) -> Report:
    """The report of a run that ended before it knew of any storage, so that nothing is told of."""
    nothing = Tally()
    return Report(
        run=str(uuid.uuid4()),
        run_file=run_file,
        version=__version__,
        dry_run=False,
        delete_untagged=False,
        driver="",
        root="",
        repositories=0,
        emptied=0,
        marked=0,
        manifests=nothing,
        blobs_total=0,
        blobs=nothing,
        layer_links=nothing,
        uploads=nothing,
        already_gone=0,
        held=(),
        damaged=(),
        failed=(),
        strangers=0,
        requests={},
        seconds_mark=0.0,
        seconds_sweep=0.0,
        seconds_total=0.0,
        peak_rss_bytes=_peak_rss(),
        verdict="refused" if findings else "unknown",
        findings=tuple(findings),
        error=error,
        exit_code=code,
    )


def _tally(run_file: RunFile | None, kind: RowKind) -> Tally:
    if run_file is None:
        return Tally()
    eligible = run_file.count(kind)
    deleted = run_file.count(kind, RowState.DELETED)
    aside = run_file.count(kind, RowState.QUARANTINED)
    freed = deleted.bytes
    if run_file.count(RowKind.VERSIONS, RowState.FAILED).rows:
        freed -= unfreed(run_file.read).get(kind.label, 0)
    return Tally(eligible.rows, eligible.bytes, deleted.rows, freed, aside.rows, aside.bytes)


def _versions(session: Session, run_file: RunFile | None) -> Tally:
    """A run appends those of what it deletes while it does; a dry run has counted them."""
    found, retained = _tally(run_file, RowKind.VERSIONS), session.retained
    return replace(
        found,
        eligible=found.eligible + retained.own,
        eligible_bytes=found.eligible_bytes + retained.own_bytes,
    )


def _uploads(run_file: RunFile | None) -> Tally:
    if run_file is None:
        return Tally()
    files = _tally(run_file, RowKind.UPLOAD)
    return Tally(
        run_file.uploads(),
        files.eligible_bytes,
        run_file.uploads(RowState.DELETED),
        files.deleted_bytes,
    )


def _repositories(session: Session) -> int:
    """How many there were when the run began: one that is gone on with has emptied some before."""
    if session.catalog is None:
        return 0
    names = session.catalog.repositories
    return len(names) + (len(session.emptied.difference(names)) if session.emptied else 0)


def _emptied(session: Session, run_file: RunFile | None) -> int:
    """How many repositories nothing is left of; on a dry run, how many that would be."""
    if session.job.dry_run or run_file is None:
        return len(session.emptied)
    stay = run_file.repositories_with(RowState.FAILED) | session.not_tidied
    return len(session.emptied - stay) * session.swept


def _rows_in(run_file: RunFile | None, state: RowState) -> int:
    return 0 if run_file is None else sum(run_file.count(kind, state).rows for kind in RowKind)


def _report(session: Session, run_file: RunFile | None, code: int) -> Report:
    ended = time.monotonic()
    failed = () if run_file is None else tuple(run_file.failures())
    marking = session.survey.marking if session.survey else None
    held = marking.holds if marking else ()
    damaged = marking.damaged if marking else ()
    blobs = session.survey.blobs if session.survey else None
    uploads = session.catalog.uploads if session.catalog else ()
    opinion = session.opinion
    if code == 0 and (held or damaged or failed or (opinion and opinion.faults)):
        code = 3
    forgotten, own_code = _forgotten(session), code
    if forgotten.left and not session.job.dry_run:
        # A run that was refused has left nothing itself, as a rule.
        failed_by_it = (0, 3, 4) if forgotten.left > forgotten.earlier else (0, 3)
        code = 1 if code in failed_by_it else code
        session.error = "; ".join(filter(None, (session.error, forgotten.warning)))
    return Report(
        run=session.job.run,
        run_file=None if run_file is None else run_file.path,
        version=__version__,
        dry_run=session.job.dry_run,
        delete_untagged=session.policy.delete_untagged,
        driver=session.storage.driver,
        root=session.storage.root,
        repositories=_repositories(session),
        emptied=_emptied(session, run_file),
        marked=len(marking.live_set) if marking else 0,
        manifests=_tally(run_file, RowKind.REVISION),
        blobs_total=session.blobs_total,
        blobs=_tally(run_file, RowKind.BLOB),
        layer_links=_tally(run_file, RowKind.LAYER_LINK),
        uploads=_uploads(run_file),
        keeps=session.keeps,
        retained=session.retained,
        versions=_versions(session, run_file),
        multipart_uploads=_tally(run_file, RowKind.MULTIPART),
        blobs_bytes=None if blobs is None or blobs.unsized else blobs.bytes,
        uploads_bytes=sum(sum(upload.sizes) for upload in uploads),
        held_blobs=blobs.held if blobs else 0,
        held_bytes=blobs.held_bytes if blobs else 0,
        live_manifests=session.survey.live_manifests if session.survey else 0,
        quarantine=Quarantine(
            session.policy.quarantine,
            session.aside.marks,
            session.aside.recalled,
            session.aside.missed,
        ),
        already_gone=_rows_in(run_file, RowState.GONE_ALREADY),
        taken_back=_rows_in(run_file, RowState.TAKEN_BACK),
        held=held,
        damaged=damaged,
        failed=failed,
        verified=None if opinion is None else Verification(opinion.manifests, opinion.faults),
        strangers=session.strangers,
        requests=session.storage.requests.totals(),
        seconds_mark=session.marked_at - session.began,
        seconds_sweep=session.swept_at - session.marked_at,
        seconds_total=ended - session.began,
        peak_rss_bytes=_peak_rss(),
        verdict=session.permission.verdict,
        findings=tuple(session.permission.findings),
        error=session.error,
        exit_code=code,
        own_code=own_code,
        forgotten=forgotten,
    )


def _forgotten(session: Session) -> Forgotten:
    cache, storage = session.job.blob_cache, session.storage
    found = cache.state((storage.driver, storage.root))
    if found.earlier and session.permission.lock is None:
        with contextlib.suppress(StorageError):
            if blocker(storage) is not None:
                return cache.state()  # what another run has not got to yet is not left
    return found


def _peak_rss() -> int:
    """Bytes of memory that this process had at most, and the largest of its workers."""
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return peak if sys.platform == "darwin" else peak * 1024
