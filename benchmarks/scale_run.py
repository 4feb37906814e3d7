"""One dry run over a generated registry, in a process of its own, measured from inside.

Prints one JSON document. CPU is that of the process without what the generator took; memory is
the process's peak resident set, the generator's part of it included (a few megabytes).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "gc"), str(HERE.parent / "drivers")]
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from generated import GeneratedStorage  # noqa: E402  # paths first
from generated_shape import Shape  # noqa: E402
from registry_gc.collect import Job, collect  # noqa: E402
from registry_gc.guard import Verdict  # noqa: E402
from registry_gc.interrupts import Interrupts  # noqa: E402
from registry_gc.policy import Policy  # noqa: E402


class Clock:
    """An observer that notes when each phase began, and the peak of memory by then."""

    def __init__(self, storage: GeneratedStorage) -> None:
        self.storage = storage
        self.phases: list[dict[str, Any]] = []
        self.notices: list[str] = []

    def phase(self, name: str, total: int | None, unit: str) -> None:
        """Note that a phase begins."""
        self.phases.append({"phase": name, **moment(self.storage)})

    def advance(self, count: int) -> None:
        """Nothing to show."""

    def finish(self) -> None:
        """Note that it has ended."""
        self.phases.append({"phase": "-", **moment(self.storage)})

    def notice(self, message: str) -> None:
        """Keep it."""
        self.notices.append(message)


def moment(storage: GeneratedStorage) -> dict[str, float]:
    """CPU without the generator's, the generator's, and peak memory in MB, so far."""
    return {
        "wall": round(time.monotonic() - BEGAN, 2),
        "cpu": round(time.process_time() - storage.cpu, 2),
        "generator": round(storage.cpu, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


BEGAN = time.monotonic()


def main() -> None:
    """Run once and print the figures."""
    options = arguments().parse_args()
    shape = Shape.of_blobs(options.blobs)
    storage = GeneratedStorage(shape, latency=options.latency, workers=options.workers)
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 10)
    clock = Clock(storage)
    interrupts = Interrupts()
    before = moment(storage)
    with tempfile.TemporaryDirectory() as folder, interrupts.installed():
        job = Job(
            storage=storage,
            policy=Policy(delete_untagged=options.delete_untagged),
            check=lambda: Verdict("allowed", ()),
            run_file=os.path.join(folder, "run.sqlite"),
            cache=options.cache,
            dry_run=True,
            workers=options.workers,
        )
        report = collect(job, clock, interrupts)
    after = moment(storage)
    if report.error:
        raise SystemExit(report.error)
    live = report.blobs_total - report.blobs.eligible
    goal = 200 + 16 * live / (1 << 20)
    figures = {
        "shape": shape.describe(),
        "options": vars(options) | {"cache": bool(options.cache)},
        "live_blobs": live,
        "eligible": {
            "blobs": report.blobs.eligible,
            "manifests": report.manifests.eligible,
            "layer_links": report.layer_links.eligible,
        },
        "marked": report.marked,
        "requests": dict(report.requests),
        "seconds": round(after["wall"] - before["wall"], 2),
        "cpu": round(after["cpu"] - before["cpu"], 2),
        "generator_cpu": round(after["generator"] - before["generator"], 2),
        "peak_mb": after["peak_mb"],
        "goal_mb": round(goal, 1),
        "phases": [{"phase": "begin", **before}, *clock.phases, {"phase": "end", **after}],
        "notices": clock.notices,
    }
    print(json.dumps(figures, indent=1))


def arguments() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blobs", type=int, default=1_000_000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds for each request")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("-m", "--delete-untagged", action="store_true")
    parser.add_argument("--cache", help="where references are remembered")
    return parser


if __name__ == "__main__":
    main()
