"""A store that lists a manifest, and says that it is not there when it is asked for it.

A proxy's own "404 Not Found" looks so, and a copy of the store that lags behind.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core_support import NOW, UNTAGGED_GO, Store
from registry_drivers.errors import NotFound
from registry_drivers.memory import MemoryStorage
from registry_gc.apply import apply, make_plan
from registry_gc.collect import Job, collect
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_tree import blob_path, sha256, tag_path


class Denying(MemoryStorage):
    """Does not find some objects, so many times."""

    def __init__(self) -> None:
        super().__init__(lambda: NOW)
        self.denied: dict[str, int] = {}

    def read(self, path: str, *, limit: int | None = None) -> bytes:
        if self.denied.get(path, 0) > 0:
            self.denied[path] -= 1
            raise NotFound("a page of somebody else's", path=path, driver=self.driver)
        return super().read(path, limit=limit)


class Notices(Silence):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def storage() -> Denying:
    store = Store()
    store.storage = Denying()
    child = store.tree.image("app/0", layers=[b"layer 0"])
    store.tree.index("app/0", "v1", [child])
    for at in range(1, 6):
        store.tree.image(f"app/{at}", "v1", layers=[b"layer %d" % at])
    store.tree.blob(b"dead")
    return store.storage


def job(storage: Denying, folder: Path, cache: str | None) -> Job:
    return Job(
        storage=storage,
        policy=UNTAGGED_GO,
        check=lambda: Verdict("allowed", ()),
        run_file=str(folder / "run.sqlite"),
        cache=cache,
    )


def paths(storage: Denying) -> set[str]:
    return {path for page in storage.list("") for path in page.paths}


def tagged(storage: Denying, at: int) -> str:
    return blob_path(storage.read(tag_path(f"app/{at}", "v1")).decode())


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("which", ["image", "index", "child"])
def test_a_manifest_that_is_not_found_once_is_asked_for_again(
    storage: Denying, tmp_path: Path, which: str, cached: bool
) -> None:
    before = paths(storage)
    index = tagged(storage, 0)
    child = json.loads(storage.read(index))["manifests"][0]["digest"]
    path = {"image": tagged(storage, 3), "index": index, "child": blob_path(child)}[which]
    storage.denied[path] = 1
    said = Notices()
    cache = str(tmp_path / "cache") if cached else None
    report = collect(job(storage, tmp_path, cache), said, Interrupts())
    assert report.exit_code == 0
    assert before - paths(storage) == {blob_path(sha256(b"dead"))}
    assert any("1 manifests could not be found, and are listed" in line for line in said.lines)


def test_one_that_is_never_found_ends_the_run(storage: Denying, tmp_path: Path) -> None:
    before = paths(storage)
    lost = tagged(storage, 3)
    storage.denied[lost] = 1000
    report = collect(job(storage, tmp_path, None), Silence(), Interrupts())
    assert report.exit_code == 1
    assert lost in (report.error or "")
    storage.denied.clear()
    assert paths(storage) == before


def test_one_that_is_neither_listed_nor_found_is_damage(storage: Denying, tmp_path: Path) -> None:
    list(storage.delete([tagged(storage, 3)]))
    report = collect(job(storage, tmp_path, None), Silence(), Interrupts())
    assert (report.exit_code, len(report.damaged), report.held) == (3, 1, ())
    assert blob_path(sha256(b"layer 3")) not in paths(storage)


def test_a_plan_is_carried_out_on_no_such_word(storage: Denying, tmp_path: Path) -> None:
    """What is live since the plan, by a manifest that is not found, has rows in it."""
    made = make_plan(job(storage, tmp_path, None), Silence(), Interrupts())
    assert made.exit_code == 0
    store = Store()
    store.storage = storage
    digest = store.tree.image("app/new", "v1", layers=[b"dead"])
    before = paths(storage)
    storage.denied[blob_path(digest)] = 1
    report = apply(job(storage, tmp_path, None), Silence(), Interrupts())
    assert report.exit_code == 0
    assert paths(storage) == before
