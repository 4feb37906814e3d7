"""What makes other collectors lose live data or give up (FACTS.md): one test for each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model import V2
from registry_tree import (
    OCI_ARTIFACT,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    SCHEMA1,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_path,
)
from running import Disk, Result, collect

BOTH = pytest.mark.parametrize("mode", [(), ("-m",)], ids=["plain", "-m"])
Mode = tuple[str, ...]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


# Lost: live data.


@BOTH
def test_a_layer_that_a_live_image_names_by_sha512_survives(disk: Disk, mode: Mode) -> None:
    data, config = b"layer", b"config"
    disk.tree.blob(data)
    disk.tree.link_layer("a", sha512(data), sha256(data))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, disk.tree.layer("a", config), len(config)),
        "layers": [descriptor(OCI_LAYER, sha512(data), len(data))],
    }
    image = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_manifest("a", image)
    assert disk.has_link("a", sha512(data))
    assert disk.has_blob(sha256(data))


@BOTH
@pytest.mark.parametrize(("sparse", "owner"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("tag", ["v1", None])
def test_a_child_in_another_repositorys_sparse_index_keeps_its_config_and_layers(
    disk: Disk, mode: Mode, sparse: str, owner: str, tag: str | None
) -> None:
    child = disk.tree.image(owner, tag, layers=[b"of the child"], config=b"{}")
    disk.tree.index(sparse, "all", [child])
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_blob(child)
    assert disk.has_blob(sha256(b"of the child"))
    assert disk.has_blob(sha256(b"{}"))
    # Pullable from its own repository only while something is a root there.
    assert disk.has_image(owner, child) is (tag is not None or not mode)


def test_untagged_referrers_of_a_tagged_image_survive_delete_untagged(disk: Disk) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    signature = disk.tree.image("a", None, layers=[b"signature"], subject=image)
    attestation = disk.tree.image("a", None, layers=[b"attestation"], subject=signature)
    unrelated = disk.tree.image("a", None, layers=[b"unrelated"])
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert all(disk.has_image("a", digest) for digest in (image, signature, attestation))
    assert not disk.has_blob(unrelated)


def test_children_of_a_tagged_index_survive_delete_untagged(disk: Disk) -> None:
    amd, arm = (disk.tree.image("a", None, layers=[name]) for name in (b"amd", b"arm"))
    inner = disk.tree.index("a", None, [arm])
    outer = disk.tree.index("a", "v1", [amd, inner])
    dropped = disk.tree.index("a", None, [disk.tree.image("a", None, layers=[b"old"])])
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_manifest("a", outer)
    assert disk.has_manifest("a", inner)
    assert disk.has_image("a", amd)
    assert disk.has_image("a", arm)
    assert not disk.has_blob(dropped)
    assert not disk.has_blob(sha256(b"old"))
    assert result.json["manifests"]["deleted"] == 2


@pytest.mark.parametrize(("tagged", "untagged"), [("a", "b"), ("b", "a")])
def test_layer_links_stay_where_an_image_is_tagged_though_it_is_untagged_elsewhere(
    disk: Disk, tagged: str, untagged: str
) -> None:
    image = disk.tree.image(tagged, "v1", layers=[b"shared", b"own"])
    disk.tree.image(untagged, None, layers=[b"shared", b"own"])
    other = disk.tree.image(untagged, "v2", layers=[b"shared", b"other"])
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_image(tagged, image)
    assert disk.has_image(untagged, other)
    assert not disk.has(revision_path(untagged, image))
    assert not disk.has_link(untagged, sha256(b"own"))
    assert result.json["blobs"]["deleted"] == 0


# Given up: the rest of the registry is collected all the same.


def garbage(disk: Disk) -> Callable[[], bool]:
    """Live and dead things in a repository of their own; the answer says if all came out right."""
    image = disk.tree.image("healthy", "v1", layers=[b"healthy layer"])
    orphan = disk.tree.layer("healthy", b"healthy orphan")

    def collected() -> bool:
        return disk.has_image("healthy", image) and not disk.has_blob(orphan)

    return collected


def assert_held(result: Result, repository: str, digest: str = "") -> None:
    """The run ended with 3 and says which repository it held, and why."""
    assert result.exit_code == 3
    assert result.held == {repository}
    row = next(row for row in result.json["held"] if row["repository"] == repository)
    assert row["reason"]
    assert not digest or row["digest"] == digest


@BOTH
@pytest.mark.parametrize("size", [0, 40], ids=["empty", "truncated"])
def test_a_broken_manifest_holds_its_repository_and_no_other(
    disk: Disk, mode: Mode, size: int
) -> None:
    collected = garbage(disk)
    good = disk.tree.image("broken", "good", layers=[b"good"])
    bad = disk.tree.image("broken", "bad", layers=[b"what the broken one needs"])
    untagged = disk.tree.image("broken", None, layers=[b"untagged"])
    disk.write(blob_path(bad), (disk.root / blob_path(bad)).read_bytes()[:size])
    before = {path for path in disk.files() if "healthy" not in path}
    result = disk.collect(*mode)
    assert_held(result, "broken", bad)
    assert collected()
    assert disk.has_image("broken", good)
    assert disk.has_image("broken", untagged)
    assert disk.has_layer("broken", sha256(b"what the broken one needs"))
    assert all(disk.has(path) for path in before if "/repositories/broken" in path)


def put_in_place_of(folder: Path, kind: str) -> None:
    """What a damaged inode may have become."""
    shutil.rmtree(folder)
    if kind == "file":
        folder.write_bytes(b"junk")
    else:
        os.mkfifo(folder)


@BOTH
@pytest.mark.parametrize("kind", ["file", "pipe"])
@pytest.mark.parametrize("place", ["tags", "tags/v1", "tags/v1/current", "revision"])
def test_a_file_where_a_folder_is_to_be_holds_the_repository(
    disk: Disk, mode: Mode, kind: str, place: str
) -> None:
    collected = garbage(disk)
    bad = disk.tree.image("broken", "v1", layers=[b"needed"])
    disk.tree.image("broken", None, layers=[b"untagged"])
    folder = f"revisions/sha256/{bad[7:]}" if place == "revision" else place
    put_in_place_of(disk.root / repository_path("broken") / "_manifests" / folder, kind)
    before = {path for path in disk.files() if "/healthy/" not in path and "sha256" in path}
    result = disk.collect(*mode)
    assert_held(result, "broken")
    assert collected()
    assert all(disk.has(path) for path in before if "/repositories/broken/" in path)
    assert disk.has_layer("broken", sha256(b"needed"))
    assert disk.has_layer("broken", sha256(b"untagged"))
    assert disk.collect(*mode, "--release", "broken").held == set()


@BOTH
@pytest.mark.parametrize("place", ["", "/revisions", "/revisions/sha256"])
def test_a_file_in_place_of_all_links_to_manifests_ends_the_run(
    disk: Disk, mode: Mode, place: str
) -> None:
    garbage(disk)
    disk.tree.image("broken", "v1", layers=[b"needed"])
    put_in_place_of(disk.root / f"{repository_path('broken')}/_manifests{place}", "file")
    before = disk.files()
    result = disk.collect(*mode)
    assert result.exit_code == 1
    assert "--release broken" in result.errors
    assert disk.files() == before
    assert disk.collect(*mode, "--release", "broken").exit_code == 0


@BOTH
def test_a_stray_file_that_hides_no_folder_holds_nothing(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("app", "v1", layers=[b"layer"])
    manifests = f"{repository_path('app')}/_manifests"
    for stray in (".DS_Store", "tags/.nfs0001", "revisions/README"):
        disk.write(f"{manifests}/{stray}", b"")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["strangers"] == 3
    assert disk.has_image("app", image)


@BOTH
def test_release_lifts_the_hold_and_is_recorded(disk: Disk, mode: Mode) -> None:
    good = disk.tree.image("broken", "good", layers=[b"good"])
    bad = disk.tree.image("broken", None, layers=[b"what the broken one needed"])
    disk.write(blob_path(bad), b"{")
    result = disk.collect(*mode, "--release", f"broken@{bad}")
    assert result.held == set()
    assert disk.has_image("broken", good)
    assert not disk.has_blob(sha256(b"what the broken one needed"))
    assert disk.has(revision_path("broken", bad)) is (not mode)
    assert "release" in str(result.json["guard"]) + result.errors + str(result.json["damaged"])


@BOTH
def test_release_of_another_manifest_lifts_nothing(disk: Disk, mode: Mode) -> None:
    bad = disk.tree.image("broken", None, layers=[b"needed"])
    disk.write(blob_path(bad), b"{")
    result = disk.collect(*mode, "--release", f"broken@{sha256(b'another')}")
    assert_held(result, "broken", bad)
    assert disk.has_layer("broken", sha256(b"needed"))


@BOTH
@pytest.mark.parametrize("tag", ["v1", None])
def test_an_oci_artifact_manifest_is_read_and_kept_or_dies_like_any_other(
    disk: Disk, mode: Mode, tag: str | None
) -> None:
    collected = garbage(disk)
    blob = disk.tree.layer("a", b"sbom")
    described = [descriptor("text/plain", blob, 4)]
    artifact = disk.tree.manifest("a", {"mediaType": OCI_ARTIFACT, "blobs": described}, tag)
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    lives = tag is not None or not mode
    assert disk.has_manifest("a", artifact) is lives
    assert disk.has_layer("a", blob) is lives


@BOTH
@pytest.mark.parametrize("media_type", [SCHEMA1, None])
def test_a_schema_1_manifest_is_read(disk: Disk, mode: Mode, media_type: str | None) -> None:
    collected = garbage(disk)
    layer = disk.tree.layer("a", b"old layer")
    document: dict[str, object] = {"schemaVersion": 1, "fsLayers": [{"blobSum": layer}]}
    if media_type:
        document["mediaType"] = media_type
    image = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    assert disk.has_manifest("a", image)
    assert disk.has_layer("a", layer)


@BOTH
@pytest.mark.parametrize("content", [b"", b"sha256:12"], ids=["empty", "truncated"])
def test_a_broken_revision_link_still_names_its_manifest(
    disk: Disk, mode: Mode, content: bytes
) -> None:
    collected = garbage(disk)
    image = disk.tree.image("broken", "v1", layers=[b"layer"])
    disk.write(revision_path("broken", image), content)
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert [row["path"] for row in result.json["damaged"]] == [revision_path("broken", image)]
    assert collected()
    assert disk.has_image("broken", image)


@BOTH
@pytest.mark.parametrize("content", [b"", b"sha256:12"], ids=["empty", "truncated"])
def test_a_broken_layer_link_still_names_its_layer(disk: Disk, mode: Mode, content: bytes) -> None:
    collected = garbage(disk)
    image = disk.tree.image("broken", "v1", layers=[b"layer"])
    path = layer_link_path("broken", sha256(b"layer"))
    disk.write(path, content)
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert [row["path"] for row in result.json["damaged"]] == [path]
    assert collected()
    assert disk.has_image("broken", image)


@BOTH
@pytest.mark.parametrize("content", [b"", b"sha256:12", b"\xff" * 71], ids=["empty", "cut", "junk"])
def test_a_broken_tag_makes_a_root_of_all_that_it_ever_pointed_to(
    disk: Disk, mode: Mode, content: bytes
) -> None:
    collected = garbage(disk)
    older = disk.tree.image("broken", "v1", layers=[b"older"])
    newer = disk.tree.image("broken", "v1", layers=[b"newer"])
    disk.write(tag_path("broken", "v1"), content)
    result = disk.collect(*mode)
    assert_held(result, "broken")
    assert collected()
    assert disk.has_image("broken", older)
    assert disk.has_image("broken", newer)


@BOTH
def test_manifests_without_layers_are_a_repository(disk: Disk, mode: Mode) -> None:
    collected = garbage(disk)
    image = disk.tree.image("a", "v1", layers=[b"shared"])
    disk.tree.index("indexes/only", "v1", [image])
    assert not disk.has(f"{repository_path('indexes/only')}/_layers")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    assert disk.has_image("a", image)
    assert result.json["repositories"]["total"] == 3


@BOTH
@pytest.mark.parametrize(
    "stray",
    [
        "blobs/lost+found/file",
        "blobs/sha256/stray/file",
        "blobs/sha256/aa/short/data",
        "blobs/md4/aa/aabb/data",
        f"blobs/sha256/00/{'f' * 64}/data",
        f"blobs/sha256/ff/{'f' * 64}/other",
    ],
)
def test_a_stray_file_under_blobs_is_counted_and_kept(disk: Disk, mode: Mode, stray: str) -> None:
    collected = garbage(disk)
    disk.write(f"{V2}/{stray}", b"stray")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    assert disk.has(f"{V2}/{stray}")
    # The filesystem's own folder is not looked into: often nobody but root may.
    assert result.json["strangers"] == (0 if "lost+found" in stray else 1)


# Left behind.


def test_a_repository_that_delete_untagged_empties_is_gone(disk: Disk) -> None:
    collected = garbage(disk)
    disk.tree.image("group/untagged", None, layers=[b"layer"])
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert collected()
    assert not disk.has(repository_path("group"))
    assert result.json["repositories"] == {"total": 2, "emptied": 1}


@BOTH
def test_layer_links_that_nothing_needs_go(disk: Disk, mode: Mode) -> None:
    collected = garbage(disk)
    other = disk.tree.image("other", "v1", layers=[b"shared"])
    disk.tree.layer("healthy", b"shared")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    assert disk.has_image("other", other)
    assert not disk.has_link("healthy", sha256(b"shared"))
    assert not disk.has_link("healthy", sha256(b"healthy orphan"))
    assert result.json["layer_links"] == {"eligible": 2, "deleted": 2}


@BOTH
def test_old_uploads_go_and_so_do_repositories_that_have_only_those(disk: Disk, mode: Mode) -> None:
    collected = garbage(disk)
    disk.tree.upload("healthy", "one", "2020-01-01T00:00:00Z", b"half")
    disk.tree.upload("uploads/only", "two", "2020-01-01T00:00:00.123456789+02:00", b"half")
    disk.write(f"{repository_path('uploads/only')}/_uploads/two/hashstates/sha256/0", b"state")
    disk.age(30 * 24 * 3600.0)
    result = collect(disk.root, *mode)
    assert result.exit_code == 0
    assert collected()
    assert not disk.has(f"{repository_path('healthy')}/_uploads")
    assert not disk.has(repository_path("uploads"))
    assert result.json["uploads"]["deleted"] == 2
    assert result.json["repositories"]["emptied"] == 1


@BOTH
def test_a_repository_of_layers_only_goes(disk: Disk, mode: Mode) -> None:
    collected = garbage(disk)
    disk.tree.layer("layers/only", b"never used")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert collected()
    assert not disk.has(repository_path("layers"))
    assert not disk.has_blob(sha256(b"never used"))
