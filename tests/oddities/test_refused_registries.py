"""Registries that are refused as a whole: nothing live, too much dead, an empty or wrong root."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import V2
from running import Disk


def test_a_registry_without_any_live_manifest_is_refused_unless_allowed(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    image = disk.tree.image("a", None, layers=[b"x"])
    result = disk.collect("-m")
    assert result.exit_code == 4
    assert result.json["guard"]["verdict"] == "refused"
    assert result.json["guard"]["findings"]
    assert disk.has_image("a", image)
    assert disk.collect("-m", "--dry-run").exit_code == 0
    assert disk.collect("-m", "--allow-empty").exit_code == 0
    assert not disk.has_blob(image)


@pytest.mark.parametrize(
    ("limit", "refused"), [("1", True), ("2", False), ("39%", True), ("40%", False)]
)
def test_more_than_max_delete_of_the_blobs_is_refused(
    disk: Disk, limit: str, refused: bool
) -> None:
    orphans = [disk.tree.layer("a", data) for data in (b"one", b"two")]
    result = disk.collect("--max-delete", limit)
    assert result.exit_code == (4 if refused else 0)
    assert all(disk.has_blob(orphan) is refused for orphan in orphans)
    assert result.json["guard"]["verdict"] == ("refused" if refused else "allowed")
    assert ("2 of 5" in str(result.json["guard"]["findings"])) is refused
    assert result.json["blobs"]["eligible"] == 2
    assert result.json["blobs"]["total"] == 5


@pytest.mark.parametrize("missing", ["", V2, f"{V2}/repositories"])
def test_an_empty_or_wrong_root_is_refused(tmp_path: Path, missing: str) -> None:
    disk = Disk(tmp_path)
    blob = ""
    if missing.endswith("repositories"):
        blob = disk.tree.blob(b"blobs, but no repositories: half a mount")
    result = disk.collect()
    assert result.exit_code == 4
    assert not blob or disk.has_blob(blob)
