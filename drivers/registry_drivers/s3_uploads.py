"""Uploads in parts that nobody has finished, on S3 and its like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from registry_drivers.base import Deletion, Outcome
from registry_drivers.columns import columns, integers, key_of, text_of, texts_of, times
from registry_drivers.errors import InvalidPath, NotFound, StorageError, Unsupported
from registry_drivers.object_versions import ObjectVersions, is_path
from registry_drivers.paging import PageTokens
from registry_drivers.paths import check_prefix
from registry_drivers.s3 import S3Storage
from registry_drivers.s3_answers import is_not_there, is_truncated, names_of, next_key
from registry_drivers.versions import MultipartUpload


class S3Uploads(ObjectVersions[S3Storage]):
    """The part of a bucket's versions that is none yet: uploads under way."""

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
            if following is not None:
                following = tokens.next(following, empty=not uploads)
            after = following

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
            rows = [*zip(names, texts_of(ids), times(begun).tolist(), strict=True)]
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
            if following is not None:
                following = tokens.next(following, empty=not sizes)
            after = following
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
