"""Parts of a registry that lie elsewhere: symlinks are followed, a second name fails the run."""

from __future__ import annotations

import pytest

from model import V2
from oddities.support import BOTH, Mode
from registry_tree import layer_link_path, repository_path, sha256
from running import Disk, collect


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
