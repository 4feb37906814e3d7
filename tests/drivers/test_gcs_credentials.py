"""Whose token requests to Google Cloud Storage carry: every way in which operators give one.

fake-gcs-server does not look at tokens, so a proxy in front of it does. Tokens come from an
endpoint on loopback, as the key files of the tests say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import google.auth.jwt
import google.oauth2.credentials
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from drivers.conformance import paths_of
from registry_drivers import gcs, gcs_auth
from registry_drivers.errors import AccessDenied, DriverConfigError, StorageError, Unavailable
from registry_drivers.gcs import GCSStorage, open_gcs
from registry_drivers.retry import Retry
from servers.fake_gcs import GCSServer, fake_gcs
from servers.fault_proxy import Answer, Fault, FaultProxy, Request, fault_proxy, stub

TOKEN, REFRESH = "the token that was asked for", "what a token is got with"
MAIL = "collector@project.example"
AUDIENCE = "https://oauth2.googleapis.com/token"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GCSServer]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def watched(server: GCSServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The storage, which takes the token and no other; and no credentials but a test's own."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nowhere")
    monkeypatch.setenv("NO_GCE_CHECK", "true")

    def rule(request: Request) -> Fault | None:
        right = request.headers.get("authorization") == f"Bearer {TOKEN}"
        return None if right else Answer(401, b'{"error": {"message": "who are you?"}}')

    with fault_proxy(server.url, own_host=True) as proxy:
        proxy.rule = rule
        monkeypatch.setattr(gcs, "ENDPOINT", proxy.url)
        yield proxy


class TokenServer:
    """Gives the token; ``asked`` are the forms that came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.faults: list[Answer] = []
        self.url = ""

    def rule(self, request: Request) -> Answer:
        self.asked.append(parse_qs(request.body.decode()))
        if self.faults:
            return self.faults.pop(0)
        answer = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
        answer["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
        return Answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def tokens() -> Iterator[TokenServer]:
    server = TokenServer()
    with stub(server.rule) as listening:
        server.url = f"{listening.url}/token"
        yield server


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
def account(tokens: TokenServer, private_key: str) -> dict[str, str]:
    """What is in a service account's key file."""
    return {
        "type": "service_account",
        "client_email": MAIL,
        "private_key_id": "the number of the key",
        "private_key": private_key,
        "token_uri": tokens.url,
    }


def use(server: GCSServer, **given: Any) -> None:
    """One request by each of the libraries that send any; all of them have the token."""
    with closing(open_gcs({"bucket": server.bucket(), **given})) as storage:
        storage.write("a/b", b"1")
        assert storage.read("a/b") == b"1"
        assert paths_of(storage.list("")) == ["a/b"]
        assert [outcome.error for outcome in storage.delete(["a/b"])] == [""]


def public(private_key: str) -> bytes:
    key = serialization.load_pem_private_key(private_key.encode(), None)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def as_file(account: dict[str, str], folder: Path) -> dict[str, object]:
    (folder / "key.json").write_text(json.dumps(account))
    return {"keyfile": str(folder / "key.json")}


WAYS: dict[str, Callable[[dict[str, str], Path], dict[str, object]]] = {
    "key file": as_file,
    "mapping in the config": lambda account, _: {"credentials": account},
    "JSON in the config": lambda account, _: {"credentials": json.dumps(account)},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_service_accounts_key(
    server: GCSServer,
    watched: FaultProxy,
    tokens: TokenServer,
    account: dict[str, str],
    tmp_path: Path,
    way: str,
) -> None:
    use(server, **WAYS[way](account, tmp_path))
    # One token for all requests, and it was asked for with this key.
    (form,) = tokens.asked
    jwt: Any = google.auth.jwt  # half of it has types
    claims = jwt.decode(form["assertion"][0], public(account["private_key"]), audience=AUDIENCE)
    assert claims["iss"] == MAIL
    assert claims["scope"] == gcs_auth.SCOPE


def test_the_default_chain_takes_the_file_that_the_environment_names(
    server: GCSServer,
    watched: FaultProxy,
    account: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(as_file(account, tmp_path)["keyfile"]))
    use(server)


def test_the_default_chain_takes_who_has_signed_in(
    server: GCSServer,
    watched: FaultProxy,
    tokens: TokenServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Google's own, whatever the file says.
    monkeypatch.setattr(google.oauth2.credentials, "_GOOGLE_OAUTH2_TOKEN_ENDPOINT", tokens.url)
    user = {"type": "authorized_user", "client_id": "id", "client_secret": "secret of it"}
    (tmp_path / "application_default_credentials.json").write_text(
        json.dumps({**user, "refresh_token": REFRESH})
    )
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    use(server)
    # Nobody asked for a project.
    assert not caplog.messages
    assert tokens.asked[0]["refresh_token"] == [REFRESH]


def test_a_workload_of_another_cloud(
    server: GCSServer, watched: FaultProxy, tokens: TokenServer, tmp_path: Path
) -> None:
    (tmp_path / "subject").write_text("signed by the cluster")
    workload = {
        "type": "external_account",
        "audience": "//iam.example/providers/cluster",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": tokens.url,
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    use(server, credentials=workload)
    assert tokens.asked[0]["subject_token"] == ["signed by the cluster"]


def test_an_emulator_is_asked_without_a_name(
    server: GCSServer, watched: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", watched.url)
    watched.rule = lambda _: None
    use(server)
    assert len(watched.requests) == 4
    assert not any("authorization" in request.headers for request in watched.requests)


# --- what goes wrong, without a secret in what is said of it


def opened(account: dict[str, str], server: GCSServer) -> GCSStorage:
    storage = open_gcs({"bucket": server.bucket(), "credentials": account})
    storage.retry = Retry(times=2, sleep=lambda _: None)
    return storage


def holds_no_secret(error: BaseException, account: dict[str, str]) -> None:
    seen: BaseException | None = error
    secrets = [*account["private_key"].splitlines()[1:-1], account["private_key_id"], TOKEN]
    while seen is not None:
        assert not [secret for secret in secrets if secret in str(seen) + repr(seen)]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def test_a_key_that_was_revoked_is_no_access(
    server: GCSServer, watched: FaultProxy, tokens: TokenServer, account: dict[str, str]
) -> None:
    told = {"error": "invalid_grant", "error_description": f"{account['private_key_id']} is gone"}
    with closing(opened(account, server)) as storage:
        for ask in (lambda: list(storage.list("")), lambda: storage.read("a")):
            tokens.faults = [Answer(400, json.dumps(told).encode())]
            with pytest.raises(StorageError, match="invalid_grant") as caught:
                ask()
            holds_no_secret(caught.value, account)
        tokens.faults = [Answer(400, json.dumps(told).encode())]
        with pytest.raises(AccessDenied):
            list(storage.list(""))
        # Nobody insists on a key that was refused.
        assert storage.requests.retries == 0


def test_a_token_server_that_is_away_is_asked_again(
    server: GCSServer,
    watched: FaultProxy,
    tokens: TokenServer,
    account: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
    with closing(opened(account, server)) as storage:
        tokens.faults = [Answer(503)] * 3
        assert list(storage.list("")) == []
    with closing(opened(account, server)) as storage:
        tokens.faults = [Answer(503)] * 100
        with pytest.raises(Unavailable, match="no token") as caught:
            list(storage.list(""))
        holds_no_secret(caught.value, account)


@pytest.mark.parametrize("damage", ["type", "private_key", "client_email"])
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_key_is_named_and_not_shown(
    server: GCSServer,
    watched: FaultProxy,
    account: dict[str, str],
    tmp_path: Path,
    way: str,
    damage: str,
) -> None:
    damaged = dict(account)
    if damage == "private_key":
        damaged["private_key"] = account["private_key"][:-400]
    else:
        del damaged[damage]
    parameter = "keyfile" if way == "key file" else "credentials"
    with pytest.raises(DriverConfigError, match=rf"storage\.gcs\.{parameter}") as caught:
        open_gcs({"bucket": "x", **WAYS[way](damaged, tmp_path)})
    holds_no_secret(caught.value, account)


def test_credentials_that_are_no_json_are_not_shown(watched: FaultProxy) -> None:
    with pytest.raises(DriverConfigError, match=r"storage\.gcs\.credentials") as caught:
        open_gcs({"bucket": "x", "credentials": f'{{"private_key": {REFRESH}'})
    assert REFRESH not in str(caught.value)


def test_a_key_file_that_is_not_there_is_named(watched: FaultProxy, tmp_path: Path) -> None:
    with pytest.raises(DriverConfigError, match=r"storage\.gcs\.keyfile.*missing\.json"):
        open_gcs({"bucket": "x", "keyfile": str(tmp_path / "missing.json")})


def test_nobody_is_an_error_that_names_the_parameter(watched: FaultProxy) -> None:
    with pytest.raises(DriverConfigError, match=r"storage\.gcs\.credentials: no usable"):
        open_gcs({"bucket": "x"})
