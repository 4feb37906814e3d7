"""The fast walk against a slow one, on trees of every shape."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.conformance import paths_of
from drivers.folders import HEX, OTHER_HEX
from registry_drivers.filesystem import FilesystemStorage
from registry_drivers.filesystem_names import byte_order
from registry_drivers.filesystem_rows import Rows

# Names that make the shortcuts apply, nearly apply, and sort badly.
NAMES = st.sampled_from(
    ["blobs", "sha256", "ab", HEX, OTHER_HEX, HEX[:40], "data", "link", "x", "x-y", "x.y", "ü"]
)
FOLDERS = st.sampled_from(
    [
        "v2/blobs/sha256/ab",
        f"v2/blobs/sha256/ab/{HEX}",
        f"v2/blobs/sha256/ab/{OTHER_HEX}",
        "r/_layers/sha256",
        f"r/_layers/sha256/{HEX}",
        f"r/_manifests/revisions/sha512/{OTHER_HEX}",
        "r/_manifests/tags",
        "r/_manifests/tags/v1",
        "r/_manifests/tags/v1/current",
        "r/_manifests/tags/v1-x/current",
        f"r/_manifests/tags/v1/index/sha256/{HEX}",
        f"r/_manifests/tags/v1-x/index/sha256/{HEX}",
        "r/_manifests/tags/v1/index/md5",
        "r/_uploads/1",
        "",
    ]
)
LINK = re.compile(
    r".*/(_layers|_manifests/(revisions|tags/[^/]+/index))/[^/]+/[0-9a-f]{32,}/link"
    r"|.*/_manifests/tags/[^/]+/current/link"
)
PATHS = st.builds(
    lambda folder, names: "/".join(filter(None, [folder, *names])),
    FOLDERS,
    st.lists(NAMES, min_size=1, max_size=2),
)


def build(root: Path, paths: Iterable[str]) -> list[str]:
    """Make what can be made of *paths*: a file is never also a folder."""
    made: list[str] = []
    for path in sorted(paths, key=len):
        if not any(path == other or path.startswith(other + "/") for other in made):
            file = root / path
            if not file.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"")
                made.append(path)
    return made


def misplaced(paths: list[str]) -> set[str]:
    """The folders above *paths* that have the name of a link, in its place: listed as files too."""
    above = {path[:at] for path in paths for at, letter in enumerate(path) if letter == "/"}
    return {folder for folder in above if LINK.fullmatch(folder)}


def seen(paths: list[str]) -> set[str]:
    """What the shortcuts leave of *paths*, written from their description."""
    there = set(paths)
    hidden: set[str] = set()
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above, name = parts[:depth], parts[depth - 1]
            folder = "/".join(above)
            is_blob = above[-4:-3] == ["blobs"] and above[-2] == "ab"
            is_link = above[-3:-2] in (["_layers"], ["revisions"], ["index"])
            leaf = "data" if is_blob else "link" if is_link else None
            siblings = "/".join(above[:-1]) + "/"
            names = {p[len(siblings) :].split("/")[0] for p in paths if p.startswith(siblings)}
            digests = name in names and all(len(name) >= 32 for name in names)
            if leaf and digests and f"{folder}/{leaf}" in there:
                hidden.update({path} - {f"{folder}/{leaf}"})
            if above[-3:-1] == ["_manifests", "tags"]:
                index = f"{folder}/index/"
                below = {p[len(index) :].partition("/") for p in paths if p.startswith(index)}
                plain = all(alg == "sha256" and slash for alg, slash, _ in below)
                usual = f"{folder}/current/link" in there and below and plain
                if usual and path != f"{folder}/current/link" and not path.startswith(index):
                    hidden.add(path)
    return there - hidden | misplaced(paths)


@settings(max_examples=80, deadline=None)
@given(st.sets(PATHS, max_size=14), st.data())
def test_the_walk_lists_what_it_promises_in_order_and_goes_on_anywhere(
    paths: set[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = build(Path(name), paths)
        storage = FilesystemStorage(name)
        found = paths_of(storage.list(""))
        assert found == sorted(seen(made), key=byte_order)
        bound = data.draw(st.sampled_from([*found, "r/", "v2/blobs/", "zzz", "v2/blobs/sha256/ab"]))
        rest = [path for path in found if byte_order(path) > byte_order(bound)]
        with mock.patch.object(Rows, "PAGE_ROWS", 2):
            assert paths_of(storage.list("", start_after=bound)) == rest
            assert paths_of(storage.list("")) == found


@settings(max_examples=50, deadline=None)
@given(st.sets(PATHS, max_size=8), st.sets(PATHS, max_size=8))
def test_hollow_folders_are_those_without_a_file_below(paths: set[str], folders: set[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        made = build(Path(name), paths)
        for folder in folders:
            if not any(folder == path or folder.startswith(path + "/") for path in made):
                (Path(name) / folder).mkdir(parents=True, exist_ok=True)
        storage = FilesystemStorage(name)
        hollow = [folder for page in storage.list("") for folder in page.hollow]
        assert len(hollow) == len(set(hollow))
        for folder in hollow:
            assert not [files for _, _, files in os.walk(f"{name}/{folder}") if files]
        storage.remove_folders(hollow, floor="")
        assert not any(os.path.exists(f"{name}/{folder}") for folder in hollow)
        assert sorted(p for p in made if (Path(name) / p).exists()) == sorted(made)
