"""Digests and keys: nothing is taken for a digest that is none, and no two share a key."""

from __future__ import annotations

import hashlib
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.compact.arrays import locate
from registry_gc.digest import (
    InvalidDigest,
    Names,
    check_digest,
    check_digests,
    empty_keys,
    key_of,
    pack,
    plain_keys,
    prefixes,
)
from registry_tree import sha256, sha512

SHA256 = "sha256:" + "0123456789abcdef" * 4

digests = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex()),
    st.binary(min_size=64, max_size=64).map(lambda data: "sha512:" + data.hex()),
    st.binary(min_size=48, max_size=48).map(lambda data: "sha384:" + data.hex()),
    st.text(string.ascii_letters + string.digits + "=_-", min_size=1).map("multi+b58:{}".format),
)
keys = st.binary(min_size=32, max_size=32)


@given(digests)
def test_a_digest_is_taken_as_it_is(digest: str) -> None:
    assert check_digest(digest) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        SHA256.upper(),
        SHA256[:-1],
        SHA256 + "0",
        SHA256[:-1] + "A",
        SHA256[:-1] + "g",
        SHA256 + "\n",
        " " + SHA256,
        SHA256[:-1] + " ",
        SHA256[:20] + "  " + SHA256[22:],
        "SHA256:" + SHA256[7:],
        "sha256:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64,
        "sha512:" + SHA256[7:],
        "sha384:" + SHA256[7:],
        "../x:y",
        "a:b/c",
        "a:b.c",
        "a:..",
        "..:a",
        "a..b:c",
        "a:\0",
        "ab\0:c",
        "é:a",
        "a:é",
        "a:b:c",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        check_digest(text)
    with pytest.raises(InvalidDigest):
        check_digests([SHA256, text])
    with pytest.raises(InvalidDigest):
        check_digests([text, SHA256, SHA256])


@given(st.lists(st.one_of(digests, st.text(max_size=80), st.just(SHA256[1:] + "s"))))
def test_many_are_checked_as_one_by_one(texts: list[str]) -> None:
    def one_by_one() -> bool:
        for text in texts:
            try:
                check_digest(text)
            except InvalidDigest:
                return False
        return True

    try:
        check_digests(texts)
    except InvalidDigest:
        assert not one_by_one()
    else:
        assert one_by_one()


@pytest.mark.parametrize("shift", range(1, 6))
def test_texts_that_are_sha256_digests_only_when_put_together_are_not_taken_for_them(
    shift: int,
) -> None:
    whole = SHA256 * 3
    shifted = [whole[shift : shift + 71], whole[shift + 71 : shift + 142]]
    assert [check_digest(text) for text in shifted] == shifted  # of the algorithm "ha256"
    assert Names().keys(shifted) == b"".join(map(key_of, shifted))
    assert key_of(SHA256) not in (key_of(text) for text in shifted)


@given(st.lists(digests))
def test_keys_give_the_texts_back(texts: list[str]) -> None:
    names = Names()
    joined = names.keys(texts)
    assert len(joined) == 32 * len(texts)
    array = np.frombuffer(joined, dtype="V32")
    assert names.texts(array) == texts
    assert [names.text(key.tobytes()) for key in array] == texts
    assert [names.key(text) for text in texts] == [key.tobytes() for key in array]


@given(st.lists(digests, unique=True))
def test_different_digests_have_different_keys(texts: list[str]) -> None:
    assert len({key_of(text) for text in texts}) == len(texts)


def test_the_key_of_a_sha256_digest_is_its_bytes() -> None:
    assert key_of(SHA256) == bytes.fromhex(SHA256[7:])


def test_a_blob_whose_content_is_a_digest_does_not_share_that_digests_key() -> None:
    """Anybody can push such a blob; sharing a key, it would be deleted under another's name."""
    other = sha512(b"x")
    assert key_of(sha256(other.encode())) != key_of(other)
    assert key_of(other) != hashlib.sha256(other.encode()).digest()


def test_names_are_independent_of_what_they_are_made_from() -> None:
    others = {key_of("a:b"): "a:b"}
    names = Names(others)
    names.key("c:d")
    assert others == {key_of("a:b"): "a:b"}
    assert names.text(key_of("a:b")) == "a:b"


def test_no_keys_are_no_keys_everywhere() -> None:
    assert len(pack([])) == len(empty_keys()) == len(prefixes(empty_keys())) == 0
    assert Names().keys([]) == b""
    assert Names().texts(empty_keys()) == []
    check_digests([])
    for sorted_keys, wanted in (
        (empty_keys(), pack([b"a" * 32])),
        (pack([b"a" * 32]), empty_keys()),
    ):
        at, there = locate(sorted_keys, wanted)
        assert len(at) == len(there) == len(wanted)
        assert not there.any()


@given(st.lists(keys), st.lists(keys))
def test_find_finds_what_is_there_and_nothing_else(
    haystack: list[bytes], needles: list[bytes]
) -> None:
    """Also keys that end in, or are, zeros, which strings would lose."""
    haystack += [b"\0" * 32, b"\x01" + b"\0" * 31]
    needles += [b"\0" * 32, b"\x01" + b"\0" * 31, *haystack[:3]]
    ordered = np.sort(pack(haystack))
    assert [key.tobytes() for key in ordered] == sorted(haystack)
    at, there = locate(ordered, pack(needles))
    assert there.tolist() == [needle in haystack for needle in needles]
    for needle, position, found in zip(needles, at.tolist(), there.tolist(), strict=True):
        assert not found or ordered[position].tobytes() == needle


@given(st.lists(keys, min_size=1, max_size=3), st.integers(0, 99), st.integers(0, 70), st.data())
def test_of_many_texts_one_that_is_no_sha256_digest_is_noticed(
    some: list[bytes], row: int, at: int, data: st.DataObject
) -> None:
    texts = ["sha256:" + key.hex() for key in some] * 100
    texts = texts[:100]
    assert plain_keys(texts) == b"".join(key_of(text) for text in texts)
    text = texts[row]
    sign = data.draw(st.sampled_from([" ", "A", "s", "g", ":", "0", "\n", "é", "\ud800", "\0"]))
    texts[row] = text[:at] + sign + text[at + 1 :]
    expected = plain_keys([texts[row]])
    assert (plain_keys(texts) is None) == (expected is None)
    # Two that are wrong by one character each, and so have the right length together.
    if row > 0:
        texts[row], texts[row - 1] = text + "0", texts[row - 1][:-1]
        assert plain_keys(texts) is None


@given(st.lists(keys))
def test_prefixes_order_as_their_keys(some: list[bytes]) -> None:
    words = prefixes(pack(some)).tolist()
    assert words == [int.from_bytes(key[:8], "big") for key in some]
