"""The guard's credentials: to whom they are shown, tokens, and a file of them that is no use."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guarding import (
    PROBE,
    READ_ONLY,
    Dripping,
    Reply,
    Seen,
    certificate,
    check,
    closed,
    codes,
    config,
    serving,
    started,
    verdict_of,
)
from real import RealRegistry
from registry_drivers.memory import MemoryStorage
from registry_gc.config import ConfigError
from registry_gc.guard import Guard, GuardOptions, Verdict
from registry_gc.guard.credentials import challenges


@pytest.fixture
def auth_file(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Writes a file of credentials."""

    def write(auths: Mapping[str, Any]) -> Path:
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": auths}))
        return path

    return write


WriteAuth = Callable[[Mapping[str, Any]], Path]


def encoded(user: str = "user", password: str = "s3cret") -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def basic(request: Seen) -> Reply:
    if request.authorization == f"Basic {encoded()}":
        return READ_ONLY
    return 401, [("WWW-Authenticate", 'Basic realm="registry, the"')]


@pytest.mark.parametrize(
    "key",
    ["127.0.0.1:{}", "http://127.0.0.1:{}", "https://127.0.0.1:{}/v1/", "127.0.0.1:{}/v2"],
)
def test_basic_credentials_are_found_under_every_form_of_the_key(
    key: str, auth_file: WriteAuth
) -> None:
    with serving(basic) as server:
        path = auth_file({key.format(server.port): {"auth": encoded()}, "other": {"auth": "eDp5"}})
        verdict = check(config(server.addr), auth=path)
    assert verdict.allowed
    assert [seen.authorization for seen in server.seen] == ["", f"Basic {encoded()}"]


def test_plain_user_and_password_serve_too(auth_file: WriteAuth) -> None:
    with serving(basic) as server:
        path = auth_file({server.addr: {"username": "user", "password": "s3cret"}})
        assert check(config(), urls=(server.url,), auth=path).allowed


def test_a_single_login_serves_for_the_configs_own_address_but_not_for_others(
    auth_file: WriteAuth,
) -> None:
    path = auth_file({"registry.example.com": {"auth": encoded()}})
    with serving(basic) as server:
        assert check(config(f":{server.port}"), auth=path).allowed
        assert codes(check(config(), urls=(server.url,), auth=path)) == ["probe-unauthorized"]


def test_the_public_name_in_the_config_finds_the_login(auth_file: WriteAuth) -> None:
    path = auth_file({"registry.example.com": {"auth": encoded()}, "other": {"auth": "eDp5"}})
    with serving(basic) as server:
        assert check(
            config(f":{server.port}", host="https://registry.example.com"), auth=path
        ).allowed


def test_wrong_credentials_stay_unknown_and_are_not_shown(auth_file: WriteAuth) -> None:
    with serving(basic) as server:
        path = auth_file({server.addr: {"auth": encoded(password="wr0ng")}})
        verdict = check(config(server.addr), auth=path)
    assert codes(verdict) == ["probe-unauthorized"]
    assert "wr0ng" not in repr(verdict)
    assert "does not accept the credentials" in verdict.findings[0].message
    assert "log in anew" in verdict.findings[0].message
    assert len(server.seen) == 2


def test_a_password_does_not_go_to_another_machine_that_has_not_shown_who_it_is(
    tmp_path: Path, auth_file: WriteAuth
) -> None:
    tls = certificate(tmp_path, loopback=False).context
    with serving(basic, tls) as server:
        # The same place, in a form that is not taken for loopback.
        elsewhere = f"127.1:{server.port}"
        path = auth_file({elsewhere: {"auth": encoded()}})
        verdict = check(config(elsewhere, tls=True), auth=path)
        assert codes(verdict) == ["probe-unauthorized"]
        assert [seen.authorization for seen in server.seen] == [""]
        path = auth_file({server.addr: {"auth": encoded()}})
        assert check(config(server.addr, tls=True), auth=path).allowed


