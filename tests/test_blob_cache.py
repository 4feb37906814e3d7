"""What is deleted is removed from the registry's Redis, exactly that, whatever happens."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.exceptions import MovedError, RedisClusterException

from applying.support import call
from core_support import Store, Watcher
from registry_drivers.base import Outcome
from registry_gc.blob_cache import redis_client
from registry_gc.blob_cache.forgetting import RedisCache, with_cache
from registry_gc.blob_cache.journals import Journals
from registry_gc.blob_cache.redis_config import RedisConfig
from registry_gc.blob_cache.sending import Sending, Unreachable
from registry_gc.collect import Job
from registry_gc.collect import collect as collect_job
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupts
from registry_gc.policy import Policy
from registry_gc.report.model import Report
from registry_gc.run_file import RunFile
from registry_gc.runs.rows import Kind, Row, RowState
from registry_tree import sha256
from running import Disk, Result, collect, write_config
from servers.redis import RedisServer, cluster, entries, sentinel
from servers.tls import make_tls

ALLOWED = Verdict("allowed", ())


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis").running() as server:
        yield server


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """An image that lives in ``a``, and in ``b`` a link to its layer and a dead blob."""
    disk = Disk(tmp_path / "disk")
    disk.tree.image("a", "v1", layers=[b"kept"])
    disk.tree.layer("b", b"kept")
    disk.tree.layer("b", b"orphan")
    return disk


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


# --- what goes


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
    assert run_file.count_cached(RowState.DELETED) == (3, 0)
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
        assert str(bad) in check_refused(disk, run(disk, section))


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


# --- when it is lost on the way


class Deletions:
    """A registry in memory with many dead blobs, whose Redis is told what to do at a delete."""

    def __init__(self, folder: Path, redis: RedisServer, at: int, then: Callable[[], Any]) -> None:
        self.folder = folder
        self.redis = redis
        self.store = Store(delete_batch=4)
        self.store.tree.image("a", "v1", layers=[b"kept"])
        self.dead = [self.store.tree.layer("b", b"dead %d" % number) for number in range(100)]
        for digest in self.dead:
            redis.remember("b", digest)
        plain = self.store.storage.delete
        seen = 0

        def delete(paths: Iterable[str]) -> Iterator[Outcome]:
            nonlocal seen
            for outcome in plain(paths):
                seen += outcome.path.endswith("/data")
                if seen == at:
                    seen += 1
                    then()
                yield outcome

        self.store.storage.delete = delete  # type: ignore[method-assign]  # a hook for this test

    def collect(self, name: str, interrupts: Interrupts | None = None) -> Report:
        """One run, with its run file under that name; the state directory is the folder's."""
        host, _, port = self.redis.address.partition(":")
        journals = Journals(str(self.folder))
        cache = RedisCache(RedisConfig(((host, int(port)),)), Watcher(), journals)
        job = Job(
            storage=self.store.storage,
            policy=Policy(),
            check=with_cache(lambda: ALLOWED, cache),
            run_file=str(self.folder / "runs" / name),
            blob_cache=cache,
            workers=1,
        )
        try:
            return collect_job(job, Watcher(), interrupts or Interrupts())
        finally:
            cache.close()


def test_a_redis_that_is_lost_stops_the_sweep_and_the_next_run_removes_what_is_left(
    redis: RedisServer, tmp_path: Path
) -> None:
    some = Deletions(tmp_path, redis, 6, lambda: redis.send("ACL", "SETUSER", "default", "-del"))
    report = some.collect("1.sqlite")
    assert report.exit_code == 5
    assert report.findings[-1].code == "redis-unreachable"
    assert 0 < report.blobs.deleted < 100
    # No entry of a deleted blob is taken for removed that is not.
    there = sum(f"blobs::{digest}" in redis.names() for digest in some.dead)
    assert report.forgotten.left == there - (100 - report.blobs.deleted) > 0
    assert report.error is not None
    assert "may still be in the registry's Redis" in report.error

    redis.send("ACL", "SETUSER", "default", "+del")
    second = some.collect("2.sqlite")
    assert (second.exit_code, second.error) == (0, None)
    assert entries(redis, some.dead) == set()


def test_a_signal_counts_more_than_a_redis_that_is_lost(redis: RedisServer, tmp_path: Path) -> None:
    interrupts = Interrupts()

    def lose_and_ask() -> None:
        lose(redis)
        interrupts.number = signal.SIGTERM

    report = Deletions(tmp_path, redis, 6, lose_and_ask).collect("1.sqlite", interrupts)
    assert report.exit_code == 143
    assert report.forgotten.left > 0


