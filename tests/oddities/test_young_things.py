"""What is too young to go: uploads, and what anything young names."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from model import HOUR
from oddities.support import DAY, Mode
from registry_tree import (
    blob_path,
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    tag_index_path,
)
from running import Disk, collect, empty_folders, write_config
from windows import windows

# Uploads.


def began(age: float) -> str:
    """What ``startedat`` says *age* seconds after an upload was begun."""
    return datetime.fromtimestamp(time.time() - age, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("started", "written", "goes"),
    [
        (10 * DAY, 10 * DAY, True),
        (10 * DAY, HOUR, False),
        (HOUR, 10 * DAY, False),
        (6 * DAY, 6 * DAY, False),
        (None, 10 * DAY, False),
    ],
)
def test_an_upload_is_as_old_as_the_youngest_thing_about_it(
    disk: Disk, started: float | None, written: float, goes: bool
) -> None:
    disk.tree.upload("a", "u", None if started is None else began(started), b"half")
    disk.write(f"{repository_path('a')}/_uploads/u/hashstates/sha256/5", b"state")
    disk.age(10 * DAY)
    disk.age(written, below=f"{repository_path('a')}/_uploads/u/hashstates")
    result = collect(disk.root)
    assert result.exit_code == 0
    assert disk.has(f"{repository_path('a')}/_uploads/u/data") is not goes
    assert result.json["uploads"]["deleted"] == int(goes)
    assert not empty_folders(disk.root)


@pytest.mark.parametrize("content", ["", "yesterday", "2020-01-01"])
def test_an_upload_that_says_nothing_readable_of_its_age_is_kept(disk: Disk, content: str) -> None:
    disk.tree.upload("a", "u", content, b"half")
    disk.age(100 * DAY)
    collect(disk.root)
    assert disk.has(f"{repository_path('a')}/_uploads/u/data")


@pytest.mark.parametrize(
    ("purging", "arguments", "goes"),
    [
        ({"enabled": True, "age": "24h"}, (), True),
        ({"enabled": True, "age": "96h"}, (), False),
        ({"enabled": False, "age": "24h"}, (), False),
        ({"enabled": False}, ("--upload-age", "1d"), True),
        ({"enabled": True, "age": "24h"}, ("--upload-age", "1w"), False),
        ({"enabled": True, "age": "24h"}, ("--grace", "96h"), False),
    ],
)
def test_the_operators_word_on_uploads_counts_and_the_command_lines_more(
    disk: Disk, purging: dict[str, object], arguments: Mode, goes: bool
) -> None:
    disk.tree.upload("a", "u", began(2 * DAY), b"half")
    disk.age(2 * DAY + 60)
    maintenance = {"readonly": {"enabled": True}, "uploadpurging": purging}
    config = write_config(disk.root, extra={"maintenance": maintenance})
    result = collect(disk.root, *arguments, config=config)
    assert result.exit_code == 0
    assert disk.has(f"{repository_path('a')}/_uploads/u/data") is not goes


# Age.


def touch(disk: Disk, path: str, age: float = 60.0) -> None:
    """Make one file *age* seconds old."""
    os.utime(disk.root / path, (time.time() - age, time.time() - age))


def test_without_grace_all_that_was_there_before_the_listing_counts_as_old(disk: Disk) -> None:
    orphan = disk.tree.layer("a", b"pushed a moment ago")
    result = collect(disk.root)
    assert result.exit_code == 0
    assert not disk.has_blob(orphan)


YOUNG_THINGS: list[tuple[str, Callable[[str], str]]] = [
    ("blob", blob_path),
    ("link", lambda digest: layer_link_path("a", digest)),
    ("link in another repository", lambda digest: layer_link_path("b", digest)),
]


@pytest.mark.parametrize("path_of", [x for _, x in YOUNG_THINGS], ids=[x for x, _ in YOUNG_THINGS])
def test_a_digest_is_as_young_as_the_youngest_thing_that_names_it(
    disk: Disk, path_of: Callable[[str], str]
) -> None:
    young, old = disk.tree.layer("a", b"young"), disk.tree.layer("a", b"old")
    disk.tree.layer("b", b"young")
    disk.age(2 * DAY)
    touch(disk, path_of(young))
    result = collect(disk.root, "--grace", "1d")
    assert result.exit_code == 0
    assert disk.has_layer("a", young)
    assert disk.has_layer("b", young)
    assert not disk.has_blob(old)
    assert not disk.has_link("a", old)
    result = collect(disk.root)
    assert not disk.has_blob(young)


@pytest.mark.parametrize("links", ["few", "many"])
def test_what_is_live_elsewhere_and_restored_keeps_its_old_links_everywhere(
    disk: Disk, links: str
) -> None:
    """Its blob alone is young, as after a restore; and no listing of what is dead looks at it."""
    image = disk.tree.image("a", None, layers=[b"own"])
    disk.tree.image("b", "v1", layers=[b"own"])
    other = disk.tree.image("c", "v1", layers=[b"restored"])
    layer = disk.tree.layer("a", b"restored")
    gone = disk.tree.layer("a", b"other")
    disk.tree.image("d", "v1", layers=[b"other"])
    disk.age(2 * DAY)
    touch(disk, blob_path(image))
    touch(disk, blob_path(layer))
    with windows({"marking.link_ages.FEW": 0 if links == "many" else 10_000}):
        collect(disk.root, "-m", "--grace", "1d")
    assert disk.has_image("a", image)
    assert disk.has_layer("a", layer)
    assert disk.has_image("c", other)
    assert not disk.has_link("a", gone)
    collect(disk.root, "-m")
    assert not disk.has_link("a", layer)
    assert disk.has_blob(layer)


@pytest.mark.parametrize("what", ["revision", "tag index", "blob"])
def test_a_young_manifest_is_a_root_with_all_that_it_needs(disk: Disk, what: str) -> None:
    image = disk.tree.image("a", "v1", layers=[b"needed"])
    disk.tree.image("a", "v1", layers=[b"newer"])
    path = {
        "revision": revision_path("a", image),
        "tag index": tag_index_path("a", "v1", image),
        "blob": blob_path(image),
    }[what]
    disk.age(2 * DAY)
    touch(disk, path)
    collect(disk.root, "-m", "--grace", "1d")
    assert disk.has_image("a", image)
    assert disk.has(tag_index_path("a", "v1", image))
    collect(disk.root, "-m")
    assert not disk.has_blob(image)


@pytest.mark.parametrize(
    ("hours", "arguments", "told"),
    [
        (
            30,
            ("-m",),
            "1 blobs that nothing needs and 1 links to manifests are dated in the future",
        ),
        (30, (), "1 blobs that nothing needs and 0 links to manifests are dated in the future"),
        (20, ("-m",), ""),  # file servers' clocks differ
    ],
)
def test_what_is_dated_in_the_future_is_told_as_nothing_else_says_why_it_stays(
    disk: Disk, hours: int, arguments: Mode, told: str
) -> None:
    digest = disk.tree.image("a", layers=[b"untagged"])
    disk.tree.blob(b"nobody needs it")
    disk.age()
    for path in (revision_path("a", digest), blob_path(sha256(b"nobody needs it"))):
        later = time.time() + hours * HOUR
        os.utime(disk.root / path, (later, later))
    result = collect(disk.root, *arguments)
    assert result.exit_code == 0
    assert disk.has_blob(sha256(b"nobody needs it"))
    assert disk.has_image("a", digest)
    assert (told in result.errors) if told else ("future" not in result.errors)
