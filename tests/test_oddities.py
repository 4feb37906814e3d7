"""Every oddity of layout and manifests that FACTS.md names, and how a collection answers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from model import HOUR, V2
from registry_tree import (
    BUILDKIT_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    EMPTY_JSON,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    ORAS_ARTIFACT,
    SCHEMA1,
    blob_path,
    descriptor,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)
from running import Disk, Result, collect, empty_folders, write_config
from windows import windows

BOTH = pytest.mark.parametrize("mode", [(), ("-m",)], ids=["plain", "-m"])
Mode = tuple[str, ...]
DAY = 24 * HOUR
SIGNED_SCHEMA1 = SCHEMA1.replace("+json", "+prettyjws")
EMPTY = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with one live image, so that no run meets an empty one."""
    disk = Disk(tmp_path)
    disk.tree.image("kept", "v1", layers=[b"kept"], config=b'{"kept": 1}')
    return disk


def layer(disk: Disk, repository: str, data: bytes) -> dict[str, object]:
    """Push a layer and describe it."""
    return descriptor(OCI_LAYER, disk.tree.layer(repository, data), len(data))


# Layout.


@BOTH
def test_repositories_may_lie_inside_each_other(disk: Disk, mode: Mode) -> None:
    names = ["a", "a/b", "a/b/c/d/e", "a/manifests", "a/sha256/link"]
    images = {name: disk.tree.image(name, "v1", layers=[name.encode()]) for name in names}
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert all(disk.has_image(name, digest) for name, digest in images.items())
    assert result.json["repositories"] == {"total": 6, "emptied": 0}


