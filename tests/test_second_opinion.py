"""``--verify``: what a plan would delete is worked out again before, and looked for afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_support import DAY, HOUR, NOW, UNTAGGED_GO, Store
from model import expect
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, Plan, collect
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_gc.runs.rows import Row, RowKind
from registry_tree import (
    blob_path,
    layer_link_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)
from running import Disk, scratch
from strategies import Registry, damaged


def verified(
    storage: MemoryStorage,
    policy: Policy = UNTAGGED_GO,
    *,
    spoil: Callable[[Plan], None] | None = None,
    dry_run: bool = False,
) -> Report:
    """Collect *storage* with ``--verify``; *spoil* may change the plan before it is looked at."""
    with scratch() as folder:
        job = Job(
            storage=storage,
            policy=policy,
            check=lambda: Verdict("allowed", ()),
            run_file=str(folder / "run.sqlite"),
            verify=True,
            dry_run=dry_run,
        )
        return collect(job, Silence(), Interrupts(), spoil)


@settings(max_examples=100)
@given(damaged(), st.booleans(), st.booleans())
def test_it_never_objects_to_what_a_collection_plans(
    registry: Registry, delete_untagged: bool, grace: bool
) -> None:
    storage = MemoryStorage(lambda: NOW)
    for path, file in registry.files.items():
        storage.put(path, file.data, NOW - file.age)
    policy = Policy(
        delete_untagged=delete_untagged,
        grace=HOUR if grace else 0.0,
        upload_age=None,
        allow_empty=True,
    )
    expected = expect(
        registry.files, delete_untagged=delete_untagged, grace=policy.grace, upload_age=None
    )
    report = verified(storage, policy)
    assert report.error is None
    assert report.exit_code in (0, 3)
    assert registry.files.keys() - storage.snapshot().keys() == expected.dead


class Images:
    """A tagged image beside an untagged one, a history, an alias and a referrer."""

    def __init__(self) -> None:
        self.store = Store()
        tree = self.store.tree
        self.old = tree.image("a", "v1", layers=[b"old"], config=b"old")
        self.live = tree.image("a", "v1", layers=[b"live"], config=b"live")
        self.signature = tree.image("a", layers=[b"signature"], subject=self.live)
        tree.image("b", layers=[b"dead"], config=b"dead")
        named = tree.blob(b"by sha512")
        tree.link_layer("c", sha512(b"by sha512"), named)
        layer = {"mediaType": "application/x", "digest": sha512(b"by sha512"), "size": 9}
        tree.image("c", "v1", layers=[], extra={"layers": [layer]})


@pytest.fixture
def images() -> Images:
    return Images()


def row(
    kind: RowKind, repository: str | None, digest: str, path: str, modified: float = 0.0
) -> Row:
    """A row of a plan that should not be there."""
    return Row(kind, repository, digest, path, 1, modified, "a mistake")


Wrong = Callable[[Images], Row]
WRONG: dict[str, Wrong] = {
    "a live layer": lambda i: row(RowKind.BLOB, None, sha256(b"live"), blob_path(sha256(b"live"))),
    "a live manifest": lambda i: row(RowKind.BLOB, None, i.live, blob_path(i.live)),
    "a signature's layer": lambda i: row(
        RowKind.BLOB, None, sha256(b"signature"), blob_path(sha256(b"signature"))
    ),
    "a layer that goes by another name": lambda i: row(
        RowKind.BLOB, None, sha256(b"by sha512"), blob_path(sha256(b"by sha512"))
    ),
    "a live revision": lambda i: row(RowKind.REVISION, "a", i.live, revision_path("a", i.live)),
    "a live referrer": lambda i: row(
        RowKind.REVISION, "a", i.signature, revision_path("a", i.signature)
    ),
    "a live layer link": lambda i: row(
        RowKind.LAYER_LINK, "a", sha256(b"live"), layer_link_path("a", sha256(b"live"))
    ),
    "an alias": lambda i: row(
        RowKind.LAYER_LINK, "c", sha512(b"by sha512"), layer_link_path("c", sha512(b"by sha512"))
    ),
    "what a tag points to": lambda i: row(
        RowKind.TAG_INDEX, "a", i.live, tag_index_path("a", "v1", i.live)
    ),
    "a tag itself": lambda i: row(RowKind.TAG_INDEX, "a", i.live, tag_path("a", "v1")),
    "another path than its digest's": lambda i: row(
        RowKind.BLOB, None, sha256(b"nothing"), blob_path(i.live)
    ),
    "an upload that is none": lambda i: row(RowKind.UPLOAD, "a", "uuid", blob_path(i.live)),
    "something young": lambda i: row(
        RowKind.BLOB, None, sha256(b"nothing"), blob_path(sha256(b"nothing")), NOW + DAY
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_plan_that_would_take_something_live_deletes_nothing(
    images: Images, what: str, dry_run: bool
) -> None:
    before = images.store.storage.snapshot()
    wrong = WRONG[what](images)
    report = verified(
        images.store.storage,
        spoil=lambda plan: plan.run_file.add([wrong]),
        dry_run=dry_run,
    )
    assert report.exit_code == 1
    assert report.error is not None
    assert wrong.path in report.error
    assert "1 of the things that were to go are needed" in report.error
    assert images.store.storage.snapshot() == before


def test_a_push_after_the_plan_is_seen(images: Images) -> None:
    def push(_: Plan) -> None:
        # What is dead by the plan is pushed again: only links are new.
        images.store.tree.tag("b", "v1", dead)

    dead = next(
        "sha256:" + path.split("/")[-2]
        for path in images.store.storage.snapshot()
        if "/b/_manifests/revisions/" in path
    )
    report = verified(images.store.storage, spoil=push)
    assert report.exit_code == 1
    assert report.blobs.deleted == 0
    assert images.store.storage.read(blob_path(dead))


def test_faults_of_before_are_told_and_are_none_of_the_runs(images: Images) -> None:
    images.store.remove(blob_path(sha256(b"live")))
    report = verified(images.store.storage)
    assert report.error is None
    assert report.exit_code == 3
    assert report.verified is not None
    assert report.verified.faults == 1


class Careless(MemoryStorage):
    """Deletes something else too, once it is asked to delete."""

    other = ""

    def delete(self, paths: object) -> Iterator[object]:  # type: ignore[override]  # a test's lie
        self._objects.pop(self.other, None)
        self._sorted = None
        return super().delete(paths)  # type: ignore[arg-type]  # as above


@contextmanager
def careless(images: Images, path: str) -> Iterator[MemoryStorage]:
    """The storage of *images*, which loses *path* when something else is deleted."""
    storage = Careless(lambda: NOW)
    storage.other = path
    for name, data in images.store.storage.snapshot().items():
        storage.put(name, data, NOW - DAY)
    yield storage


@pytest.mark.parametrize(
    "path",
    [
        lambda i: blob_path(sha256(b"live")),
        lambda i: blob_path(i.live),
        lambda i: revision_path("a", i.live),
        lambda i: layer_link_path("a", sha256(b"live")),
        lambda i: tag_path("a", "v1"),
    ],
)
def test_what_is_gone_after_the_sweep_is_told(
    images: Images, path: Callable[[Images], str]
) -> None:
    with careless(images, path(images)) as storage:
        report = verified(storage)
    assert report.exit_code == 1
    assert report.error is not None
    assert "gone after the sweep" in report.error


def test_the_option_does_it_on_a_disk_with_processes(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    live = disk.tree.image("a", "v1", layers=[b"live"])
    disk.tree.image("a", layers=[b"dead"])
    result = disk.collect("-m", "--verify")
    assert result.exit_code == 0
    assert result.json["verified"] == {"manifests": 1, "faults": 0}
    assert disk.has_image("a", live)
    assert not disk.has_blob(sha256(b"dead"))
    assert disk.collect("-m").json["verified"] is None
