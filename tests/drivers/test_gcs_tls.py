"""Google Cloud Storage, and who gives its tokens, behind certificates of the operator's own CA.

fake-gcs-server's own certificate is for Google's names, so a proxy in front of it has one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from drivers.conformance import paths_of
from registry_drivers import gcs
from registry_drivers.errors import DriverConfigError, StorageError, Unavailable
from registry_drivers.gcs import open_gcs
from registry_drivers.object_store import ObjectStorage
from registry_drivers.web import CA_VARIABLES
from servers.fake_gcs import GCSServer, fake_gcs
from servers.fault_proxy import Answer, FaultProxy, fault_proxy, stub
from servers.tls import Tls, make_tls


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(server: GCSServer, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The storage over TLS, which credentials are not asked for; no CA but a test's own."""
    for variable in CA_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with fault_proxy(server.url, tls.context(), own_host=True) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


def use(storage: ObjectStorage) -> None:
    """One request by each of the libraries that send any."""
    storage.write("a/b", b"1")
    assert storage.read("a/b") == b"1"
    assert paths_of(storage.list("")) == ["a/b"]
    assert [outcome.error for outcome in storage.delete(["a/b"])] == [""]


@pytest.mark.parametrize("variable", CA_VARIABLES)
def test_the_operators_authority_is_trusted(
    server: GCSServer,
    secure: FaultProxy,
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, str(tls.authority))
    with closing(open_gcs({"bucket": server.bucket()})) as storage:
        use(storage)
    assert secure.scheme == "https"
    assert secure.requests


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage: list(storage.list("")),
        lambda storage: storage.read("a/b"),
        lambda storage: storage.write("a/b", b""),
        lambda storage: list(storage.delete(["a/b"])),
    ],
)
def test_an_unknown_authority_is_refused_at_once(
    server: GCSServer, secure: FaultProxy, ask: Callable[[ObjectStorage], object]
) -> None:
    storage = open_gcs({"bucket": "bucket"})
    with closing(storage), pytest.raises(StorageError, match="AWS_CA_BUNDLE") as caught:
        ask(storage)
    assert not isinstance(caught.value, Unavailable)
    assert storage.requests.retries == 0


def test_an_authority_that_is_not_there_is_named(
    secure: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/missing.pem")
    with pytest.raises(DriverConfigError, match=r"SSL_CERT_FILE.*/missing\.pem"):
        open_gcs({"bucket": "bucket"})


# Who gives tokens


@pytest.fixture
def directory(tls: Tls) -> Iterator[FaultProxy]:
    answer = {"access_token": "a token", "expires_in": 3600, "token_type": "Bearer"}
    told = Answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
    with stub(lambda _: told, tls.context()) as listening:
        yield listening


@pytest.fixture
def account(
    directory: FaultProxy, secure: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A service account's key; its tokens are wanted by the storage."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr(gcs, "ENDPOINT", secure.url)
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "client_email": "collector@project.example",
        "private_key_id": "the number of the key",
        "private_key": key.decode(),
        "token_uri": f"{directory.url}/token",
    }


def test_the_authority_counts_for_tokens_too(
    server: GCSServer,
    secure: FaultProxy,
    directory: FaultProxy,
    account: dict[str, str],
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
    with closing(open_gcs({"bucket": server.bucket(), "credentials": account})) as storage:
        use(storage)
    assert directory.requests
    assert {seen.headers["authorization"] for seen in secure.requests} == {"Bearer a token"}


def test_an_unknown_authority_is_sent_no_assertion(
    directory: FaultProxy, account: dict[str, str]
) -> None:
    storage = open_gcs({"bucket": "bucket", "credentials": account})
    with closing(storage), pytest.raises(StorageError, match="AWS_CA_BUNDLE") as caught:
        storage.read("a/b")
    assert not isinstance(caught.value, Unavailable)
    assert storage.requests.retries == 0
    assert directory.requests == []
