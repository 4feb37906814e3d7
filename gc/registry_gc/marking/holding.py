"""Repositories that are held: nothing of them goes, as something there could not be read."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from registry_drivers.errors import StorageError
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, distinct, within, without
from registry_gc.digest import Keys, pack
from registry_gc.layout import REPOSITORIES
from registry_gc.manifest_reader import ManifestState
from registry_gc.marking.aliases import Aliases
from registry_gc.marking.pairs import MANIFEST, Pairs, manifests_of, repositories_of
from registry_gc.policy import Policy
from registry_gc.references import Manifests


class Hold(msgspec.Struct, frozen=True):
    """Why nothing of a repository goes: what could not be read there."""

    repository: str
    digest: str | None
    reason: str


class Holding:
    """Which repositories are held, and why; more and more, while what is live grows.

    ``held``: their numbers. What a policy releases is not held.

    :param linked: every pair that is linked, sorted.
    """

    def __init__(
        self,
        catalog: Catalog,
        manifests: Manifests,
        policy: Policy,
        aliases: Aliases,
        linked: Pairs,
    ) -> None:
        self.held: set[int] = set()
        self._catalog = catalog
        self._manifests = manifests
        self._policy = policy
        self._aliases = aliases
        self._linked = linked
        self._reasons: dict[tuple[int, str | None], str] = {}
        self._checked = np.empty(0, np.int64)
        # How many of those that are held have had their revisions made live.
        self._kept_whole = 0

    @property
    def holds(self) -> tuple[Hold, ...]:
        """What is held and why, by repository and digest."""
        holds = [
            Hold(self._name(repository), digest, reason)
            for (repository, digest), reason in self._reasons.items()
        ]
        return tuple(sorted(holds, key=lambda hold: (hold.repository, hold.digest or "")))

    def broken_tags(self, broken: Mapping[int, str]) -> None:
        """Hold the repositories of tags that are broken: why, by row."""
        for row, reason in broken.items():
            tag = self._catalog.tags[row]
            self._reasons[tag.repository, None] = f"the tag {tag.name} {reason}"
            self.held.add(tag.repository)

    def misplaced(self) -> None:
        """Hold repositories that have a file where a folder is to be.

        :raises StorageError: it is that of their manifests, which nobody can name any more.
        """
        for repository, path in self._catalog.misplaced.items():
            name = self._name(repository)
            if self._policy.released(name, None):
                continue
            below = path[len(f"{REPOSITORIES}{name}/") :]
            if below.count("/") < 3 and "/tags" not in below:
                raise StorageError(
                    f"a file where a folder is to be: nobody knows which manifests {name} has; "
                    f"repair it, remove it, or say --release {name}",
                    path=path,
                )
            self._reasons.setdefault((repository, None), f"{below} is no folder")
            self.held.add(repository)

    def revisions(self, met: Pairs, live: Pairs) -> Pairs:
        """All revisions of the repositories that link or reach what could not be read.

        None of them where no repository is held that was not when this was asked last.

        :param met: what is linked, or has come to life since this was asked last.
        """
        batch = self._manifests.batch
        damaged = self._manifests.in_state(ManifestState.UNREADABLE, ManifestState.MISMATCH)
        if damaged.any():
            for pair in met[damaged[manifests_of(met)]].tolist():
                key = batch.keys[pair & MANIFEST].tobytes()
                self._hold(pair >> 32, key, batch.reasons[pair & MANIFEST])
        self._dangling(live)
        if len(self.held) == self._kept_whole:
            return np.empty(0, np.int64)
        self._kept_whole = len(self.held)
        return self._linked[among(repositories_of(self._linked), self.held)]

    def _dangling(self, live: Pairs) -> None:
        """Hold repositories that link or reach a digest of which no name is stored.

        Only for other algorithms than sha256: there a blob may be stored under a name that
        nobody can tell.
        """
        names = self._catalog.names
        if not names.others or not len(live):
            return
        fresh = without(live, self._checked)
        self._checked = live
        # Side by side, as what they name is kept.
        fresh = fresh[np.argsort(manifests_of(fresh))]
        # Few have such a name, and the keys of all would take four times what their pairs do.
        ids = self._manifests.ids(pack(sorted(names.others)))
        named = fresh[within(distinct(ids[ids >= 0]), manifests_of(fresh))]
        self._where_lost(named, self._manifests.keys_of(manifests_of(named)), "linked")
        for source, keys, _ in self._manifests.targets_in_parts(manifests_of(fresh)):
            self._where_lost(fresh[source], keys, "referenced")

    def _where_lost(self, pairs: Pairs, keys: Keys, how: str) -> None:
        """Hold the repository of each pair whose key is stored under no name that is known."""
        for row in self._aliases.among(keys):
            key = keys[row].tobytes()
            if not self._aliases.found(key):
                repository = int(repositories_of(pairs[row]))
                self._hold(repository, key, f"{how}, but stored under no known name")

    def _hold(self, repository: int, key: bytes, reason: str) -> None:
        digest = self._catalog.names.text(key)
        if not self._policy.released(self._name(repository), digest):
            self._reasons[repository, digest] = reason
            self.held.add(repository)

    def _name(self, repository: int) -> str:
        return self._catalog.repositories[repository]
