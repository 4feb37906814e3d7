"""Draws the figures of ``scale.json``: three pictures, as SVG, that read on white and on black."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")  # no display, no network

from matplotlib import pyplot as plt  # the backend first
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from scale_report import Figures, of_run, rates, rows_of

COLOURS = {"cold": "#d55e00", "warm": "#0072b2", "warm, plain": "#009e73"}
GOAL = "#777777"
STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.marker": "o",
    "svg.hashsalt": "registry-gc",  # the same figures make the same file
}


def draw(figures: Figures, folder: Path) -> None:
    """Draw all parts that *figures* has, into *folder*."""
    folder.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, (part, width) in {
            "sizes": (_sizes, 3),
            "workers": (_workers, 2),
            "stock": (_stock, 2),
        }.items():
            if not rows_of(figures, name):
                continue
            figure, axes = plt.subplots(1, width, figsize=(4.2 * width, 3.6), layout="constrained")
            part(figures, axes)
            undated: Any = {"Date": None, "Creator": None}
            figure.savefig(folder / f"{name}.svg", metadata=undated, facecolor="white")
            plt.close(figure)


def _sizes(figures: Figures, axes: Any) -> None:
    seconds, memory, asked = axes
    for run, colour in COLOURS.items():
        rows = of_run(figures, run)
        blobs = [row["blobs"] for row in rows]
        # Both warm runs ask for the same, and hold about as much.
        look: Any = {"color": colour, "label": run}
        if run == "warm, plain":
            look |= {"dashes": (3, 3), "marker": ""}
        seconds.plot(blobs, [row["cpu"] for row in rows], **look)
        memory.plot(blobs, [row["peak_mb"] for row in rows], **look)
        total = [row["requests"]["list"] + row["requests"]["read"] for row in rows]
        asked.plot(blobs, total, **look)
    rows = of_run(figures, "warm")
    blobs = [row["blobs"] for row in rows]
    memory.plot(
        blobs, [row["goal_mb"] for row in rows], color=GOAL, linestyle=":", marker="", label="goal"
    )
    seconds.plot([10_000_000], [90], "_", color=GOAL, markersize=16, label="goal")
    _named(seconds, "CPU seconds of a dry run", log=True)
    _named(memory, "peak memory, MB", log=False)
    _named(asked, "requests", log=True)


def _named(axes: Axes, title: str, *, log: bool) -> None:
    axes.set_title(title)
    axes.set_xscale("log")
    axes.set_xlabel("blobs")
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_locator(NullLocator())
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.legend()


def _short(value: float, _: object) -> str:
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _workers(figures: Figures, axes: Any) -> None:
    threads, cluster = axes
    read = rates(figures, "read", dask=False, latency=0.05)
    _speed_up(threads, read, "threads that read manifests", COLOURS["warm"])
    far = rates(figures, "list", dask=True, latency=0.05)
    _speed_up(cluster, far, "Dask workers of one thread that list", COLOURS["cold"])


def _speed_up(axes: Axes, found: dict[int, float], title: str, colour: str) -> None:
    workers = sorted(found)
    if not workers:
        return
    one = found[workers[0]] / workers[0]
    axes.plot(workers, workers, color=GOAL, linestyle=":", marker="", label="ideal")
    axes.plot(workers, [found[count] / one for count in workers], color=colour, label="measured")
    axes.set_title(f"{title}\n50 ms for each request")
    axes.set_xlabel("workers")
    axes.set_ylabel("times as fast as one")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
    axes.legend()


def _stock(figures: Figures, axes: Any) -> None:
    rows = rows_of(figures, "stock")
    for axis, name, title in zip(
        axes, ("seconds", "peak_mb"), ("seconds of a dry run -m", "peak memory, MB"), strict=True
    ):
        for command, colour in (
            ("docker-registry", COLOURS["cold"]),
            ("registry-garbage-collect", COLOURS["warm"]),
        ):
            chosen = [row for row in rows if row["command"] == command]
            axis.plot(
                [row["blobs"] for row in chosen],
                [row[name] for row in chosen],
                color=colour,
                label=command,
            )
        axis.set_title(f"{title}\ntree of files, warm")
        axis.set_xlabel("blobs")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_formatter(FuncFormatter(_short))
        axis.legend()
