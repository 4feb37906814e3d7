"""What is missing after a second command, by what was there before the first."""

from __future__ import annotations

import threading

import pytest

from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer, Kind
from registry_gc.service.afterwards import Ask, missing, there


def asking(*kinds: Kind) -> Ask:
    return lambda: [
        (Address(f"r{number}", (), 0), Answer(kind)) for number, kind in enumerate(kinds)
    ]


def test_what_answers_at_all_is_there() -> None:
    assert there(asking(Kind.REFUSES, Kind.WRITABLE, Kind.SILENT, Kind.UNAUTHORIZED)) == 0b1010
    assert there(asking()) == 0


@pytest.mark.parametrize(
    ("before", "stops", "now", "told"),
    [
        (0b01, True, (Kind.REFUSES,), "DOES NOT ANSWER: r0"),
        (0b10, True, (Kind.REFUSES, Kind.WRITABLE), ""),
        (0b11, True, (Kind.WRITABLE, Kind.REFUSES), "DOES NOT ANSWER: r1"),
        (0b01, True, (Kind.SILENT,), ""),
        (0b01, True, (Kind.READ_ONLY,), ""),
        (0b01, True, (Kind.UNAUTHORIZED,), ""),
        (0b01, False, (Kind.REFUSES,), "DOES NOT ANSWER: r0"),
        (0b01, False, (Kind.READ_ONLY,), "STILL READ-ONLY: r0"),
        (0b11, False, (Kind.READ_ONLY, Kind.WRITABLE), ""),
        (0, False, (Kind.REFUSES,), ""),
    ],
)
def test_only_what_was_there_is_missed(
    before: int, stops: bool, now: tuple[Kind, ...], told: str
) -> None:
    said = missing(asking(*now), before, stops=stops, patience=0.1)
    assert told in said
    assert bool(said) is bool(told)


def test_a_look_that_does_not_end_or_fails_holds_nobody_up() -> None:
    never = threading.Event()

    def hang() -> list[tuple[Address, Answer]]:
        never.wait()
        return []

    def fail() -> list[tuple[Address, Answer]]:
        raise OSError("gone")

    for ask in (hang, fail):
        assert there(ask, 0.1) == 0
        assert missing(ask, 1, stops=True, patience=0.1) == ""
    never.set()
