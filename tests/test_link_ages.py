"""Links that are told by name: of which the age is asked for, and what that changes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from registry_drivers.base import Entry, Named, Page
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.cli.main import registry_gc
from registry_tree import (
    blob_path,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)
from running import Disk, Result, collect, write_config
from windows import windows


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A registry that is as one with very many links to those who list it."""
    with windows({"marking.link_ages.FEW": 0}):
        yield Disk(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the links name that were looked at."""
    found: list[str] = []
    among, stat_many = FilesystemStorage.list_among, FilesystemStorage.stat_many

    def spy(self: FilesystemStorage, named: Sequence[Named]) -> Iterator[Page]:
        found.extend(f"sha256:{name}" for _, names in named for name in names)
        return among(self, named)

    def spy_stat(self: FilesystemStorage, paths: Sequence[str]) -> Sequence[Entry | None]:
        found.extend(f"sha256:{path[-69:-5]}" for path in paths if path.endswith("/link"))
        return stat_many(self, paths)

    monkeypatch.setattr(FilesystemStorage, "list_among", spy)
    monkeypatch.setattr(FilesystemStorage, "stat_many", spy_stat)
    return found


def run(disk: Disk, *arguments: str) -> Result:
    """Collect as it is, in this process."""
    return collect(disk.root, "--workers", "1", *arguments)


def touch(disk: Disk, path: str) -> None:
    """Write a link anew."""
    os.utime(disk.root / path)


def test_links_of_live_layers_are_not_looked_at(disk: Disk, asked: list[str]) -> None:
    disk.tree.image("a", "v1", layers=[b"live", b"shared"])
    disk.tree.image("b", "v1", layers=[b"shared"])
    disk.tree.layer("b", b"dead")
    disk.age()
    result = run(disk)
    assert asked == [sha256(b"dead")]
    assert result.exit_code == 0
    assert result.json["layer_links"] == {"eligible": 1, "deleted": 1}
    assert result.json["blobs"]["deleted"] == 1
    assert run(disk, "--dry-run").json["layer_links"]["eligible"] == 0
    assert asked == [sha256(b"dead")]


def test_where_there_are_few_all_are_looked_at(tmp_path: Path, asked: list[str]) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.write(layer_link_path("a", sha256(b"live")), b"")
    disk.age()
    result = run(disk, "--dry-run")
    assert sha256(b"live") in asked
    assert [row["path"] for row in result.json["damaged"]] == [
        layer_link_path("a", sha256(b"live"))
    ]


@pytest.mark.parametrize("content", [b"", b"sha256:12", None], ids=["empty", "cut", "missing"])
def test_a_damaged_link_of_a_live_layer_loses_nothing_and_is_found_on_request(
    disk: Disk, content: bytes | None
) -> None:
    image = disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("a", b"dead")
    path = layer_link_path("a", sha256(b"live"))
    before = (disk.root / path).read_bytes()
    disk.remove(path) if content is None else disk.write(path, content)
    disk.age()
    result = run(disk)
    assert result.exit_code == 0
    assert result.json["blobs"]["deleted"] == 1
    again = run(disk, "--dry-run", "--verify")
    assert [row["path"] for row in again.json["damaged"]] == [path] * (content is not None)
    assert again.exit_code == 3
    disk.write(path, before)
    assert disk.has_image("a", image)


@pytest.mark.parametrize("content", [b"", b"sha256:12"], ids=["empty", "cut"])
def test_a_damaged_link_that_nothing_needs_goes_and_is_told(disk: Disk, content: bytes) -> None:
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("a", b"dead")
    path = layer_link_path("a", sha256(b"dead"))
    disk.write(path, content)
    disk.age()
    result = run(disk)
    assert result.exit_code == 3
    assert [row["path"] for row in result.json["damaged"]] == [path]
    assert not disk.has(path)


def test_a_folder_without_its_link_is_no_link_and_is_tidied_away(disk: Disk) -> None:
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("a", b"dead")
    path = layer_link_path("a", sha256(b"dead"))
    disk.remove(path)
    disk.age()
    result = run(disk)
    assert result.exit_code == 0
    assert result.json["layer_links"] == {"eligible": 0, "deleted": 0}
    assert not (disk.root / path).parent.exists()


@pytest.mark.parametrize("level", [1, 2, 3, 4], ids=["link", "digest", "algorithm", "layers"])
def test_what_vanishes_before_it_is_asked_for_makes_nothing_dead(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    """Only a link that goes and leaves its folder is known to be none; a disk may go."""
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("b", b"doubtful")
    disk.tree.layer("c", b"dead")
    disk.age()
    among = FilesystemStorage.list_among
    lost = disk.root / layer_link_path("b", sha256(b"doubtful"))

    def lose(self: FilesystemStorage, named: Sequence[Named]) -> Iterator[Page]:
        lost.unlink()
        if level > 1:
            shutil.rmtree(lost.parents[level - 2])
        return among(self, named)

    monkeypatch.setattr(FilesystemStorage, "list_among", lose)
    result = run(disk)
    assert result.exit_code == 0
    assert not disk.has_blob(sha256(b"dead"))
    assert disk.has_blob(sha256(b"doubtful")) == (level > 1)


def test_when_all_repositories_vanish_before_links_are_asked_for_nothing_goes(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("b", b"doubtful")
    disk.age()
    among = FilesystemStorage.list_among
    away = disk.root.with_name("away")

    def unmount(self: FilesystemStorage, named: Sequence[Named]) -> Iterator[Page]:
        (disk.root / repository_path("b")).parent.rename(away)
        return among(self, named)

    monkeypatch.setattr(FilesystemStorage, "list_among", unmount)
    result = run(disk)
    assert result.json["blobs"]["deleted"] == 0
    assert disk.has_blob(sha256(b"doubtful"))
    assert disk.has_blob(sha256(b"live"))


def test_a_young_link_keeps_what_it_names_and_every_link_to_it(disk: Disk) -> None:
    """Where it is needed itself, too: the age of a digest is that of its youngest link."""
    disk.tree.image("needs", "v1", layers=[b"shared"])
    disk.tree.layer("alone", b"shared")
    disk.tree.layer("alone", b"fresh")
    disk.tree.layer("alone", b"dead")
    disk.age()
    touch(disk, layer_link_path("needs", sha256(b"shared")))
    touch(disk, layer_link_path("alone", sha256(b"fresh")))
    result = run(disk, "--grace", "1h")
    assert disk.has_layer("alone", sha256(b"shared"))
    assert disk.has_layer("alone", sha256(b"fresh"))
    assert not disk.has_layer("alone", sha256(b"dead"))
    assert result.json["blobs"]["deleted"] == 1


def test_a_young_link_to_a_manifest_keeps_it_with_all_that_it_names(disk: Disk) -> None:
    """Registries before 2.1 linked manifests under ``_layers`` too."""
    image = disk.tree.image("a", layers=[b"layer"])
    other = disk.tree.image("a", layers=[b"other"])
    disk.tree.image("a", "v1", layers=[b"live"])
    for digest in (image, other):
        disk.tree.link_layer("b", digest)
    disk.age()
    touch(disk, layer_link_path("b", image))
    run(disk, "-m", "--grace", "1h")
    assert disk.has_image("a", image)
    assert not disk.has(revision_path("a", other))
    assert not disk.has_blob(sha256(b"other"))


def test_a_young_link_that_is_needed_itself_keeps_what_is_dead_elsewhere(disk: Disk) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    disk.tree.image("a", "v1", layers=[b"new"])
    layer = {"mediaType": "application/x", "digest": old, "size": 9}
    disk.tree.image("b", "v1", layers=[], extra={"layers": [layer]})
    disk.tree.link_layer("b", old)
    disk.age()
    touch(disk, layer_link_path("b", old))
    result = run(disk, "-m", "--grace", "1h")
    assert result.json["manifests"]["deleted"] == 0
    assert disk.has_image("a", old)
    disk.age()
    assert run(disk, "-m", "--grace", "1h").json["manifests"]["deleted"] == 1


def test_a_link_whose_name_is_of_another_algorithm_is_always_looked_at(disk: Disk) -> None:
    data = b"by another name"
    disk.tree.blob(data)
    disk.tree.link_layer("a", sha256(data))
    disk.tree.link_layer("a", sha512(data), sha256(data))
    layer = {"mediaType": "application/x", "digest": sha512(data), "size": len(data)}
    disk.tree.image("a", "v1", layers=[], extra={"layers": [layer]})
    disk.age()
    assert run(disk).exit_code == 0
    assert disk.has_layer("a", sha256(data))
    assert disk.has_link("a", sha512(data))


def test_in_a_held_repository_links_are_looked_at_as_well(disk: Disk, asked: list[str]) -> None:
    """What its repair would free depends on their ages."""
    image = disk.tree.image("a", "v1", layers=[b"live"])
    encoded = image.partition(":")[2]
    disk.write(f"docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data", b"{")
    disk.tree.image("a", "v2", layers=[b"needed"])
    disk.age()
    result = run(disk, "--dry-run")
    assert result.held == {"a"}
    assert sha256(b"needed") in asked


def test_symbolic_links_among_layers_are_followed(disk: Disk, tmp_path: Path) -> None:
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("a", b"dead")
    disk.age()
    folder = (disk.root / layer_link_path("a", sha256(b"dead"))).parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    result = run(disk, "--dry-run")
    assert result.json["layer_links"]["eligible"] == 1
    (tmp_path / "elsewhere" / "link").unlink()
    (tmp_path / "elsewhere").rmdir()
    failed = run(disk, "--dry-run")
    assert failed.exit_code == 1
    assert str(folder.relative_to(disk.root)) in failed.errors


def test_a_run_that_goes_on_counts_only_links_that_are_new(disk: Disk) -> None:
    """Those that were not looked at in the first look are no news in the second."""
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.layer("a", b"dead")
    disk.tree.layer("a", b"again")
    disk.age()
    plan = disk.root.with_name("plan")

    def call(*words: str) -> Any:
        state = ["--state-dir", str(disk.root.with_name("state"))]
        return CliRunner().invoke(registry_gc, [*words, *state])

    made = call("plan", str(write_config(disk.root)), "-o", str(plan))
    assert made.exit_code == 0, made.output
    # A clock that is a day slow: only that its time is another one tells that this is new.
    path = disk.root / layer_link_path("a", sha256(b"again"))
    then = time.time() - 86_400
    os.utime(path, (then, then))
    done = call("apply", str(plan))
    assert done.exit_code == 0, done.output
    assert "1 links are new" in done.stderr
    assert disk.has_layer("a", sha256(b"again"))
    assert not disk.has_layer("a", sha256(b"dead"))
    assert disk.has_layer("a", sha256(b"live"))


def test_a_repository_of_nothing_but_dead_links_is_emptied(disk: Disk) -> None:
    disk.tree.layer("only/layers", b"dead")
    disk.tree.image("a", "v1", layers=[b"live"])
    disk.age()
    result = run(disk)
    assert result.json["repositories"] == {"total": 2, "emptied": 1}
    assert not (disk.root / repository_path("only/layers")).exists()


def test_entries_of_histories_are_not_looked_at_where_what_they_name_lives_on(
    disk: Disk, asked: list[str]
) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    new = disk.tree.image("a", "v1", layers=[b"new"])
    disk.age()
    assert run(disk, "--dry-run").exit_code == 0
    assert asked == []
    # With -m the old one goes, unless somebody has set the tag to it lately.
    result = run(disk, "-m")
    assert asked == [old, sha256(b"old")] or asked == [sha256(b"old"), old]
    assert result.exit_code == 0
    assert result.json["manifests"]["deleted"] == 1
    assert not (disk.root / tag_index_path("a", "v1", old)).parent.exists()
    assert disk.has(tag_index_path("a", "v1", new))


def test_a_young_entry_of_a_history_keeps_what_it_names(disk: Disk) -> None:
    """In whatever repository, linked there or not: as a manifest, and with all that it needs."""
    old = disk.tree.image("a", "v1", layers=[b"old"])
    unlinked = disk.tree.image("a", "v2", layers=[b"unlinked"])
    gone = disk.tree.image("a", "v3", layers=[b"gone"])
    for tag in ("v1", "v2", "v3"):
        disk.tree.image("a", tag, layers=[b"new"])
    copy = disk.tree.image("b", layers=[b"old"])
    assert copy == old
    disk.remove(revision_path("a", unlinked))
    disk.age()
    touch(disk, tag_index_path("a", "v1", old))
    touch(disk, tag_index_path("a", "v2", unlinked))
    run(disk, "-m", "--grace", "1h")
    assert disk.has_image("a", old)
    assert disk.has(revision_path("b", old))
    assert disk.has_blob(unlinked)
    assert disk.has_blob(sha256(b"unlinked"))
    assert not disk.has_blob(gone)
    assert not disk.has_blob(sha256(b"gone"))


def test_an_entry_that_lives_keeps_the_manifest_that_is_dead_elsewhere(disk: Disk) -> None:
    """Where it is young: nothing of a young digest goes, in no repository."""
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.tree.image("b", layers=[b"layer"])
    disk.age()
    touch(disk, tag_index_path("a", "v1", image))
    assert run(disk, "-m", "--grace", "1h", "--dry-run").json["manifests"]["eligible"] == 0
    disk.age()
    assert run(disk, "-m", "--grace", "1h", "--dry-run").json["manifests"]["eligible"] == 1


def test_an_entry_that_lives_keeps_a_layer_link_to_its_manifest(disk: Disk) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.tree.link_layer("b", image)
    disk.age()
    touch(disk, tag_index_path("a", "v1", image))
    assert run(disk, "--grace", "1h", "--dry-run").json["layer_links"]["eligible"] == 0
    disk.age()
    assert run(disk, "--grace", "1h", "--dry-run").json["layer_links"]["eligible"] == 1


def test_whether_a_lost_target_was_ever_pushed_is_told_by_its_link(disk: Disk) -> None:
    """Not by the folder that a link had: who holds the tag's repository keeps too much."""
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.tree.layer("a", b"dead")
    encoded = image.partition(":")[2]
    disk.remove(f"docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data")
    disk.age()
    assert run(disk, "--dry-run").held == set()
    disk.remove(tag_index_path("a", "v1", image))
    assert run(disk, "--dry-run").held == {"a"}


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "missing"])
def test_a_damaged_entry_of_a_history_is_told_where_it_would_go(
    disk: Disk, content: bytes | None
) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    new = disk.tree.image("a", "v1", layers=[b"new"])
    for digest in (old, new):
        path = tag_index_path("a", "v1", digest)
        disk.remove(path) if content is None else disk.write(path, content)
    disk.age()
    told = [tag_index_path("a", "v1", old)] * (content is not None)
    assert [row["path"] for row in run(disk, "--dry-run", "-m").json["damaged"]] == told
    result = run(disk, "-m")
    assert result.json["manifests"]["deleted"] == 1
    assert not (disk.root / tag_index_path("a", "v1", old)).parent.exists()
    assert disk.has(tag_path("a", "v1"))
    assert disk.has_image("a", new)


