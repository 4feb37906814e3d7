"""Listings as object stores send them, turned into columns without an object for each key.

A page of a thousand keys is some 300 KB of XML. Building a tree of it costs 5 ms; the SDKs, which
make an object of each row, take 30 to 300 ms. Here one regular expression cuts the wanted texts
out of all rows in C (1 ms), and numpy makes numbers of them (0.4 ms). It knows the order of the
elements from the first row, skips those it does not want, and must find as many rows as the
document has; otherwise the document is parsed in full.
"""

from __future__ import annotations

import binascii
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNKNOWN_MD5, Page, Paths

Column = Sequence[bytes]

_ENTITY = re.compile(rb"&(#x[0-9a-fA-F]+|#[0-9]+|amp|lt|gt|quot|apos);")
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_MD5_IN_HEX = re.compile(rb'"?([0-9a-fA-F]{32})"?')


class MalformedListing(ValueError):
    """The storage's answer is not the XML that was expected."""


def key_of(name: bytes) -> str:
    """A key from its bytes; those that are no UTF-8 stay as they are (``surrogateescape``)."""
    return name.decode("utf-8", "surrogateescape")


def bytes_of(key: str) -> bytes:
    """The bytes of a key, see :func:`key_of`."""
    return key.encode("utf-8", "surrogateescape")


def columns(document: bytes, row: bytes, wanted: Sequence[bytes]) -> list[Column]:
    """The texts of the elements *wanted* in each element *row*, one column each.

    Texts are as they stand there, see :func:`unescape`; empty where a row has no such element.

    :raises MalformedListing: it is not XML.
    """
    count = document.count(b"<%b>" % row)
    if count:
        # What has a form of its own (CDATA, a comment) does not match, and so is missed here.
        for cut in _cuts(document, row, wanted):
            if len(cut[0]) == count:
                return cut
    elif not re.search(rb"<(?:[^<>]*:)?%b[ />]" % row, document):
        return [()] * len(wanted)
    return _parsed(document, row, wanted)


def _cuts(document: bytes, row: bytes, wanted: Sequence[bytes]) -> Iterator[list[Column]]:
    first = document.index(b"<%b>" % row) + len(row) + 2
    stop = document.find(b"</%b>" % row, first)
    places = [document.find(b"<%b>" % name, first, stop) for name in wanted]
    regular = min(places) >= 0
    # An element that the first row lacks may stand in others, after the one before it in *wanted*.
    for number, place in enumerate(places):
        if place < 0 and number:
            places[number] = places[number - 1]
    order = sorted(range(len(wanted)), key=places.__getitem__)
    names = tuple(wanted[number] for number in order)
    if regular:
        # Of a document that ends within its first row, some are not there; it is no XML.
        ends = [first] + [document.find(b"</", places[n]) + len(wanted[n]) + 3 for n in order]
        gaps = tuple(places[n] != end for n, end in zip(order, ends, strict=False))
        yield _columns(_strict(row, names, gaps).findall(document), order)
    yield _columns(_tolerant(row, names).findall(document), order)


def _columns(found: list[Any], order: Sequence[int]) -> list[Column]:
    if len(order) == 1:
        # Without tuples: that is how findall answers for one group.
        return [found]
    cut: list[Column] = [()] * len(order)
    for number, column in zip(order, zip(*found, strict=True), strict=False):
        cut[number] = column
    return cut


# Possessive repeats: nothing is tried twice, so that a page costs linear time whatever it holds.


@functools.cache
def _strict(row: bytes, names: tuple[bytes, ...], gaps: tuple[bool, ...]) -> re.Pattern[bytes]:
    """Every row has all *names*, and where there is no gap nothing between them."""
    parts = [rb"<%b>" % row]
    for name, gap in zip(names, gaps, strict=True):
        if gap:
            parts.append(rb"(?:<(?!%b>|/%b>)[^<]*+)*+" % (name, row))
        parts.append(rb"<%b>([^<]*+)</%b>" % (name, name))
    return re.compile(b"".join(parts))


