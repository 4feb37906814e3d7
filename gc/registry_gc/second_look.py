"""Looking again at a registry for which there is a plan: what of it may still go.

Between a plan and its execution anything may have happened: pushes, deletes, another collection, a
clock that was set, a crash of the run itself. So nothing is taken from the plan but *at most this*:

1. The registry is listed again, all of it, after the guard has said that nobody can write and
   with the lock held: repositories, tags, revisions, links, uploads, and blobs with their sizes
   and times. What cannot be listed or read ends the run, as in a first look.
2. What is live is marked anew, by the plan's own rules and cut-off. Only manifests are not read
   again that were read before: a digest's content never changes. (A remembered manifest may have
   been lost or damaged since; what it references is then still kept, which is too much, never too
   little. It is *verify* that looks for such damage.)
3. Every link that the plan did not see, at that path with that time, counts as young, whatever
   its own time says (:mod:`registry_gc.runs.links_seen`). What it names is live with all that
   it leads to. So a push that reuses a blob of the plan takes that blob back, also where the
   pushing registry's clock is wrong.
4. A row stays only if the second look finds the very same row dead: the same path, size and
   time. A blob, link or upload that was written anew has another time, and is taken back. So has
   the youngest old version of what was deleted, where it was written or deleted anew.

Rows are only ever taken back: what has become garbage since is left to the next plan. That is why
even a plan made while the registry was in use, or from a listing that was wrong, deletes nothing
but what a collection made now would delete too. A repository that has to be held now has all of
its rows taken back by the same rule; save that a manifest which was damaged after the plan had read
it is not seen to be (point 2): it holds nothing, and what it references stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import msgspec

from registry_drivers.base import Reader
from registry_drivers.versions import VersionReader
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import within
from registry_gc.digest import key_of, pack
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.live_set import LiveSet
from registry_gc.plan import dead_links
from registry_gc.policy import Policy
from registry_gc.retained import is_live, leftovers_of, multipart_rows
from registry_gc.runs.links_seen import renew, word, words_there
from registry_gc.runs.plan_file import Doubtful, PlanFile
from registry_gc.runs.rows import RowKind, RowState
from registry_gc.survey import Survey, Surveyor

Recall = Callable[[Survey, Callable[[], Survey]], Survey]


class Looked(msgspec.Struct, frozen=True):
    """What a second look came to.

    ``emptied``: repositories that will hold nothing any more, as far as the plan says so.
    ``taken_back`` and ``gone``: how many rows are not dead any more, or not there.
    """

    catalog: Catalog
    survey: Survey
    emptied: frozenset[str]
    new_links: int
    taken_back: int
    gone: int


def look_again(
    plan: PlanFile,
    reader: Reader,
    engine: Engine,
    policy: Policy,
    observer: Observer,
    *,
    cache: str | None,
    versions: VersionReader | None,
    recall: Recall,
) -> Looked:
    """Take back every row of *plan* that must not, or need not, be deleted now.

    :param policy: that of the plan, see :meth:`PlanFile.policy`.
    :param cache: where what manifests reference is remembered; None to read them all again.
    :param recall: brings back what is live and lies in quarantine, then surveys again.
    :raises StorageError: something could not be listed or read; nothing may be deleted then.
    """
    meta = plan.meta()
    cutoff = float(meta["cutoff"])
    surveyor = Surveyor(reader, engine, policy, cutoff, observer, cache)
    known, new_links = plan.seen(), 0
    dead = plan.scratch()

    def survey_now() -> Survey:
        nonlocal new_links
        catalog = surveyor.catalog()
        new_links = renew(catalog, known)
        dead.drop_all(RowKind.BLOB)
        return surveyor.look_again(catalog, dead)

    try:
        survey = recall(survey_now(), survey_now)
        catalog = survey.catalog
        links = dead_links(catalog, survey.manifests, survey.marking, policy, cutoff)
        dead.add(links.rows)
        if versions is not None:
            dead.add(multipart_rows(versions, policy, cutoff))
        dead.index_paths()
        dead.close()
        judge = _Judge(catalog, survey)
        outcomes = [
            (row.number, *judge.verdict(row)) for rows in plan.doubtful(dead.path) for row in rows
        ]
    finally:
        dead.close()
        with contextlib.suppress(OSError):
            os.unlink(dead.path)
    if versions is not None:
        outcomes += _versions_taken_back(plan, versions, survey, judge.live)
    plan.record(outcomes)
    plan.try_failed_again()
    planned = frozenset(meta["emptied"])
    gone = sum(state is RowState.GONE_ALREADY for _, state, _ in outcomes)
    return Looked(
        catalog=catalog,
        survey=survey,
        emptied=planned & (links.emptied | (planned - set(catalog.repositories))),
        new_links=new_links,
        taken_back=len(outcomes) - gone,
        gone=gone,
    )


def _versions_taken_back(
    plan: PlanFile, versions: VersionReader, survey: Survey, live: LiveSet
) -> list[tuple[int, RowState, str]]:
    """The open rows of old versions that are not what the plan has seen, and why.

    All versions are listed again, as for the plan; only where it has such rows.
    """
    rows = plan.open_versions()
    if not rows:
        return []
    assert survey.blobs is not None
    youngest = {
        left.path: left.youngest
        for found in leftovers_of(versions.leftovers, survey.blobs.total)
        for left in found
        if left.path in rows
    }
    outcomes = []
    for path, (number, planned) in rows.items():
        if is_live(path, live, survey.catalog.names):
            why = "its current object is live"
        elif path not in youngest:
            why = "it has a current object, or nothing of it is left"
        elif planned is not None and youngest[path] > planned:
            why = "written or deleted anew since the plan"
        else:
            continue
        outcomes.append((number, RowState.TAKEN_BACK, why))
    return outcomes


class _Judge:
    """Says of rows that were not found dead again whether they are there at all."""

    def __init__(self, catalog: Catalog, survey: Survey) -> None:
        self._catalog = catalog
        self._survey = survey
        self.live = survey.marking.live_set
        self._words = words_there(catalog)
        self._paths = {path for upload in catalog.uploads for path in upload.files}
        self._paths.update(signature.path for signature in catalog.signatures)

    def verdict(self, row: Doubtful) -> tuple[RowState, str]:
        """What becomes of *row*, and why."""
        if row.changed:
            return RowState.TAKEN_BACK, "written anew since the plan"
        if self._is_there(row):
            return RowState.TAKEN_BACK, "not dead any more"
        return RowState.GONE_ALREADY, "gone before the second look"

    def _is_there(self, row: Doubtful) -> bool:
        if row.kind in (RowKind.SIGNATURE, RowKind.UPLOAD, RowKind.MULTIPART):
            return row.path in self._paths
        keys = pack([key_of(row.digest or "")])
        if row.kind is RowKind.BLOB:
            return bool(self.live.has(keys)[0] or within(self._survey.late, keys)[0])
        tag = row.path.partition("/_manifests/tags/")[2].partition("/")[0]
        words = word(_LINKS[row.kind], row.repository or "", keys, tag)
        return bool(within(self._words, words)[0])


_LINKS = {
    RowKind.TAG_INDEX: "tag_index",
    RowKind.REVISION: "revisions",
    RowKind.LAYER_LINK: "layers",
}
