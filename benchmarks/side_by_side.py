"""Times a dry run beside the stock command's and beside ``find``, on the same trees.

    python benchmarks/side_by_side.py [--trees many-300 deep] [--also PATH] [--record]

The commands take turns, so that what else the machine does falls on all of them. Each figure is
the median of its rounds. A command that passes ``--limit`` is ended, run once, and stands as a
lower bound. ``--record`` puts the figures into this folder's README.md and side_by_side.json, in
place of those of the same trees, modes and caches; the others stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import trees
from demo_registry import unused_port
from timing import Median, Run, can_forget_files, forget_files, machine, measure, record, tool

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / ".bench"
TREES: dict[str, Callable[[Path], None]] = {
    "many-300": lambda root: trees.many(root, 300),
    "many-3000": lambda root: trees.many(root, 3000),
    "deep": trees.deep,
}
MODES = {"plain": (), "-m": ("-m",)}
OURS = "registry-garbage-collect"
STOCK = "docker-registry"
FIND = "find"
_FILE_SYSTEM = "file system"
# Warm, a command is run once more right before it is measured: some machines take memory back that
# nobody has touched for some seconds. One that takes longer than that loses it meanwhile anyway.
_SOON = 10.0


@dataclass(frozen=True, slots=True)
class Row:
    """What one command needed on one tree, in one mode, with warm or cold caches."""

    tree: str
    mode: str
    caches: str
    command: str
    median: Median
    file_system: str


@dataclass(frozen=True, slots=True)
class Goal:
    """A claim: the quotient of two medians is at least *least*, or a time at most *most*."""

    tree: str
    mode: str
    caches: str
    words: str
    least: float = 0.0
    most: float = 0.0
    beside: str = ""


GOALS = (
    Goal("many-300", "plain", "warm", "5 times faster", least=5, beside=STOCK),
    Goal("many-300", "-m", "warm", "8 times faster", least=8, beside=STOCK),
    Goal("many-3000", "plain", "warm", "10 times faster", least=10, beside=STOCK),
    Goal("many-3000", "-m", "warm", "10 times faster", least=10, beside=STOCK),
    Goal("many-300", "plain", "cold", "3 times faster", least=3, beside=STOCK),
    Goal("many-300", "-m", "cold", "3 times faster", least=3, beside=STOCK),
    Goal("many-3000", "plain", "cold", "3 times faster", least=3, beside=STOCK),
    Goal("many-3000", "-m", "cold", "3 times faster", least=3, beside=STOCK),
    Goal("deep", "-m", "warm", "300 times faster", least=300, beside=STOCK),
    Goal("deep", "-m", "warm", "at most 1.0 s", most=1.0),
    Goal("many-300", "plain", "warm", "at most 0.6 of find", least=1 / 0.6, beside=FIND),
    Goal("many-3000", "plain", "warm", "at most 0.6 of find", least=1 / 0.6, beside=FIND),
    Goal("-", "--help", "warm", "under 0.25 s", most=0.25),
)


def prepare(name: str, folder: Path) -> Path:
    """Make the tree *name* if it is not there yet; returns its config file."""
    root = folder / name
    if not root.exists():
        print(f"making {name}", file=sys.stderr, flush=True)
        unfinished = folder / f"{name}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        TREES[name](unfinished)
        unfinished.rename(root)
    config = folder / f"{name}.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage:\n  filesystem:\n    rootdirectory: {json.dumps(str(root))}\n"
        f"http:\n  addr: 127.0.0.1:{unused_port()}\n"
    )
    return config


def commands(name: str, mode: str, folder: Path, also: Sequence[str]) -> dict[str, list[str]]:
    """What takes turns on the tree *name*."""
    config = str(folder / f"{name}.yml")
    ours = [tool(OURS), "--dry-run", *MODES[mode], "--state-dir"]
    theirs = {STOCK: STOCK} | {f"{STOCK} {version(path)}": path for path in also}
    return {
        OURS: [*ours, str(folder / "state"), config],
        **{
            command: [path, "garbage-collect", "--dry-run", *MODES[mode], config]
            for command, path in theirs.items()
        },
        # With a slash at its end, so that a tree elsewhere can be linked here.
        FIND: [FIND, f"{folder / name}/", "-name", "data", "-printf", "%s\\n"],
    }


def side_by_side(name: str, mode: str, caches: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Let the commands take turns on one tree."""
    running = commands(name, mode, arguments.folder, arguments.also)
    runs: dict[str, list[Run]] = {command: [] for command in running}
    state = arguments.folder / "state"
    for _ in range(arguments.rounds):
        for command, line in running.items():
            if runs[command] and runs[command][-1].cut:
                continue
            if caches == "cold":
                forget_files()
            elif not runs[command] or runs[command][-1].seconds < _SOON:
                shutil.rmtree(state, ignore_errors=True)
                measure(line, arguments.limit)
            shutil.rmtree(state, ignore_errors=True)
            runs[command].append(measure(line, arguments.limit))
            took = runs[command][-1].seconds
            print(f"{name} {mode} {caches} {command}: {took:.2f} s", file=sys.stderr, flush=True)
    kind = machine(arguments.folder)[_FILE_SYSTEM]
    for command, done in runs.items():
        yield Row(name, mode, caches, command, Median.of(done), kind)


