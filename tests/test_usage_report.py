"""``registry-gc report``: tables, JSON, CSV; names that are hostile; what earlier reports said."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from demo_usage import NOW, made_up_report
from registry_gc.report.tables import TableStyle
from registry_gc.report.usage_document import usage_csv, usage_json
from registry_gc.report.usage_text import age_of, usage_lines
from registry_gc.usage.figures import DAY
from registry_gc.usage.growth import Growth, Point, read_growth, remember
from registry_gc.usage.waiting import Waiting
from registry_gc.wording.shown import cell, shown
from running import Disk, write_config

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "[red]markup[/red]",
    "\x1b[2J\x1b]0;title\x07",
    "no-utf8-\udcff\udcfe",
    "turned-\u202egnorw",
    "=HYPERLINK(1)",
    'line\nbreak,"quote"',
)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A registry with something of everything."""
    disk = Disk(tmp_path)
    disk.tree.image("shop/web", "1", layers=[b"base" * 100, b"web" * 100])
    disk.tree.image("shop/api", "1", layers=[b"base" * 100, b"api" * 100])
    disk.tree.image("tools", None, layers=[b"untagged" * 100])
    disk.tree.blob(b"orphan" * 100)
    disk.age()
    return disk


class Answer:
    """What ``registry-gc report`` answered."""

    def __init__(self, disk: Disk, *arguments: str) -> None:
        from registry_gc.cli.main import registry_gc

        self.state = disk.root.with_name("registry.state")
        config = write_config(disk.root)
        line = ["report", "--state-dir", str(self.state), *arguments, str(config)]
        answer = CliRunner().invoke(registry_gc, line)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        self.code, self.text, self.errors = answer.exit_code, answer.stdout, answer.stderr

    @property
    def json(self) -> dict[str, Any]:
        """The document."""
        found: dict[str, Any] = json.loads(self.text)
        return found


def test_the_document_says_who_uses_what(disk: Disk) -> None:
    found = Answer(disk, "--output", "json").json
    dry, real = (disk.collect("--dry-run", *more).json for more in ([], ["-m"]))
    assert found["schema"] == 1
    assert found["storage"] == {"driver": "filesystem", "root": str(disk.root)}
    assert found["totals"]["blobs"] == dry["blobs"]["total"]
    assert found["totals"]["reclaimable_bytes"] == dry["blobs"]["eligible_bytes"] == 600
    assert found["totals"]["reclaimable_untagged_bytes"] == real["blobs"]["eligible_bytes"]
    assert found["totals"]["untagged"] == real["manifests"]["eligible"] == 1
    assert [group["name"] for group in found["groups"]] == ["shop", "tools"]
    names = [share["name"] for share in found["repositories"]]
    assert names == ["shop/api", "shop/web", "tools"]
    web = found["repositories"][1]
    assert (web["group"], web["tags"], web["manifests"]) == ("shop", 1, 1)
    assert web["logical_bytes"] == web["unique_bytes"] + web["shared_bytes"]
    assert web["shared_bytes"] == 402  # the base, and the config {}
    assert web["newest_push"].endswith("Z")
    assert found["largest"]["blobs"][0]["repository"] == "tools"
    assert found["largest"]["images"][0]["tags"] == ["1"]


def test_a_report_changes_nothing_in_the_storage(disk: Disk) -> None:
    from running import fingerprint

    before = fingerprint(disk.root)
    assert Answer(disk).code == 0
    assert fingerprint(disk.root) == before


def test_the_tables_name_repositories_groups_images_and_blobs(disk: Disk) -> None:
    text = Answer(disk).text
    for words in (
        "Groups (2)", "Repositories (3)", "Largest images", "Oldest images", "Largest blobs",
        "Age of blobs", "shop/web", "goes with -m", "1 of 3 manifests are untagged",
    ):  # fmt: skip
        assert words in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([(2, 3000, 0, NOW + DAY), (1, 1, 0, NOW + 9 * DAY)], "3.0 kB  in 3 objects of 2 runs; {}"),
        ([(0, 0, 7, NOW + DAY)], "0 Bytes  in 0 objects of 1 run, and the versions of 7 more; {}"),
        ([(1, 9, 0, NOW)], "9 Bytes  in 1 object of 1 run; registry-gc purge frees now"),
        ([(1, 9, 0, None)], "9 Bytes  in 1 object of 1 run"),
    ],
)
def test_what_waits_in_quarantine_is_a_line(
    runs: list[tuple[int, int, int, float | None]], words: str
) -> None:
    waiting = tuple(Waiting(f"run-{at}", *run) for at, run in enumerate(runs))
    lines = list(usage_lines(replace(made_up_report(3), waiting=waiting), TableStyle(200, False)))
    (line,) = [line for line in lines if "in quarantine" in line]
    due = datetime.fromtimestamp(NOW + DAY, UTC)
    expected = words.format(f"registry-gc purge frees from {due:%Y-%m-%d %H:%M} UTC on")
    assert line.split() == f"in quarantine {expected}".split()


