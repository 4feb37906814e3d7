"""What a run came to, as the lines that scripts expect and the document that programs read."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from core_support import OLD, Store, marked
from registry_gc.catalog import Damage
from registry_gc.collect import Plan
from registry_gc.engine import SerialEngine
from registry_gc.guard import Finding
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.live_set import LiveSet
from registry_gc.marking.holding import Hold
from registry_gc.plan import dead_blobs, dead_links
from registry_gc.policy import Policy
from registry_gc.report.document import as_json, document
from registry_gc.report.model import Report, Tally
from registry_gc.report.text import plan_lines, summary_lines
from registry_gc.run_file import RunFile
from registry_tree import repository_path, sha256

UNTAGGED_GO = Policy(delete_untagged=True)


def shown(store: Store, folder: Path, verbose: bool) -> list[str]:
    """What a run would show."""
    with closing(RunFile.create(str(folder / "run.sqlite"))) as run_file:
        return [*plan_lines(plan_of(store, run_file), verbose)]


def plan_of(store: Store, run_file: RunFile, policy: Policy = UNTAGGED_GO) -> Plan:
    """What a run finds out."""
    found = marked(store.storage, policy)
    live = LiveSet([found.marking.digests])
    for batch in stream_blobs(store.storage, SerialEngine(store.storage)):
        cutoff = store.storage.now()
        run_file.add(dead_blobs(batch, live, cutoff, found.catalog.names).rows)
    cutoff = store.storage.now()
    links = dead_links(found.catalog, found.manifests, found.marking, policy, cutoff)
    run_file.add(links.rows)
    return Plan(found.catalog, found.manifests, found.marking, run_file)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def report() -> Report:
    return Report(
        run="0000",
        run_file="/state/run.sqlite",
        version="1.2.3",
        dry_run=False,
        delete_untagged=True,
        driver="filesystem",
        root="/srv",
        repositories=1234,
        emptied=2,
        marked=5000,
        manifests=Tally(30, 0, 29, 0),
        blobs_total=7000,
        blobs=Tally(2000, 3_000_000_000, 1999, 2_999_000_000),
        layer_links=Tally(40, 0, 40, 0),
        uploads=Tally(3, 1000, 3, 1000),
        already_gone=0,
        held=(),
        damaged=(),
        failed=(),
        strangers=0,
        requests={"list": 7, "read": 3, "delete": 1, "write": 2, "retries": 9},
        seconds_mark=1.23456789,
        seconds_sweep=0.5,
        seconds_total=2.0,
        peak_rss_bytes=100,
        verdict="allowed",
        findings=(Finding("readonly-confirmed", "it says so"),),
        error=None,
        exit_code=0,
    )


# The stock command's lines


def test_the_lines_are_those_of_distribution_in_sorted_order(store: Store, tmp_path: Path) -> None:
    kept = store.tree.image("b", "v1", layers=[b"kept"])
    old = store.tree.image("a", "v2", layers=[b"old"])
    store.tree.tag("a", "v1", old)
    for tag in ("v1", "v2"):
        store.tree.tag("a", tag, store.tree.image("a", None, layers=[b"new"]))
    untagged = store.tree.image("b", None, layers=[b"untagged"])
    lines = "\n".join(shown(store, tmp_path, verbose=False)).split("\n")
    dead = sorted([old, untagged, sha256(b"old"), sha256(b"untagged")])
    assert lines == [
        "a",
        "b",
        "",
        "5 blobs marked, 4 blobs and 2 manifests eligible for deletion",
        f"manifest eligible for deletion: {{a {old} [v1 v2]}}",
        f"manifest eligible for deletion: {{b {untagged} []}}",
        *(f"blob eligible for deletion: {digest}" for digest in dead),
        f"a: layer link eligible for deletion: {sha256(b'old')}",
        f"b: layer link eligible for deletion: {sha256(b'untagged')}",
    ]
    assert kept not in "\n".join(lines)


def test_verbose_lines_name_what_is_marked_with_the_blank_that_distribution_prints(
    store: Store, tmp_path: Path
) -> None:
    child = store.tree.image("a", None, layers=[b"layer"])
    index = store.tree.index("a", "v1", [child, sha256(b"never pushed")])
    store.tree.image("b", None)
    lines = shown(store, tmp_path, verbose=True)
    head = lines[: lines.index("")]
    assert head[0] == "a"
    assert head[-1] == "b"
    assert sorted(line for line in head if "marking manifest" in line) == sorted(
        f"a: marking manifest {digest} " for digest in (child, index)
    )
    parts = [child, sha256(b"never pushed"), sha256(b"layer"), sha256(b"{}")]
    assert sorted(line for line in head if "marking blob" in line) == sorted(
        f"a: marking blob {digest}" for digest in parts
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_a_name_cannot_speak_to_a_terminal(store: Store, tmp_path: Path, verbose: bool) -> None:
    store.tree.image("a", "v1", layers=[b"kept"])
    for name in ("a", "odd\x1b[31m", "two\nlines"):
        store.tree.image(name, None, layers=[b"dead"])
    text = "\n".join(shown(store, tmp_path, verbose=verbose))
    assert all(line.isprintable() for line in text.split("\n"))
    for name in ("a", "odd\\x1b[31m", "two\\nlines"):
        assert f"\n{name}: layer link eligible for deletion: {sha256(b'dead')}" in text
    assert "\ntwo\\nlines\n" in text


def test_each_blob_is_named_once_in_a_repository(store: Store, tmp_path: Path) -> None:
    for number in range(3):
        store.tree.image("a", f"v{number}", layers=[b"%d" % number, b"shared"])
    lines = shown(store, tmp_path, verbose=True)
    assert lines.count(f"a: marking blob {sha256(b'shared')}") == 1


def test_a_registry_with_nothing_has_only_the_count(store: Store, tmp_path: Path) -> None:
    assert shown(store, tmp_path, verbose=True) == [
        "",
        "0 blobs marked, 0 blobs and 0 manifests eligible for deletion",
    ]


def test_signatures_entries_and_uploads_have_no_line_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    store.tree.tag("a", "v1", sha256(b"1"))
    store.tree.tag("a", "v1", sha256(b"2"))
    store.tree.upload("a", "u", "2020-01-01T00:00:00Z")
    assert store.age == OLD
    assert len(shown(store, tmp_path, verbose=False)) == 3
    assert repository_path("a") not in "".join(shown(store, tmp_path / "x", verbose=False))


# The summary


def test_the_summary_of_a_run_says_what_was_freed(report: Report) -> None:
    assert list(summary_lines(report)) == [
        "",
        "freed 3.0 GB of 3.0 GB found, in 2.0 s",
        "  repositories  1,234, 2 emptied",
        "  manifests     30 eligible, 29 deleted",
        "  layer links   40 eligible, 40 deleted",
        "  blobs         2,000 eligible (3.0 GB) of 7,000, 1,999 deleted",
        "  uploads       3 eligible (1.0 kB), 3 deleted",
        "  run file      /state/run.sqlite",
    ]


def test_the_summary_of_a_dry_run_says_what_would_be(report: Report) -> None:
    lines = list(summary_lines(replace(report, dry_run=True)))
    assert lines[1] == "a collection would free 3.0 GB; found out in 2.0 s"
    assert not any("deleted" in line for line in lines)


def test_the_summary_names_all_that_went_another_way(report: Report) -> None:
    troubled = replace(
        report,
        already_gone=7,
        strangers=1000,
        held=(Hold("a", sha256(b"x"), "cut short"), Hold("b", None, "a tag without digest")),
        damaged=(Damage("some/path", "empty link"),),
        failed=(("other/path", "denied"),),
        run_file=None,
    )
    assert list(summary_lines(troubled))[7:] == [
        "  gone already  7",
        "  strangers     1,000 files that are not a registry's, kept",
        f"  held          a@{sha256(b'x')}: cut short",
        "  held          b: a tag without digest",
        "  damaged       some/path: empty link",
        "  not deleted   other/path: denied",
    ]


# The document

CONTRACT = {
    "schema": None,
    "run": None,
    "run_file": None,
    "version": None,
    "dry_run": None,
    "delete_untagged": None,
    "storage": {"driver", "root"},
    "repositories": {"total", "emptied"},
    "marked": None,
    "manifests": {"eligible", "deleted"},
    "blobs": {"total", "eligible", "eligible_bytes", "deleted", "deleted_bytes"},
    "layer_links": {"eligible", "deleted"},
    "uploads": {"eligible", "deleted", "deleted_bytes"},
    "already_gone": None,
    "held": None,
    "damaged": None,
    "failed": None,
    "strangers": None,
    "requests": {"list", "read", "delete", "write"},
    "seconds": {"mark", "sweep", "total"},
    "peak_rss_bytes": None,
    "guard": {"verdict", "findings"},
    "exit_code": None,
}


def test_the_document_has_all_fields_of_the_contract(report: Report) -> None:
    found = document(report)
    for name, fields in CONTRACT.items():
        assert name in found
        if fields is not None:
            assert set(found[name]) == fields


def test_the_document_says_what_the_report_says(report: Report) -> None:
    troubled = replace(
        report,
        held=(Hold("a", None, "why"),),
        damaged=(Damage("p", "why"),),
        failed=(("q", "denied"),),
        error="it failed",
        exit_code=1,
    )
    found = document(troubled)
    assert found["schema"] == 1
    assert found["blobs"] == {
        "total": 7000,
        "eligible": 2000,
        "eligible_bytes": 3_000_000_000,
        "deleted": 1999,
        "deleted_bytes": 2_999_000_000,
    }
    assert found["held"] == [{"repository": "a", "digest": None, "reason": "why"}]
    assert found["damaged"] == [{"path": "p", "reason": "why"}]
    assert found["failed"] == [{"path": "q", "error": "denied"}]
    assert found["guard"]["findings"] == [{"code": "readonly-confirmed", "message": "it says so"}]
    assert found["seconds"] == {"mark": 1.234568, "sweep": 0.5, "total": 2.0}
    assert (found["error"], found["exit_code"]) == ("it failed", 1)


def test_the_document_is_ascii_whatever_the_names(report: Report) -> None:
    odd = replace(report, root="\udcff\N{SNOWMAN}", failed=(("\udcfe", "\ud800"),))
    text = as_json(odd)
    assert text.isascii()
    assert json.loads(text) == document(odd)