def test_what_is_where_an_entry_was_stays_and_keeps_the_repository(disk: Disk) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    disk.tree.image("a", "v1", layers=[b"new"])
    path = tag_index_path("a", "v1", old)
    disk.remove(path)
    disk.write(path.removesuffix("link") + "other", b"not ours")
    disk.age()
    result = run(disk, "-m")
    assert result.exit_code == 0
    assert result.json["strangers"] == 1
    assert disk.has(path.removesuffix("link") + "other")
    assert not disk.has(revision_path("a", old))


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5], ids=["link", "digest", "sha256", "index", "tag"])
def test_a_history_that_vanishes_before_it_is_asked_for_makes_nothing_dead(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, level: int
) -> None:
    old = disk.tree.image("a", "v1", layers=[b"old"])
    disk.tree.image("a", "v1", layers=[b"new"])
    disk.age()
    stat_many = FilesystemStorage.stat_many
    lost = disk.root / tag_index_path("a", "v1", old)

    def lose(self: FilesystemStorage, paths: Sequence[str]) -> Sequence[Entry | None]:
        if lost.exists():
            lost.unlink()
            if level > 1:
                shutil.rmtree(lost.parents[level - 2])
        return stat_many(self, paths)

    monkeypatch.setattr(FilesystemStorage, "stat_many", lose)
    assert run(disk, "-m").exit_code == 0
    assert disk.has_image("a", old) == (level > 1)