@pytest.mark.parametrize(
    ("lost", "interrupted", "tries"), [(False, False, 5), (True, False, 1), (False, True, 1)]
)
def test_nothing_is_tried_again_where_redis_was_lost_or_a_signal_came(
    monkeypatch: pytest.MonkeyPatch, lost: bool, interrupted: bool, tries: int
) -> None:
    asked: list[float] = []

    def connect(config: RedisConfig, timeout: float) -> None:
        asked.append(timeout)
        raise ConnectionError

    monkeypatch.setattr("registry_gc.blob_cache.redis_client.connect", connect)
    monkeypatch.setattr("registry_gc.blob_cache.sending._PAUSES", (0.0,) * 4)
    sending = Sending(RedisConfig((("a", 1),)))
    sending.lost, sending.interrupted = lost, lambda: interrupted
    with pytest.raises(Unreachable):
        sending.send([("DEL", "x")])
    assert len(asked) == tries
    assert (asked[0] < 5) is lost


def test_a_redis_that_is_lost_for_the_last_removals_is_exit_code_1(
    redis: RedisServer, tmp_path: Path
) -> None:
    some = Deletions(tmp_path, redis, 100, lambda: redis.send("ACL", "SETUSER", "default", "-del"))
    report = some.collect("1.sqlite")
    assert report.blobs.deleted == 100
    assert report.exit_code == 1
    assert report.forgotten.left > 0


def test_a_redis_that_comes_back_is_caught_up_with(redis: RedisServer, tmp_path: Path) -> None:
    def blink() -> None:
        with redis.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    some = Deletions(tmp_path, redis, 6, blink)
    report = some.collect("1.sqlite")
    assert (report.exit_code, report.error) == (0, None)
    assert entries(redis, some.dead) == set()


def test_what_a_killed_run_had_deleted_the_next_run_removes(
    redis: RedisServer, tmp_path: Path
) -> None:
    """Also what it had not even written down as deleted; of another storage's run, nothing."""
    some = Deletions(tmp_path, redis, -1, lambda: None)
    (tmp_path / "runs").mkdir()
    gone, unwritten, elsewhere = (sha256(name) for name in (b"gone", b"unwritten", b"elsewhere"))
    for digest in (gone, unwritten, elsewhere):
        redis.remember("c", digest)
    for name, root, digests in (
        ("1.sqlite", some.store.storage.root, (gone, unwritten)),
        ("2.sqlite", "/another/root", (elsewhere,)),
    ):
        run_file = RunFile.create(str(tmp_path / "runs" / name))
        run_file.record_meta(driver=some.store.storage.driver, root=root, blob_cache="redis")
        run_file.add(Row(Kind.BLOB, None, digest, f"x/{digest}", 1, None, "") for digest in digests)
        run_file.add(
            Row(Kind.LAYER_LINK, "c", digest, f"c/{digest}", 1, None, "") for digest in digests
        )
        run_file.record([(1, RowState.DELETED, "")])
        run_file.close()
    (tmp_path / "runs" / "3.sqlite").write_bytes(b"no database")

    report = some.collect("4.sqlite")
    assert report.exit_code == 0
    assert entries(redis, [gone, unwritten]) == set()
    assert f"blobs::{elsewhere}" in redis.names()
    again = RunFile.existing(str(tmp_path / "runs" / "1.sqlite"))
    assert again.meta()["blob_cache"] == "forgotten"
    again.close()


# --- a run file that lies elsewhere


def lose(redis: RedisServer) -> None:
    redis.send("ACL", "SETUSER", "default", "-del", "-srem")


def restore(redis: RedisServer) -> None:
    redis.send("ACL", "SETUSER", "default", "+del", "+srem")


