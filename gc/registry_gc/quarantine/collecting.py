"""The quarantine's part in a run: what comes back before it decides, and what it deletes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from registry_drivers.base import Deleter, Storage
from registry_gc.events import Observer
from registry_gc.policy import Policy
from registry_gc.quarantine.aside import Quarantining, anything_waits
from registry_gc.survey import Survey, Surveyor

if TYPE_CHECKING:
    from registry_gc.quarantine.bring_back import LookOrStop


class SettingAside:
    """What one run does about quarantines, its own and those of others.

    :param versions: what tells of the storage's versions, if it has any.
    :param cache: the path of the reference cache; None to read every manifest.
    :ivar marks: delete markers hide what this run sets aside.
    :ivar recalled: how many live things have come back.
    :ivar missed: how many a dry run has found that would.
    """

    def __init__(
        self, storage: Storage, versions: object | None, observer: Observer, cache: str | None
    ) -> None:
        self._storage = storage
        self._cache = cache
        self._versions = versions
        self._observer = observer
        self.marks = False
        self.recalled = 0
        self.missed = 0

    def tell_missed(self, survey: Survey) -> Survey:
        """Count what is live and in quarantine, and leave it there."""
        if not anything_waits(self._storage):
            return survey
        # Few registries have a quarantine; the others need not import what empties one.
        from registry_gc.quarantine.recall import missed

        self.missed = len(missed(self._storage, survey, self._versions, self._cache))
        if self.missed:
            self._observer.notice(
                f"{self.missed} blobs and links that are live lie in quarantine; a collection "
                "brings them back first, and then finds less to delete than is said here"
            )
        return survey

    def recall(self, survey: Survey, again: Callable[[], Survey], look: LookOrStop) -> Survey:
        """Bring back what is live; returns the mark that found nothing more.

        :raises StorageError: see :func:`registry_gc.quarantine.recall.recall`.
        """
        if not anything_waits(self._storage):
            return survey
        from registry_gc.quarantine.recall import recall

        survey, came, _ = recall(
            self._storage,
            self._versions,
            survey,
            again,
            look,
            self._observer,
            cache=self._cache,
        )
        self.recalled += came
        return survey

    def look_back(self, surveyor: Surveyor, look: LookOrStop) -> None:
        """Mark, and bring back what is live by now: what a push has reached meanwhile.

        :raises StorageError: see :func:`registry_gc.quarantine.recall.recall`.
        """
        if not anything_waits(self._storage):
            return
        from registry_gc.quarantine.recall import look_back

        self.recalled += look_back(self._storage, self._versions, surveyor, look, self._observer)

    @contextmanager
    def deleter(self, run: str, plan: str, policy: Policy) -> Iterator[Deleter]:
        """What the sweep of *run* deletes with: the storage, or what sets aside instead.

        :param plan: the run that made the plan that is carried out.
        """
        if policy.quarantine is None:
            yield self._storage
            return
        aside = Quarantining(self._storage, run, plan, policy.quarantine, self._versions)
        with closing(aside) as quarantine:
            self.marks = quarantine.marks
            yield quarantine
