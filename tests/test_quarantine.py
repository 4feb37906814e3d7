"""What a run with ``--quarantine`` sets aside, and how it comes back, on every kind of storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from aside import DAY, Registry
from registry_tree import tag_index_path
from stores import Servers, a_bit_of_everything

KINDS = ("filesystem", "s3", "s3-versioned", "gcs", "azure")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture
def make(servers: Servers, tmp_path: Path) -> Callable[[str], Registry]:
    def made(kind: str) -> Registry:
        if kind == "filesystem":
            return Registry(tmp_path, None)
        place = servers.place(kind.partition("-")[0])
        if kind == "s3-versioned":
            servers.keep_versions(place)
        return Registry(tmp_path, place)

    return made


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, make: Callable[[str], Registry]) -> Registry:
    """A registry of each kind, with a bit of everything in it."""
    made = make(request.param)
    made.write(a_bit_of_everything())
    return made


def uploads_of(files: Mapping[str, bytes]) -> set[str]:
    return {path for path in files if "/_uploads/" in path}


# --- setting aside ----------------------------------------------------------------------------


def test_what_would_be_deleted_is_set_aside_and_comes_back_whole(registry: Registry) -> None:
    before = registry.files()
    expected = registry.collect("-m", "--dry-run").json
    done = registry.quarantine().json
    after = registry.files()
    gone = before.keys() - after.keys()
    assert after.items() <= before.items()
    assert done["quarantine"]["blobs"] == expected["blobs"]["eligible"] > 5
    assert done["quarantine"]["bytes"] == expected["blobs"]["eligible_bytes"]
    assert done["blobs"]["deleted"] == done["blobs"]["deleted_bytes"] == 0
    assert done["quarantine"]["manifests"] == expected["manifests"]["eligible"]
    assert done["quarantine"]["layer_links"] == expected["layer_links"]["eligible"]
    assert done["strangers"] == expected["strangers"]
    back = registry.command("restore", done["run"])
    assert back.exit_code == 0, back
    assert sum(back.json["restored"].values()) == len(gone - uploads_of(before))
    whole = registry.files()
    assert whole == {path: data for path, data in before.items() if path not in gone} | {
        path: before[path] for path in gone - uploads_of(before)
    }


def test_uploads_are_deleted_outright(registry: Registry) -> None:
    before = registry.files()
    done = registry.quarantine().json
    assert done["uploads"]["deleted"] == done["uploads"]["eligible"] == 2
    assert len(uploads_of(before) - uploads_of(registry.read())) >= 4
    assert not any("/_uploads/" in path for path in registry.own())


def test_a_quarantine_is_nobodys_garbage(registry: Registry) -> None:
    registry.quarantine()
    own, files = registry.own(), registry.files()
    again = registry.collect("-m").json
    assert (again["blobs"]["eligible"], again["manifests"]["eligible"]) == (0, 0)
    quarantine = again["quarantine"]
    assert (quarantine["seconds"], quarantine["recalled"], quarantine["missed"]) == (None, 0, 0)
    assert (registry.own(), registry.files()) == (own, files)


def test_a_second_restore_of_a_run_finds_nothing_to_do(registry: Registry) -> None:
    done = registry.quarantine().json
    registry.command("restore", done["run"])
    whole = registry.files()
    again = registry.command("restore", done["run"])
    assert (again.exit_code, again.json["restored"]) == (1, {})
    assert registry.own() == set()
    assert registry.files() == whole


def test_a_purge_deletes_what_has_waited_long_enough_and_only_that(registry: Registry) -> None:
    done = registry.quarantine().json
    files = registry.files()
    registry.later = 6 * DAY
    early = registry.purge()
    (waiting,) = early.json["runs"]
    assert (waiting["due"], waiting["deleted"]) == (False, 0)
    assert registry.own()
    registry.later = 8 * DAY
    shown = registry.purge("--dry-run").json["runs"][0]
    assert registry.own()
    purged = registry.purge()
    (gone,) = purged.json["runs"]
    assert (gone["run"], gone["due"]) == (done["run"], True)
    assert gone["deleted"] == shown["deleted"] > done["quarantine"]["blobs"]
    assert not registry.own()
    assert registry.files() == files
    # What "broken" holds is still held, and said so.
    assert (purged.exit_code, purged.json["held"]) == (3, ["broken"])
    assert registry.command("restore", done["run"]).exit_code == 1


def test_what_is_live_comes_back_before_a_purge_and_before_a_run(registry: Registry) -> None:
    before = registry.files()
    registry.quarantine()
    folder = "docker/registry/v2/repositories/only-untagged/_manifests"
    (digest,) = {path.split("/")[-2] for path in before if path.startswith(f"{folder}/revisions/")}
    link = f"{folder}/tags/again/current/link"
    registry.write({link: f"sha256:{digest}".encode()})
    shown = registry.collect("--dry-run").json["quarantine"]
    assert (shown["recalled"], shown["missed"]) == (0, 2)
    registry.later = 8 * DAY
    purged = registry.purge()
    assert purged.json["recalled"] == 5
    files = registry.files()
    here = {path for path in before if "only-untagged" in path and "tags/" not in path}
    assert here <= files.keys()
    assert {path: files[path] for path in here} == {path: before[path] for path in here}


@pytest.mark.parametrize("tag", ["_uploads", "plain"])
def test_the_history_of_a_tag_is_no_upload_whatever_it_is_called(tmp_path: Path, tag: str) -> None:
    registry = Registry(tmp_path, None)
    older = registry.tree().image("app", tag, layers=[b"older"])
    newer = registry.tree().image("app", tag, layers=[b"newer"])
    entry = tag_index_path("app", tag, older)
    assert entry in registry.files()
    registry.quarantine()
    assert registry.can_pull("app", newer)
    assert any(path.endswith(entry) for path in registry.own())


# --- a report ---------------------------------------------------------------------------------


def test_a_report_says_what_waits(registry: Registry) -> None:
    def waiting() -> dict[str, Any]:
        command = ["report", "--state-dir", str(registry.folder / "state")]
        found: dict[str, Any] = registry.command(*command).json["quarantine"]
        return found

    nothing = {"objects": 0, "bytes": 0, "hidden": 0, "runs": []}
    assert waiting() == nothing
    before = registry.files()
    done = registry.quarantine().json
    gone = {path: before[path] for path in before.keys() - registry.files().keys()}
    sizes = [len(data) for path, data in gone.items() if "/_uploads/" not in path]
    if done["quarantine"]["delete_markers"]:
        expected = {"objects": 0, "bytes": 0, "hidden": len(sizes)}
    else:
        expected = {"objects": len(sizes), "bytes": sum(sizes), "hidden": 0}
    found = waiting()
    (run,) = found["runs"]
    until = datetime.fromisoformat(run.pop("until")).timestamp()
    assert abs(until - time.time() - registry.ahead - 7 * DAY) < DAY
    assert run == {"run": done["run"], **expected}
    assert found == {**expected, "runs": [run]}
    registry.later = 8 * DAY
    registry.purge()
    assert waiting() == nothing
