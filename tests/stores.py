"""Runs the collector on a registry in an object store, through nothing but its command line.

Objects there are as old as they are, so what a test runs is told a later time: :data:`LATER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from model import HOUR, WEEK
from registry_drivers.base import Storage
from registry_drivers.factory import StorageSpec, open_storage
from registry_drivers.object_store import ObjectStorage
from registry_drivers.retry import Retry
from registry_tree import RegistryTree, blob_path, layer_link_path, repository_path, sha512
from running import OWN_FOLDER, Result, run
from servers.azurite import KEY as AZURE_KEY
from servers.azurite import AzureServer, azurite
from servers.fake_gcs import GCSServer, fake_gcs
from servers.fault_proxy import FaultProxy, Request, fault_proxy
from servers.juicefs import juicefs
from servers.moto import S3Server, moto
from servers.seaweedfs import seaweedfs

LATER = WEEK + HOUR
"""Seconds by which the storage's clock is ahead of its objects."""


@dataclass(frozen=True)
class Place:
    """Where a registry is: a driver's name and its parameters.

    ``secrets`` must be seen nowhere; ``environment`` is what the SDK needs beside the config.
    """

    driver: str
    parameters: Mapping[str, Any]
    secrets: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def config(self, folder: Path, **storage: Any) -> Path:
        """A registry's config for this place in *folder*; nothing in it says whom to probe."""
        read_only = {"readonly": {"enabled": True}}
        document = {self.driver: dict(self.parameters), "maintenance": read_only, **storage}
        file = folder / "config.yml"
        file.write_text(yaml.safe_dump({"version": 0.1, "storage": document}))
        return file

    @contextmanager
    def opened(self) -> Iterator[Storage]:
        """The driver, for writing a registry and for looking what is left."""
        with pytest.MonkeyPatch.context() as patch:
            self.prepare(patch)
            with closing(open_storage(StorageSpec(self.driver, self.parameters))) as storage:
                yield storage

    def prepare(self, patch: pytest.MonkeyPatch) -> None:
        """Set the environment."""
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def with_parameters(self, **others: Any) -> Place:
        """The same place, or one beside it."""
        return replace(self, parameters={**self.parameters, **others})

    def without(self, parameter: str) -> Place:
        """The same place with a parameter forgotten."""
        left = {name: value for name, value in self.parameters.items() if name != parameter}
        return replace(self, parameters=left)


class Servers:
    """Servers that are started when a test first wants them, and end with the module."""

    def __init__(self, stack: ExitStack, folder: Callable[[str], Path]) -> None:
        self._stack = stack
        self._folder = folder
        self._running: dict[str, Any] = {}

    def _server(self, start: Callable[[Path], Any]) -> Any:
        name = start.__name__
        if name not in self._running:
            self._running[name] = self._stack.enter_context(start(self._folder(name)))
        return self._running[name]

    def place(self, kind: str) -> Place:
        """A new place of this *kind*."""
        if kind.startswith("azure"):
            return self._azure(below=kind.endswith("slash"))
        if kind.startswith("gcs"):
            gcs: GCSServer = self._server(fake_gcs)
            environment = {"STORAGE_EMULATOR_HOST": gcs.url}
            return Place("gcs", {"bucket": gcs.bucket()}, environment=environment)
        start = {"seaweedfs": seaweedfs, "juicefs": juicefs}.get(kind, moto)
        server: S3Server = self._server(start)
        below = {"rootdirectory": "/some/folder/"} if kind.endswith("folder") else {}
        parameters = server.parameters(server.bucket(), **below)
        return Place("s3", parameters, secrets=(server.access_key, server.secret_key))

    def keep_versions(self, place: Place) -> None:
        """Turn versioning on in a bucket of moto's."""
        server: S3Server = self._server(moto)
        server.client.put_bucket_versioning(
            Bucket=place.parameters["bucket"], VersioningConfiguration={"Status": "Enabled"}
        )

    def _azure(self, *, below: bool) -> Place:
        server: AzureServer = self._server(azurite)
        more = {"legacyrootprefix": True, "rootdirectory": "some/folder"} if below else {}
        parameters = server.parameters(server.container(), **more)
        return Place("azure", parameters, secrets=(AZURE_KEY,))


@contextmanager
def proxied(place: Place) -> Iterator[tuple[Place, FaultProxy]]:
    """*place* with a proxy in front of it."""
    if place.driver == "gcs":
        with fault_proxy(place.environment["STORAGE_EMULATOR_HOST"], own_host=True) as proxy:
            yield replace(place, environment={"STORAGE_EMULATOR_HOST": proxy.url}), proxy
        return
    name = "regionendpoint" if place.driver == "s3" else "serviceurl"
    url = urlsplit(place.parameters[name])
    with fault_proxy(f"{url.scheme}://{url.netloc}") as proxy:
        yield place.with_parameters(**{name: proxy.url + url.path}), proxy


