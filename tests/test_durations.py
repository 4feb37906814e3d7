"""Durations: Go's, and days and weeks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_gc.wording.durations import in_words, parse_deadline, parse_duration


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
        ("106751d", 106751 * 86400.0),
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
        ("106752d", "too long"),
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


# Deadlines

NOON = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system's time zone has a summer time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400.0),
        ("1d", 86400.0),
        # It is 14:00 there.
        ("14:30", 1800.0),
        ("14:00:01", 1.0),
        ("06:00", 16 * 3600.0),
        ("14:00", 24 * 3600.0),
        ("2026-07-01T13:00:00Z", 3600.0),
        ("2026-07-01 16:00", 2 * 3600.0),
        ("2026-07-02", 10 * 3600.0),
    ],
)
def test_a_deadline_is_a_time_of_day_a_moment_or_a_duration(text: str, seconds: float) -> None:
    assert parse_deadline(text, NOON) == pytest.approx(seconds)


@pytest.mark.usefixtures("berlin")
def test_a_time_of_tomorrow_is_that_of_tomorrows_clock() -> None:
    """In the night of 25 October the clock is put back from 03:00 to 02:00."""
    evening = datetime(2026, 10, 24, 20, 0, tzinfo=UTC)  # 22:00 there
    assert parse_deadline("06:00", evening) == pytest.approx(9 * 3600.0)


@pytest.mark.parametrize(
    "text",
    ["", "soon", "25:00", "12:60", "6", "-1h", "2026-13-01", "2020-01-01", "2026-07-01T11:59:59Z"],
)
def test_what_is_no_deadline_or_has_passed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_deadline(text, NOON)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 seconds"),
        (61, "1 minute and 1 second"),
        (3661, "1 hour and 1 minute"),
        (7 * 86400, "7 days"),
        (7 * 86400 + 3 * 3600 + 9, "7 days and 3 hours"),
        (400 * 86400, "400 days"),
    ],
)
def test_an_age_in_words_has_two_units(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
