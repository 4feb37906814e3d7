"""How requests to Azure Blob Storage are signed: shared key, SAS, or a token of Entra ID.

Source of the shared key's scheme: "Authorize with Shared Key" in the REST API's reference.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from registry_drivers.credential_source import CredentialSource
from registry_drivers.errors import AccessDenied, DriverConfigError, MissingExtra, Unavailable
from registry_drivers.parameters import Parameters
from registry_drivers.web import ca_bundle
from registry_drivers.withdrawal import unless_withdrawn

# Has Content-MD5 in listings, names with characters that XML cannot hold, batches of a container.
API_VERSION = "2021-12-02"
SCOPE = "https://storage.azure.com/.default"
# So long before its end azure-identity wants another token.
_GOOD_SECONDS = 300
_PUBLIC = "login.microsoftonline.com"
_AUTHORITIES = {
    "core.chinacloudapi.cn": "login.chinacloudapi.cn",
    "core.usgovcloudapi.net": "login.microsoftonline.us",
}
_SIGNED_HEADERS = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)


class Credential(Protocol):
    """Signs requests."""

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """*headers* with what makes the storage believe us."""

    def url(self, url: str) -> str:
        """*url* with what has to be in it."""

    def prepare(self) -> None:
        """Be ready to sign, before obstore asks: it asks while it is in a read."""

    def obstore(self) -> dict[str, Any]:
        """Arguments for obstore's ``AzureStore``."""


class SharedKey:
    """The key of a storage account."""

    def __init__(self, account: str, key: str) -> None:
        self._account = account
        self._text = key
        self._key = base64.b64decode(key, validate=True)

    def __repr__(self) -> str:
        return f"SharedKey({self._account!r})"

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """See :class:`Credential`."""
        signed = {"x-ms-date": formatdate(usegmt=True), **headers}
        lower = {name.lower(): value for name, value in signed.items()}
        if lower.get("content-length") == "0":
            lower["content-length"] = ""
        own = sorted(name for name in lower if name.startswith("x-ms-"))
        place = urlsplit(url)
        query = sorted(
            (name.lower(), value)
            for name, value in parse_qsl(
                place.query, keep_blank_values=True, errors="surrogateescape"
            )
        )
        lines = [method, *(lower.get(name, "") for name in _SIGNED_HEADERS)]
        lines += [f"{name}:{lower[name]}" for name in own]
        lines.append(f"/{self._account}{place.path}")
        lines += [f"{name}:{value}" for name, value in query]
        text = "\n".join(lines).encode("utf-8", "surrogateescape")
        digest = hmac.new(self._key, text, hashlib.sha256).digest()
        signature = base64.b64encode(digest).decode()
        return {**signed, "Authorization": f"SharedKey {self._account}:{signature}"}

    def url(self, url: str) -> str:
        """See :class:`Credential`."""
        return url

    def prepare(self) -> None:
        """See :class:`Credential`; it always is."""

    def obstore(self) -> dict[str, Any]:
        """See :class:`Credential`."""
        return {"config": {"account_key": self._text}}


class SharedAccessSignature:
    """A signature that is part of each URL."""

    def __init__(self, query: str) -> None:
        self._query = query.lstrip("?")

    def __repr__(self) -> str:
        return "SharedAccessSignature()"

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """See :class:`Credential`."""
        return dict(headers)

    def url(self, url: str) -> str:
        """See :class:`Credential`."""
        return f"{url}{'&' if '?' in url else '?'}{self._query}"

    def prepare(self) -> None:
        """See :class:`Credential`; it always is."""

    def obstore(self) -> dict[str, Any]:
        """See :class:`Credential`."""
        return {"config": {"sas_key": self._query}}


class Token:
    """Tokens that azure-identity gets, keeps and renews."""

    def __init__(self, source: Any) -> None:
        self._identity = source
        self._source = CredentialSource("azure")
        self._ends = 0.0

    def _token(self, *, in_line: bool = False) -> Any:
        import azure.core.exceptions

        try:
            if self._ends - time.time() > _GOOD_SECONDS:
                token = self._identity.get_token(SCOPE)
            else:
                get = functools.partial(self._identity.get_token, SCOPE)
                token = self._source.ask(get, in_line=in_line)
            self._ends = token.expires_on
            return token
        except azure.core.exceptions.ClientAuthenticationError as error:
            reason = str(error.message).splitlines()[0]
            raise AccessDenied(f"no token: {reason}", driver="azure") from None
        except azure.core.exceptions.AzureError as error:
            raise Unavailable(f"no token: {type(error).__name__}", driver="azure") from None

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """See :class:`Credential`."""
        return {**headers, "Authorization": f"Bearer {self._token().token}"}

    def url(self, url: str) -> str:
        """See :class:`Credential`."""
        return url

    def prepare(self) -> None:
        """See :class:`Credential`; a token that is good needs no look at it."""
        if self._ends - time.time() <= _GOOD_SECONDS:
            self._token()

    def obstore(self) -> dict[str, Any]:
        """See :class:`Credential`."""
        return {"credential_provider": self._provide}

    def _provide(self) -> Any:
        # Not asked here whether it is wanted: to find out may be a read, and obstore is in one.
        with unless_withdrawn(None):
            token = self._token(in_line=True)
        return {
            "token": token.token,
            "expires_at": datetime.fromtimestamp(token.expires_on, UTC),
        }


