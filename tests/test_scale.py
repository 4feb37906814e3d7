"""Guards against regress: requests, bytes and calls are counted, never seconds."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from click.testing import CliRunner

import registry_gc.compact.key_index
import registry_gc.compact.spool
import registry_gc.listing.link_store
import registry_gc.listing.merge
from core_support import Watcher
from generated import GeneratedStorage
from generated_shape import Shape
from registry_drivers.memory import MemoryStorage
from registry_gc.collect import Job, collect
from registry_gc.compact.key_index import KeyIndex, distinct_keys
from registry_gc.compact.spool import Spool, SpoolError
from registry_gc.digest import KEY
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.listing.link_store import LinkStore
from registry_gc.listing.links import Links
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_tree import RegistryTree
from running import Disk, write_config
from windows import WINDOWS, windows

SMALL, LARGE = Shape(100, 10_000), Shape(400, 40_000)
FLAT = Shape(400, 40_000, teams=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


def planned(shape: Shape, folder: Path, *, workers: int = 1) -> Report:
    storage = GeneratedStorage(shape, folder=str(folder))
    run_file = folder / f"run-{len([*folder.iterdir()])}"
    name = f"{shape.repositories}-{shape.teams}"
    job = Job(
        storage=storage,
        policy=Policy(delete_untagged=True),
        check=lambda: Verdict("allowed", ()),
        run_file=str(run_file),
        cache=str(folder / f"cache-{name}"),
        dry_run=True,
        workers=workers,
    )
    report = collect(job, Watcher(), Interrupts())
    storage.close()
    assert report.error is None
    return report


def test_listing_costs_little_more_than_its_pages_and_a_warm_run_reads_no_manifest(
    folder: Path,
) -> None:
    for shape in (LARGE, FLAT):
        cold = planned(shape, folder, workers=4)
        warm = planned(shape, folder, workers=4)
        # Beside the manifests only the lock is looked for.
        assert cold.requests["read"] == shape.manifests + 1
        assert warm.requests["read"] == 1
        assert warm.marked == cold.marked
        keys = shape.blobs + shape.repositories * (15 + 2 * shape.tags)
        keys += warm.layer_links.eligible + shape.repositories * 140
        assert warm.requests["list"] <= 1.3 * keys / 1000 + 10


def test_memory_for_each_further_live_blob_stays_within_bounds(folder: Path) -> None:
    """What Python and numpy allocate at the peak, with windows that suit so small a registry."""
    peaks = []
    for shape in (SMALL, LARGE):
        with windows(WINDOWS):
            planned(shape, folder)
            gc.collect()
            tracemalloc.start()
            try:
                report = planned(shape, folder)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        live = report.blobs_total - report.blobs.eligible
    more = live * (LARGE.blobs - SMALL.blobs) / LARGE.blobs
    assert (peaks[1] - peaks[0]) / more < 60


def test_for_each_further_blob_few_functions_of_ours_are_called(folder: Path) -> None:
    """Whatever is done row by row shows here: for a blob there are several links and references."""
    calls = []
    for shape in (SMALL, LARGE):
        planned(shape, folder)
        count = 0

        def note(frame: FrameType, event: str, _: object) -> None:
            nonlocal count
            file = frame.f_code.co_filename
            count += event == "call" and ("registry_gc" in file or "registry_drivers" in file)

        sys.setprofile(note)
        try:
            planned(shape, folder)
        finally:
            sys.setprofile(None)
        calls.append(count)
    # 1.6 when this was written.
    assert (calls[1] - calls[0]) / (LARGE.blobs - SMALL.blobs) < 2


@pytest.fixture
def spool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    monkeypatch.setattr(registry_gc.compact.spool, "_WINDOW", 128)
    found = Spool(np.dtype(np.int64), limit=200)
    yield found
    found.close()


def test_a_spool_says_in_its_file_what_it_said_in_memory(spool: Spool) -> None:
    rows = np.arange(100, dtype=np.int64) * 7
    for start in range(0, 100, 9):
        assert spool.append(rows[start : start + 9]) == start
        assert spool.read(0, start + 9).tolist() == rows[: start + 9].tolist()
    assert spool._in_file > 0
    order = np.random.default_rng(1).permutation(100)
    ones = np.ones(100, np.int64)
    assert spool.take(order, ones).tolist() == rows[order].tolist()
    assert spool.take(np.array([3, 3, 99]), ones[:3]).tolist() == [21, 21, 693]
    assert spool.read(95, 200).tolist() == rows[95:].tolist()


def test_a_spool_that_has_settled_takes_no_memory_and_goes_on(spool: Spool) -> None:
    rows = np.arange(60, dtype=np.int64)
    spool.append(rows[:10])
    spool.settle()
    assert spool._in_file == 0, "a small one is no file"
    spool.append(rows[10:40])
    spool.append(rows[40:45])
    assert 0 < spool._in_file < len(spool)
    spool.settle()
    assert spool._in_file == len(spool) == 45
    assert not spool._parts
    spool.append(rows[45:])
    assert spool.read(0, 60).tolist() == rows.tolist()


def test_ranges_of_a_spool_come_whole_in_the_order_asked_for(spool: Spool) -> None:
    rows = np.arange(100, dtype=np.int64) * 7
    for start in range(0, 100, 9):
        spool.append(rows[start : start + 9])
    generator = np.random.default_rng(4)
    for _ in range(200):
        starts = generator.integers(0, 100, generator.integers(0, 12))
        counts = np.minimum(generator.integers(0, 12, len(starts)), 100 - starts)
        for order in (np.arange(len(starts)), np.argsort(starts)):
            ranges = zip(starts[order].tolist(), counts[order].tolist(), strict=True)
            wanted = [row for start, count in ranges for row in rows[start : start + count]]
            assert spool.take(starts[order], counts[order]).tolist() == wanted
    touching = np.arange(0, 100, 10)
    assert spool.take(touching, np.full(10, 10)).tolist() == rows.tolist()


def test_a_store_of_links_gives_them_by_owner_and_the_young_without_a_pass() -> None:
    store = LinkStore()
    keys = np.frombuffer(b"".join(bytes([number]) * 32 for number in range(6)), dtype=KEY)
    for owners, ages in (([1, 1, 0], [5.0, 6.0, 7.0]), ([2, 0, 1], [1.0, 2.0, 9.0])):
        first = len(store)
        store.add(
            Links(np.array(owners, np.int32), keys[first : first + 3], np.array(ages, np.float64))
        )
    store.renumber(np.array([2, 0, 1], np.int32))
    found = [*store.groups()]
    assert np.concatenate([part.owner for part in found]).tolist() == [0, 0, 0, 1, 2, 2]
    assert np.concatenate([part.modified for part in found]).tolist() == [5, 6, 9, 1, 7, 2]
    assert [part.modified.tolist() for part in store.groups(0, 1)] == [[5, 6, 9]]
    assert [part.modified.tolist() for part in store.groups(1)] == [[1, 7, 2]]
    assert np.concatenate([*store.young(6.5)]).tobytes() == keys[[5, 2]].tobytes()
    # Nothing is read where nothing is young.
    store.close()
    assert [*store.young(9.0)] == []


def test_links_that_are_ordered_in_place_are_those_that_are_sorted_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(5)
    for _ in range(100):
        for module in (registry_gc.listing.merge, registry_gc.listing.link_store):
            monkeypatch.setattr(module, "AT_ONCE", int(generator.integers(1, 8)))
        store, parts, rank = LinkStore(), [Links.empty()], generator.permutation(5)
        for count in generator.integers(0, 12, 4).tolist():
            owner = np.sort(generator.integers(0, 5, count)).astype(np.int32)
            keys = generator.integers(0, 256, (count, 32), dtype=np.uint8).view(KEY).reshape(-1)
            parts.append(Links(owner, keys, generator.random(count)))
            store.add(parts[-1])
        found = registry_gc.listing.merge._ordered(store, rank.astype(np.int32))
        wanted = registry_gc.listing.merge._sorted(parts, rank.astype(np.int32))
        assert found.owner.tolist() == wanted.owner.tolist()
        assert found.keys.tobytes() == wanted.keys.tobytes()
        assert found.modified.tolist() == wanted.modified.tolist()


def test_a_disk_without_room_keeps_rows_in_memory(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(60, dtype=np.int64)
    spool.append(rows[:30])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    spool.append(rows[30:])
    assert spool.read(0, 60).tolist() == rows.tolist()
    assert spool.take(rows[::-1], np.ones(60, np.int64)).tolist() == rows[::-1].tolist()


def test_a_disk_that_does_not_give_rows_back_is_no_end_of_the_rows(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append(np.arange(60, dtype=np.int64))
    assert spool._file is not None
    os.ftruncate(spool._file, 100)
    with pytest.raises(SpoolError, match=r"has become shorter.*TMPDIR"):
        spool.read(0, 60)
    with pytest.raises(SpoolError):
        spool.take(np.array([59, 0]), np.ones(2, np.int64))

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", broken)
    with pytest.raises(SpoolError, match=r"Input/output error.*TMPDIR"):
        spool.read(0, 3)


@pytest.mark.parametrize("dry_run", [False, True], ids=["run", "dry run"])
def test_a_temporary_file_that_cannot_be_read_back_ends_a_run_before_anything_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    storage = MemoryStorage()
    tree = RegistryTree(lambda path, data: storage.put(path, data, 0.0))
    tree.image("a", "v1", layers=[b"one", b"two"])
    tree.image("a", "v1", layers=[b"three"])
    before = storage.snapshot()
    job = Job(
        storage=storage,
        policy=Policy(delete_untagged=True),
        check=lambda: Verdict("allowed", ()),
        run_file=str(folder / f"broken-{dry_run}"),
        dry_run=dry_run,
        workers=1,
    )
    # A cleaner of temporary folders leaves the file be, which has no name; a bad disk does not.
    monkeypatch.setattr("os.preadv", lambda *_: 0)
    with windows({"compact.spool.IN_MEMORY": 8}):
        report = collect(job, Watcher(), Interrupts())
    assert report.exit_code == 1
    assert "temporary file" in (report.error or "")
    assert storage.snapshot() == before


def test_every_command_says_in_one_line_that_its_temporary_file_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry_gc.cli.main import registry_gc

    disk = Disk(tmp_path)
    image = disk.tree.image("a", "v1", layers=[b"one", b"two"])
    disk.tree.image("a", "v1", layers=[b"three"])
    disk.age()
    config, plan = str(write_config(disk.root)), str(tmp_path / "plan")
    state = ["--state-dir", str(tmp_path / "state")]
    runner = CliRunner()
    made = runner.invoke(registry_gc, ["run", "-m", "--quarantine", "1s", *state, config])
    assert made.exit_code == 0
    disk.tree.image("a", "v1", layers=[b"four"])
    disk.age()
    assert runner.invoke(registry_gc, ["plan", "-m", "-o", plan, *state, config]).exit_code == 0
    commands = [
        ["run", "-m", *state, config], ["run", "-d", *state, config],
        ["plan", "-o", f"{plan}2", *state, config], ["apply", *state, plan],
        ["verify", config], ["explain", config, image], ["report", *state, config],
        ["purge", *state, config],
    ]  # fmt: skip
    monkeypatch.setattr("os.preadv", lambda *_: 0)
    before = disk.files()
    with windows({"compact.spool.IN_MEMORY": 8}):
        for command in commands:
            answer = runner.invoke(registry_gc, command)
            assert isinstance(answer.exception, SystemExit), command
            assert answer.exit_code == 1, command
            said = [line for line in answer.stderr.splitlines() if "temporary file" in line]
            assert len(said) == 1, answer.stderr
    assert disk.files() == before


def test_keys_that_begin_with_the_same_64_bits_are_told_apart() -> None:
    """Nobody has such digests; what is visited is exact all the same."""
    texts = sorted(bytes([a]) * 8 + bytes([b]) * 24 for a in range(3) for b in range(4))
    keys = np.frombuffer(b"".join(texts), dtype=KEY)
    mixed = np.random.default_rng(2).permutation(np.concatenate([keys, keys[::2]]))
    assert distinct_keys(mixed).tobytes() == keys.tobytes()
    index = KeyIndex(keys)
    assert index.positions(keys[::-1]).tolist() == list(range(len(keys)))[::-1]
    strange = np.frombuffer(bytes(8) + b"\1" * 23 + b"\2", dtype=KEY)
    assert index.positions(strange).tolist() == [-1]


def test_keys_are_distinct_across_the_pieces_they_are_sorted_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_gc.compact.key_index, "_CHUNK", 4)
    texts = sorted(bytes([number]) * 32 for number in range(23))
    keys = np.frombuffer(b"".join(texts), dtype=KEY)
    mixed = np.random.default_rng(3).permutation(np.concatenate([keys, keys, keys]))
    assert distinct_keys(mixed).tobytes() == keys.tobytes()
    assert KeyIndex(keys).positions(mixed).min() >= 0
