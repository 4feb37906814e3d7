"""The guard against real registries."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import yaml

from guarding import certificate, codes, started, verdict_of
from real import RealRegistry
from servers.process import free_port


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


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_registry_that_wants_a_client_certificate_says_what_helps(
    tmp_path: Path, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path, loopback=True)
    registry = RealRegistry(tmp_path, port=free_port())
    tls = {"certificate": str(made.file), "key": str(made.file), "clientcas": [str(made.file)]}
    document = yaml.safe_load(registry.config.read_text())
    document["http"]["tls"] = tls
    registry.config.write_text(yaml.safe_dump(document))
    plain = ssl.create_default_context

    def speaking() -> ssl.SSLContext:
        context = plain()
        context.maximum_version = version
        return context

    monkeypatch.setattr(ssl, "create_default_context", speaking)
    with started(registry):
        verdict = verdict_of(registry)
    (message,) = [one.message for one in verdict.findings if one.code == "probe-no-answer"]
    assert "it wants a client certificate (http.tls.clientcas), and is given none" in message
    assert "--registry-stopped" in message