def test_an_emptied_repository_leaves_the_one_inside_it_alone(disk: Disk) -> None:
    disk.tree.image("a", None, layers=[b"outer"])
    inner = disk.tree.image("a/b", "v1", layers=[b"inner"])
    result = disk.collect("-m")
    assert result.json["repositories"] == {"total": 3, "emptied": 1}
    assert sorted(os.listdir(disk.root / repository_path("a"))) == ["b"]
    assert disk.has_image("a/b", inner)


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_a_repository_is_found_by_any_of_its_three_folders(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("whole", "v1", layers=[b"x"])
    disk.write(revision_path("manifests-only", image), image.encode())
    disk.tree.tag("manifests-only", "v1", image)
    disk.tree.layer("layers-only", b"x")
    disk.tree.upload("uploads-only", "u", None, b"half")
    result = disk.collect("--dry-run", *mode)
    assert result.json["repositories"]["total"] == 5


@BOTH
def test_a_tag_whose_target_is_not_linked_is_a_root(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.remove(revision_path("a", image))
    result = disk.collect(*mode)
    assert disk.has_blob(image)
    assert disk.has_layer("a", sha256(b"layer"))
    assert result.json["blobs"]["deleted"] == 0


@BOTH
def test_a_tag_folder_without_current_is_no_tag(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.remove(tag_path("a", "v1"))
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_image("a", image) is (not mode)
    assert disk.has(tag_index_path("a", "v1", image)) is (not mode)


def test_what_a_tag_once_pointed_to_dies_with_its_index_entry(disk: Disk) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    new = disk.tree.image("a", "v1", layers=[b"new"])
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert not disk.has(tag_index_path("a", "v1", old))
    assert not disk.has_blob(old)
    assert disk.has(tag_index_path("a", "v1", new))
    assert disk.has_image("a", new)


@BOTH
def test_an_alias_link_in_another_repository_is_as_good(disk: Disk, mode: Mode) -> None:
    """And stays: without it nothing would say, on the next run, what the name stands for."""
    data = b"named by sha512"
    disk.tree.blob(data)
    disk.tree.link_layer("other", sha512(data), sha256(data))
    alias = descriptor(OCI_LAYER, sha512(data), len(data))
    config = layer(disk, "a", b"{}")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [alias]}
    disk.tree.manifest("a", document, "v1")
    for _ in range(2):
        result = disk.collect(*mode)
        assert result.exit_code == 0
        assert disk.has_blob(sha256(data))


@pytest.mark.parametrize("by", ["run", "apply"])
def test_a_blob_stays_where_a_link_of_its_sha512_name_cannot_be_deleted(
    disk: Disk, tmp_path: Path, by: str
) -> None:
    data, other = b"named by sha512", b"named by nobody"
    for content in (data, other):
        disk.tree.blob(content)
    disk.tree.link_layer("a", sha512(data), sha256(data))
    link = disk.root / layer_link_path("a", sha512(data))
    elsewhere = tmp_path / "elsewhere"
    link.rename(elsewhere)
    link.symlink_to(elsewhere)
    done = collect(disk.root) if by == "run" else plan_and_apply(disk, tmp_path)
    assert done.exit_code == 3
    failed = {row["path"]: row["error"] for row in done.json["failed"]}
    assert failed.keys() == {layer_link_path("a", sha512(data)), blob_path(sha256(data))}
    assert "a link to it could not be deleted" in failed[blob_path(sha256(data))]
    assert (disk.root / blob_path(sha256(data))).read_bytes() == data
    assert not (disk.root / blob_path(sha256(other))).exists()


def plan_and_apply(disk: Disk, folder: Path) -> Result:
    """Plan, and carry the plan out: with no more in memory than a second look brings."""
    from registry_gc.cli.main import registry_gc

    plan = str(folder / "a.plan")
    fixed = ["--output", "json", "--no-cache", "--state-dir", str(folder / "state")]
    for arguments in (["plan", "-o", plan, str(write_config(disk.root))], ["apply", plan]):
        answer = CliRunner().invoke(registry_gc, [arguments[0], *fixed, *arguments[1:]])
    return Result(answer.exit_code, json.loads(answer.stdout), answer.stdout, answer.stderr)


@BOTH
def test_a_blob_stored_under_its_sha512_name_is_kept(disk: Disk, mode: Mode) -> None:
    data = b"stored by sha512"
    disk.tree.blob(data, sha512(data))
    dead = disk.tree.blob(b"nobody's", sha512(b"nobody's"))
    disk.tree.link_layer("a", sha512(data))
    config = layer(disk, "a", b"{}")
    layers = [descriptor(OCI_LAYER, sha512(data), len(data))]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_layer("a", sha512(data))
    assert not disk.has_blob(dead)


@BOTH
def test_a_sha512_name_that_nothing_resolves_holds_the_repository(disk: Disk, mode: Mode) -> None:
    config = layer(disk, "a", b"{}")
    layers = [descriptor(OCI_LAYER, sha512(b"what was it"), 1)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    disk.tree.manifest("a", document, "v1")
    spare = disk.tree.layer("a", b"what was it")
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert result.held == {"a"}
    assert disk.has_layer("a", spare)


@BOTH
def test_an_alias_and_its_target_keep_each_others_links(disk: Disk, mode: Mode) -> None:
    by_alias, by_target = b"referenced by alias", b"referenced by target"
    for data in (by_alias, by_target):
        disk.tree.layer("a", data)
        disk.tree.link_layer("a", sha512(data), sha256(data))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layer(disk, "a", b"{}"),
        "layers": [
            descriptor(OCI_LAYER, sha512(by_alias), 1),
            descriptor(OCI_LAYER, sha256(by_target), 1),
        ],
    }
    disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.json["layer_links"]["deleted"] == 0
    assert disk.has_link("a", sha512(by_target))
    assert disk.has_layer("a", sha256(by_alias))


def test_unfinished_writes_of_driver_and_nfs_are_counted_and_kept(disk: Disk) -> None:
    image = disk.tree.image("a", None, layers=[b"x"])
    folder = revision_path("a", image).rpartition("/")[0]
    strangers = [
        f"{folder}/link.0a1b.tmp",
        f"{folder}/.nfs0001",
        f"{blob_path(image)}.0a1b.tmp",
        f"{repository_path('a')}/_layers/.nfs0002",
        f"{repository_path('a')}/README",
        f"{V2}/README",
    ]
    for path in strangers:
        disk.write(path, b"?")
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert not disk.has_blob(image)
    assert all(disk.has(path) for path in strangers)
    # What lies beside an expected file is not looked for: that would cost one listing for each
    # link and blob. The last lies beside blobs and repositories, where nobody needs to look.
    assert result.json["strangers"] >= 2


@BOTH
@pytest.mark.parametrize("part", ["blobs", "repositories", "blobs/sha256", "repositories/a"])
def test_parts_on_another_disk_are_followed_and_their_symlink_stays(
    disk: Disk, mode: Mode, part: str
) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    orphan = disk.tree.layer("a", b"orphan")
    disk.tree.layer("b", b"orphan")
    place = disk.root / V2 / part
    elsewhere = disk.folder / "other-disk"
    place.rename(elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_image("a", image)
    assert not disk.has_blob(orphan)
    assert place.is_symlink()


def test_a_symlink_to_an_emptied_repository_is_never_unlinked(disk: Disk) -> None:
    disk.tree.image("a", None, layers=[b"layer"])
    place, elsewhere = disk.root / repository_path("a"), disk.folder / "other-disk"
    place.rename(elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert not disk.has_blob(sha256(b"layer"))
    assert place.is_symlink()


def test_a_dangling_symlink_fails_the_run_before_anything_is_deleted(disk: Disk) -> None:
    orphan = disk.tree.layer("a", b"orphan")
    (disk.root / repository_path("lost")).symlink_to(disk.folder / "not-mounted")
    result = collect(disk.root)
    assert result.exit_code == 1
    assert disk.has_layer("a", orphan)


@BOTH
@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("repositories/c/_layers", "../r/_layers"),
        ("repositories/c/_layers/sha256", "../../r/_layers/sha256"),
        ("repositories/c/_manifests", "../r/_manifests"),
        ("repositories/c/_manifests/revisions", "../../r/_manifests/revisions"),
        ("repositories/c/_manifests/tags/v1", "../../../r/_manifests/tags/v1"),
        ("repositories/c/_uploads", "../r/_uploads"),
        ("repositories/c/_layers/more", "../../../blobs"),
        ("blobs/sha256/ab", "cd"),
        ("blobs/sha512", "sha256"),
    ],
)
def test_a_second_name_of_what_is_listed_fails_the_run_before_anything_is_deleted(
    disk: Disk, mode: Mode, link: str, target: str
) -> None:
    disk.tree.image("r", "v1", layers=[b"of r"])
    orphan = disk.tree.layer("r", b"orphan")
    disk.write(f"{V2}/repositories/r/_uploads/one/data", b"")
    disk.write(f"{V2}/blobs/sha256/cd/stray", b"")
    place = disk.root / V2 / link
    place.parent.mkdir(parents=True, exist_ok=True)
    assert not place.exists()
    place.symlink_to(target, target_is_directory=True)
    result = disk.collect(*mode)
    assert result.exit_code == 1
    assert link in result.json["error"]
    assert "listed under that name too" in result.json["error"]
    assert disk.has_layer("r", orphan)
    assert disk.has_blob(orphan)


@BOTH
def test_a_layer_link_that_leads_to_another_repositorys_fails_the_run(
    disk: Disk, mode: Mode
) -> None:
    disk.tree.image("c", "v1", layers=[b"shared"])
    disk.tree.layer("r", b"shared")
    place = (disk.root / layer_link_path("c", sha256(b"shared"))).parent
    (place / "link").unlink()
    place.rmdir()
    place.symlink_to((disk.root / layer_link_path("r", sha256(b"shared"))).parent)
    result = disk.collect(*mode)
    assert (result.exit_code, "listed under that name too" in result.json["error"]) == (1, True)
    assert disk.has_layer("c", sha256(b"shared"))


@BOTH
def test_a_revision_that_leads_to_another_repositorys_fails_the_run(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("b", "v1", layers=[b"layer"])
    disk.tree.image("a", "v1", layers=[b"other"])
    there = f"{V2}/repositories/%s/_manifests/revisions/sha256/{image.removeprefix('sha256:')}"
    (disk.root / there.replace("%s", "a")).symlink_to(disk.root / there.replace("%s", "b"))
    result = disk.collect(*mode)
    assert (result.exit_code, "listed under that name too" in result.json["error"]) == (1, True)
    assert disk.has_image("b", image)


@BOTH
@pytest.mark.parametrize("part", ["repositories/r/_layers", "repositories/r/_manifests/revisions"])
@pytest.mark.parametrize("inside", [True, False], ids=["below the root", "on another disk"])
def test_a_repositorys_part_that_is_elsewhere_is_followed(
    disk: Disk, mode: Mode, part: str, inside: bool
) -> None:
    image = disk.tree.image("r", "v1", layers=[b"of r"])
    orphan = disk.tree.layer("r", b"orphan")
    place = disk.root / V2 / part
    elsewhere = (disk.root if inside else disk.folder) / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere, target_is_directory=True)
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_image("r", image)
    assert not disk.has_blob(orphan)


@BOTH
@pytest.mark.parametrize(
    ("link", "target"), [("alias", "r"), ("other", "team"), ("team/x", "../r")]
)
def test_an_alias_of_repositories_keeps_what_lives_and_loses_what_is_dead_once(
    disk: Disk, mode: Mode, link: str, target: str
) -> None:
    for name in ("r", "team/a"):
        disk.tree.image(name, "v1", layers=[b"live in " + name.encode()])
        disk.tree.image(name, None, layers=[b"dead in " + name.encode()])
        disk.tree.layer(name, b"orphan of " + name.encode())
    (disk.root / V2 / "repositories" / link).symlink_to(target, target_is_directory=True)
    for _ in range(2):
        result = disk.collect(*mode)
        assert (result.exit_code, result.json["failed"]) == (0, [])
        for name in ("r", "team/a"):
            live, dead = (sha256(word + b" in " + name.encode()) for word in (b"live", b"dead"))
            orphan = sha256(b"orphan of " + name.encode())
            assert disk.has_blob(live)
            assert disk.has_layer(name, live)
            assert disk.has_blob(dead) is not bool(mode)
            assert disk.has_layer(name, dead) is not bool(mode)
            assert not disk.has_blob(orphan)
            assert not disk.has_layer(name, orphan)
    assert result.json["blobs"]["deleted"] == result.json["layer_links"]["deleted"] == 0


@BOTH
def test_signatures_live_and_die_with_their_schema_1_image(disk: Disk, mode: Mode) -> None:
    paths = {}
    for tag in ("v1", None):
        data = f"layer of {tag}".encode()
        document = {
            "schemaVersion": 1,
            "mediaType": SCHEMA1,
            "fsLayers": [{"blobSum": disk.tree.layer("a", data)}],
        }
        image = disk.tree.manifest("a", document, tag)
        signature = disk.tree.blob(f"signature for {tag}".encode())
        folder = revision_path("a", image).removesuffix("/link")
        path = f"{folder}/signatures/{signature.replace(':', '/')}/link"
        disk.write(path, signature.encode())
        paths[tag] = (path, blob_path(signature))
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert all(disk.has(path) for path in paths["v1"])
    assert all(disk.has(path) is (not mode) for path in paths[None])
    assert not empty_folders(disk.root)


@BOTH
def test_a_manifest_that_is_also_linked_as_a_layer_keeps_that_link(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("a", "v1", layers=[b"x"])
    disk.write(layer_link_path("a", image), image.encode())
    result = disk.collect(*mode)
    assert disk.has_link("a", image)
    assert result.json["layer_links"]["deleted"] == 0


@BOTH
def test_folders_without_their_file_are_nothing_and_are_tidied_away(disk: Disk, mode: Mode) -> None:
    gone = sha256(b"gone")
    for path in (
        blob_path(gone),
        revision_path("a", gone),
        layer_link_path("kept", gone),
        tag_path("kept", "gone"),
    ):
        (disk.root / path).parent.mkdir(parents=True)
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["blobs"] == {
        "total": 3,
        "eligible": 0,
        "eligible_bytes": 0,
        "deleted": 0,
        "deleted_bytes": 0,
    }
    assert result.json["strangers"] == 0
    assert not empty_folders(disk.root)
    assert not disk.has(repository_path("a"))


def test_a_dry_run_tidies_nothing(disk: Disk) -> None:
    (disk.root / blob_path(sha256(b"gone"))).parent.mkdir(parents=True)
    disk.collect("--dry-run")
    assert empty_folders(disk.root)


@BOTH
def test_a_revision_whose_manifest_is_gone_is_damaged_and_keeps_nothing(
    disk: Disk, mode: Mode
) -> None:
    image = disk.tree.image("a", "v1", layers=[b"of the lost one"])
    disk.remove(blob_path(image))
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert [row["path"] for row in result.json["damaged"]] == [revision_path("a", image)]
    assert result.held == set()
    assert not disk.has_blob(sha256(b"of the lost one"))
    # A tag still points to it, so the revision is reached and its link stays.
    assert disk.has(revision_path("a", image))


@BOTH
def test_a_manifest_that_is_not_what_its_digest_says_is_held(disk: Disk, mode: Mode) -> None:
    image = disk.tree.image("a", "v1", layers=[b"x"])
    other = disk.tree.image("kept", "v2", layers=[b"y"])
    disk.write(blob_path(image), (disk.root / blob_path(other)).read_bytes())
    result = disk.collect(*mode)
    assert result.exit_code == 3
    assert result.held == {"a"}
    assert disk.has_layer("a", sha256(b"x"))


@BOTH
def test_a_repository_that_reaches_a_broken_child_elsewhere_is_held_too(
    disk: Disk, mode: Mode
) -> None:
    child = disk.tree.image("owner", "v1", layers=[b"x"])
    disk.tree.index("sparse", "v1", [child])
    spare = disk.tree.layer("sparse", b"spare")
    disk.write(blob_path(child), b"")
    result = disk.collect(*mode)
    assert result.held == {"owner", "sparse"}
    assert disk.has_layer("sparse", spare)


# Uploads.


def began(age: float) -> str:
    """What ``startedat`` says *age* seconds after an upload was begun."""
    return datetime.fromtimestamp(time.time() - age, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("started", "written", "goes"),
    [
        (10 * DAY, 10 * DAY, True),
        (10 * DAY, HOUR, False),
        (HOUR, 10 * DAY, False),
        (6 * DAY, 6 * DAY, False),
        (None, 10 * DAY, False),
    ],
)
def test_an_upload_is_as_old_as_the_youngest_thing_about_it(
    disk: Disk, started: float | None, written: float, goes: bool
) -> None:
    disk.tree.upload("a", "u", None if started is None else began(started), b"half")
    disk.write(f"{repository_path('a')}/_uploads/u/hashstates/sha256/5", b"state")
    disk.age(10 * DAY)
    disk.age(written, below=f"{repository_path('a')}/_uploads/u/hashstates")
    result = collect(disk.root)
    assert result.exit_code == 0
    assert disk.has(f"{repository_path('a')}/_uploads/u/data") is not goes
    assert result.json["uploads"]["deleted"] == int(goes)
    assert not empty_folders(disk.root)


@pytest.mark.parametrize("content", ["", "yesterday", "2020-01-01"])
def test_an_upload_that_says_nothing_readable_of_its_age_is_kept(disk: Disk, content: str) -> None:
    disk.tree.upload("a", "u", content, b"half")
    disk.age(100 * DAY)
    collect(disk.root)
    assert disk.has(f"{repository_path('a')}/_uploads/u/data")


@pytest.mark.parametrize(
    ("purging", "arguments", "goes"),
    [
        ({"enabled": True, "age": "24h"}, (), True),
        ({"enabled": True, "age": "96h"}, (), False),
        ({"enabled": False, "age": "24h"}, (), False),
        ({"enabled": False}, ("--upload-age", "1d"), True),
        ({"enabled": True, "age": "24h"}, ("--upload-age", "1w"), False),
        ({"enabled": True, "age": "24h"}, ("--grace", "96h"), False),
    ],
)
def test_the_operators_word_on_uploads_counts_and_the_command_lines_more(
    disk: Disk, purging: dict[str, object], arguments: Mode, goes: bool
) -> None:
    disk.tree.upload("a", "u", began(2 * DAY), b"half")
    disk.age(2 * DAY + 60)
    maintenance = {"readonly": {"enabled": True}, "uploadpurging": purging}
    config = write_config(disk.root, extra={"maintenance": maintenance})
    result = collect(disk.root, *arguments, config=config)
    assert result.exit_code == 0
    assert disk.has(f"{repository_path('a')}/_uploads/u/data") is not goes


# Manifests.


def image_document(disk: Disk, media_type: str | None) -> dict[str, object]:
    """An image in repository ``a`` with one layer, ``needed``."""
    needed, config = layer(disk, "a", b"needed"), layer(disk, "a", b'{"a": 1}')
    if media_type in (SCHEMA1, SIGNED_SCHEMA1):
        blob_sum = {"blobSum": needed["digest"]}
        return {"schemaVersion": 1, "mediaType": media_type, "fsLayers": [blob_sum]}
    if media_type in (OCI_ARTIFACT, ORAS_ARTIFACT):
        return {"mediaType": media_type, "blobs": [needed]}
    document = {"schemaVersion": 2, "config": config, "layers": [needed]}
    return document if media_type is None else {**document, "mediaType": media_type}


MEDIA_TYPES = [
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    OCI_ARTIFACT,
    ORAS_ARTIFACT,
    SCHEMA1,
    SIGNED_SCHEMA1,
    None,
]


@BOTH
@pytest.mark.parametrize("tag", ["v1", None])
@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_every_kind_of_manifest_keeps_what_it_references_while_it_lives(
    disk: Disk, mode: Mode, tag: str | None, media_type: str | None
) -> None:
    image = disk.tree.manifest("a", image_document(disk, media_type), tag)
    if media_type in (SCHEMA1, SIGNED_SCHEMA1, OCI_ARTIFACT, ORAS_ARTIFACT):
        # These have no config; the one that was pushed is an orphan.
        disk.remove(layer_link_path("a", sha256(b'{"a": 1}')))
    result = disk.collect(*mode)
    assert result.exit_code == 0
    lives = tag is not None or not mode
    assert disk.has_manifest("a", image) is lives
    assert disk.has_layer("a", sha256(b"needed")) is lives


@BOTH
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, None])
@pytest.mark.parametrize("child_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_every_kind_of_index_keeps_its_children(
    disk: Disk, mode: Mode, media_type: str | None, child_type: str
) -> None:
    child = disk.tree.image("a", None, layers=[b"x"], media_type=child_type)
    document: dict[str, object] = {
        "schemaVersion": 2,
        "manifests": [descriptor(child_type, child, 1)],
    }
    if media_type:
        document["mediaType"] = media_type
    index = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_manifest("a", index)
    assert disk.has_image("a", child)


@BOTH
def test_a_buildkit_cache_keeps_its_layers(disk: Disk, mode: Mode) -> None:
    parts = [layer(disk, "a", data) for data in (b"one", b"two")]
    config = disk.tree.layer("a", b'{"cache": 1}')
    children = [*parts, descriptor(BUILDKIT_CONFIG, config, 1)]
    disk.tree.manifest(
        "a", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}, "cache"
    )
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert all(disk.has_layer("a", sha256(data)) for data in (b"one", b"two", b'{"cache": 1}'))


