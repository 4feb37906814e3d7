"""docs/permissions.md: what is asked of Google Cloud Storage and Azure is what the page names.

Their emulators know no rights, so a proxy in front of them tells which right each request takes,
as the vendors' references have it, and refuses those of one right at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from aside import Registry
from registry_tree import RegistryTree
from running import Result
from servers.fault_proxy import Answer, FaultProxy, Request
from stores import Place, Servers, proxied, store
from test_permissions import PAGE

Step = Callable[[Registry], Result]
AZURE = "containers/blobs/"
VERSIONS = {f"{AZURE}deleteBlobVersion/action"}  # the emulator keeps none
OPTIONAL = {"gcs": {"storage.buckets.get"}, "azure": {"containers/read", "read"}}
DENIED = {
    "gcs": Answer(403, b'{"error": {"code": 403, "message": "denied"}}'),
    "azure": Answer(403, b"", {"x-ms-error-code": "AuthorizationPermissionMismatch"}),
}
LOOKING = {"gcs": {"storage.objects.list", "storage.objects.get"}, "azure": {f"{AZURE}read"}}


def google(request: Request) -> str:
    """The permission that a request of the JSON API, or a download, takes."""
    path = unquote(urlsplit(request.path).path)
    if path.startswith("/batch/"):
        assert b"\nDELETE /storage/v1/b/" in request.body.replace(b"\r", b"")
        return "storage.objects.delete"
    if path.startswith("/upload/") or "/rewriteTo/" in path:
        return "storage.objects.create"
    assert request.method in ("GET", "HEAD", "DELETE"), request
    if request.method == "DELETE":
        return "storage.objects.delete"
    bucket = re.fullmatch(r"/storage/v1/b/[^/]+(/o)?", path)
    if bucket:
        return "storage.objects.list" if bucket[1] else "storage.buckets.get"
    return "storage.objects.get"


def azure(request: Request) -> str:
    """The action that a request of the REST API takes."""
    parts = urlsplit(request.path)
    query = parse_qs(parts.query)
    of = query.get("restype", [""])[0]
    if query.get("comp") == ["batch"] or request.method == "DELETE":
        return f"{AZURE}delete"
    if of == "service":
        return "read"
    if request.method == "PUT":
        return f"{AZURE}write"
    assert request.method in ("GET", "HEAD"), request
    return "containers/read" if of == "container" and "comp" not in query else f"{AZURE}read"


RIGHT = {"gcs": google, "azure": azure}


def of_the_page(kind: str) -> set[str]:
    """What the page names for a store."""
    title = {"gcs": "Google Cloud Storage", "azure": "Azure Blob Storage"}[kind]
    section = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return set(re.findall(r"`([^`]+)`", " ".join(cells))) - VERSIONS


def collecting(registry: Registry) -> Result:
    return registry.collect("-m")


def quarantining(registry: Registry) -> Result:
    return registry.collect("-m", "--quarantine", "7d")


def restoring(registry: Registry) -> Result:
    return registry.command("restore", "a")


def looking(registry: Registry) -> Result:
    return registry.collect("-m", "--dry-run")


@dataclass(frozen=True)
class Store:
    """A registry in a bucket of its own, with a proxy in front."""

    kind: str
    place: Place
    proxy: FaultProxy

    def right(self, request: Request) -> str:
        return RIGHT[self.kind](request)

    def used(self) -> set[str]:
        return {self.right(request) for request in self.proxy.requests}

    def refuse(self, right: str) -> None:
        denied = DENIED[self.kind]
        self.proxy.rule = lambda request: denied if self.right(request) == right else None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@contextmanager
def filled(servers: Servers, kind: str) -> Iterator[Store]:
    """A new bucket with one image that has a tag and one that has none."""
    direct = servers.place(kind)
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    tree.image("a", "v1", layers=[b"kept"])
    tree.image("a", None, layers=[b"untagged"])
    store(direct, files)
    with proxied(direct) as (place, proxy):
        yield Store(kind, place, proxy)


@pytest.mark.parametrize("kind", RIGHT)
def test_the_page_names_what_is_used_and_nothing_else(
    servers: Servers, kind: str, tmp_path: Path
) -> None:
    with filled(servers, kind) as cloud:
        registry = Registry(tmp_path, cloud.place)
        assert looking(registry).exit_code == 0
        assert cloud.used() - OPTIONAL[kind] == LOOKING[kind]
        for step in (quarantining, restoring, collecting):
            assert step(registry).exit_code == 0
        assert cloud.used() == of_the_page(kind)


@pytest.mark.parametrize(
    ("kind", "right"), [(kind, right) for kind in RIGHT for right in sorted(of_the_page(kind))]
)
def test_no_right_may_be_left_out_but_that_to_know_what_is_kept(
    servers: Servers, kind: str, right: str, tmp_path: Path
) -> None:
    with filled(servers, kind) as cloud:
        cloud.refuse(right)
        result = collecting(Registry(tmp_path, cloud.place))
        if right in OPTIONAL[kind]:
            assert result.exit_code == 0, result.errors
            assert "nobody knows" in result.errors
        else:
            assert result.exit_code != 0
