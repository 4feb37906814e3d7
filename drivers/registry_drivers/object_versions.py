"""What the versions of S3, Google Cloud Storage and Azure have in common.

Listings of versions are pages of :class:`Version`; a key's versions stand together in them. What
is to be deleted is looked for in as few pages as hold it: a listing begins at the first key that
is wanted, and jumps to the next wanted one where a page ends before it.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import bytes_of
from registry_drivers.errors import (
    AccessDenied,
    InvalidPath,
    StorageError,
    Unavailable,
    Unsupported,
)
from registry_drivers.multipart import Part
from registry_drivers.object_client import is_passing
from registry_drivers.object_store import ObjectStorage
from registry_drivers.paging import PageTokens
from registry_drivers.paths import check_path, check_prefix
from registry_drivers.versions import Leftover, MultipartUpload

Storage = TypeVar("Storage", bound=ObjectStorage)
Answered = TypeVar("Answered")


class VersionState(enum.Enum):
    """What a version is to its key."""

    CURRENT = "current"
    """The object itself."""
    MARKER = "delete marker"
    """The latest of its key: without it, the version before would be current again."""
    OLD = "old"
    """An older version, or an older delete marker."""
    RETAINED = "retained"
    """Soft-deleted: only the storage deletes it, when its time has come."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a key. ``modified``: when it was written or deleted, whichever is later."""

    key: str
    id: str
    size: int
    modified: float
    state: VersionState


@dataclass(frozen=True, slots=True)
class Versions:
    """A page. ``last``: the key that may go on in the next one; ``token`` is empty at the end."""

    rows: Sequence[Version]
    last: str
    token: str


# What is told of a key and its versions.
Telling = Callable[[str, Sequence[Version]], Leftover | None]

# What became of each version of a delete request.
Removed = Mapping[Version, "Gone | Denied | Passing"]


@dataclass(frozen=True, slots=True)
class Gone:
    """It is deleted, or was."""


