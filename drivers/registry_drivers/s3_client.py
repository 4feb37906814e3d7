"""How S3 is asked: endpoints, credentials, signatures, and what errors mean.

boto3 knows the endpoints and holds the credentials. LIST, HEAD and DeleteObjects are signed by
botocore and sent here, see :mod:`registry_drivers.object_client`.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from registry_drivers.columns import bytes_of, text_of
from registry_drivers.errors import (
    DriverConfigError,
    StorageError,
    Unavailable,
)
from registry_drivers.object_client import addressable, opening
from registry_drivers.object_store import ObjectStorage
from registry_drivers.parameters import Parameters
from registry_drivers.retry import Retry
from registry_drivers.s3_answers import is_error, is_foreign
from registry_drivers.s3_keys import S3Keys
from registry_drivers.web import (
    CA_HINT,
    CONNECT_SECONDS,
    CONNECTIONS,
    READ_SECONDS,
    Answer,
    Web,
    ca_bundle,
    ca_certificates,
)
from registry_drivers.withdrawal import unless_withdrawn

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials
    from mypy_boto3_s3.client import S3Client

# As obstore tells it; where it is told otherwise, a 404 is what it always was.
_BODY_OF_404 = re.compile(r"404 Not Found: (.*?)(?:\n\nDebug source|\Z)", re.DOTALL)
# Said of keys that were good once: their source may have others by now.
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})


def boto_client(session: Any, given: Parameters, region: str) -> S3Client:
    from botocore.config import Config

    endpoint = given.text("regionendpoint")
    if endpoint and "://" not in endpoint:
        endpoint = ("https://" if given.flag("secure", True) else "http://") + endpoint
    # Requests are signed: a user's name in it is of no use, and a password would be shown.
    endpoint = re.sub(r"(?<=://)[^/?#]*@", "", endpoint)
    accelerate = given.flag("accelerate", False)
    if accelerate and endpoint:
        raise given.error("accelerate", "only Amazon has it: leave out regionendpoint")
    # Distribution 2.8, 3.0 and GitLab use path style when an endpoint is named; 3.1 only when told
    # to, and then many stores are not found. Not boto3's "auto", which gives the address of no
    # region: newer regions and private endpoints do not answer there. Buckets with dots in their
    # name, for which no certificate would fit, boto3 asks by path anyway.
    path_style = given.flag("forcepathstyle", given.flag("pathstyle", bool(endpoint)))
    style: Literal["path", "virtual"] = "path" if path_style and not accelerate else "virtual"
    config = Config(
        signature_version="s3v4",
        s3={
            "addressing_style": style,
            "use_accelerate_endpoint": accelerate,
            "us_east_1_regional_endpoint": "regional",
        },
        use_dualstack_endpoint=given.flag("usedualstack", False),
        # Who names an endpoint has chosen.
        use_fips_endpoint=given.flag("usefipsendpoint", False) and not endpoint,
        # AWS_ENDPOINT_URL and profiles may name another store; the registry does not look at them.
        ignore_configured_endpoint_urls=True,  # type: ignore[call-arg]  # not in the stubs
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


class S3Requests(ObjectStorage):
    """Asks one bucket; :class:`~registry_drivers.s3.S3Storage` knows what for."""

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
            retry=Retry.of(given, "maxretries"),
            secrets=given.secrets,
        )
        self.driver = given.driver
        self.bucket = bucket
        self._region = region
        self._client = client
        self._keys = S3Keys(credentials, given.driver)
        self._was_answered = False
        # boto3 knows where the bucket is: by path or by host, dual stack, accelerated, GovCloud.
        url = client.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket})
        self._base = url.partition("?")[0].rstrip("/")
        self.root = f"s3://{urlsplit(self._base).netloc}/{bucket}/{self.folder}".rstrip("/")
        # Under SSE-KMS an ETag is no MD5; where only the bucket says so, its form is no lie's.
        self._encrypted_by_kms = given.flag("encrypt", False) and given.has("keyid")
        self._writing = write_options(given)
        self._copying = dict(self._writing)
        if given.has("storageclass") and given.text("storageclass").upper() != "NONE":
            # A copy is not of its source's class by itself.
            self._copying["StorageClass"] = given.text("storageclass").upper()
        if addressable(self.folder):
            with opening(self.driver):
                self._make_store = functools.partial(self._obstore, given)
                self._store = self._make_store()

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

        # Not asked here whether it is wanted: to find out may be a read, and obstore is in one.
        with unless_withdrawn(None), self._boto_errors(""):
            frozen = self._keys.frozen(in_line=True)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            # botocore renews them in time; ask it again every few minutes.
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }

    def _fail(
        self, status: int, code: str, message: str, *, path: str = "", place: bool = False
    ) -> NoReturn:
        # The answer to a HEAD does not say why; where others were answered, it is not the region.
        unsaid = status == 400 and not code and self._was_answered
        if code not in _EXPIRED and not unsaid:
            super()._fail(status, code, message, path=path, place=place)
        with self._boto_errors(path):
            renewed = self._keys.renew()
        try:
            super()._fail(status, code, message, path=path, place=place)
        except StorageError as error:
            if not renewed:
                raise
            if self._store is not None:
                # It would go on with what it was given last.
                self._store = self._make_store()
            raise Unavailable(error.message, path=path, driver=self.driver) from None

    def _sign_in(self, path: str = "") -> ReadOnlyCredentials:
        """Keys, or why there are none; before anything is sent by whichever library."""
        with self._boto_errors(path):
            return self._keys.frozen()

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
        frozen = self._sign_in(path)
        with self._boto_errors(path):
            S3SigV4Auth(frozen, "s3", self._region).add_auth(request)
        answer = self._send(method, url, dict(request.headers.items()), body, limit=limit)
        if self.seekable and answer.headers.get("server", "").startswith("SeaweedFS"):
            # It lists folder by folder: "a/x" before "a-b". What it leaves out before a bound is
            # not what comes before that bound in the order of bytes.
            self.seekable = False
            self.capabilities = replace(self.capabilities, seekable=False)
        if answer.status == 404 and method == "GET" and key and not query:
            self._refuse_foreign(answer.data, path)
        if answer.status >= 300:
            self._refused(answer, path, place=not key)
        if (method != "GET" or not key) and is_error(answer.data):
            code, message = text_of(answer.data, b"Code"), text_of(answer.data, b"Message")
            said = self._clean(f"{code}: {message} (in an answer of HTTP {answer.status})")
            raise Unavailable(said, path=path, driver=self.driver)
        self._was_answered = True
        return answer

    def _fail_fast(self, error: Exception, path: str) -> NoReturn:
        if isinstance(error, FileNotFoundError) and (said := _BODY_OF_404.search(str(error))):
            self._refuse_foreign(said[1].encode("utf-8", "replace"), path)
        super()._fail_fast(error, path)

    def _refuse_foreign(self, said: bytes, path: str) -> None:
        """Refuse to take a proxy's page for the word that there is no such object.

        :raises Unavailable: it is one; the next answer may be the store's.
        """
        if is_foreign(said):
            shown = self._clean(ascii(said[:80].decode("utf-8", "replace")))
            raise Unavailable(
                f"not found, but not by a store that speaks S3 (HTTP 404): {shown}",
                path=path,
                driver=self.driver,
            )

    def _refused(self, answer: Answer, path: str, *, place: bool) -> None:
        code, message = text_of(answer.data, b"Code"), text_of(answer.data, b"Message")
        region = answer.headers.get("x-amz-bucket-region", "")
        if region and region != self._region and answer.status in (301, 307, 400):
            raise DriverConfigError(
                f"storage.{self.driver}.region: the bucket is in {region}, not in {self._region}",
                driver=self.driver,
            )
        self._fail(answer.status, code, message or _meaning(answer), path=path, place=place)

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


def write_options(given: Parameters) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if given.flag("encrypt", False):
        options["ServerSideEncryption"] = "aws:kms" if given.has("keyid") else "AES256"
        if given.has("keyid"):
            options["SSEKMSKeyId"] = given.text("keyid")
    if given.has("objectacl") and given.text("objectacl") != "private":
        options["ACL"] = given.text("objectacl")
    return options


def _quote(text: str, safe: str = "") -> str:
    return quote(bytes_of(text), safe=safe + "-_.~")


def _meaning(answer: Answer) -> str:
    """A HEAD has no body to explain itself."""
    elsewhere = "the bucket is somewhere else: are the region and the endpoint right?"
    return {
        301: elsewhere,
        302: elsewhere,
        303: elsewhere,
        307: elsewhere,
        308: elsewhere,
        400: "the storage refused: are the credentials still good, and the region?",
        401: "not signed in",
        403: "access denied: are the credentials right, what they allow, and this clock?",
        404: "not found",
    }.get(answer.status, "the storage refused")
