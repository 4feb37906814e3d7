"""What comes back for a run, a repository, a tag or a digest, and what a restore never does."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from aside import DAY, Registry
from registry_drivers import filesystem_write
from registry_drivers.errors import StorageError
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.lock import Lock
from registry_gc.quarantine.restore import UnknownWhat, What
from registry_tree import (
    V2,
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


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """On disk, with one image that is tagged."""
    made = Registry(tmp_path, None)
    made.tree().image("app", "v1", layers=[b"base", b"one"], config=b'"one"')
    return made


def test_a_tag_brings_back_what_it_once_pointed_to(registry: Registry) -> None:
    tree = registry.tree()
    old = [tree.image("app", "latest", layers=[b"base", b"%d" % n]) for n in range(3)]
    other = tree.image("app", layers=[b"base", b"never tagged"])
    registry.quarantine()
    assert [registry.can_pull("app", digest) for digest in old] == [False, False, True]
    done = registry.command("restore", "app:latest")
    assert (done.exit_code, done.json["failed"], done.json["lost"]) == (0, [], [])
    assert done.json["restored"] == {
        "blob": 4, "layer link": 2, "manifest": 2, "tag history": 2,
    }  # fmt: skip
    assert all(registry.can_pull("app", digest) for digest in old)
    assert not registry.can_pull("app", other)
    assert registry.files()[tag_path("app", "latest")] == old[2].encode()


def test_a_digest_brings_back_an_index_with_its_children_and_what_refers_to_them(
    registry: Registry,
) -> None:
    tree = registry.tree()
    children = [tree.image("app", layers=[b"base", arch]) for arch in (b"arm", b"x86")]
    index = tree.index("app", None, children)
    signature = tree.image("app", layers=[b"signature"], config=b'"sig"', subject=index)
    of_signature = tree.image("app", layers=[b"about it"], config=b'"about"', subject=signature)
    other = tree.image("app", layers=[b"another"], config=b'"other"')
    before = registry.files()
    registry.quarantine()
    done = registry.command("restore", index)
    assert done.exit_code == 0
    assert all(registry.can_pull("app", d) for d in (index, signature, of_signature))
    assert not registry.can_pull("app", other)
    after = registry.files()
    missing = before.keys() - after.keys()
    theirs = [b"another", b'"other"', before[blob_path(other)]]
    assert missing == {blob_path(sha256(data)) for data in theirs} | {
        revision_path("app", other),
        layer_link_path("app", sha256(b"another")),
        layer_link_path("app", sha256(b'"other"')),
    }


def test_a_digest_comes_back_in_every_repository_or_in_one_that_is_named(
    registry: Registry,
) -> None:
    tree = registry.tree()
    (digest,) = {tree.image(name, layers=[b"shared"]) for name in ("a", "a/b", "c")}
    registry.quarantine()
    assert registry.command("restore", f"a/b@{digest}").exit_code == 0
    pulls = [registry.can_pull(name, digest) for name in ("a", "a/b", "c")]
    assert pulls == [False, True, False]
    assert registry.command("restore", digest).exit_code == 0
    assert all(registry.can_pull(name, digest) for name in ("a", "a/b", "c"))


def test_a_layer_comes_back_with_its_links_and_nothing_else(registry: Registry) -> None:
    tree = registry.tree()
    layer = tree.layer("a", b"a layer and no manifest")
    tree.layer("a", b"another")
    registry.quarantine()
    done = registry.command("restore", layer)
    assert done.json["restored"] == {"blob": 1, "layer link": 1}
    assert {blob_path(layer), layer_link_path("a", layer)} <= registry.files().keys()


def test_a_repository_comes_back_without_those_inside_its_folder(registry: Registry) -> None:
    tree = registry.tree()
    inside = tree.image("a/b", layers=[b"inside"], config=b'"inside"')
    of_a = [tree.image("a", layers=[b"%d" % n]) for n in range(2)]
    tree.layer("a", b"a layer and no manifest")
    before = {path: data for path, data in registry.files().items() if "/a/_" in path}
    registry.quarantine()
    assert registry.command("restore", "a").exit_code == 0
    assert all(registry.can_pull("a", digest) for digest in of_a)
    assert not registry.can_pull("a/b", inside)
    assert before.items() <= registry.files().items()


def test_what_is_named_by_sha512_comes_back_under_both_names(registry: Registry) -> None:
    tree = registry.tree()
    name, stored = sha512(b"layer"), tree.layer("a", b"layer")
    tree.link_layer("a", name, stored)
    layer = {"mediaType": "application/x", "digest": name, "size": 5}
    digest = tree.image("a", layers=[], extra={"layers": [layer]})
    before = registry.files()
    registry.quarantine()
    assert registry.command("restore", digest).exit_code == 0
    assert registry.files() == before


def test_signatures_of_schema_1_come_back_with_their_manifest(registry: Registry) -> None:
    tree = registry.tree()
    layer, signature = tree.layer("a", b"layer"), tree.blob(b"signature")
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    document = {"schemaVersion": 1, "mediaType": kind, "fsLayers": [{"blobSum": layer}]}
    digest = tree.manifest("a", document)
    link = revision_path("a", digest).replace("/link", "/signatures/")
    tree.write(f"{link}{signature.replace(':', '/')}/link", signature.encode())
    before = registry.files()
    registry.quarantine()
    assert not any(path.startswith(repository_path("a") + "/_") for path in registry.files())
    assert registry.command("restore", f"a@{digest}").exit_code == 0
    assert registry.files() == before


def test_a_restore_overwrites_nothing(registry: Registry) -> None:
    tree = registry.tree()
    digest = tree.image("a", "latest", layers=[b"layer"])
    now = tree.image("a", "latest", layers=[b"new"])
    registry.quarantine()
    changed = {
        revision_path("a", digest): b"what somebody wrote",
        blob_path(sha256(b"layer")): b"layer",
    }
    registry.write(changed)
    done = registry.command("restore", "a:latest")
    assert (done.exit_code, done.json["already_there"]) == (0, 2)
    files = registry.files()
    assert changed.items() <= files.items()
    assert files[tag_path("a", "latest")] == now.encode()
    assert tag_index_path("a", "latest", digest) in files
    # What was there already stays aside as well, until a purge.
    assert registry.quarantined() == changed.keys()


def test_a_link_whose_blob_is_nowhere_stays_aside(registry: Registry) -> None:
    tree = registry.tree()
    digest = tree.image("a", layers=[b"layer"], config=b'"a"')
    run = registry.quarantine().json["run"]
    home = f"docker/registry/registry-gc/quarantine/{run}/"
    registry.remove(home + blob_path(sha256(b"layer")))
    done = registry.command("restore", digest)
    lost = layer_link_path("a", sha256(b"layer"))
    assert done.exit_code == 3
    assert [row["path"] for row in done.json["lost"]] == [lost]
    assert lost not in registry.files()
    assert lost in registry.quarantined()


def test_a_link_whose_blob_could_not_be_moved_has_failed_and_is_not_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = registry.tree()
    digest = tree.image("a", layers=[b"layer"], config=b'"a"')
    registry.quarantine()
    path = blob_path(sha256(b"layer"))
    really = FilesystemStorage.move

    def move(self: FilesystemStorage, source: str, target: str) -> None:
        if target == path:
            raise StorageError("No space left on device", path=target, driver="filesystem")
        really(self, source, target)

    monkeypatch.setattr(FilesystemStorage, "move", move)
    done = registry.command("restore", digest)
    link = layer_link_path("a", sha256(b"layer"))
    assert (done.exit_code, done.json["lost"]) == (3, [])
    assert {row["path"]: row["error"] for row in done.json["failed"]} == {
        path: "No space left on device",
        link: "its blob could not be brought back",
    }
    assert {path, link} <= registry.quarantined()
    # What was a full disk has room again.
    monkeypatch.undo()
    assert registry.command("restore", digest).exit_code == 0
    assert registry.can_pull("a", digest)


def test_a_quarantine_that_a_full_disk_had_no_room_for_leaves_no_folder(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.tree().image("a", layers=[b"layer"], config=b'"a"')
    home = registry.root / "docker/registry/registry-gc/quarantine"
    really = filesystem_write._create

    def create(path: str, data: bytes) -> None:
        if path.startswith(str(home)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        really(path, data)

    monkeypatch.setattr(filesystem_write, "_create", create)
    before = registry.files()
    assert registry.collect("-m", "--quarantine", "7d").exit_code == 1
    assert registry.files() == before
    assert not home.exists()
    # Those that earlier versions have left go with the next run.
    monkeypatch.undo()
    empty = home / "2f1e7a4c-0000-4000-8000-000000000000"
    empty.mkdir(parents=True)
    registry.quarantine()
    assert not empty.exists()
    assert registry.quarantined()


def damage(registry: Registry, digest: str, data: bytes) -> str:
    """Spoil a blob that the only run has set aside; returns its path."""
    (path,) = (path for path in registry.own() if path.endswith(blob_path(digest)))
    (registry.root / path).write_bytes(data)
    return blob_path(digest)


@pytest.mark.parametrize("spoil", ["cut", "other"])
@pytest.mark.parametrize("by", ["digest", "tag", "repository"])
def test_a_manifest_that_is_damaged_stays_aside_with_its_links(
    registry: Registry, spoil: str, by: str
) -> None:
    tree = registry.tree()
    whole = tree.image("a", "v1", layers=[b"layer"], config=b'"a"')
    digest = tree.image("a", "v1", layers=[b"layer", b"more"], config=b'"b"')
    tree.image("a", "v1", layers=[b"kept"], config=b'"c"')
    data = registry.files()[blob_path(digest)]
    registry.quarantine()
    bad = data[:50] if spoil == "cut" else data.replace(b"application", b"applicatiom")
    path = damage(registry, digest, bad)
    before = registry.files()
    what = {"digest": f"a@{digest}", "tag": "a:v1", "repository": "a"}[by]
    for option in ["--dry-run"], []:
        done = registry.command("restore", what, *option)
        assert [row["path"] for row in done.json["lost"]] == [path]
        assert "digest" in done.json["lost"][0]["reason"]
        assert done.exit_code == (0 if option else 3)
    assert registry.can_pull("a", whole) is (by != "digest")
    after = registry.files()
    assert not {path, revision_path("a", digest)} & after.keys()
    assert {path, revision_path("a", digest)} <= registry.quarantined()
    assert registry.collect("--dry-run").json["held"] == []
    if by == "digest":
        assert after == before


def place_of(registry: Registry, run: str, digest: str) -> str:
    return f"docker/registry/registry-gc/quarantine/{run}/{blob_path(digest)}"


def test_an_empty_blob_in_the_place_of_another_is_none(registry: Registry) -> None:
    """As Azure leaves where a copy fails."""
    tree = registry.tree()
    digest = tree.image("a", layers=[b"layer", b""], config=b'"a"')
    registry.quarantine()
    layer = blob_path(sha256(b"layer"))
    registry.write({layer: b""})
    assert registry.command("restore", digest, "--dry-run").json["already_there"] == 0
    done = registry.command("restore", digest)
    assert (done.exit_code, done.json["lost"]) == (0, [])
    assert registry.files()[layer] == b"layer"
    assert registry.files()[blob_path(sha256(b""))] == b""
    assert registry.can_pull("a", digest)


def test_what_is_live_takes_the_place_of_an_empty_blob_before_a_purge(registry: Registry) -> None:
    digest = registry.tree().image("a", layers=[b"layer"], config=b'"a"')
    registry.quarantine()
    # Tagged again, and the copy that was to bring its layer back has failed.
    layer = blob_path(sha256(b"layer"))
    registry.write({tag_path("a", "back"): digest.encode(), layer: b""})
    registry.later = 8 * DAY
    purged = registry.purge()
    assert (purged.exit_code, purged.json["recalled"]) == (0, 6)
    assert registry.files()[layer] == b"layer"
    assert registry.can_pull("a", digest)


def test_what_was_set_aside_whole_comes_back_whoever_failed_to(registry: Registry) -> None:
    digest = registry.tree().image("a", layers=[b"layer"], config=b'"a"')
    run = registry.quarantine().json["run"]
    layer = sha256(b"layer")
    hollow = {place_of(registry, "younger", layer): b""}
    note = {"run": "younger", "began": 4e9, "moved": 4e9, "seconds": 1e6}
    home = "docker/registry/registry-gc/quarantine/younger/"
    registry.write({**hollow, home + "run.json": json.dumps(note).encode()})
    assert registry.command("restore", "younger").exit_code == 3
    done = registry.command("restore", digest)
    assert (done.exit_code, done.json["lost"]) == (0, [])
    assert registry.can_pull("a", digest)
    assert place_of(registry, run, layer) not in registry.own()


def test_a_digest_in_a_repository_that_never_had_it_is_nowhere(registry: Registry) -> None:
    digest = registry.tree().image("a", layers=[b"layer"], config=b'"a"')
    registry.quarantine()
    before = registry.files()
    for name in ("no/such", "app"):
        done = registry.command("restore", f"{name}@{digest}")
        assert done.exit_code == 1
        assert "nothing of that is in quarantine" in done.errors
    assert registry.files() == before
    assert registry.command("restore", f"a@{digest}").exit_code == 0


def test_what_was_set_aside_twice_comes_back_once(registry: Registry) -> None:
    tree = registry.tree()
    digest = tree.image("a", layers=[b"layer"])
    runs = [registry.quarantine().json["run"]]
    registry.tree().image("a", layers=[b"layer"])
    runs.append(registry.quarantine().json["run"])
    listed = registry.command("restore").json["runs"]
    assert {row["run"] for row in listed} == set(runs)
    assert all(row["seconds"] == 7 * 86400 for row in listed)
    done = registry.command("restore", digest)
    assert done.json["restored"] == {"blob": 3, "layer link": 2, "manifest": 1}
    assert registry.can_pull("a", digest)


@pytest.mark.parametrize("flag", ["--dry-run", "-d=true", None])
def test_a_dry_run_moves_nothing(
    registry: Registry, flag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.tree().image("a", layers=[b"layer"])
    registry.quarantine()
    before = registry.read()
    if flag is None:
        monkeypatch.setenv("RGC_DRY_RUN", "true")
    shown = registry.command("restore", digest, *([flag] if flag else [])).json
    monkeypatch.delenv("RGC_DRY_RUN", raising=False)
    assert registry.read() == before
    assert shown["restored"] == registry.command("restore", digest).json["restored"]


def test_a_registry_in_use_may_be_restored_into_and_a_run_under_way_not(
    registry: Registry,
) -> None:
    digest = registry.tree().image("a", layers=[b"layer"])
    registry.quarantine()
    with Lock.acquire(FilesystemStorage(str(registry.root)), "another", refresh_seconds=None):
        assert registry.command("restore", digest).exit_code == 4
    text = registry.config.read_text().replace("enabled: true", "enabled: false")
    registry.config.write_text(text)
    assert registry.command("restore", digest).exit_code == 0
    assert registry.can_pull("a", digest)


@pytest.mark.parametrize(
    "what", ["nowhere", "app:none", sha256(b"nothing"), "app@sha256:short", "a b:c:d", "/app", ":"]
)
def test_what_is_in_no_quarantine_or_cannot_be_meant_is_said(registry: Registry, what: str) -> None:
    registry.tree().image("a", layers=[b"layer"])
    registry.quarantine()
    before = registry.read()
    done = registry.command("restore", what)
    assert done.exit_code == 1
    assert what in done.errors
    assert registry.read() == before


def test_a_name_is_a_run_a_repository_a_tag_or_a_digest() -> None:
    digest = sha256(b"")
    assert What.parse("1-2", ["1-2"]) == What("1-2", run="1-2")
    runs = ["16b77678-1-2", "16b77678-1-3", "26b77678-1-2"]
    assert What.parse("26b77678", runs) == What("26b77678", run=runs[2])
    assert What.parse("16b77678", runs).repository == "16b77678"
    assert What.parse("26b7767", runs).repository == "26b7767"
    assert What.parse("a/b", []) == What("a/b", repository="a/b")
    assert What.parse("a/b:v1", []) == What("a/b:v1", repository="a/b", tag="v1")
    assert What.parse(digest, []) == What(digest, digest=digest)
    named = What.parse(f"a@{digest}", [])
    assert (named.repository, named.digest) == ("a", digest)
    with pytest.raises(UnknownWhat):
        What.parse("a:", [])


def test_a_repository_in_which_a_link_is_odd_comes_back_whole(registry: Registry) -> None:
    tree = registry.tree()
    digest = tree.image("a", layers=[b"layer"])
    run = registry.quarantine().json["run"]
    odd = f"{V2}/repositories/a/_manifests/something/else"
    where = registry.root / "docker/registry/registry-gc/quarantine" / run / odd
    os.makedirs(where.parent)
    where.write_text("of a later version")
    assert registry.command("restore", run).exit_code == 0
    assert registry.can_pull("a", digest)
    assert (registry.root / odd).read_text() == "of a later version"


def test_an_artifact_manifest_comes_back_with_its_blobs(registry: Registry) -> None:
    tree = registry.tree()
    blob = tree.layer("a", b"a chart")
    kind = "application/vnd.oci.artifact.manifest.v1+json"
    digest = tree.manifest(
        "a", json.dumps({"mediaType": kind, "blobs": [descriptor("x/y", blob, 7)]}).encode()
    )
    before = registry.files()
    registry.quarantine()
    registry.command("restore", f"a@{digest}")
    assert registry.files() == before


def test_what_came_back_is_counted_in_words_that_go_with_the_number(registry: Registry) -> None:
    tree = registry.tree()
    for number in range(2):
        tree.image("app", "v2", layers=[b"base", b"%d" % number], config=b'"%d"' % number)
    tree.image("app", "v2", layers=[b"base"], config=b'"2"')
    run = registry.quarantine().json["run"]
    said = "6 blobs, 4 layer links, 2 manifests, 2 tag histories ("
    assert f"restored {said}" in _as_text(registry, run)
    tree.image("b", "v1", layers=[], config=b'"other"')
    tree.image("b", "v1", layers=[b"base"])
    registry.quarantine()
    assert "restored 2 blobs, 1 layer link, 1 manifest, 1 tag history (" in _as_text(registry, "b")


def test_a_dry_run_counts_only_what_would_come_back(registry: Registry) -> None:
    tree = registry.tree()
    old = tree.image("app", "v1", layers=[b"base", b"two"], config=b'"two"')
    tree.image("app", "v1", layers=[b"base", b"three"], config=b'"three"')
    registry.quarantine()
    registry.write({blob_path(sha256(b"two")): b"two"})
    said = registry.command("restore", "--dry-run", f"app@{old}").json
    done = registry.command("restore", f"app@{old}").json
    assert said["already_there"] == done["already_there"] == 1
    assert said["restored"] == done["restored"]
    assert said["restored_bytes"] == done["restored_bytes"]


def _as_text(registry: Registry, what: str) -> str:
    from registry_gc.cli.main import registry_gc

    answer = CliRunner().invoke(registry_gc, ["restore", str(registry.config), what])
    assert answer.exit_code == 0
    return answer.stdout


@pytest.mark.parametrize("top", ["blobs", "blobs/sha256", "repositories"])
@pytest.mark.parametrize("left", [True, False])
def test_nothing_comes_back_to_where_a_disk_belongs(tmp_path: Path, top: str, left: bool) -> None:
    registry = Registry(tmp_path, None)
    registry.tree().image("app", "v1", layers=[b"stays"])
    digest = registry.tree().image("app", layers=[b"goes"], config=b'"goes"')
    registry.quarantine()
    place, away = registry.root / "docker/registry/v2" / top, tmp_path / "away"
    place.rename(away)
    if left:
        place.mkdir()
    before = registry.read()
    done = registry.command("restore", digest)
    assert done.exit_code == 4, done.errors
    assert f"nothing in {registry.root}/docker/registry/v2/" in done.errors
    assert registry.read() == before
    shutil.rmtree(place, ignore_errors=True)
    away.rename(place)
    assert registry.command("restore", digest).exit_code == 0
    assert registry.can_pull("app", digest)


def test_all_of_a_registry_comes_back_where_that_is_meant(tmp_path: Path) -> None:
    registry = Registry(tmp_path, None)
    digest = registry.tree().image("app", layers=[b"goes"])
    registry.quarantine("--allow-empty")
    assert registry.command("restore", digest).exit_code == 4
    assert registry.command("restore", digest, "--allow-empty").exit_code == 0
    assert registry.can_pull("app", digest)