@dataclass
class TokenServer:
    """What a token server does; ``asked`` are the queries that it got."""

    token: str = "t0ken"
    status: int = 200
    body: bytes | None = None
    asked: list[Mapping[str, list[str]]] = field(default_factory=list)

    def script(self, request: Seen) -> Reply:
        if request.method == "GET":
            self.asked.append(parse_qs(urlsplit(request.path).query))
            if request.authorization != f"Basic {encoded()}":
                return 401, []
            document = {"token": self.token, "expires_in": 60}
            return (
                self.status,
                [],
                json.dumps(document).encode() if self.body is None else self.body,
            )
        if request.authorization == f"Bearer {self.token}":
            return READ_ONLY
        realm = f"http://{request.host}/token?x=1"
        challenge = f'Bearer realm="{realm}",service="the, registry",error="invalid_token"'
        return 401, [("WWW-Authenticate", challenge)]


def test_a_bearer_challenge_is_met_with_a_token_to_pull_that_is_kept(auth_file: WriteAuth) -> None:
    tokens = TokenServer()
    with serving(tokens.script) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        guard = Guard(config(server.addr), MemoryStorage(), GuardOptions(auth_file=str(path)))
        assert guard.check().allowed
        assert guard.check().allowed
        assert tokens.asked == [
            {
                "x": ["1"],
                "account": ["user"],
                "service": ["the, registry"],
                "scope": ["repository:registry-gc/probe:pull"],
            }
        ]
        # A token that has run out is fetched anew.
        tokens.token = "an0ther"
        assert guard.check().allowed
        assert len(tokens.asked) == 2
    assert {seen.method for seen in server.seen if seen.path == PROBE} == {"OPTIONS"}


@pytest.mark.parametrize(
    "tokens",
    [
        TokenServer(status=403),
        TokenServer(status=302),
        TokenServer(body=b"no JSON"),
        TokenServer(body=b"{}"),
        TokenServer(body=b'{"token": "two\\nlines"}'),
        TokenServer(body=b"[]"),
        TokenServer(body=b"[" * 100_000),
    ],
)
def test_no_token_stays_unknown(tokens: TokenServer, auth_file: WriteAuth) -> None:
    with serving(tokens.script) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        verdict = check(config(server.addr), auth=path)
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-unauthorized"])
    assert f"http://{server.addr}: its token server" in verdict.findings[0].message
    assert "s3cret" not in repr(verdict)


@pytest.mark.parametrize(
    "challenge",
    ["Bearer", 'Bearer realm=""', 'Bearer realm="file:///etc/passwd"', 'Bearer realm="http://[x"'],
)
def test_a_token_server_without_a_usable_address_stays_unknown(
    challenge: str, auth_file: WriteAuth
) -> None:
    with serving((401, [("WWW-Authenticate", challenge)])) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        assert codes(check(config(server.addr), auth=path)) == ["probe-unauthorized"]


@given(header=st.text(max_size=40) | st.text(alphabet='Bear ls=",\\', max_size=40))
def test_any_challenge_can_be_read(header: str) -> None:
    for parameters in challenges([header, f"Bearer realm={header}"]).values():
        assert all(isinstance(value, str) for value in parameters.values())


def test_challenges_are_told_apart_on_one_line_and_on_several() -> None:
    expected = {"basic": {"realm": "a"}, "bearer": {"realm": "b", "service": "c, d"}}
    one = 'Basic realm="a", Bearer realm="b",service="c, d"'
    assert challenges([one]) == expected
    assert challenges(['BASIC Realm="a"', 'bearer realm=b, service="c, d"']) == expected


def test_a_token_server_that_is_down_stays_unknown(auth_file: WriteAuth) -> None:
    challenge = f'Basic realm="x", Bearer realm="http://{closed()}/token",service="s"'
    with serving((401, [("WWW-Authenticate", challenge)])) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        verdict = check(config(server.addr), auth=path)
    assert "does not answer" in verdict.findings[0].message


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"]
)
def test_a_token_server_that_answers_a_bit_at_a_time_is_heard_no_longer_than_others(
    head: bytes, auth_file: WriteAuth
) -> None:
    dripping = Dripping(head)
    with dripping.running() as tokens:
        challenge = f'Bearer realm="http://{tokens}/token"'
        with serving((401, [("WWW-Authenticate", challenge)])) as server:
            path = auth_file({server.addr: {"auth": encoded()}})
            verdict = check(config(server.addr), auth=path, timeout=0.3)
    assert codes(verdict) == ["probe-unauthorized"]
    assert "takes too long" in verdict.findings[0].message
    assert dripping.sent < dripping.pieces


