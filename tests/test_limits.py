"""Every limit by itself: it refuses a run and an apply, deletes nothing, and says which it was.

A dry run is allowed in each case, and says the same. What lifts a limit, lifts it; where nothing
does, ``--assume-readonly`` and the like do not either.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from applying.support import DAY, call, codes
from registry_drivers.filesystem import FilesystemStorage
from registry_gc.lock import Lock
from registry_tree import repository_path
from running import Disk, Result, write_config
from test_against_model import ALONE

REPOSITORIES = 12
GARBAGE = 3
"""Blobs that go: two layers that were never used, and a config that no manifest has."""


@dataclass
class Case:
    """A registry with garbage, a plan that was made when all was well, and what is given since."""

    disk: Disk
    stack: ExitStack
    options: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    root: Path | None = None

    @property
    def blobs(self) -> int:
        """How many blobs there are."""
        return sum("/blobs/" in path for path in self.disk.files())

    def hide(self, path: str) -> None:
        """A folder is not there any more, as when its disk is not mounted."""
        shutil.rmtree(self.disk.root / path)

    def configured(self) -> Path:
        """The config as it is now."""
        import yaml

        file = write_config(self.root or self.disk.root)
        document = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**document, **self.config}))
        return file


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as each test finds its own: registry, plan, and what the last run has seen."""
    folder = tmp_path_factory.mktemp("limits") / "kept"
    disk = Disk(folder.with_name("now"))
    for number in range(REPOSITORIES):
        disk.tree.image(f"team/{number}", "v1", layers=[b"%d" % number])
    disk.age(30 * DAY)
    assert call(disk.root, "run", write_config(disk.root), *ALONE).exit_code == 0
    for data in (b"one", b"two", b'{"of": "nothing"}'):
        disk.tree.layer("team/0", data)
    disk.age(30 * DAY)
    plan = disk.folder / "plan"
    made = call(disk.root, "plan", write_config(disk.root), "-o", plan, *ALONE)
    assert made.json["blobs"]["eligible"] == GARBAGE
    shutil.move(disk.folder, folder)
    return folder


@pytest.fixture
def case(kept: Path) -> Iterator[Case]:
    # Always at the same place: the plan is for that.
    folder = kept.with_name("now")
    shutil.copytree(kept, folder)
    with ExitStack() as stack:
        yield Case(Disk(folder), stack)
    shutil.rmtree(folder)


Change = Callable[[Case], None]


def a_count(case: Case) -> None:
    """One blob more than --max-delete."""
    case.options = ["--max-delete", str(GARBAGE - 1)]


def a_percentage(case: Case) -> None:
    """A little more than --max-delete of them."""
    case.options = ["--max-delete", f"{100 * GARBAGE / case.blobs - 0.1:.2f}%"]


def no_live_manifest(case: Case) -> None:
    """Blobs, layer links, and all revisions and tags gone; that is too much to be true."""
    for number in range(REPOSITORIES):
        case.hide(f"{repository_path(f'team/{number}')}/_manifests")
    case.options = ["--accept-shrink"]


def a_wrong_root(case: Case) -> None:
    """A folder full of something else."""
    case.root = case.disk.folder / "wrong"
    (case.root / "docker/images").mkdir(parents=True)
    (case.root / "docker/images/one").write_bytes(b"x")


def an_empty_root(case: Case) -> None:
    """A disk that is not mounted: its mount point is there."""
    case.root = case.disk.folder / "mount"
    case.root.mkdir()


def a_missing_root(case: Case) -> None:
    """Not even that."""
    case.root = case.disk.folder / "missing"


def a_registry_without_its_files(case: Case) -> None:
    """The root is right, and nothing in it."""
    case.hide("docker")


def a_cache_by_config(case: Case) -> None:
    """A pull-through cache says so."""
    case.config = {"proxy": {"remoteurl": "https://registry.example"}}
    case.options = ["--assume-readonly"]


def a_cache_by_its_state(case: Case) -> None:
    """One has been here."""
    case.disk.write("scheduler-state.json", b"{}")
    case.options = ["--assume-readonly"]


def a_database_by_config(case: Case) -> None:
    """GitLab's metadata database is on."""
    case.config = {"database": {"enabled": True}}
    case.options = ["--assume-readonly"]


def a_database_by_its_lock_file(case: Case) -> None:
    """A registry that has one is using this storage."""
    case.disk.write("docker/registry/lockfiles/database-in-use", b"")
    case.options = ["--assume-readonly"]


