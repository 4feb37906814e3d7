"""Whether what was found can be a registry: where a disk is not mounted, all looks like garbage.

A manifest that is gone names nothing, so that links to its layers look dead. Of single manifests
that is so. Of most of them at once it says more about the disk: mounted again, it would hold
images that nothing links any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry_gc.guard import Finding
from registry_gc.runs.shrink import Seen
from registry_gc.survey import Survey

_FEW = 5
"""So few lost manifests are always believed, unless they are all that there is."""


def doubts(
    survey: Survey, before: Seen, *, allow_empty: bool, accept_shrink: bool
) -> list[Finding]:
    """What speaks against deleting by *survey*, whose blobs have been listed.

    :param before: what the last run on this storage saw. So many manifests were missing then, and
        somebody has said that it is right.
    """
    found = []
    if _is_empty(survey):
        if not allow_empty:
            found.append(_no_manifests(survey))
    elif not accept_shrink:
        found += _missing_manifests(survey, before.missing)
    if not accept_shrink:
        found += _shrunk(before.lost(seen(survey)))
    return found


def seen(survey: Survey) -> Seen:
    """What is remembered of *survey*."""
    catalog = survey.catalog
    return Seen(len(catalog.repositories), len(catalog.tags), survey.missing)


def _is_empty(survey: Survey) -> bool:
    """Whether there is something, and not one live manifest."""
    blobs = _blobs(survey)
    none_live = not survey.live_manifests or (survey.linked and not blobs)
    return bool(none_live and (blobs or survey.linked))


def _no_manifests(survey: Survey) -> Finding:
    return Finding(
        "no-live-manifests",
        f"{_blobs(survey)} blobs, {survey.linked} manifests that repositories link, and not one "
        "live manifest in the store: that is a wrong root or a lost disk more often than an empty "
        "registry; if it is right, --allow-empty",
    )


def _missing_manifests(survey: Survey, accepted: int) -> Iterator[Finding]:
    blobs = _blobs(survey)
    linked = max(survey.missing, survey.linked - blobs), survey.linked
    for what, (missing, total) in (("linked", linked), ("live", survey.lost(blobs))):
        if missing > accepted and missing >= _FEW and missing * 2 >= total:
            yield Finding(
                "missing-manifests",
                f"{missing} of {total} {what} manifests are not among the blobs: is all of it "
                "mounted, and restored? If it is right, --accept-shrink",
            )
            return


def _shrunk(lost: str) -> Iterator[Finding]:
    if lost:
        yield Finding(
            "shrunk",
            f"{lost} since the last run on this storage: is all of it mounted, and is it the right "
            "one? If it is right, --accept-shrink",
        )


def _blobs(survey: Survey) -> int:
    return survey.blobs.total if survey.blobs else 0
