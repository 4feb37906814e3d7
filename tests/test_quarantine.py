"""What a run with ``--quarantine`` sets aside, and how it comes back, on every kind of storage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model import HOUR, File
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.object_store import ObjectStorage
from registry_tree import (
    RegistryTree,
    blob_path,
    layer_link_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
)
from running import OWN_FOLDER, Result, run, write_config, write_files
from stores import LATER, Place, Servers, a_bit_of_everything, keys_of, store

DAY = 24 * HOUR
KINDS = ("filesystem", "s3", "s3-versioned", "gcs", "azure")


@dataclass
class Registry:
    """A registry somewhere, and commands on it at a time of the test's choice."""

    folder: Path
    place: Place | None
    later: float = field(default=0.0, init=False)

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

    @contextmanager
    def clock(self) -> Iterator[None]:
        """The storage's clock, as far ahead as the test has it."""
        ahead = self.later + (0.0 if self.place is None else LATER)
        with pytest.MonkeyPatch.context() as patch:
            if self.place is not None:
                self.place.prepare(patch)
            for storage in (FilesystemStorage, ObjectStorage):
                now: Callable[[Any], float] = storage.now
                patch.setattr(storage, "now", lambda self, now=now: now(self) + ahead)
            yield

    def collect(self, *options: str) -> Result:
        """Collect with JSON output."""
        with self.clock():
            fixed = ["--output", "json", "--no-cache", *options]
            return run(*fixed, self.config, state=self.folder / "state")

    def quarantine(self, *options: str) -> Result:
        """Collect what has no tag, into a quarantine of a week."""
        done = self.collect("-m", "--quarantine", "7d", *options)
        assert done.exit_code in (0, 3), done
        return done

    def command(self, *arguments: str) -> Result:
        """Run ``registry-gc`` with JSON output, the config as its first argument."""
        from registry_gc.cli.main import registry_gc

        name, *rest = arguments
        with self.clock():
            full = [name, "--output", "json", str(self.config), *rest]
            answer = CliRunner().invoke(registry_gc, full)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        document = json.loads(answer.stdout) if answer.stdout else {}
        return Result(answer.exit_code, document, answer.stdout, answer.stderr)

    def purge(self, *options: str) -> Result:
        """Purge."""
        state = str(self.folder / "state")
        return self.command("purge", "--state-dir", state, *options)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture
def make(servers: Servers, tmp_path: Path) -> Callable[[str], Registry]:
    def made(kind: str) -> Registry:
        if kind == "filesystem":
            return Registry(tmp_path, None)
        place = servers.place(kind.partition("-")[0])
        if kind == "s3-versioned":
            servers.keep_versions(place)
        return Registry(tmp_path, place)

    return made


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, make: Callable[[str], Registry]) -> Registry:
    """A registry of each kind, with a bit of everything in it."""
    made = make(request.param)
    made.write(a_bit_of_everything())
    return made


def uploads_of(files: Mapping[str, bytes]) -> set[str]:
    return {path for path in files if "/_uploads/" in path}


# --- setting aside ----------------------------------------------------------------------------


def test_what_would_be_deleted_is_set_aside_and_comes_back_whole(registry: Registry) -> None:
    before = registry.files()
    expected = registry.collect("-m", "--dry-run").json
    done = registry.quarantine().json
    after = registry.files()
    gone = before.keys() - after.keys()
    assert after.items() <= before.items()
    assert done["blobs"]["quarantined"] == expected["blobs"]["eligible"] > 5
    assert done["blobs"]["quarantined_bytes"] == expected["blobs"]["eligible_bytes"]
    assert done["blobs"]["deleted"] == done["blobs"]["deleted_bytes"] == 0
    assert done["manifests"]["quarantined"] == expected["manifests"]["eligible"]
    assert done["layer_links"]["quarantined"] == expected["layer_links"]["eligible"]
    assert done["strangers"] == expected["strangers"]
    back = registry.command("restore", done["run"])
    assert back.exit_code == 0, back
    assert sum(back.json["restored"].values()) == len(gone - uploads_of(before))
    whole = registry.files()
    assert whole == {path: data for path, data in before.items() if path not in gone} | {
        path: before[path] for path in gone - uploads_of(before)
    }


def test_uploads_are_deleted_outright(registry: Registry) -> None:
    before = registry.files()
    done = registry.quarantine().json
    assert done["uploads"]["deleted"] == done["uploads"]["eligible"] == 2
    assert len(uploads_of(before) - uploads_of(registry.read())) >= 4
    assert not any("/_uploads/" in path for path in registry.own())


def test_a_quarantine_is_nobodys_garbage(registry: Registry) -> None:
    registry.quarantine()
    own, files = registry.own(), registry.files()
    again = registry.collect("-m").json
    assert (again["blobs"]["eligible"], again["manifests"]["eligible"]) == (0, 0)
    assert again["quarantine"] == {
        "seconds": None, "delete_markers": False, "recalled": 0, "missed": 0,
    }  # fmt: skip
    assert (registry.own(), registry.files()) == (own, files)


def test_a_second_restore_of_a_run_finds_nothing_to_do(registry: Registry) -> None:
    done = registry.quarantine().json
    registry.command("restore", done["run"])
    whole = registry.files()
    again = registry.command("restore", done["run"])
    if done["quarantine"]["delete_markers"]:
        # The list of what was hidden stays until a purge.
        assert (again.exit_code, again.json["restored"]) == (0, {})
        assert again.json["already_there"] > 0
    else:
        assert again.exit_code == 1
        assert registry.own() == set()
    assert registry.files() == whole
