"""The reference cache survives kill -9 at any moment: the next run starts, and is right."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from killing import Victim, context
from registry_gc.cache import ReferenceCache, Remembered, TagRow
from registry_gc.digest import pack
from registry_tree import RegistryTree, folder_sink
from running import Result, run, write_config

MANIFESTS = 300
BATCH = 500


def batch(number: int) -> list[Remembered]:
    """Some manifests; each batch is written in one go, all over the file."""
    keys = (bytes([at % 256, at // 256, number % 256, number // 256]) * 8 for at in range(BATCH))
    return [Remembered(key, number, 1, b"\0" * 32, b"\0" * 20, bytes(20 * 32), "") for key in keys]


def write_for_ever(path: str, first: int, told: Connection) -> None:
    """In the process: remember batch after batch, and tell of each that is in the file."""
    cache = ReferenceCache.open(path)
    number = first
    while True:
        rows = batch(number)
        cache.add(rows)
        cache.add_tags(TagRow(row.key, bytes(16), "sha256:" + row.key.hex()) for row in rows)
        assert not cache.notices, cache.notices
        told.send(number)
        number += 1


def test_what_was_written_before_a_kill_is_whole_and_the_rest_is_as_if_never_written(
    tmp_path: Path,
) -> None:
    chosen = random.Random(7)
    path = str(tmp_path / "cache")
    whole = 0
    for _ in range(12):
        hearing, telling = context().Pipe(duplex=False)
        process = context().Process(target=write_for_ever, args=(path, whole, telling))
        process.start()
        telling.close()
        for _ in range(2):
            whole = hearing.recv() + 1
        # It is writing now; where in it nobody knows.
        process.join(chosen.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9
        while hearing.poll():
            try:
                whole = hearing.recv() + 1
            except EOFError:
                break
        hearing.close()
        cache = ReferenceCache.open(path)
        # One more may have been written, and nobody heard of it.
        found = dict.fromkeys(range(whole + 1), 0)
        everything = sorted(row.key for number in found for row in batch(number))
        for part in cache.find(pack(everything)):
            for number in part.sizes:
                found[number] += 1
        assert cache.notices == []
        assert set(found.values()) <= {0, BATCH}
        assert all(found[number] == BATCH for number in range(whole))
        assert sum(1 for _ in cache.find_tags(pack(everything))) % BATCH == 0
        cache.close()
        whole += found[whole] == BATCH


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of which most manifests are untagged."""
    root = tmp_path_factory.mktemp("registry") / "registry"
    tree = RegistryTree(folder_sink(root))
    for number in range(MANIFESTS):
        tree.image(f"r{number % 7}", "latest", layers=[b"base", b"layer %d" % number])
    return write_config(root)


def answer(result: Result) -> dict[str, object]:
    """What a run has found out, without how."""
    assert result.exit_code == 0, result.errors
    names = ("blobs", "manifests", "layer_links", "marked", "held", "damaged", "repositories")
    return {name: result.json[name] for name in names}


def options(folder: Path, config: Path) -> Sequence[str]:
    fixed = ["--output", "json", "--dry-run", "-m", "--workers", "2"]
    return [*fixed, "--cache", str(folder / "cache"), str(config)]


def test_a_run_after_one_that_was_killed_starts_and_says_what_is_right(
    config: Path, tmp_path: Path
) -> None:
    chosen = random.Random(4)
    first = tmp_path / "first"
    first.mkdir()
    _, events = Victim(first, ["run", "--state-dir", str(first), *options(first, config)]).run()
    expected = answer(run(*options(first, config), state=first))
    kills = 0
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        victim = Victim(folder, ["run", "--state-dir", str(folder), *options(folder, config)])
        kills += victim.run_until(chosen.randrange(events // 2, events))
        after = run(*options(folder, config), state=folder)
        assert answer(after) == expected, attempt
        assert "damaged" not in after.errors
        with closing(sqlite3.connect(folder / "cache")) as connection:
            counted = connection.execute("SELECT count(*) FROM manifests").fetchone()
        # What this run has learnt is all there, whatever the killed one left.
        assert counted == (MANIFESTS,)
    assert kills >= 3