def test_a_token_server_with_tls_is_asked_where_its_certificate_is_trusted(
    tmp_path: Path, auth_file: WriteAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokenServer()
    made = certificate(tmp_path, loopback=True)

    def script(request: Seen) -> Reply:
        if request.authorization == f"Bearer {tokens.token}":
            return READ_ONLY
        return 401, [("WWW-Authenticate", f'Bearer realm="https://{tls.addr}/tök en"')]

    with serving(tokens.script, made.context) as tls, serving(script) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        assert not check(config(server.addr), auth=path).allowed
        assert not tls.seen
        monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
        assert check(config(server.addr), auth=path).allowed


def test_a_registry_over_tls_cannot_send_the_password_to_a_plain_token_server(
    tmp_path: Path, auth_file: WriteAuth
) -> None:
    tokens = TokenServer()
    tls = certificate(tmp_path, loopback=True).context
    with serving(tokens.script) as plain:
        challenge = f'Bearer realm="{plain.url}/token"'
        with serving((401, [("WWW-Authenticate", challenge)]), tls) as server:
            path = auth_file({server.addr: {"auth": encoded()}})
            verdict = check(config(server.addr, tls=True), auth=path)
    assert "without TLS" in verdict.findings[0].message
    assert not plain.seen


def test_a_registry_token_is_sent_as_it_is(auth_file: WriteAuth) -> None:
    def script(request: Seen) -> Reply:
        return READ_ONLY if request.authorization == "Bearer as-it-is" else (401, [])

    with serving(script) as server:
        path = auth_file({server.addr: {"registrytoken": "as-it-is"}})
        assert check(config(server.addr), auth=path).allowed
        path = auth_file({server.addr: {"registrytoken": "two\nlines"}})
        assert not check(config(server.addr), auth=path).allowed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", 'no mapping "auths"'),
        (b"{}", 'no mapping "auths"'),
        (b'{"auths": []}', 'no mapping "auths"'),
        (b'{"auths": {}, "credsStore": "pass"}', "holds no password"),
        (b'{"auths": {"a": {}}}', "holds no password"),
        (b'{"auths": {"a": 1}}', "auths.a: is not a mapping"),
        (b'{"auths": {"a": {"auth": 1}}}', "must be strings"),
        (b'{"auths": {"a": {"auth": "s3cret!"}}}', "is not base64"),
        (b'{"auths": {"a": {"auth": "czNjcmV0"}}}', "is not USER:PASSWORD"),
    ],
)
def test_a_bad_file_of_credentials_is_a_usage_error_that_shows_no_secret(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "auth.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        check(config(), auth=path)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_credentials_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check(config(), auth=tmp_path / "missing.json")


def test_checks_from_many_threads_agree(auth_file: WriteAuth) -> None:
    tokens = TokenServer()
    verdicts: list[Verdict] = []
    with serving(tokens.script) as server:
        path = auth_file({server.addr: {"auth": encoded()}})
        guard = Guard(config(server.addr), MemoryStorage(), GuardOptions(auth_file=str(path)))
        threads = [
            threading.Thread(target=lambda: verdicts.append(guard.check())) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [verdict.verdict for verdict in verdicts] == ["allowed"] * 8


# "user" with "s3cret", as bcrypt makes it.
HTPASSWD = "$2a$04$kwoSp0CXwt.f8Q4Ov3o3o.xadZPNvcFDQVVlkSH2Xh6ClCeWt5bs6"


def test_a_real_registry_behind_a_password(tmp_path: Path, auth_file: WriteAuth) -> None:
    users = tmp_path / "htpasswd"
    users.write_text(f"user:{HTPASSWD}\n")
    registry = RealRegistry(
        tmp_path / "r", extra={"auth": {"htpasswd": {"realm": "x", "path": str(users)}}}
    )
    registry.configure(readonly=True)
    with started(registry):
        assert codes(verdict_of(registry)) == ["probe-unauthorized"]
        path = auth_file({registry.address: {"auth": encoded()}})
        assert verdict_of(registry, auth=path).allowed