def a_lock(case: Case) -> None:
    """Another run is at work."""
    other = Lock.acquire(FilesystemStorage(str(case.disk.root)), "another")
    case.stack.callback(other.release)
    case.options = ["--assume-readonly", "--allow-empty", "--accept-shrink"]


def half_the_repositories(case: Case) -> None:
    """Six of twelve repositories are not there."""
    for number in range(REPOSITORIES // 2):
        case.hide(repository_path(f"team/{number + 1}"))


def half_the_tags(case: Case) -> None:
    """All repositories are there, and half of the tags."""
    for number in range(REPOSITORIES // 2):
        case.hide(f"{repository_path(f'team/{number}')}/_manifests/tags")


def a_writable_config(case: Case) -> None:
    """The registry takes writes by its config."""
    case.config = {"storage": {"filesystem": {"rootdirectory": str(case.disk.root)}}}


LIMITS: dict[Change, tuple[str, list[str] | None]] = {
    a_count: ("max-delete", ["--max-delete", str(GARBAGE)]),
    a_percentage: ("max-delete", ["--max-delete", "100%"]),
    no_live_manifest: ("no-live-manifests", ["--allow-empty"]),
    a_wrong_root: ("no-registry", None),
    an_empty_root: ("no-registry", None),
    a_missing_root: ("no-registry", None),
    a_registry_without_its_files: ("no-registry", None),
    a_cache_by_config: ("pull-through-cache", None),
    a_cache_by_its_state: ("scheduler-state", None),
    a_database_by_config: ("database-in-use", None),
    a_database_by_its_lock_file: ("database-in-use", None),
    a_lock: ("locked", None),
    half_the_repositories: ("shrunk", ["--accept-shrink"]),
    half_the_tags: ("shrunk", ["--accept-shrink"]),
    a_writable_config: ("writable-config", ["--assume-readonly"]),
}
"""How each is met; the code of its finding; what lifts it."""

each = pytest.mark.parametrize("change", LIMITS, ids=lambda change: change.__name__)
WHOLE = ["--allow-empty", "--accept-shrink", "--max-delete", "100%"]


def run(case: Case, *options: str) -> Result:
    """A collection."""
    return call(case.disk.root, "run", case.configured(), *case.options, *options, *ALONE)


def apply(case: Case, *options: str) -> Result:
    """The plan is carried out."""
    config = ["--config", str(case.configured())]
    plan = case.disk.folder / "plan"
    return call(case.disk.root, "apply", plan, *config, *case.options, *options, *ALONE)


def assert_refused(case: Case, done: Result, code: str) -> None:
    """It was so, for this reason alone, and nothing is gone."""
    assert done.exit_code == 4, done.errors
    assert done.json["guard"]["verdict"] == "refused"
    told = {"nothing-to-probe", "assume-readonly"}
    assert codes(done) - told == {code}, done.json["guard"]
    assert done.json["blobs"]["deleted"] == 0


@contextmanager
def untouched(disk: Disk) -> Iterator[None]:
    """Nothing of the registry's comes or goes meanwhile."""
    before = disk.files()
    yield
    assert disk.files() == before


@each
def test_a_run_is_refused(case: Case, change: Change) -> None:
    change(case)
    with untouched(case.disk):
        assert_refused(case, run(case), LIMITS[change][0])


@each
def test_an_apply_is_refused(case: Case, change: Change) -> None:
    change(case)
    with untouched(case.disk):
        done = apply(case)
        # A root that is another is no plan's; and what no plan names goes in no apply.
        code = "plan-elsewhere" if case.root is not None else LIMITS[change][0]
        assert_refused(case, done, code)


@each
def test_a_dry_run_is_allowed_and_says_so(case: Case, change: Change) -> None:
    change(case)
    with untouched(case.disk):
        done = run(case, "--dry-run")
    assert done.exit_code == (1 if change is a_missing_root else 0)
    assert LIMITS[change][0] in codes(done)


@each
def test_what_lifts_it_lifts_it_and_nothing_else_does(case: Case, change: Change) -> None:
    change(case)
    code, lifts = LIMITS[change]
    if lifts is None:
        with untouched(case.disk):
            assert_refused(case, run(case, *WHOLE), code)
        return
    others = [option for option in WHOLE if option.startswith("--") and option not in lifts]
    others = [option for option in others if option != "--max-delete"]
    with untouched(case.disk):
        assert run(case, *others).exit_code == 4
    done = run(case, *lifts)
    assert done.exit_code == 0, done.errors
    assert done.json["blobs"]["deleted"] >= GARBAGE
