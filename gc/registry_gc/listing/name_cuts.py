"""How a long listing is shared out where it cannot begin at a bound: by how names begin.

A listing can be asked for any beginning of a path, and gone on with after any of its pages. So
when a range turns out to be long, a folder's names are asked for; those that were not listed yet
are put together by as few beginnings as set them apart from those that were, and each beginning is
a range of its own. What is left of the folder in which the listing stands goes on where it was:
no key is listed twice, but for those of one last page.

Whatever order a storage lists in, it must be one in which what begins alike lies together
(:mod:`registry_gc.listing.orders`): where none fits, nothing is cut. A beginning takes with it
names that come up meanwhile. What no beginning has was written after the folder was looked at, as
what a single listing has passed by already; and in a folder of digests, names that begin with no
digit of theirs and come after them, which mean nothing there.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_gc.layout import BLOBS, SHA256_BLOBS
from registry_gc.listing.cuts import HEX, MOST, is_leaf, place
from registry_gc.listing.orders import comes_before
from registry_gc.listing.ranges import PAGES, Names, Range

_MOST_DIGITS = 3


class _Part(msgspec.Struct, frozen=True):
    """Names of one folder that begin alike, and what else begins so, and is not meant."""

    beginning: str
    names: tuple[str, ...]
    without: tuple[str, ...] = ()


def share_out(reader: Reader, rest: Range) -> list[Range]:
    """Cut what is left of a long range; costs a listing of a folder, or a few."""
    names, last = rest.names, rest.start_after
    assert names is not None
    assert last is not None
    goes_on = replace(rest, pages=2 * (rest.pages or PAGES))
    if not names.orders:
        return [goes_on]
    scope = names.only or rest.prefixes[0]
    while True:
        level = scope[: scope.rfind("/") + 1]
        known = _names(reader, rest, level)
        if known is None:
            return [replace(rest, pages=None)]
        here, inside, _ = last[len(level) :].partition("/")
        current = level + here + inside
        if digits := _digits(level, rest):
            current = level + here[:digits]
            if here[:digits].strip(HEX):
                return [goes_on]
            known = tuple(f"{level}{number:0{digits}x}" for number in range(16**digits))
        known = tuple(name for name in known if name.startswith(scope))
        passed = comes_before(names.orders, last)
        ahead = [
            name
            for name in known
            if not (last.startswith(name) or name in names.without or passed(name))
        ]
        if not ahead and current.endswith("/") and not digits:
            # Nothing beside it is left: go down into it, where there is more to share.
            scope = current
            continue
        parts = _worthwhile(ahead, known, current, rest)
        if not parts:
            return [replace(goes_on, level=level, folders=() if digits else known)]
        return _ranges(rest, names, parts, current, "" if digits else level)


def _ranges(rest: Range, names: Names, parts: list[_Part], current: str, level: str) -> list[Range]:
    ranges = [
        Range(
            (part.beginning,),
            pages=PAGES,
            level=level or None,
            folders=part.names if level else (),
            names=Names(without=part.without, orders=names.orders),
        )
        for part in parts
    ]
    if current == rest.start_after:
        # A file, and so the last of itself.
        return ranges
    here = replace(names, only=current)
    return [replace(rest, pages=PAGES, level=None, folders=(), names=here), *ranges]


def _names(reader: Reader, rest: Range, level: str) -> tuple[str, ...] | None:
    """What lies directly below *level*, folders with a ``/``; None where nobody should ask."""
    if rest.level == level and rest.folders:
        return rest.folders
    if _holds_digests(level):
        return ()
    if is_leaf(level) or (level.startswith(BLOBS) and level.count("/") > SHA256_BLOBS.count("/")):
        # They hold one file each, or few: asking would cost as much as listing the files.
        return None
    below = reader.children(level)
    return (*(f"{level}{name}/" for name in below.folders), *(level + name for name in below.files))


def _holds_digests(level: str) -> bool:
    return level.endswith(("/_layers/sha256/", "/_manifests/revisions/sha256/"))


def _digits(level: str, rest: Range) -> int:
    """How many digits tell pieces of ten pages apart; 0 where the names are not digests."""
    if not _holds_digests(level):
        return 0
    passed = (place(level, rest.start_after) or 0.0) - (place(level, rest.begun) or 0.0)
    if passed <= 0:
        return 1
    return min(_MOST_DIGITS, max(1, math.ceil(math.log(1 / passed, 16))))


def _worthwhile(ahead: list[str], known: tuple[str, ...], current: str, rest: Range) -> list[_Part]:
    """Parts of what is *ahead*, of which each is probably some pages long; none if few are."""
    assert rest.names is not None
    behind = set(known).difference(ahead)
    earlier = comes_before(rest.names.orders, rest.begun or "")
    passed = sum(not earlier(name) for name in behind)
    pages_a_name = (rest.pages or PAGES) / max(1, passed)
    parts = _fewest(ahead, sorted({*behind, current, *rest.names.without}))
    if len(parts) > len(ahead) * pages_a_name / 2:
        return []
    # With no name listed whole, nobody knows how long they are.
    return _split_long(parts, pages_a_name) if passed > 1 else parts


def _fewest(ahead: list[str], behind: list[str]) -> list[_Part]:
    """As few beginnings as all of *ahead* have, and none of *behind*, which is sorted."""
    parts: dict[str, list[str]] = {}
    without: dict[str, tuple[str, ...]] = {}
    beginning = ""
    for name in sorted(ahead):
        if beginning and name.startswith(beginning):
            parts[beginning].append(name)
            continue
        at = bisect_left(behind, name)
        beside = behind[max(0, at - 1) : at + 1]
        shared = max((len(_alike([name, other])) for other in beside), default=0)
        beginning = name[: shared + 1]
        parts[beginning] = [name]
        if shared == len(name):
            # A file that others are called like.
            without[beginning] = tuple(other for other in behind if other.startswith(name))
    return [_Part(start, tuple(names), without.get(start, ())) for start, names in parts.items()]


def _alike(names: Sequence[str]) -> str:
    return os.path.commonprefix(names)  # noqa: RUF071  # characters are meant, not folders


def _split_long(parts: list[_Part], pages_a_name: float) -> list[_Part]:
    """Split the longest parts, as long as that makes pieces of some pages."""
    done: list[_Part] = []
    todo = list(parts)
    while todo:
        part = max(todo, key=lambda part: len(part.names))
        todo.remove(part)
        pages = len(part.names) * pages_a_name
        shared = _alike(part.names)
        pieces: dict[str, list[str]] = {}
        for name in part.names:
            pieces.setdefault(name[: len(shared) + 1], []).append(name)
        if (
            pages <= 2 * PAGES
            or shared in pieces
            or part.without
            or pages / len(pieces) < PAGES / 2
            or len(done) + len(todo) + len(pieces) > MOST
        ):
            done.append(part)
        else:
            todo += [_Part(beginning, tuple(names)) for beginning, names in pieces.items()]
    return sorted(done, key=lambda part: part.beginning)
