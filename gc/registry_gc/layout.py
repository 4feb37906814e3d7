"""Where a registry keeps what: paths from names, and names from pages of paths.

Pure. Source: CNCF Distribution, ``registry/storage/paths.go``; GitLab's registry is the same.
Paths are relative to the storage's root directory.

A page of a listing is cut by whole columns: rows of equal length that end in
``/<64 hex>/link`` or ``/<64 hex>/data`` lie side by side in the page's buffer, so that their
digests are decoded by one look-up in a table, whatever their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from registry_drivers.base import Group, Page
from registry_gc.digest import KEY, Keys

V2 = "docker/registry/v2/"
BLOBS = V2 + "blobs/"
SHA256_BLOBS = BLOBS + "sha256/"
REPOSITORIES = V2 + "repositories/"
OWN = "docker/registry/registry-gc/"
"""Whatever we write into the storage lies below this."""

_TAIL = 64 + len("/link")
_FEW = 6  # rows below which taking them one by one is cheaper than the columns' overhead

_NIBBLE = np.full(256, 255, dtype=np.uint8)
for _digit in range(16):
    _NIBBLE[ord(f"{_digit:x}")] = _digit


def blob_path(digest: str) -> str:
    """The bytes of *digest*."""
    algorithm, _, encoded = digest.partition(":")
    return f"{BLOBS}{algorithm}/{encoded[:2]}/{encoded}/data"


def layer_link(repository: str, digest: str) -> str:
    """The link that lets *digest* be pulled from *repository*."""
    return f"{REPOSITORIES}{repository}/_layers/{digest.replace(':', '/', 1)}/link"


def revision_folder(repository: str, digest: str) -> str:
    """The folder of a manifest in *repository*, with ``/`` at its end."""
    return f"{REPOSITORIES}{repository}/_manifests/revisions/{digest.replace(':', '/', 1)}/"


def revision_link(repository: str, digest: str) -> str:
    """The link that makes *digest* a revision of *repository*."""
    return revision_folder(repository, digest) + "link"


def tag_folder(repository: str, tag: str) -> str:
    """The folder of a tag, with ``/`` at its end."""
    return f"{REPOSITORIES}{repository}/_manifests/tags/{tag}/"


def tag_current(repository: str, tag: str) -> str:
    """The link that says what *tag* points to now."""
    return tag_folder(repository, tag) + "current/link"


def tag_index_link(repository: str, tag: str, digest: str) -> str:
    """The link that says that *tag* has pointed to *digest*."""
    return f"{tag_folder(repository, tag)}index/{digest.replace(':', '/', 1)}/link"


class Run(msgspec.Struct, frozen=True):
    """Rows ``start:stop`` of a page: ``<head><64 hex>/<leaf>``, all with the same head.

    ``keys`` are the decoded hex parts, dtype ``V32``; ``head`` ends with ``/``.
    """

    head: str
    leaf: str
    start: int
    stop: int
    keys: Keys


class Single(msgspec.Struct, frozen=True):
    """One row of a page that does not have the form of a :class:`Run`."""

    path: str
    row: int


def split(page: Page) -> Iterator[Run | Single]:
    """Cut a page into runs of rows under one head, and the rows that are in none."""
    if page.paths.groups is not None:
        yield from _by_groups(page.paths.groups)
        return
    offsets = page.paths.offsets
    lengths = np.diff(offsets)
    if not len(lengths):
        return
    edges = np.flatnonzero(lengths[1:] != lengths[:-1]) + 1
    bounds = [0, *edges.tolist(), len(lengths)]
    paths: list[str] = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        if stop - start < _FEW:
            # All paths of a page together cost a tenth of one after the other.
            paths = paths or list(page.paths)
            yield from _one_by_one(paths[start:stop], start)
        else:
            yield from _by_columns(page, start, stop, int(lengths[start]))


def _by_groups(groups: Sequence[Group]) -> Iterator[Run | Single]:
    row = 0
    for head, names, tail in groups:
        encoded = "".join(names)
        if tail in ("/link", "/data") and head.endswith("/") and set(map(len, names)) == {64}:
            with contextlib.suppress(ValueError):
                keys = bytes.fromhex(encoded)
                if keys.hex() == encoded:
                    stop = row + len(names)
                    yield Run(head, tail[1:], row, stop, np.frombuffer(keys, dtype=KEY))
                    row = stop
                    continue
        yield from _one_by_one([head + name + tail for name in names], row)
        row += len(names)


def _one_by_one(paths: list[str], first: int) -> Iterator[Run | Single]:
    for row, path in enumerate(paths, first):
        encoded, leaf = path[-_TAIL:-5], path[-5:]
        if len(path) > _TAIL and path[-_TAIL - 1] == "/" and leaf in ("/link", "/data"):
            try:
                key = bytes.fromhex(encoded)
            except ValueError:
                key = b""
            # fromhex takes capitals and blanks; a digest has neither.
            if len(key) == 32 and key.hex() == encoded:
                keys = np.frombuffer(key, dtype=KEY)
                yield Run(path[:-_TAIL], leaf[1:], row, row + 1, keys)
                continue
        yield Single(path, row)


def _by_columns(page: Page, start: int, stop: int, length: int) -> Iterator[Run | Single]:
    data = page.paths.data[page.paths.offsets[start] : page.paths.offsets[stop]]
    table = data.reshape(stop - start, length)
    if length <= _TAIL:
        yield from (Single(page.paths[row], row) for row in range(start, stop))
        return
    nibbles = _NIBBLE[table[:, -_TAIL:-5]]
    leaves = np.ascontiguousarray(table[:, -5:]).view("S5").reshape(-1)
    fits = (nibbles < 16).all(axis=1) & (table[:, -_TAIL - 1] == ord("/"))
    fits &= (leaves == b"/link") | (leaves == b"/data")
    heads = table[:, :-_TAIL]
    changes = (heads[1:] != heads[:-1]).any(axis=1) | (fits[1:] != fits[:-1])
    changes |= leaves[1:] != leaves[:-1]
    packed = (nibbles[:, 0::2] << 4) | (nibbles[:, 1::2] & 15)
    keys = np.ascontiguousarray(packed).view(KEY).reshape(-1)
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), stop - start]
    for first, last in zip(bounds, bounds[1:], strict=False):
        if fits[first]:
            head = heads[first].tobytes().decode("utf-8", "surrogateescape")
            leaf = leaves[first].decode()[1:]
            yield Run(head, leaf, start + first, start + last, keys[first:last])
        else:
            yield from (Single(page.paths[start + row], start + row) for row in range(first, last))