def test_without_a_quarantine_there_is_no_word_of_one(disk: Disk) -> None:
    assert "in quarantine" not in Answer(disk).text


def test_only_the_largest_are_in_the_tables(disk: Disk) -> None:
    text = Answer(disk, "--top", "1").text
    assert "Repositories, the largest 1 of 3" in text
    assert len(Answer(disk, "--top", "1", "--output", "json").json["largest"]["images"]) == 1


def test_groups_are_as_deep_as_asked(disk: Disk) -> None:
    found = Answer(disk, "--output", "json", "--group-depth", "2").json
    assert [group["name"] for group in found["groups"]] == ["shop/api", "shop/web", "tools"]


def test_csv_has_a_line_for_each_repository(disk: Disk) -> None:
    rows = list(csv.DictReader(Answer(disk, "--output", "csv").text.splitlines()))
    assert [row["name"] for row in rows] == ["shop/api", "shop/web", "tools"]
    assert rows[2]["untagged"] == "1"
    assert int(rows[1]["logical_bytes"]) > int(rows[1]["unique_bytes"]) > 0
    assert rows[0]["held"] == "0"


def test_quiet_prints_nothing(disk: Disk) -> None:
    answer = Answer(disk, "--quiet")
    assert (answer.code, answer.text) == (0, "")


def test_a_held_repository_is_told_and_is_no_failure(disk: Disk) -> None:
    disk.write("docker/registry/v2/repositories/tools/_manifests/tags/x/current/link", b"")
    answer = Answer(disk, "--output", "json")
    assert answer.code == 0
    assert [hold["repository"] for hold in answer.json["held"]] == ["tools"]
    assert "held: tools" in Answer(disk).text


def test_where_no_registry_is_nothing_is_reported(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.root.mkdir(exist_ok=True)
    answer = Answer(disk)
    assert (answer.code, answer.text) == (1, "")
    assert "no registry there" in answer.errors


def test_a_root_that_is_missing_is_an_error(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    shutil.rmtree(disk.root, ignore_errors=True)
    answer = Answer(disk)
    assert (answer.code, answer.text) == (1, "")
    assert str(disk.root) in answer.errors


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain/name", "plain/name"),
        ("größe", "größe"),
        ("a\udcffb", r"a\xffb"),
        ("a\x1b[31m", r"a\x1b[31m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\nb", r"a\nb"),
        ("a\ud800\udcff", r"a\ud800\udcff"),
    ],
)
def test_a_name_is_shown_without_what_a_terminal_obeys(name: str, text: str) -> None:
    assert shown(name) == text


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x"])
def test_a_name_is_no_formula_in_a_spreadsheet(name: str) -> None:
    assert cell(name) == f"'{name}"
    assert cell(f"a{name}") == f"a{name}"


def test_hostile_names_stay_names_in_every_form() -> None:
    report = made_up_report(3, names=HOSTILE)
    text = "\n".join(usage_lines(report, TableStyle(200)))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]markup[/red]" in text
    text.encode("utf-8")
    rows = list(csv.DictReader(usage_csv(report)))
    assert {row["name"] for row in rows} >= {cell(name) for name in HOSTILE}
    document = json.loads(usage_json(report))
    assert {row["name"] for row in document["repositories"]} >= set(HOSTILE)


def test_colour_is_for_terminals() -> None:
    lines = "\n".join(usage_lines(made_up_report(3), TableStyle(100, colour=True)))
    assert "\x1b[" in lines


@pytest.mark.parametrize("width", [80, 110, 200])
def test_lines_are_no_longer_than_the_terminal_is_wide(width: int) -> None:
    report = made_up_report(30, names=["a" * 300])
    assert max(map(len, usage_lines(report, TableStyle(width)))) <= width


@pytest.mark.parametrize("width", [20, 40, 60, 71, 72, 73, 119, 120])
def test_numbers_are_whole_on_any_terminal(width: int) -> None:
    report = made_up_report(3, names=["a" * 300, "b", "c"])
    lines = [*usage_lines(report, TableStyle(width))]
    assert not [line for line in lines if "…" in line]
    assert any(line.endswith("last push") for line in lines)
    row = next(line for line in lines if line.startswith(" b "))
    assert re.search(r" (today|\d+ (d|mo|y))$", row)


@pytest.mark.parametrize(
    ("days", "text"), [(0.2, "today"), (1, "1 d"), (59, "59 d"), (61, "2 mo"), (900, "2 y")]
)
def test_ages_are_in_the_largest_unit_that_fits(days: float, text: str) -> None:
    assert age_of(1e9 - days * DAY, 1e9) == text


# --- growth -------------------------------------------------------------------------------------


def point(time: float, stored: int = 10) -> Point:
    """What a report measured."""
    return Point(time, stored, 1, 1, 0, 0)


