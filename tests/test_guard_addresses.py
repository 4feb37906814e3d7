"""Where the guard asks: the config's own address, and every ``--registry-url``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from guarding import (
    PROBE,
    READ_ONLY,
    WRITABLE,
    Seen,
    certificate,
    check,
    codes,
    config,
    handler,
    serving,
    started,
    verdict_of,
)
from real import RealRegistry
from registry_gc.config import ConfigError, HttpConfig
from registry_gc.guard import probe
from registry_gc.guard.addresses import configured_address, given_address, not_asked
from registry_gc.guard.answer import Answer, AnswerKind
from servers.process import free_port


def test_a_name_that_cannot_be_resolved_is_unknown() -> None:
    verdict = check(config(), urls=("http://registry.invalid:5000",))
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-no-answer"])
    assert codes(check(config("a..b:5000"))) == ["probe-no-answer"]


@pytest.mark.parametrize(
    ("addr", "net"),
    [
        ("5000", ""),
        ("::1:5000", ""),
        (":no-such-service", ""),
        (":0", ""),
        (":70000", ""),
        (":", "tcp"),
        ("127.0.0.1:", ""),
        (":00", ""),
        (":5000", "udp"),
        ("", "unix"),
        ("registry.sock", "unix"),
        ("./registry.sock", "unix"),
        ("unix:///run/registry.sock", "unix"),
        ("\0registry", "unix"),
    ],
)
def test_an_address_that_cannot_be_asked_is_unknown(addr: str, net: str) -> None:
    verdict = check(config(addr, net=net))
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-bad-address"])
    assert not check(config(addr, net=net), stopped=True).allowed


def test_without_an_address_there_is_nothing_to_ask() -> None:
    assert codes(check(config("", net="tcp"))) == ["nothing-to-probe"]


@pytest.mark.parametrize("host", ["", "0.0.0.0", "[::]", "localhost", "127.0.0.1"])
def test_a_wildcard_address_is_asked_on_this_machine(host: str) -> None:
    with serving(READ_ONLY) as server:
        # The server listens on IPv4 only: ::1 refuses, and the answer counts.
        assert check(config(f"{host}:{server.port}")).allowed
    with serving(WRITABLE) as server:
        assert codes(check(config(f"{host}:{server.port}"))) == ["registry-writable"]


def test_a_prefix_is_asked_below() -> None:
    with serving(READ_ONLY) as server:
        assert check(config(server.addr, prefix="/a/b/"), urls=(f"{server.url}/c/v2/",)).allowed
    assert [seen.path for seen in server.seen] == [f"/a/b{PROBE}", f"/c{PROBE}"]


def test_a_url_without_a_port_has_that_of_its_scheme() -> None:
    assert [given_address(f"{scheme}://a.example/v2/").port for scheme in ("http", "https")] == [
        80,
        443,
    ]


class UnixServer(ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def listening(path: Path, seen: list[Seen]) -> Iterator[None]:
    """A writable registry on the socket *path*."""
    server = UnixServer(str(path), handler(lambda _: WRITABLE, seen))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_unix_socket_is_asked_and_a_missing_one_refuses(tmp_path: Path) -> None:
    path = tmp_path / "s"
    seen: list[Seen] = []
    with listening(path, seen):
        assert codes(check(config(str(path), net="unix"))) == ["registry-writable"]
    assert seen[0].path == PROBE
    # Nobody listens there any more, then the file is gone too.
    assert check(config(str(path), net="unix", readonly=False), stopped=True).allowed
    path.unlink()
    assert check(config(str(path), net="unix"), stopped=True).allowed


def test_a_unix_sockets_name_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    # One that is not found would be that of a registry that is stopped.
    code = (
        "import sys\n"
        "from registry_gc.config import HttpConfig\n"
        "from registry_gc.guard.addresses import configured_address\n"
        "from registry_gc.guard.probe import Probe\n"
        "name = sys.stdin.buffer.read().decode()\n"
        "address = configured_address(HttpConfig(addr=name, net='unix'))\n"
        "print(Probe(None, 10.0).ask(address).kind.name)\n"
    )
    path = tmp_path / "s\u00e4"
    locale = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    places = os.pathsep.join(place for place in sys.path if place)
    with listening(path, []):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=str(path).encode(),
            env={**os.environ, **locale, "PYTHONPATH": places},
            capture_output=True,
            check=False,
        )
    assert (done.stdout, done.stderr) == (b"WRITABLE\n", b"")


@pytest.mark.parametrize(
    "url",
    [
        "registry.example.com:5000",
        "ftp://registry.example.com",
        "https://",
        "http://registry.example.com:port",
        "http://registry.example.com/?x=1",
        "http://registry.example.com/ x",
        "http://[::1",
        "http://registry.example.com:",
        "http://registry.example.com:/v2",
        "https://registry.example.com:0",
        "https://[::1]:/",
        "",
    ],
)
def test_a_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(ConfigError, match="--registry-url"):
        check(config(), urls=(url,))


@pytest.mark.parametrize(
    "url", ["http://user:s3cret@registry.example.com", "user:s3cret@host", "http://u:s3cret@[x"]
)
def test_a_password_in_a_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config(), urls=(url,))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("more", [False, True])
def test_a_name_with_more_addresses_than_are_asked_is_not_known(
    monkeypatch: pytest.MonkeyPatch, more: bool
) -> None:
    with serving(READ_ONLY) as server:
        port = server.addr.rpartition(":")[2]
        count = probe._MOST_ADDRESSES + more
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", int(port)))
            for n in range(1, count + 1)
        ]
        resolve = socket.getaddrinfo

        def many(name: Any, *rest: Any, **more: Any) -> Any:
            return (
                found if name in ("many.example", b"many.example") else resolve(name, *rest, **more)
            )

        monkeypatch.setattr(socket, "getaddrinfo", many)
        answered: list[Any] = []

        def ask(self: probe.Probe, address: Any, target: Any) -> Answer:
            answered.append(target)
            return Answer(AnswerKind.READ_ONLY)

        monkeypatch.setattr(probe.Probe, "_ask", ask)
        verdict = check(config(f"many.example:{port}"))
    assert len(answered) == probe._MOST_ADDRESSES
    assert verdict.allowed is not more
    assert more is any("16 were asked" in finding.message for finding in verdict.findings)


def test_a_real_registry_on_a_unix_socket_with_tls_and_a_prefix(tmp_path: Path) -> None:
    made = certificate(tmp_path, loopback=False)
    port = free_port()
    http = {
        "addr": f"0.0.0.0:{port}",
        "prefix": "/images/",
        "secret": "x",
        "tls": {"certificate": str(made.file), "key": str(made.file)},
    }
    with ExitStack() as stack:
        stack.enter_context(started(RealRegistry(tmp_path / "tcp", extra={"http": http})))
        verdict = verdict_of(RealRegistry(tmp_path / "tcp", extra={"http": http}), stopped=True)
        assert codes(verdict) == ["registry-writable"]
        path = tmp_path / "socket"
        unix = RealRegistry(
            tmp_path / "unix", extra={"http": {"addr": str(path), "net": "unix", "secret": "x"}}
        )
        stack.enter_context(started(unix))
        assert codes(verdict_of(unix, stopped=True)) == ["registry-writable"]
    assert verdict_of(unix, stopped=True).allowed


@pytest.mark.parametrize(
    "prefix", ["/a b/", "/\u00e4\u20ac/b/", "/a%20b/", "/a?b#c/", "/+&=@:,;!/"]
)
def test_a_real_registry_is_asked_below_any_prefix(tmp_path: Path, prefix: str) -> None:
    http = {"addr": f"127.0.0.1:{free_port()}", "prefix": prefix, "secret": "x"}
    registry = RealRegistry(tmp_path / "registry", extra={"http": http})
    with started(registry):
        assert codes(verdict_of(registry, stopped=True)) == ["registry-writable"]


@pytest.mark.parametrize("name", ["@{}", "@/tmp/{}"])
def test_a_real_registry_on_an_abstract_socket(tmp_path: Path, name: str) -> None:
    addr = name.format(f"registry-{os.getpid()}")
    http = {"addr": addr, "net": "unix", "secret": "x"}
    registry = RealRegistry(tmp_path, extra={"http": http})
    with started(registry):
        assert codes(verdict_of(registry, stopped=True)) == ["registry-writable"]
    assert verdict_of(registry, stopped=True).allowed


def test_an_abstract_socket_that_is_there_and_silent_is_unknown() -> None:
    addr = f"@registry-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + addr[1:])
        listener.listen()
        verdict = check(config(addr, net="unix", readonly=False), stopped=True, timeout=0.1)
    assert (verdict.verdict, codes(verdict)) == ("unknown", ["probe-no-answer"])


# --- names


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("\u4f8b\u3048.example", "xn--r8jz45g.example"),
        ("a_b.example", "a_b.example"),
        ("::1", "[::1]"),
        (f"{'a' * 64}.example", "127.0.0.1"),
        ("\u00fc" * 64, "127.0.0.1"),
        (".example", "127.0.0.1"),
        ("${NAME}", "127.0.0.1"),
        ("a b", "127.0.0.1"),
        ("a\r\nb: c", "127.0.0.1"),
        (".".join(["a" * 60] * 5), "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_the_configs_name_is_asked_for_as_it_can_be_sent_or_not_at_all(
    tmp_path: Path, name: str, sent: str, tls: bool
) -> None:
    context = certificate(tmp_path, loopback=False).context if tls else None
    with serving(READ_ONLY, context) as server:
        assert check(config(server.addr, tls=tls, server_name=name)).allowed
    assert [seen.host for seen in server.seen] == [f"{sent}:{server.port}"]


def test_a_real_registry_with_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    made = certificate(tmp_path, loopback=False)
    for number, host in enumerate(("https://b\u00fccher.example/", "https://.example/")):
        http = {
            "addr": f"127.0.0.1:{free_port()}",
            "host": host,
            "secret": "x",
            "tls": {"certificate": str(made.file), "key": str(made.file)},
        }
        registry = RealRegistry(tmp_path / str(number), extra={"http": http})
        registry.configure(readonly=True)
        with started(registry):
            assert verdict_of(registry).allowed


@pytest.mark.parametrize("addr", ["[::1%lo]", "[::1%1]", "[::%lo]"])
def test_a_real_registry_on_an_address_with_a_zone(tmp_path: Path, addr: str) -> None:
    http = {"addr": f"{addr}:{free_port()}", "secret": "x"}
    registry = RealRegistry(tmp_path, extra={"http": http})
    with started(registry):
        assert codes(verdict_of(registry, stopped=True)) == ["registry-writable"]
    assert verdict_of(registry, stopped=True).allowed


def test_the_zone_of_a_link_local_address_is_used_and_not_sent() -> None:
    address = configured_address(HttpConfig(addr="[fe80::1%lo]:5000"))
    assert address is not None
    assert address.hosts == ("fe80::1%lo",)
    assert address.host_header == "[fe80::1]:5000"
    assert not address.local


@pytest.mark.parametrize(
    ("before", "now", "left"),
    [
        (HttpConfig(addr=":5000"), HttpConfig(addr=":5000", prefix="/x", tls=True), None),
        (HttpConfig(addr="127.0.0.1:5000"), HttpConfig(addr=":5000"), None),
        (HttpConfig(addr=":5000"), HttpConfig(addr="127.0.0.1:5000"), ("::1",)),
        (HttpConfig(addr=":5000"), HttpConfig(addr=":5001"), ("127.0.0.1", "::1")),
        (HttpConfig(addr="/r", net="unix"), HttpConfig(addr="/r", net="unix", prefix="/x"), None),
        (HttpConfig(addr="/r", net="unix"), HttpConfig(addr="/s", net="unix"), ()),
        (HttpConfig(addr="/r", net="unix"), HttpConfig(addr=":5000"), ()),
        (HttpConfig(addr=":5000"), HttpConfig(addr="/r", net="unix"), ("127.0.0.1", "::1")),
    ],
)
def test_of_an_earlier_address_is_asked_what_the_new_one_is_not(
    before: HttpConfig, now: HttpConfig, left: tuple[str, ...] | None
) -> None:
    was, new = configured_address(before), configured_address(now)
    assert was is not None
    assert new is not None
    asked = not_asked(was, [new])
    assert (asked and asked.hosts) == left
    assert asked is None or (asked.port, asked.unix_socket) == (was.port, was.unix_socket)
