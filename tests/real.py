"""A real registry: Debian's ``docker-registry``, skopeo to push, plain HTTP to pull and delete.

Nothing here is skipped when a program is missing: the test fails and says which one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import yaml

from registry_tree import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    V2,
    descriptor,
    sha256,
)
from servers.process import free_port

ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
_OPENER = build_opener(ProxyHandler({}))


def program(name: str) -> str:
    """Where *name* is installed; a missing one fails the test."""
    found = shutil.which(name)
    assert found, f"{name} is not installed; `make test` installs it"
    return found


@dataclass
class RealRegistry:
    """A docker-registry on a free port; one config file for all commands.

    Keeps its data in *folder*/registry, or where *storage* says: a driver with its parameters.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    extra: Mapping[str, Any] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.configure(readonly=False)

    @property
    def root(self) -> Path:
        """The storage's root directory."""
        return self.folder / "registry"

    @property
    def config(self) -> Path:
        """The config file that registry and collector share."""
        return self.folder / "config.yml"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def configure(self, *, readonly: bool) -> None:
        """Write the config file; counts for a registry that is started afterwards."""
        storage: dict[str, Any] = {
            **(self.storage or {"filesystem": {"rootdirectory": str(self.root)}}),
            "delete": {"enabled": True},
            "maintenance": {
                "uploadpurging": {"enabled": False},
                "readonly": {"enabled": readonly},
            },
        }
        document = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": storage,
            "http": {"addr": self.address, "secret": "same on every start"},
            **self.extra,
        }
        self.config.write_text(yaml.safe_dump(document))

    @contextmanager
    def running(self, *, readonly: bool = False) -> Iterator[RealRegistry]:
        """Serve until the block ends."""
        self.configure(readonly=readonly)
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Start the server; returns when it answers ``/v2/``."""
        process = subprocess.Popen(
            [program("docker-registry"), "serve", str(self.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Its driver for S3 panics while AWS_CA_BUNDLE is set.
            env={name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"},
        )
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if "listening on" in line:
                break
        else:
            process.wait()
            raise AssertionError("docker-registry did not start:\n" + "".join(log))
        # A full pipe would stop the server, so somebody reads on.
        self._reader = threading.Thread(target=process.stderr.read, daemon=True)
        self._reader.start()
        self.process = process
        assert self.get("").status == 200

    def stop(self) -> None:
        """End the server that :meth:`start` started."""
        if self.process is not None and self._reader is not None:
            self.process.terminate()
            self.process.wait()
            self._reader.join()
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None

    def request(self, method: str, path: str, accept: str = ACCEPT) -> Answer:
        """Send a request below ``/v2/``."""
        request = Request(
            f"http://{self.address}/v2/{path}", method=method, headers={"Accept": accept}
        )
        try:
            with _OPENER.open(request, timeout=30) as answer:
                return Answer(answer.status, dict(answer.headers.items()), answer.read())
        except HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers.items()), error.read())

    def get(self, path: str) -> Answer:
        """GET below ``/v2/``."""
        return self.request("GET", path)

    def catalog(self) -> list[str]:
        """The repositories, as the registry lists them."""
        answer = self.get("_catalog?n=1000")
        assert answer.status == 200, answer
        names: list[str] = json.loads(answer.body)["repositories"]
        return names

    def tags(self, repository: str) -> list[str]:
        """The tags of *repository*, sorted; none where the registry does not know it."""
        answer = self.get(f"{repository}/tags/list")
        return sorted(json.loads(answer.body)["tags"] or ()) if answer.status == 200 else []

    def digest(self, repository: str, reference: str) -> str:
        """The digest of a tag."""
        answer = self.get(f"{repository}/manifests/{reference}")
        assert answer.status == 200, answer
        return answer.headers["Docker-Content-Digest"]

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Delete a manifest, and with it the tags that point to it."""
        digest = self.digest(repository, reference)
        answer = self.request("DELETE", f"{repository}/manifests/{digest}")
        assert answer.status == 202, answer

    def delete_tag(self, repository: str, tag: str) -> None:
        """Delete a tag and leave what it points to, as Distribution 3 does (2.8 cannot)."""
        shutil.rmtree(self.root / V2 / "repositories" / repository / "_manifests/tags" / tag)

    def pull(self, repository: str, reference: str) -> int:
        """Pull an image with all that belongs to it, each byte checked; returns how many blobs."""
        answer = self.get(f"{repository}/manifests/{reference}")
        assert answer.status == 200, f"{repository}:{reference}: {answer}"
        assert sha256(answer.body) == answer.headers["Docker-Content-Digest"]
        document = json.loads(answer.body)
        if "manifests" in document:
            return sum(self.pull(repository, child["digest"]) for child in document["manifests"])
        parts = [document["config"], *document["layers"]]
        for part in parts:
            blob = self.get(f"{repository}/blobs/{part['digest']}")
            assert blob.status == 200, f"{repository}@{part['digest']}: {blob}"
            assert sha256(blob.body) == part["digest"]
        return len(parts)

    def pull_everything(self) -> dict[str, list[str]]:
        """Pull every tag of every repository; returns the tags by repository."""
        found = {repository: self.tags(repository) for repository in self.catalog()}
        for repository, tags in found.items():
            for tag in tags:
                assert self.pull(repository, tag) > 0
        return found

    def push(self, layout: Path, name: str, tag: str, *options: str) -> None:
        """Push what *layout* calls *name* as *tag* (``repository:tag``) with skopeo."""
        skopeo(
            "copy",
            "--dest-tls-verify=false",
            *options,
            f"oci:{layout}:{name}",
            f"docker://{self.address}/{tag}",
        )

    def pull_with_skopeo(self, tag: str, folder: Path) -> None:
        """Pull *tag* with all architectures into *folder*."""
        skopeo(
            "copy",
            "--src-tls-verify=false",
            "--all",
            f"docker://{self.address}/{tag}",
            f"dir:{folder}",
        )

    def garbage_collect_dry_run(self) -> DistributionReport:
        """What Distribution's own collector would delete; the registry need not run."""
        return garbage_collect_dry_run(self.config)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class DistributionReport:
    """What ``docker-registry garbage-collect --dry-run`` printed."""

    marked: int
    blobs: frozenset[str]
    manifests: int
    text: str


