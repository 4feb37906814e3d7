"""Amazon S3 and what speaks its protocol.

Parameters: those of Distribution's and GitLab's drivers ``s3``, ``s3aws`` and ``s3_v2``.
boto3 writes and copies; how it is asked is in :mod:`registry_drivers.s3_client`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from registry_drivers.base import Capabilities, Deletion, Entry, Outcome
from registry_drivers.columns import (
    bytes_of,
    columns,
    integer,
    integers,
    key_of,
    md5s_of_etags,
    page_of,
    times,
    unescape,
)
from registry_drivers.errors import (
    AlreadyExists,
    DriverConfigError,
    MissingExtra,
    NotFound,
    StorageError,
    Unavailable,
)
from registry_drivers.object_client import Answered, Level, Listed, addressable
from registry_drivers.parameters import Parameters
from registry_drivers.s3_answers import (
    check_count,
    delete_body,
    errors_of,
    is_full,
    is_not_there,
    names_of,
    next_token,
    refused_delete,
    xml_holds,
)
from registry_drivers.s3_client import S3Requests, boto_client
from registry_drivers.web import Answer, date_of

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef

DELETE_BATCH = 1000
# CopyObject takes no more than this; larger objects are copied in parts of 1 GiB.
COPY_LIMIT = 5 * 1024**3
COPY_PART = 1024**3
# What begins so asks for what comes after a key, and is no token of a store's: XML holds no NUL.
_BEYOND = "\0"


def open_s3(parameters: Mapping[str, Any], *, driver: str = "s3") -> S3Storage:
    """Open the bucket that *parameters* describe; asks the storage for nothing yet.

    :raises DriverConfigError: a parameter is missing or wrong, or there are no credentials.
    :raises MissingExtra: boto3 or obstore is not installed.
    """
    try:
        import boto3
        import botocore.exceptions
        import obstore  # noqa: F401  # told here rather than at the first read
    except ImportError as error:
        raise MissingExtra(
            f"the S3 driver needs {error.name}: pip install 'registry-garbage-collect[s3]'",
            driver=driver,
        ) from error
    given = Parameters(driver, parameters)
    bucket = given.required("bucket")
    accesskey, secretkey = given.text("accesskey"), given.secret("secretkey")
    if bool(accesskey) != bool(secretkey):
        missing = "secretkey" if accesskey else "accesskey"
        raise given.error(missing, "missing; accesskey and secretkey go together")
    try:
        session = boto3.Session(
            aws_access_key_id=accesskey or None,
            aws_secret_access_key=secretkey or None,
            aws_session_token=given.secret("sessiontoken") or None if accesskey else None,
        )
        region = given.text("region") or session.region_name
        if not region:
            if not given.has("regionendpoint"):
                raise given.error("region", "missing; the driver needs it")
            region = "us-east-1"
        client = boto_client(session, given, region)
        credentials = session.get_credentials()
        if credentials is None:
            raise given.error(
                "accesskey", "missing, and no AWS credentials in environment, profile or instance"
            )
        return S3Storage(given, bucket, region, client, credentials)
    except botocore.exceptions.ParamValidationError as error:
        raise given.error("bucket", "is no name that a bucket may have") from error
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise DriverConfigError(str(error), driver=driver) from error


class S3Storage(S3Requests):
    """One bucket, or a folder of it; see :func:`open_s3`."""

    # DeleteObjects says of a key that is not there that it was deleted.
    tells_gone = False
    # Registries ask for ranges, of which Go unpacks nothing: they read what is stored.
    may_unpack = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.capabilities = Capabilities(delete_batch=DELETE_BATCH, folders=False, workers=32)

    def _list_page(self, prefix: str, after: str, token: str) -> Listed:
        query = [("encoding-type", "url"), ("list-type", "2"), ("max-keys", str(self.page_size))]
        query.append(("prefix", prefix))
        bounded = False
        if token.startswith(_BEYOND):
            after, token = token[len(_BEYOND) :], ""
        if token:
            query.append(("continuation-token", token))
        elif after and (bounded := self.seekable):
            query.append(("start-after", after))
        document = self._request("GET", query=query, path=prefix).data
        if bounded and not self.seekable:
            # Only this answer has told that the bound means something else here.
            self.requests.add(list=1)
            return self._list_page(prefix, after, "")
        keys, sizes, modified, etags = columns(
            document, b"Contents", [b"Key", b"Size", b"LastModified", b"ETag"]
        )
        check_count(document, len(keys))
        token = next_token(document, len(keys))
        names = names_of(document, keys)
        if bounded and names and names[0] <= bytes_of(after):
            # A listing that is cut at bounds would begin anew with each of its parts.
            raise StorageError(
                "this storage does not begin a listing where it is asked to (start-after), and is "
                "none that is known to do so",
                path=prefix,
                driver=self.driver,
            )
        page = page_of(
            names,
            integers(sizes),
            times(modified),
            None if self._encrypted_by_kms else md5s_of_etags(etags),
            folder=self.folder.encode(),
            after=b"" if self.seekable else bytes_of(after),
            etags=etags,
        )
        if not token and self.seekable and is_full(document, len(names), self.page_size):
            # The last page is full once in a thousand times. Where pages end so because somebody
            # on the way leaves out how they go on, all of them are.
            token = _BEYOND + key_of(names[-1])
        return Listed(page, token, names)

    def _list_level(self, prefix: str, token: str) -> Level:
        query = [("delimiter", "/"), ("encoding-type", "url"), ("list-type", "2")]
        query += [("max-keys", str(self.page_size)), ("prefix", prefix)]
        beyond = token[len(_BEYOND) :] if token.startswith(_BEYOND) else ""
        if beyond:
            query.append(("start-after", beyond))
        elif token:
            query.append(("continuation-token", token))
        document = self._request("GET", query=query, path=prefix).data
        (folders,) = columns(document, b"CommonPrefixes", [b"Prefix"])
        (files,) = columns(document, b"Contents", [b"Key"])
        check_count(document, len(folders) + len(files))
        count = len(folders) + len(files)
        token = next_token(document, count)
        names = [names_of(document, folders), names_of(document, files)]
        if not token and self.seekable and is_full(document, count, self.page_size):
            # As of a page. A folder is told again by the page after it, as of what lies in it.
            last = key_of(max(chain(*names)))
            token = _BEYOND + last if last != beyond else ""
        return Level(
            [key_of(name) for name in names[0]], [key_of(name) for name in names[1]], token
        )

    def _ask_time(self) -> Answer:
        return self._request("GET", query=[("list-type", "2"), ("max-keys", "1")])

    def _fetch(self, path: str, key: str, limit: int | None) -> bytes:
        if self._store is not None and addressable(key):
            self._sign_in(path)
            return self._fetch_fast(self._store, path, key, limit)
        return self._request("GET", key, path=path, limit=limit).data

    def _fetch_range(self, path: str, key: str, span: str) -> Answer:
        return self._request("GET", key, headers={"Range": span}, path=path)

    def _head(self, path: str, key: str) -> Entry:
        answer = self._request("HEAD", key, path=path)
        md5 = None
        if not self._kms(answer):
            md5 = md5s_of_etags([answer.headers.get("etag", "").encode()])[0].tobytes()
        return Entry(
            path=path,
            size=integer(answer.headers.get("content-length", "")),
            modified=date_of(answer.headers.get("last-modified", "")) or 0.0,
            md5=md5 if md5 and any(md5) else None,
        )

    def _kms(self, answer: Answer) -> bool:
        by = answer.headers.get("x-amz-server-side-encryption", "")
        return self._encrypted_by_kms or by.startswith("aws:kms")

    def _delete_keys(self, keys: Sequence[str]) -> Answered:
        named = [key for key in keys if xml_holds(key)]
        answered = self._delete_objects(named) if named else {}
        for key in keys:
            if key not in answered:
                answered[key] = self._answer(key, self._delete_key)
        return answered

    def _answer(self, key: str, ask: Callable[[str], Outcome]) -> Outcome | str:
        """What *ask* says of one key of many, whose error is no word on the others."""
        try:
            return ask(key)
        except Unavailable as error:
            return error.message
        except StorageError as error:
            return Outcome(key, Deletion.FAILED, error.message)

    def _send_deletes(self, versions: Sequence[tuple[str, str]]) -> bytes:
        """Ask once to delete keys, or versions of them, and return the whole answer."""
        body = delete_body(versions)
        headers = {"Content-MD5": _md5(body), "Content-Type": "application/xml"}
        self._sign_in()  # what is wrong with the keys is no word of this request's
        try:
            answer = self._request("POST", query=[("delete", "")], headers=headers, body=body)
        except StorageError as error:
            named = refused_delete(error, versions=any(version for _, version in versions))
            raise named from error.__cause__
        if b"DeleteResult" not in answer.data:
            # A page of a proxy's, as often as not.
            kind = answer.headers.get("content-type", "no content type")
            said = self._clean(ascii(answer.data[:80].decode("utf-8", "replace")))
            reason = f"no answer to a delete: HTTP {answer.status}, {kind[:40]!a}: {said}"
            raise Unavailable(reason, driver=self.driver)
        return answer.data

    def _delete_objects(self, keys: Sequence[str]) -> Answered:
        document = self._send_deletes([(key, "") for key in keys])
        answered = errors_of(document)
        (deleted,) = columns(document, b"Deleted", [b"Key"])
        named = {key_of(unescape(key)) for key in deleted if key}
        unnamed = len(deleted) - sum(map(bool, deleted))
        silent = [key for key in keys if key not in answered and key not in named]
        for key in keys:
            if key in named:
                answered.setdefault(key, Outcome(key, Deletion.DELETED))
        for key in silent:
            # JuiceFS' gateway names none of those it deleted, but answers for each.
            answered[key] = (
                Outcome(key, Deletion.DELETED)
                if unnamed == len(silent)
                else self._answer(key, self._look)
            )
        return {key: answered[key] for key in keys}

    def _delete_key(self, key: str) -> Outcome:
        try:
            self._request("DELETE", key)
        except NotFound as error:
            if not is_not_there(error.message):
                raise
            return Outcome(key, Deletion.GONE_ALREADY)
        return Outcome(key, Deletion.DELETED)

    def _look(self, key: str) -> Outcome:
        """What became of a key that the answer to its delete leaves out."""
        self.requests.add(read=1)
        try:
            self._head(key, key)
        except NotFound:
            return Outcome(key, Deletion.DELETED)
        return Outcome(key, Deletion.FAILED, "it is still there, and the storage does not say why")

    def _put(self, path: str, key: str, data: bytes, if_absent: bool) -> None:
        import botocore.exceptions as boto

        options = dict(self._writing)
        if if_absent:
            options["IfNoneMatch"] = "*"
        self._sign_in(path)
        self.before_request()
        with self._boto_errors(path):
            try:
                # Where a bucket locks objects by default, it takes none without an MD5.
                self._client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ContentMD5=_md5(data), **options
                )
            except boto.ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if if_absent and status == 412:
                    raise AlreadyExists(
                        "it is there already", path=path, driver=self.driver
                    ) from error
                if if_absent and status == 409:
                    # Another conditional write is under way; who won is known the next time.
                    raise Unavailable(str(error), path=path, driver=self.driver) from error
                raise

    def _copy(self, entry: Entry, source: str, target: str) -> None:
        self._sign_in(entry.path)
        self.before_request()
        origin: CopySourceTypeDef = {"Bucket": self.bucket, "Key": source}
        with self._boto_errors(entry.path):
            if entry.size < COPY_LIMIT:
                self._client.copy_object(
                    Bucket=self.bucket, Key=target, CopySource=origin, **self._copying
                )
            else:
                self._copy_in_parts(entry.size, origin, target)

    def _copy_in_parts(self, size: int, origin: CopySourceTypeDef, target: str) -> None:
        place: dict[str, Any] = {"Bucket": self.bucket, "Key": target}
        # Of the metadata that a registry writes, a copy in parts would lose this.
        upload = self._client.create_multipart_upload(
            **place, **self._copying, ContentType="application/octet-stream"
        )
        place["UploadId"] = upload["UploadId"]
        try:
            parts: list[CompletedPartTypeDef] = []
            for number, start in enumerate(range(0, size, COPY_PART), 1):
                self.before_request()
                self.requests.add(write=1)
                stop = min(start + COPY_PART, size) - 1
                answer = self._client.upload_part_copy(
                    **place,
                    PartNumber=number,
                    CopySource=origin,
                    CopySourceRange=f"bytes={start}-{stop}",
                )
                parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
            self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
        except BaseException:
            # Its parts would be kept, and paid for, without showing in any listing.
            self._client.abort_multipart_upload(**place)
            raise

    def close(self) -> None:
        """See :class:`~registry_drivers.base.Reader`."""
        super().close()
        self._client.close()


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
