"""Listings turned into columns: whatever form a document has, every row is there."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_drivers.base import UNKNOWN_MD5
from registry_drivers.columns import (
    MalformedListing,
    columns,
    http_times,
    integers,
    json_columns,
    md5s_of_base64,
    md5s_of_etags,
    page_of,
    text_of,
    times,
    unescape,
)

WANTED = [b"Key", b"Size", b"ETag"]
# What XML 1.0 can hold.
texts = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"),
    max_size=12,
)
rows = st.fixed_dictionaries(
    {"Key": texts},
    optional={
        "Size": st.integers(0, 10**12).map(str),
        "ETag": texts,
        "Owner": st.just("<ID>1</ID><DisplayName>Size</DisplayName>"),
        "Checksum": texts,
    },
)


def document(found: Sequence[dict[str, str]], *, ordered: bool) -> bytes:
    """A listing; when it is not *ordered*, odd rows have their elements the other way round."""
    parts = ['<?xml version="1.0"?><R xmlns="urn:x"><IsTruncated>false</IsTruncated>']
    for number, row in enumerate(found):
        items = list(row.items())
        if not ordered and number % 2:
            items.reverse()
        texts = [
            f"<{tag}>{text if tag == 'Owner' else escape(text)}</{tag}>" for tag, text in items
        ]
        parts.append(f"<C>{''.join(texts)}</C>")
    return "".join([*parts, "</R>"]).encode()


@given(st.lists(rows, max_size=6), st.booleans())
def test_every_row_has_its_texts_in_any_form(found: list[dict[str, str]], ordered: bool) -> None:
    cut = columns(document(found, ordered=ordered), b"C", WANTED)
    for name, column in zip(("Key", "Size", "ETag"), cut, strict=True):
        # A bare carriage return or line end is XML's to normalise.
        assert [unescape(text).decode() for text in column] == [row.get(name, "") for row in found]


@pytest.mark.parametrize(
    "form",
    [
        "<C><Key>a&amp;b</Key></C><C><Key>c</Key></C>",
        "<C><Key><![CDATA[a&b]]></Key></C><C><Key>c</Key></C>",
        "<C><!-- one --><Key>a&#38;b</Key></C><C><Key>c</Key><!-- two --></C>",
        '<C id="1"><Key>a&amp;b</Key></C><C id="2"><Key>c</Key></C>',
        "<C><Key>a&amp;b</Key></C>\n  <C>\n    <Key>c</Key>\n  </C>",
    ],
)
def test_the_same_rows_in_other_xml(form: str) -> None:
    (keys,) = columns(f"<R>{form}</R>".encode(), b"C", [b"Key"])
    assert [unescape(key) for key in keys] == [b"a&b", b"c"]


def test_namespaces_with_a_prefix_are_understood() -> None:
    text = b'<s:R xmlns:s="urn:x"><s:C><s:Key>a</s:Key></s:C><s:T>true</s:T></s:R>'
    assert columns(text, b"C", [b"Key"]) == [[b"a"]]
    assert text_of(text, b"T") == "true"


def test_no_rows_are_no_rows() -> None:
    assert columns(b"<R><T>1</T></R>", b"C", WANTED) == [(), (), ()]


def test_what_is_no_xml_is_malformed() -> None:
    with pytest.raises(MalformedListing):
        columns(b"<R><C><Key>a</Key></C><C><Ke", b"C", [b"Key"])


def test_what_ends_within_its_first_row_is_malformed() -> None:
    whole = b"<R><C><Key>a</Key><Size>1</Size></C></R>"
    # With all that is wanted of a row it is taken for one; the drivers look at a listing's end.
    for length in range(len(b"<R><C>"), whole.index(b"</C>")):
        with pytest.raises(MalformedListing):
            columns(whole[:length], b"C", [b"Key", b"Size"])


@given(st.lists(st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1)), max_size=5))
def test_times_are_seconds_since_the_epoch(moments: list[datetime]) -> None:
    moments = [moment.replace(tzinfo=UTC) for moment in moments]
    expected = [moment.timestamp() for moment in moments]
    for form in ("%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S.%f"):
        found = times([moment.strftime(form).encode() for moment in moments])
        assert np.allclose(found, expected, rtol=0, atol=1e-5)
    whole = [moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode() for moment in moments]
    assert times(whole).tolist() == [int(second) for second in expected]
    http = [format_datetime(moment, usegmt=True).encode() for moment in moments]
    assert http_times(http).tolist() == [int(second) for second in expected]


def test_times_of_different_lengths_stand_side_by_side() -> None:
    column = [b"2024-02-29T01:02:03Z", b"2024-02-29T01:02:03.5Z", b"2024-02-29T01:02:03.123456789Z"]
    assert times(column).tolist() == pytest.approx(
        [1709168523.0, 1709168523.5, 1709168523.123456], abs=1e-5
    )


@pytest.mark.parametrize(
    ("end", "hours"),
    [(b"-05:00", 5), (b"+05:30", -5.5), (b"+0200", -2), (b".5-01:00", 1), (b"+00:00", 0)],
)
def test_an_offset_from_utc_is_taken_into_account(end: bytes, hours: float) -> None:
    begun = 1709168523 + 0.5 * end.startswith(b".")
    assert times([b"2024-02-29T01:02:03" + end]).tolist() == [begun + 3600 * hours]
    mixed = times([b"2024-02-29T01:02:03Z", b"2024-02-29T01:02:03" + end])
    assert mixed.tolist() == [1709168523, begun + 3600 * hours]


@pytest.mark.parametrize("end", [b" EST", b"-5", b".5x", b"-05:00:00"])
def test_a_time_in_an_unknown_zone_is_malformed(end: bytes) -> None:
    with pytest.raises(MalformedListing):
        times([b"2024-02-29T01:02:03" + end])
    with pytest.raises(MalformedListing):
        http_times([b"Thu, 29 Feb 2024 01:02:03" + end])


@pytest.mark.parametrize("text", [b"x1", b"-1", b"9" * 30, b"1.5", str(1 << 63).encode()])
def test_what_is_no_size_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedListing):
        integers([b"1", text])
    assert integers([b"1", b"", str((1 << 63) - 1).encode()]).tolist() == [1, 0, (1 << 63) - 1]


@pytest.mark.parametrize("text", [b"", b"yesterday", b"2024-02-3xT01:02:03Z"])
def test_what_is_no_time_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedListing):
        times([text])
    with pytest.raises(MalformedListing):
        http_times([text])


def test_an_etag_is_an_md5_only_in_that_form() -> None:
    md5 = hashlib.md5(b"x").digest()
    hexed = md5.hex().encode()
    good = [hexed, b'"' + hexed + b'"', b"&quot;" + hexed + b"&quot;", b"&#34;" + hexed + b"&#34;"]
    for column in (good, good[1:2], [hexed.upper()]):
        assert [found.tobytes() for found in md5s_of_etags(column)] == [md5] * len(column)
    bad = [b"", hexed + b"-2", b"x" * 32, b'"0x8DB8FB9B5D8F5C0"', hexed[:-1], hexed + b"0"]
    # Thirty-two characters on average are not thirty-two each.
    found = [row.tobytes() for row in md5s_of_etags([*bad, hexed, hexed[:-1], hexed + b"a"])]
    assert found == [UNKNOWN_MD5] * len(bad) + [md5, UNKNOWN_MD5, UNKNOWN_MD5]


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=5), st.booleans())
def test_a_content_md5_is_decoded(digests: list[bytes], with_others: bool) -> None:
    column = [base64.b64encode(digest) for digest in digests]
    others = [b"", b"short", base64.b64encode(b"17 bytes, no MD5!")] if with_others else []
    found = [row.tobytes() for row in md5s_of_base64([*column, *others])]
    assert found == digests + [UNKNOWN_MD5] * len(others)


def test_a_page_leaves_out_what_is_no_object() -> None:
    keys = [b"r/", b"r/a", b"r/b/", b"r/b/c", b"r//d", b"s/e"]
    sizes = integers([b"0", b"1", b"", b"3", b"4", b"5"])
    modified = np.arange(6.0)
    md5s = np.frombuffer(bytes(range(96)), "V16")
    page = page_of(keys, sizes, modified, md5s, folder=b"r/")
    assert list(page.paths) == ["a", "b/c", "/d"]
    assert page.sizes.tolist() == [1, 3, 4]
    assert page.modified.tolist() == [1.0, 3.0, 4.0]
    assert page.md5s is not None
    assert page.md5s[0].tobytes() == bytes(range(16, 32))
    after = page_of(keys, sizes, modified, None, folder=b"r/", after=b"r/a")
    assert list(after.paths) == ["b/c"]


def test_a_row_without_a_name_is_malformed() -> None:
    with pytest.raises(MalformedListing):
        page_of([b"a", b""], integers([b"1", b"2"]), np.zeros(2), None, folder=b"")


NAMES = (b"name", b"size", b"md5Hash")
TEXTS = st.one_of(st.text(max_size=9), st.sampled_from(["a/b", "{", "}", '"', "\\", "[]", "é", ""]))


@given(
    st.lists(st.fixed_dictionaries({}, optional={name.decode(): TEXTS for name in NAMES})),
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)
def test_rows_of_json_are_cut_as_they_would_be_parsed_or_not_at_all(
    rows: list[dict[str, str]], indent: int | None, ascii: bool
) -> None:
    document = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode()
    cut = json_columns(document, NAMES)
    if cut is not None:
        expected = [[row[name.decode()].encode() for row in rows] for name in NAMES]
        assert [list(column) for column in cut] == expected
    plain = all(len(row) == 3 and not set("".join(row.values())) & set('\\"{}') for row in rows)
    same = len({tuple(row) for row in rows}) == 1
    if rows and plain and same and "\\" not in document.decode():
        assert cut is not None


@pytest.mark.parametrize(
    "rows",
    [
        b"[]",
        b'[{"name": "a", "size": "1"}]',
        b'[{"name": "a", "size": "1", "md5Hash": "x", "more": "y"}]',
        b'[{"name": "a", "size": 1, "md5Hash": "x"}]',
        b'[{"name": "a", "size": "1", "md5Hash": "x"}, {"size": "1", "name": "a", "md5Hash": "x"}]',
        b'[{"name": "a", "size": "1", "md5Hash": "x"}, {}]',
        b'[{"name": "a", "size": "1", "md5Hash": "x"}, "name"]',
    ],
)
def test_rows_of_json_of_another_form_are_left_to_a_parser(rows: bytes) -> None:
    assert json_columns(rows, NAMES) is None


def test_a_text_of_the_length_of_an_md5_that_is_none_is_unknown() -> None:
    good = base64.b64encode(b"0123456789abcdef")
    found = md5s_of_base64([b"a" * 23 + b"=", b"====" * 6, good])
    assert [md5.tobytes() for md5 in found] == [UNKNOWN_MD5, UNKNOWN_MD5, b"0123456789abcdef"]


@pytest.mark.parametrize("entity", [b"&#x110000;", b"&#1114112;", b"&#" + b"9" * 5000 + b";"])
def test_an_entity_that_is_no_character_is_malformed(entity: bytes) -> None:
    with pytest.raises(MalformedListing, match="no character"):
        unescape(b"a" + entity)
