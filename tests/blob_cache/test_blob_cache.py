"""What is deleted is removed from the registry's Redis, exactly that, and told."""

from __future__ import annotations

import json

from blob_cache.support import ORPHAN, check_forgotten, config_with, remember_all, run
from registry_gc.run_file import RunFile
from registry_gc.runs.cached_rows import CachedRows
from registry_gc.runs.rows import RowState
from running import Disk, collect
from servers.redis import RedisServer, entries


def test_the_entries_of_deleted_blobs_and_links_go_and_no_others(
    disk: Disk, redis: RedisServer
) -> None:
    remember_all(redis)
    redis.send("SET", "blobs::somebody-elses", "1")
    check_forgotten(redis, run(disk, {"addr": redis.address}))
    assert "blobs::somebody-elses" in redis.names()


def test_the_run_file_says_when_each_entry_was_removed(disk: Disk, redis: RedisServer) -> None:
    remember_all(redis)
    result = run(disk, {"addrs": [redis.address]})
    run_file = RunFile.existing(result.json["run_file"])
    assert CachedRows(run_file).count(RowState.DELETED) == (3, 0)
    assert run_file.meta()["blob_cache"] == "forgotten"
    run_file.close()


def test_other_names_of_a_deleted_blob_go_too(disk: Disk, redis: RedisServer) -> None:
    alias = "sha512:" + "ab" * 64
    hexadecimal = alias.removeprefix("sha512:")
    path = f"docker/registry/v2/repositories/b/_layers/sha512/{hexadecimal}/link"
    disk.write(path, ORPHAN.encode())
    redis.remember("b", alias, ORPHAN)
    result = run(disk, {"addr": redis.address})
    assert result.exit_code == 0, result.errors
    assert redis.names() == set()


def test_a_manifest_that_is_untagged_goes_with_its_link(disk: Disk, redis: RedisServer) -> None:
    digest = disk.tree.image("b", None, layers=[b"kept", b"more"])
    redis.remember("b", digest)
    result = run(disk, {"addr": redis.address}, "-m")
    assert result.exit_code == 0, result.errors
    assert entries(redis, [digest]) == set()


def test_a_dry_run_removes_nothing(disk: Disk, redis: RedisServer) -> None:
    remember_all(redis)
    before = redis.names()
    result = run(disk, {"addr": redis.address}, "--dry-run")
    assert (result.exit_code, result.json["guard"]["verdict"]) == (0, "allowed")
    assert redis.names() == before


def test_without_redis_as_the_cache_the_section_is_not_looked_at(
    disk: Disk, redis: RedisServer
) -> None:
    remember_all(redis)
    before = redis.names()
    config = config_with(disk, {"addr": redis.address})
    config.write_text(config.read_text().replace("blobdescriptor: redis", "blobdescriptor: off"))
    disk.age()
    result = collect(disk.root, config=config)
    assert result.exit_code == 0, result.errors
    assert result.json["blob_cache"]["kind"] is None
    assert redis.names() == before


def test_the_report_is_one_json_document_with_the_cache_in_it(
    disk: Disk, redis: RedisServer
) -> None:
    result = run(disk, {"addr": redis.address})
    assert json.loads(result.text)["blob_cache"] == {
        "kind": "redis",
        "removed": 3,
        "left": 0,
        "restart_needed": False,
    }
