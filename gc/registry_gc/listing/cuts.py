"""Where a long listing is cut: at folders, and within folders of digests at their beginnings.

A cut is a bound in the order of keys, and the pieces of a range lie end to end between its bounds.
So where the cuts lie decides how much work a piece is, and never what is listed: nothing is
missed, whatever a listing of folders leaves out. Cuts end in ``/``: SeaweedFS skips the whole
subtree under a bound that does not.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import takewhile

from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_gc.layout import BLOBS
from registry_gc.listing.ranges import Range, before

MOST = 64
"""Pieces of one cut at most: how much is left is a guess, and each costs a request."""

# Where names are cut: most differ in numbers.
_AFTER_DIGITS = "123456789a"
_AFTER_LETTERS = "adgkpt"
HEX = "0123456789abcdef"
_DIGITS = 6
_ALGORITHMS = ("sha256", "sha512")


def split_rest(reader: Reader, rest: Range) -> list[Range]:
    """Cut what is left of a long range; costs a listing of folders, or a few.

    Pieces are about as long as what was listed of it, as far as names tell.
    """
    last = rest.start_after
    if last is None:
        return [rest]
    (prefix,) = rest.prefixes
    level, folders = rest.level, rest.folders
    if level is None:
        level = prefix
        folders = _folders(reader, level)
    while True:
        if _holds_digests(level):
            cuts = _digest_cuts(level, rest)
        else:
            cuts = _name_cuts(level, rest) if is_leaf(level) else _spread(folders, rest)
        if cuts:
            return _pieces(rest, level, folders, cuts)
        here, inside, _ = last[len(level) :].partition("/")
        if not last.startswith(level) or not inside or _holds_digests(level) or is_leaf(level):
            # What is left is short, or nobody knows its names yet: then it is looked at again.
            return [replace(rest, pages=rest.pages if is_leaf(level) else None, begun=last)]
        # One folder is all that is left here: go down into it, where there is more to cut.
        level = f"{level}{here}/"
        folders = _folders(reader, level)


def _pieces(rest: Range, level: str, folders: tuple[str, ...], cuts: list[str]) -> list[Range]:
    pieces = []
    order = [folder.encode("utf-8", "surrogateescape") for folder in folders]
    for start, stop in zip([rest.start_after, *cuts], [*cuts, rest.stop_before], strict=True):
        first = bisect_right(order, (start or "").encode("utf-8", "surrogateescape"))
        last = len(order)
        if stop is not None:
            last = bisect_left(order, stop.encode("utf-8", "surrogateescape"))
        piece = replace(rest, start_after=start, stop_before=stop, begun=start)
        pieces.append(replace(piece, level=level, folders=folders[first:last]))
    return pieces


def _spread(folders: tuple[str, ...], rest: Range) -> list[str]:
    """Some of *folders*, as many from one to the next as were passed."""
    last, stop, begun = rest.start_after or "", rest.stop_before, rest.begun or ""
    ahead = [folder for folder in folders if before(last, folder)]
    passed = sum(before(begun, folder) for folder in folders) - len(ahead) + begun.endswith("/")
    if stop is not None:
        ahead = [folder for folder in ahead if before(folder, stop)]
    step = max(1, passed, -(-len(ahead) // MOST))
    return ahead[::step]


def _folders(reader: Reader, level: str) -> tuple[str, ...]:
    """The folders directly below *level*, in the order of keys, ``/`` at their ends."""
    names: tuple[str, ...]
    if level == BLOBS or level.endswith(("/_layers/", "/_manifests/revisions/")):
        names = ("sha256",)
    elif level.endswith("/_manifests/"):
        names = ("revisions", "tags")
    elif is_leaf(level) or _holds_digests(level):
        # They hold one file each, or few: listing them would cost as much as listing the files.
        names = ()
    else:
        names = reader.children(level).folders
    folders = (f"{level}{name}/" for name in names)
    return tuple(sorted(folders, key=lambda folder: folder.encode("utf-8", "surrogateescape")))


def is_leaf(level: str) -> bool:
    return level.endswith(("/_uploads/", "/_manifests/tags/"))


def _holds_digests(level: str) -> bool:
    """Whether the folders below *level* are called by digests, or by their first two digits."""
    if level.startswith(BLOBS):
        return level.count("/") > BLOBS.count("/")
    above, _, name = level[:-1].rpartition("/")
    return name in _ALGORITHMS and above.endswith(("/_layers", "/_manifests/revisions"))


def _name_cuts(level: str, rest: Range) -> list[str]:
    """Cuts between names that nobody knows: at the characters that may come after the last one's.

    Of tags like ``v1`` to ``v30000`` what was listed is ``v1`` to ``v1207``, say: all begin with
    ``v1``, and so the next ones with ``v13`` to ``v19``, or with ``v2`` to ``v9``.
    """
    last, stop, begun = rest.start_after or "", rest.stop_before, rest.begun or ""
    if not last.startswith(level) or not begun.startswith(level):
        # Of what was listed only a part lies here: it may be all there is.
        return []
    first, name = (path[len(level) :].partition("/")[0] for path in (begun, last))
    pairs = zip(first, name, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    cuts = []
    for at in range(max(0, same - 1), min(len(name), same + 1)):
        characters = _AFTER_DIGITS if name[at].isdigit() else _AFTER_LETTERS
        # Where the names that were listed begin to differ they have passed some characters.
        passed = ord(name[at]) - ord(first[at]) if at == same and at < len(first) else 1
        ahead = [character for character in characters if character > name[at]]
        cuts += [f"{level}{name[:at]}{character}/" for character in ahead[:: max(1, passed)]]
    return sorted(cut for cut in cuts if before(last, cut) and (not stop or before(cut, stop)))


def _digest_cuts(level: str, rest: Range) -> list[str]:
    """Cuts between digests, which are spread evenly."""
    last, stop_before = rest.start_after or "", rest.stop_before
    here = place(level, last)
    if here is None:
        return []
    stop = place(level, stop_before) or 1.0
    width = here - (place(level, rest.begun) or 0.0)
    pieces = min(MOST, round((stop - here) / width)) if width > 0 else MOST
    cuts = {_cut(level, here + (stop - here) * number / pieces) for number in range(1, pieces)}
    return sorted(
        cut for cut in cuts if before(last, cut) and (not stop_before or before(cut, stop_before))
    )


def place(level: str, path: str | None) -> float | None:
    """Where *path* lies between the first digest below *level*, 0, and the last, 1."""
    if path is None or not path.startswith(level):
        return None
    # Of blobs the second part is the digest, after a folder of its first two digits.
    digits = ""
    for part in path[len(level) :].split("/")[:2]:
        if part and part.startswith(digits) and not part.strip(HEX):
            digits = part
    return int(digits[:_DIGITS].ljust(_DIGITS, "0"), 16) / 16**_DIGITS if digits else None


def _cut(level: str, place: float) -> str:
    digits = f"{int(place * 16**_DIGITS):0{_DIGITS}x}"
    return f"{level}{digits[:2]}/{digits}/" if level.startswith(BLOBS) else f"{level}{digits}/"
