"""Whose name requests to Azure carry: every way in which operators give credentials.

Azurite checks shared keys and signatures. Tokens come from an authority on loopback, over TLS as
Microsoft's libraries want it; the storage that takes them is a stub.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

from drivers.conformance import paths_of
from registry_drivers.azure import AzureStorage, open_azure
from registry_drivers.errors import AccessDenied, DriverConfigError, StorageError, Unavailable
from registry_drivers.retry import Retry
from registry_drivers.web import CA_VARIABLES
from servers.azurite import ACCOUNT, KEY, AzureServer, azurite
from servers.fault_proxy import Answer, FaultProxy, Request, fault_proxy, stub
from servers.tls import Tls, make_tls

TENANT, CLIENT = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
SECRET, TOKEN = "what only the client knows", "the-token-that-was-asked-for"
HEADERS = {"Content-Type": "application/json"}
LISTING = b"""<?xml version="1.0"?><EnumerationResults><Blobs><Blob><Name>a/b</Name><Properties>
<Last-Modified>Mon, 27 Jul 2009 12:28:53 GMT</Last-Modified><Content-Length>1</Content-Length>
</Properties></Blob></Blobs><NextMarker /></EnumerationResults>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials but those that a test gives."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "IDENTITY_", "MSI_")) or name in CA_VARIABLES:
            monkeypatch.delenv(name)


def use(storage: AzureStorage) -> None:
    """One request by each of the libraries that send any."""
    with closing(storage):
        storage.write("a/b", b"1")
        assert storage.read("a/b") == b"1"
        assert paths_of(storage.list("")) == ["a/b"]
        assert [outcome.error for outcome in storage.delete(["a/b"])] == [""]
        for secret in (KEY, SECRET, TOKEN):
            assert secret not in repr(storage) + repr(storage._credential)


# --- keys and signatures


def test_a_shared_key(server: AzureServer) -> None:
    use(server.open())
    use(server.open(credentials={"type": "shared_key"}))


def test_a_connection_string_with_a_key(server: AzureServer) -> None:
    text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
    text += f"BlobEndpoint={server.url};"
    use(open_azure({"connectionstring": text, "container": server.container()}))


def signature() -> str:
    return generate_account_sas(
        ACCOUNT,
        KEY,
        ResourceTypes(container=True, object=True),
        AccountSasPermissions(read=True, write=True, delete=True, list=True),
        datetime.now(UTC) + timedelta(hours=1),
    )


def test_a_connection_string_with_a_shared_access_signature(server: AzureServer) -> None:
    sas = signature()

    def rule(request: Request) -> Answer | None:
        if "comp=batch" not in request.path:
            return None
        # Azurite cannot read signatures within a batch, not Microsoft's own library's either.
        inner = re.search(rb"DELETE /\S+/a/b\?(\S+) HTTP", request.body)
        assert inner
        return accepted() if inner[1].decode() == sas and sas in request.path else Answer(403)

    with fault_proxy(server.url.partition("/dev")[0]) as proxy:
        proxy.rule = rule
        text = f"BlobEndpoint={proxy.url}/{ACCOUNT};SharedAccessSignature={sas}"
        use(open_azure({"connectionstring": text, "container": server.container()}))


def test_a_signature_is_kept_out_of_messages_as_it_was_sent_and_as_it_was_meant() -> None:
    sas = "sv=2021-12-02&se=2030-01-01T00%3A00%3A00Z&sig=AbCdEfGhIjKlMnOpQrSt%2BUvWx%3D"
    text = f"BlobEndpoint=https://account.blob.core.windows.net;SharedAccessSignature=?{sas}"
    with closing(open_azure({"connectionstring": text, "container": "c"})) as storage:
        said = "AbCdEfGhIjKlMnOpQrSt%2BUvWx%3D is not AbCdEfGhIjKlMnOpQrSt+UvWx="
        assert storage._clean(said) == "*** is not ***"


@pytest.mark.parametrize("end", ["?sig=secret", "#secret"])
def test_a_service_url_that_holds_more_than_a_place_is_refused(end: str) -> None:
    given = {"accountname": "a", "accountkey": KEY, "container": "c"}
    with pytest.raises(DriverConfigError, match="expected a URL without") as caught:
        open_azure({**given, "serviceurl": f"https://a.blob.core.windows.net{end}"})
    assert "secret" not in str(caught.value)