@pytest.fixture
def unfinished(
    disk: Disk, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The run file, elsewhere, of a run that deleted everything and then lost Redis."""
    remember_all(redis)
    plain = RedisCache.settled

    def settled(cache: RedisCache, *told: Any) -> None:
        lose(redis)
        plain(cache, *told)

    with monkeypatch.context() as inside:
        inside.setattr(RedisCache, "settled", settled)
        inside.setattr("registry_gc.permission.Permission.look", lambda session: None)
        path = tmp_path / "elsewhere"
        result = run(disk, {"addr": redis.address}, "--run-file", str(path))
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (1, 3), result.errors
    assert f"registry-gc apply {path}" in result.json["error"]
    assert not disk.has_blob(ORPHAN)
    restore(redis)
    return path


def notes(disk: Disk) -> list[Path]:
    return [*disk.root.with_name("registry.state").glob("unforgotten/*")]


def check_caught_up(disk: Disk, redis: RedisServer, run_file: Path) -> None:
    assert entries(redis, [KEPT, ORPHAN]) | {"repository::a::blobs"} == STAY
    file = RunFile.existing(str(run_file))
    assert file.meta()["blob_cache"] == "forgotten"
    file.close()
    assert notes(disk) == []


def test_the_next_run_finds_a_run_file_that_lies_elsewhere(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    (note,) = notes(disk)
    assert json.loads(note.read_text())["run_file"] == str(unfinished)
    result = run(disk, {"addr": redis.address})
    assert result.exit_code == 0, result.errors
    check_caught_up(disk, redis, unfinished)


def test_the_same_command_removes_what_its_finished_run_has_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    command = ("--run-file", str(unfinished))
    result = run(disk, {"addr": redis.address}, *command)
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (0, 0), result.errors
    check_caught_up(disk, redis, unfinished)
    assert "exists already" in run(disk, {"addr": redis.address}, *command).errors


def test_a_run_that_a_limit_refuses_removes_what_is_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    disk.tree.layer("b", b"more")
    result = run(disk, {"addr": redis.address}, "--max-delete", "0")
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (4, 0), result.errors
    check_caught_up(disk, redis, unfinished)


def test_a_dry_run_counts_what_is_left(disk: Disk, redis: RedisServer, unfinished: Path) -> None:
    result = run(disk, {"addr": redis.address}, "--dry-run")
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (0, 3), result.errors
    assert f"registry-gc apply {unfinished}" in result.errors


def test_the_storage_may_be_named_by_another_path(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    link = disk.root.with_name("link")
    link.symlink_to(disk.root)
    config = config_with(disk, {"addr": redis.address})
    config.write_text(config.read_text().replace(str(disk.root), str(link)))
    result = collect(disk.root, config=config)
    assert result.exit_code == 0, result.errors
    check_caught_up(disk, redis, unfinished)


def test_as_long_as_redis_is_gone_nobody_forgets_what_is_left(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    lose(redis)
    result = run(disk, {"addr": redis.address})
    assert (result.exit_code, result.json["blob_cache"]["left"]) == (4, 3)
    assert len(notes(disk)) == 1
    restore(redis)
    run(disk, {"addr": redis.address})
    check_caught_up(disk, redis, unfinished)


def test_a_run_file_that_is_gone_is_told_with_the_note_about_it(
    disk: Disk, redis: RedisServer, unfinished: Path
) -> None:
    unfinished.unlink()
    (note,) = notes(disk)
    for _ in range(2):
        result = run(disk, {"addr": redis.address})
        assert f"then remove {note}" in result.errors
    note.unlink()
    assert "unforgotten" not in run(disk, {"addr": redis.address}).errors


def test_a_note_that_cannot_be_read_is_told(disk: Disk, redis: RedisServer) -> None:
    note = disk.root.with_name("registry.state") / "unforgotten" / "x.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(b'{"run_fi')
    result = run(disk, {"addr": redis.address})
    assert result.exit_code == 0
    assert f"whether its entries are in Redis is not known: {note}" in result.errors


def test_without_room_for_notes_they_are_where_the_next_run_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unforgotten").touch()
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for module in ("runs.state_dir", "blob_cache.journals"):
        monkeypatch.setattr(f"registry_gc.{module}.IN_MEMORY", (str(memory),))
    told: list[str] = []
    Journals(str(tmp_path), told.append).begun("/x/run", "filesystem", "/srv")
    assert told == ["/x/run"]
    later = Journals(str(tmp_path / "another"))
    assert later.paths("filesystem", "/srv") == ["/x/run"]
    assert later.paths("filesystem", "/another") == []
    later.done("/x/run")
    assert later.paths("filesystem", "/srv") == []


def test_where_nobody_would_find_the_run_file_nothing_is_deleted(
    disk: Disk, redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = disk.root.with_name("registry.state")
    state.mkdir()
    (state / "unforgotten").touch()
    monkeypatch.setattr("registry_gc.blob_cache.journals.IN_MEMORY", (str(tmp_path / "missing"),))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    result = run(disk, {"addr": redis.address}, "--run-file", str(tmp_path / "elsewhere"))
    assert result.exit_code == 1
    assert "no note about" in result.json["error"]
    assert disk.has_blob(ORPHAN)


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
