from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import registry_gc.manifests
from registry_gc.cache import ReferenceCache, Remembered
from registry_gc.digest import pack
from registry_tree import RegistryTree, blob_path, folder_sink, revision_path
from running import Result, run, write_config

ROWS = [
    Remembered(bytes([number]) * 32, 100 + number, 1, b"\0" * 32, b"\0\1", bytes(64), "")
    for number in range(50)
]


def found(cache: ReferenceCache, rows: list[Remembered]) -> list[Remembered]:
    """What *cache* remembers of *rows*, one by one."""
    return [
        Remembered(*row) for part in cache.find(keys_of(rows)) for row in zip(*part, strict=True)
    ]


def keys_of(rows: list[Remembered]) -> Any:
    return pack(row.key for row in rows)


@pytest.mark.parametrize("chosen", [ROWS, ROWS[::7], ROWS[49:], ROWS[:1], []])
def test_what_was_added_is_found_again_in_order(tmp_path: Path, chosen: list[Remembered]) -> None:
    path = str(tmp_path / "below" / "cache")
    first = ReferenceCache.open(path)
    first.add(reversed(ROWS))
    first.close()
    again = ReferenceCache.open(path)
    assert found(again, chosen) == chosen
    assert again.notices == []
    again.close()


def test_a_damaged_row_is_not_found_and_the_others_are(tmp_path: Path) -> None:
    path = str(tmp_path / "cache")
    cache = ReferenceCache.open(path)
    cache.add(ROWS)
    cache.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE manifests SET targets = ? WHERE key = ?", (b"", ROWS[3].key))
    connection.close()
    again = ReferenceCache.open(path)
    assert found(again, ROWS) == [row for row in ROWS if row is not ROWS[3]]
    assert "1 damaged" in again.notices[0]
    again.close()


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_cache_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache"
    path.write_bytes(content)
    cache = ReferenceCache.open(str(path))
    assert "anew" in cache.notices[0]
    cache.add(ROWS)
    assert found(cache, ROWS) == ROWS
    cache.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_left_where_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "cache"
    make(path)
    cache = ReferenceCache.open(str(path))
    cache.add(ROWS)
    assert found(cache, ROWS) == []
    assert "no regular file" in cache.notices[0]
    assert [*tmp_path.iterdir()] == [path]


def test_a_good_cache_that_cannot_be_used_now_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    first = ReferenceCache.open(str(path))
    first.add(ROWS)
    first.close()
    # As where the disk is full or broken: SQLite cannot open its journal.
    (tmp_path / "cache-journal").mkdir()
    without = ReferenceCache.open(str(path))
    without.add(ROWS)
    assert found(without, ROWS) == []
    assert "cannot be used" in without.notices[0]
    (tmp_path / "cache-journal").rmdir()
    again = ReferenceCache.open(str(path))
    assert found(again, ROWS) == ROWS
    again.close()


def test_a_database_whose_tables_are_others_is_begun_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "cache")
    ReferenceCache.open(path).close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DROP TABLE tags")
    connection.close()
    cache = ReferenceCache.open(path)
    assert "anew" in cache.notices[0]
    cache.close()


def test_rows_of_other_rules_are_thrown_away(tmp_path: Path) -> None:
    path = str(tmp_path / "cache")
    cache = ReferenceCache.open(path)
    cache.add(ROWS)
    cache.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE meta SET format = 'older'")
    connection.close()
    again = ReferenceCache.open(path)
    assert found(again, ROWS) == []
    assert "another version" in again.notices[0]
    again.close()
    once_more = ReferenceCache.open(path)
    assert once_more.notices == []
    once_more.close()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ReferenceCache.open(str(tmp_path / "file" / "cache"))
    cache.add(ROWS)
    assert found(cache, ROWS) == []
    assert "cannot be used" in cache.notices[-1]


