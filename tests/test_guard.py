"""The guard: against servers that answer all that servers answer, and against real registries."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guarding import (
    PROBE,
    READ_ONLY,
    WRITABLE,
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
from registry_drivers.errors import Unavailable
from registry_drivers.memory import MemoryStorage
from registry_gc.config import ConfigError, HttpConfig, load_config
from registry_gc.guard import Guard, GuardOptions, Verdict
from registry_gc.guard.credentials import challenges

LOCKFILES = "docker/registry/lockfiles"


# --- the two ways to be allowed


def test_a_readonly_config_and_a_readonly_answer_allow() -> None:
    with serving(READ_ONLY) as server:
        verdict = check(config(server.addr))
    assert verdict.allowed
    assert codes(verdict) == ["readonly-confirmed"]
    assert [(seen.method, seen.path) for seen in server.seen] == [("OPTIONS", PROBE)]


def test_a_readonly_config_and_a_refused_connection_allow() -> None:
    verdict = check(config(closed()))
    assert verdict.allowed
    assert codes(verdict) == ["readonly-confirmed"]


def test_a_stopped_registry_that_refuses_the_connection_allows() -> None:
    verdict = check(config(closed(), readonly=False), stopped=True)
    assert verdict.allowed
    assert codes(verdict) == ["stopped-confirmed"]


@pytest.mark.parametrize(("readonly", "stopped"), [(True, False), (False, True)])
def test_without_any_address_the_word_is_enough(readonly: bool, stopped: bool) -> None:
    verdict = check(config(readonly=readonly), stopped=stopped)
    assert verdict.allowed
    assert codes(verdict) == ["nothing-to-probe"]


def test_a_stopped_registry_that_answers_read_only_by_config_too_is_allowed() -> None:
    with serving(READ_ONLY) as server:
        assert check(config(server.addr), stopped=True).allowed


@pytest.mark.parametrize(
    ("timeout", "drains"),
    [
        ("60s", True),
        ("1", True),
        ("0.5s", True),
        ("0", False),
        ("0s", False),
        ("-3s", False),
        ("", False),
        ("later", False),
    ],
)
def test_a_stopped_registry_that_may_drain_is_allowed_and_told_of(
    tmp_path: Path, timeout: str, drains: bool
) -> None:
    file = tmp_path / "config.yml"
    file.write_text(
        "version: 0.1\nstorage: {inmemory: {}}\n"
        f"http: {{addr: '{closed()}', draintimeout: {timeout}}}\n"
    )
    for made in (load_config(str(file), {}), replace(config(), http=HttpConfig(drains=drains))):
        verdict = check(made, stopped=True)
        assert verdict.allowed
        assert ("http.draintimeout" in verdict.findings[0].message) is drains
        assert "http.draintimeout" not in str(check(replace(made, readonly=True)))


# --- what refuses


def test_a_writable_config_refuses_whatever_answers() -> None:
    verdict = check(config(readonly=False))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["writable-config"])
    with serving(READ_ONLY) as server:
        verdict = check(config(server.addr, readonly=False))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["writable-config"])


def test_a_registry_that_takes_writes_refuses() -> None:
    with serving(WRITABLE) as server:
        verdict = check(config(server.addr))
    assert (verdict.verdict, codes(verdict)) == ("refused", ["registry-writable"])


@pytest.mark.parametrize("method", ["POST", "put", "PATCH", "DELETE"])
def test_one_writing_method_is_enough_in_any_of_several_headers(method: str) -> None:
    with serving((204, [("Allow", "GET, HEAD"), ("allow", f"OPTIONS,{method}")])) as server:
        assert codes(check(config(server.addr))) == ["registry-writable"]


def test_every_address_counts() -> None:
    with serving(READ_ONLY) as one, serving(WRITABLE) as two:
        verdict = check(config(one.addr), urls=(one.url, two.url))
        assert codes(verdict) == ["registry-writable"]
        assert two.addr in verdict.findings[0].message
        assert check(config(one.addr), urls=(one.url, f"http://{closed()}")).allowed


@pytest.mark.parametrize("reply", [READ_ONLY, (401, []), (502, []), (404, [])])
def test_a_registry_that_is_said_to_be_stopped_and_answers_refuses(reply: Reply) -> None:
    with serving(reply) as server:
        verdict = check(config(server.addr, readonly=False), stopped=True)
    assert (verdict.verdict, codes(verdict)) == ("refused", ["registry-answers"])


def test_a_stopped_registry_must_refuse_at_every_address() -> None:
    with serving(READ_ONLY) as server:
        verdict = check(config(closed(), readonly=False), urls=(server.url,), stopped=True)
    assert codes(verdict) == ["registry-answers"]


# --- what stays unknown


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ((401, []), "probe-unauthorized"),
        ((403, [("Allow", "GET, HEAD")]), "probe-unauthorized"),
        ((405, [("Allow", "GET, HEAD")]), "probe-odd-answer"),
        ((405, [("Allow", "GET, HEAD, POST")]), "probe-odd-answer"),
        ((404, []), "probe-odd-answer"),
        ((502, []), "probe-odd-answer"),
        ((200, []), "probe-odd-answer"),
        ((200, [("Allow", "")]), "probe-odd-answer"),
        ((200, [("Allow", "OPTIONS, HEAD")]), "probe-odd-answer"),
        ((301, [("Location", "https://elsewhere.example.com/")]), "probe-odd-answer"),
        ((307, [("Location", "/"), ("Allow", "GET, HEAD")]), "probe-odd-answer"),
    ],
)
def test_an_answer_that_says_nothing_is_unknown(reply: Reply, code: str) -> None:
    with serving(reply) as server:
        verdict = check(config(server.addr))
    assert (verdict.verdict, codes(verdict)) == ("unknown", [code])
    assert len(server.seen) == 1


def raw(answer: bytes | None, ended: threading.Event) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                if answer is None:
                    ended.wait()
                else:
                    connection.recv(4096)
                    connection.sendall(answer)

    return serve


@contextmanager
def speaking(answer: bytes | None) -> Iterator[str]:
    """Answer with raw bytes; None never answers."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=raw(answer, ended), args=(listener,))
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, "probe-no-answer"),
        (b"", "probe-no-answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "probe-odd-answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "probe-odd-answer"),
        (
            b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD\r\nbroken\r\nAllow: POST\r\n\r\n",
            "probe-odd-answer",
        ),
        # Cut: who knows what else is allowed?
        (b"HTTP/1.1 200", "probe-no-answer"),
        (b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD", "probe-no-answer"),
        (b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD\r\n", "probe-no-answer"),
        (b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD\r", "probe-no-answer"),
    ],
)
def test_what_is_silent_or_no_http_is_unknown(answer: bytes | None, code: str) -> None:
    with speaking(answer) as addr:
        verdict = check(config(addr), timeout=0.3)
    assert (verdict.verdict, codes(verdict)) == ("unknown", [code])


class Dripping:
    """Answers its first client *head*, and then a bit at a time until nobody listens."""

    pieces = 3000

    def __init__(self, head: bytes) -> None:
        self.sent = 0
        self._head = head

    def _drip(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(self._head)
            while self.sent < self.pieces:
                connection.sendall(b" ")
                self.sent += 1
                time.sleep(0.01)
            connection.sendall(b"\r\n\r\n")

    @contextmanager
    def running(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._drip, args=(listener,))
            thread.start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            thread.join()


def test_who_answers_a_bit_at_a_time_is_heard_no_longer_than_others() -> None:
    dripping = Dripping(b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD\r\nX: ")
    with dripping.running() as addr:
        verdict = check(config(addr), timeout=0.3)
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-no-answer"])
    assert "takes too long" in verdict.findings[0].message
    assert dripping.sent < dripping.pieces


# --- TLS


def test_the_configs_own_address_is_asked_over_tls_whatever_its_certificate_says(
    tmp_path: Path,
) -> None:
    tls = certificate(tmp_path, loopback=False).context
    with serving(READ_ONLY, tls) as server:
        assert check(config(f":{server.port}", tls=True, server_name="registry.test")).allowed
        assert check(config(f":{server.port}", tls=True)).allowed
        assert codes(check(config(f":{server.port}"), timeout=1)) == ["probe-no-answer"]


def test_a_url_wants_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path, loopback=True)
    with serving(READ_ONLY, made.context) as server:
        url = f"https://{server.addr}"
        verdict = check(config(), urls=(url,))
        assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-no-answer"])
        assert "certificate is not trusted" in verdict.findings[0].message
        monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
        assert check(config(), urls=(url,)).allowed
        assert "SSL_CERT_FILE" in verdict.findings[0].message
        verdict = check(config(), urls=(f"https://localhost:{server.port}",))
        assert not verdict.allowed
        assert "give the name in the certificate" in verdict.findings[0].message


def test_a_certificate_that_has_expired_is_not_taken_for_one_of_an_unknown_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path, loopback=True, days=-1)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    with serving(READ_ONLY, made.context) as server:
        verdict = check(config(), urls=(f"https://{server.addr}",))
    assert codes(verdict) == ["probe-no-answer"]
    assert "out of date" in verdict.findings[0].message
    assert "SSL_CERT_FILE" not in verdict.findings[0].message


def test_tls_to_a_server_without_it_is_unknown() -> None:
    with speaking(b"HTTP/1.0 400 no TLS here\r\n\r\n") as addr:
        assert codes(check(config(addr, tls=True), timeout=1)) == ["probe-no-answer"]


# --- credentials


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
    assert "token server" in verdict.findings[0].message
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


# --- what the storage says


def storage(*paths: str) -> MemoryStorage:
    made = MemoryStorage()
    for path in paths:
        made.put(path, b"")
    return made


def test_a_pull_through_cache_refuses_and_nothing_lifts_it() -> None:
    proxy = replace(config(), proxy_remote_url="https://mirror.example.com")
    verdict = check(proxy, stopped=True, assume=True)
    assert verdict.verdict == "refused"
    assert codes(verdict)[0] == "pull-through-cache"
    verdict = check(config(), storage=storage("scheduler-state.json"), stopped=True, assume=True)
    assert verdict.verdict == "refused"
    assert codes(verdict)[0] == "scheduler-state"


@pytest.mark.parametrize(
    ("database", "locks", "code"),
    [
        ("off", (), None),
        ("off", ("filesystem-in-use",), None),
        ("off", ("database-in-use",), "database-in-use"),
        ("on", (), "database-in-use"),
        ("on", ("filesystem-in-use",), "database-in-use"),
        ("prefer", ("filesystem-in-use",), None),
        ("prefer", (), "filesystem-not-in-use"),
        ("prefer", ("database-in-use",), "database-in-use"),
        ("prefer", ("database-in-use", "filesystem-in-use"), "database-in-use"),
    ],
)
def test_gitlabs_metadata_database_refuses_where_it_is_in_use(
    database: Any, locks: tuple[str, ...], code: str | None
) -> None:
    verdict = check(
        replace(config(), database=database),
        storage=storage(*(f"{LOCKFILES}/{lock}" for lock in locks)),
        assume=True,
    )
    assert verdict.verdict == ("refused" if code else "allowed")
    if code:
        assert codes(verdict)[0] == code


def test_a_storage_that_cannot_be_asked_fails() -> None:
    class Broken(MemoryStorage):
        def stat(self, path: str) -> Any:
            raise Unavailable("down", path=path)

    with pytest.raises(Unavailable):
        check(config(), storage=Broken())


def test_a_check_costs_the_storage_two_requests() -> None:
    made = MemoryStorage()
    check(config(), storage=made)
    assert sum(made.requests.totals().values()) == 2


# --- --assume-readonly


def test_assume_readonly_lifts_what_is_unknown_and_is_recorded() -> None:
    with serving((401, [])) as server:
        verdict = check(config(server.addr, readonly=False), assume=True)
    assert verdict.allowed
    assert codes(verdict) == ["assume-readonly", "writable-config", "probe-unauthorized"]
    assert "in spite of writable-config, probe-unauthorized" in verdict.findings[0].message


def test_assume_readonly_does_not_lift_what_is_known_to_take_writes() -> None:
    with serving(WRITABLE) as server:
        verdict = check(config(server.addr), assume=True)
    assert (verdict.verdict, codes(verdict)) == (
        "refused",
        ["registry-writable", "assume-readonly"],
    )


def test_assume_readonly_is_recorded_where_it_was_not_needed() -> None:
    verdict = check(config(), assume=True)
    assert verdict.allowed
    assert codes(verdict) == ["assume-readonly", "nothing-to-probe"]


# --- again and again


def test_a_later_check_sees_what_has_changed() -> None:
    replies: list[Reply] = [READ_ONLY, WRITABLE, READ_ONLY]
    with serving(lambda _: replies.pop(0)) as server:
        guard = Guard(config(server.addr), MemoryStorage(), GuardOptions())
        assert [guard.check().verdict for _ in range(3)] == ["allowed", "refused", "allowed"]
    assert guard.check().allowed  # stopped since


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


def test_importing_the_guard_reads_nothing_of_a_proxy_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{closed()}")
    with serving(READ_ONLY) as server:
        assert check(config(server.addr)).allowed


# --- real registries


@pytest.fixture
def registry(tmp_path: Path) -> RealRegistry:
    """A docker-registry that does not run yet."""
    return RealRegistry(tmp_path)


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_real_writable_registry_is_refused_and_finds_no_trace(registry: RealRegistry) -> None:
    with registry.running():
        verdict = verdict_of(registry)
        assert verdict.verdict == "refused"
        assert codes(verdict) == ["registry-writable", "writable-config"]
        assert codes(verdict_of(registry, stopped=True)) == ["registry-writable"]
        # The file was changed, and the registry was not started again.
        registry.configure(readonly=True)
        assert codes(verdict_of(registry)) == ["registry-writable"]
    assert files_below(registry.root) == []


def test_a_real_readonly_registry_is_allowed(registry: RealRegistry) -> None:
    with registry.running(readonly=True):
        verdict = verdict_of(registry, urls=(f"http://{registry.address}",))
    assert verdict.allowed
    assert codes(verdict) == ["readonly-confirmed"]
    assert files_below(registry.root) == []


def test_a_real_registry_that_is_stopped_is_allowed(registry: RealRegistry) -> None:
    with registry.running():
        assert not verdict_of(registry, stopped=True).allowed
    assert verdict_of(registry, stopped=True).allowed
    assert codes(verdict_of(registry)) == ["writable-config"]


def test_a_real_pull_through_cache_is_refused_though_it_takes_no_push(tmp_path: Path) -> None:
    upstream = RealRegistry(tmp_path / "upstream")
    with upstream.running():
        cache = RealRegistry(
            tmp_path / "cache", extra={"proxy": {"remoteurl": f"http://{upstream.address}"}}
        )
        with cache.running(readonly=True):
            verdict = verdict_of(cache)
    assert verdict.verdict == "refused"
    assert codes(verdict)[0] == "pull-through-cache"


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


@pytest.mark.parametrize("allow", ["GET, HEAD, OPTIONS", "GET", "HEAD", "OPTIONS"])
def test_a_front_that_answers_by_itself_says_nothing_of_the_registry(allow: str) -> None:
    with serving((200, [("Allow", allow)])) as server:
        verdict = check(config(server.addr))
    assert not verdict.allowed
    assert verdict.verdict == "unknown"
