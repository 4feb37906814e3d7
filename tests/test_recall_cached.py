"""What earlier runs have read of the manifests in quarantine is not read again to recall them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aside import Registry
from registry_gc.manifests import References
from registry_gc.quarantine.restore import Quarantined
from registry_tree import blob_path, revision_path
from running import OWN_FOLDER

SIGNATURES = 5


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """On disk, with a cache: an image without a tag, and what refers to it, in another place."""
    made = Registry(tmp_path, None)
    made.cache = tmp_path / "references.sqlite"
    tree = made.tree()
    tree.image("app", "v1", layers=[b"one"], config=b'"one"')
    return made


def signed(registry: Registry) -> tuple[str, list[str]]:
    """Push an image that has no tag with its signatures; returns all their digests."""
    tree = registry.tree()
    image = tree.image("app", layers=[b"two"], config=b'"two"')
    layers = [b"signature %d" % number for number in range(SIGNATURES)]
    return image, [tree.image("app", layers=[layer], subject=image) for layer in layers]


def back_again(registry: Registry, image: str, before: dict[str, bytes]) -> None:
    """Push the image again, under a tag; what refers to it is not."""
    gone = before.keys() - registry.files().keys()
    kept = registry.quarantined()
    assert gone <= kept
    layers = {path for path in gone if "/_layers/" in path}
    registry.write({path: before[path] for path in layers})
    tree = registry.tree()
    assert tree.image("app", "v2", layers=[b"two"], config=b'"two"') == image


def reads(registry: Registry, *options: str) -> int:
    return int(registry.collect("-m", "--dry-run", *options).json["requests"]["read"])


def test_a_run_reads_none_that_an_earlier_one_has_read(registry: Registry) -> None:
    signed(registry)
    registry.quarantine()
    warm = reads(registry)
    registry.cache = None
    assert reads(registry) - warm > SIGNATURES


def test_what_refers_to_a_live_image_comes_back_unread(registry: Registry) -> None:
    image, signatures = signed(registry)
    before = registry.files()
    registry.quarantine()
    back_again(registry, image, before)
    assert registry.collect("-m").json["quarantine"]["recalled"] > 2 * SIGNATURES
    for digest in (image, *signatures):
        assert registry.can_pull("app", digest)


def test_what_lies_there_in_another_size_is_read(registry: Registry) -> None:
    image, signatures = signed(registry)
    before = registry.files()
    run = registry.quarantine().json["run"]
    back_again(registry, image, before)
    place = registry.root / OWN_FOLDER / "quarantine" / run / blob_path(signatures[0])
    place.write_bytes(place.read_bytes()[:-1])
    registry.collect("-m")
    assert revision_path("app", signatures[0]) not in registry.files()
    assert all(registry.can_pull("app", digest) for digest in signatures[1:])


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_a_purge_reads_none_either(
    registry: Registry, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(registry)
    registry.quarantine()
    read = []
    plain = Quarantined.references

    def references(self: Quarantined, digest: str) -> References | None:
        read.append(digest)
        return plain(self, digest)

    monkeypatch.setattr(Quarantined, "references", references)
    registry.purge("--cache", str(registry.cache), *how)
    assert read == []
    registry.purge("--no-cache", *how)
    assert len(read) == 1 + SIGNATURES


def test_a_purge_brings_back_what_refers_to_a_live_image_unread(registry: Registry) -> None:
    image, signatures = signed(registry)
    before = registry.files()
    registry.quarantine()
    back_again(registry, image, before)
    cached = registry.purge("--older-than", "0s", "--cache", str(registry.cache))
    assert cached.exit_code == 0
    assert all(registry.can_pull("app", digest) for digest in (image, *signatures))