def test_the_rules_version_goes_up_with_the_rules() -> None:
    """Change RULES_VERSION with anything that makes other references of the same bytes."""
    rules = hashlib.sha256(Path(registry_gc.manifests.__file__).read_bytes()).hexdigest()
    assert (registry_gc.manifests.RULES_VERSION, rules) == RULES, (
        "manifests.py has changed: put the new sum here, and raise RULES_VERSION if any manifest "
        "may have other references now"
    )


# RULES_VERSION, and the sum of the module that it stands for.
RULES = (3, "307c75e0f001e9f5c6de6e81ed7d6109129cebf85d2d87510855cd5cfce2cded")


class TestCollection:
    def disk(self, folder: Path) -> tuple[Path, str]:
        root = folder / "registry"
        tree = RegistryTree(folder_sink(root))
        child = tree.image("a", None, layers=[b"one"])
        tree.index("a", "v1", [child])
        tree.image("a", None, layers=[b"two"], subject=child)
        tree.image("b", "v1", layers=[b"three"])
        tree.layer("b", b"orphan")
        return root, child

    def run(self, root: Path, *options: str) -> Result:
        fixed = ["--output", "json", "--cache", str(root.parent / "cache"), *options]
        return run(*fixed, write_config(root), state=root.parent / "state")

    def test_a_second_run_reads_no_manifest_and_says_the_same(self, tmp_path: Path) -> None:
        root, _ = self.disk(tmp_path)
        first = self.run(root, "-m", "--dry-run")
        second = self.run(root, "-m", "--dry-run")
        # Four manifests; the sizes of dead blobs come with the listing instead of one by one.
        assert first.json["requests"]["read"] - second.json["requests"]["read"] >= 4
        for name in ("blobs", "manifests", "layer_links", "marked", "repositories"):
            assert first.json[name] == second.json[name]

    @pytest.mark.parametrize("data", [b"", b"{}"])
    def test_a_manifest_that_is_damaged_since_is_met(self, tmp_path: Path, data: bytes) -> None:
        root, child = self.disk(tmp_path)
        assert self.run(root, "-m", "--dry-run").exit_code == 0
        (root / blob_path(child)).write_bytes(data)
        result = self.run(root, "-m")
        assert result.exit_code == 3
        assert result.held == {"a"}
        assert result.json["blobs"]["deleted"] == 1

    def test_a_manifest_that_is_gone_since_is_met(self, tmp_path: Path) -> None:
        root, child = self.disk(tmp_path)
        assert self.run(root, "--dry-run").exit_code == 0
        (root / blob_path(child)).unlink()
        result = self.run(root, "--dry-run")
        assert result.exit_code == 3
        assert [row["path"] for row in result.json["damaged"]] == [revision_path("a", child)]


def test_a_schema_that_is_no_text_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    ReferenceCache.open(str(path)).close()
    data = path.read_bytes()
    assert b"CREATE TABLE meta" in data
    path.write_bytes(data.replace(b"CREATE TABLE meta", b"CREATE TABLE\x81meta"))
    cache = ReferenceCache.open(str(path))
    cache.close()
    assert "begun anew" in cache.notices[0]
    again = ReferenceCache.open(str(path))
    again.close()
    assert again.notices == []


@pytest.mark.parametrize("harm", ["targets = NULL", "size = 'many'", "key = 7, others = x'00'"])
def test_a_row_of_other_types_is_damaged_and_no_reason_to_give_up(
    tmp_path: Path, harm: str
) -> None:
    path = str(tmp_path / "cache")
    cache = ReferenceCache.open(path)
    cache.add(ROWS)
    cache.close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(f"UPDATE manifests SET {harm} WHERE key = ?", (ROWS[3].key,))
    connection.close()
    again = ReferenceCache.open(path)
    assert found(again, ROWS) == [row for row in ROWS if row is not ROWS[3]]
    again.add([ROWS[3]])
    assert found(again, ROWS) == ROWS
    again.close()
