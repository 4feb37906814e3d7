"""A quarantine in a bucket that keeps versions: delete markers, and what must not purge them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aside import DAY, Registry
from registry_drivers.base import Reader
from registry_drivers.errors import StorageError
from registry_gc.manifests import References
from registry_gc.quarantine import aside, clearing
from registry_gc.quarantine.restore import Quarantined
from registry_gc.run_file import RunFile
from registry_gc.runs.rows import Row, RowKind, RowState
from registry_gc.runs.version_rows import add_versions_of_deleted
from registry_tree import blob_path, sha256
from running import Result
from servers.moto import S3Server, moto
from stores import Place, a_bit_of_everything

GONE = b"no link at all"
"""What a bit of everything has that is dead in any case."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with ExitStack() as stack:
        yield stack.enter_context(moto(tmp_path_factory.mktemp("moto")))


@pytest.fixture
def registry(server: S3Server, tmp_path: Path) -> Registry:
    bucket = server.bucket()
    server.client.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    made = Registry(tmp_path, Place("s3", server.parameters(bucket)))
    made.write(a_bit_of_everything())
    return made


def bucket_of(registry: Registry) -> str:
    assert registry.place is not None
    return str(registry.place.parameters["bucket"])


def versions(server: S3Server, registry: Registry) -> set[str]:
    """The keys of which the bucket keeps any bytes."""
    return {row["Key"] for row in rows_of(server, registry)}


def rows_of(server: S3Server, registry: Registry) -> list[dict[str, Any]]:
    """What the bucket says of each version."""
    answer: Any = server.client.list_object_versions(Bucket=bucket_of(registry))
    return list(answer.get("Versions", ()))


def test_nothing_is_copied(server: S3Server, registry: Registry) -> None:
    before = registry.files()
    done = registry.quarantine().json
    assert done["quarantine"]["delete_markers"] is True
    # A lock, the note of the run and a list for each batch; no object is copied.
    assert done["requests"]["write"] < 15 < done["quarantine"]["blobs"] * 2
    assert {path for path in registry.own() if "/docker/" in path.partition("quarantine/")[2]} == (
        set()
    )
    assert before.keys() <= versions(server, registry)
    shown = registry.command("restore", done["run"], "--dry-run").json
    assert sum(shown["restored"].values()) > 20


