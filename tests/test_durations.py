"""Durations: Go's, and days and weeks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("36h", 129600.0),
        ("1h30m", 5400.0),
        ("1w2d", 777600.0),
        ("168h", 604800.0),
        ("1.5h", 5400.0),
        (".5m", 30.0),
        ("2.s", 2.0),
        ("250ms", 0.25),
        ("10us", 0.00001),
        ("10\N{MICRO SIGN}s", 0.00001),
        ("10\N{GREEK SMALL LETTER MU}s", 0.00001),
        (" 7d ", 604800.0),
        ("1m1ms", 60.001),
    ],
)
def test_a_duration_is_read_as_go_reads_it_with_days_and_weeks(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no duration"),
        ("soon", "no duration"),
        ("5", "no unit"),
        ("1.5", "no unit"),
        ("-1h", "negative"),
        ("+1h", "no duration"),
        ("1h 30m", "no duration"),
        ("1hx2m", "no duration"),
        ("1y", "no duration"),
        ("1mm", "no duration"),
        ("1H", "no duration"),
        ("..5s", "no duration"),
        ("\N{ARABIC-INDIC DIGIT FIVE}h", "no duration"),
        ("9" * 30 + "w", "too long"),
        ("9" * 400 + "h", "too long"),
    ],
)
def test_what_is_no_duration_is_refused_with_a_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_duration(text)


@given(weeks=st.integers(0, 50), hours=st.integers(0, 999), seconds=st.integers(0, 9999))
def test_parts_add_up(weeks: int, hours: int, seconds: int) -> None:
    assert parse_duration(f"{weeks}w{hours}h{seconds}s") == weeks * 604800 + hours * 3600 + seconds


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error_of_one_line(text: str) -> None:
    message = ""
    try:
        assert parse_duration(text) >= 0
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