@functools.cache
def _tolerant(row: bytes, names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """Rows may lack some of *names*, and have others between them.

    One that stands in another place is not passed over: its row does not match.
    """
    other = rb"(?:<(?!(?:%b)>|/?%b>)[^<]*+)*+" % (b"|".join(names), row)
    parts = [rb"(?:%b<%b>([^<]*+)</%b>)?+" % (other, name, name) for name in names]
    return re.compile(rb"<%b>%b%b</%b>" % (row, b"".join(parts), other, row))


def json_columns(rows: bytes, wanted: Sequence[bytes]) -> list[Column] | None:
    """The texts of *wanted* in each of *rows*, flat JSON objects that hold them and no others.

    None where they are not all of that form, or have an escape: then they have to be parsed.
    """
    first = rows.partition(b"}")[0]
    places = [first.find(b'"%b"' % name) for name in wanted]
    if min(places, default=-1) < 0 or b"\\" in rows:
        return None
    order = sorted(range(len(wanted)), key=places.__getitem__)
    found = _flat(tuple(wanted[number] for number in order)).findall(rows)
    # All braces and quotation marks belong to what was found, so there is nothing else.
    if len(found) != rows.count(b"{") or rows.count(b'"') != 4 * len(wanted) * len(found):
        return None
    return _columns(found, order)


@functools.cache
def _flat(names: tuple[bytes, ...]) -> re.Pattern[bytes]:
    members = (rb'\s*+"%b"\s*+:\s*+"([^"]*+)"\s*+' % name for name in names)
    return re.compile(rb"\{" + b",".join(members) + rb"\}")


def _parsed(document: bytes, row: bytes, wanted: Sequence[bytes]) -> list[Column]:
    """The slow way, for documents with namespaces, CDATA, comments or rows of many forms."""
    try:
        root = ElementTree.fromstring(document)  # noqa: S314  # expat loads nothing from outside
    except ElementTree.ParseError as error:
        raise MalformedListing(f"the answer is not XML: {error}") from error
    cut: list[list[bytes]] = [[] for _ in wanted]
    for element in root.iter():
        if _local(element) != row:
            continue
        texts = {_local(inner): inner.text or "" for inner in reversed(list(element.iter()))}
        for column, name in zip(cut, wanted, strict=True):
            column.append(escape(texts.get(name, "")).encode())
    return list(cut)


def _local(element: ElementTree.Element) -> bytes:
    return element.tag.rpartition("}")[2].encode()


def text_of(document: bytes, name: bytes) -> str:
    """The text of *name*, of which there is one; empty when there is none."""
    # Before or after the rows: a search from end to end would cost more than all the rest.
    tag = b"<%b>" % name
    start = document.find(tag, 0, 1000)
    start = max(0, document.rfind(tag) if start < 0 else start)
    match = re.compile(rb"<(?:\w+:)?%b(?: [^>]*)?>([^<]*)<" % name).search(document, start)
    return unescape(match[1]).decode("utf-8", "replace") if match else ""


def texts_of(column: Column) -> list[str]:
    """All texts of a column; bytes that are no UTF-8 are replaced."""
    return [unescape(text).decode("utf-8", "replace") for text in column]


def unescape(text: bytes) -> bytes:
    """*text* without XML's entities."""
    return _ENTITY.sub(_entity, text) if b"&" in text else text


def _entity(match: re.Match[bytes]) -> bytes:
    name = match[1]
    if name[:1] != b"#":
        return _NAMED[name]
    try:
        number = int(name[2:], 16) if name[1:2] == b"x" else int(name[1:])
        return chr(number).encode("utf-8", "surrogatepass")
    except (ValueError, OverflowError) as error:
        raise MalformedListing(f"no character: {name[:20]!r}") from error


def times(column: Column) -> NDArray[np.float64]:
    """Seconds since the epoch of ISO 8601 texts, ``2024-02-03T04:05:06[.789]Z``.

    Without a ``Z`` they are in UTC too; an offset such as ``-05:00`` is taken into account.
    """
    if not len(column):
        return np.zeros(0)
    if len(set(map(len, column))) == 1 and len(column[0]) >= _SECOND:
        texts = np.frombuffer(b"".join(column), np.uint8).reshape(len(column), -1)
        if _in_utc(texts[:, _SECOND:]):
            return _seconds(texts)
    return _each_time(column)


def _in_utc(ends: NDArray[np.uint8]) -> bool:
    """Whether after the seconds there is a fraction, a ``Z``, both or nothing, in all rows."""
    if ends.shape[1] and (ends[:, -1] == ord("Z")).all():
        ends = ends[:, :-1]
    digits = ends[:, 1:] - np.uint8(ord("0"))
    return not ends.shape[1] or bool((ends[:, 0] == ord(".")).all() and (digits <= 9).all())


def _each_time(column: Column) -> NDArray[np.float64]:
    found = []
    for text in column:
        match = _TIME.fullmatch(text)
        if match is None:
            raise MalformedListing(f"not a time: {text!r}")
        found.append(match)
    plain = [match[1] + b"." + (match[2] or b"")[:9].ljust(9, b"0") for match in found]
    offsets = [
        int(match[3] + b"1") * (int(match[4]) * 3600 + int(match[5]) * 60) if match[3] else 0
        for match in found
    ]
    texts = np.frombuffer(b"".join(plain), np.uint8).reshape(len(plain), -1)
    seconds: NDArray[np.float64] = _seconds(texts) - np.array(offsets)
    return seconds


def _seconds(text: NDArray[np.uint8]) -> NDArray[np.float64]:
    digits = text[:, _DIGITS] - np.uint8(ord("0"))
    # What is less than a digit has become more than one.
    if digits.max() > 9:
        raise MalformedListing(f"not a time: {text[0].tobytes()!r}")
    # Of floats, as only their products are taken by the whole matrix at once; all are exact.
    months, rest = (digits.astype(np.float64) @ _MEANING).T
    days = (months - (1970 * 12 + 1)).astype(np.int64).astype("M8[M]").astype("M8[D]")
    seconds: NDArray[np.float64] = (days.astype(np.int64) - 1) * 86400.0 + rest
    for place in range(20, min(text.shape[1], 29)):
        digit = text[:, place] - np.float64(ord("0"))
        seconds += np.where((digit >= 0) & (digit <= 9), digit, 0) * 10.0 ** (19 - place)
    return seconds


_SECOND = len("2024-02-03T04:05:06")
_TIME = re.compile(
    rb"(.{19})(?:[.,]([0-9]*))?(?:[Zz]| ?UTC|([+-])([0-9]{2}):?([0-9]{2}))?", re.DOTALL
)
# Where the digits of year, month, day, hour, minute and second stand; what each is in months, of
# which the days before them are known, and in seconds.
_DIGITS = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18)
_MEANING = np.zeros((14, 2))
_MEANING[:6, 0] = (12_000, 1_200, 120, 12, 10, 1)
_MEANING[6:, 1] = (864_000, 86_400, 36_000, 3_600, 600, 60, 10, 1)


