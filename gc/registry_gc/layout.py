"""Where a registry keeps what: paths from names, and names from pages of paths.

Pure. Source: CNCF Distribution, ``registry/storage/paths.go``; GitLab's registry is the same.
Paths are relative to the storage's root directory.

A page of a listing is cut by whole columns: the ends of all rows, ``/<64 hex>/link`` or
``/<64 hex>/data``, are gathered at once and decoded by one call, whatever their number; rows of
equal length lie side by side in the page's buffer, so that one comparison finds equal heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

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
_LEAVES = ("", "link", "data")

# Two hex digits as one number, in the order of this machine's bytes, to what they stand for.
_NO_BYTE = 256
_BYTES = np.full(1 << 16, _NO_BYTE, dtype=np.uint16)
for _byte in range(256):
    _BYTES[np.frombuffer(b"%02x" % _byte, np.uint16)] = _byte
_ENDS = tuple(np.frombuffer(leaf, np.uint32)[0] for leaf in (b"link", b"data"))


def blob_path(digest: str) -> str:
    """The bytes of *digest*."""
    if digest.startswith("sha256:"):
        return f"{SHA256_BLOBS}{digest[7:9]}/{digest[7:]}/data"
    algorithm, _, encoded = digest.partition(":")
    return f"{BLOBS}{algorithm}/{encoded[:2]}/{encoded}/data"


def blob_paths(digests: Iterable[str]) -> list[str]:
    """The bytes of each of *digests*; millions of them are dead in a large registry."""
    return [
        f"{SHA256_BLOBS}{digest[7:9]}/{digest[7:]}/data"
        if digest.startswith("sha256:")
        else blob_path(digest)
        for digest in digests
    ]


def layer_link(repository: str, digest: str) -> str:
    """The link that lets *digest* be pulled from *repository*."""
    if digest.startswith("sha256:"):
        return f"{REPOSITORIES}{repository}/_layers/sha256/{digest[7:]}/link"
    return f"{REPOSITORIES}{repository}/_layers/{digest.replace(':', '/', 1)}/link"


def layer_links(repositories: Iterable[str], digests: Iterable[str]) -> list[str]:
    """The link of each of *digests* in its repository; a third faster than one by one."""
    return [
        f"{REPOSITORIES}{repository}/_layers/sha256/{digest[7:]}/link"
        if digest.startswith("sha256:")
        else layer_link(repository, digest)
        for repository, digest in zip(repositories, digests, strict=True)
    ]


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
    rows = len(page)
    if rows < _FEW:
        yield from _one_by_one(page.paths, 0)
        return
    offsets = page.paths.offsets
    data = np.ascontiguousarray(page.paths.data)
    lengths = np.diff(offsets)
    keys, leaves = _tails(data, offsets, lengths)
    edges = (lengths[1:] != lengths[:-1]) | (leaves[1:] != leaves[:-1])
    bounds = [0, *(np.flatnonzero(edges) + 1).tolist(), rows]
    begins = offsets.tolist()
    text = data.tobytes()
    kinds = leaves[bounds[:-1]].tolist()
    for start, stop, kind in zip(bounds, bounds[1:], kinds, strict=False):
        if not kind:
            for row in range(start, stop):
                yield Single(_decoded(text[begins[row] : begins[row + 1]]), row)
            continue
        width = begins[start + 1] - begins[start] - _TAIL
        first = start
        for last in _head_ends(data, begins, start, stop, width):
            head = _decoded(text[begins[first] : begins[first] + width])
            yield Run(head, _LEAVES[kind], first, last, keys[first:last])
            first = last


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


def _one_by_one(paths: Iterable[str], first: int) -> Iterator[Run | Single]:
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


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _tails(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[Keys, NDArray[np.uint8]]:
    """The keys in the last parts of all rows, and which leaf each has; 0 for rows without a key."""
    keys = np.zeros((len(lengths), 32), dtype=np.uint8)
    leaves = np.zeros(len(lengths), dtype=np.uint8)
    rows = np.flatnonzero(lengths > _TAIL)
    if len(rows):
        # Gathered as things of that many bytes, a tenth of what gathering bytes costs; one byte
        # more than the tail: the slash before the digest.
        tails = np.ndarray((len(data) - _TAIL,), f"V{_TAIL + 1}", data, strides=(1,))
        table = tails[offsets[rows + 1] - _TAIL - 1].view(np.uint8).reshape(-1, _TAIL + 1)
        ends = np.ascontiguousarray(table[:, -4:]).view(np.uint32).reshape(-1)
        kinds = (ends == _ENDS[0]) + np.uint8(2) * (ends == _ENDS[1])
        kinds[(table[:, 0] != ord("/")) | (table[:, -5] != ord("/"))] = 0
        pairs = np.ascontiguousarray(table[:, 1:-5]).view(np.uint16)
        found = _BYTES.take(pairs)
        # A digest has no capitals. Most pages hold digests only, or nearly.
        if found.max() == _NO_BYTE:
            kinds[(found == _NO_BYTE).any(axis=1)] = 0
        keys[rows], leaves[rows] = found.astype(np.uint8), kinds
    return keys.view(KEY).reshape(-1), leaves


def _head_ends(
    data: NDArray[np.uint8], begins: list[int], start: int, stop: int, width: int
) -> list[int]:
    """Where each head ends in rows of equal length: most have one and the same."""
    if stop - start == 1:
        return [stop]
    table = data[begins[start] : begins[stop]].reshape(stop - start, width + _TAIL)[:, :width]
    if (table == table[0]).all():
        return [stop]
    changes = (table[1:] != table[:-1]).any(axis=1)
    return [*(np.flatnonzero(changes) + 1 + start).tolist(), stop]
