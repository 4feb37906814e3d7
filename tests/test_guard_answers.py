"""Answers that say nothing to the guard: odd, cut short, slow, or over TLS that nobody trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from guarding import (
    READ_ONLY,
    Dripping,
    Reply,
    certificate,
    check,
    codes,
    config,
    serving,
    speaking,
)

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
        ((503, []), "probe-odd-answer"),
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
    unhealthy = "one of its health checks fails" in verdict.findings[0].message
    assert unhealthy is (reply[0] == 503)


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


def test_who_answers_a_bit_at_a_time_is_heard_no_longer_than_others() -> None:
    dripping = Dripping(b"HTTP/1.1 200 OK\r\nAllow: GET, HEAD\r\nX: ")
    with dripping.running() as addr:
        verdict = check(config(addr), timeout=0.3)
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-no-answer"])
    assert "takes too long" in verdict.findings[0].message
    assert dripping.sent < dripping.pieces


@pytest.mark.parametrize("allow", ["GET, HEAD, OPTIONS", "GET", "HEAD", "OPTIONS"])
def test_a_front_that_answers_by_itself_says_nothing_of_the_registry(allow: str) -> None:
    with serving((200, [("Allow", allow)])) as server:
        verdict = check(config(server.addr))
    assert not verdict.allowed
    assert verdict.verdict == "unknown"


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