@BOTH
def test_a_foreign_layer_that_is_absent_is_no_error(disk: Disk, mode: Mode) -> None:
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": sha256(b"on some other server"),
        "size": 1,
        "urls": ["https://example.com/layer"],
    }
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": layer(disk, "a", b"{}"),
        "layers": [foreign, layer(disk, "a", b"own")],
    }
    image = disk.tree.manifest("a", document, "v1")
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["damaged"] == []
    assert disk.has_manifest("a", image)
    assert disk.has_layer("a", sha256(b"own"))


@BOTH
def test_a_missing_child_is_no_error_and_the_others_are_kept(disk: Disk, mode: Mode) -> None:
    child = disk.tree.image("a", None, layers=[b"x"])
    index = disk.tree.index("a", "v1", [sha256(b"never mirrored"), child])
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert result.json["damaged"] == []
    assert disk.has_manifest("a", index)
    assert disk.has_image("a", child)


@BOTH
def test_a_child_that_is_stored_but_linked_nowhere_is_followed(disk: Disk, mode: Mode) -> None:
    child = disk.tree.image("a", None, layers=[b"x"])
    disk.remove(revision_path("a", child))
    disk.tree.index("a", "v1", [child])
    result = disk.collect(*mode)
    assert result.exit_code == 0
    assert disk.has_blob(child)
    assert disk.has_layer("a", sha256(b"x"))