def test_many_histories_are_looked_at_in_their_folders(disk: Disk) -> None:
    """Some of very many tags, of several repositories, with names in an order of their own."""
    kept = []
    for name in ("a", "a-b", "a/b", "é"):
        for tag in ("B", "a", "a.b", "a_b", "b" * 128):
            old = disk.tree.image(name, tag, layers=[f"{name} {tag}".encode()])
            disk.tree.image(name, tag, layers=[b"new", f"{name} {tag}".encode()])
            kept.append((name, tag, old))
    disk.age()
    young = kept[::3]
    for name, tag, old in young:
        touch(disk, tag_index_path(name, tag, old))
    run(disk, "-m", "--grace", "1h")
    left = [(name, tag, old) for name, tag, old in kept if disk.has(tag_index_path(name, tag, old))]
    assert left == young
    assert [found for found in kept if disk.has(revision_path(found[0], found[2]))] == young


def test_of_a_signature_that_came_back_from_a_backup_no_link_goes(disk: Disk) -> None:
    """Its blob is young, and nothing of a young digest is dead, whatever it signed."""
    document = {"schemaVersion": 1, "fsLayers": [{"blobSum": disk.tree.layer("a", b"signed")}]}
    image = disk.tree.manifest("a", document, "v1")
    signature = disk.tree.blob(b"signature")
    encoded = signature.partition(":")[2]
    path = revision_path("a", image).removesuffix("link") + f"signatures/sha256/{encoded}/link"
    disk.write(path, signature.encode())
    disk.tree.image("a", "v1", layers=[b"new"])
    disk.age()
    touch(disk, blob_path(signature))
    run(disk, "-m", "--grace", "1h")
    assert not disk.has(revision_path("a", image))
    assert disk.has(path)
    assert disk.has_blob(signature)
    disk.age()
    run(disk, "-m", "--grace", "1h")
    assert not disk.has(path)
    assert not disk.has_blob(signature)


