"""A symbolic link from one repository's name to another's: an alias, which must not outlive it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from registry_tree import repository_path
from running import Disk, collect


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """With a repository that stays, and two in which nothing has a tag."""
    disk = Disk(tmp_path)
    disk.tree.image("stays", "v1", layers=[b"kept"])
    disk.tree.image("group/goes", layers=[b"goes"])
    disk.tree.image("goes", layers=[b"goes too"], config=b'"too"')
    disk.age()
    return disk


def place(disk: Disk, name: str) -> Path:
    return disk.root / repository_path(name)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("alias", "goes"),
        ("zz", "goes"),
        ("also", "group"),
        ("deep/in/it", "../../group/goes"),
        ("group/alias", "../goes"),
        ("stays/one", "../goes"),
        ("stays/_mine", "../goes"),
    ],
)
def test_what_an_alias_leads_to_stays_when_it_is_emptied(
    link: str, target: str, disk: Disk
) -> None:
    place(disk, link).parent.mkdir(parents=True, exist_ok=True)
    place(disk, link).symlink_to(target, target_is_directory=True)
    result = collect(disk.root, "-m")
    assert result.exit_code == 0, result.errors
    assert result.json["manifests"]["deleted"] >= 2
    assert place(disk, link).is_symlink()
    assert [path.name for path in place(disk, link).rglob("*") if path.is_file()] == []
    # The next run finds nothing wrong, and nothing to do.
    again = collect(disk.root, "-m")
    assert (again.exit_code, again.json["manifests"]["eligible"]) == (0, 0), again.errors


def test_what_no_alias_leads_to_goes(disk: Disk) -> None:
    place(disk, "alias").symlink_to("stays", target_is_directory=True)
    assert collect(disk.root, "-m").exit_code == 0
    assert {path.name for path in place(disk, "stays").parent.iterdir()} == {"stays", "alias"}


def test_an_alias_of_an_empty_folder_leads_there_for_ever(disk: Disk) -> None:
    place(disk, "hollow").mkdir()
    place(disk, "alias").symlink_to("hollow", target_is_directory=True)
    for _ in range(2):
        result = collect(disk.root, "-m")
        assert result.exit_code == 0, result.errors
    assert place(disk, "hollow").is_dir()


def test_where_links_cannot_be_looked_for_empty_repositories_stay(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(self: object, top: str) -> None:
        asked.append(top)
        raise PermissionError(13, "Permission denied", str(place(disk, "closed")))

    monkeypatch.setattr("registry_drivers.filesystem_aliases.Aliases._found", fail)
    result = collect(disk.root, "-m")
    assert result.exit_code == 0
    assert place(disk, "goes").is_dir()
    assert place(disk, "group/goes").is_dir()
    assert f"some empty folders stay: filesystem: {repository_path('closed')}: " in result.errors
    assert len(asked) == 1


def test_no_alias_is_looked_for_in_what_belongs_to_the_file_system(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may read it; repositories that are a disk of their own have one."""
    place(disk, "lost+found").mkdir()
    plain = os.scandir

    def scandir(path: Any = ".") -> Any:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return plain(path)

    monkeypatch.setattr("os.scandir", scandir)
    result = collect(disk.root, "-m")
    assert (result.exit_code, result.errors) == (0, "")
    assert not place(disk, "goes").exists()


def test_aliases_on_another_disk_are_found_too(disk: Disk) -> None:
    elsewhere = disk.folder / "other-disk"
    elsewhere.mkdir()
    (elsewhere / "alias").symlink_to(place(disk, "group/goes"), target_is_directory=True)
    (elsewhere / "back").symlink_to(place(disk, "stays"), target_is_directory=True)
    place(disk, "other").symlink_to(elsewhere, target_is_directory=True)
    for _ in range(2):
        result = collect(disk.root, "-m")
        assert result.exit_code == 0, result.errors
    assert place(disk, "group/goes").is_dir()