def test_what_an_earlier_run_has_read_is_not_read_under_its_marker(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = Quarantined.references

    def references(self: Quarantined, digest: str) -> References | None:
        read.append(digest)
        return plain(self, digest)

    monkeypatch.setattr(Quarantined, "references", references)
    registry.cache = registry.folder / "references.sqlite"
    registry.quarantine()
    registry.collect("-m", "--dry-run")
    with_cache = len(read)
    registry.cache = None
    registry.collect("-m", "--dry-run")
    # Of what was damaged, or no manifest, nothing is remembered.
    assert len(read) - with_cache > with_cache + 2


def test_what_waits_is_spared_by_a_run_that_purges_versions(
    server: S3Server, registry: Registry
) -> None:
    registry.quarantine()
    registry.collect("-m", "--purge-versions")
    assert blob_path(sha256(GONE)) in versions(server, registry)
    assert registry.command("restore", sha256(GONE)).exit_code == 0
    assert registry.files()[blob_path(sha256(GONE))] == GONE


def test_a_purge_deletes_the_versions_and_nothing_that_is_in_use(
    server: S3Server, registry: Registry
) -> None:
    registry.quarantine()
    again = {blob_path(sha256(GONE)): GONE}
    registry.write(again)
    hidden = versions(server, registry) - registry.read().keys()
    sizes = {row["VersionId"]: row["Size"] for row in rows_of(server, registry)}
    registry.later = 8 * DAY
    (shown,) = registry.purge("--dry-run").json["runs"]
    assert (shown["deleted"], shown["deleted_bytes"]) == (shown["hidden"], 0)
    done = registry.purge()
    assert done.json["runs"][0]["failed"] == []
    gone = sizes.keys() - {row["VersionId"] for row in rows_of(server, registry)}
    assert done.json["runs"][0]["deleted_bytes"] == sum(sizes[number] for number in gone) > 0
    assert done.json["runs"][0]["deleted"] > 20
    left = versions(server, registry)
    assert not {path for path in hidden if "/_uploads/" not in path and "lock" not in path} & left
    assert again.items() <= registry.files().items()
    assert not [path for path in registry.own() if "quarantine" in path]


def test_what_two_runs_hide_waits_for_the_later(server: S3Server, registry: Registry) -> None:
    registry.collect("-m", "--quarantine", "2d")
    registry.write({blob_path(sha256(GONE)): GONE})
    registry.later = DAY
    registry.collect("-m", "--quarantine", "30d")
    registry.later = 5 * DAY
    due = {row["due"] for row in registry.purge().json["runs"]}
    assert due == {True, False}
    assert blob_path(sha256(GONE)) in versions(server, registry)
    assert registry.command("restore", sha256(GONE)).exit_code == 0
    assert registry.files()[blob_path(sha256(GONE))] == GONE


def test_a_rule_that_deletes_versions_early_makes_it_copy(
    server: S3Server, registry: Registry
) -> None:
    rule: Any = {
        "ID": "tidy",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }
    server.client.put_bucket_lifecycle_configuration(
        Bucket=bucket_of(registry), LifecycleConfiguration={"Rules": [rule]}
    )
    done = registry.quarantine().json
    assert done["quarantine"]["delete_markers"] is False
    assert blob_path(sha256(GONE)) in registry.quarantined()


def test_what_is_live_is_undeleted_by_the_next_run(registry: Registry) -> None:
    before = registry.files()
    registry.quarantine()
    folder = "docker/registry/v2/repositories/only-untagged/_manifests"
    names = [path.split("/")[-2] for path in before if path.startswith(f"{folder}/revisions/")]
    registry.write({f"{folder}/tags/again/current/link": f"sha256:{names[0]}".encode()})
    done = registry.collect("-m").json
    assert done["quarantine"]["recalled"] == 5
    assert registry.can_pull("only-untagged", f"sha256:{names[0]}")


# --- what is back is in quarantine no more -------------------------------------------------------


def hiding(registry: Registry) -> list[str]:
    """The paths that the lists of all runs name."""
    found = registry.read()
    return [path for name in found if "/deleted/" in name for path in json.loads(found[name])]


def hidden_now(server: S3Server, registry: Registry) -> set[str]:
    """The registry's keys that have versions and no object."""
    return {key for key in versions(server, registry) - registry.read().keys() if "/v2/" in key}


def test_a_run_that_was_restored_whole_is_forgotten_and_keeps_no_versions(
    server: S3Server, registry: Registry
) -> None:
    run = registry.quarantine().json["run"]
    assert registry.command("restore", run).json["lost"] == []
    assert registry.command("restore").json["runs"] == []
    assert registry.command("report").json["quarantine"]["runs"] == []
    assert not [path for path in registry.own() if "quarantine" in path]
    assert registry.collect("-m").json["blobs"]["deleted"] > 0
    assert registry.purge("--older-than", "0s").json["runs"] == []
    assert WHERE in hidden_now(server, registry)
    registry.collect("-m", "--purge-versions")
    assert not hidden_now(server, registry)


def test_what_is_not_back_waits_on(registry: Registry) -> None:
    run = registry.quarantine().json["run"]
    before = hiding(registry)
    assert registry.command("restore", sha256(GONE)).json["restored"] == {"blob": 1}
    assert sorted(hiding(registry)) == sorted({*before} - {WHERE})
    assert [row["run"] for row in registry.command("restore").json["runs"]] == [run]
    assert comes_back(registry, run)
    assert hiding(registry) == []


def test_a_restore_that_died_before_it_forgot_is_made_whole_by_the_next(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = registry.quarantine().json["run"]
    with monkeypatch.context() as patch:
        patch.setattr("registry_gc.cli.restore.forget_hidden", died)
        assert registry.command("restore", run).exit_code == 1
    assert hiding(registry)
    done = registry.command("restore", run)
    assert (done.exit_code, done.json["restored"]) == (0, {})
    assert registry.command("restore").json["runs"] == []


def test_one_that_dies_between_two_lists_names_too_much_and_never_too_little(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = registry.quarantine().json["run"]
    before = {*hiding(registry)}
    read = aside.read_list
    calls: list[str] = []

    def one_is_read(reader: Reader, path: str) -> list[str]:
        calls.append(path)
        return read(reader, path) if len(calls) == 1 else died()

    with monkeypatch.context() as patch:
        patch.setattr(clearing, "read_list", one_is_read)
        assert registry.command("restore", run).exit_code == 1
    assert {*hiding(registry)} < before
    assert [row["run"] for row in registry.command("restore").json["runs"]] == [run]
    again = registry.quarantine().json["run"]
    assert comes_back(registry, again)
    assert registry.command("restore").json["runs"] == []


def died(*_: object) -> NoReturn:
    raise StorageError("died", driver="s3")


def test_what_was_restored_and_set_aside_again_waits_for_the_second_run(
    server: S3Server, registry: Registry
) -> None:
    """Its versions are those that the first had hidden."""
    first = registry.collect("-m", "--quarantine", "2d").json["run"]
    assert comes_back(registry, first)
    second = registry.collect("-m", "--quarantine", "30d").json["run"]
    registry.later = 5 * DAY
    assert [row["due"] for row in registry.purge().json["runs"]] == [False]
    assert WHERE in hidden_now(server, registry)
    assert comes_back(registry, second)


def test_what_two_runs_had_hidden_is_forgotten_by_both_once_it_is_back(registry: Registry) -> None:
    registry.collect("-m", "--quarantine", "2d")
    registry.write({WHERE: GONE})
    registry.collect("-m", "--quarantine", "30d")
    assert hiding(registry).count(WHERE) == 2
    assert registry.command("restore", sha256(GONE)).exit_code == 0
    assert hiding(registry).count(WHERE) == 0
    assert len(registry.command("restore").json["runs"]) == 1


def test_what_a_run_brings_back_by_itself_waits_no_more(registry: Registry) -> None:
    before = registry.files()
    registry.quarantine()
    folder = "docker/registry/v2/repositories/only-untagged/_manifests"
    names = [path.split("/")[-2] for path in before if path.startswith(f"{folder}/revisions/")]
    registry.write({f"{folder}/tags/again/current/link": f"sha256:{names[0]}".encode()})
    count = len(hiding(registry))
    done = registry.collect("-m").json
    assert len(hiding(registry)) == count - done["quarantine"]["recalled"] == count - 5


def test_a_purge_of_versions_says_that_some_wait_in_a_quarantine(
    server: S3Server, registry: Registry
) -> None:
    registry.quarantine()
    waiting = hidden_now(server, registry) & {*hiding(registry)}
    for options in (("--dry-run",), ()):
        done = registry.collect("-m", "--purge-versions", *options)
        assert f"old versions of {len(waiting)} objects stay" in done.errors
    assert waiting <= hidden_now(server, registry)


# --- runs that purge versions, beside a quarantine that waits ------------------------------------


WHERE = blob_path(sha256(GONE))


def planned(registry: Registry) -> Path:
    """A plan that purges versions."""
    plan = registry.folder / "a.plan"
    state = str(registry.folder / "state")
    made = registry.command("plan", "-m", "--purge-versions", "-o", str(plan), "--state-dir", state)
    assert made.exit_code == 3, made.errors  # something is held
    return plan


def applied(registry: Registry, plan: Path) -> Result:
    """What carrying out *plan* came to."""
    done = registry.command_on(plan, "apply", "--state-dir", str(registry.folder / "state"))
    assert (done.exit_code, done.json["failed"]) == (3, []), done.errors
    return done


def comes_back(registry: Registry, run: str) -> bool:
    """Whether all that *run* has set aside can be restored, and is."""
    done = registry.command("restore", run).json
    return not done["lost"] and not done["failed"] and registry.files()[WHERE] == GONE


def test_what_a_run_has_set_aside_since_a_plan_is_not_purged_by_that(registry: Registry) -> None:
    plan = planned(registry)
    run = registry.quarantine().json["run"]
    done = applied(registry, plan)
    assert done.json["already_gone"] > 20
    assert done.json["versions"]["deleted"] == 0
    assert comes_back(registry, run)


def test_what_was_pushed_again_and_set_aside_since_a_plan_is_not_purged_by_that(
    registry: Registry,
) -> None:
    """The plan has seen it deleted, with old versions."""
    before = registry.files()
    registry.collect("-m")
    plan = planned(registry)
    registry.write({path: data for path, data in before.items() if "/_uploads/" not in path})
    run = registry.quarantine().json["run"]
    assert applied(registry, plan).json["taken_back"] > 20
    assert comes_back(registry, run)


def test_what_waits_is_not_purged_with_what_was_pushed_again_and_is_dead_again(
    registry: Registry,
) -> None:
    run = registry.quarantine().json["run"]
    registry.write({WHERE: GONE})
    done = registry.collect("-m", "--purge-versions")
    assert (done.json["failed"], done.json["blobs"]["deleted"]) == ([], 1)
    assert "wait in a quarantine" in done.errors
    assert comes_back(registry, run)


def test_what_was_pushed_again_since_a_plan_is_no_failure_of_that(
    server: S3Server, registry: Registry
) -> None:
    """So with the lock of whoever applies it."""
    registry.collect("-m")
    plan = planned(registry)
    registry.write({WHERE: GONE})
    applied(registry, plan)
    assert registry.files()[WHERE] == GONE
    hidden = versions(server, registry) - registry.read().keys()
    assert not [path for path in hidden if "/v2/" in path]
    shown = sqlite3.connect(plan).execute("SELECT path FROM deletions").fetchall()
    assert not [path for (path,) in shown if path.endswith("registry-gc/lock")]


def test_what_a_sweep_has_found_gone_has_its_versions_purged_and_what_was_gone_before_has_not(
    tmp_path: Path,
) -> None:
    file = RunFile.create(str(tmp_path / "run"))
    file.add(
        [Row(RowKind.BLOB, None, "d", path, 1, 1.0, "dead") for path in ("one", "two", "three")]
    )
    (rows,) = file.batches(RowKind.BLOB, 10)
    states = [
        (RowState.DELETED, ""),
        (RowState.GONE_ALREADY, ""),
        (RowState.GONE_ALREADY, "gone before the second look"),
    ]
    file.record([(row[0], *state) for row, state in zip(rows, states, strict=True)])
    add_versions_of_deleted(file)
    assert {row.path for row in file.rows(RowKind.VERSIONS)} == {"one", "two"}
    file.close()
