"""The guard against real registries."""

from __future__ import annotations

from pathlib import Path

import pytest

from guarding import codes, verdict_of
from real import RealRegistry


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