@pytest.mark.parametrize("others", [True, False], ids=["beside others", "alone"])
def test_what_is_only_young_keeps_what_refers_to_it(disk: Disk, others: bool) -> None:
    """A restored manifest that nobody links, also where nothing at all is live."""
    if others:
        disk.tree.image("b", "v1", layers=[b"live"])
    subject = disk.tree.image("a", layers=[b"subject"])
    referrer = disk.tree.image("a", layers=[b"sbom"], subject=subject)
    disk.remove(revision_path("a", subject))
    disk.age()
    touch(disk, blob_path(subject))
    run(disk, "-m", "--grace", "1h", "--allow-empty")
    assert disk.has_image("a", referrer)
    assert disk.has_blob(subject)
    disk.age()
    run(disk, "-m", "--grace", "1h", "--allow-empty")
    assert not disk.has_blob(referrer)


def test_a_young_entry_keeps_old_ones_where_the_manifest_is_no_longer_linked(disk: Disk) -> None:
    image = disk.tree.image("a", "v1", layers=[b"layer"])
    disk.tree.image("b", "v1", layers=[b"layer"])
    disk.tree.image("b", "v1", layers=[b"other"])
    disk.remove(revision_path("b", image))
    disk.age()
    touch(disk, tag_index_path("a", "v1", image))
    for words in ([], ["-m"]):
        run(disk, "--grace", "1h", *words)
        assert disk.has(tag_index_path("b", "v1", image))
    disk.age()
    run(disk, "--grace", "1h")
    assert not disk.has(tag_index_path("b", "v1", image))
    assert disk.has_image("a", image)


@pytest.mark.parametrize("how", ["layer", "entry"])
def test_a_young_link_of_what_lives_elsewhere_keeps_a_signature_link(disk: Disk, how: str) -> None:
    disk.tree.image("a", "v1", layers=[b"signature"])
    image = disk.tree.image("a", "v2", layers=[b"x"])
    named = image if how == "entry" else sha256(b"signature")
    document = {"schemaVersion": 1, "fsLayers": [], "history": []}
    signed = disk.tree.manifest("b", document)
    path = revision_path("b", signed).removesuffix("link")
    path += f"signatures/{named.replace(':', '/')}/link"
    disk.write(path, named.encode())
    disk.age()
    young = tag_index_path("a", "v2", image) if how == "entry" else layer_link_path("a", named)
    touch(disk, young)
    result = run(disk, "-m", "--grace", "1h")
    assert disk.has(path)
    assert not disk.has_blob(signed)
    # And the repository in which it lies.
    assert result.json["repositories"] == {"total": 2, "emptied": 0}
    disk.age()
    result = run(disk, "-m", "--grace", "1h")
    assert not disk.has(path)
    assert result.json["repositories"] == {"total": 2, "emptied": 1}
