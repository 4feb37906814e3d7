"""How much a run may delete, and whether what it found can be a registry at all."""

from __future__ import annotations

from registry_drivers.base import Reader
from registry_gc.events import Observer
from registry_gc.guard import Finding
from registry_gc.plausible import doubts, seen
from registry_gc.policy import Policy
from registry_gc.runs.shrink import Seen, remember, remembered
from registry_gc.survey import Survey


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
        return doubts(survey, self._before(), allow_empty=allow_empty, accept_shrink=accept_shrink)

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
        now = seen(survey)
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