_MONTHS = {
    name: b"%02d" % number
    for number, name in enumerate(
        b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1
    )
}


# A listing's times are in GMT, says HTTP.
_ZONES = {b" GMT": b"", b" UTC": b"", b"": b""}


def http_times(column: Column) -> NDArray[np.float64]:
    """Seconds since the epoch of texts like ``Mon, 27 Jul 2009 12:28:53 GMT``."""
    try:
        return times(
            [
                b"%b-%b-%bT%b%b"
                % (text[12:16], _MONTHS[text[8:11]], text[5:7], text[17:25], _ZONES[text[25:]])
                for text in column
            ]
        )
    except KeyError as error:
        raise MalformedListing(f"not a time: {error}") from error


def integers(column: Column) -> NDArray[np.int64]:
    """The column as numbers that are not negative; an empty text is 0.

    :raises MalformedListing: one is no such number, or has more than 63 bits.
    """
    try:
        numbers = np.fromiter(map(int, column), np.int64, len(column))
    except (ValueError, OverflowError):
        try:
            numbers = np.fromiter((int(text or b"0") for text in column), np.int64, len(column))
        except (ValueError, OverflowError) as error:
            raise MalformedListing(f"not a size: {error}") from error
    if len(numbers) and numbers.min() < 0:
        raise MalformedListing(f"not a size: {numbers.min()}")
    return numbers