def is_listing(request: Request) -> bool:
    """Whether *request* asks for a page of keys, or of folders."""
    if request.method != "GET":
        return False
    path, _, query = request.path.partition("?")
    marks = ("list-type=2", "comp=list", "uploads=", "uploadId=", "versions=")
    return any(mark in query for mark in marks) or path.endswith("/o")


def is_delete(request: Request) -> bool:
    """Whether *request* deletes a batch."""
    if request.method != "POST":
        return False
    path, _, query = request.path.partition("?")
    return query.startswith("delete") or "comp=batch" in query or path.startswith("/batch/")


def without_pauses(patch: pytest.MonkeyPatch, times: int | None = None) -> None:
    """Let drivers try again as often as ever, or so many *times*, and never wait."""
    call = Retry.call

    def at_once(retry: Retry, *words: Any) -> object:
        return call(Retry(times=times or retry.times, sleep=lambda _: None), *words)

    patch.setattr(Retry, "call", at_once)


def collect(place: Place, folder: Path, *arguments: str) -> Result:
    """Collect *place* with JSON output, without a cache; config and state lie in *folder*."""
    with pytest.MonkeyPatch.context() as patch:
        place.prepare(patch)
        return collect_later(place.config(folder), folder, *arguments)


def collect_later(config: Path, folder: Path, *arguments: str) -> Result:
    """Collect what *config* names when all that lies there has become old."""
    fixed = ["--output", "json", "--no-cache", *arguments]
    now = ObjectStorage.now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStorage, "now", lambda storage: now(storage) + LATER)
        return run(*fixed, config, state=folder / "state")


def store(place: Place, files: Mapping[str, bytes]) -> None:
    """Write *files* to *place*."""
    with place.opened() as storage, ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda path: storage.write(path, files[path]), files):
            pass


def keys_of(place: Place) -> set[str]:
    """Every object that is left, ours too."""
    with place.opened() as storage:
        return {path for page in storage.list("") for path in page.paths}


def own_keys(keys: set[str]) -> set[str]:
    """Those that are not the registry's but the collector's."""
    return {key for key in keys if key.startswith(OWN_FOLDER)}


def a_bit_of_everything() -> dict[str, bytes]:
    """The files of a small registry in which everything occurs that a collection decides about."""
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    base, changed = b"shared by many", b"changed with every push"
    for name in ("app", "team/app", "team/app/nested"):
        for push in range(3):
            layers = [base, b"%s %d of %s" % (changed, push, name.encode())]
            tree.image(name, "latest", layers=layers, config=b'{"push": %d}' % push)
        tree.image(name, "old", layers=[base, b"old " + name.encode()])
    children = [
        tree.image("multi", layers=[base, arch], config=b'"%s"' % arch) for arch in (b"arm", b"x86")
    ]
    tree.index("multi", "v1", children)
    tree.index("multi", None, children[:1])
    tagged = tree.image("signed", "v1", layers=[b"signed"])
    tree.image("signed", layers=[b"signature"], subject=tagged)
    untagged = tree.image("signed", layers=[b"signed, untagged"])
    tree.image("signed", layers=[b"signature of the untagged"], subject=untagged)
    _aliased(tree)
    tree.image("broken", "fine", layers=[base])
    tree.image("broken", layers=[b"held by a broken tag"])
    tree.write(f"{repository_path('broken')}/_manifests/tags/bad/current/link", b"sha256:cut")
    tree.image("only-untagged", layers=[b"nobody's"])
    tree.layer("layers-only", b"pushed, and no manifest ever")
    tree.blob(b"no link at all")
    tree.upload("app", "11111111-old", "2020-01-02T03:04:05Z", b"half a layer")
    tree.upload("uploads-only", "22222222-old", "2020-01-02T03:04:05Z", b"half a layer")
    tree.upload("app", "33333333-young", "2100-01-01T00:00:00Z", b"being written")
    tree.upload("app", "44444444-of-unknown-age", None, b"who knows")
    _strangers(tree)
    return files


def _aliased(tree: RegistryTree) -> None:
    """A live image whose layer goes by sha512, and an alias that nobody needs."""
    for data, used in ((b"named by sha512", True), (b"named by sha512, unused", False)):
        name, stored = sha512(data), tree.blob(data)
        tree.link_layer("aliased", name, stored)
        if used:
            layer = {"mediaType": "application/x", "digest": name, "size": len(data)}
            tree.image("aliased", "v1", layers=[], extra={"layers": [layer]})


def _strangers(tree: RegistryTree) -> None:
    for path in (
        blob_path("sha256:" + "ab" * 32).replace("/data", "/data.tmp"),
        layer_link_path("app", "sha256:" + "cd" * 32).replace("/link", "/.nfs0001"),
        f"{repository_path('app')}/README",
        "docker/registry/v2/blobs/notes.txt",
    ):
        tree.write(path, b"not the registry's")