def test_a_subject_does_not_live_by_its_referrer(disk: Disk) -> None:
    subject = disk.tree.image("a", None, layers=[b"x"])
    referrer = disk.tree.image("a", "sbom", layers=[b"sbom"], subject=subject)
    disk.collect("-m")
    assert disk.has_image("a", referrer)
    assert not disk.has_blob(subject)


@pytest.mark.parametrize("index", [True, False], ids=["index", "image"])
def test_a_referrer_dies_with_its_subject(disk: Disk, index: bool) -> None:
    subject = disk.tree.image("a", None, layers=[b"x"])
    if index:
        extra = {"subject": descriptor(OCI_MANIFEST, subject, 1)}
        referrer = disk.tree.index("a", None, [], extra=extra)
    else:
        referrer = disk.tree.image("a", None, layers=[b"y"], subject=subject)
    result = disk.collect("-m")
    assert not disk.has_blob(referrer)
    assert not disk.has_blob(subject)
    assert result.json["manifests"]["deleted"] == 2


@pytest.mark.parametrize("kind", [OCI_ARTIFACT, ORAS_ARTIFACT, OCI_INDEX, OCI_MANIFEST])
def test_every_kind_of_referrer_lives_with_its_subject(disk: Disk, kind: str) -> None:
    subject = disk.tree.image("a", "v1", layers=[b"x"])
    part = layer(disk, "a", b"part")
    document: dict[str, object] = {
        "mediaType": kind,
        "subject": descriptor(OCI_MANIFEST, subject, 1),
    }
    if kind == OCI_INDEX:
        document |= {"schemaVersion": 2, "manifests": [part]}
    elif kind == OCI_MANIFEST:
        document |= {"schemaVersion": 2, "config": part, "layers": []}
    else:
        document["blobs"] = [part]
    referrer = disk.tree.manifest("a", document)
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_manifest("a", referrer)
    assert disk.has_layer("a", sha256(b"part"))


