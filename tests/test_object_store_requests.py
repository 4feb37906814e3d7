"""How often a collection asks an object store, counted by a proxy in front of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from registry_drivers import azure, gcs, s3
from registry_drivers.object_store import ObjectStorage
from registry_gc.runs.rows import RowKind
from registry_tree import V2, RegistryTree
from running import OWN_FOLDER, Result, run
from servers.fault_proxy import FaultProxy, Request
from stores import Place, Servers, collect, is_delete, is_listing, proxied, store

REPOSITORIES = 10
PUSHES = 8
UPLOADS = 3
# Guard (a file, a folder), lock, is there a registry at all, versioning.
FIXED = 12
# Each look at the guard and the lock, at most every ten seconds: a file, a folder, the lock.
LOOK = 3


def many_pushes() -> dict[str, bytes]:
    """Some hundred objects: most tags have moved several times, each push has a layer."""
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    for number in range(REPOSITORIES):
        name = f"group-{number % 4}/app-{number}"
        for push in range(PUSHES):
            tag = f"v{push}" if push % 3 == 0 else "latest"
            layers = [b"base", b"layer %d of %d" % (push, number)]
            tree.image(name, tag, layers=layers, config=b"%d of %d" % (push, number))
        if number < UPLOADS:
            tree.upload(name, "00000000-old", "2020-01-02T03:04:05Z", b"half a layer")
    return files


@dataclass(frozen=True)
class Registry:
    """A registry in a store with a proxy in front; what lies there."""

    place: Place
    proxy: FaultProxy
    folder: Path
    files: dict[str, bytes]

    def run(self, *arguments: str) -> tuple[Result, list[Request]]:
        """Collect; with what the proxy saw of it."""
        self.proxy.reset()
        result = collect(self.place, self.folder, *arguments)
        assert result.exit_code == 0, result.errors
        return result, list(self.proxy.requests)

    def pages(self, page_size: int) -> int:
        """Requests that it takes to list everything once."""
        tops = ("repositories", "blobs")
        counts = [sum(path.startswith(f"{V2}/{top}/") for path in self.files) for top in tops]
        return sum(-(-count // page_size) for count in counts)


@pytest.fixture(scope="module", params=["s3", "gcs", "azure"])
def registry(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    with ExitStack() as stack:
        direct = Servers(stack, tmp_path_factory.mktemp).place(request.param)
        files = many_pushes()
        store(direct, files)
        place, proxy = stack.enter_context(proxied(direct))
        yield Registry(place, proxy, tmp_path_factory.mktemp("run"), files)


def manifests_of(registry: Registry) -> int:
    """How many different manifests there are."""
    links = [path.split("/") for path in registry.files if "/_manifests/revisions/" in path]
    return len({parts[-2] for parts in links})


def reads(requests: list[Request], part: str) -> list[Request]:
    return [
        request
        for request in requests
        if request.method in ("GET", "HEAD")
        and not is_listing(request)
        and part in request.path.replace("%2F", "/")
    ]


def begun(listings: list[Request]) -> int:
    """How many of them do not go on with one that was begun."""
    continued = ("continuation-token", "pageToken", "marker")
    queries = [parse_qs(urlsplit(request.path).query) for request in listings]
    return sum(not any(name in query for name in continued) for query in queries)


def counted(result: Result) -> int:
    """What the report says that was sent."""
    return sum(result.json["requests"].values())


Run = tuple[Result, list[Request]]


@pytest.fixture(scope="module")
def dry_run(registry: Registry) -> Run:
    return registry.run("--dry-run", "-m")


def test_a_dry_run_asks_for_pages_and_manifests_and_hardly_more(
    registry: Registry, dry_run: Run
) -> None:
    _, requests = dry_run
    manifests = manifests_of(registry)
    assert manifests == REPOSITORIES * PUSHES
    assert len(reads(requests, "/blobs/")) == manifests
    assert len(reads(requests, "/startedat")) == UPLOADS
    # Two ranges, as nothing here is longer than ten pages.
    limit = (registry.pages(1000) + manifests) * 1.05 + 2 + FIXED + UPLOADS
    assert len(requests) <= limit


def test_a_second_run_with_the_cache_asks_for_pages_and_no_manifest(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.place.prepare(monkeypatch)
    config = registry.place.config(tmp_path)
    fixed = ("--output", "json", "--dry-run", "-m", "--cache", tmp_path / "cache")
    counts = []
    for _ in range(2):
        registry.proxy.reset()
        result = run(*fixed, config, state=tmp_path / "state")
        assert result.exit_code == 0, result.errors
        counts.append(len(registry.proxy.requests))
    assert not reads(registry.proxy.requests, "/blobs/")
    assert counts[0] - counts[1] == manifests_of(registry)
    assert counts[1] <= registry.pages(1000) * 1.05 + 2 + FIXED + UPLOADS


def test_tags_and_links_cost_no_read(dry_run: Run) -> None:
    _, requests = dry_run
    assert not reads(requests, "/_manifests/")
    assert not reads(requests, "/_layers/")


def test_the_report_counts_what_was_sent(dry_run: Run) -> None:
    result, requests = dry_run
    assert counted(result) == len(requests)
    assert result.json["requests"]["list"] == sum(map(is_listing, requests))


def test_long_listings_are_split_and_cost_no_more_than_a_page_for_each_range(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = 15
    always = property(lambda _: small, lambda _, value: None)
    monkeypatch.setattr(ObjectStorage, "page_size", always, raising=False)
    result, requests = registry.run("--dry-run")
    listings = [request for request in requests if is_listing(request)]
    flat = [request for request in listings if "delimiter" not in request.path]
    folders = [request for request in listings if "delimiter" in request.path]
    assert begun(flat) > 2
    # The 256 folders of the blobs fit in one page of the size that pages have.
    assert len(flat) + begun(folders) <= registry.pages(small) * 1.05 + begun(flat) + FIXED
    assert result.json["blobs"]["total"] == sum("/blobs/" in path for path in registry.files)
    assert counted(result) == len(requests)


def test_a_sweep_sends_full_batches_phase_by_phase(
    registry: Registry, dry_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40
    for module in (s3, gcs, azure):
        monkeypatch.setattr(module, "DELETE_BATCH", size)
    result, requests = registry.run("-m")
    phases = planned(result)
    assert phases["blob"] > size
    batches = sum(-(-rows // size) for rows in phases.values())
    # One more removes the lock.
    assert sum(map(is_delete, requests)) == batches + 1
    looks = result.json["seconds"]["total"] // 10 + 1
    assert len(requests) <= len(dry_run[1]) + batches * 1.05 + looks * LOOK + FIXED
    assert counted(result) == len(requests)
    own = [request for request in requests if OWN_FOLDER in request.path.replace("%2F", "/")]
    assert len(own) <= 6 + looks


def planned(result: Result) -> dict[str, int]:
    """How many rows each phase had."""
    with closing(sqlite3.connect(result.json["run_file"])) as file:
        phases = dict(file.execute("SELECT kind, count(*) FROM deletions GROUP BY phase"))
    assert set(phases) <= {kind.label for kind in RowKind}
    return phases
