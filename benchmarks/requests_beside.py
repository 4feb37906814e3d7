"""How often a collection asks an object store; for S3 beside the stock command on the same bucket.

    python benchmarks/requests_beside.py [--stores s3 gcs azure] [--alone] [--record]

moto's server, fake-gcs-server and Azurite hold the registry; a proxy on loopback counts what each
command sends: dry runs first, which change nothing, then one collection of ours. Needs what
`make test` installs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

from registry_tree import V2, RegistryTree  # noqa: E402  # what lies in the tests comes first
from servers.fault_proxy import FaultProxy  # noqa: E402
from stores import Place, Servers, proxied, store  # noqa: E402
from timing import machine, record, tool  # noqa: E402

OURS, STOCK = "registry-garbage-collect", "docker-registry"
FIXED = 12
LOOK = 3
"""Requests of a look at lock and guard, the lock's refresh among them."""
PAGE = {"s3": 1000, "gcs": 1000, "azure": 5000}
BATCH = {"s3": 1000, "gcs": 100, "azure": 256}


@dataclass(frozen=True, slots=True)
class Row:
    """What one command sent; ``limit`` is None where there is no goal."""

    store: str
    what: str
    command: str
    requests: int
    limit: int | None = None


def fill(repositories: int, pushes: int) -> dict[str, bytes]:
    """A registry in which tags have moved: six layers an image, four of them shared."""
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    dice = random.Random(3)
    base = [b"base %d" % number for number in range(40)]
    for at in range(pushes):
        push, number = divmod(at, repositories)
        tag = f"v{push}" if push % 3 == 0 else "latest"
        own = [b"%d of %d, %d" % (push, number, part) for part in range(2)]
        layers = [*dice.sample(base, 4), *own]
        config = b"config %d of %d" % (push, number)
        tree.image(f"team-{number % 5}/app-{number}", tag, layers=layers, config=config)
    return files


def pages(files: Iterable[str], size: int) -> int:
    """Pages of *size* keys that it takes to list both halves of a registry once."""
    tops = (f"{V2}/repositories/", f"{V2}/blobs/")
    names = list(files)
    return sum(-(-sum(name.startswith(top) for name in names) // size) for top in tops)


def manifests(files: Iterable[str]) -> int:
    """Different manifests."""
    return len({path.split("/")[-2] for path in files if "/_manifests/revisions/" in path})


def counted(proxy: FaultProxy, environment: Mapping[str, str], *command: str) -> int:
    """How many requests *command* sends.

    :raises SystemExit: it failed.
    """
    proxy.reset()
    # Debian's registry panics while that is set.
    inherited = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**inherited, **environment}
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return len(proxy.requests)


def batches(state: Path, size: int) -> int:
    """Full batches of the newest run, phase by phase."""
    newest = max(state.glob("**/*.sqlite*"), key=lambda path: path.stat().st_mtime)
    with closing(sqlite3.connect(newest)) as file:
        rows = file.execute("SELECT count(*) FROM deletions GROUP BY phase").fetchall()
    return sum(-(-count // size) for (count,) in rows)


def measure(
    folder: Path, kind: str, direct: Place, files: dict[str, bytes], *, beside: bool
) -> list[Row]:
    """Let all commands run on one store, one after the other."""
    store(direct, files)
    listed, read = pages(files, PAGE[kind]), manifests(files)
    # Two ranges, as neither half of the registry is longer than ten pages.
    first = int((listed + read) * 1.05) + 2 + FIXED
    again = int(listed * 1.05) + 2 + FIXED
    rows: list[Row] = []
    with proxied(direct) as (place, proxy):
        # The stock command wants to be told of both.
        more = {"secure": False, "v4auth": True} if kind == "s3" else {}
        config = str(place.with_parameters(**more).config(folder))
        state = folder / "state"
        ours = [tool(OURS), "--state-dir", str(state)]

        def add(what: str, command: str, limit: int | None, *arguments: str) -> int:
            count = counted(proxy, place.environment, *arguments, config)
            rows.append(Row(kind, what, command, count, limit))
            return count

        for mode in ((), ("-m",)):
            name = " ".join(("dry run", *mode))
            add(name, OURS, first, *ours, "--no-cache", "--dry-run", *mode)
            if beside and kind == "s3":
                add(name, STOCK, None, STOCK, "garbage-collect", "--dry-run", *mode)
        counted(proxy, place.environment, *ours, "--dry-run", "-m", config)
        known = add("dry run -m, again", OURS, again, *ours, "--dry-run", "-m")
        began = time.monotonic()
        sweep = counted(proxy, place.environment, *ours, "-m", config) - known
        # Beyond the dry run: the batches, the lock, and a look at it and the guard each ten
        # seconds, which on an emulator are many.
        looks = int(time.monotonic() - began) // 10 * LOOK
        limit = int(batches(state, BATCH[kind]) * 1.05) + 1 + FIXED + looks
        rows.append(Row(kind, "sweep -m", OURS, sweep, limit))
    return rows


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """The figures as they stand in the README."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()) + ".", ""]
    lines += ["| store | what | command | requests | at most |", "|---|---|---|---:|---:|"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:,}"
        over = "" if row.limit is None or row.requests <= row.limit else " **(missed)**"
        lines.append(
            f"| {row.store} | {row.what} | {row.command} | {row.requests:,}{over} | {limit} |"
        )
    return "\n".join(lines) + "\n"


def together(rows: Sequence[Row]) -> list[Row]:
    """*rows*, and what stands in requests_beside.json of other stores and commands."""
    recorded = json.loads(Path(__file__).with_name("requests_beside.json").read_text())["rows"]
    fresh = {(row.store, row.what, row.command): row for row in rows}
    found = [
        fresh.pop((row.store, row.what, row.command), row)
        for row in (Row(**values) for values in recorded)
    ]
    return found + list(fresh.values())


def main() -> None:
    """Count, and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", nargs="+", choices=list(PAGE), default=list(PAGE))
    parser.add_argument("--repositories", type=int, default=35)
    parser.add_argument("--pushes", type=int, default=526, help="of all repositories together")
    parser.add_argument(
        "--alone", action="store_true", help="without the stock command, which takes half an hour"
    )
    parser.add_argument("--record", action="store_true", help="put the figures into the README")
    arguments = parser.parse_args()
    files = fill(arguments.repositories, arguments.pushes)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:

        def folder(of: str) -> Path:
            made = Path(name, of)
            made.mkdir()
            return made

        servers = Servers(stack, folder)
        for kind in arguments.stores:
            rows += measure(
                folder(f"run-{kind}"), kind, servers.place(kind), files, beside=not arguments.alone
            )
        version = subprocess.run([STOCK, "--version"], capture_output=True, text=True, check=True)
        about = {
            "counted": f"{datetime.now(UTC):%Y-%m-%d}",
            "objects": f"{len(files):,}",
            "manifests": str(manifests(files)),
            "pages of 1,000": str(pages(files, 1000)),
            "docker-registry": version.stdout.split()[-1],
            "python": machine(Path(name))["python"],
        }
    print(markdown(rows, about))
    if arguments.record:
        rows = together(rows)
        record("requests_beside", "requests", rows, about, markdown(rows, about))


if __name__ == "__main__":
    main()