def test_a_child_of_a_referrer_and_a_referrer_of_a_child_live_too(disk: Disk) -> None:
    child = disk.tree.image("a", None, layers=[b"child"])
    disk.tree.index("a", "v1", [child])
    of_child = disk.tree.image("a", None, layers=[b"of child"], subject=child)
    inner = disk.tree.image("a", None, layers=[b"inner"])
    extra = {"subject": descriptor(OCI_MANIFEST, of_child, 1)}
    disk.tree.index("a", None, [inner], extra=extra)
    disk.collect("-m")
    assert disk.has_image("a", of_child)
    assert disk.has_image("a", inner)


@pytest.mark.parametrize(
    ("linked_here", "lives_elsewhere", "lives"),
    [(False, True, True), (False, False, False), (True, True, False)],
)
def test_a_referrer_kept_apart_from_its_subject_lives_while_that_lives_anywhere(
    disk: Disk, linked_here: bool, lives_elsewhere: bool, lives: bool
) -> None:
    subject = disk.tree.image("images", "v1" if lives_elsewhere else None, layers=[b"x"])
    referrer = disk.tree.image("signatures", None, layers=[b"signature"], subject=subject)
    if linked_here:
        disk.write(revision_path("signatures", subject), subject.encode())
    result = disk.collect("-m")
    assert result.exit_code == 0
    assert disk.has_image("signatures", referrer) is lives


