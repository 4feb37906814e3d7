"""The suite for large registries: measures, keeps the figures, draws them.

    python benchmarks/scale.py                      # sizes up to 1M blobs, workers, stock command
    python benchmarks/scale.py --long               # 10M blobs too: takes some ten minutes more
    python benchmarks/scale.py --parts workers      # a part; the others stay as they were
    python benchmarks/scale.py --parts              # only draws what scale.json holds

Figures go into scale.json, pictures into pictures/, both into README.md. Each run is a process of
its own. A registry that is larger than what fits on a disk is served by ``generated.py``, whose
own CPU is taken off; the stock command gets a tree of files, as it can list no other for nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trees
from demo_registry import unused_port
from generated_shape import Content, Numbers, Shape
from scale_report import markdown
from timing import machine, measure, tool

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "scale.json"
BEGIN, END = "<!-- scale -->\n", "<!-- /scale -->\n"
SIZES = [10_000, 100_000, 1_000_000]
LONG = 10_000_000
LATENCY = "0.05"
LIMIT = 310.0
TREES = [30, 100, 300]
OURS, STOCK = "registry-garbage-collect", "docker-registry"


def ask(script: str, *arguments: str) -> dict[str, Any]:
    """Run one of the scripts beside this one; returns what it prints."""
    line = [sys.executable, str(HERE / script), *arguments]
    print(" ".join(line[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sizes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A dry run with ``-m`` for each size: with an empty cache, with a full one, and plain."""
    found = []
    for blobs in options.sizes + ([LONG] if options.long else []):
        Content(Numbers(Shape.of_blobs(blobs))).close()  # digests are made once, and not counted
        with tempfile.TemporaryDirectory() as folder:
            cache = ("--cache", str(Path(folder) / "cache"))
            for name, arguments in (("cold", ("-m",)), ("warm", ("-m",)), ("warm, plain", ())):
                figures = ask("scale_run.py", "--blobs", str(blobs), *arguments, *cache)
                found.append({"blobs": blobs, "run": name, **figures})
    return found


def waiting(what: str, count: int, latency: str, *more: str) -> dict[str, Any]:
    """One run of so many workers."""
    return ask("workers_run.py", what, "--workers", str(count), "--latency", latency, *more)


def workers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Manifests read and pages listed in a second, by threads and by Dask workers."""
    reading = ((1, 200), (4, 800), (16, 3200), (64, 10_000))
    return [
        *(waiting("read", count, LATENCY, "--count", str(many)) for count, many in reading),
        # So many that the first pages, which come one after the other, are few among them.
        *(waiting("list", 64, latency, "--blobs", "3000000") for latency in (LATENCY, "0")),
        *(waiting("list", n, LATENCY, "--blobs", "100000", "--dask") for n in (1, 2, 4)),
    ]


def stock(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The stock command beside this one on trees of files; ended at a limit."""
    found: list[dict[str, Any]] = []
    too_long = False
    for repositories in TREES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            root = Path(folder) / "registry"
            trees.many(root, repositories)
            blobs = sum(1 for _ in (root / "docker/registry/v2/blobs").rglob("data"))
            config = Path(folder) / "config.yml"
            config.write_text(
                f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n"
                f"http: {{addr: 127.0.0.1:{unused_port()}}}\n"
            )
            ours = [tool(OURS), "--dry-run", "-m", "--state-dir", f"{folder}/state", str(config)]
            measure(ours, LIMIT)  # not counted: fills the kernel's caches
            lines = {OURS: ours}
            if not too_long:
                lines[STOCK] = [STOCK, "garbage-collect", "--dry-run", "-m", str(config)]
            for name, line in lines.items():
                run = measure(line, LIMIT)
                too_long |= run.cut
                found.append(
                    {"blobs": blobs, "command": name, "seconds": round(run.seconds, 2)}
                    | {"peak_mb": round(run.peak_rss_bytes / 1e6, 1), "cut": run.cut}
                )
    return found


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "sizes": sizes,
    "workers": workers,
    "stock": stock,
}


def kept() -> dict[str, Any]:
    """The figures of earlier runs."""
    found: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return found


def add(figures: dict[str, Any], part: str, rows: list[dict[str, Any]], about: object) -> None:
    """Put *rows* in the place of older ones; sizes that were not measured again stay."""
    if part == "sizes":
        again = {row["blobs"] for row in rows}
        older = figures.get(part, {"rows": []})["rows"]
        rows = sorted(
            [row for row in older if row["blobs"] not in again] + rows,
            key=lambda row: int(row["blobs"]),
        )
    figures[part] = {"about": about, "rows": rows}


def show(figures: dict[str, Any]) -> None:
    """Draw the pictures, and put the tables into the README."""
    from scale_pictures import draw  # imports matplotlib

    draw(figures, HERE / "pictures")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}{markdown(figures)}{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure what the command line names, keep it, draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="numbers of blobs")
    parser.add_argument("--long", action="store_true", help=f"{LONG:,} blobs as well")
    parser.add_argument("--folder", type=Path, help="where trees of files are made for a while")
    options = parser.parse_args()
    if "stock" in options.parts and not shutil.which(STOCK):
        raise SystemExit(f"{STOCK} is not installed: contrib/setup/packages {STOCK}")
    figures = kept()
    for part in options.parts:
        about = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", **machine(HERE)}
        add(figures, part, PARTS[part](options), about)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)


if __name__ == "__main__":
    main()