def test_each_report_is_remembered_for_the_next(disk: Disk) -> None:
    first = Answer(disk, "--output", "json").json
    disk.collect()
    second = Answer(disk, "--output", "json").json
    sizes = [one["stored_bytes"] for one in second["growth"]["reports"]]
    assert sizes == [first["totals"]["stored_bytes"], second["totals"]["stored_bytes"]]
    assert sizes[0] - sizes[1] == 600
    assert [one["freed_bytes"] for one in second["growth"]["runs"]] == [600]


def test_growth_is_that_of_one_storage_in_the_order_of_time(tmp_path: Path) -> None:
    for moment, root in ((3.0, "/a"), (1.0, "/a"), (2.0, "/b")):
        remember(str(tmp_path), "filesystem", root, point(moment))
    growth = read_growth(str(tmp_path), "filesystem", "/a")
    assert growth == Growth((point(1.0), point(3.0)), ())
    assert read_growth(str(tmp_path), "s3", "/a") == Growth((), ())


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    remember(str(tmp_path), "filesystem", "/a", point(1.0))
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"driver": "files\n[1]\n{"driver": "filesystem", "root": "/a"}\n\xff\n')
    remember(str(tmp_path), "filesystem", "/a", point(2.0))
    assert len(read_growth(str(tmp_path), "filesystem", "/a").points) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("time", value) for value in ("1e300", "NaN", "-1e12", "99999999999999", "9" * 400)),
        *(("stored", value) for value in ("Infinity", "NaN", "-5", "9" * 400, "[" * 5000)),
    ],
)
def test_a_number_that_nobody_measured_is_left_out(tmp_path: Path, name: str, value: str) -> None:
    remember(str(tmp_path), "filesystem", "/a", point(1.0))
    file = tmp_path / "usage.jsonl"
    good = file.read_text()
    begin, _, end = good.partition(f'"{name}": ')
    bad = f'{begin}"{name}": {value}{end[end.index(end.lstrip("0123456789.")[0]) :]}'
    assert good != bad
    file.write_text(bad + good)
    assert read_growth(str(tmp_path), "filesystem", "/a").points == (point(1.0),)


def test_a_line_that_was_cut_short_swallows_no_other(tmp_path: Path) -> None:
    remember(str(tmp_path), "filesystem", "/a", point(1.0))
    with (tmp_path / "usage.jsonl").open("ab") as file:
        file.write(b'{"driver": "filesystem", "ro')
    for time in (2.0, 3.0):
        remember(str(tmp_path), "filesystem", "/a", point(time))
    growth = read_growth(str(tmp_path), "filesystem", "/a")
    assert growth.points == (point(1.0), point(2.0), point(3.0))
    assert b"\n\n" not in (tmp_path / "usage.jsonl").read_bytes()


def test_a_root_that_is_no_utf8_is_found_again(tmp_path: Path) -> None:
    remember(str(tmp_path), "filesystem", "/\udcff", point(1.0))
    assert read_growth(str(tmp_path), "filesystem", "/\udcff").points == (point(1.0),)


def test_where_nothing_was_there_is_no_growth(tmp_path: Path) -> None:
    assert read_growth(str(tmp_path / "nowhere"), "s3", "/") == Growth((), ())


def test_a_state_directory_that_refuses_ends_no_report(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "not yours")

    monkeypatch.setattr("registry_gc.cli.report.remember", refuse)
    answer = Answer(disk, "--output", "json")
    assert answer.code == 0
    assert "not yours" in answer.errors
    assert len(answer.json["growth"]["reports"]) == 1
    assert answer.json["growth"]["runs"] == []


# --- the file -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Path]:
    """Where a page goes; nothing else may be left beside it."""
    folder = tmp_path / "pages"
    folder.mkdir()
    yield folder / "usage.html"
    assert [name for name in os.listdir(folder) if name.startswith(".")] == []


def test_the_page_is_written_beside_the_text(disk: Disk, page: Path) -> None:
    answer = Answer(disk, "--html", str(page), "--output", "csv")
    assert answer.code == 0
    assert answer.text.startswith("name,group,")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert page.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_a_page_that_cannot_be_written_leaves_the_one_before(
    disk: Disk, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.write_text("the one before")

    def fail(_: int) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr("registry_gc.report.usage_html.os.fsync", fail)
    answer = Answer(disk, "--html", str(page))
    assert answer.code == 1
    assert "no space left" in answer.errors
    assert page.read_text() == "the one before"


def test_a_page_goes_through_a_symlink_and_into_a_pipe(disk: Disk, page: Path) -> None:
    link = page.with_name("link.html")
    link.symlink_to(page)
    Answer(disk, "--html", str(link))
    assert link.is_symlink()
    assert page.exists()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        import threading

        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(pipe.read()))
        reader.start()
        assert Answer(disk, "-q", "--html", f"/proc/self/fd/{writing}").code == 0
        os.close(writing)
        reader.join()
    assert got[0].startswith(b"<!doctype html>")
