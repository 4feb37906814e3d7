"""Blobs past a share of the live set: what comes back is enough, and little more than needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import registry_gc.listing.ranges
from core_support import NOW, Watcher
from generated import GeneratedStorage
from generated_shape import Shape
from registry_drivers.base import Reader
from registry_drivers.memory import MemoryStorage
from registry_gc.digest import empty_keys, pack, prefixes
from registry_gc.engine import SerialEngine
from registry_gc.layout import BLOBS
from registry_gc.listing.blob_shares import bounds_of, list_share
from registry_gc.listing.blobs import BlobBatch
from registry_gc.listing.ranges import Range, even_ranges
from registry_gc.live_set import LiveSet
from registry_gc.policy import Policy
from registry_gc.runs.plan_file import PlanFile
from registry_gc.survey import Surveyor
from stores import a_bit_of_everything

GENERATED = Shape(repositories=40, blobs=4000, teams=7)


class Far(SerialEngine):
    """An engine whose workers are to be spared what they need not know."""

    far = True


@pytest.fixture(params=["generated", "everything"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    if request.param == "generated":
        return GeneratedStorage(GENERATED, folder=str(tmp_path / "generated"))
    found = MemoryStorage(lambda: NOW, page_size=7)
    for path, data in a_bit_of_everything().items():
        found.put(path, data, NOW - 86400)
    return found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges so short that even these registries have many, and some are cut again."""
    monkeypatch.setattr(registry_gc.listing.ranges, "BLOBS_A_RANGE", 5)
    monkeypatch.setattr(registry_gc.listing.ranges, "PAGES", 2)


def planned(
    storage: Reader, engine: SerialEngine, run_file: Path, cache: Path | None = None
) -> tuple[dict[str, object], list[tuple[object, ...]]]:
    """What a survey by *engine* counts, and the rows of its dead blobs."""
    name = None if cache is None else str(cache)
    policy = Policy(delete_untagged=True)
    surveyor = Surveyor(storage, engine, policy, storage.now(), Watcher(), name)
    sink = PlanFile.create(str(run_file))
    survey = surveyor.plan_blobs(surveyor.catalog(), sink)
    sink.close()
    with closing(sqlite3.connect(run_file)) as connection:
        rows = connection.execute("SELECT path, size, modified, reason FROM deletions ORDER BY 1")
        found = [*rows]
    assert survey.blobs is not None
    counted = msgspec.to_builtins(survey.blobs) | {"unsized": 0}
    return counted, found


def test_far_workers_come_to_the_same_plan_and_figures(storage: Reader, tmp_path: Path) -> None:
    expected = planned(storage, SerialEngine(storage), tmp_path / "near")
    assert expected[1]
    assert planned(storage, Far(storage), tmp_path / "far") == expected
    cache = tmp_path / "cache"
    for name in ("cold", "warm"):
        assert planned(storage, Far(storage), tmp_path / name, cache) == expected


def test_remembered_manifests_of_another_size_are_met_by_far_workers_too(tmp_path: Path) -> None:
    storage = MemoryStorage(lambda: NOW, page_size=7)
    for path, data in a_bit_of_everything().items():
        storage.put(path, data, NOW - 86400)
    cache = tmp_path / "cache"
    planned(storage, Far(storage), tmp_path / "first", cache)
    harmed = next(path for path, data in a_bit_of_everything().items() if b'"config"' in data)
    storage.put(harmed, b"{}", NOW - 86400)
    expected = planned(storage, SerialEngine(storage), tmp_path / "near")
    assert planned(storage, Far(storage), tmp_path / "far", cache) == expected


def test_a_share_that_is_too_small_takes_no_blobs_life(
    storage: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = planned(storage, SerialEngine(storage), tmp_path / "near")
    nothing = np.empty(0, np.uint64)
    monkeypatch.setattr(LiveSet, "between", lambda live, low, high: nothing)
    assert planned(storage, Far(storage), tmp_path / "far") == expected


def test_only_what_a_plan_has_to_see_travels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = GeneratedStorage(GENERATED, folder=str(tmp_path))
    sent: list[BlobBatch] = []
    shares: list[int] = []

    class Counting(Far):
        def run(self, work, units, follow=None):  # type: ignore[no-untyped-def]  # as its parent
            def noted() -> Iterator[object]:
                for unit in units:
                    if work is list_share:
                        shares.append(len(unit.live))
                    yield unit

            for result in super().run(work, noted(), follow):
                if work is list_share:
                    sent.append(result.batch)
                yield result

    _, rows = planned(storage, Counting(storage), tmp_path / "run")
    live = GENERATED.blobs - len(rows)
    assert sum(len(batch.keys) for batch in sent) == len(rows)
    assert sum(batch.live for batch in sent) == live
    assert live <= sum(shares) <= 1.1 * live  # bounds are of six digits: a few are in two
    assert max(shares) < live / 50


def test_ranges_lie_end_to_end_and_bounds_are_generous() -> None:
    for expected in (0, 1, 5, 6, 4000):
        ranges = [*even_ranges(expected)]
        assert [ranges[0].start_after, ranges[-1].stop_before] == [None, None]
        for before, after in zip(ranges, ranges[1:], strict=False):
            assert before.stop_before == after.start_after
            assert bounds_of(before)[1] >= bounds_of(after)[0]
        assert bounds_of(ranges[0])[0] == 0
        assert bounds_of(ranges[-1])[1] == (1 << 64) - 1
    path = f"{BLOBS}sha256/ab/ab{'1' * 62}/data"
    assert bounds_of(Range((BLOBS,), start_after=path))[0] == 0xAB11111111111111
    assert bounds_of(Range((BLOBS,), stop_before=f"{BLOBS}sha512/"))[1] == (1 << 64) - 1
    assert bounds_of(Range((BLOBS,), stop_before=f"{BLOBS}sha256/ab/"))[1] == 0xABFFFFFFFFFFFFFF


def test_a_part_of_the_live_set_has_both_its_ends() -> None:
    keys = pack(bytes([number]) * 32 for number in (0, 1, 0x7F, 0x80, 0xFF))
    live = LiveSet([keys])
    words = prefixes(keys).tolist()
    assert live.between(0, (1 << 64) - 1).tolist() == words
    assert live.between(words[1], words[3]).tolist() == words[1:4]
    assert live.between(words[1] + 1, words[3] - 1).tolist() == words[2:3]
    assert LiveSet([empty_keys()]).between(0, 5).tolist() == []
