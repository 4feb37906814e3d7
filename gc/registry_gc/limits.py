"""How much a run may delete, and whether what it found can be a registry at all.

Where a disk is not mounted, all looks like garbage. A manifest that is gone names nothing, so that
links to its layers look dead. Of single manifests that is so. Of most of them at once it says more
about the disk: mounted again, it would hold images that nothing links any more.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry_drivers.base import Reader
from registry_gc.events import Observer
from registry_gc.guard import Finding
from registry_gc.policy import Policy
from registry_gc.runs.shrink import Seen, remember, remembered
from registry_gc.survey import Survey

_FEW = 5
"""So few lost manifests are always believed, unless they are all that there is."""


class Limits:
    """The limits of one run.

    :param memory: where the size of the registry is remembered from run to run; None to forget it.
    """

    def __init__(self, policy: Policy, memory: str | None, observer: Observer) -> None:
        self._policy = policy
        self._memory = memory
        self._observer = observer
        self._told: set[str] = set()

    def doubts(self, survey: Survey) -> list[Finding]:
        """What speaks against deleting anything by *survey*."""
        allow_empty, accept_shrink = self._policy.allow_empty, self._policy.accept_shrink
        return _doubts(survey, self._before(), allow_empty=allow_empty, accept_shrink=accept_shrink)

    def objections(self, survey: Survey, dead: int, total: int) -> list[Finding]:
        """What speaks against deleting *dead* of *total* blobs by *survey*."""
        found = self.doubts(survey)
        limit = self._policy.max_delete
        if limit is not None and not limit.allows(dead, total):
            text = (
                f"{dead} of {total} blobs would go, more than the {limit} that --max-delete allows"
            )
            found.append(Finding("max-delete", text))
        return found

    def remember(self, survey: Survey, emptied: int, reader: Reader) -> None:
        """Write down what this run saw, less the repositories that it empties."""
        if self._memory is None:
            return
        now = _seen(survey)
        missing = now.missing
        if not self._policy.accept_shrink:
            # What was merely too few to be refused has been accepted by nobody.
            missing = min(missing, self._before().missing)
        left = Seen(now.repositories - emptied, now.tags, missing)
        self._tell(remember(self._memory, left, reader.driver, reader.root))

    def _before(self) -> Seen:
        before, notice = remembered(self._memory)
        self._tell(notice)
        return before

    def _tell(self, notice: str) -> None:
        if notice and notice not in self._told:
            self._told.add(notice)
            self._observer.notice(notice)


def _doubts(
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
    found += _undated(survey)
    if not accept_shrink:
        found += _shrunk(before.lost(_seen(survey)))
    return found


def _seen(survey: Survey) -> Seen:
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
        "registry, or its tags are in a database (Harbor, OpenShift); if it is right, "
        "--allow-empty",
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


def _undated(survey: Survey) -> Iterator[Finding]:
    if survey.blobs is not None and survey.blobs.undated:
        yield Finding(
            "ages-unknown",
            f"of {survey.blobs.undated} blobs that nothing needs the store does not say when they "
            "were written, so that nobody knows whether they are younger than --grace: stop the "
            "registry and run without it",
        )


def _blobs(survey: Survey) -> int:
    return survey.blobs.total if survey.blobs else 0
