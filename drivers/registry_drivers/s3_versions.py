"""Versions, delete markers, object lock and uploads in parts, on S3 and its like."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import (
    Column,
    MalformedListing,
    columns,
    integers,
    key_of,
    text_of,
    times,
    unescape,
)
from registry_drivers.errors import (
    AccessDenied,
    InvalidPath,
    NotFound,
    StorageError,
    Unavailable,
    Unsupported,
)
from registry_drivers.object_client import is_passing
from registry_drivers.object_versions import (
    Denied,
    Gone,
    ObjectVersions,
    Passing,
    Removed,
    State,
    Version,
    Versions,
    is_path,
)
from registry_drivers.paging import PageTokens
from registry_drivers.paths import check_prefix
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_answers import is_not_there, is_truncated, names_of, next_key, xml_holds
from registry_drivers.versions import Keep, MultipartUpload

_VERSION = (b"Key", b"VersionId", b"IsLatest", b"LastModified", b"Size")
# In the name of the root of each setting's document, which is not everywhere Amazon's.
_ROOTS = {"versioning": b"Versioning", "object-lock": b"ObjectLock", "lifecycle": b"Lifecycle"}
# Other than "there is no such setting", which stores other than Amazon's say with 400 too.
_ABOUT_CREDENTIALS = (
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
)
_MARKERS = 10
_DAY = 86400
_PURGE = "--purge-versions deletes them"


class S3Versions(ObjectVersions[S3Storage]):
    """What one bucket keeps; see :class:`~registry_drivers.versions.Versioned`."""

    marked = True

    @property
    def seekable(self) -> bool:  # type: ignore[override]  # SeaweedFS is found out while it lists
        """As the storage's own listings."""
        return self._storage.seekable

    # --- settings

    def keeps(self) -> tuple[Keep, ...]:
        """See :class:`~registry_drivers.versions.Versioned`; two requests."""
        return (*self._versioning(), *self._object_lock())

    def _setting(self, name: str) -> bytes | Keep | None:
        """The document of a setting; None where the store has none, or does not know of it.

        What is no such document is no "off": a :class:`Keep` says that nobody knows.
        """
        storage = self._storage

        def ask() -> bytes:
            return storage._request("GET", query=[(name, "")]).data

        def unknown(why: str) -> Keep:
            message = (
                f"nobody knows whether the bucket keeps what is deleted: its setting {name!r} {why}"
            )
            return Keep("unknown", message, listed=name == "versioning")

        try:
            document = self._ask(ask, "", read=1)
        except AccessDenied as error:
            return unknown(f"may not be read: {error.message}")
        except Unsupported:
            return None
        except NotFound as error:
            if "NoSuchBucket" in error.message:
                raise
            # A store names what there is not; a page of a proxy's says nothing.
            return unknown(f"is not told: {error.message}") if _is_nameless(error) else None
        except StorageError as error:
            # Stores other than Amazon's say so in one of these ways.
            if (
                isinstance(error, Unavailable)
                or error.message.startswith(_ABOUT_CREDENTIALS)
                or not any(said in error.message for said in ("HTTP 400", "HTTP 405"))
            ):
                raise
            return None
        return document if _ROOTS[name] in document else unknown("is not told as S3 does")

    def _versioning(self) -> Iterator[Keep]:
        document = self._setting("versioning")
        if isinstance(document, Keep):
            yield document
            return
        status = text_of(document or b"", b"Status")
        if status == "Enabled":
            message = (
                "versioning is on: deleting an object frees nothing while its versions stay; "
                + _PURGE
            )
            yield Keep("versioning", message, listed=True)
        elif status == "Suspended":
            message = (
                "versioning is suspended: objects written while it was on keep their versions, "
                f"and take room after a delete; {_PURGE}"
            )
            yield Keep("versioning-suspended", message, listed=True)
        if text_of(document or b"", b"MfaDelete") == "Enabled":
            message = "MFA delete is on: versions cannot be deleted without the owner's device"
            yield Keep("mfa-delete", message)

    def _object_lock(self) -> Iterator[Keep]:
        document = self._setting("object-lock")
        if isinstance(document, Keep):
            yield document
            return
        if document is None or text_of(document, b"ObjectLockEnabled") != "Enabled":
            return
        mode = text_of(document, b"Mode")
        message = "object lock is on: a version under retention or legal hold cannot be deleted"
        if mode:
            days, years = text_of(document, b"Days"), text_of(document, b"Years")
            time = f"{years} years" if days in ("", "0") else f"{days} days"
            message += f"; by default each is retained for {time} ({mode.lower()})"
        yield Keep("object-lock", message)

    def keeps_for(self, seconds: float) -> bool:
        """See :class:`~registry_drivers.versions.Undeleter`; two requests."""
        versioning = self._setting("versioning")
        if not isinstance(versioning, bytes) or text_of(versioning, b"Status") != "Enabled":
            return False
        lifecycle = self._setting("lifecycle")
        if isinstance(lifecycle, Keep):
            return False
        return lifecycle is None or not _expires_within(lifecycle, seconds)

    def peek(self, path: str, *, limit: int | None = None) -> bytes:
        """See :class:`~registry_drivers.versions.Undeleter`; two requests."""
        key = self._storage._key(path)
        versions = self._find([key]).get(key, [])
        # An older delete marker is among them, and has no size.
        old = [version for version in versions if version.state is State.OLD and version.size]
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
                hidden = [row for row in versions if row.state is State.MARKER]
                back = any(row.state is State.CURRENT for row in versions)
                if back or not hidden or not any(row.state is State.OLD for row in versions):
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

    # --- uploads in parts

    def abandoned_uploads(self, prefix: str, *, before: float) -> Iterator[MultipartUpload]:
        """See :class:`~registry_drivers.versions.Versioned`.

        One request for each page, and one for each upload that was begun before *before*. MinIO
        lists only the uploads of a key that is named in full: there nothing is found.
        """
        check_prefix(prefix, self._storage.driver)
        self._storage._prepare()
        return self._abandoned(self._storage.folder + prefix, before)

    def _abandoned(self, prefix: str, before: float) -> Iterator[MultipartUpload]:
        after: tuple[str, str] | None = ("", "")
        tokens = PageTokens(prefix, self._storage.driver, after)
        while after is not None:
            try:
                uploads, following = self._uploads(prefix, *after)
            except StorageError as error:
                # Stores that do not know of this keep none that anybody could abort.
                if isinstance(error, Unsupported) or "HTTP 405" in error.message:
                    return
                raise
            for key, upload, initiated in uploads:
                inside = key.startswith(prefix) and is_path(key[len(self._storage.folder) :])
                if initiated < before and inside:
                    found = self._look_at(key, upload, initiated)
                    if found is not None and found.youngest < before:
                        yield found
            after = following if following is None else tokens.next(following)

    def _uploads(
        self, prefix: str, key: str, upload: str
    ) -> tuple[list[tuple[str, str, float]], tuple[str, str] | None]:
        """A page of keys, uploads and their times, and where the next one begins."""
        query = [("encoding-type", "url")]
        query += [("key-marker", key)] * bool(key)
        query += [("max-uploads", str(self._storage.page_size)), ("prefix", prefix)]
        query += [("upload-id-marker", upload)] * bool(upload)
        query.append(("uploads", ""))

        def ask() -> tuple[list[tuple[str, str, float]], tuple[str, str] | None]:
            document = self._storage._request("GET", query=query, path=prefix).data
            keys, ids, begun = columns(document, b"Upload", [b"Key", b"UploadId", b"Initiated"])
            names = [key_of(name) for name in names_of(document, keys)]
            rows = [*zip(names, _texts(ids), times(begun).tolist(), strict=True)]
            if not is_truncated(document, b"ListMultipartUploadsResult>"):
                return rows, None
            return rows, (next_key(document), text_of(document, b"NextUploadIdMarker"))

        return self._ask(ask, prefix, list=1)

    def _look_at(self, key: str, upload: str, initiated: float) -> MultipartUpload | None:
        """Size and age of an upload's parts; None when it is no more."""
        path = key[len(self._storage.folder) :]
        size, youngest = 0, initiated
        after: str | None = ""
        tokens = PageTokens(path, self._storage.driver, after)
        while after is not None:
            try:
                sizes, modified, following = self._parts(path, key, upload, after)
            except NotFound:
                return None
            size += sum(sizes)
            youngest = max([youngest, *modified])
            after = following if following is None else tokens.next(following)
        return MultipartUpload(path, upload, initiated, youngest, size)

    def _parts(
        self, path: str, key: str, upload: str, after: str
    ) -> tuple[list[int], list[float], str | None]:
        """Sizes and times of a page of parts, and after which part the next one begins."""
        query = [("part-number-marker", after)] * bool(after) + [("uploadId", upload)]

        def ask() -> tuple[list[int], list[float], str | None]:
            document = self._storage._request("GET", key, query, path=path).data
            modified, sizes = columns(document, b"Part", [b"LastModified", b"Size"])
            following = None
            if is_truncated(document, b"PartsResult>", b"PartsResponse>"):
                following = text_of(document, b"NextPartNumberMarker")
            return integers(sizes).tolist(), times(modified).tolist(), following

        return self._ask(ask, path, list=1)

    def abort(self, uploads: Iterable[MultipartUpload]) -> Iterator[Outcome]:
        """See :class:`~registry_drivers.versions.Versioned`; one request each."""
        for upload in uploads:
            yield self._abort(upload)

    def _abort(self, upload: MultipartUpload) -> Outcome:
        storage = self._storage
        try:
            key = storage._key(upload.path)
        except InvalidPath as error:
            return Outcome(upload.path, Deletion.FAILED, error.message)

        def ask() -> None:
            storage.requests.add(delete=1)
            storage._request("DELETE", key, [("uploadId", upload.upload_id)], path=upload.path)

        try:
            storage._call(ask)
        except StorageError as error:
            if is_not_there(error.message):
                return Outcome(upload.path, Deletion.GONE_ALREADY)
            return Outcome(upload.path, Deletion.FAILED, error.message)
        return Outcome(upload.path, Deletion.DELETED)


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
        state = State.OLD
        if last == b"true":
            state = State.CURRENT if data else State.MARKER
        yield Version(key_of(name), key_of(unescape(number)), size, time, state)


