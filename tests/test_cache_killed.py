"""The reference cache survives kill -9 at any moment: the next run starts, and is right."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from killing import Victim
from registry_tree import RegistryTree, folder_sink
from running import Result, run, write_config

MANIFESTS = 400
CACHE = "cache.sqlite"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of which half of the manifests are untagged."""
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
    return [*fixed, "--cache", str(folder / CACHE), str(config)]


def remembered(cache: Path) -> int:
    """How many manifests the cache holds; looking does not mend it."""
    if not cache.exists():
        return 0
    copy = cache.with_name("copy")
    copy.write_bytes(cache.read_bytes())
    journal = cache.with_name(f"{CACHE}-journal")
    if journal.exists():
        copy.with_name("copy-journal").write_bytes(journal.read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        found = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if found < 3:
            return 0
        return int(connection.execute("SELECT count(*) FROM manifests").fetchone()[0])


def test_a_run_that_is_killed_while_it_writes_the_cache_harms_no_later_one(
    config: Path, tmp_path: Path
) -> None:
    chosen = random.Random(4)
    (tmp_path / "whole").mkdir()
    expected = answer(run(*options(tmp_path / "whole", config), state=tmp_path / "whole" / "state"))
    with sqlite3.connect(tmp_path / "whole" / CACHE) as connection:
        assert connection.execute("SELECT count(*) FROM manifests").fetchone() == (MANIFESTS,)
    connection.close()
    kills = half = 0
    for attempt in range(14):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        seconds = 0.0
        if not attempt:
            arguments = ["run", "--state-dir", str(folder / "state"), *options(folder, config)]
            whole, events = Victim(folder, arguments).run()
            continue
        arguments = ["run", "--state-dir", str(folder / "state"), *options(folder, config)]
        victim = Victim(folder, arguments)
        # From outside at any moment, or at one of the moments when the process opens, writes, …
        if attempt % 2:
            seconds = chosen.uniform(0.2, 0.95) * whole
            kills += victim.run_for(seconds)
        else:
            kills += victim.run_until(chosen.randrange(events // 4, events))
        half += 0 < remembered(folder / CACHE) < MANIFESTS
        after = run(*options(folder, config), state=folder / "state")
        assert answer(after) == expected, (attempt, seconds)
        assert "damaged" not in after.errors
        last = run(*options(folder, config), state=folder / "state")
        assert answer(last) == expected
        # What the run before has learnt is all there, whatever the killed one left.
        assert remembered(folder / CACHE) == MANIFESTS
        assert not json.loads(last.text)["failed"]
    assert kills >= 8
    assert half or kills
