"""A Redis that is lost on the way: the sweep stops, and the next run removes what is left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blob_cache.support import lose, restore
from core_support import Store, Watcher
from registry_drivers.base import Deletion, Outcome
from registry_drivers.errors import Unavailable
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
from registry_gc.runs.rows import Row, RowKind, RowState
from registry_tree import blob_path, sha256
from servers.redis import RedisServer, entries

ALLOWED = Verdict("allowed", ())


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
        run_file.add(
            Row(RowKind.BLOB, None, digest, f"x/{digest}", 1, None, "") for digest in digests
        )
        run_file.add(
            Row(RowKind.LAYER_LINK, "c", digest, f"c/{digest}", 1, None, "") for digest in digests
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


class Unsaid:
    """Deletes the first dead blobs, and has no answer; Redis may be lost at the same time."""

    def __init__(self, folder: Path, redis: RedisServer, *, lost: bool) -> None:
        self.run = Deletions(folder, redis, 2, lambda: self._unsaid(redis, lost=lost))

    def _unsaid(self, redis: RedisServer, *, lost: bool) -> None:
        if lost:
            lose(redis)
        raise Unavailable("done, but the answer is lost")

    def gone(self) -> list[str]:
        """What is dead and not in the storage."""
        there = {path for page in self.run.store.storage.list("") for path in page.paths}
        return [digest for digest in self.run.dead if blob_path(digest) not in there]


def states_of(report: Report) -> tuple[int, str]:
    """How many blobs are still planned, and what the run file says of Redis."""
    assert report.run_file is not None
    run_file = RunFile.existing(report.run_file)
    try:
        planned = run_file.count(RowKind.BLOB, RowState.PLANNED).rows
        return planned, run_file.meta()["blob_cache"]
    finally:
        run_file.close()


def test_what_was_deleted_without_an_answer_is_forgotten_too(
    redis: RedisServer, tmp_path: Path
) -> None:
    unsaid = Unsaid(tmp_path, redis, lost=False)
    report = unsaid.run.collect("1.sqlite")
    assert (report.exit_code, report.forgotten.left) == (1, 0)
    gone = unsaid.gone()
    assert len(gone) > report.blobs.deleted
    assert states_of(report) == (100 - report.blobs.deleted, "forgotten")
    assert not {f"blobs::{digest}" for digest in gone} & redis.names()


def test_what_was_deleted_without_an_answer_while_redis_is_lost_is_left_to_the_next_run(
    redis: RedisServer, tmp_path: Path
) -> None:
    unsaid = Unsaid(tmp_path, redis, lost=True)
    report = unsaid.run.collect("1.sqlite")
    planned, cache = states_of(report)
    assert cache == "redis"
    assert report.forgotten.left >= planned > 0
    gone = unsaid.gone()
    assert {f"blobs::{digest}" for digest in gone} <= redis.names()

    restore(redis)
    assert unsaid.run.collect("2.sqlite").exit_code == 0
    assert entries(redis, gone) == set()


def test_what_was_deleted_and_is_said_to_have_failed_is_forgotten_too(
    redis: RedisServer, tmp_path: Path
) -> None:
    some = Deletions(tmp_path, redis, -1, lambda: None)
    plain = some.store.storage.delete

    def delete(paths: Iterable[str]) -> Iterator[Outcome]:
        for outcome in plain(paths):
            yield Outcome(outcome.path, Deletion.FAILED, "a lie for a test")

    some.store.storage.delete = delete  # type: ignore[method-assign]  # a hook for this test
    report = some.collect("1.sqlite")
    assert (report.exit_code, report.forgotten.left) == (3, 0)
    assert report.blobs.deleted == 0
    assert {name for name in redis.names() if "::b::" in name} == set()


def test_of_a_run_that_was_only_stopped_what_was_never_sent_is_left_alone(
    redis: RedisServer, tmp_path: Path
) -> None:
    interrupts = Interrupts()

    def ask() -> None:
        interrupts.number = signal.SIGTERM

    report = Deletions(tmp_path, redis, 6, ask).collect("1.sqlite", interrupts)
    planned, cache = states_of(report)
    assert (report.exit_code, cache) == (143, "forgotten")
    assert sum(name.startswith("blobs::") for name in redis.names()) == planned > 0