def _expires_within(lifecycle: bytes, seconds: float) -> bool:
    """Whether any rule of the bucket deletes versions so soon; which keys it is for counts not."""
    try:
        root = ElementTree.fromstring(lifecycle)  # noqa: S314  # expat loads nothing
    except ElementTree.ParseError:
        return True
    for rule in root.iterfind("{*}Rule"):
        days = rule.findtext("{*}NoncurrentVersionExpiration/{*}NoncurrentDays")
        if rule.findtext("{*}Status") != "Enabled" or days is None:
            continue
        if not days.isdecimal() or int(days) * _DAY < seconds:
            return True
    return False


def _texts(column: Column) -> list[str]:
    return [unescape(text).decode("utf-8", "replace") for text in column]


def _deleted(document: bytes) -> tuple[set[tuple[str, str]], int]:
    """Keys and versions that the answer says are gone, and how many it does not name."""
    keys, ids = columns(document, b"Deleted", [b"Key", b"VersionId"])
    named = {pair for pair in zip(_texts(keys), _texts(ids), strict=True) if all(pair)}
    return named, len(keys) - len(named)


def _is_nameless(error: StorageError) -> bool:
    return error.message.startswith("error:") or ": error:" in error.message


def _errors(document: bytes) -> dict[tuple[str, str], Gone | Denied | Passing]:
    """What the answer says against keys and versions; where it names no version, against all."""
    found: dict[tuple[str, str], Gone | Denied | Passing] = {}
    wanted = [b"Key", b"VersionId", b"Code", b"Message"]
    told = (_texts(column) for column in columns(document, b"Error", wanted))
    for key, number, code, message in zip(*told, strict=True):
        text = f"{code}: {message}".rstrip(": ")
        if is_not_there(code):
            found[key, number] = Gone()
        else:
            found[key, number] = Passing(text) if is_passing(200, code) else Denied(text)
    return found
