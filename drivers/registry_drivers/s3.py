"""Amazon S3 and what speaks its protocol.

Parameters: those of Distribution's and GitLab's drivers ``s3``, ``s3aws`` and ``s3_v2``.
boto3 holds the credentials, knows the endpoints, writes, copies, and looks after versions;
LIST, HEAD and DeleteObjects are signed by botocore and sent here, see ``object_store``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from registry_drivers.base import Capabilities, Deletion, Entry, Outcome
from registry_drivers.columns import (
    columns,
    integers,
    md5s_of_etags,
    page_of,
    text_of,
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
from registry_drivers.object_store import (
    Answered,
    Level,
    Listed,
    ObjectStorage,
    addressable,
)
from registry_drivers.parameters import Parameters
from registry_drivers.retry import Retry
from registry_drivers.s3_answers import delete_body, errors_of, names_of, next_token, xml_holds
from registry_drivers.web import (
    CA_HINT,
    CONNECT_SECONDS,
    CONNECTIONS,
    READ_SECONDS,
    Answer,
    Web,
    ca_bundle,
    ca_certificates,
    date_of,
)

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CopySourceTypeDef

DELETE_BATCH = 1000
# CopyObject takes no more than this; larger objects are copied in parts of 1 GiB.
COPY_LIMIT = 5 * 1024**3
COPY_PART = 1024**3
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


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
        client = _client(session, given, region)
        credentials = session.get_credentials()
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise DriverConfigError(str(error), driver=driver) from error
    if credentials is None:
        raise given.error(
            "accesskey", "missing, and no AWS credentials in environment, profile or instance"
        )
    return S3Storage(given, bucket, region, client, credentials)


def _client(session: Any, given: Parameters, region: str) -> S3Client:
    from botocore.config import Config

    endpoint = given.text("regionendpoint")
    if endpoint and "://" not in endpoint:
        endpoint = ("https://" if given.flag("secure", True) else "http://") + endpoint
    accelerate = given.flag("accelerate", False)
    # Distribution 2.8 and GitLab use path style when an endpoint is named; Distribution 3 always,
    # which fails for buckets of newer regions, where "auto" lets boto3 see what fits.
    path_style = given.flag("forcepathstyle", given.flag("pathstyle", bool(endpoint)))
    style: Literal["path", "virtual", "auto"] = "virtual"
    if not accelerate:
        style = "path" if path_style else "virtual" if endpoint else "auto"
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": style, "use_accelerate_endpoint": accelerate},
        use_dualstack_endpoint=given.flag("usedualstack", False),
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # Stores other than Amazon's refuse the checksums that boto3 adds since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client: S3Client = session.client(
        "s3",
        region_name=region,
        endpoint_url=endpoint or None,
        use_ssl=given.flag("secure", True),
        verify=False if given.flag("skipverify", False) else ca_bundle(),
        config=config,
    )
    return client


class S3Storage(ObjectStorage):
    """One bucket, or a folder of it; see :func:`open_s3`."""

    # DeleteObjects says of a key that is not there that it was deleted.
    tells_gone = False

    def __init__(
        self,
        given: Parameters,
        bucket: str,
        region: str,
        client: S3Client,
        credentials: Credentials,
    ) -> None:
        super().__init__(
            folder=given.folder(),
            web=Web(verify=not given.flag("skipverify", False)),
            retry=Retry(times=int(given.number("maxretries", 0)) or Retry().times),
            secrets=given.secrets,
        )
        self.driver = given.driver
        self.bucket = bucket
        self.capabilities = Capabilities(delete_batch=DELETE_BATCH, folders=False, workers=32)
        self._region = region
        self._client = client
        self._credentials = credentials
        # boto3 knows where the bucket is: by path or by host, dual stack, accelerated, GovCloud.
        url = client.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket})
        self._base = url.partition("?")[0].rstrip("/")
        self.root = f"s3://{urlsplit(self._base).netloc}/{bucket}/{self.folder}".rstrip("/")
        # Under SSE-KMS an ETag is no MD5; where only the bucket says so, its form is no lie's.
        self._encrypted_by_kms = given.flag("encrypt", False) and given.has("keyid")
        self._writing = _write_options(given)
        self._copying = dict(self._writing)
        if given.has("storageclass") and given.text("storageclass").upper() != "NONE":
            # A copy is not of its source's class by itself.
            self._copying["StorageClass"] = given.text("storageclass").upper()
        self._store = self._obstore(given) if addressable(self.folder) else None

    def _obstore(self, given: Parameters) -> Any:
        from obstore.store import S3Store

        place = urlsplit(self._base)
        by_path = place.path.strip("/").endswith(self.bucket)
        endpoint = self._base[: -len(self.bucket) - 1] if by_path else self._base
        options: dict[str, Any] = {
            "allow_http": place.scheme == "http",
            "allow_invalid_certificates": given.flag("skipverify", False),
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "timeout": f"{READ_SECONDS}s",
        }
        if certificates := ca_certificates():
            options["root_certificate"] = certificates
        return S3Store(
            self.bucket,
            config={
                "endpoint": endpoint,
                "aws_endpoint_url_s3": endpoint,
                "region": self._region,
                "virtual_hosted_style_request": not by_path,
            },
            client_options=options,  # type: ignore[arg-type]  # a TypedDict that is built in steps
            retry_config={"max_retries": 0},
            credential_provider=self._providing(self._provide),
        )

    def _provide(self) -> Any:
        from datetime import UTC, datetime, timedelta

        with self._boto_errors(""):
            frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore renews them in time; ask it again every few minutes.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    # --- requests that are signed and sent here

    def _request(
        self,
        method: str,
        key: str = "",
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        path: str = "",
        limit: int | None = None,
    ) -> Answer:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        url = f"{self._base}/{_quote(key, '/')}" if key else self._base
        if query:
            url += "?" + "&".join(f"{name}={_quote(value)}" for name, value in query)
        request = AWSRequest(method, url, headers=dict(headers or {}), data=body or b"")
        with self._boto_errors(path):
            frozen = self._credentials.get_frozen_credentials()
            S3SigV4Auth(frozen, "s3", self._region).add_auth(request)
        answer = self._send(method, url, dict(request.headers.items()), body, limit=limit)
        if self.seekable and answer.headers.get("server", "").startswith("SeaweedFS"):
            # It lists folder by folder: "a/x" before "a-b". What it leaves out before a bound is
            # not what comes before that bound in the order of bytes.
            self.seekable = False
            self.capabilities = replace(self.capabilities, seekable=False)
        if answer.status >= 300:
            self._refused(answer, path, place=not key)
        return answer

    def _refused(self, answer: Answer, path: str, *, place: bool) -> None:
        code, message = text_of(answer.data, b"Code"), text_of(answer.data, b"Message")
        region = answer.headers.get("x-amz-bucket-region", "")
        if region and region != self._region and answer.status in (301, 307, 400):
            raise DriverConfigError(
                f"storage.{self.driver}.region: the bucket is in {region}, not in {self._region}",
                driver=self.driver,
            )
        self._fail(answer.status, code, message or _meaning(answer), path=path, place=place)

    def _list_page(self, prefix: str, after: str, token: str) -> Listed:
        query = [("encoding-type", "url"), ("list-type", "2"), ("max-keys", str(self.page_size))]
        query.append(("prefix", prefix))
        bounded = False
        if token:
            query.append(("continuation-token", token))
        elif after and (bounded := self.seekable):
            query.append(("start-after", after))
        document = self._request("GET", query=query, path=prefix).data
        if bounded and not self.seekable:
            # Only this answer has told that the bound means something else here.
            self.requests.add(list=1)
            return self._list_page(prefix, after, "")
        token = next_token(document)
        keys, sizes, modified, etags = columns(
            document, b"Contents", [b"Key", b"Size", b"LastModified", b"ETag"]
        )
        names = names_of(document, keys)
        if self.seekable and any(map(operator.ge, names, islice(names, 1, None))):
            raise StorageError(
                "this storage does not list in order, and is none that is known to do so",
                path=prefix,
                driver=self.driver,
            )
        page = page_of(
            names,
            integers(sizes),
            times(modified),
            None if self._encrypted_by_kms else md5s_of_etags(etags),
            folder=self.folder.encode(),
            after=b"" if self.seekable else after.encode(),
            etags=etags,
        )
        return Listed(page, token)

    def _list_level(self, prefix: str, token: str) -> Level:
        query = [("delimiter", "/"), ("encoding-type", "url"), ("list-type", "2")]
        query += [("max-keys", str(self.page_size)), ("prefix", prefix)]
        if token:
            query.append(("continuation-token", token))
        document = self._request("GET", query=query, path=prefix).data
        token = next_token(document)
        (folders,) = columns(document, b"CommonPrefixes", [b"Prefix"])
        (files,) = columns(document, b"Contents", [b"Key"])
        return Level(
            [name.decode() for name in names_of(document, folders)],
            [name.decode() for name in names_of(document, files)],
            token,
        )

    def _ask_time(self) -> Answer:
        return self._request("GET", query=[("list-type", "2"), ("max-keys", "1")])

    def _fetch(self, path: str, key: str, limit: int | None) -> bytes:
        if self._store is not None:
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
            size=int(answer.headers.get("content-length", "0")),
            modified=date_of(answer.headers.get("last-modified", "")) or 0.0,
            md5=md5 if md5 and any(md5) else None,
        )

    def _kms(self, answer: Answer) -> bool:
        by = answer.headers.get("x-amz-server-side-encryption", "")
        return self._encrypted_by_kms or by.startswith("aws:kms")

    def _delete_keys(self, keys: Sequence[str]) -> Answered:
        awkward = [key for key in keys if not xml_holds(key)]
        answered: Answered = {}
        for key in awkward:
            answered[key] = self._delete_key(key)
        rest = [key for key in keys if key not in answered]
        if rest:
            answered.update(self._delete_objects(rest))
        return answered

    def _send_deletes(self, versions: Sequence[tuple[str, str]]) -> bytes:
        """Ask once to delete keys, or versions of them, and return the whole answer."""
        body = delete_body(versions)
        headers = {"Content-MD5": _md5(body), "Content-Type": "application/xml"}
        document = self._request("POST", query=[("delete", "")], headers=headers, body=body).data
        if b"DeleteResult" not in document:
            code, message = text_of(document, b"Code"), text_of(document, b"Message")
            raise Unavailable(f"no answer to a delete: {code} {message}", driver=self.driver)
        return document

    def _delete_objects(self, keys: Sequence[str]) -> Answered:
        document = self._send_deletes([(key, "") for key in keys])
        answered = errors_of(document)
        (deleted,) = columns(document, b"Deleted", [b"Key"])
        named = {unescape(key).decode() for key in deleted if key}
        unnamed = len(deleted) - sum(map(bool, deleted))
        silent = [key for key in keys if key not in answered and key not in named]
        for key in keys:
            if key in named:
                answered.setdefault(key, Outcome(key, Deletion.DELETED))
        for key in silent:
            # JuiceFS' gateway names none of those it deleted, but answers for each.
            answered[key] = (
                Outcome(key, Deletion.DELETED) if unnamed == len(silent) else self._look(key)
            )
        return {key: answered[key] for key in keys}

    def _delete_key(self, key: str) -> Outcome:
        self._request("DELETE", key)
        return Outcome(key, Deletion.DELETED)

    def _look(self, key: str) -> Outcome:
        """What became of a key that the answer to its delete leaves out."""
        self.requests.add(read=1)
        try:
            self._head(key, key)
        except NotFound:
            return Outcome(key, Deletion.DELETED)
        return Outcome(key, Deletion.FAILED, "it is still there, and the storage does not say why")

    # --- requests that boto3 sends

    @contextlib.contextmanager
    def _boto_errors(self, path: str) -> Iterator[None]:
        """Nothing of botocore's leaves."""
        import botocore.exceptions as boto

        try:
            yield
        except boto.ClientError as error:
            told = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            self._fail(status, told.get("Code", ""), told.get("Message", ""), path=path)
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise DriverConfigError(self._clean(str(error)), driver=self.driver) from error
        except boto.SSLError as error:
            reason = f"the certificate is not trusted; {CA_HINT}"
            raise StorageError(reason, path=path, driver=self.driver) from error
        except (boto.HTTPClientError, boto.CredentialRetrievalError) as error:
            raise Unavailable(self._clean(str(error)), path=path, driver=self.driver) from None
        except boto.BotoCoreError as error:
            raise StorageError(self._clean(str(error)), path=path, driver=self.driver) from error

    def _put(self, path: str, key: str, data: bytes, if_absent: bool) -> None:
        import botocore.exceptions as boto

        options = dict(self._writing)
        if if_absent:
            options["IfNoneMatch"] = "*"
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


def _write_options(given: Parameters) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if given.flag("encrypt", False):
        options["ServerSideEncryption"] = "aws:kms" if given.has("keyid") else "AES256"
        if given.has("keyid"):
            options["SSEKMSKeyId"] = given.text("keyid")
    if given.has("objectacl") and given.text("objectacl") != "private":
        options["ACL"] = given.text("objectacl")
    return options


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _quote(text: str, safe: str = "") -> str:
    return quote(text, safe=safe + "-_.~")


def _meaning(answer: Answer) -> str:
    """A HEAD has no body to explain itself."""
    return {401: "not signed in", 403: "access denied", 404: "not found"}.get(
        answer.status, "the storage refused"
    )
