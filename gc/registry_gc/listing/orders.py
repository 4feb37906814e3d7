"""In which order a storage lists, as far as its answers tell.

Most list in the order of the paths' UTF-8 bytes. SeaweedFS, and Azure's accounts with a
hierarchical namespace, go folder by folder: ``a/x`` before ``a-b``. Azurite, written in
JavaScript, compares UTF-16. In each of these orders everything that begins alike lies together,
which is all that a listing needs to be shared out by beginnings.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

Order = Callable[[str], Any]


def _utf16(path: str) -> bytes:
    return path.encode("utf-16-be", "surrogatepass")


# A str compares by code points, which is how its UTF-8 bytes compare.
_ORDERS: dict[str, Order] = {
    "bytes": str,
    "tree": lambda path: path.replace("/", "\0"),
    "utf-16": _utf16,
    "utf-16 tree": lambda path: _utf16(path.replace("/", "\0")),
}
_SAME_FOR_ASCII = {"utf-16": "bytes", "utf-16 tree": "tree"}
ORDERS = tuple(_ORDERS)
"""The names of the orders that are known."""


def still_possible(orders: Sequence[str], paths: Sequence[str]) -> tuple[str, ...]:
    """Those of *orders* in which each of *paths*, as they were listed, comes after the last."""
    ascii_only = all(map(str.isascii, paths))
    found: list[str] = []
    for name in orders:
        twin = _SAME_FOR_ASCII.get(name)
        if ascii_only and twin in orders:
            # Looked at already.
            possible = twin in found
        else:
            keys = [*map(_ORDERS[name], paths)]
            possible = all(map(operator.lt, keys, islice(keys, 1, None)))
        if possible:
            found.append(name)
    return tuple(found)


def comes_before(orders: Sequence[str], bound: str) -> Callable[[str], bool]:
    """Tells of a path whether it is listed before *bound* in all of *orders*."""
    if bound.isascii():
        # Beside ASCII whatever is no ASCII comes after it, in any encoding.
        orders = [name for name in orders if _SAME_FOR_ASCII.get(name) not in orders]
    known = [(_ORDERS[name], _ORDERS[name](bound)) for name in orders]
    return lambda path: all(order(path) < place for order, place in known)
