"""A registry somewhere, with commands on it at a time of the test's choice: for quarantines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model import HOUR, File
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.object_store import ObjectStorage
from registry_tree import RegistryTree, blob_path, layer_link_path, revision_path
from running import OWN_FOLDER, Result, run, write_config, write_files
from stores import LATER, Place, keys_of, store

DAY = 24 * HOUR


@dataclass
class Registry:
    """A registry somewhere, and commands on it at a time of the test's choice."""

    folder: Path
    place: Place | None
    later: float = field(default=0.0, init=False)
    cache: Path | None = field(default=None, init=False)

    @property
    def root(self) -> Path:
        return self.folder / "registry"

    @property
    def config(self) -> Path:
        return write_config(self.root) if self.place is None else self.place.config(self.folder)

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write *files*; they are old for every command."""
        if self.place is None:
            old = {path: File(data, LATER) for path, data in files.items()}
            write_files(self.root, old, time.time())
        else:
            store(self.place, files)

    def read(self) -> dict[str, bytes]:
        """Everything that is there, ours too, by its path."""
        if self.place is None:
            found = (path for path in self.root.rglob("*") if path.is_file())
            return {str(path.relative_to(self.root)): path.read_bytes() for path in found}
        with self.place.opened() as storage:
            return {path: storage.read(path) for path in keys_of(self.place)}

    def files(self) -> dict[str, bytes]:
        """What the registry sees."""
        return {path: d for path, d in self.read().items() if not path.startswith(OWN_FOLDER)}

    def own(self) -> set[str]:
        """What is ours."""
        return {path for path in self.read() if path.startswith(OWN_FOLDER)}

    def remove(self, *paths: str) -> None:
        """Delete files behind everybody's back."""
        if self.place is None:
            for path in paths:
                (self.root / path).unlink()
            return
        with self.place.opened() as storage:
            list(storage.delete(paths))

    @property
    def ahead(self) -> float:
        """How far the storage's clock is ahead of this machine's, in seconds."""
        return self.later + (0.0 if self.place is None else LATER)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """The storage's clock, as far ahead as the test has it."""
        ahead = self.ahead
        with pytest.MonkeyPatch.context() as patch:
            if self.place is not None:
                self.place.prepare(patch)
            for storage in (FilesystemStorage, ObjectStorage):
                now: Callable[[Any], float] = storage.now
                patch.setattr(storage, "now", lambda self, now=now: now(self) + ahead)
            yield

    def collect(self, *options: str) -> Result:
        """Collect with JSON output."""
        return self.collect_on(self.config, *options)

    def collect_on(self, config: Path, *options: str) -> Result:
        """Collect with another config."""
        with self.clock():
            cache = ["--no-cache"] if self.cache is None else ["--cache", str(self.cache)]
            fixed = ["--output", "json", *cache, *options]
            return run(*fixed, config, state=self.folder / "state")

    def quarantine(self, *options: str) -> Result:
        """Collect what has no tag, into a quarantine of a week."""
        done = self.collect("-m", "--quarantine", "7d", *options)
        assert done.exit_code in (0, 3), done
        return done

    def command(self, *arguments: str) -> Result:
        """Run ``registry-gc`` with JSON output, the config as its first argument."""
        return self.command_on(self.config, *arguments)

    def command_on(self, config: Path, *arguments: str) -> Result:
        """Run ``registry-gc`` with another config."""
        from registry_gc.cli.main import registry_gc

        name, *rest = arguments
        with self.clock():
            full = [name, "--output", "json", str(config), *rest]
            answer = CliRunner().invoke(registry_gc, full)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        document = json.loads(answer.stdout) if answer.stdout else {}
        assert document.get("exit_code", answer.exit_code) == answer.exit_code
        return Result(answer.exit_code, document, answer.stdout, answer.stderr)

    def purge(self, *options: str) -> Result:
        """Purge."""
        state = str(self.folder / "state")
        return self.command("purge", "--state-dir", state, *options)

    def quarantined(self) -> set[str]:
        """The original paths of what is in quarantine, whoever set it aside."""
        folder = f"{OWN_FOLDER}/quarantine/"
        cut = (path.removeprefix(folder).partition("/")[2] for path in self.own())
        return {path for path in cut if path.startswith("docker/")}

    def tree(self) -> RegistryTree:
        """Pushes into this registry, which is on disk; they are as old as all else."""
        assert self.place is None
        return RegistryTree(lambda path, data: self.write({path: data}))

    def can_pull(self, repository: str, digest: str) -> bool:
        """Whether an image, or an index, can be pulled whole by its digest."""
        return is_whole(self.files(), repository, digest)


def is_whole(files: Mapping[str, bytes], repository: str, digest: str) -> bool:
    """Whether an image, or an index, can be pulled whole from a registry of *files*."""
    if not {revision_path(repository, digest), blob_path(digest)} <= files.keys():
        return False
    document = json.loads(files[blob_path(digest)])
    if "manifests" in document:
        return all(is_whole(files, repository, row["digest"]) for row in document["manifests"])
    parts = [part["digest"] for part in (document["config"], *document["layers"])]
    links = [files.get(layer_link_path(repository, part)) for part in parts]
    return all(link is not None and blob_path(link.decode()) in files for link in links)
