"""Paths and pages: what the columns say is what a parser of single paths says."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from registry_drivers.base import Entry, Page, Paths
from registry_gc.digest import key_of
from registry_gc.layout import (
    BLOBS,
    REPOSITORIES,
    Run,
    Single,
    blob_path,
    layer_link,
    revision_folder,
    revision_link,
    split,
    tag_current,
    tag_folder,
    tag_index_link,
)
from registry_gc.listing.ranges import head_of
from registry_tree import (
    blob_path as written_blob_path,
)
from registry_tree import (
    layer_link_path,
    repository_path,
    revision_path,
    sha256,
    sha512,
    tag_index_path,
    tag_path,
)

Row = tuple[int, str, str, bytes] | tuple[int, str]
_ROW = re.compile(r"(.*/)([0-9a-f]{64})/(link|data)", re.DOTALL)


def naive(paths: Sequence[str]) -> list[Row]:
    """Each path by itself: row, head, leaf and key, or row and path."""
    rows: list[Row] = []
    for number, path in enumerate(paths):
        match = _ROW.fullmatch(path)
        if match:
            rows.append((number, match[1], match[3], bytes.fromhex(match[2])))
        else:
            rows.append((number, path))
    return rows


def cut(page: Page) -> list[Row]:
    """What :func:`split` says, row by row."""
    rows: list[Row] = []
    for piece in split(page):
        if isinstance(piece, Single):
            rows.append((piece.row, piece.path))
            continue
        assert isinstance(piece, Run)
        assert len(piece.keys) == piece.stop - piece.start > 0
        rows += [
            (piece.start + at, piece.head, piece.leaf, key.tobytes())
            for at, key in enumerate(piece.keys)
        ]
    return rows


def page_of(paths: Sequence[str]) -> Page:
    return Page.of([Entry(path, 71, float(number)) for number, path in enumerate(paths)])


HEX = "0123456789abcdef"
encoded = st.one_of(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.binary(min_size=64, max_size=64).map(bytes.hex),
    st.text(HEX + "ABCDEFg /é\0", min_size=60, max_size=66),
    st.integers(0, 63).map(lambda at: "a" * at + "G" + "a" * (63 - at)),
    st.integers(0, 63).map(lambda at: "a" * at + " " + "a" * (63 - at)),
    st.just("a" * 64),
    st.just("A" * 64),
)
heads = st.sampled_from(
    [
        "",
        "/",
        "x",
        "x/",
        "blobs/sha256/aa/",
        "r/_layers/sha256/",
        "r/_layers/sha512/",
        "ré/_layers/sha256/",
        "r\udcff/_layers/sha256/",
        "r/_manifests/tags/t/index/sha256/",
    ]
)
tails = st.sampled_from(["/link", "/data", "/link", "/lin", "/links", "xlink", "/LINK", "", "/a/b"])
rows = st.builds("{}{}{}".format, heads, encoded, tails)
stretches = st.builds(
    lambda head, some, tail: [f"{head}{one}{tail}" for one in some],
    heads,
    st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=20),
    tails,
)
pages = st.lists(st.one_of(rows.map(lambda row: [row]), stretches), max_size=12).map(
    lambda parts: [path for part in parts for path in part]
)


@given(pages)
@example(["a" * 69] * 8)
@example(["/" + "a" * 64 + "/link"] * 8)
@example([("a" * 64 + "/link")] * 8)
@example(["link"] * 8 + [""] * 8)
@example([f"x/{'a' * 63}{digit}/link" for digit in "0123456789abcdefABG"])
@example([f"x/{'a' * 64}/link", f"y/{'a' * 64}/link"] * 8)
@example([f"x/{'a' * 64}/link", f"x/{'a' * 64}/data"] * 8)
def test_the_columns_say_what_a_parser_of_single_paths_says(paths: list[str]) -> None:
    assert cut(page_of(paths)) == naive(paths)


@given(pages, st.integers(0, 60))
def test_the_head_of_a_page_is_cut_like_a_page(paths: list[str], count: int) -> None:
    count = min(count, len(paths))
    page = head_of(page_of(paths), count)
    assert len(page) == count
    assert cut(page) == naive(paths[:count])
    assert page.modified.tolist() == [float(number) for number in range(count)]


def test_paths_that_begin_in_the_middle_of_their_buffer_are_cut_right() -> None:
    """An Arrow column may be a slice of a longer one."""
    paths = [f"x/{number:064x}/link" for number in range(20)]
    whole = Paths.of(paths)
    part = Page(Paths(whole.data, whole.offsets[5:]), np.zeros(15, np.int64), np.zeros(15))
    assert cut(part) == naive(paths[5:])


def test_rows_under_one_head_are_one_run_and_others_are_not() -> None:
    paths = [f"{head}/{number:064x}/link" for head in ("aa", "bb") for number in range(9)]
    pieces = list(split(page_of(paths)))
    assert [(type(piece), getattr(piece, "head", "")) for piece in pieces] == [
        (Run, "aa/"),
        (Run, "bb/"),
    ]


def test_an_empty_page_has_no_pieces() -> None:
    assert list(split(page_of([]))) == []


@pytest.mark.parametrize("digest", [sha256(b"x"), sha512(b"x")])
@pytest.mark.parametrize("repository", ["a", "a/b-c/d.e"])
def test_paths_are_those_that_a_registry_writes(repository: str, digest: str) -> None:
    assert blob_path(digest) == written_blob_path(digest)
    assert layer_link(repository, digest) == layer_link_path(repository, digest)
    assert revision_link(repository, digest) == revision_path(repository, digest)
    assert revision_folder(repository, digest) + "link" == revision_link(repository, digest)
    assert tag_current(repository, "v1") == tag_path(repository, "v1")
    assert tag_index_link(repository, "v1", digest) == tag_index_path(repository, "v1", digest)
    assert tag_current(repository, "v1").startswith(tag_folder(repository, "v1"))
    assert blob_path(digest).startswith(BLOBS)
    assert repository_path(repository) == REPOSITORIES + repository
    assert layer_link(repository, digest).startswith(repository_path(repository))


def test_a_blob_path_gives_its_digest_back() -> None:
    digest = sha256(b"x")
    assert cut(page_of([blob_path(digest)])) == [
        (0, f"{BLOBS}sha256/{digest[7:9]}/", "data", key_of(digest))
    ]
