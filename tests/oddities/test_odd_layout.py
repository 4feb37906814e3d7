"""Every oddity of layout that FACTS.md names, and how a collection answers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from model import V2
from oddities.support import BOTH, Mode, layer
from registry_tree import (
    OCI_LAYER,
    OCI_MANIFEST,
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


def unremovable(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Have the system refuse to remove folders with *part* in their paths, as `chattr +a` does."""
    really = os.rmdir

    def remove(path: str, *more: object, **named: object) -> None:
        if part in str(path):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        really(path)

    monkeypatch.setattr(os, "rmdir", remove)


@pytest.mark.parametrize(
    ("part", "emptied", "left"),
    [("/blobs/", 2, []), ("/b/_layers", 1, ["b"]), ("/_", 0, ["a", "b"])],
)
def test_a_folder_that_cannot_be_removed_is_all_that_stays(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, part: str, emptied: int, left: list[str]
) -> None:
    for name in ("a", "b"):
        disk.tree.image(name, layers=[name.encode()])
    unremovable(monkeypatch, part)
    result = disk.collect("-m")
    assert (result.exit_code, result.json["repositories"]["emptied"]) == (0, emptied)
    assert "some empty folders stay: " in result.errors
    assert sorted(os.listdir(disk.root / repository_path(""))) == [*left, "kept"]


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


# A folder, a pipe, a socket or a device where a file is to be.

HOLDING = pytest.mark.parametrize("kind", ["empty folder", "folder", "pipe", "socket", "device"])


def make_no_file_of(disk: Disk, path: str, kind: str) -> str:
    place = disk.root / path
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(place.parent):
            server.bind(place.name)  # a whole path would be too long for one
    elif kind == "device":
        try:
            os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # endless zeros
        except PermissionError:
            place.symlink_to("/dev/zero")  # as good, for who is not root
    else:
        place.mkdir()
        if kind == "folder":
            (place / "stray").write_bytes(b"?")
    return path


def what(kind: str) -> str:
    """What is said of it."""
    return "a folder" if "folder" in kind else "neither a file nor a folder"


@HOLDING
def test_a_tag_whose_current_link_is_no_file_holds_its_repository(disk: Disk, kind: str) -> None:
    disk.tree.image("r", "v1", layers=[b"one"])
    disk.tree.image("r", None, layers=[b"two"])
    path = make_no_file_of(disk, tag_path("r", "v1"), kind)
    for _ in range(2):
        answer = disk.collect("-m")
        assert answer.exit_code == 3
        assert [held["repository"] for held in answer.json["held"]] == ["r"]
        assert path in [damaged["path"] for damaged in answer.json["damaged"]]
        assert disk.has(blob_path(sha256(b"one")))
        assert disk.has(blob_path(sha256(b"two")))


@HOLDING
def test_a_revision_whose_link_is_no_file_keeps_its_image(disk: Disk, kind: str) -> None:
    manifest = disk.tree.image("r", None, layers=[b"one"])
    path = make_no_file_of(disk, revision_path("r", manifest), kind)
    for _ in range(2):
        answer = disk.collect()
        assert answer.exit_code == 3
        assert [damaged["path"] for damaged in answer.json["damaged"]] == [path]
        assert disk.has(blob_path(sha256(b"one")))
        assert disk.has(blob_path(manifest))


@BOTH
@HOLDING
def test_a_manifest_whose_data_is_no_file_holds_its_repository(
    disk: Disk, mode: Mode, kind: str
) -> None:
    manifest = disk.tree.image("r", "v1", layers=[b"one"])
    make_no_file_of(disk, blob_path(manifest), kind)
    for _ in range(2):
        answer = disk.collect(*mode)
        assert answer.exit_code == 3
        (held,) = answer.json["held"]
        assert (held["repository"], held["reason"]) == ("r", f"its data is {what(kind)}")
        assert disk.has(blob_path(sha256(b"one")))


@BOTH
@HOLDING
def test_other_links_that_are_no_files_end_no_run(disk: Disk, mode: Mode, kind: str) -> None:
    manifest = disk.tree.image("r", "v1", layers=[b"one"])
    for path in (
        layer_link_path("r", sha256(b"one")),
        tag_index_path("r", "v1", manifest),
        blob_path(sha256(b"one")),
    ):
        make_no_file_of(disk, path, kind)
    answer = disk.collect(*mode)
    assert answer.exit_code in (0, 3)
    assert disk.has(blob_path(manifest))
    assert disk.has(revision_path("r", manifest))


@BOTH
@HOLDING
def test_what_is_no_file_is_no_blob_and_never_goes(disk: Disk, mode: Mode, kind: str) -> None:
    disk.tree.blob(b"nobody needs it")
    disk.tree.blob(b"nor this")
    path = make_no_file_of(disk, blob_path(sha256(b"nobody needs it")), kind)
    answer = disk.collect(*mode)
    assert (answer.exit_code, answer.json["blobs"]["deleted"]) == (0, 1)
    assert os.path.lexists(disk.root / path)
    assert not disk.has_blob(sha256(b"nor this"))
    assert disk.collect(*mode).json["blobs"]["eligible"] == 0


@HOLDING
def test_a_second_opinion_misses_a_layer_that_is_no_file(disk: Disk, kind: str) -> None:
    disk.tree.image("r", "v1", layers=[b"one"])
    path = make_no_file_of(disk, blob_path(sha256(b"one")), kind)
    answer = disk.collect("-m", "--verify")
    assert (answer.exit_code, answer.json["verified"]["faults"]) == (3, 1)
    assert os.path.lexists(disk.root / path)


@BOTH
@HOLDING
def test_an_upload_with_what_is_no_file_ends_no_run(disk: Disk, mode: Mode, kind: str) -> None:
    disk.tree.upload("r", "u", None, b"half")
    disk.tree.blob(b"nobody needs it")
    make_no_file_of(disk, f"{repository_path('r')}/_uploads/u/data", kind)
    answer = disk.collect(*mode)
    assert answer.exit_code in (0, 3)
    assert not disk.has_blob(sha256(b"nobody needs it"))
