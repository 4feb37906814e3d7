"""Moments as people and programs read them. Pure.

Files may have any time at all (a broken clock, a damaged disk), and Python's calendar has the
years 1 to 9999: what lies outside is shown as their beginning or end, and stays what it is in
every decision.
"""

from __future__ import annotations

from datetime import UTC, datetime

_FIRST = datetime.min.replace(tzinfo=UTC).timestamp()
_LAST = datetime.max.replace(tzinfo=UTC, microsecond=0).timestamp()


def utc(seconds: float) -> datetime:
    """The moment *seconds* after the epoch, with UTC as its time zone; never raises."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


def to_the_minute(seconds: float) -> str:
    """As in ``2026-01-31 12:00``, in UTC."""
    # strftime does not fill up years before 1000.
    return utc(seconds).isoformat(" ", "minutes").removesuffix("+00:00")


def utc_minute(seconds: float) -> str:
    """As in ``2026-01-31 12:00 UTC``, where nothing else says which time that is."""
    return f"{to_the_minute(seconds)} UTC"


def rfc3339(seconds: float | None) -> str | None:
    """As in ``2026-01-31T12:00:00Z``; None for None."""
    if seconds is None:
        return None
    return utc(seconds).replace(microsecond=0).isoformat().replace("+00:00", "Z")