@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
def test_fallback_and_cosign_tags_are_tags_like_any_other(disk: Disk, suffix: str) -> None:
    image = disk.tree.image("a", None, layers=[b"x"])
    tag = image.replace(":", "-") + suffix
    referrer = disk.tree.image("a", None, layers=[b"signature"])
    disk.tree.index("a", tag, [referrer])
    disk.collect("-m")
    assert not disk.has_blob(image)
    assert disk.has(tag_path("a", tag))
    assert disk.has_image("a", referrer)


def test_the_empty_descriptor_lives_while_one_artifact_needs_it(disk: Disk) -> None:
    def artifact(repository: str, tag: str | None, data: bytes) -> str:
        config = descriptor(EMPTY_JSON, disk.tree.layer(repository, b"{}"), 2)
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "text/plain",
            "config": config,
            "layers": [layer(disk, repository, data)],
        }
        return disk.tree.manifest(repository, document, tag)

    kept = artifact("a", "v1", b"one")
    for name in ("b", "c", "d"):
        artifact(name, None, name.encode())
    disk.collect("-m")
    assert disk.has_blob(EMPTY)
    assert disk.has_image("a", kept)
    assert not disk.has(repository_path("b"))


def test_collection_deletes_no_tag(disk: Disk) -> None:
    disk.tree.image("a", "v1", layers=[b"x"])
    disk.tree.image("a", "v1", layers=[b"y"])
    disk.remove(blob_path(disk.tree.image("a", "broken", layers=[b"z"])))
    tags = {path for path in disk.files() if "/current/link" in path}
    disk.collect("-m")
    assert {path for path in disk.files() if "/current/link" in path} == tags


