"""Runs the collector on a registry on disk, through nothing but its command line.

What comes back is what a user sees: exit code, JSON document, text, and the files that are left.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from click.testing import CliRunner

from model import HOUR, V2, File
from registry_tree import RegistryTree, blob_path, folder_sink, layer_link_path, revision_path

OWN_FOLDER = "docker/registry/registry-gc"


@dataclass(frozen=True, slots=True)
class Result:
    """What one run answered; ``json`` is empty where text was asked for."""

    exit_code: int
    json: dict[str, Any]
    text: str
    errors: str

    @property
    def held(self) -> set[str]:
        """The repositories that the run held."""
        return {row["repository"] for row in self.json["held"]}

    def lines(self, beginning: str) -> list[str]:
        """The lines of text that begin so, without it."""
        return [
            line.removeprefix(beginning)
            for line in self.text.splitlines()
            if line.startswith(beginning)
        ]


def write_config(
    root: Path, *, readonly: bool = True, extra: Mapping[str, Any] | None = None
) -> Path:
    """A registry's config for *root*, beside it; without ``http``, so that nothing is probed."""
    storage: dict[str, Any] = {"filesystem": {"rootdirectory": str(root)}}
    storage["maintenance"] = {"readonly": {"enabled": readonly}}
    storage.update(extra or {})
    config = root.with_name(f"{root.name}.yml")
    config.write_text(yaml.safe_dump({"version": 0.1, "storage": storage}))
    return config


def run(*arguments: str | Path, state: Path) -> Result:
    """Run the command with *arguments* and its state under *state*; a traceback fails the test."""
    from registry_gc.cli.main import registry_garbage_collect

    full = ["--state-dir", str(state), *map(str, arguments)]
    answer = CliRunner().invoke(registry_garbage_collect, full)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    document: dict[str, Any] = json.loads(answer.stdout) if "json" in full and answer.stdout else {}
    if document:
        assert document["exit_code"] == answer.exit_code
    return Result(answer.exit_code, document, answer.stdout, answer.stderr)


def collect(root: Path, *arguments: str, config: Path | None = None) -> Result:
    """Collect *root* with JSON output and no cache; *arguments* are further options."""
    fixed = ["--output", "json", "--no-cache", *arguments]
    return run(*fixed, config or write_config(root), state=root.with_name(f"{root.name}.state"))


def collect_as_text(root: Path, *arguments: str, config: Path | None = None) -> Result:
    """As :func:`collect`, with the lines that scripts read."""
    state = root.with_name(f"{root.name}.state")
    return run("--no-cache", *arguments, config or write_config(root), state=state)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example, in memory where the system has such a place."""
    shared = Path("/dev/shm")
    where = shared if os.access(shared, os.W_OK) else None
    with TemporaryDirectory(prefix="registry-gc-test-", dir=where) as folder:
        yield Path(folder)


def write_files(root: Path, files: Mapping[str, File], now: float) -> None:
    """Write *files* below *root*, each as old as it says, counted from *now*."""
    sink = folder_sink(root)
    (root / V2 / "repositories").mkdir(parents=True, exist_ok=True)
    for path, file in files.items():
        sink(path, file.data)
        os.utime(root / path, (now - file.age, now - file.age))


def files_below(root: Path) -> set[str]:
    """Every file below *root* that is the registry's, relative to it."""
    found = set()
    for folder, _, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        found |= {f"{inside}/{name}" for name in names if not inside.startswith(OWN_FOLDER)}
    return found


def fingerprint(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below *root*, our own too, with mode, mtime in ns and content."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder) / name
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            # Folders of ours may come and go; what the registry sees is compared in full.
            found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def empty_folders(root: Path) -> set[str]:
    """The folders below ``blobs`` and ``repositories`` that hold nothing."""
    found = set()
    for top in ("blobs", "repositories"):
        for folder, folders, names in os.walk(root / V2 / top):
            if not folders and not names:
                found.add(os.path.relpath(folder, root / V2))
    return found - {"repositories", "blobs", "blobs/sha256", "blobs/sha512"}


@dataclass
class Disk:
    """A registry on disk that a test writes push by push, and then collects."""

    folder: Path
    tree: RegistryTree = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.tree = RegistryTree(folder_sink(self.root))

    @property
    def root(self) -> Path:
        """The storage's root directory."""
        return self.folder / "registry"

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a file below the root."""
        folder_sink(self.root)(path, data)

    def remove(self, path: str) -> None:
        """Remove a file, and leave its folder."""
        (self.root / path).unlink()

    def age(self, seconds: float = 2 * HOUR, below: str = "") -> None:
        """Make every file, or those *below* a folder, look *seconds* old."""
        then = time.time() - seconds
        for folder, folders, names in os.walk(self.root / below, topdown=False):
            for name in [*names, *folders]:
                os.utime(os.path.join(folder, name), (then, then))

    def collect(self, *arguments: str) -> Result:
        """Make everything old, then collect."""
        self.age()
        return collect(self.root, *arguments)

    def has(self, path: str) -> bool:
        """Whether *path* is there."""
        return (self.root / path).exists()

    def has_blob(self, digest: str) -> bool:
        """Whether the bytes of *digest* are stored."""
        return self.has(blob_path(digest))

    def has_layer(self, repository: str, digest: str) -> bool:
        """Whether *digest* can be pulled from *repository* as a blob: link and bytes."""
        return self.has(layer_link_path(repository, digest)) and self.has_blob(digest)

    def has_link(self, repository: str, digest: str) -> bool:
        """Whether *repository* links the blob *digest*."""
        return self.has(layer_link_path(repository, digest))

    def has_manifest(self, repository: str, digest: str) -> bool:
        """Whether the manifest *digest* can be pulled from *repository*: link and bytes."""
        return self.has(revision_path(repository, digest)) and self.has_blob(digest)

    def has_image(self, repository: str, digest: str) -> bool:
        """Whether an image can be pulled whole from *repository*: manifest, config and layers."""
        if not self.has_manifest(repository, digest):
            return False
        document = json.loads((self.root / blob_path(digest)).read_bytes())
        parts = [document["config"], *document["layers"]]
        return all(self.has_layer(repository, part["digest"]) for part in parts)

    def files(self) -> set[str]:
        """Every file that is the registry's."""
        return files_below(self.root)
