"""A run that has a cache in Redis, and what must be left of it there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from registry_tree import sha256
from running import Disk, Result, collect, write_config
from servers.redis import RedisServer, entries

KEPT, ORPHAN = sha256(b"kept"), sha256(b"orphan")


def remember_all(redis: RedisServer, db: int = 0) -> None:
    redis.remember("a", KEPT, db=db)
    redis.remember("b", KEPT, db=db)
    redis.remember("b", ORPHAN, db=db)


STAY = {
    f"blobs::{KEPT}",
    "repository::a::blobs",
    f"repository::a::blobs {KEPT}",
    f"repository::a::blobs::{KEPT}",
}


def config_with(disk: Disk, section: Mapping[str, Any] | None) -> Path:
    """A config with a cache in Redis, and that section ``redis``."""
    config = write_config(disk.root, extra={"cache": {"blobdescriptor": "redis"}})
    if section is not None:
        document = {**yaml.safe_load(config.read_text()), "redis": dict(section)}
        config.write_text(yaml.safe_dump(document))
    return config


def run(disk: Disk, section: Mapping[str, Any] | None, *options: str) -> Result:
    disk.age()
    return collect(disk.root, *options, config=config_with(disk, section))


def codes(result: Result) -> list[str]:
    return [finding["code"] for finding in result.json["guard"]["findings"]]


def check_refused(disk: Disk, result: Result) -> str:
    """The run was refused because of Redis, and deleted nothing; the message."""
    assert result.exit_code == 4, result.errors
    (finding,) = [f for f in result.json["guard"]["findings"] if f["code"] == "redis-unreachable"]
    assert disk.has_blob(ORPHAN)
    assert disk.has_link("b", ORPHAN)
    return str(finding["message"])


def check_forgotten(redis: RedisServer, result: Result) -> None:
    """Exactly the entries of what was deleted are gone."""
    assert result.exit_code == 0, result.errors
    assert entries(redis, [KEPT, ORPHAN]) | {"repository::a::blobs"} == STAY
    cache = result.json["blob_cache"]
    # Two links and a blob.
    assert (cache["kind"], cache["removed"], cache["left"]) == ("redis", 3, 0)


def lose(redis: RedisServer) -> None:
    redis.send("ACL", "SETUSER", "default", "-del", "-srem")


def restore(redis: RedisServer) -> None:
    redis.send("ACL", "SETUSER", "default", "+del", "+srem")
