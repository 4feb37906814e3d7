"""The figures of ``scale.json`` as tables, and the goals that they are held against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Figures = dict[str, Any]
Rows = list[dict[str, Any]]

MILLION = 1_000_000


def rows_of(figures: Figures, part: str) -> Rows:
    """The rows of a part; none where it was not measured."""
    found: Rows = figures.get(part, {"rows": []})["rows"]
    return found


def of_run(figures: Figures, run: str) -> Rows:
    """The rows of one kind of run, by size."""
    return [row for row in rows_of(figures, "sizes") if row["run"] == run]


def rates(figures: Figures, what: str, *, dask: bool, latency: float) -> dict[int, float]:
    """Number of workers -> how much they did in a second."""
    return {
        row["workers"]: row["each_second"]
        for row in rows_of(figures, "workers")
        if (row["what"], row["dask"], row["latency"]) == (what, dask, latency)
    }


def goals(figures: Figures) -> Iterator[tuple[str, str, bool]]:
    """Each goal that was measured: in words, what came out, and whether it was reached."""
    warm = {row["blobs"]: row for row in of_run(figures, "warm")}
    for blobs in (MILLION, 10 * MILLION):
        if row := warm.get(blobs):
            words = f"{blobs // MILLION}M blobs in at most {row['goal_mb']:.0f} MB"
            yield words, f"{row['peak_mb']:.0f} MB", row["peak_mb"] <= row["goal_mb"]
            reads = row["requests"]["read"]
            yield (
                f"{blobs // MILLION}M blobs, warm: no manifest is read",
                f"{reads - 1}",
                reads == 1,
            )
    if large := warm.get(10 * MILLION):
        yield "10M blobs in at most 90 s CPU", f"{large['cpu']:.0f} s", large["cpu"] <= 90
        if small := warm.get(MILLION):
            growth = large["seconds"] / small["seconds"]
            yield "from 1M to 10M time grows at most 11 times", f"{growth:.1f}", growth <= 11
    read = rates(figures, "read", dask=False, latency=0.05)
    if {1, 64} <= read.keys():
        times = read[64] / read[1]
        yield "64 workers read at least 40 times as fast as one", f"{times:.0f}", times >= 40
    waiting = rates(figures, "list", dask=False, latency=0.05).get(64)
    busy = rates(figures, "list", dask=False, latency=0.0).get(64)
    if waiting and busy:
        share = waiting / busy
        yield "64 workers list at 80% of what they do without latency", f"{share:.0%}", share >= 0.8
    far = rates(figures, "list", dask=True, latency=0.05)
    if {1, 2} <= far.keys():
        times = far[2] / far[1]
        yield "two Dask workers at least 1.7 times one", f"{times:.2f}", times >= 1.7


def _sizes(figures: Figures) -> Iterator[str]:
    yield "![CPU, memory and requests against size](pictures/sizes.svg)"
    yield ""
    yield "| blobs | run | seconds | CPU s | generator's CPU s | peak MB | goal MB | LIST | GET |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows_of(figures, "sizes"):
        asked = row["requests"]
        yield (
            f"| {row['blobs']:,} | {row['run']} | {row['seconds']:.1f} | {row['cpu']:.1f} "
            f"| {row['generator_cpu']:.1f} | {row['peak_mb']:.0f} | {row['goal_mb']:.0f} "
            f"| {asked['list']:,} | {asked['read']:,} |"
        )


def _workers(figures: Figures) -> Iterator[str]:
    yield "![one machine against many workers](pictures/workers.svg)"
    yield ""
    yield "| what | workers | latency s | each second | CPU s |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows_of(figures, "workers"):
        unit = "manifests" if row["what"] == "read" else "pages"
        kind = "Dask workers" if row["dask"] else "threads"
        yield (
            f"| {unit}, {kind} | {row['workers']} | {row['latency']} | {row['each_second']:,.1f} "
            f"| {row['cpu']:.1f} |"
        )


def _stock(figures: Figures) -> Iterator[str]:
    yield "![beside the stock command](pictures/stock.svg)"
    yield ""
    yield "| blobs in files | command | seconds | peak MB |"
    yield "|---:|---|---:|---:|"
    for row in rows_of(figures, "stock"):
        over = "> " if row["cut"] else ""
        yield (
            f"| {row['blobs']:,} | {row['command']} | {over}{row['seconds']:.1f} "
            f"| {row['peak_mb']:.0f} |"
        )


def markdown(figures: Figures) -> str:
    """All tables of what was measured, as they stand in the README."""
    lines = ["| goal | measured | reached |", "|---|---:|---|"]
    lines += [
        f"| {words} | {found} | {'yes' if reached else '**no**'} |"
        for words, found, reached in goals(figures)
    ]
    for part, table in (("sizes", _sizes), ("workers", _workers), ("stock", _stock)):
        if part in figures:
            about = figures[part]["about"]
            said = ", ".join(f"{name} {value}" for name, value in about.items())
            lines += ["", *table(figures), "", f"{said}."]
    return "\n".join(lines) + "\n"
