"""How a storage has grown: what earlier reports measured, and what earlier runs freed.

A collection on a filesystem does not look at the sizes of live blobs, so reports remember them,
one line of JSON each, in the state directory.
"""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec

from registry_gc.runs.past import checked_time, past_runs
from registry_gc.usage.figures import Usage

_FILE = "usage.jsonl"
_MOST = 1 << 63  # bytes; no storage holds as many


class Point(msgspec.Struct, frozen=True):
    """What one report measured. ``time``: seconds since the epoch; sizes in bytes."""

    time: float
    stored: int
    blobs: int
    repositories: int
    reclaimable: int
    reclaimable_untagged: int


class Freed(msgspec.Struct, frozen=True):
    """What one run freed, in bytes, and when it ended."""

    time: float
    bytes: int
    run: str


class Growth(msgspec.Struct, frozen=True):
    """Both, each in the order of time."""

    points: tuple[Point, ...]
    freed: tuple[Freed, ...]


def point_of(usage: Usage) -> Point:
    """What is remembered of a report."""
    totals = usage.totals
    return Point(
        time=usage.made,
        stored=totals.stored,
        blobs=totals.blobs,
        repositories=totals.repositories,
        reclaimable=totals.reclaimable,
        reclaimable_untagged=totals.reclaimable_untagged,
    )


def remember(state_dir: str, driver: str, root: str, point: Point) -> None:
    """Append *point* to those of the storage *driver*, *root*.

    :raises OSError: the state directory cannot be written.
    """
    fields = {name: getattr(point, name) for name in Point.__struct_fields__}
    line = json.dumps({"driver": driver, "root": root, **fields}) + "\n"
    handle = os.open(os.path.join(state_dir, _FILE), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(handle).st_size
        # A line that a full disk has cut short must not swallow this one.
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = "\n" + line
        left = memoryview(line.encode("ascii"))
        # One write, mostly: two reports at once leave two lines. A full disk fails the second.
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


def read_growth(state_dir: str, driver: str, root: str) -> Growth:
    """What is known about the storage *driver*, *root*.

    :raises OSError: the state directory is there, and cannot be read.
    """
    freed = [
        Freed(run.ended or run.created or 0.0, run.deleted_bytes, run.run)
        for run in past_runs(state_dir)
        if (run.driver, run.root) == (driver, root) and not run.dry_run and run.looked
    ]
    return Growth(
        points=tuple(sorted(_points(state_dir, driver, root), key=lambda point: point.time)),
        freed=tuple(sorted(freed, key=lambda run: run.time)),
    )


def _points(state_dir: str, driver: str, root: str) -> list[Point]:
    try:
        with open(os.path.join(state_dir, _FILE), encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return []
    found: list[Point] = []
    for line in lines:
        try:
            fields = json.loads(line)
            if (fields.pop("driver"), fields.pop("root")) == (driver, root):
                time = checked_time(fields.pop("time"))
                counts = {name: _count(value) for name, value in fields.items()}
                found.append(Point(time=time, **counts))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            continue  # a line that was cut short, or another version's: a figure less
    return found


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count < _MOST:
        raise ValueError(f"no count: {count}")
    return count
