"""What a bucket keeps after a delete, and how to get rid of it.

With versioning, soft delete, an object lock or a retention policy a delete frees nothing at once.
What stays shows in no ordinary listing; neither do uploads in parts that nobody finished.
:func:`registry_drivers.factory.versions_of` finds who can tell about a storage.

No function here can touch an object that is current: versions are deleted by their own names, and
only of keys that have no current object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import msgspec

from registry_drivers.base import Outcome


class Keep(msgspec.Struct, frozen=True):
    """A setting by which a deleted object goes on taking room, or cannot be deleted.

    ``code`` is one of ``versioning``, ``versioning-suspended``, ``mfa-delete``, ``soft-delete``,
    ``object-lock``, ``retention-policy``, ``legal-hold``, ``holds``; where the setting may not be
    read, ``unknown``. ``message`` is for people. ``listed``: what it keeps shows in
    :meth:`VersionReader.leftovers`; with ``unknown`` it may.
    """

    code: str
    message: str
    listed: bool = False


class Leftover(msgspec.Struct, frozen=True):
    """A key without a current object that still takes room; or, where ``current``, one with it.

    ``versions`` counts what :meth:`VersionDeleter.delete_versions` would delete, delete markers
    too, and ``bytes`` what that frees. ``retained`` are bytes of soft-deleted versions, which
    nobody can delete before the storage does. ``youngest``: when the youngest of all that was
    written, or deleted where the storage tells it, in seconds since the epoch by its clock. Where
    ``current``, the object itself is counted with them: so it will be once that is deleted.
    """

    path: str
    versions: int
    bytes: int
    youngest: float
    retained: int = 0
    current: bool = False


class MultipartUpload(msgspec.Struct, frozen=True):
    """An upload in parts that was begun and not finished.

    ``initiated`` and ``youngest`` (its youngest part's time, or its own) in seconds since the
    epoch by the storage's clock; ``bytes`` of its parts, None where the storage does not tell.
    """

    path: str
    upload_id: str
    initiated: float
    youngest: float
    bytes: int | None


class VersionReader(Protocol):
    """Looks at what a storage keeps. Safe to call from several threads."""

    def keeps(self) -> tuple[Keep, ...]:
        """What the bucket's settings keep; three requests at most.

        A setting that these credentials may not read is a :class:`Keep` of code ``unknown``.
        """

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """Every key below *prefix* that has no current object and yet takes room.

        Lists all versions of all keys, the current ones too: one request for each page. Comes
        in the order of the listing; prefixes may be listed side by side.
        """

    def leftovers_and_current(self, prefix: str) -> Iterator[Leftover]:
        """The same and, from the same requests, every key that has a current object."""

    def abandoned_uploads(self, prefix: str, *, before: float) -> Iterator[MultipartUpload]:
        """Uploads in parts below *prefix* of which nothing is younger than *before*.

        :param before: seconds since the epoch by the storage's clock.
        """


class VersionDeleter(Protocol):
    """Deletes what a storage keeps; what only a sweep is handed."""

    def delete_versions(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Delete all versions and delete markers of keys that have no current object.

        Looks again first: a key that has a current object fails and keeps everything, so delete
        it before. Where a version cannot be deleted (a lock, a hold), the key fails with the
        storage's reason, and its delete marker stays, without which an old version would be
        current again. Lazy, and one outcome for each path, as with
        :meth:`~registry_drivers.base.Deleter.delete`; the outcomes of sorted paths cost least.
        """

    def abort(self, uploads: Iterable[MultipartUpload]) -> Iterator[Outcome]:
        """Abort *uploads* and free their parts; one outcome for each, in their order."""


@runtime_checkable
class Undeleter(Protocol):
    """A storage on which a delete only hides an object, and can be undone without a copy."""

    def keeps_for(self, seconds: float) -> bool:
        """Whether it is known that what is deleted now can be undeleted for so long.

        False where a setting says otherwise, and where one may not be read.
        """

    def peek(self, path: str, *, limit: int | None = None) -> bytes:
        """The bytes of the last version of a key that was deleted.

        :raises NotFound: there is none, or the key has a current object.
        :raises TooLarge: it has more than *limit* bytes.
        """

    def undelete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """Remove the delete markers of keys, so that their last versions are current again.

        Lazy, one outcome for each path. ``MOVED``: the object is back. ``GONE_ALREADY``: nothing is
        hidden, as it has a current object, or no version is left.
        """


@runtime_checkable
class Versioned(VersionReader, VersionDeleter, Protocol):
    """A storage that may keep what was deleted: both together."""
