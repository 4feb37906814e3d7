"""Plan and apply on object stores: versions, uploads in parts, and a push in between."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from applying.support import DAY, codes
from model import File, expect
from registry_drivers.object_store import ObjectStorage
from registry_tree import RegistryTree, blob_path, layer_link_path, repository_path, sha256
from running import Result
from servers.moto import S3Server
from stores import LATER, Place, Servers, keys_of, own_keys, store
from test_against_model import rich_registry


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    rich_registry(RegistryTree(found.__setitem__))
    return found


def call(place: Place, folder: Path, *arguments: str | Path, ahead: float = LATER) -> Result:
    """Run ``registry-gc`` when all that was stored before has become old."""
    from registry_gc.cli.main import registry_gc

    state = folder / "state"
    words = [*map(str, arguments), "--state-dir", str(state), "--output", "json"]
    now = ObjectStorage.now
    with pytest.MonkeyPatch.context() as patch:
        place.prepare(patch)
        patch.setattr(ObjectStorage, "now", lambda storage: now(storage) + ahead)
        answer = CliRunner().invoke(registry_gc, words)
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    document: dict[str, Any] = json.loads(answer.stdout) if answer.stdout else {}
    return Result(answer.exit_code, document, answer.stdout, answer.stderr)


def s3_client(place: Place) -> Any:
    """The official client, for what is done beside the driver."""
    return S3Server(urlsplit(str(place.parameters["regionendpoint"])).port or 0).client


def test_a_plan_is_for_the_place_where_the_registry_was_found(
    servers: Servers, files: dict[str, bytes], tmp_path: Path
) -> None:
    # Below a leading slash, of which the config says nothing.
    place, plan = servers.place("azure slash"), tmp_path / "plan"
    store(place, files)
    parameters = {**place.parameters}
    del parameters["legacyrootprefix"]
    silent = replace(place, parameters=parameters)
    made = call(silent, tmp_path, "plan", "-m", "-o", plan, silent.config(tmp_path))
    assert made.exit_code == 0, made.errors
    done = call(silent, tmp_path, "apply", plan)
    assert done.exit_code == 0, done.errors
    assert done.json["blobs"]["deleted"] > 0


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_plan_that_is_applied_deletes_what_a_collection_deletes(
    servers: Servers, files: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    place, plan = servers.place(kind), tmp_path / "plan"
    store(place, files)
    aged = {path: File(data, 30 * DAY) for path, data in files.items()}
    expected = expect(aged, delete_untagged=True, now=time.time() + LATER)
    made = call(place, tmp_path, "plan", "-m", "-o", plan, place.config(tmp_path))
    assert made.exit_code == 0, made.errors
    assert keys_of(place) == set(files)
    done = call(place, tmp_path, "apply", plan)
    assert done.exit_code == 0, done.errors
    assert (done.json["taken_back"], done.json["already_gone"]) == (0, 0)
    left = keys_of(place)
    assert set(files) - left == expected.dead
    assert not own_keys(left)
    # Manifests were remembered: what is read is the lock, tags, aliases and starts of uploads.
    assert done.json["requests"]["read"] < made.json["requests"]["read"]
    assert not any(secret.encode() in plan.read_bytes() for secret in place.secrets)


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_a_push_between_plan_and_apply_keeps_what_it_reuses(
    servers: Servers, files: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    place, plan = servers.place(kind), tmp_path / "plan"
    store(place, files)
    reused = [sha256(b"one"), sha256(b"1")]
    goes, gone = sha256(b"orphan"), sha256(b"signature")
    call(place, tmp_path, "plan", "-m", "-o", plan, place.config(tmp_path))
    # By the clock that the collector sees, these links are older than the plan's cut-off.
    store(place, {layer_link_path("new", digest): digest.encode() for digest in reused})
    with place.opened() as storage:
        list(storage.delete([blob_path(gone)]))
    done = call(place, tmp_path, "apply", plan)
    assert done.exit_code == 0, done.errors
    left = keys_of(place)
    assert {blob_path(digest) for digest in reused} <= left
    assert blob_path(goes) not in left
    assert done.json["already_gone"] == 1
    # Two blobs, and the links that the dead image's own repository has to them.
    assert done.json["taken_back"] == 4


def test_a_plan_for_one_bucket_is_refused_for_another(
    servers: Servers, files: dict[str, bytes], tmp_path: Path
) -> None:
    one, other, plan = servers.place("s3"), servers.place("s3"), tmp_path / "plan"
    for place in (one, other):
        store(place, files)
    assert call(one, tmp_path, "plan", "-m", "-o", plan, one.config(tmp_path)).exit_code == 0
    (tmp_path / "other").mkdir()
    config = other.config(tmp_path / "other")
    done = call(other, tmp_path, "apply", plan, "--config", config)
    assert done.exit_code == 4
    assert "plan-elsewhere" in codes(done)
    assert keys_of(other) == set(files)


def test_old_versions_of_what_is_live_again_stay(
    servers: Servers, files: dict[str, bytes], tmp_path: Path
) -> None:
    """They are what an operator could bring a lost blob back from."""
    place, plan = servers.place("s3"), tmp_path / "plan"
    client, bucket = s3_client(place), str(place.parameters["bucket"])
    enabled = {"Status": "Enabled"}
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=enabled)
    store(place, files)
    lost, needed = sha256(b"once here, and needless"), sha256(b"once here, and needed again")
    with place.opened() as storage:
        for digest, data in ((lost, b"once here, and needless"), (needed, b"once here, and n")):
            storage.write(blob_path(digest), data)
            list(storage.delete([blob_path(digest)]))
    options = ("plan", "-m", "--purge-versions", "-o", plan, place.config(tmp_path))
    assert call(place, tmp_path, *options).exit_code == 0
    # A link to it: it is not there, but from now on somebody counts on it.
    store(place, {layer_link_path("new", needed): needed.encode()})
    done = call(place, tmp_path, "apply", plan)
    assert done.exit_code == 0, done.errors
    kept = {
        version["Key"]
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket)
        for version in page.get("Versions", ())
    }
    assert blob_path(needed) in kept
    assert blob_path(lost) not in kept
    assert not {key for key in kept if key.startswith(repository_path("d"))}