def credential_of(given: Parameters, realm: str) -> Credential:
    """What the parameters say about signing in.

    :raises DriverConfigError: they do not, or not all of it.
    :raises MissingExtra: azure-identity is needed and not installed.
    """
    inner = Parameters(given.driver, given.mapping("credentials"))
    kind = inner.text("type", default=given.text("credentials_type"))
    if kind in ("", "shared_key"):
        account = given.required("accountname")
        if not given.has("accountkey"):
            raise given.error("accountkey", "missing; or set connectionstring or credentials.type")
        return shared_key(given, account, given.secret("accountkey"))
    try:
        import azure.identity
    except ImportError as error:
        raise MissingExtra(
            f"credentials of type {kind} need azure-identity: "
            "pip install 'registry-garbage-collect[azure]'",
            driver=given.driver,
        ) from error
    options = _sign_in(realm)
    if kind in ("default_credentials", "default"):
        return Token(azure.identity.DefaultAzureCredential(**options))
    if kind != "client_secret":
        raise given.error(
            "credentials.type", "expected shared_key, client_secret or default_credentials"
        )
    values = {}
    for name, spellings in _SECRET_PARAMETERS.items():
        values[name] = inner.secret(*spellings) or given.secret(*spellings)
        if not values[name]:
            raise given.error(f"credentials.{spellings[0]}", "missing for client_secret")
    given.secrets.append(values["client_secret"])
    return Token(azure.identity.ClientSecretCredential(**values, **options))


def _sign_in(realm: str, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Where tokens come from, and whose certificate is believed there.

    ``skipverify`` is about the storage: what is sent here is a secret.
    """
    options: dict[str, Any] = {}
    host = _AUTHORITIES.get(realm)
    if host:
        options["authority"] = host
    else:
        host = urlsplit(environment.get("AZURE_AUTHORITY_HOST", "")).hostname or _PUBLIC
    if host not in (_PUBLIC, *_AUTHORITIES.values()):
        # Microsoft's public directory knows nothing of a private cloud's.
        options["disable_instance_discovery"] = True
    if bundle := ca_bundle(environment):
        options["connection_verify"] = bundle
    return options


_SECRET_PARAMETERS = {
    "tenant_id": ("tenantid", "tenant_id"),
    "client_id": ("clientid", "client_id"),
    "client_secret": ("secret", "client_secret"),
}


def shared_key(given: Parameters, account: str, key: str) -> SharedKey:
    """The account's key.

    :raises DriverConfigError: it is no key.
    """
    try:
        signer = SharedKey(account, key)
    except (ValueError, binascii.Error):
        signer = None
    # obstore is stricter than Python about the bits that the last letter has too many.
    if signer is None or base64.b64encode(base64.b64decode(key)).decode() != key:
        raise given.error("accountkey", "not a key: it is no base64")
    return signer


def check_service(given: Parameters, key: str, service: str, part: str = "") -> None:
    """No secret is to be shown with a service's URL: it may hold none.

    :param part: what of the value of *key* the URL is, with ``: `` after it.
    :raises DriverConfigError: the URL has a signature, a user or a password, or a fragment.
    """
    if any(mark in service for mark in "?@#"):
        raise given.error(
            key, f"{part}expected a URL without a signature, user, password or fragment"
        )


def connection_string(given: Parameters) -> tuple[str, str, Credential]:
    """Account, service URL and credential of ``connectionstring``.

    :raises DriverConfigError: it lacks one of them.
    """
    text = given.secret("connectionstring")
    pairs = (item.partition("=") for item in text.split(";") if item.strip())
    values = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if values.get("usedevelopmentstorage", "").lower() == "true":
        raise given.error("connectionstring", "an emulator has to be named by its BlobEndpoint")
    account = values.get("accountname", "")
    service = values.get("blobendpoint", "")
    if not service:
        if not account:
            raise given.error("connectionstring", "has no AccountName and no BlobEndpoint")
        protocol = values.get("defaultendpointsprotocol", "https")
        suffix = values.get("endpointsuffix", "core.windows.net")
        service = f"{protocol}://{account}.blob.{suffix}"
    check_service(given, "connectionstring", service, "BlobEndpoint: ")
    if key := values.get("accountkey"):
        given.secrets.append(key)
        if not account:
            raise given.error("connectionstring", "has no AccountName")
        return account, service, shared_key(given, account, key)
    if signature := values.get("sharedaccesssignature"):
        query = signature.lstrip("?")
        # A store may say them back as they were sent, or as it understood them.
        values_sent = [item.partition("=")[2] for item in query.split("&")]
        values_meant = [value for _, value in parse_qsl(query)]
        given.secrets += [value for value in (*values_sent, *values_meant) if len(value) > 20]
        given.secrets.append(signature)
        return account, service, SharedAccessSignature(signature)
    raise DriverConfigError(
        f"storage.{given.driver}.connectionstring: has no AccountKey and no SharedAccessSignature",
        driver=given.driver,
    )
