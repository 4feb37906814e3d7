"""A run, a restore and a purge that die after any single request lose nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from aside import DAY, is_whole
from core_support import NOW, OLD, marked
from registry_drivers.base import Outcome
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, collect
from registry_gc.engine import SerialEngine
from registry_gc.events import Silence
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.locking.holder import LOCK
from registry_gc.policy import Policy
from registry_gc.quarantine.aside import asides
from registry_gc.quarantine.bring_back import BringingBack
from registry_gc.quarantine.clearing import clear_empty
from registry_gc.quarantine.purge import Purge
from registry_gc.quarantine.restore import What, select
from registry_gc.survey import NoBlobs, Survey, Surveyor
from running import OWN_FOLDER
from stores import a_bit_of_everything

POLICY = Policy(delete_untagged=True, quarantine=7 * DAY)
FOLDER = f"{OWN_FOLDER}/quarantine/"


class Killed(BaseException):
    """The process is gone."""


class Mortal(MemoryStorage):
    """Dies before its *life*-th change, and does nothing more; copies, as object stores do."""

    def __init__(self, files: dict[str, bytes], life: int, now: Callable[[], float]) -> None:
        super().__init__(now, delete_batch=3)
        for path, data in files.items():
            self.put(path, data, OLD)
        self.life = life

    def _change(self) -> None:
        if self.life <= 0:
            raise Killed
        self.life -= 1

    def write(self, path: str, data: bytes, *, if_absent: bool = False) -> None:
        self._change()
        super().write(path, data, if_absent=if_absent)

    def copy(self, source: str, target: str) -> None:
        """As an object store does."""
        self._change()
        self.put(target, self.read(source))

    def delete(self, paths: Iterable[str]) -> Iterator[Outcome]:
        for path in paths:
            self._change()
            yield from super().delete([path])


class Renaming(Mortal):
    """As a file system does: a move is one change."""

    copy = None  # type: ignore[assignment]  # what is not callable is no Copier's

    def move(self, source: str, target: str) -> None:
        self._change()
        super().move(source, target)


KINDS = pytest.mark.parametrize("kind", [Mortal, Renaming])
ENDLESS = 10**9


def survey(storage: MemoryStorage, policy: Policy = POLICY) -> Survey:
    surveyor = Surveyor(storage, SerialEngine(storage), policy, storage.now(), Silence())
    return surveyor.plan_blobs(surveyor.catalog(), NoBlobs())


def quarantine(storage: MemoryStorage, folder: Path) -> None:
    """One run; what a process that has died leaves locked is free."""
    run_file = str(folder / f"run-{len(list(folder.iterdir()))}.sqlite")
    list(MemoryStorage.delete(storage, [LOCK]))
    job = Job(storage, POLICY, lambda: Verdict("allowed", ()), run_file, workers=1)
    report = collect(job, Silence(), Interrupts())
    assert report.exit_code in (0, 3), report


def restore(storage: MemoryStorage, what: str) -> None:
    runs = [aside.run for aside in asides(storage)]
    items = select(storage, None, What.parse(what, runs))
    for result in BringingBack(storage, None, lambda: None).run(items):
        assert not result.error, result
    clear_empty(storage, items)


def purge(storage: MemoryStorage) -> None:
    for purged in Purge(storage, None, survey(storage), None, lambda: None).run():
        assert not purged.failed


def seen(storage: MemoryStorage) -> dict[str, bytes]:
    """What the registry sees."""
    files = storage.snapshot().items()
    return {path: data for path, data in files if not path.startswith(OWN_FOLDER)}


def aside_of(storage: MemoryStorage) -> set[str]:
    """The original paths of what is in quarantine."""
    paths = (path for path in storage.snapshot() if path.startswith(FOLDER))
    cut = (path.removeprefix(FOLDER).partition("/")[2] for path in paths)
    return {path for path in cut if path.startswith("docker/")}


def without_uploads(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if "/_uploads/" not in path}


def pullable(files: dict[str, bytes]) -> set[tuple[str, str]]:
    """Each tag that can be pulled whole."""
    found = set()
    for path, data in files.items():
        match = re.fullmatch(r".*/repositories/(.+)/_manifests/tags/(.+)/current/link", path)
        if match and is_whole(files, match[1], data.decode()):
            found.add((match[1], match[2]))
    return found


def lives(changes: int) -> range:
    """After how many changes to die: each, or a good share of them."""
    return range(0, changes, max(1, changes // 60))


def changes_of(storage: Mortal, work: Callable[[], None]) -> int:
    storage.life = ENDLESS
    work()
    return ENDLESS - storage.life


@KINDS
def test_a_killed_run_loses_nothing_and_the_next_one_ends_its_work(
    kind: type[Mortal], tmp_path: Path
) -> None:
    before = a_bit_of_everything()
    whole = (
        Mortal(before, ENDLESS, lambda: NOW)
        if kind is Mortal
        else kind(before, ENDLESS, lambda: NOW)
    )
    changes = changes_of(whole, lambda: quarantine(whole, tmp_path))
    assert changes > 50
    for life in lives(changes):
        storage = kind(before, life, lambda: NOW)
        with pytest.raises(Killed):
            quarantine(storage, tmp_path)
        assert pullable(seen(storage)) == pullable(before)
        kept = without_uploads(before)
        assert kept.keys() == without_uploads(seen(storage)).keys() | (aside_of(storage))
        storage.life = ENDLESS
        quarantine(storage, tmp_path)
        assert seen(storage) == seen(whole)
        for aside in asides(storage):
            restore(storage, aside.run)
        assert without_uploads(seen(storage)) == kept


@KINDS
def test_a_killed_restore_leads_nowhere_to_nothing_and_the_next_one_ends_it(
    kind: type[Mortal], tmp_path: Path
) -> None:
    before = a_bit_of_everything()

    first = kind(before, ENDLESS, lambda: NOW)
    quarantine(first, tmp_path)
    (aside,) = asides(first)

    def set_aside() -> tuple[Mortal, str]:
        storage = kind({}, ENDLESS, lambda: NOW)
        for path, data in first.snapshot().items():
            storage.put(path, data, first.stat(path).modified)
        return storage, aside.run

    whole, run = set_aside()
    already = lost_links(seen(whole))
    changes = changes_of(whole, lambda: restore(whole, run))
    for life in lives(changes):
        storage, run = set_aside()
        storage.life = life
        with pytest.raises(Killed):
            restore(storage, run)
        assert lost_links(seen(storage)) <= already
        storage.life = ENDLESS
        if asides(storage):
            restore(storage, run)
        assert seen(storage) == seen(whole)
        # What was copied back and not yet deleted here waits for a purge.
        assert aside_of(storage) <= seen(storage).keys()


def lost_links(files: dict[str, bytes]) -> set[str]:
    """Layer and revision links of which the blob is not there."""
    found = set()
    for path in files:
        match = re.fullmatch(r".*/(?:_layers|revisions)/(sha256)/([0-9a-f]{64})/link", path)
        blob = match and f"docker/registry/v2/blobs/{match[1]}/{match[2][:2]}/{match[2]}/data"
        if blob and blob not in files:
            found.add(path)
    return found


@KINDS
def test_a_killed_purge_can_be_restored_from_or_run_again(
    kind: type[Mortal], tmp_path: Path
) -> None:
    before = a_bit_of_everything()
    clock = NOW

    def set_aside() -> Mortal:
        nonlocal clock
        clock = NOW
        storage = kind(before, ENDLESS, lambda: clock)
        quarantine(storage, tmp_path)
        clock = NOW + 8 * DAY
        return storage

    whole = set_aside()
    left = seen(whole)
    changes = changes_of(whole, lambda: purge(whole))
    assert set(whole.snapshot()) == set(left)
    for life in lives(changes):
        storage = set_aside()
        storage.life = life
        with pytest.raises(Killed):
            purge(storage)
        assert seen(storage) == left
        storage.life = ENDLESS
        purge(storage)
        assert set(storage.snapshot()) == set(left)


def test_a_mark_knows_what_it_knew_before_a_run_was_killed() -> None:
    """What the tests above compare with is what a mark says."""
    storage = MemoryStorage(lambda: NOW)
    for path, data in a_bit_of_everything().items():
        storage.put(path, data, OLD)
    assert ("app", "latest") in pullable(seen(storage))
    assert marked(storage, Policy(delete_untagged=True)).dead
