"""``registry-gc verify``: whole tags are whole, and whatever is missing is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings

from core_support import NOW, Store
from real import Layout, RealRegistry
from registry_drivers.base import Reader
from registry_drivers.errors import Unavailable
from registry_drivers.memory import MemoryStorage
from registry_gc.cli.main import registry_gc
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.verify import content
from registry_gc.verify.every_tag import Problem, TrueSizes, Verified, verify
from registry_gc.verify.wholeness import What
from registry_tree import (
    BUILDKIT_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
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
from running import Disk, fingerprint, write_config
from strategies import Registry, well_formed


def looked_at(
    storage: MemoryStorage, *, untagged: bool = False, read_all: bool = False
) -> Verified:
    """What verifying *storage* finds."""
    reader: Reader = TrueSizes(storage)
    return verify(reader, SerialEngine(reader), Silence(), untagged=untagged, content=read_all)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def whole(store: Store) -> Store:
    """One of everything that can be pulled whole."""
    tree = store.tree
    image = tree.image("a", "v1", layers=[b"one", b"two"])
    other = tree.image("a", layers=[b"one", b"three"])
    tree.index("a", "multi", [image, other])
    tree.image("a", layers=[b"signature"], subject=image)
    foreign = {**descriptor(OCI_LAYER, sha256(b"elsewhere"), 9), "urls": ["http://elsewhere/"]}
    tree.image("b", "windows", layers=[], extra={"layers": [foreign]})
    tree.link_layer("b", sha512(b"by sha512"), tree.blob(b"by sha512"))
    named = descriptor(OCI_LAYER, sha512(b"by sha512"), 9)
    tree.image("b", "sha512", layers=[], extra={"layers": [named]})
    cache = [
        descriptor(OCI_LAYER, tree.layer("cache", b"cached"), 6),
        descriptor(BUILDKIT_CONFIG, tree.layer("cache", b"config"), 6),
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": cache}
    tree.manifest("cache", document, "latest")
    layers = [{"blobSum": tree.layer("old", b"one")}]
    tree.manifest("old", {"schemaVersion": 1, "mediaType": SCHEMA1, "fsLayers": layers}, "v1")
    return store


@pytest.mark.parametrize("read_all", [False, True])
@pytest.mark.parametrize("untagged", [False, True])
def test_what_is_whole_has_no_faults(whole: Store, untagged: bool, read_all: bool) -> None:
    found = looked_at(whole.storage, untagged=untagged, read_all=read_all)
    assert found.problems == []
    assert found.missing_children == []
    assert found.broken == []
    assert (found.repositories, found.tags) == (4, 6)


@settings(max_examples=60)
@given(well_formed())
def test_a_well_formed_registry_is_whole(registry: Registry) -> None:
    storage = MemoryStorage(lambda: NOW)
    for path, file in registry.files.items():
        storage.put(path, file.data, NOW)
    found = looked_at(storage, untagged=True, read_all=True)
    # The strategy's images without a media type state wrong sizes; and there may be no manifest.
    empty = {What.TAG} if not found.manifests else set()
    assert {problem.what for problem in found.problems} <= {What.SIZE} | empty


def only(found: Verified) -> Problem:
    """The one problem that there is."""
    assert len(found.problems) == 1, found.problems
    return found.problems[0]


def test_every_file_that_a_pull_reads_is_missed_when_it_is_gone(whole: Store) -> None:
    """A tag's own link is what makes it a tag; its history nobody reads."""
    for path in whole.storage.snapshot():
        if "/tags/" in path:
            continue
        data = whole.storage.read(path)
        whole.remove(path)
        found = looked_at(whole.storage)
        if b'"subject"' in data:
            # Nobody can know that this was a signature, unless something tags it.
            assert found.problems == []
        elif "/revisions/" in path and not found.problems:
            # A child that is not linked is sparse; a signature without its link is nobody's.
            assert found.missing_children or _is_signature(whole, data)
        else:
            assert path in {problem.path for problem in found.problems}, path
        whole.write(path, data)
    assert looked_at(whole.storage).problems == []


def _is_signature(store: Store, link: bytes) -> bool:
    return b'"subject"' in store.storage.read(blob_path(link.decode()))


