"""What the names of a registry's folders say, as far as a walk over them goes by that. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Parent of the algorithm's folder -> the file that each digest's folder is expected to hold.
# ``blobs`` has a folder of two hex digits between the two.
LEAVES = {"blobs": "data", "_layers": "link", "revisions": "link", "index": "link"}


# ext's own folder at the top of a disk, readable by root alone; no repository can be called so.
LOST_AND_FOUND = "lost+found"

_HEX = b"0123456789abcdef"
_TWO_HEX = re.compile(r"[0-9a-f]{2}")
# A folder where a registry has a file; below a quarantine's folder lies the same tree.
_MISPLACED = re.compile(
    r"(?:/v2/blobs/[^/]+/[0-9a-f]{2}/[0-9a-f]{32,}/data/"
    r"|/(?:_layers|_manifests/(?:revisions(?:/[^/]+/[^/]+/signatures)?|tags/[^/]+/index))"
    r"/[^/]+/[0-9a-f]{32,}/link/"
    r"|/_manifests/tags/[^/]+/current/link/)\Z"
)


def expected_leaf(folder: str) -> str | None:
    """The file that each digest's folder below *folder* (with ``/``) holds; None for others."""
    parts = folder.rsplit("/", 4)
    if len(parts) >= 3 and parts[-3] != "blobs" and parts[-3] in LEAVES:
        return LEAVES[parts[-3]]
    if len(parts) >= 4 and parts[-4] == "blobs" and _TWO_HEX.fullmatch(parts[-2]):
        return LEAVES["blobs"]
    return None


def is_misplaced(folder: str) -> bool:
    """Whether a file is to be where *folder* (with ``/``) is."""
    return folder.endswith(("/link/", "/data/")) and bool(_MISPLACED.search("/" + folder))


def all_digests(names: Sequence[str]) -> bool:
    """Whether all *names* are 32 or more lower-case hex digits."""
    # Deleting the digits from all names at once takes a tenth of a regular expression's time.
    rest = byte_order("".join(names)).translate(None, delete=_HEX)
    return not rest and min(map(len, names), default=32) >= 32


def byte_order(name: str) -> bytes:
    """The key that sorts names as object stores do, by their bytes in UTF-8."""
    return name.encode("utf-8", "surrogateescape")
