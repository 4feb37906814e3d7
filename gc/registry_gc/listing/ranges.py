"""How a listing is cut into work units that keep every worker busy, and no finer.

On a filesystem folders are cheap to look into, so units are made of folders beforehand. On an
object store each range costs at least one request: listing begins as one range, and only what
turns out to be long is cut into ranges of about :data:`PAGES` pages: at bounds
(:mod:`registry_gc.listing.cuts`), or where a listing cannot begin at one, by how names begin
(:mod:`registry_gc.listing.name_cuts`).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from registry_drivers.base import NameReader, Page, Paths, Reader
from registry_drivers.errors import StorageError
from registry_gc.layout import BLOBS, SHA256_BLOBS
from registry_gc.listing.orders import ORDERS, still_possible
from registry_gc.machine.overlap import THREADS, size_of_parts

PAGES = 10
# What is expected are the live ones, of which a page holds a thousand. A range of more pages than
# one unit lists would be cut, which costs a request.
BLOBS_A_RANGE = 700 * PAGES
_HEX_DIGITS = 6
_MOST = 1 << 14

# Below these a folder holds very many small ones; looking into it costs more than it brings.
_LEAVES = ("_layers", "_uploads", "revisions", "tags")
_DEEPEST = 6


class Names(msgspec.Struct, frozen=True):
    """Which part of a listing a range is, where a listing cannot begin at a bound.

    ``token`` asks for its next page. Of what comes, only paths that begin with ``only`` are meant,
    which are listed together, so that the range ends with the first that does not; and nothing that
    is one of ``without``, or lies below one. ``orders``: those in which all that was listed came.
    """

    token: str = ""
    only: str = ""
    without: tuple[str, ...] = ()
    orders: tuple[str, ...] = ORDERS

    def mean(self, path: str) -> bool:
        """Whether *path*, which was listed, belongs to this part."""
        return path.startswith(self.only) and not any(
            path.startswith(name) if name.endswith("/") else path == name for name in self.without
        )


class Range(msgspec.Struct, frozen=True):
    """Everything below some prefixes, in order; with bounds only when it is a single prefix.

    ``start_after`` is left out itself; listing ends before ``stop_before``, or after ``pages``.
    With ``names`` the single prefix may be the beginning of a name, and ``start_after`` is but
    the last path that was listed before.
    The rest is for cutting what is left: ``begun`` is after what the last listing began,
    ``level`` the folder of which ``folders``, those between the bounds, are known.
    """

    prefixes: tuple[str, ...]
    start_after: str | None = None
    stop_before: str | None = None
    pages: int | None = None
    begun: str | None = None
    level: str | None = None
    folders: tuple[str, ...] = ()
    names: Names | None = None

    def parts(self, count: int) -> list[Range]:
        """See :class:`registry_gc.machine.overlap.Divisible`."""
        if len(self.prefixes) < 2:
            return [self]
        size = size_of_parts(len(self.prefixes), count)
        starts = range(0, len(self.prefixes), size)
        return [replace(self, prefixes=self.prefixes[at : at + size]) for at in starts]

    def cut_short(self, last: str) -> Range:
        """What is left after a listing of this range has ended with the path *last*."""
        return replace(self, start_after=last, begun=self.start_after)


class Walk(msgspec.Struct):
    """Lists one range; afterwards ``rest`` is what is left of it, None when it is done."""

    reader: Reader
    range: Range
    rest: Range | None = None

    def pages(self) -> Iterator[Page]:
        """The pages of the range, cut at its end."""
        if self.range.names is not None:
            yield from self._by_names(self.range.names)
            return
        seen = 0
        for prefix in self.range.prefixes:
            for page in self.reader.list(prefix, start_after=self.range.start_after):
                page, ended = self._clip(page)
                yield page
                if ended:
                    return
                if not len(page):
                    continue
                seen += 1
                # A store may be found out only now to list in an order of its own, in which
                # what was listed and what was not cannot be told apart by a bound.
                if seen == self.range.pages and self.reader.capabilities.seekable:
                    self.rest = self.range.cut_short(page.paths[len(page) - 1])
                    return

    def _by_names(self, names: Names) -> Iterator[Page]:
        assert isinstance(self.reader, NameReader)
        (beginning,) = self.range.prefixes
        orders, last = names.orders, self.range.start_after
        pages = self.reader.list_names(beginning, token=names.token)
        for seen, page in enumerate(pages, start=1):
            paths = list(page.paths)
            if not paths:
                yield page
                continue
            orders = still_possible(orders, paths if last is None else [last, *paths])
            if names.only and not orders:
                # What others list was thought to lie together.
                raise StorageError("this storage lists in no order that is known", path=beginning)
            last = paths[-1]
            kept = [row for row, path in enumerate(paths) if names.mean(path)]
            yield page if len(kept) == len(paths) else rows_of(page, kept)
            if not last.startswith(names.only):
                return
            if page.token and self.range.pages is not None and seen >= self.range.pages:
                rest = replace(names, token=page.token, orders=orders)
                self.rest = replace(self.range.cut_short(last), names=rest)
                return

    def _clip(self, page: Page) -> tuple[Page, bool]:
        stop = self.range.stop_before
        if stop is None or not len(page) or before(page.paths[len(page) - 1], stop):
            return page, False
        low, high = 0, len(page)
        while low < high:
            middle = (low + high) // 2
            if before(page.paths[middle], stop):
                low = middle + 1
            else:
                high = middle
        return head_of(page, low), True


def before(path: str, bound: str) -> bool:
    """Whether *path* comes before *bound* in the order of their bytes."""
    return path.encode("utf-8", "surrogateescape") < bound.encode("utf-8", "surrogateescape")


def head_of(page: Page, count: int) -> Page:
    """The first *count* rows of a page."""
    return Page(
        paths=type(page.paths)(page.paths.data, page.paths.offsets[: count + 1]),
        sizes=page.sizes[:count],
        modified=page.modified[:count],
        md5s=None if page.md5s is None else page.md5s[:count],
        shared=None if page.shared is None else page.shared[:count],
        hollow=page.hollow,
        etags=None if page.etags is None else page.etags[:count],
        contents={row: content for row, content in page.contents.items() if row < count},
    )


def rows_of(page: Page, rows: list[int]) -> Page:
    """Some rows of a page."""
    return replace(
        page,
        paths=Paths.of([page.paths[row] for row in rows]),
        sizes=page.sizes[rows],
        modified=page.modified[rows],
        md5s=None if page.md5s is None else page.md5s[rows],
        shared=None if page.shared is None else page.shared[rows],
        etags=None if page.etags is None else [page.etags[row] for row in rows],
        contents={at: page.contents[row] for at, row in enumerate(rows) if row in page.contents},
    )


def _is_leaf(folder: str) -> bool:
    """Tell whether *folder* holds files that mean something; above it there are none."""
    if folder.startswith(BLOBS):
        return folder.count("/") >= BLOBS.count("/") + 2
    return folder[:-1].rpartition("/")[2] in _LEAVES


def even_ranges(expected: int) -> Iterator[Range]:
    """Ranges of ``blobs/`` that are of the length of a unit, if there are *expected* blobs."""
    count = max(1, min(_MOST, expected // BLOBS_A_RANGE))
    start: str | None = None
    for number in range(1, count + 1):
        digits = f"{(number << (4 * _HEX_DIGITS)) // count:0{_HEX_DIGITS}x}"
        stop = f"{SHA256_BLOBS}{digits[:2]}/{digits}/" if number < count else None
        yield Range((BLOBS,), start_after=start, stop_before=stop, pages=PAGES, begun=start)
        start = stop


def first_ranges(reader: Reader, prefix: str, workers: int) -> tuple[list[Range], list[str]]:
    """The ranges to begin with, and the stray files that lie above all of them."""
    if not reader.capabilities.folders:
        names = None if reader.capabilities.seekable else Names()
        return [Range((prefix,), pages=PAGES, names=names)], []
    wanted = 4 * workers if workers > 1 else 1
    # More folders than there are units, so that a unit has parts, see registry_gc.machine.overlap.
    enough = THREADS * wanted if workers > 1 else 1
    done: list[str] = []
    frontier = [prefix]
    strays: list[str] = []
    for _ in range(_DEEPEST):
        if not frontier or len(frontier) + len(done) >= enough:
            break
        deeper: list[str] = []
        for folder in frontier:
            if _is_leaf(folder):
                done.append(folder)
                continue
            below = reader.children(folder)
            strays += [folder + name for name in below.files]
            deeper += [f"{folder}{name}/" for name in below.folders]
            if not below.folders and not below.files:
                done.append(folder)  # listing it reports it as hollow
        frontier = deeper
    folders = sorted(done + frontier)
    size = max(1, -(-len(folders) // (2 * wanted)))
    return [Range(tuple(folders[at : at + size])) for at in range(0, len(folders), size)], strays
