"""Whether what was found can be a registry: where a disk is not mounted, all looks like garbage.

A manifest that is gone names nothing, so that links to its layers look dead. Of single manifests
that is so. Of most of them at once it says more about the disk: mounted again, it would hold
images that nothing links any more.
"""

from __future__ import annotations

from registry_gc.guard import Finding
from registry_gc.survey import Survey

_FEW = 5
"""So few lost manifests are always believed, unless they are all that there is."""


def objection(
    survey: Survey, *, allow_empty: bool, accept_shrink: bool, accepted: int = 0
) -> Finding | None:
    """What speaks against deleting by *survey*, whose blobs have been listed.

    :param accepted: so many manifests were missing before, and somebody has said that it is right.
    """
    blobs = survey.blobs.total if survey.blobs else 0
    if not survey.live_manifests or (survey.linked and not blobs):
        if allow_empty or not (blobs or survey.linked):
            return None
        return Finding(
            "no-live-manifests",
            f"{blobs} blobs, {survey.linked} manifests that repositories link, and not one live "
            "manifest in the store: that is a wrong root or a lost disk more often than an empty "
            "registry; if it is right, --allow-empty",
        )
    linked = max(survey.missing, survey.linked - blobs), survey.linked
    for what, (missing, total) in (("linked", linked), ("live", survey.lost(blobs))):
        if accept_shrink or missing <= accepted:
            continue
        if missing >= _FEW and missing * 2 >= total:
            return Finding(
                "missing-manifests",
                f"{missing} of {total} {what} manifests are not among the blobs: is all of it "
                "mounted, and restored? If it is right, --accept-shrink",
            )
    return None
