"""A registry that remembers blobs in Redis, and one that remembers them itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.client import IncompleteRead
from pathlib import Path
from typing import Any

import pytest
import yaml

from real import Layout, RealRegistry
from running import collect
from servers.redis import RedisServer, entries
from servers.service import Service


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis").running() as server:
        yield server


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return layout_in(tmp_path)


def layout_in(tmp_path: Path) -> Layout:
    """An image that stays, and one that goes."""
    layout = Layout(tmp_path / "oci")
    layout.name("stays", layout.image(["base", "stays"]))
    layout.name("goes", layout.image(["base", "goes"]))
    return layout


@pytest.fixture
def registry(tmp_path: Path, redis: RedisServer) -> RealRegistry:
    return remembering(tmp_path, "redis", {"redis": {"addr": redis.address}})


def remembering(folder: Path, cache: str, extra: Mapping[str, Any]) -> RealRegistry:
    """A registry with a cache."""
    storage = {
        "filesystem": {"rootdirectory": str(folder / "registry")},
        "cache": {"blobdescriptor": cache},
    }
    return RealRegistry(folder, storage=storage, extra=extra)


def fill(registry: RealRegistry, layout: Layout) -> list[str]:
    """Push both images, pull them, delete one; returns the digests of which nothing stays."""
    registry.push(layout.folder, "stays", "a:stays")
    registry.push(layout.folder, "goes", "a:goes")
    registry.push(layout.folder, "goes", "b:goes")
    manifest = registry.get("a/manifests/goes")
    registry.pull_everything()
    registry.delete_manifest("a", "goes")
    registry.delete_manifest("b", "goes")
    document = json.loads(manifest.body)
    parts = [document["config"]["digest"], document["layers"][1]["digest"]]
    return [manifest.headers["Docker-Content-Digest"], *parts]


def forgetful(config: Path) -> Path:
    """The same config for a collector that knows of no cache."""
    document = yaml.safe_load(config.read_text())
    del document["storage"]["cache"]
    other = config.with_name("forgetful.yml")
    other.write_text(yaml.safe_dump(document))
    return other


def test_what_was_collected_can_be_pushed_and_pulled_again(
    registry: RealRegistry, layout: Layout, redis: RedisServer
) -> None:
    with registry.running():
        gone = fill(registry, layout)
    before = redis.names()
    assert entries(redis, gone)
    result = collect(registry.root, "--registry-stopped", config=registry.config)
    assert result.exit_code == 0, result.errors
    assert entries(redis, gone) == set()
    assert result.json["blob_cache"]["left"] == 0
    assert result.json["blob_cache"]["removed"] > 0
    # What lives is still remembered, but for the links that b has lost.
    lost = {key for key in before - redis.names() if not any(digest in key for digest in gone)}
    assert {key for key in lost if not key.startswith("repository::b::")} == set()
    with registry.running():
        registry.push(layout.folder, "goes", "a:goes")
        registry.push(layout.folder, "goes", "b:goes")
        assert registry.pull_everything() == {"a": ["goes", "stays"], "b": ["goes"]}


def test_without_that_step_a_pushed_image_is_lost(
    registry: RealRegistry, layout: Layout, redis: RedisServer
) -> None:
    with registry.running():
        gone = fill(registry, layout)
    result = collect(registry.root, "--registry-stopped", config=forgetful(registry.config))
    assert result.exit_code == 0, result.errors
    assert entries(redis, gone)
    with registry.running():
        registry.push(layout.folder, "goes", "a:goes")
        for digest in gone[1:]:
            # It says 200, and how long the blob is, and then has no byte of it.
            with pytest.raises(IncompleteRead):
                registry.get(f"a/blobs/{digest}")


def test_a_registry_that_goes_on_serving_remembers_nothing_that_is_gone(
    registry: RealRegistry, layout: Layout, redis: RedisServer
) -> None:
    with registry.running():
        gone = fill(registry, layout)
    with registry.running(readonly=True):
        registry.pull_everything()
        result = collect(registry.root, config=registry.config)
        assert result.exit_code == 0, result.errors
        assert entries(redis, gone) == set()
        assert [registry.get(f"a/blobs/{digest}").status for digest in gone[1:]] == [404, 404]
        assert registry.pull_everything() == {"a": ["stays"]}


@pytest.mark.parametrize("deleted", [True, False])
def test_with_a_cache_in_memory_the_report_says_that_a_restart_is_needed(
    tmp_path: Path, layout: Layout, deleted: bool
) -> None:
    registry = remembering(tmp_path, "inmemory", {})
    with registry.running():
        if deleted:
            fill(registry, layout)
        else:
            registry.push(layout.folder, "stays", "a:stays")
    result = collect(registry.root, "--registry-stopped", config=registry.config)
    assert result.exit_code == 0, result.errors
    assert result.json["blob_cache"] == {
        "kind": "inmemory",
        "removed": 0,
        "left": 0,
        "restart_needed": deleted,
    }
    assert ("restart the registry" in result.errors) is deleted


def test_after_kill_9_entries_are_removed_before_the_registry_is_started(
    tmp_path: Path, redis: RedisServer
) -> None:
    extra = {"redis": {"addr": redis.address}}
    folder = tmp_path / "service"
    with Service(folder, remembering(folder, "redis", extra)).over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        gone = fill(service.registry, layout_in(tmp_path))
        # What Redis holds at the moment of the start is in a file.
        ask = f"redis-cli -p {redis.port} --raw KEYS '*' >{folder}/at-start; start"
        service.script("ask", ask)
        program = (
            "import os, signal\n"
            "from registry_gc.blob_cache import forgetting\n"
            "from registry_gc.cli.main import registry_garbage_collect\n"
            "def die(*ignored): os.kill(os.getpid(), signal.SIGKILL)\n"
            "forgetting.RedisCache.settled = die\n"
            "registry_garbage_collect()\n"
        )
        words = ["--stop-command", service.path("stop"), "--start-command", service.path("ask")]
        words += ["--state-dir", f"{folder}/state"]
        places = os.pathsep.join(place for place in sys.path if place)
        done = subprocess.run(
            [sys.executable, "-c", program, *words, str(service.registry.config)],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "the collection was killed by SIGKILL" in done.stderr
        at_start = (folder / "at-start").read_text()
        assert not [digest for digest in gone if digest in at_start]
        assert service.registry.pull_everything() == {"a": ["stays"], "b": []}


@pytest.mark.parametrize("other", ["", "localhost:1"])
def test_a_redis_that_a_read_only_config_does_without_forgets_and_another_one_refuses(
    tmp_path: Path, redis: RedisServer, other: str
) -> None:
    extra = {"redis": {"addr": redis.address}}
    folder = tmp_path / "service"
    with Service(folder, remembering(folder, "redis", extra)).over() as service:
        subprocess.run([service.path("start")], check=True, stdout=subprocess.DEVNULL)
        gone = fill(service.registry, layout_in(tmp_path))
        config = service.registry.config
        edit = f"s/{redis.address}/{other}/" if other else "/blobdescriptor/s/redis/none/"
        first = f"cp {config} {folder}/was; sed -i '{edit}' {config}; {service.path('stop')}"
        back = f"cp {folder}/was {config}; {service.path('start')}"
        program = "from registry_gc.cli.main import registry_garbage_collect as main; main()"
        words = ["--stop-command", first, "--start-command", back, "--output", "json"]
        words += ["--state-dir", f"{folder}/state", str(config)]
        places = os.pathsep.join(place for place in sys.path if place)
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (4 if other else 0), done.stderr
        assert ("config-changed" in done.stdout) is bool(other)
        assert bool(entries(redis, gone)) is bool(other)