def test_no_message_holds_a_shared_access_signature(server: AzureServer) -> None:
    sas = signature()
    text = f"BlobEndpoint={server.url};SharedAccessSignature={sas}"
    (mark,) = parse_qs(sas)["sig"]
    storage = open_azure({"connectionstring": text, "container": "does-not-exist"})
    storage.retry = Retry(times=0)
    with closing(storage), fault_proxy(server.url.partition("/dev")[0]) as proxy:
        broken = text.replace(server.url, f"{proxy.url}/{ACCOUNT}")
        behind = open_azure({"connectionstring": broken, "container": "does-not-exist"})
        behind.retry = Retry(times=0)
        for place in (storage, behind):
            for ask in (lambda s: list(s.list("")), lambda s: s.read("a"), lambda s: s.stat("a")):
                with pytest.raises(StorageError) as caught:
                    ask(place)
                assert mark not in str(caught.value)
                assert sas not in str(caught.value)
            proxy.always(Answer(403, b"<Error><Code>AuthenticationFailed</Code></Error>"))
        behind.close()


@pytest.mark.parametrize(
    "text",
    [
        f"AccountName={ACCOUNT}",
        f"AccountKey={KEY}",
        "UseDevelopmentStorage=true",
        f"AccountName={ACCOUNT};AccountKey={KEY[:-3]}!",
        f"AccountName={ACCOUNT};AccountKey={KEY[:-3]}x==",
    ],
)
def test_a_connection_string_that_says_too_little_is_not_shown(text: str) -> None:
    with pytest.raises(DriverConfigError, match=r"storage\.azure\.") as caught:
        open_azure({"connectionstring": text, "container": "x"})
    assert KEY[:20] not in str(caught.value)


# --- tokens


