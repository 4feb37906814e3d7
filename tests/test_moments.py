"""Moments as they are shown: any time that a file may have, and none that raises."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from demo_usage import made_up_report
from registry_gc.report.tables import TableStyle
from registry_gc.report.usage_document import usage_csv, usage_json
from registry_gc.report.usage_html import page
from registry_gc.report.usage_text import usage_lines
from registry_gc.usage.waiting import Waiting
from registry_gc.wording.moments import rfc3339, to_the_minute, utc
from registry_tree import blob_path
from running import Disk, collect


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_of_the_calendar_is_itself(moment: datetime) -> None:
    assert abs((utc(moment.timestamp()) - moment).total_seconds()) < 1


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_moments_outside_of_it_are_its_ends_in_their_order(one: float, two: float) -> None:
    first, second = sorted((one, two))
    assert utc(first) <= utc(second)
    assert (to_the_minute(first), rfc3339(first)) <= (to_the_minute(second), rfc3339(second))


@pytest.mark.parametrize(
    ("seconds", "minute", "whole"),
    [
        (1_769_860_800.0, "2026-01-31 12:00", "2026-01-31T12:00:00Z"),
        (1_769_860_859.9, "2026-01-31 12:00", "2026-01-31T12:00:59Z"),
        (-62_135_596_800.0, "0001-01-01 00:00", "0001-01-01T00:00:00Z"),
        (-9e11, "0001-01-01 00:00", "0001-01-01T00:00:00Z"),
        (9e11, "9999-12-31 23:59", "9999-12-31T23:59:59Z"),
    ],
)
def test_a_moment_is_shown(seconds: float, minute: str, whole: str) -> None:
    assert (to_the_minute(seconds), rfc3339(seconds)) == (minute, whole)


def test_no_moment_is_none() -> None:
    assert rfc3339(None) is None


@pytest.mark.parametrize("when", [-9e11, 9e11])
def test_a_report_shows_whatever_time_a_file_has(when: float) -> None:
    report = made_up_report(3)
    usage = report.usage
    strange = replace(
        report,
        usage=replace(
            usage,
            repositories=tuple(
                replace(share, oldest=when, newest=when) for share in usage.repositories
            ),
            oldest_images=tuple(replace(image, pushed=when) for image in usage.oldest_images),
            oldest_blobs=tuple(replace(blob, modified=when) for blob in usage.oldest_blobs),
        ),
        waiting=(Waiting("one", 1, 1, 0, when),),
    )
    year = "9999" if when > 0 else "0001"
    assert year in usage_json(strange)
    assert year in page(strange)
    assert year in "\n".join(usage_csv(strange))
    assert list(usage_lines(strange, TableStyle(120, False)))


def test_a_file_of_another_age_of_the_world_is_as_old_as_it_says(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.tree.image("a", "1", layers=[b"layer"])
    young, old = disk.tree.blob(b"young"), disk.tree.blob(b"old")
    disk.age()
    for digest, when in ((young, 9e11), (old, -9e11)):
        # A file system takes what it can hold: some end in 2038, 2446 or 2486.
        os.utime(disk.root / blob_path(digest), (0, when))
    result = collect(disk.root)
    assert result.json["blobs"]["deleted"] == 1
    assert disk.has_blob(young)
    assert not disk.has_blob(old)
