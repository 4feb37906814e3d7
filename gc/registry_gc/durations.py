"""Durations as the command line and the registry's config write them. Pure."""

from __future__ import annotations

import re

import durationpy

# Go's units (``time.ParseDuration``) and days and weeks. durationpy alone also takes months and
# years, signs, and skips what it does not know in the middle: too kind for an age to delete by.
_UNITS = "ns|us|\N{MICRO SIGN}s|\N{GREEK SMALL LETTER MU}s|ms|s|m|h|d|w"
_DURATION = re.compile(rf"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:{_UNITS}))+")
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
        return durationpy.from_str(wanted).total_seconds()
    except ValueError as error:
        raise ValueError(f"{text!r} is too long for a duration: {_LIKE}") from error
