"""A collection on a real Dask cluster of two worker processes, one of which is killed."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_support import Watcher
from generated import GeneratedStorage
from generated_shape import Shape
from registry_drivers.errors import NotFound
from registry_gc.cli.flags import SchedulerType
from registry_gc.collect import Job, collect
from registry_gc.engine import SerialEngine
from registry_gc.engines.dask_cluster import DaskEngine, _told, check_transport
from registry_gc.engines.dask_worker import ClusterError, Doubt, look
from registry_gc.guard import Verdict
from registry_gc.interrupts import Interrupted, Interrupts
from registry_gc.listing.reading import read_catalog
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.report.model import Report
from running import run, write_config
from servers.dask import (
    SOURCES,
    Cluster,
    cluster,
    echo,
    everything_kept,
    miss,
    open_as_told,
    open_with,
)
from servers.process import free_port

SHAPE = Shape(repositories=60, blobs=6000, teams=10)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import distributed

    with cluster(tmp_path_factory.mktemp("dask"), 2) as found:
        with distributed.Client(found.address) as client:
            client.wait_for_workers(2, timeout=60)
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("generated"))


def opening(folder: str, latency: float = 0.0) -> functools.partial[GeneratedStorage]:
    return functools.partial(GeneratedStorage, SHAPE, latency=latency, folder=folder)


def collected(
    folder: str, run_file: Path, address: str | None, cache: Path | None = None
) -> Report:
    storage = opening(folder)()
    job = Job(
        storage=storage,
        policy=Policy(delete_untagged=True),
        check=lambda: Verdict("allowed", ()),
        run_file=str(run_file),
        dry_run=True,
        cache=None if cache is None else str(cache),
        workers=1,
        engine=None if address is None else lambda r: DaskEngine(r, address, opening(folder)),
    )
    return collect(job, Watcher(), Interrupts())


def rows(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return sorted(row[0] for row in connection.execute("SELECT path FROM deletions"))


def test_a_cluster_comes_to_the_plan_that_one_process_comes_to(
    dask: Cluster, folder: str, tmp_path: Path
) -> None:
    alone = collected(folder, tmp_path / "alone", None)
    shared = collected(folder, tmp_path / "shared", dask.address)
    assert shared.error is None
    assert rows(tmp_path / "shared") == rows(tmp_path / "alone") != []
    assert shared.marked == alone.marked
    assert shared.requests["read"] == alone.requests["read"]


def test_a_cluster_makes_use_of_the_cache_that_is_here(
    dask: Cluster, folder: str, tmp_path: Path
) -> None:
    collected(folder, tmp_path / "alone", None, tmp_path / "cache")
    shared = collected(folder, tmp_path / "shared", dask.address, tmp_path / "cache")
    assert shared.error is None
    assert rows(tmp_path / "shared") == rows(tmp_path / "alone")
    assert shared.requests["read"] == 1  # the lock


def test_a_worker_that_is_killed_while_dead_blobs_are_looked_for_changes_nothing(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_gc.listing.ranges.BLOBS_A_RANGE", 100)
    collected(folder, tmp_path / "alone", None)
    slow = opening(folder, latency=0.01)
    with cluster(tmp_path, 2) as own:

        class Killing(Watcher):
            def advance(self, count: int) -> None:
                if self.phases[-1][0] == "listing blobs" and own.workers[0].poll() is None:
                    own.workers[0].kill()
                    own.workers[0].wait()

        job = Job(
            storage=slow(),
            policy=Policy(delete_untagged=True),
            check=lambda: Verdict("allowed", ()),
            run_file=str(tmp_path / "shared"),
            dry_run=True,
            engine=lambda reader: DaskEngine(reader, own.address, slow),
        )
        report = collect(job, Killing(), Interrupts())
        assert own.workers[0].returncode == -9
    assert report.error is None
    assert report.blobs_total == SHAPE.blobs
    assert rows(tmp_path / "shared") == rows(tmp_path / "alone")


def test_credentials_are_in_no_task_and_in_no_log(folder: str, tmp_path: Path) -> None:
    secret = "correct-horse-battery-staple"
    open_there = functools.partial(open_with, secret, opening(folder))
    with cluster(tmp_path, 1) as own:
        with DaskEngine(open_there(), own.address, open_there) as engine:
            results = engine.run(echo, [1, 2, 3, 4])
            next(results)
            name = engine._opening.name
            kept = engine._client.run_on_scheduler(everything_kept)
            list(results)
            with pytest.raises(NotFound):
                list(engine.run(miss, ["docker/registry/v2/nothing"]))
        logs = b"".join(path.read_bytes() for path in tmp_path.glob("*.log"))
    # All that a task is made of is among what was looked at.
    assert kept
    assert all("echo" in text and name in text for text in kept)
    assert not [text for text in kept if secret in text]
    assert b"miss" in logs  # the worker says what has failed, and with which arguments
    assert secret.encode() not in logs


def replace_worker(own: Cluster, engine: DaskEngine, **environment: str) -> None:
    """A worker comes later, with that in its *environment*; then the only other one is killed."""
    own.add(**environment)
    engine._client.wait_for_workers(2, timeout=60)
    own.workers[0].kill()
    own.workers[0].wait()


def test_a_worker_that_comes_later_gets_what_it_needs(folder: str, tmp_path: Path) -> None:
    storage = opening(folder)()
    with cluster(tmp_path, 1) as own, DaskEngine(storage, own.address, opening(folder)) as engine:
        assert [*engine.run(echo, [1])] == [1]
        replace_worker(own, engine)
        assert sorted(engine.run(echo, range(9))) == [*range(9)]


def test_units_that_come_to_light_are_run_and_errors_arrive_as_they_are(
    dask: Cluster, folder: str
) -> None:
    storage = opening(folder)()
    with DaskEngine(storage, dask.address, opening(folder)) as engine:
        assert engine.workers == 2
        found = engine.run(echo, [1, 2], lambda unit: [unit * 10] if unit < 10 else [])
        assert sorted(found) == [1, 2, 10, 20]
        path = "docker/registry/v2/repositories/x/_manifests/tags/v0/current/link"
        with pytest.raises(NotFound) as caught:
            list(engine.run(miss, [path]))
        assert caught.value.path == path


def test_units_of_a_worker_that_is_killed_are_run_again(folder: str, tmp_path: Path) -> None:
    reader = opening(folder)()
    expected = read_catalog(reader, SerialEngine(reader), Watcher())
    whole = Manifests(SerialEngine(reader), expected.names, expected.aliases, Watcher())
    whole.load(expected.revisions.keys)
    slow = opening(folder, latency=0.01)
    with cluster(tmp_path, 2) as own:
        storage = slow()
        with DaskEngine(storage, own.address, slow) as engine:

            class Killing(Watcher):
                def advance(self, count: int) -> None:
                    # In the middle of reading: after the first unit, of which there are many.
                    if own.workers[0].poll() is None:
                        own.workers[0].kill()
                        own.workers[0].wait()

            manifests = Manifests(engine, expected.names, expected.aliases, Killing())
            manifests.load(expected.revisions.keys)
        assert own.workers[0].returncode == -9
        assert manifests.batch.keys.tobytes() == whole.batch.keys.tobytes()
        assert manifests.batch.states.tolist() == whole.batch.states.tolist()
        assert manifests.batch.counts.tolist() == whole.batch.counts.tolist()


def test_no_scheduler_is_one_clear_line(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry_gc.engines.dask_cluster._CONNECT_SECONDS", 1)
    storage = opening(folder)()
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match="no Dask scheduler answers"):
        DaskEngine(storage, address, opening(folder)).__enter__()


def other_version(tmp_path: Path) -> str:
    """What PYTHONPATH is where another version is installed."""
    import registry_gc

    other = tmp_path / "other" / "registry_gc"
    other.mkdir(parents=True)
    own = Path(registry_gc.__file__).parent
    for module in own.glob("*.py"):
        (other / module.name).write_bytes(module.read_bytes())
    (other / "__init__.py").write_text('"""Another version."""\n__version__ = "0.0.0"\n')
    for package in own.glob("*/__init__.py"):
        (other / package.parent.name).symlink_to(package.parent)
    return f"{other.parent}:{SOURCES}"


def test_workers_with_another_version_are_refused(folder: str, tmp_path: Path) -> None:
    sources = other_version(tmp_path)
    (tmp_path / "cluster").mkdir()
    with cluster(tmp_path / "cluster", 1, sources=sources) as own:
        engine = DaskEngine(opening(folder)(), own.address, opening(folder))
        with pytest.raises(ClusterError, match="install the same registry-garbage-collect"):
            engine.__enter__()


def test_a_worker_with_another_version_that_comes_later_does_no_unit(
    folder: str, tmp_path: Path
) -> None:
    storage = opening(folder)()
    sources = other_version(tmp_path)
    with cluster(tmp_path, 1) as own, DaskEngine(storage, own.address, opening(folder)) as engine:
        replace_worker(own, engine, PYTHONPATH=sources)
        found = engine.run(echo, range(9))
        with pytest.raises(ClusterError, match="install the same registry-garbage-collect"):
            next(found)


def test_a_worker_that_comes_later_and_sees_another_storage_ends_the_run(
    folder: str, tmp_path: Path
) -> None:
    storage = opening(folder)()
    elsewhere = functools.partial(GeneratedStorage, Shape(50, 5000), folder=str(tmp_path))
    told = functools.partial(open_as_told, opening(folder), elsewhere)
    with cluster(tmp_path, 1) as own, DaskEngine(storage, own.address, told) as engine:
        assert [*engine.run(echo, [1])] == [1]
        replace_worker(own, engine, ELSEWHERE="yes")
        found = engine.run(echo, range(9))
        with pytest.raises(ClusterError, match="another storage"):
            next(found)


def test_what_has_changed_since_this_process_looked_is_no_other_storage(
    dask: Cluster, folder: str
) -> None:
    with DaskEngine(opening(folder)(), dask.address, opening(folder)) as engine:
        engine._seen = "what was there before a push"
        assert sorted(engine.run(echo, range(9))) == [*range(9)]
        assert engine._seen == look(engine._reader)


def test_a_result_of_a_thread_in_doubt_is_not_used_and_its_unit_is_run_again(
    dask: Cluster, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DaskEngine(opening(folder)(), dask.address, opening(folder)) as engine:
        agrees, asked = engine._agrees, []

        def first_in_doubt(doubt: Doubt | None) -> bool:
            asked.append(doubt)
            return agrees(Doubt("thread", "elsewhere") if len(asked) == 1 else doubt)

        monkeypatch.setattr(engine, "_agrees", first_in_doubt)
        assert sorted(engine.run(echo, range(9))) == [*range(9)]
        assert len(asked) == 10


def test_who_accepts_and_says_nothing_is_no_scheduler(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry_gc.engines.dask_cluster._CONNECT_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match="answers: somebody accepts the connection"):
            DaskEngine(opening(folder)(), address, opening(folder)).__enter__()


def test_a_signal_while_workers_are_asked_is_told_as_a_signal(
    dask: Cluster, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = DaskEngine(opening(folder)(), dask.address, opening(folder))

    def interrupted(*arguments: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("distributed.Client.run", interrupted)
    with pytest.raises(Interrupted):
        engine.__enter__()


def test_a_worker_that_hangs_does_not_keep_a_run_from_ending(folder: str, tmp_path: Path) -> None:
    with cluster(tmp_path, 1) as own:
        engine = DaskEngine(opening(folder)(), own.address, opening(folder)).__enter__()
        own.workers[0].send_signal(signal.SIGSTOP)
        try:
            ending = threading.Thread(target=engine.__exit__, daemon=True)
            ending.start()
            ending.join(60)
            assert not ending.is_alive()
        finally:
            own.workers[0].send_signal(signal.SIGCONT)


def test_nothing_of_distributed_s_own_is_logged(dask: Cluster, folder: str) -> None:
    with DaskEngine(opening(folder)(), dask.address, opening(folder)):
        for name in ("distributed.client", "distributed.core", "distributed.comm"):
            assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_an_error_that_says_nothing_is_told_by_its_name_and_a_page_in_one_line() -> None:
    assert _told(TimeoutError()) == "TimeoutError"
    assert _told(OSError("one\n  two\n")) == "one two"


def test_workers_that_see_another_storage_are_refused(dask: Cluster, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    storage = opening(str(tmp_path / "a"))()
    other = functools.partial(GeneratedStorage, Shape(50, 5000), folder=str(tmp_path / "a"))
    with pytest.raises(ClusterError, match="another storage"):
        DaskEngine(storage, dask.address, other).__enter__()


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", "tcp://", "tcp://127.0.0.1:port", "tcp://127.0.0.1:70000", "foo://h:1",
     "tcp://user:pa55word@127.0.0.1:8786", "tcp://[::1", "inproc://x", "/etc/passwd"],
)  # fmt: skip
def test_what_is_no_address_is_a_wrong_use_and_is_not_printed(address: str, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    config = write_config(tmp_path / "registry")
    result = run("--dask", address, "--dry-run", config, state=tmp_path / "state")
    assert result.exit_code == 2
    assert "expected tcp://HOST:PORT or tls://HOST:PORT" in result.errors
    assert "pa55word" not in result.errors


@pytest.mark.parametrize("address", ["h:8786", "tls://h:8786", "tcp://[::1]:8786", "tcp://h:1/"])
def test_what_dask_takes_for_an_address_is_one_here_too(address: str) -> None:
    assert SchedulerType().convert(address, None, None) == address


def test_tls_without_certificates_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(ValueError, match="certificates"):
        check_transport("tls://127.0.0.1:1")
    check_transport("tcp://127.0.0.1:1")


def test_a_folder_is_refused_for_it_may_be_another_one_on_each_worker(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    config = write_config(tmp_path / "registry")
    result = run("--dask", "tcp://127.0.0.1:1", "--dry-run", config, state=tmp_path / "state")
    assert result.exit_code == 2
    assert "object stores" in result.errors