def test_every_byte_that_is_wrong_is_found_by_content(whole: Store) -> None:
    for path in whole.storage.snapshot():
        if "/tags/" in path:
            continue
        data = whole.storage.read(path)
        whole.write(path, bytes([data[0] ^ 1]) + data[1:])
        found = looked_at(whole.storage, read_all=True)
        # An alias that says something else leads to a blob that is not there.
        alias = "/_layers/sha512/" in path
        assert alias or path in {problem.path for problem in found.problems}, path
        assert found.problems
        whole.write(path, data)


@pytest.mark.parametrize("data", [b"", b"on", b"one and more"])
def test_a_layer_of_another_size_is_found_without_reading_it(store: Store, data: bytes) -> None:
    store.tree.image("a", "v1", layers=[b"one"])
    store.write(blob_path(sha256(b"one")), data)
    problem = only(looked_at(store.storage))
    assert problem.what is What.SIZE
    assert problem.reason == f"{len(data)} bytes, while 3 are stated"
    assert (problem.repository, problem.tag, problem.digest) == ("a", "v1", sha256(b"one"))


@pytest.mark.parametrize("stated", ["9223372036854775808", "1" * 5000, "-1", "1e400", "true"])
def test_a_size_that_no_file_has_is_none_at_all(store: Store, stated: str) -> None:
    """A collection reads no sizes, and takes such a manifest for a good one."""
    named = descriptor(OCI_LAYER, store.tree.layer("a", b"one"), 77)
    document = {"config": descriptor("", store.tree.layer("a", b"{}"), 2), "layers": [named]}
    data = json.dumps(document).replace('"size": 77', f'"size": {stated}')
    store.tree.manifest("a", data.encode(), "v1")
    assert looked_at(store.storage).problems == []


@pytest.mark.parametrize("link", [b"", b"sha256:cut", sha256(b"other").encode()])
def test_a_link_that_holds_something_else_is_no_link(store: Store, link: bytes) -> None:
    store.tree.image("a", "v1", layers=[b"one"])
    path = layer_link_path("a", sha256(b"one"))
    store.write(path, link)
    problem = only(looked_at(store.storage, read_all=True))
    assert (problem.what, problem.path) == (What.LAYER_LINK, path)


@pytest.mark.parametrize("held", [b"\0" * 71, b"%s\n"])
@pytest.mark.parametrize("which", ["revision", "layer", "tag"])
def test_a_link_on_a_disk_holds_a_digest_and_no_more(
    tmp_path: Path, which: str, held: bytes
) -> None:
    disk = Disk(tmp_path)
    image = disk.tree.image("a", "v1", layers=[b"one"])
    named, path = {
        "revision": (image, revision_path("a", image)),
        "layer": (sha256(b"one"), layer_link_path("a", sha256(b"one"))),
        "tag": (image, tag_path("a", "v1")),
    }[which]
    disk.write(path, held.replace(b"%s", named.encode()))
    code, text, _ = shown(write_config(disk.root), "--output", "json")
    found = json.loads(text)
    assert (code, found["broken_tags"]) == (3, ["a:v1"])
    assert [problem["path"] for problem in found["problems"]] == [path]


def test_a_tag_that_holds_no_digest_is_a_fault(store: Store) -> None:
    store.tree.image("a", "v1")
    store.write(tag_path("a", "v1"), b"")
    problem = only(found := looked_at(store.storage))
    assert (problem.what, problem.repository, problem.tag) == (What.TAG, "a", "v1")
    assert found.broken == ["a:v1"]


def test_an_image_is_whole_only_where_it_is_linked(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"one"])
    store.tree.tag("b", "v1", image)
    found = looked_at(store.storage)
    assert {problem.repository for problem in found.problems} == {"b"}
    assert {problem.what for problem in found.problems} == {What.REVISION_LINK, What.LAYER_LINK}
    assert found.broken == ["b:v1"]


def test_every_tag_that_leads_to_a_fault_is_broken_and_no_other(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"one"])
    store.tree.index("a", "multi", [image])
    store.tree.image("a", "fine", layers=[b"two"])
    store.remove(layer_link_path("a", sha256(b"one")))
    found = looked_at(store.storage)
    assert found.broken == ["a:multi", "a:v1"]
    assert only(found).tag == "multi"


def test_a_broken_signature_is_a_fault_and_its_image_is_whole(store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"one"])
    store.tree.image("a", layers=[b"signature"], subject=image)
    store.remove(blob_path(sha256(b"signature")))
    found = looked_at(store.storage)
    assert only(found).tag == "v1"
    assert found.broken == []


