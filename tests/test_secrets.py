"""No secret of a store is printed, logged or kept: not when all is well, and not when it is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from registry_drivers import gcs
from running import run
from servers.fault_proxy import Answer, Broken, Fault, FaultProxy, Request, Rule, stub
from stores import (
    Place,
    Servers,
    a_bit_of_everything,
    is_delete,
    proxied,
    store,
    without_pauses,
)

TOKEN = "ya29.the-token-of-this-run"
# What a careless store or proxy says back.
REFUSED = b"<Error><Code>SignatureDoesNotMatch</Code><Message>%s</Message></Error>"


@dataclass(frozen=True)
class Secretive:
    """A place behind a proxy, of which ``place.secrets`` are all that must not be seen."""

    place: Place
    proxy: FaultProxy


def private_key() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture(scope="module", params=["s3", "s3 with a session", "gcs", "azure"])
def secretive(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secretive]:
    with ExitStack() as stack:
        kind = request.param.partition(" ")[0]
        direct = Servers(stack, tmp_path_factory.mktemp).place(kind)
        store(direct, a_bit_of_everything())
        place, proxy = stack.enter_context(proxied(direct))
        if "session" in request.param:
            place = place.with_parameters(sessiontoken="the-session-of-this-run")
            place = replace(place, secrets=(*place.secrets[1:], "the-session-of-this-run"))
        elif kind == "s3":
            # The name of a key is no secret: logs of the store have it.
            place = replace(place, secrets=place.secrets[1:])
        elif kind == "gcs":
            place = stack.enter_context(with_key(place, proxy))
        yield Secretive(place, proxy)


@contextmanager
def with_key(place: Place, proxy: FaultProxy) -> Iterator[Place]:
    """The same place for a service account, whose token comes from an endpoint of ours."""
    answer = json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
    with (
        stub(lambda _: Answer(200, answer.encode())) as tokens,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(gcs, "ENDPOINT", proxy.url)
        key = private_key()
        account = {
            "type": "service_account",
            "client_email": "collector@project.example",
            "private_key_id": "0123456789abcdef0123456789abcdef",
            "private_key": key,
            "token_uri": tokens.url,
        }
        found = replace(place, environment={}, secrets=(*key.splitlines()[1:-1], TOKEN))
        yield found.with_parameters(credentials=json.dumps(account))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try twice, without a pause."""
    without_pauses(monkeypatch, times=1)


def echo(request: Request) -> Fault | None:
    """Says back what it was sent, as debug pages do."""
    said = "".join(f"{name}: {value} " for name, value in request.headers.items())
    return Answer(403, REFUSED % f"{request.path} {said}".encode())


def echo_json(request: Request) -> Fault | None:
    said = " ".join(request.headers.values())
    return Answer(400, json.dumps({"error": {"message": said}}).encode())


def only(rule: Rule, part: str) -> Rule:
    return lambda request: rule(request) if part in unquote(request.path) else None


TROUBLE: dict[str, Rule] = {
    "none": lambda _: None,
    "everything is refused": echo,
    "everything is refused as JSON": echo_json,
    "deletes are refused": lambda request: echo(request) if is_delete(request) else None,
    "manifests are refused": only(echo, "/blobs/sha256/"),
    "the lock is refused": only(echo, "registry-gc/lock"),
    "the line is dead": lambda _: Broken(),
    "nonsense": lambda _: Answer(200, b"<html>come in"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_no_secret_is_printed_logged_or_kept(
    secretive: Secretive,
    trouble: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    place = secretive.place
    place.prepare(monkeypatch)
    secretive.proxy.reset()
    secretive.proxy.rule = TROUBLE[trouble]
    config = place.config(tmp_path)
    said = []
    for arguments in (("-v", "--dry-run"), ("--output", "json", "-m", "--grace", "1000w"), ("-v",)):
        answer = run(*arguments, config, state=tmp_path / "state")
        said += [answer.text, answer.errors]
        assert answer.text or answer.errors
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("state/**/*") if file.is_file())
    assert kept or trouble not in ("none", "deletes are refused")
    everything = "".join([*said, *caplog.messages])
    for secret in place.secrets:
        assert secret not in everything
        assert secret.encode() not in kept
    assert "Signature=" not in everything.replace("Signature=***", "")
