"""A quarantine in a bucket that keeps versions: delete markers, and what must not purge them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aside import DAY, Registry
from registry_tree import blob_path, sha256
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