# Age.


def touch(disk: Disk, path: str, age: float = 60.0) -> None:
    """Make one file *age* seconds old."""
    os.utime(disk.root / path, (time.time() - age, time.time() - age))


def test_without_grace_all_that_was_there_before_the_listing_counts_as_old(disk: Disk) -> None:
    orphan = disk.tree.layer("a", b"pushed a moment ago")
    result = collect(disk.root)
    assert result.exit_code == 0
    assert not disk.has_blob(orphan)


YOUNG_THINGS: list[tuple[str, Callable[[str], str]]] = [
    ("blob", blob_path),
    ("link", lambda digest: layer_link_path("a", digest)),
    ("link in another repository", lambda digest: layer_link_path("b", digest)),
]


@pytest.mark.parametrize("path_of", [x for _, x in YOUNG_THINGS], ids=[x for x, _ in YOUNG_THINGS])
def test_a_digest_is_as_young_as_the_youngest_thing_that_names_it(
    disk: Disk, path_of: Callable[[str], str]
) -> None:
    young, old = disk.tree.layer("a", b"young"), disk.tree.layer("a", b"old")
    disk.tree.layer("b", b"young")
    disk.age(2 * DAY)
    touch(disk, path_of(young))
    result = collect(disk.root, "--grace", "1d")
    assert result.exit_code == 0
    assert disk.has_layer("a", young)
    assert disk.has_layer("b", young)
    assert not disk.has_blob(old)
    assert not disk.has_link("a", old)
    result = collect(disk.root)
    assert not disk.has_blob(young)


@pytest.mark.parametrize("links", ["few", "many"])
def test_what_is_live_elsewhere_and_restored_keeps_its_old_links_everywhere(
    disk: Disk, links: str
) -> None:
    """Its blob alone is young, as after a restore; and no listing of what is dead looks at it."""
    image = disk.tree.image("a", None, layers=[b"own"])
    disk.tree.image("b", "v1", layers=[b"own"])
    other = disk.tree.image("c", "v1", layers=[b"restored"])
    layer = disk.tree.layer("a", b"restored")
    gone = disk.tree.layer("a", b"other")
    disk.tree.image("d", "v1", layers=[b"other"])
    disk.age(2 * DAY)
    touch(disk, blob_path(image))
    touch(disk, blob_path(layer))
    with windows({"link_ages.FEW": 0 if links == "many" else 10_000}):
        collect(disk.root, "-m", "--grace", "1d")
    assert disk.has_image("a", image)
    assert disk.has_layer("a", layer)
    assert disk.has_image("c", other)
    assert not disk.has_link("a", gone)
    collect(disk.root, "-m")
    assert not disk.has_link("a", layer)
    assert disk.has_blob(layer)


@pytest.mark.parametrize("what", ["revision", "tag index", "blob"])
def test_a_young_manifest_is_a_root_with_all_that_it_needs(disk: Disk, what: str) -> None:
    image = disk.tree.image("a", "v1", layers=[b"needed"])
    disk.tree.image("a", "v1", layers=[b"newer"])
    path = {
        "revision": revision_path("a", image),
        "tag index": tag_index_path("a", "v1", image),
        "blob": blob_path(image),
    }[what]
    disk.age(2 * DAY)
    touch(disk, path)
    collect(disk.root, "-m", "--grace", "1d")
    assert disk.has_image("a", image)
    assert disk.has(tag_index_path("a", "v1", image))
    collect(disk.root, "-m")
    assert not disk.has_blob(image)


# What goes with the files.


def test_bytes_of_a_blob_with_another_hard_link_are_not_counted_as_freed(disk: Disk) -> None:
    shared, plain = disk.tree.blob(b"s" * 1000), disk.tree.blob(b"p" * 10)
    os.link(disk.root / blob_path(shared), disk.folder / "backup")
    result = disk.collect()
    assert not disk.has_blob(shared)
    assert not disk.has_blob(plain)
    assert result.json["blobs"]["deleted"] == 2
    assert result.json["blobs"]["deleted_bytes"] == 10


def test_keep_empty_repositories_leaves_their_folders(disk: Disk) -> None:
    disk.tree.image("group/untagged", None, layers=[b"layer"])
    result = disk.collect("-m", "--keep-empty-repositories")
    assert result.exit_code == 0
    assert not disk.has_blob(sha256(b"layer"))
    assert disk.has(f"{repository_path('group/untagged')}/_layers")
    assert disk.has(f"{repository_path('group/untagged')}/_manifests")
    again = disk.collect("-m", "--keep-empty-repositories")
    assert again.exit_code == 0
    assert disk.has(f"{repository_path('group/untagged')}/_layers")


