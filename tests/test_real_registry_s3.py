"""A real registry that stores in S3, from push to collection to pull; a listing proves the rest."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from real import Layout, RealRegistry
from registry_tree import blob_path, layer_link_path, revision_path
from running import OWN_FOLDER
from servers.moto import S3Server, moto
from stores import Place, collect_later, keys_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Images to push: some share a layer, one is for two architectures."""
    layout = Layout(tmp_path_factory.mktemp("layout") / "oci")
    layout.name("one", layout.image(["base", "first"]))
    layout.name("two", layout.image(["base", "second"]))
    layout.name("gone", layout.image(["base", "soon gone"]))
    children = [layout.image(["base", name], name) for name in ("amd64", "arm64")]
    layout.name("multi", layout.index(children))
    layout.name("multi-new", layout.index([children[0], layout.image(["base", "new"], "arm64")]))
    return layout


@pytest.fixture
def place(server: S3Server) -> Place:
    return Place("s3", server.parameters(server.bucket(), secure=False, v4auth=True))


@pytest.fixture
def registry(place: Place, tmp_path: Path) -> RealRegistry:
    return RealRegistry(tmp_path, storage={place.driver: dict(place.parameters)})


def fill(registry: RealRegistry, layout: Layout) -> dict[str, list[str]]:
    """Push, move and delete tags; returns the tags that are left."""
    for name, tag in (("one", "v1"), ("gone", "gone"), ("two", "latest"), ("one", "latest")):
        registry.push(layout.folder, name, f"app:{tag}")
    registry.push(layout.folder, "multi", "app/multi:v1", "--all")
    registry.push(layout.folder, "multi-new", "app/multi:v1", "--all")
    registry.delete_manifest("app", "gone")
    return registry.pull_everything()


def reached(registry: RealRegistry, repository: str, reference: str) -> set[str]:
    """The keys that an image of *repository* needs: its manifest's, config's and layers'."""
    digest = registry.digest(repository, reference)
    keys = {blob_path(digest), revision_path(repository, digest)}
    document = json.loads(registry.get(f"{repository}/manifests/{reference}").body)
    for child in document.get("manifests", ()):
        keys |= reached(registry, repository, child["digest"])
    for part in [
        *document.get("layers", ()),
        *([document["config"]] if "config" in document else ()),
    ]:
        keys |= {blob_path(part["digest"]), layer_link_path(repository, part["digest"])}
    return keys


@pytest.mark.parametrize(
    ("mode", "readonly"), [((), True), (("-m",), False)], ids=["read-only", "-m, stopped"]
)
def test_what_tags_lead_to_can_be_pulled_and_the_bucket_holds_nothing_else(
    registry: RealRegistry,
    place: Place,
    layout: Layout,
    tmp_path: Path,
    mode: tuple[str, ...],
    readonly: bool,
) -> None:
    with registry.running():
        tags = fill(registry, layout)
    before = keys_of(place)
    if readonly:
        with registry.running(readonly=True):
            result = collect_later(registry.config, tmp_path, *mode)
            assert registry.pull_everything() == tags
    else:
        result = collect_later(registry.config, tmp_path, "--registry-stopped", *mode)
    assert result.exit_code == 0, result.errors
    assert result.json["guard"]["verdict"] == "allowed"
    after = keys_of(place)

    # What the run file says that went, and nothing else.
    with closing(sqlite3.connect(result.json["run_file"])) as file:
        rows = file.execute("SELECT path FROM deletions WHERE state = 'deleted'").fetchall()
    assert before - after == {path for (path,) in rows}
    assert after < before
    assert not any(key.startswith(OWN_FOLDER) for key in after)
    with registry.running():
        assert registry.pull_everything() == tags
        registry.pull_with_skopeo("app/multi:v1", tmp_path / "pulled")
        needed: set[str] = set()
        for repository, names in tags.items():
            needed.update(*(reached(registry, repository, tag) for tag in names))
        assert needed <= after
        if mode:
            kept = {key for key in after if "/tags/" not in key}
            assert kept == needed
        # What was deleted can be pushed again.
        registry.push(layout.folder, "gone", "app:gone")
        assert registry.pull("app", "gone") == 3


def test_beside_a_writable_registry_nothing_is_deleted(
    registry: RealRegistry, place: Place, layout: Layout, tmp_path: Path
) -> None:
    with registry.running():
        fill(registry, layout)
        before = keys_of(place)
        result = collect_later(registry.config, tmp_path, "-m")
        assert result.exit_code == 4
        assert result.json["guard"]["verdict"] == "refused"
        assert keys_of(place) == before