@dataclass(frozen=True, slots=True)
class Denied:
    """It stays, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Passing:
    """It stays for now: worth another try."""

    reason: str


def removed_of(
    versions: Sequence[Version],
    parts: Mapping[int, Part],
    told: Callable[[Part], tuple[str, str]],
) -> Removed:
    """What became of *versions*, by the answers to a batch of deletes in their order.

    :param told: code and message of an answer that is an error.
    """
    removed: dict[Version, Gone | Denied | Passing] = {}
    for number, version in enumerate(versions):
        part = parts.get(number)
        if part is None:
            removed[version] = Passing("the answer leaves it out")
        elif part.done or part.status == 404:
            removed[version] = Gone()
        else:
            code, message = told(part)
            text = f"{code}: {message} (HTTP {part.status})"
            removed[version] = Passing(text) if is_passing(part.status, code) else Denied(text)
    return removed


class ObjectVersions(abc.ABC, Generic[Storage]):
    """A :class:`~registry_drivers.versions.Versioned`; subclasses speak to one kind of store.

    :ivar marked: a key that was deleted has a delete marker. Without one, and without a current
        object, the listing was no whole one.
    :ivar seekable: listings can begin at any key, and come in the order of the keys' bytes.
    """

    marked = False
    seekable = True

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    # --- for subclasses

    @abc.abstractmethod
    def _list(self, prefix: str, start: str, token: str) -> Versions:
        """One page of all versions of keys that begin with *prefix*, from the key *start* on."""

    @abc.abstractmethod
    def _remove(self, versions: Sequence[Version]) -> Removed:
        """Send one request that deletes *versions*."""

    # --- what a listing says

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """See :class:`~registry_drivers.versions.Versioned`."""
        return self._listed(prefix, self._leftover)

    def leftovers_and_current(self, prefix: str) -> Iterator[Leftover]:
        """See :class:`~registry_drivers.versions.Versioned`."""
        return self._listed(prefix, self._leftover_or_current)

    def _listed(self, prefix: str, told: Telling) -> Iterator[Leftover]:
        check_prefix(prefix, self._storage.driver)
        self._storage._prepare()
        found = (told(*key) for key in self._every(self._storage.folder + prefix))
        return (one for one in found if one is not None)

    def _every(self, prefix: str) -> Iterator[tuple[str, list[Version]]]:
        """The keys that begin with *prefix*, each with all that the storage keeps of it."""
        return self._keys(prefix)

    def _leftover(self, key: str, versions: Sequence[Version]) -> Leftover | None:
        return self._left(key, versions) if self._is_hidden(versions) else None

    def _leftover_or_current(self, key: str, versions: Sequence[Version]) -> Leftover | None:
        if any(version.state is VersionState.CURRENT for version in versions):
            return self._left(key, versions, current=True)
        return self._leftover(key, versions)

    def _left(
        self, key: str, versions: Sequence[Version], *, current: bool = False
    ) -> Leftover | None:
        path = key[len(self._storage.folder) :]
        if not is_path(path):
            return None
        going = [version for version in versions if version.state is not VersionState.RETAINED]
        staying = [version for version in versions if version.state is VersionState.RETAINED]
        return Leftover(
            path=path,
            versions=len(going),
            bytes=sum(version.size for version in going),
            youngest=max(version.modified for version in versions),
            retained=sum(version.size for version in staying),
            current=current,
        )

    def _is_hidden(self, versions: Iterable[Version]) -> bool:
        """Whether *versions*, those of one key, surely hold no current object."""
        states = {version.state for version in versions}
        return VersionState.CURRENT not in states and (
            VersionState.MARKER in states or not self.marked
        )

    def _keys(self, prefix: str) -> Iterator[tuple[str, list[Version]]]:
        """The keys that begin with *prefix*, each with all its versions."""
        open_keys: dict[str, list[Version]] = {}
        token = ""
        tokens = PageTokens(prefix, self._storage.driver)
        while True:
            page = self._page(prefix, "", token)
            for version in page.rows:
                open_keys.setdefault(version.key, []).append(version)
            if page.rows or not page.token:
                rest = open_keys.pop(page.last, None) if page.token else None
                yield from open_keys.items()
                open_keys = {} if rest is None else {page.last: rest}
            if not page.token:
                return
            token = tokens.next(page.token, empty=not page.rows)

    def _page(self, prefix: str, start: str, token: str) -> Versions:
        return self._ask(lambda: self._list(prefix, start, token), prefix, list=1)

    def _ask(
        self, work: Callable[[], Answered], path: str, *, list: int = 0, read: int = 0
    ) -> Answered:
        """What *work*, one request and the reading of its answer, returns in the end."""
        storage = self._storage

        def ask() -> Answered:
            storage.requests.add(list=list, read=read)
            return work()

        answered: Answered = storage._call(ask, path)
        return answered

    # --- deleting

    def delete_versions(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.versions.Versioned`."""
        remaining = iter(paths)
        while batch := list(islice(remaining, self._storage.capabilities.delete_batch)):
            yield from self._delete_batch(batch)

    def _delete_batch(self, batch: Sequence[str]) -> Iterator[Outcome]:
        outcomes: dict[str, Outcome] = {}
        keys: dict[str, str] = {}
        for path in dict.fromkeys(batch):
            try:
                keys[self._storage._key(path)] = path
            except InvalidPath as error:
                outcomes[path] = Outcome(path, Deletion.FAILED, error.message)
        found = self._find(sorted(keys, key=str.encode)) if keys else {}
        going: dict[str, list[Version]] = {}
        for key, path in keys.items():
            versions = [row for row in found.get(key, ()) if row.state is not VersionState.RETAINED]
            if not versions:
                outcomes[path] = Outcome(path, Deletion.GONE_ALREADY)
            elif not self._is_hidden(versions):
                outcomes[path] = Outcome(path, Deletion.FAILED, _CURRENT)
            else:
                going[key] = versions
        failed: dict[str, str] = {}
        unknown = {version for versions in going.values() for version in versions}
        broken: StorageError | None = None
        try:
            self._delete_in_order(going, failed, unknown)
        except StorageError as caught:
            # Keys of which everything is gone by then are gone all the same.
            broken = caught
        open_keys = {version.key for version in unknown}
        for key in going:
            path = keys[key]
            if key in failed:
                outcomes[path] = Outcome(path, Deletion.FAILED, failed[key])
            elif key not in open_keys:
                size = sum(version.size for version in going[key])
                outcomes[path] = Outcome(path, Deletion.DELETED, bytes=size)
        for path in batch:
            if path in outcomes:
                yield outcomes[path]
        if broken is not None:
            raise broken

    def _delete_in_order(
        self,
        going: Mapping[str, Sequence[Version]],
        failed: dict[str, str],
        unknown: set[Version],
    ) -> None:
        """Delete versions, and markers after what they hide.

        Adds to *failed* why keys failed, and takes from *unknown* what is known to be gone.
        """
        for state in (VersionState.OLD, VersionState.MARKER):
            self._delete_all(
                [
                    version
                    for key, versions in going.items()
                    for version in versions
                    if version.state is state and key not in failed
                ],
                failed,
                unknown,
            )

    def _delete_all(
        self, versions: Sequence[Version], failed: dict[str, str], unknown: set[Version]
    ) -> None:
        size = self._storage.capabilities.delete_batch
        for start in range(0, len(versions), size):
            self._delete_until_answered(versions[start : start + size], failed, unknown)

    def _delete_until_answered(
        self, versions: Sequence[Version], failed: dict[str, str], unknown: set[Version]
    ) -> None:
        storage = self._storage
        waiting: dict[Version, str] = dict.fromkeys(versions, "")

        def ask() -> None:
            storage.requests.add(delete=1)
            for version, result in self._remove(list(waiting)).items():
                if isinstance(result, Passing):
                    waiting[version] = result.reason
                    continue
                del waiting[version]
                if isinstance(result, Denied):
                    failed[version.key] = storage._clean(result.reason)
                else:
                    unknown.discard(version)
            if waiting:
                raise Unavailable(next(iter(waiting.values())), driver=storage.driver)

        try:
            storage._call(ask)
        except Unavailable:
            if not any(waiting.values()):
                # No answer at all: nobody knows what became of any of them.
                raise
            failed.update({version.key: reason for version, reason in waiting.items()})
        except AccessDenied as error:
            failed.update(dict.fromkeys((version.key for version in waiting), error.message))

    # --- looking again at what is to be deleted

    def _find(self, keys: Sequence[str]) -> dict[str, list[Version]]:
        """All versions of *keys*, which are sorted by their bytes."""
        found, unsure = self._scan(keys)
        for key in keys:
            versions = found.get(key, ())
            clear = self._is_hidden(versions) if versions else key not in unsure
            if not clear and not any(row.state is VersionState.CURRENT for row in versions):
                found[key] = dict(self._keys(key)).get(key, [])
        return found

    def _scan(self, keys: Sequence[str]) -> tuple[dict[str, list[Version]], set[str]]:
        """The versions of *keys* in at most as many pages as keys, and what may lack some."""
        wanted = set(keys)
        found: dict[str, list[Version]] = {}
        prefix = _shared(keys[0], keys[-1])
        order = [bytes_of(key) for key in keys]
        at, start, token, last = 0, keys[0], "", ""
        # Where a listing begins, moto's server leaves out the first version.
        unsure = {start}
        for _ in keys:
            page = self._page(prefix, start, token)
            for version in page.rows:
                if version.key in wanted:
                    found.setdefault(version.key, []).append(version)
            token = page.token
            if not token:
                return found, unsure
            if not page.rows:
                continue
            last = page.last
            if not self.seekable:
                continue
            reached = bytes_of(last)
            while at < len(keys) and order[at] < reached:
                at += 1
            if at == len(keys):
                return found, unsure
            if order[at] > reached:
                start, token = keys[at], ""
                unsure.add(start)
        # The pages were not enough: the last key may be one of which we saw a part.
        found.pop(last, None)
        return found, wanted

    # --- uploads in parts: only S3 has them

    def abandoned_uploads(self, prefix: str, *, before: float) -> Iterator[MultipartUpload]:
        """See :class:`~registry_drivers.versions.Versioned`; this storage has none."""
        check_prefix(prefix, self._storage.driver)
        return iter(())

    def abort(self, uploads: Iterable[MultipartUpload]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.versions.Versioned`; this storage has none."""
        for upload in uploads:
            raise Unsupported(
                "this storage has no uploads in parts",
                path=upload.path,
                driver=self._storage.driver,
            )
        return iter(())


_CURRENT = "it has a current object, which has to be deleted first"


def is_path(path: str) -> bool:
    """Whether a key, as a listing has it, is one that a driver can be asked for."""
    try:
        check_path(path).encode()
    except (InvalidPath, UnicodeEncodeError):
        # No driver could name it: "a//b", a folder marker such as "a/", bytes that are no UTF-8.
        return False
    return True


def _shared(first: str, last: str) -> str:
    """With what both begin; of sorted keys, so do all between them."""
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]