def start_up(rounds: int) -> Row:
    """How long ``--help`` takes."""
    runs = [measure([tool(OURS), "--help"], limit=60) for _ in range(rounds + 1)]
    return Row("-", "--help", "warm", OURS, Median.of(runs[1:]), "-")


def recorded() -> list[Row]:
    """What stands in side_by_side.json."""
    rows = json.loads((HERE / "side_by_side.json").read_text())["rows"]
    return [Row(**{**row, "median": Median(**row["median"])}) for row in rows]


def together(before: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The rows of both in the order of trees; of what both have measured, those of *rows*."""

    def key(row: Row) -> tuple[str, str, str]:
        return row.tree, row.mode, row.caches

    measured = {key(row) for row in rows}
    order = ["-", *TREES]
    found = [row for row in before if key(row) not in measured] + list(rows)
    return sorted(found, key=lambda row: (order.index(row.tree), row.caches != "warm"))


def find_row(rows: Sequence[Row], goal: Goal, command: str) -> Row | None:
    """The row that *goal* speaks of, where it was measured."""
    key = (goal.tree, goal.mode, goal.caches, command)
    return next((r for r in rows if (r.tree, r.mode, r.caches, r.command) == key), None)


def verdicts(rows: Sequence[Row]) -> Iterator[tuple[Goal, str, bool]]:
    """Each goal that was measured, what came out, and whether it was reached."""
    for goal in GOALS:
        ours = find_row(rows, goal, OURS)
        if ours is None:
            continue
        if goal.most:
            seconds = ours.median.seconds
            yield goal, f"{seconds:.2f} s", seconds <= goal.most
            continue
        other = find_row(rows, goal, goal.beside)
        if other is None:
            continue
        quotient = other.median.seconds / ours.median.seconds
        bound = "over " if other.median.cut else ""
        if goal.beside == FIND:
            yield goal, f"{1 / quotient:.2f}", quotient >= goal.least
        else:
            yield goal, f"{bound}{quotient:.1f}", quotient >= goal.least


def markdown(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The figures as they stand in the README."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()) + ".", ""]
    lines.append(
        "| tree | on | mode | caches | command | seconds | range | CPU s | MB read | peak MB |"
    )
    lines.append("|---|---|---|---|---|---:|---:|---:|---:|---:|")
    for row in rows:
        median = row.median
        over = "> " if median.cut else ""
        lines.append(
            f"| {row.tree} | {row.file_system} | {row.mode} | {row.caches} | {row.command} "
            f"| {over}{median.seconds:.2f} | {median.lowest:.2f} to {median.highest:.2f} "
            f"| {median.cpu_seconds:.2f} | {median.read_bytes / 1e6:.0f} "
            f"| {median.peak_rss_bytes / 1e6:.0f} |"
        )
    lines += [
        "",
        "| tree | mode | caches | goal | measured | reached |",
        "|---|---|---|---|---:|---|",
    ]
    lines += [
        f"| {goal.tree} | {goal.mode} | {goal.caches} | {goal.words} | {measured} "
        f"| {'yes' if reached else '**no**'} |"
        for goal, measured, reached in verdicts(rows)
    ]
    return "\n".join(lines) + "\n"


def version(command: str) -> str:
    """What *command* says of itself, such as ``3.1.1``."""
    line = [command, "--version"]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return said.split()[-1].removeprefix("v").removesuffix("+unknown")


def parse() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", nargs="+", choices=TREES, default=list(TREES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--caches", nargs="+", choices=["warm", "cold"], default=["warm", "cold"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=310.0, help="seconds for one run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the trees are kept")
    parser.add_argument(
        "--also", nargs="+", default=[], metavar="PATH", help=f"other builds of {STOCK}"
    )
    parser.add_argument("--record", action="store_true", help="put the figures into the README")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line names, and show it."""
    arguments = parse()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    caches: list[str] = arguments.caches
    if "cold" in caches and not can_forget_files():
        print("cold caches are left out: only root may empty the kernel's", file=sys.stderr)
        caches = [kind for kind in caches if kind != "cold"]
    shutil.rmtree(folder / "state", ignore_errors=True)
    rows = [start_up(arguments.rounds)]
    for name in arguments.trees:
        prepare(name, folder)
        for kind in caches:
            for mode in arguments.modes:
                rows += side_by_side(name, mode, kind, arguments)
    about = {"measured": f"{datetime.now(UTC):%Y-%m-%d}", **machine(folder)}
    about |= {name: version(tool(name)) for name in (OURS, STOCK)}
    del about[_FILE_SYSTEM]  # each row says its own
    print(markdown(rows, about))
    if arguments.record:
        rows = together(recorded(), rows)
        record("side_by_side", "figures", rows, about, markdown(rows, about))


if __name__ == "__main__":
    main()
