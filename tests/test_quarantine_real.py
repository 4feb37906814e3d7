"""A quarantine under a real registry: what comes back can be pulled, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from real import Layout, RealRegistry
from running import Result, collect


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Images that share a layer, and one for two architectures."""
    layout = Layout(tmp_path_factory.mktemp("layout") / "oci")
    layout.name("one", layout.image(["base", "first"]))
    layout.name("two", layout.image(["base", "second"]))
    children = [layout.image(["base", name], name) for name in ("amd64", "arm64")]
    layout.name("multi", layout.index(children))
    return layout


@pytest.fixture
def registry(tmp_path: Path) -> RealRegistry:
    return RealRegistry(tmp_path)


def command(registry: RealRegistry, *arguments: str) -> Result:
    """Run ``registry-gc`` with the registry's own config."""
    from registry_gc.cli.main import registry_gc

    name, *rest = arguments
    full = [name, "--output", "json", str(registry.config), *rest]
    answer = CliRunner().invoke(registry_gc, full, catch_exceptions=False)
    document = json.loads(answer.stdout) if answer.stdout else {}
    return Result(answer.exit_code, document, answer.stdout, answer.stderr)


def set_aside(registry: RealRegistry, layout: Layout) -> dict[str, str]:
    """Push, move a tag on, delete a tag, collect; returns the digests that cannot be pulled."""
    with registry.running():
        registry.push(layout.folder, "one", "app:latest")
        registry.push(layout.folder, "multi", "multi:v1", "--all")
        digests = {"app": registry.digest("app", "latest"), "multi": registry.digest("multi", "v1")}
        registry.push(layout.folder, "two", "app:latest")
        registry.delete_tag("multi", "v1")
    with registry.running(readonly=True):
        done = collect(registry.root, "-m", "--quarantine", "7d", config=registry.config)
        assert done.exit_code == 0, done
        assert done.json["quarantine"]["blobs"] > 5
    with registry.running():
        assert registry.get(f"app/manifests/{digests['app']}").status == 404
        assert registry.get(f"multi/manifests/{digests['multi']}").status == 404
        assert registry.pull("app", "latest") == 3
    return digests


def test_a_tags_former_image_and_a_repository_come_back_while_the_registry_serves(
    registry: RealRegistry, layout: Layout, tmp_path: Path
) -> None:
    digests = set_aside(registry, layout)
    with registry.running():
        # What was asked for before is not remembered as missing.
        assert registry.get(f"app/manifests/{digests['app']}").status == 404
        assert command(registry, "restore", "app:latest").exit_code == 0
        assert registry.pull("app", digests["app"]) == 3
        assert registry.get(f"multi/manifests/{digests['multi']}").status == 404
        assert command(registry, "restore", digests["multi"]).exit_code == 0
        assert registry.pull("multi", digests["multi"]) == 6
        registry.pull_with_skopeo(f"multi@{digests['multi']}", tmp_path / "pulled")
        assert registry.pull("app", "latest") == 3
        assert {"app", "multi"} <= set(registry.catalog())


def test_a_writable_registry_is_collected_into_a_quarantine_while_it_takes_pushes(
    registry: RealRegistry, layout: Layout
) -> None:
    with registry.running():
        registry.push(layout.folder, "one", "app:latest")
        done = collect(
            registry.root,
            "-m",
            "--allow-writable",
            "--quarantine",
            "24h",
            config=registry.config,
        )
        codes = {finding["code"] for finding in done.json["guard"]["findings"]}
        assert done.exit_code == 0, done
        assert {"allow-writable", "registry-writable"} <= codes
        # All of it is young: nothing goes, and pushes go on.
        assert done.json["blobs"]["eligible"] == 0
        registry.push(layout.folder, "two", "app:two")
        assert registry.pull_everything() == {"app": ["latest", "two"]}