# Limits.


def test_a_registry_without_any_live_manifest_is_refused_unless_allowed(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    image = disk.tree.image("a", None, layers=[b"x"])
    result = disk.collect("-m")
    assert result.exit_code == 4
    assert result.json["guard"]["verdict"] == "refused"
    assert result.json["guard"]["findings"]
    assert disk.has_image("a", image)
    assert disk.collect("-m", "--dry-run").exit_code == 0
    assert disk.collect("-m", "--allow-empty").exit_code == 0
    assert not disk.has_blob(image)


@pytest.mark.parametrize(
    ("limit", "refused"), [("1", True), ("2", False), ("39%", True), ("40%", False)]
)
def test_more_than_max_delete_of_the_blobs_is_refused(
    disk: Disk, limit: str, refused: bool
) -> None:
    orphans = [disk.tree.layer("a", data) for data in (b"one", b"two")]
    result = disk.collect("--max-delete", limit)
    assert result.exit_code == (4 if refused else 0)
    assert all(disk.has_blob(orphan) is refused for orphan in orphans)
    assert result.json["guard"]["verdict"] == ("refused" if refused else "allowed")
    assert ("2 of 5" in str(result.json["guard"]["findings"])) is refused
    assert result.json["blobs"]["eligible"] == 2
    assert result.json["blobs"]["total"] == 5


@pytest.mark.parametrize("missing", ["", V2, f"{V2}/repositories"])
def test_an_empty_or_wrong_root_is_refused(tmp_path: Path, missing: str) -> None:
    disk = Disk(tmp_path)
    blob = ""
    if missing.endswith("repositories"):
        blob = disk.tree.blob(b"blobs, but no repositories: half a mount")
    result = disk.collect()
    assert result.exit_code == 4
    assert not blob or disk.has_blob(blob)


# A folder where a file is to be.

HOLDING = pytest.mark.parametrize("inside", [(), ("stray",)], ids=["empty", "with a file"])


def make_folder_of(disk: Disk, path: str, inside: tuple[str, ...]) -> str:
    place = disk.root / path
    place.unlink()
    place.mkdir()
    for name in inside:
        (place / name).write_bytes(b"?")
    return path


@HOLDING
def test_a_tag_whose_current_link_is_a_folder_holds_its_repository(
    disk: Disk, inside: tuple[str, ...]
) -> None:
    disk.tree.image("r", "v1", layers=[b"one"])
    disk.tree.image("r", None, layers=[b"two"])
    path = make_folder_of(disk, tag_path("r", "v1"), inside)
    for _ in range(2):
        answer = disk.collect("-m")
        assert answer.exit_code == 3
        assert [held["repository"] for held in answer.json["held"]] == ["r"]
        assert path in [damaged["path"] for damaged in answer.json["damaged"]]
        assert disk.has(blob_path(sha256(b"one")))
        assert disk.has(blob_path(sha256(b"two")))


@HOLDING
def test_a_revision_whose_link_is_a_folder_keeps_its_image(
    disk: Disk, inside: tuple[str, ...]
) -> None:
    manifest = disk.tree.image("r", None, layers=[b"one"])
    path = make_folder_of(disk, revision_path("r", manifest), inside)
    for _ in range(2):
        answer = disk.collect()
        assert answer.exit_code == 3
        assert [damaged["path"] for damaged in answer.json["damaged"]] == [path]
        assert disk.has(blob_path(sha256(b"one")))
        assert disk.has(blob_path(manifest))


@BOTH
@HOLDING
def test_a_manifest_whose_data_is_a_folder_holds_its_repository(
    disk: Disk, mode: Mode, inside: tuple[str, ...]
) -> None:
    manifest = disk.tree.image("r", "v1", layers=[b"one"])
    make_folder_of(disk, blob_path(manifest), inside)
    for _ in range(2):
        answer = disk.collect(*mode)
        assert answer.exit_code == 3
        (held,) = answer.json["held"]
        assert (held["repository"], held["reason"]) == ("r", "its data is a folder")
        assert disk.has(blob_path(sha256(b"one")))


@BOTH
@HOLDING
def test_other_links_that_are_folders_end_no_run(
    disk: Disk, mode: Mode, inside: tuple[str, ...]
) -> None:
    manifest = disk.tree.image("r", "v1", layers=[b"one"])
    for path in (
        layer_link_path("r", sha256(b"one")),
        tag_index_path("r", "v1", manifest),
        blob_path(sha256(b"one")),
    ):
        make_folder_of(disk, path, inside)
    answer = disk.collect(*mode)
    assert answer.exit_code in (0, 3)
    assert disk.has(blob_path(manifest))
    assert disk.has(revision_path("r", manifest))
