"""Durations as the command line and the registry's config write them. Pure."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta

import durationpy

# Go's units (``time.ParseDuration``) and days and weeks. durationpy alone also takes months and
# years, signs, and skips what it does not know in the middle: too kind for an age to delete by.
_UNITS = "ns|us|\N{MICRO SIGN}s|\N{GREEK SMALL LETTER MU}s|ms|s|m|h|d|w"
_DURATION = re.compile(rf"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:{_UNITS}))+")
_LONGEST = (1 << 63) / 1e9  # of Go's durations, in seconds: 292 years
_LIKE = "write it like 90s, 1h30m, 36h or 1w2d"


def parse_duration(text: str) -> float:
    """The seconds that *text* says: Go's durations plus ``d`` (24 h) and ``w`` (7 d), or ``0``.

    :raises ValueError: negative, without a unit, out of range, or no duration at all; the
        message says which and how to write one.
    """
    wanted = text.strip()
    if wanted == "0":
        return 0.0
    if wanted.startswith("-"):
        raise ValueError(f"{text!r} is negative: a duration counts backwards from now already")
    if re.fullmatch(r"[0-9.]+", wanted):
        raise ValueError(f"{text!r} has no unit: {_LIKE}")
    if not _DURATION.fullmatch(wanted):
        raise ValueError(f"{text!r} is no duration: {_LIKE}")
    try:
        seconds = durationpy.from_str(wanted).total_seconds()
    except ValueError:
        seconds = _LONGEST
    if seconds >= _LONGEST:
        raise ValueError(f"{text!r} is too long for a duration: 292 years are the most")
    return seconds


def in_words(seconds: float) -> str:
    """An age for people, by its two largest units: ``8 days and 3 hours``."""
    import humanize

    whole = round(seconds)
    unit = "seconds" if whole < 3600 else "minutes" if whole < 86400 else "hours"
    return humanize.precisedelta(
        whole, minimum_unit=unit, suppress=["months", "years"], format="%d"
    )


def parse_deadline(text: str, now: datetime) -> float:
    """The seconds from *now* until *text*: a time of day (the next one), a moment, or a duration.

    A time of day and a moment without an offset are those of the system's time zone.

    :param now: with a time zone.
    :raises ValueError: *text* is none of them, or a moment that has passed.
    """
    wanted = text.strip()
    if re.fullmatch(r"\d\d:\d\d(:\d\d)?", wanted):
        local = now.astimezone()
        moment = datetime.combine(local.date(), time.fromisoformat(wanted))
        if moment <= local.replace(tzinfo=None):
            moment += timedelta(days=1)
        # Given its offset only now: tomorrow may have another one than today.
        return (moment.astimezone() - now).total_seconds()
    if re.match(r"\d{4}-", wanted):
        moment = datetime.fromisoformat(wanted)
        aware = moment if moment.tzinfo is not None else moment.astimezone()
        if aware <= now:
            raise ValueError(f"{text!r} has passed already")
        seconds = (aware - now).total_seconds()
        if seconds >= _LONGEST:
            raise ValueError(f"{text!r} is too far away: 292 years are the most")
        return seconds
    try:
        return parse_duration(wanted)
    except ValueError as error:
        raise ValueError(f"{error}, or a time such as 06:00") from None