def test_a_child_that_its_repository_never_had_is_told_apart(store: Store) -> None:
    elsewhere = store.tree.image("b", "v1")
    absent = sha256(b"absent")
    index = store.tree.index("a", "v1", [elsewhere, absent])
    found = looked_at(store.storage)
    assert found.problems == []
    told = {(child.digest, child.stored) for child in found.missing_children}
    assert told == {(elsewhere, True), (absent, False)}
    assert {(child.repository, child.tag, child.index) for child in found.missing_children} == {
        ("a", "v1", index)
    }


@pytest.mark.parametrize("data", [b"DEEP", b"deeper"])
def test_a_child_that_its_repository_never_had_is_no_fault_there(store: Store, data: bytes) -> None:
    image = store.tree.image("a", "v1", layers=[b"deep"])
    store.tree.index("b", "v1", [image])
    store.write(blob_path(sha256(b"deep")), data)
    found = looked_at(store.storage, read_all=True)
    assert found.broken == ["a:v1"]
    assert {problem.repository for problem in found.problems} == {"a"}
    store.write(blob_path(sha256(b"deep")), b"deep")
    store.write(blob_path(image), store.storage.read(blob_path(image)) + b" ")
    for read_all in (False, True):
        assert looked_at(store.storage, read_all=read_all).broken == ["a:v1"]


def test_a_child_that_is_linked_and_gone_is_a_fault(store: Store) -> None:
    child = store.tree.image("a")
    store.tree.index("a", "v1", [child])
    store.remove(blob_path(child))
    found = looked_at(store.storage)
    assert only(found).what is What.MANIFEST
    assert found.broken == ["a:v1"]


def test_what_no_tag_leads_to_counts_when_asked_for(store: Store) -> None:
    store.tree.image("a", "v1", layers=[])
    store.tree.image("a", layers=[b"one"])
    store.remove(blob_path(sha256(b"one")))
    assert looked_at(store.storage).problems == []
    assert only(looked_at(store.storage, untagged=True)).tag is None


def test_a_rotten_blob_that_nobody_needs_is_told_with_content(store: Store) -> None:
    store.tree.image("a", "v1")
    store.write(blob_path(sha256(b"one")), b"rot")
    assert looked_at(store.storage).problems == []
    problem = only(looked_at(store.storage, read_all=True))
    assert (problem.repository, problem.what) == (None, What.CONTENT)


def test_blobs_without_any_tag_or_manifest_are_half_a_registry(store: Store) -> None:
    """Such as where ``repositories/`` is on a disk that is not mounted."""
    assert looked_at(store.storage).problems == []
    store.tree.blob(b"one")
    problem = only(looked_at(store.storage))
    assert (problem.repository, problem.what) == (None, What.TAG)
    assert "1 blobs are stored; is everything mounted?" in problem.reason
    # Images that are pulled by their digests alone are no half.
    store.tree.image("a")
    assert looked_at(store.storage).problems == []


def test_a_blob_is_hashed_piece_by_piece(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_PIECE", 4)
    store.tree.image("a", "v1", layers=[b"0123456789", b"0123"])
    assert looked_at(store.storage, read_all=True).problems == []
    store.write(blob_path(sha256(b"0123456789")), b"012345678X")
    assert only(looked_at(store.storage, read_all=True)).what is What.CONTENT


class Pushing(MemoryStorage):
    """A storage to which *happen* writes when the blobs are listed: after everything else."""

    happen: Callable[[], None] = staticmethod(lambda: None)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Any]:
        """Let it happen first."""
        if prefix.startswith("docker/registry/v2/blobs"):
            self.happen()
        return super().list(prefix, start_after=start_after)


@pytest.fixture
def busy(store: Store) -> Iterator[Pushing]:
    """A registry in which a tag has lost a layer and its link by the time of the listing."""
    storage = Pushing(lambda: NOW)
    store.storage = storage
    store.tree.image("a", "v1", layers=[b"one"])
    return storage  # type: ignore[return-value]  # a fixture may return


def test_what_is_only_late_in_a_listing_is_no_fault(busy: Pushing, store: Store) -> None:
    link = layer_link_path("a", sha256(b"one"))
    store.remove(link)
    assert only(looked_at(busy)).path == link
    busy.happen = lambda: store.tree.link_layer("a", sha256(b"one"))
    assert looked_at(busy).problems == []


