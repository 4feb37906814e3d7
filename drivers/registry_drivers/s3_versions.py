"""Versions and delete markers on S3 and its like, with what a bucket keeps besides."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import (
    MalformedListing,
    columns,
    integers,
    key_of,
    text_of,
    texts_of,
    times,
    unescape,
)
from registry_drivers.errors import NotFound, StorageError, Unavailable
from registry_drivers.object_client import is_passing
from registry_drivers.object_versions import (
    Denied,
    Gone,
    Passing,
    Removed,
    Version,
    Versions,
    VersionState,
)
from registry_drivers.s3_answers import is_not_there, is_truncated, names_of, next_key, xml_holds
from registry_drivers.s3_settings import S3Settings
from registry_drivers.s3_uploads import S3Uploads

_VERSION = (b"Key", b"VersionId", b"IsLatest", b"LastModified", b"Size")
_MARKERS = 10


class S3Versions(S3Settings, S3Uploads):
    """What one bucket keeps; see :class:`~registry_drivers.versions.Versioned`."""

    marked = True

    @property
    def seekable(self) -> bool:  # type: ignore[override]  # SeaweedFS is found out while it lists
        """As the storage's own listings."""
        return self._storage.seekable

    def peek(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`~registry_drivers.versions.Undeleter`; two requests."""
        key = self._storage._key(path)
        versions = self._find([key]).get(key, [])
        # An older delete marker is among them, and has no size.
        old = [
            version for version in versions if version.state is VersionState.OLD and version.size
        ]
        if not old or not self._is_hidden(versions):
            raise NotFound("no version of it is hidden", path=path, driver=self._storage.driver)
        latest = max(old, key=lambda version: version.modified)
        query = [("versionId", latest.id)]

        def ask() -> bytes:
            return self._storage._request("GET", key, query, path=path, limit=limit).data

        return self._ask(ask, path, read=1)

    def undelete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.versions.Undeleter`."""
        remaining = iter(paths)
        while batch := list(itertools.islice(remaining, self._storage.capabilities.delete_batch)):
            yield from self._undelete(batch)

    def _undelete(self, batch: Sequence[str]) -> Iterator[Outcome]:
        keys = {self._storage._key(path): path for path in batch}
        waiting = sorted(keys, key=str.encode)
        unhidden: set[str] = set()
        failed: dict[str, str] = {}
        unknown: set[Version] = set()
        # One marker a round: a key that was deleted twice has two, one above the other.
        for _ in range(_MARKERS):
            if not waiting:
                break
            found = self._find(waiting)
            markers: list[Version] = []
            for key in waiting:
                versions = found.get(key, ())
                hidden = [row for row in versions if row.state is VersionState.MARKER]
                back = any(row.state is VersionState.CURRENT for row in versions)
                if back or not hidden or not any(row.state is VersionState.OLD for row in versions):
                    came = back and key in unhidden
                    result = Deletion.MOVED if came else Deletion.GONE_ALREADY
                    yield Outcome(keys[key], result)
                else:
                    markers += hidden
            self._delete_all(markers, failed, unknown)
            unhidden.update(marker.key for marker in markers)
            waiting = [marker.key for marker in markers if marker.key not in failed]
        failed.update(dict.fromkeys(waiting, "it has too many delete markers"))
        for key, reason in failed.items():
            yield Outcome(keys[key], Deletion.FAILED, reason)

    # --- versions

    def _list(self, prefix: str, start: str, token: str) -> Versions:
        query = [("encoding-type", "url")]
        key, _, version = token.partition("\0")
        if not token and start > prefix and self.seekable:
            # A marker is exclusive, and nothing of a registry lies between these two.
            key = start[:-1]
        if key:
            query.append(("key-marker", key))
        query += [("max-keys", str(self._storage.page_size)), ("prefix", prefix)]
        if version:
            query.append(("version-id-marker", version))
        query.append(("versions", ""))
        document = self._storage._request("GET", query=query, path=prefix).data
        truncated = is_truncated(document, b"VersionsResult>")
        rows = [*_rows(document, b"Version"), *_rows(document, b"DeleteMarker")]
        if not truncated:
            return Versions(rows, "", "")
        last = next_key(document)
        return Versions(rows, last, f"{last}\0{text_of(document, b'NextVersionIdMarker')}")

    def _remove(self, versions: Sequence[Version]) -> Removed:
        named = [version for version in versions if xml_holds(version.key)]
        removed = self._remove_at_once(named) if named else {}
        for version in versions:
            if version not in removed:
                removed[version] = self._remove_alone(version)
        return removed

    def _remove_alone(self, version: Version) -> Gone | Denied | Passing:
        query = [("versionId", version.id)]
        try:
            self._storage._request("DELETE", version.key, query, path=version.key)
        except Unavailable as error:
            return Passing(error.message)
        except StorageError as error:
            return Gone() if is_not_there(error.message) else Denied(error.message)
        return Gone()

    def _remove_at_once(
        self, versions: Sequence[Version]
    ) -> dict[Version, Gone | Denied | Passing]:
        document = self._storage._send_deletes([(version.key, version.id) for version in versions])
        gone, unnamed = _deleted(document)
        errors = _errors(document)
        silent = 0
        removed: dict[Version, Gone | Denied | Passing] = {}
        for version in versions:
            named = (version.key, version.id)
            # Some stores name the key of what failed, and not the version.
            error = errors.get(named) or errors.get((version.key, ""))
            if error is not None:
                removed[version] = error
            elif named in gone:
                removed[version] = Gone()
            else:
                silent += 1
        for version in versions:
            if version not in removed:
                removed[version] = (
                    Gone() if silent == unnamed else Passing("the answer leaves it out")
                )
        return removed


def _rows(document: bytes, row: bytes) -> Iterator[Version]:
    data = row == b"Version"
    wanted = _VERSION if data else _VERSION[:-1]
    keys, ids, latest, modified, *sizes = columns(document, row, wanted)
    if not keys:
        return
    for name, number, last, time, size in zip(
        names_of(document, keys),
        ids,
        latest,
        times(modified).tolist(),
        integers(sizes[0]).tolist() if sizes else itertools.repeat(0),
        # Sizes of delete markers have no end.
        strict=False,
    ):
        if not name or not number or last not in (b"true", b"false"):
            raise MalformedListing("a row of the listing has no name, version or place")
        state = VersionState.OLD
        if last == b"true":
            state = VersionState.CURRENT if data else VersionState.MARKER
        yield Version(key_of(name), key_of(unescape(number)), size, time, state)


def _deleted(document: bytes) -> tuple[set[tuple[str, str]], int]:
    """Keys and versions that the answer says are gone, and how many it does not name."""
    keys, ids = columns(document, b"Deleted", [b"Key", b"VersionId"])
    named = {pair for pair in zip(texts_of(keys), texts_of(ids), strict=True) if all(pair)}
    return named, len(keys) - len(named)


def _errors(document: bytes) -> dict[tuple[str, str], Gone | Denied | Passing]:
    """What the answer says against keys and versions; where it names no version, against all."""
    found: dict[tuple[str, str], Gone | Denied | Passing] = {}
    wanted = [b"Key", b"VersionId", b"Code", b"Message"]
    told = (texts_of(column) for column in columns(document, b"Error", wanted))
    for key, number, code, message in zip(*told, strict=True):
        text = f"{code}: {message}".rstrip(": ")
        if is_not_there(code):
            found[key, number] = Gone()
        else:
            found[key, number] = Passing(text) if is_passing(200, code) else Denied(text)
    return found
