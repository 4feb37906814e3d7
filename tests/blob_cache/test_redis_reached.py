"""How Redis is reached, with the config's own words, and runs that are refused where it is not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import MovedError, RedisClusterException

from applying.support import call
from blob_cache.support import (
    KEPT,
    ORPHAN,
    check_forgotten,
    check_refused,
    codes,
    config_with,
    remember_all,
    run,
)
from registry_gc.blob_cache import redis_client
from running import Disk
from servers.redis import RedisServer, cluster, sentinel
from servers.tls import make_tls

# --- how Redis is reached


def test_password_and_database_are_those_of_the_config(disk: Disk, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "--requirepass", "s3cret").running() as redis:
        remember_all(redis)
        remember_all(redis, db=3)
        result = run(disk, {"addr": redis.address, "password": "s3cret", "db": 3})
        assert result.exit_code == 0, result.errors
        with redis.client() as client:
            assert client.exists(f"blobs::{ORPHAN}")
            client.select(3)
            assert not client.exists(f"blobs::{ORPHAN}")
            assert client.exists(f"blobs::{KEPT}")


def test_a_user_who_may_only_touch_the_registrys_keys_is_enough(
    disk: Disk, redis: RedisServer
) -> None:
    remember_all(redis)
    rights = ["~blobs::*", "~repository::*", "+del", "+srem"]
    redis.send("ACL", "SETUSER", "registry", "on", ">s3cret", *rights)
    login = {"username": "registry", "password": "s3cret"}
    check_forgotten(redis, run(disk, {"addrs": [redis.address], **login}))


def test_tls_with_an_authority_of_ones_own(disk: Disk, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    with RedisServer(tmp_path / "redis", tls=tls).running() as redis:
        remember_all(redis)
        files = {"certificate": str(tls.server), "key": str(tls.server)}
        section = {"addrs": [redis.address], "tls": {"rootcas": [str(tls.authority)], **files}}
        check_forgotten(redis, run(disk, section))


def test_comments_around_an_authority_may_be_in_any_language(disk: Disk, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    bundle = tmp_path / "bundle.pem"
    comment = "# Főtanúsítvány\n".encode()
    bundle.write_bytes(comment + tls.authority.read_bytes() + b"\xff\n")
    server = RedisServer(tmp_path / "redis", "--tls-auth-clients", "no", tls=tls)
    with server.running() as redis:
        remember_all(redis)
        section = {"addrs": [redis.address], "tls": {"rootcas": [str(bundle)]}}
        check_forgotten(redis, run(disk, section))


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("rootcas", "é, and no certificate"),
        ("rootcas", "-----BEGIN CERTIFICATE-----\né\n-----END CERTIFICATE-----\n"),
        ("rootcas", None),
        ("certificate", None),
        ("key", None),
    ],
    ids=["no certificate", "broken", "no authority", "no client certificate", "no key"],
)
def test_a_file_for_tls_that_is_no_use_refuses_the_run_and_is_named(
    disk: Disk, tmp_path: Path, key: str, content: str | None
) -> None:
    tls = make_tls(tmp_path)
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_text(content, encoding="utf-8")
    files = {"certificate": str(tls.server), "key": str(tls.server)}
    files |= {key: str(bad)} if key != "rootcas" else {}
    with RedisServer(tmp_path / "redis", tls=tls).running() as redis:
        authority = bad if key == "rootcas" else tls.authority
        section = {"addrs": [redis.address], "tls": {"rootcas": [str(authority)], **files}}
        said = check_refused(disk, run(disk, section))
    assert str(bad) in said
    assert content is not None or f"redis.tls.{key}" in said


def test_a_host_that_is_no_name_refuses_the_run(disk: Disk) -> None:
    check_refused(disk, run(disk, {"addr": f"{'x' * 64}.example:6379"}))


def test_gitlabs_switch_for_tls_without_verification(disk: Disk, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    server = RedisServer(tmp_path / "redis", "--tls-auth-clients", "no", tls=tls)
    with server.running() as redis:
        remember_all(redis)
        section = {"addr": redis.address, "tls": {"enabled": True}}
        assert "certificate" in check_refused(disk, run(disk, section))
        section = {"addr": redis.address, "tls": {"enabled": True, "insecure": True}}
        check_forgotten(redis, run(disk, section))


def test_what_fails_with_tls_is_said_in_the_configs_words(disk: Disk, tmp_path: Path) -> None:
    tls = make_tls(tmp_path)
    (tmp_path / "other").mkdir()
    other = make_tls(tmp_path / "other")

    def message(redis: RedisServer, section: Mapping[str, Any]) -> str:
        result = run(disk, {"addrs": [redis.address], **section})
        return check_refused(disk, result).partition("cannot be cleaned of what is deleted: ")[2]

    with RedisServer(tmp_path / "redis", tls=tls).running() as redis:
        assert "where it wants TLS, redis.tls" in message(redis, {})
        # With TLS 1.3 that is found out only when the first command was sent.
        said = message(redis, {"tls": {"rootcas": [str(tls.authority)]}})
        assert "client certificate" in said
        assert "redis.tls.certificate and redis.tls.key" in said
        said = message(redis, {"tls": {"rootcas": [str(other.authority)]}})
        assert said.startswith("its TLS certificate cannot be verified: redis.tls.rootcas")
        pair = {"certificate": str(tls.server), "key": str(other.server)}
        said = message(redis, {"tls": {"rootcas": [str(tls.authority)], **pair}})
        assert said.startswith("redis.tls.key is not the key")


def test_one_address_of_a_cluster_is_told_as_such(
    disk: Disk, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(*words: object) -> None:
        raise MovedError("7361 127.0.0.1:7001")

    monkeypatch.setattr("registry_gc.blob_cache.redis_client.connect", moved)
    said = check_refused(disk, run(disk, {"addrs": [redis.address]}))
    assert "one node of a cluster: name all of its nodes in redis.addrs" in said


def test_a_cluster_that_is_away_for_a_moment_is_asked_again(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = redis_client.connect, 0

    def connect(*words: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 1:
            raise RedisClusterException("Redis Cluster cannot be connected")
        return plain(*words)

    monkeypatch.setattr(redis_client, "connect", connect)
    with cluster(tmp_path / "redis") as redis:
        remember_all(redis)
        nodes = [redis.address, f"localhost:{redis.port}"]
        check_forgotten(redis, run(disk, {"addrs": nodes}))


def test_a_unix_socket(disk: Disk, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    with RedisServer(tmp_path / "redis", "--unixsocket", str(socket)).running() as redis:
        remember_all(redis)
        check_forgotten(redis, run(disk, {"addrs": [str(socket)]}))


@pytest.mark.parametrize("key", ["mastername", "mainname"])
def test_the_master_that_sentinels_name(disk: Disk, tmp_path: Path, key: str) -> None:
    with RedisServer(tmp_path / "redis", "--requirepass", "s3cret").running() as redis:
        lines = ["requirepass guarded", "sentinel auth-pass registry s3cret"]
        with sentinel(tmp_path / "sentinel", redis, "registry", *lines) as address:
            remember_all(redis)
            section = {key: "registry", "password": "s3cret", "sentinelpassword": "guarded"}
            addresses = {"addr": address} if key == "mainname" else {"addrs": [address]}
            check_forgotten(redis, run(disk, {**section, **addresses}))
            result = run(disk, {**section, **addresses, "sentinelpassword": "wrong"}, "--dry-run")
            assert codes(result)[:1] == ["redis-unreachable"] or "redis-unreachable" in codes(
                result
            )


@pytest.mark.parametrize("form", ["addr", "addrs"])
def test_a_cluster(disk: Disk, tmp_path: Path, form: str) -> None:
    with cluster(tmp_path / "redis") as redis:
        remember_all(redis)
        nodes = [redis.address, f"localhost:{redis.port}"]
        section = {"addrs": nodes} if form == "addrs" else {"addr": ",".join(nodes)}
        check_forgotten(redis, run(disk, section))


# --- where it is not


def test_a_redis_that_does_not_answer_refuses_the_run(disk: Disk, tmp_path: Path) -> None:
    nobody = RedisServer(tmp_path / "redis")
    message = check_refused(disk, run(disk, {"addr": nobody.address}))
    assert nobody.address in message


def test_a_dry_run_says_that_a_run_would_be_refused(disk: Disk, tmp_path: Path) -> None:
    nobody = RedisServer(tmp_path / "redis")
    result = run(disk, {"addr": nobody.address}, "--dry-run")
    assert (result.exit_code, result.json["guard"]["verdict"]) == (0, "refused")
    assert "redis-unreachable" in codes(result)
    assert result.json["blobs"]["eligible"] == 1


@pytest.mark.parametrize("stopped", [True, False])
def test_a_plan_does_not_take_a_redis_that_is_gone_for_a_registry_in_use(
    disk: Disk, tmp_path: Path, stopped: bool
) -> None:
    disk.age(3600)
    config = config_with(disk, {"addr": RedisServer(tmp_path / "redis").address})
    config.write_text(config.read_text().replace("enabled: true", "enabled: false"))
    options = ["--registry-stopped"] * stopped
    made = call(disk.root, "plan", config, "-o", tmp_path / "plan", *options)
    assert "redis-unreachable" in codes(made)
    assert ("the registry may be in use" in made.errors) is not stopped
    assert made.json["blobs"]["eligible"] == int(stopped)


def test_a_cache_without_an_address_refuses_the_run(disk: Disk) -> None:
    assert "says where it is" in check_refused(disk, run(disk, None))


def test_a_wrong_password_refuses_the_run_and_is_not_shown(disk: Disk, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "--requirepass", "right").running() as redis:
        result = run(disk, {"addr": redis.address, "password": "s3cret"})
        check_refused(disk, result)
        assert "s3cret" not in result.errors + result.text


def test_a_user_who_may_not_delete_refuses_the_run(disk: Disk, redis: RedisServer) -> None:
    redis.send("ACL", "SETUSER", "reader", "on", ">x", "~*", "+@read", "+@connection")
    section = {"addrs": [redis.address], "username": "reader", "password": "x"}
    assert "del" in check_refused(disk, run(disk, section)).lower()


def test_a_replica_refuses_the_run(disk: Disk, redis: RedisServer, tmp_path: Path) -> None:
    options = ("--replicaof", f"127.0.0.1 {redis.port}")
    with RedisServer(tmp_path / "replica", *options).running() as replica:
        check_refused(disk, run(disk, {"addr": replica.address}))


def test_a_node_of_a_cluster_that_does_not_answer_refuses_the_run(
    disk: Disk, tmp_path: Path
) -> None:
    nobody = RedisServer(tmp_path / "redis").address
    check_refused(disk, run(disk, {"addrs": [nobody, nobody.replace("127.0.0.1", "localhost")]}))


def test_without_the_client_library_the_run_is_refused_and_its_extra_named(
    disk: Disk, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "registry_gc.blob_cache.redis_client", None)
    message = check_refused(disk, run(disk, {"addr": redis.address}))
    assert "pip install 'registry-garbage-collect[redis]'" in message
