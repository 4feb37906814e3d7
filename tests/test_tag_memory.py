"""Tags that a listing cannot tell are read once, and again when they have moved; reads counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from msgspec.structs import replace

from core_support import NOW, OLD, Store, Watcher
from registry_drivers.base import Page
from registry_drivers.memory import MemoryStorage
from registry_gc.engine import SerialEngine
from registry_gc.listing.reading import read_catalog
from registry_gc.listing.tag_memory import SETTLED
from registry_gc.listing.tags import NO_STAMP, stamp_of
from registry_gc.policy import Policy
from registry_gc.survey import Surveyor
from registry_tree import RegistryTree, tag_path
from running import run
from servers.fault_proxy import Request
from stores import Servers, proxied, store
from test_undeletable import of_no_content

TAGS = 12


class Encrypted:
    """A registry in memory whose listing tells no MD5, but ETags of the form asked for."""

    def __init__(self, place: str = "bucket", etag: bytes | None = None) -> None:
        self.memory = Store()
        self.storage = self.memory.storage
        self.storage.root = place
        self.written: dict[str, int] = {}
        self.etag = etag

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        for page in self.storage.list(prefix, start_after=start_after):
            yield replace(page, md5s=None, etags=[self.etag_of(path) for path in page.paths])

    def etag_of(self, path: str) -> bytes:
        return b'"%d"' % self.written.get(path, 0) if self.etag is None else self.etag

    def point(self, tag: str, layer: bytes, modified: float = OLD) -> str:
        """Push an image and have *tag* point to it; returns its digest."""
        self.memory.age = modified
        digest = self.memory.tree.image("app", tag, layers=[layer])
        path = tag_path("app", tag)
        self.written[path] = self.written.get(path, 0) + 1
        return digest


def filled(**options: Any) -> Encrypted:
    registry = Encrypted(**options)
    for number in range(TAGS):
        registry.point(f"v{number}", b"layer %d" % number)
    return registry


def targets(registry: Encrypted, cache: Path) -> tuple[dict[str, str | None], int, list[str]]:
    """What each tag points to by a run with *cache*, what that read, and what it said."""
    before = registry.storage.requests.read
    watcher = Watcher()
    policy = Policy()
    engine = SerialEngine(registry)
    surveyor = Surveyor(registry, engine, policy, NOW, watcher, str(cache))
    tags = {tag.name: tag.target for tag in surveyor.catalog().tags}
    return tags, registry.storage.requests.read - before, watcher.notices


def test_a_second_run_reads_no_tag_and_knows_the_same(tmp_path: Path) -> None:
    registry = filled()
    first, reads, _ = targets(registry, tmp_path / "cache")
    assert reads == TAGS == len(first)
    assert targets(registry, tmp_path / "cache") == (first, 0, [])


def test_a_tag_that_has_moved_is_read_again_and_no_other(tmp_path: Path) -> None:
    registry = filled()
    expected, _, _ = targets(registry, tmp_path / "cache")
    expected["v3"] = registry.point("v3", b"another")
    assert targets(registry, tmp_path / "cache") == (expected, 1, [])
    assert targets(registry, tmp_path / "cache") == (expected, 0, [])


def test_one_etag_for_all_contents_leads_nobody_astray(tmp_path: Path) -> None:
    """No such store is known. Time and size are part of what is compared."""
    registry = filled(etag=b'"always"')
    expected, _, _ = targets(registry, tmp_path / "cache")
    expected["v3"] = registry.point("v3", b"another", modified=OLD + 1)
    assert targets(registry, tmp_path / "cache") == (expected, 1, [])


def test_a_tag_that_may_be_written_again_within_the_clocks_tick_is_not_remembered(
    tmp_path: Path,
) -> None:
    registry = filled(etag=b'"always"')
    young = NOW - SETTLED / 2
    registry.point("v3", b"just now", modified=young)
    _, reads, _ = targets(registry, tmp_path / "cache")
    assert reads == TAGS
    digest = registry.point("v3", b"in the same second", modified=young)
    found, reads, _ = targets(registry, tmp_path / "cache")
    assert (found["v3"], reads) == (digest, 1)


def test_the_same_path_in_another_storage_is_another_tag(tmp_path: Path) -> None:
    here, there = filled(place="here"), Encrypted(place="there")
    targets(here, tmp_path / "cache")
    expected = {f"v{n}": there.point(f"v{n}", b"other %d" % n) for n in range(TAGS)}
    assert targets(there, tmp_path / "cache") == (expected, TAGS, [])


def test_without_etags_nothing_is_remembered(tmp_path: Path) -> None:
    registry = filled(etag=b"")
    for _ in range(2):
        _, reads, _ = targets(registry, tmp_path / "cache")
        assert reads == TAGS
    assert stamp_of(b"", 71, OLD) == NO_STAMP


def test_where_md5s_tell_the_cache_is_not_even_opened(tmp_path: Path) -> None:
    registry = filled()
    storage = registry.storage
    assert isinstance(storage, MemoryStorage)
    surveyor = Surveyor(
        storage, SerialEngine(storage), Policy(), NOW, Watcher(), str(tmp_path / "cache")
    )
    assert all(tag.target for tag in surveyor.catalog().tags)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE tags SET target = (SELECT max(target) FROM tags)",
        "UPDATE tags SET target = 'sha256:' || hex(randomblob(32))",
        "UPDATE tags SET target = NULL",
        "UPDATE tags SET checksum = checksum + 1",
    ],
)
def test_damaged_rows_are_told_and_read_again(tmp_path: Path, harm: str) -> None:
    registry = filled()
    expected, _, _ = targets(registry, tmp_path / "cache")
    with closing(sqlite3.connect(tmp_path / "cache")) as connection, connection:
        connection.execute(harm)
    found, reads, notices = targets(registry, tmp_path / "cache")
    assert found == expected
    assert reads >= TAGS - 1  # the largest target may be where it belongs
    assert len(notices) == 1
    assert targets(registry, tmp_path / "cache") == (expected, 0, [])


def test_a_catalog_without_a_memory_reads_all(tmp_path: Path) -> None:
    """As verify and the check of a plan do, which rely on nothing that is remembered."""
    registry = filled()
    targets(registry, tmp_path / "cache")
    before = registry.storage.requests.read
    read_catalog(registry, SerialEngine(registry), Watcher())
    assert registry.storage.requests.read - before == TAGS


# --- a real server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


def tags_read(requests: list[Request]) -> list[str]:
    paths = [unquote(request.path) for request in requests if request.method == "GET"]
    return sorted(path.split("/")[-3] for path in paths if path.endswith("/current/link"))


@pytest.mark.parametrize("said", [{}, {"encrypt": True, "keyid": "alias/registry"}])
def test_a_bucket_under_kms_is_asked_for_its_tags_once(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, object]
) -> None:
    # All of it was pushed just now.
    monkeypatch.setattr("registry_gc.listing.tag_memory.SETTLED", -60.0)
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    for number in range(5):
        tree.image("app", f"v{number}", layers=[b"%d" % number])
    direct = servers.place("s3")
    store(direct, files)
    with proxied(direct.with_parameters(**said)) as (place, proxy):
        proxy.rewrite = of_no_content
        config = place.config(tmp_path)
        fixed = ("--output", "json", "--dry-run", "-m", "--cache", tmp_path / "cache", config)

        def asked() -> tuple[list[str], int]:
            proxy.reset()
            result = run(*fixed, state=tmp_path / "state")
            assert result.exit_code == 0, result.errors
            return tags_read(list(proxy.requests)), int(result.json["manifests"]["eligible"])

        assert asked() == ([f"v{number}" for number in range(5)], 0)
        assert asked() == ([], 0)
        files.clear()
        tree.image("app", "v3", layers=[b"another"])
        store(direct, files)
        assert asked() == (["v3"], 1)
        assert asked() == ([], 1)
