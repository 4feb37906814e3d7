"""What is missing after a second command, by what was there before the first."""

from __future__ import annotations

import threading

import pytest

from registry_gc.guard.addresses import Address
from registry_gc.guard.answer import Answer, AnswerKind
from registry_gc.service.afterwards import _MOST, Ask, missing, there


def asking(*kinds: AnswerKind) -> Ask:
    return lambda: [
        (Address(f"r{number}", (), 0), Answer(kind)) for number, kind in enumerate(kinds)
    ]


def test_what_answers_at_all_is_there() -> None:
    found = there(
        asking(AnswerKind.REFUSES, AnswerKind.WRITABLE, AnswerKind.SILENT, AnswerKind.READ_ONLY)
    )
    assert found == 0b0010 << _MOST | 0b1010
    assert there(asking()) == 0


W, R, NO = AnswerKind.WRITABLE, AnswerKind.READ_ONLY, AnswerKind.REFUSES


@pytest.mark.parametrize(
    ("before", "stops", "now", "told"),
    [
        ((W,), True, (NO,), "DOES NOT ANSWER: r0"),
        ((NO, W), True, (NO, W), ""),
        ((W, W), True, (W, NO), "DOES NOT ANSWER: r1"),
        ((W,), True, (AnswerKind.SILENT,), ""),
        ((W,), True, (R,), ""),
        ((W,), True, (AnswerKind.UNAUTHORIZED,), ""),
        ((W,), False, (NO,), "DOES NOT ANSWER: r0"),
        ((W,), False, (R,), "STILL READ-ONLY: r0"),
        ((AnswerKind.UNAUTHORIZED,), False, (R,), "STILL READ-ONLY: r0"),
        ((W, W), False, (R, W), ""),
        # A replica that never took writes, beside a registry that asks for a password.
        ((AnswerKind.UNAUTHORIZED, R), False, (AnswerKind.UNAUTHORIZED, R), ""),
        ((NO,), False, (R,), ""),
        ((NO,), False, (NO,), ""),
    ],
)
def test_only_what_was_there_is_missed(
    before: tuple[AnswerKind, ...], stops: bool, now: tuple[AnswerKind, ...], told: str
) -> None:
    said = missing(asking(*now), there(asking(*before)), stops=stops, patience=0.1)
    assert told in said
    assert bool(said) is bool(told)


def test_where_no_thread_can_be_started_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert there(asking(W)) == 0
    assert missing(asking(NO), 1, stops=True) == ""


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