def integer(text: str) -> int:
    """As :func:`integers`, of one text."""
    return int(integers([text.encode("utf-8", "replace")])[0])


def md5s_of_etags(column: Column) -> NDArray[np.void]:
    """MD5s where an ETag has the form of one, with or without its quotation marks.

    Not of an object that was put in several parts: its ETag ends in ``-<parts>``. An object under
    SSE-KMS has an ETag of the same form that is no MD5; it equals that of no content anybody has.
    """
    joined = b"".join(column).replace(b"&quot;", b"").replace(b"&#34;", b"").replace(b'"', b"")
    if len(joined) == 32 * len(column) and b"-" not in joined:
        try:
            return np.frombuffer(binascii.unhexlify(joined), dtype="V16")
        except binascii.Error:
            pass
    known = (_MD5_IN_HEX.fullmatch(unescape(text)) for text in column)
    return _md5s(binascii.unhexlify(match[1]) if match else UNKNOWN_MD5 for match in known)


def md5s_of_base64(column: Column) -> NDArray[np.void]:
    """MD5s of a ``Content-MD5`` column; unknown where it is empty or no MD5."""
    joined = b"".join(column)
    if len(joined) == 24 * len(column) and joined.count(b"==") == len(column):
        # All at once: with "AA" for the padding each of them decodes to 18 bytes.
        decoded = binascii.a2b_base64(joined.replace(b"==", b"AA"))
        if len(decoded) == 18 * len(column):
            digests = np.frombuffer(decoded, np.uint8).reshape(-1, 18)[:, :16]
            return np.ascontiguousarray(digests).view("V16").ravel()
    return _md5s(map(_md5_of_base64, column))


def _md5_of_base64(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text) if len(text) == 24 else UNKNOWN_MD5
    except binascii.Error:
        return UNKNOWN_MD5


def _md5s(digests: Iterable[bytes]) -> NDArray[np.void]:
    return np.frombuffer(
        b"".join(md5 if len(md5) == 16 else UNKNOWN_MD5 for md5 in digests), dtype="V16"
    )


def page_of(
    keys: Column,
    sizes: NDArray[np.int64],
    modified: NDArray[np.float64],
    md5s: NDArray[np.void] | None,
    *,
    folder: bytes,
    after: bytes = b"",
    etags: Column | None = None,
) -> Page:
    """A page of the objects below *folder*, by their paths relative to it.

    Leaves out what is no object of a registry: keys that end in ``/``, with which consoles and
    mounts mark folders, and keys up to and including *after* (with the folder), for stores that
    cannot begin a listing there.

    :raises MalformedListing: a key is missing.
    """
    if b"" in keys:
        raise MalformedListing("a row of the listing has no name")
    skip = len(folder)
    joined = b"\0".join(keys)
    if (
        after
        or joined.endswith(b"/")
        or b"/\0" in joined
        or joined.count(b"\0" + folder) + joined.startswith(folder) < len(keys)
    ):
        kept = [
            row
            for row, key in enumerate(keys)
            if key > after and key[-1:] != b"/" and key[:skip] == folder
        ]
        keys = [keys[row] for row in kept]
        sizes, modified = sizes[kept], modified[kept]
        md5s = None if md5s is None else md5s[kept]
        etags = None if etags is None else [etags[row] for row in kept]
    paths = [key[skip:] for key in keys]
    offsets = np.zeros(len(paths) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, paths), np.int64, len(paths)), out=offsets[1:])
    data = np.frombuffer(b"".join(paths), dtype=np.uint8)
    return Page(Paths(data, offsets), sizes, modified, md5s, etags=etags)