def test_a_tag_that_is_deleted_meanwhile_is_named_and_no_fault(busy: Pushing, store: Store) -> None:
    store.remove(blob_path(sha256(b"one")))

    def delete() -> None:
        for path in list(busy.snapshot()):
            if "/tags/v1/" in path:
                store.remove(path)

    busy.happen = delete
    found = looked_at(busy)
    assert found.problems == []
    assert found.changed == ["a:v1"]


def test_a_fault_stands_while_one_of_its_tags_does(busy: Pushing, store: Store) -> None:
    image = store.tree.image("a", "v1", layers=[b"one"])
    store.tree.tag("a", "v2", image)
    store.remove(blob_path(sha256(b"one")))
    other = store.tree.image("a", layers=[b"two"])
    busy.happen = lambda: store.tree.tag("a", "v1", other)
    found = looked_at(busy)
    assert only(found).tag == "v2"
    assert found.broken == ["a:v2"]
    assert found.changed == ["a:v1"]


def test_what_cannot_be_read_is_an_error_and_no_fault(store: Store) -> None:
    class Failing(MemoryStorage):
        def read(self, path: str, *, limit: int | None = None) -> bytes:
            raise Unavailable("a fault for a test", path=path)

    storage = Failing(lambda: NOW)
    store.storage = storage
    store.tree.image("a", "v1")
    with pytest.raises(Unavailable):
        looked_at(storage)


# --- the command -------------------------------------------------------------------------------


def shown(config: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    answer = CliRunner().invoke(registry_gc, ["verify", *arguments, str(config)])
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.stdout, answer.stderr


def test_the_command_changes_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    image = disk.tree.image("a", "v1", layers=[b"one"])
    disk.tree.index("a", "sparse", [image, sha256(b"absent")])
    config = write_config(disk.root, readonly=False)
    before = fingerprint(disk.root)
    code, text, _ = shown(config, "--content")
    assert code == 0
    assert "every tag is whole; 1 missing child of indexes" in text
    assert shown(config, "--whole-indexes")[0] == 3
    assert fingerprint(disk.root) == before
    disk.remove(blob_path(sha256(b"one")))
    code, text, _ = shown(config)
    assert code == 3
    assert f"a:sparse: blob {sha256(b'one')}: not in the store" in text
    assert "not whole: a:v1" in text
    code, text, _ = shown(config, "--output", "json")
    document = json.loads(text)
    assert document["exit_code"] == code == 3
    assert document["broken_tags"] == ["a:sparse", "a:v1"]
    assert document["problems"][0]["what"] == "blob"
    code, text, errors = shown(config, "--quiet")
    assert (code, text) == (3, "")
    assert "1 fault, 2 tags not whole" in errors


def test_names_and_reasons_cannot_speak_to_a_terminal(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    odd = {"schemaVersion": 2, "mediaType": "x\nall is well\x1b[2K"}
    disk.tree.manifest("a", odd, "v1")
    disk.tree.image("odd\x1b[31m\nname", "v1", layers=[b"lost"])
    (disk.root / blob_path(sha256(b"lost"))).unlink()
    config = write_config(disk.root, readonly=False)
    code, text, _ = shown(config)
    assert code == 3
    assert "x\\nall is well\\x1b[2k" in text
    assert "odd\\x1b[31m\\nname:v1: blob" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_hard_link_has_the_size_that_it_has(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "v1", layers=[b"one"])
    os.link(disk.root / blob_path(sha256(b"one")), tmp_path / "copy")
    assert shown(write_config(disk.root))[0] == 0


def test_a_root_without_a_registry_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, text, errors = shown(write_config(tmp_path / "empty"))
    assert (code, text) == (1, "")
    assert "no registry there" in errors


def test_a_running_registry_is_whole_and_what_it_cannot_serve_is_a_fault(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    images = [layout.image(["base", name], name) for name in ("amd64", "arm64")]
    layout.name("multi", layout.index(images))
    registry = RealRegistry(tmp_path)
    with registry.running():
        registry.push(layout.folder, "multi", "app:v1", "--all")
        code, text, _ = shown(registry.config, "--content")
        assert code == 0, text
        links = sorted((registry.root / repository_path("app")).glob("_layers/*/*/link"))
        lost = links[0].parent.name
        links[0].unlink()
        assert registry.get(f"app/blobs/sha256:{lost}").status == 404
        code, text, _ = shown(registry.config)
        assert code == 3
        assert f"app:v1: layer link sha256:{lost}" in text