class Authority:
    """Microsoft's directory as far as it is asked; ``asked`` are the forms that came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.fault: Answer | None = None
        self.host = ""

    def rule(self, request: Request) -> Answer:
        if "openid-configuration" in request.path:
            place = f"https://{self.host}/{TENANT}"
            known = {
                "token_endpoint": f"{place}/oauth2/v2.0/token",
                "authorization_endpoint": f"{place}/oauth2/v2.0/authorize",
                "issuer": f"{place}/v2.0",
            }
            return Answer(200, json.dumps(known).encode(), HEADERS)
        self.asked.append(parse_qs(request.body.decode()))
        return self.fault or given_token()


def given_token() -> Answer:
    expires = datetime.now(UTC) + timedelta(hours=1)
    told = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
    told["expires_on"] = str(int(expires.timestamp()))
    told["resource"] = "https://storage.azure.com/"
    return Answer(200, json.dumps(told).encode(), HEADERS)


@pytest.fixture
def authority(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    directory = Authority()
    with stub(directory.rule, tls.context()) as listening:
        directory.host = urlsplit(listening.url).netloc
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", listening.url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.authority))
        yield directory


def storage_rule(request: Request) -> Answer:
    """A storage of one blob, for those who have the token."""
    if request.headers.get("authorization") != f"Bearer {TOKEN}":
        return Answer(401, b"<Error><Code>NoAuthenticationInformation</Code></Error>")
    if request.method == "PUT":
        return Answer(201)
    if request.method == "POST":
        inner = f"Authorization: Bearer {TOKEN}".encode() in request.body
        return accepted() if inner else Answer(401)
    headers = {"ETag": '"1"', "Last-Modified": "Mon, 27 Jul 2009 12:28:53 GMT"}
    return Answer(200, LISTING if "comp=list" in request.path else b"1", headers)


def accepted() -> Answer:
    """What says of a batch that its one delete is done."""
    part = b"--b\r\nContent-ID: 0\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n\r\n--b--\r\n"
    return Answer(202, part, {"Content-Type": "multipart/mixed; boundary=b"})


@pytest.fixture
def blobs(tls: Tls) -> Iterator[FaultProxy]:
    with stub(storage_rule, tls.context()) as server:
        yield server


def parameters(blobs: FaultProxy, **others: Any) -> dict[str, Any]:
    place = {"accountname": "account", "serviceurl": blobs.url, "container": "container"}
    return {**place, "legacyrootprefix": False, **others}


CLIENT_SECRET: list[dict[str, Any]] = [
    {"credentials": {"type": "client_secret", "tenantid": TENANT, "clientid": CLIENT,
                     "secret": SECRET}},
    {"credentials_type": "client_secret", "tenant_id": TENANT, "client_id": CLIENT,
     "client_secret": SECRET},
]  # fmt: skip


@pytest.mark.parametrize("given", CLIENT_SECRET, ids=["Distribution", "GitLab"])
def test_a_client_secret(authority: Authority, blobs: FaultProxy, given: dict[str, Any]) -> None:
    use(open_azure(parameters(blobs, **given)))
    # One token for all requests.
    (form,) = authority.asked
    assert form["client_secret"] == [SECRET]
    assert form["client_id"] == [CLIENT]
    assert form["grant_type"] == ["client_credentials"]


@pytest.mark.parametrize("given", CLIENT_SECRET, ids=["Distribution", "GitLab"])
def test_a_token_needs_no_name_of_an_account_where_the_service_is_named(
    authority: Authority, blobs: FaultProxy, given: dict[str, Any]
) -> None:
    use(open_azure(parameters(blobs, accountname=None, **given)))
    assert authority.asked


DEFAULT = {"credentials": {"type": "default_credentials"}}


def test_the_default_credential_of_the_environment(
    authority: Authority, blobs: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TENANT_ID", TENANT), ("CLIENT_ID", CLIENT), ("CLIENT_SECRET", SECRET)):
        monkeypatch.setenv(f"AZURE_{name}", value)
    use(open_azure(parameters(blobs, **DEFAULT)))
    assert authority.asked[0]["client_secret"] == [SECRET]


def test_the_default_credential_of_a_workload(
    authority: Authority, blobs: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("signed by the cluster")
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    use(open_azure(parameters(blobs, **DEFAULT)))
    assert authority.asked[0]["client_assertion"] == ["signed by the cluster"]


def test_the_default_credential_of_a_managed_identity(
    blobs: FaultProxy, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rule(request: Request) -> Answer:
        right = request.headers.get("x-identity-header") == "the service's"
        return given_token() if right else Answer(401)

    with stub(rule) as identity:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls.authority))
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{identity.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "the service's")
        use(open_azure(parameters(blobs, **DEFAULT)))


def quick(storage: AzureStorage) -> AzureStorage:
    storage.retry = Retry(times=2, sleep=lambda _: None)
    return storage


def holds_no_secret(error: BaseException) -> None:
    seen: BaseException | None = error
    while seen is not None:
        assert SECRET not in str(seen) + repr(seen)
        assert TOKEN not in str(seen) + repr(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


@pytest.mark.parametrize("way", ["list", "read"])
def test_a_secret_that_has_expired_is_no_access(
    authority: Authority, blobs: FaultProxy, way: str
) -> None:
    told = {"error": "invalid_client", "error_description": "AADSTS7000222: it has expired"}
    authority.fault = Answer(401, json.dumps(told).encode(), HEADERS)
    storage = quick(open_azure(parameters(blobs, **CLIENT_SECRET[0])))
    with closing(storage), pytest.raises(AccessDenied, match="it has expired") as caught:
        list(storage.list("")) if way == "list" else storage.read("a")
    holds_no_secret(caught.value)
    assert storage.requests.retries == 0


def test_an_authority_that_is_away_is_no_answer(
    authority: Authority, blobs: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azure.core.pipeline.policies._retry.time.sleep", lambda _: None)
    authority.fault = Answer(503)
    storage = quick(open_azure(parameters(blobs, **CLIENT_SECRET[0])))
    with closing(storage), pytest.raises(StorageError, match="no token") as caught:
        list(storage.list(""))
    holds_no_secret(caught.value)


@pytest.mark.parametrize("missing", ["tenantid", "clientid", "secret"])
def test_a_part_that_is_missing_is_named(blobs: FaultProxy, missing: str) -> None:
    credentials = dict(CLIENT_SECRET[0]["credentials"])
    del credentials[missing]
    with pytest.raises(DriverConfigError, match=rf"credentials\.{missing}") as caught:
        open_azure(parameters(blobs, credentials=credentials))
    holds_no_secret(caught.value)


# --- certificates


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_the_operators_authority_is_trusted_by_storage_and_directory(
    authority: Authority,
    blobs: FaultProxy,
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv(variable, str(tls.authority))
    use(open_azure(parameters(blobs, **CLIENT_SECRET[0])))


def test_an_unknown_authority_is_refused(
    authority: Authority, blobs: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setattr("azure.core.pipeline.policies._retry.time.sleep", lambda _: None)
    storage = quick(open_azure(parameters(blobs, **CLIENT_SECRET[0])))
    with closing(storage), pytest.raises(StorageError) as caught:
        list(storage.list(""))
    holds_no_secret(caught.value)
    assert authority.asked == []


def test_skipverify_is_about_the_storage_and_not_about_who_is_told_the_secret(
    server: AzureServer, authority: Authority, blobs: FaultProxy, tls: Tls,
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with fault_proxy(server.url.partition("/dev")[0], tls.context()) as proxy:
        given = server.parameters(server.container(), skipverify="true")
        given["serviceurl"] = f"{proxy.url}/{ACCOUNT}"
        use(open_azure(given))
    assert {warning.category.__name__ for warning in recwarn} == {"InsecureRequestWarning"}
    storage = quick(open_azure(parameters(blobs, skipverify=True, **CLIENT_SECRET[0])))
    monkeypatch.setattr("azure.core.pipeline.policies._retry.time.sleep", lambda _: None)
    with closing(storage), pytest.raises((Unavailable, AccessDenied), match="no token"):
        list(storage.list(""))
    assert authority.asked == []
