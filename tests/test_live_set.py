"""The compact set of live digests, and sorted arrays as sets: never wrong about what is in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.compact.arrays import among, distinct, locate, union, within, without
from registry_gc.digest import empty_keys, pack
from registry_gc.live_set import LiveSet

keys = st.one_of(
    st.binary(min_size=32, max_size=32),
    # Some that share their first 8 bytes, some that end in zeros.
    st.binary(min_size=1, max_size=1).map(lambda end: b"\1" * 31 + end),
    st.binary(min_size=1, max_size=1).map(lambda start: start + b"\0" * 31),
)


@given(st.lists(st.lists(keys, max_size=20), max_size=4), st.lists(keys, max_size=20))
def test_what_is_live_is_in_and_what_is_not_is_in_only_when_its_first_eight_bytes_are(
    parts: list[list[bytes]], others: list[bytes]
) -> None:
    live = {key for part in parts for key in part}
    held = LiveSet([pack(part) for part in parts])
    assert held.has(pack(sorted(live))).all()
    starts = {key[:8] for key in live}
    assert held.has(pack(others)).tolist() == [key[:8] in starts for key in others]
    assert len(held) == len(starts)


def test_eight_bytes_a_digest_are_all_it_takes() -> None:
    generator = np.random.default_rng(1)
    some = generator.integers(0, 256, (10_000, 32), dtype=np.uint8).view("V32").reshape(-1)
    held = LiveSet([some])
    assert held._sorted.nbytes == 8 * 10_000
    assert held.has(some).all()


def test_the_empty_set_holds_nothing() -> None:
    for held in (LiveSet([]), LiveSet([empty_keys(), empty_keys()])):
        assert len(held) == 0
        assert not held.has(pack([b"\0" * 32, b"x" * 32])).any()
        assert len(held.has(empty_keys())) == 0


numbers = st.lists(st.integers(-5, 5))


@given(st.lists(keys), st.lists(keys))
def test_sets_of_keys_are_sets(some: list[bytes], more: list[bytes]) -> None:
    one, other = distinct(pack(some)), distinct(pack(more))
    assert [key.tobytes() for key in one] == sorted(set(some))
    assert [key.tobytes() for key in union(one, other)] == sorted({*some, *more})
    assert [key.tobytes() for key in without(one, other)] == sorted(set(some) - set(more))
    assert within(one, pack(more)).tolist() == [key in some for key in more]


@given(numbers, numbers)
def test_sets_of_numbers_are_sets(some: list[int], more: list[int]) -> None:
    one, other = np.array(sorted(some), np.int64), np.array(more, np.int64)
    assert distinct(other).tolist() == sorted(set(more))
    assert union(one, other).tolist() == sorted({*some, *more})
    assert without(one, distinct(other)).tolist() == [n for n in sorted(some) if n not in more]
    assert within(one, other).tolist() == [number in some for number in more]
    assert among(other, set(some)).tolist() == [number in some for number in more]
    at, there = locate(one, other)
    assert all(one[where] == n for where, n, found in zip(at, other, there, strict=True) if found)
