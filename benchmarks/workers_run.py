"""How much faster many workers wait: reading or listing a generated registry, and nothing else.

    python benchmarks/workers_run.py read --workers 64 --latency 0.05 --count 10000
    python benchmarks/workers_run.py list --dask --workers 2 --latency 0.05 --blobs 100000

Prints one JSON document. With ``--dask`` the workers are processes of one thread each, of a
cluster that is started here; else they are threads. Starting either is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = [str(HERE), str(HERE.parent / "gc"), str(HERE.parent / "drivers")]
sys.path[:0] = SOURCES
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from generated import GeneratedStorage  # noqa: E402  # paths first
from generated_shape import Shape  # noqa: E402
from registry_gc.compact.arrays import distinct  # noqa: E402
from registry_gc.digest import Names  # noqa: E402
from registry_gc.engine import Engine, engine_for  # noqa: E402
from registry_gc.events import Silence  # noqa: E402
from registry_gc.listing.blob_stream import stream_blobs  # noqa: E402
from registry_gc.listing.reading import read_catalog  # noqa: E402
from registry_gc.references import Manifests  # noqa: E402


def read(storage: GeneratedStorage, engine: Engine, count: int) -> int:
    """Read *count* manifests; returns how many."""
    keys = distinct(storage.content.digests_of(0, count))
    manifests = Manifests(engine, Names(), {}, Silence())
    manifests.load(keys)
    return len(manifests)


def listing(storage: GeneratedStorage, engine: Engine, count: int) -> int:
    """List everything; returns how many pages that took."""
    read_catalog(storage, engine, Silence())
    # A plan knows how many are live by then; here nine of ten are.
    expected = storage.shape.blobs * 9 // 10
    blobs = sum(len(batch.keys) for batch in stream_blobs(storage, engine, None, expected))
    assert blobs == storage.shape.blobs
    return storage.requests.list


@contextlib.contextmanager
def engine_of(options: argparse.Namespace, storage: GeneratedStorage) -> Iterator[Engine]:
    """The threads or the cluster that *options* ask for."""
    if not options.dask:
        with engine_for(storage, options.workers) as engine:
            yield engine
        return
    from distributed import LocalCluster

    from registry_gc.engines.dask_cluster import DaskEngine

    os.environ["PYTHONPATH"] = os.pathsep.join(SOURCES)
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        DaskEngine(storage, cluster.scheduler_address, opening(options)) as engine,
    ):
        yield engine


def opening(options: argparse.Namespace) -> functools.partial[GeneratedStorage]:
    """Opens the registry, here or in a worker."""
    shape = Shape.of_blobs(options.blobs)
    return functools.partial(GeneratedStorage, shape, latency=options.latency)


def main() -> None:
    """Measure once and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["read", "list"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dask", action="store_true")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds for each request")
    parser.add_argument("--blobs", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=1000, help="manifests to read")
    options = parser.parse_args()
    storage = opening(options)()
    work = read if options.what == "read" else listing
    with engine_of(options, storage) as engine:
        before, began = storage.requests.list, time.monotonic()
        cpu, generator = time.process_time(), storage.cpu
        done = work(storage, engine, options.count) - (before if work is listing else 0)
        seconds = time.monotonic() - began
        figures = vars(options) | {
            "done": done,
            "seconds": round(seconds, 2),
            "each_second": round(done / seconds, 1),
            "cpu": round(time.process_time() - cpu, 2),
            "generator_cpu": round(storage.cpu - generator, 2),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