def garbage_collect_dry_run(config: Path, *options: str) -> DistributionReport:
    """Run Distribution's collector on *config* without deleting; a failure fails the test."""
    answer = subprocess.run(
        [program("docker-registry"), "garbage-collect", "--dry-run", *options, str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    counts = re.search(r"^(\d+) blobs marked, \d+ blobs and (\d+) manifests", answer.stdout, re.M)
    assert counts, answer.stdout
    blobs = re.findall(r"^blob eligible for deletion: (\S+)$", answer.stdout, re.M)
    return DistributionReport(int(counts[1]), frozenset(blobs), int(counts[2]), answer.stdout)


def skopeo(*arguments: str) -> str:
    """Run skopeo; a failure fails the test with what it said."""
    answer = subprocess.run(
        [program("skopeo"), "--insecure-policy", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, f"skopeo {' '.join(arguments)}\n{answer.stderr}"
    return answer.stdout


@dataclass
class Layout:
    """An OCI image layout on disk, as skopeo reads it: images and indexes by name."""

    folder: Path
    _names: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "blobs/sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def _blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        digest = sha256(data)
        (self.folder / "blobs" / digest.replace(":", "/")).write_bytes(data)
        return descriptor(media_type, digest, len(data))

    def image(self, layers: Sequence[str], architecture: str = "amd64") -> dict[str, Any]:
        """Write an image whose layers hold these texts; returns its descriptor."""
        packed = [_layer(text) for text in layers]
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": ["sha256:" + hashlib.sha256(raw).hexdigest() for raw, _ in packed],
            },
        }
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._blob(OCI_CONFIG, json.dumps(config).encode()),
            "layers": [self._blob(OCI_LAYER, data) for _, data in packed],
        }
        written = self._blob(OCI_MANIFEST, json.dumps(document).encode())
        return {**written, "platform": {"architecture": architecture, "os": "linux"}}

    def index(self, children: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Write an index of *children*; returns its descriptor."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children)}
        return self._blob(OCI_INDEX, json.dumps(document).encode())

    def name(self, name: str, target: Mapping[str, Any]) -> None:
        """Give an image or index a name."""
        named = {**target, "annotations": {"org.opencontainers.image.ref.name": name}}
        self._names.append(named)
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self._names}
        (self.folder / "index.json").write_text(json.dumps(document))


def _layer(text: str) -> tuple[bytes, bytes]:
    """A tar archive of one file with *text*, plain and compressed, the same on every run."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return plain.getvalue(), gzip.compress(plain.getvalue(), mtime=0)
