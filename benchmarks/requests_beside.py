"""How often a collection asks S3, beside the stock command on the same bucket.

    python benchmarks/requests_beside.py [--repositories 30] [--pushes 18] [--record]

moto's server holds the bucket; a proxy on loopback counts what each command sends: dry runs
first, which change nothing, then one collection of ours. Needs what `make test` installs.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests")]

from registry_drivers.s3 import open_s3  # noqa: E402  # what lies in the tests comes first
from registry_tree import V2, RegistryTree  # noqa: E402
from servers.fault_proxy import FaultProxy, fault_proxy  # noqa: E402
from servers.moto import S3Server, moto  # noqa: E402
from timing import machine, tool  # noqa: E402

BEGIN = "<!-- requests -->\n"
END = "<!-- /requests -->\n"
FIXED = 12


@dataclass(frozen=True, slots=True)
class Row:
    """What one command sent; ``limit`` is None where there is no goal."""

    what: str
    command: str
    requests: int
    limit: int | None = None


def fill(repositories: int, pushes: int) -> dict[str, bytes]:
    """A registry in which tags have moved: six layers an image, half of them shared."""
    files: dict[str, bytes] = {}
    tree = RegistryTree(files.__setitem__)
    dice = random.Random(3)
    base = [b"base %d" % number for number in range(40)]
    for number in range(repositories):
        name = f"team-{number % 5}/app-{number}"
        for push in range(pushes):
            tag = f"v{push}" if push % 3 == 0 else "latest"
            own = [b"%d of %d, %d" % (push, number, part) for part in range(3)]
            layers = [*dice.sample(base, 3), *own]
            tree.image(name, tag, layers=layers, config=b"config %d of %d" % (push, number))
    return files


def pages(files: Iterable[str]) -> int:
    """Pages that it takes to list both halves of a registry once."""
    tops = (f"{V2}/repositories/", f"{V2}/blobs/")
    names = list(files)
    return sum(-(-sum(name.startswith(top) for name in names) // 1000) for top in tops)


def manifests(files: Iterable[str]) -> int:
    """Different manifests."""
    return len({path.split("/")[-2] for path in files if "/_manifests/revisions/" in path})


def configure(folder: Path, server: S3Server, proxy: FaultProxy, bucket: str) -> Path:
    """A config for the registry behind *proxy*, which nobody serves."""
    given = server.parameters(bucket, regionendpoint=proxy.url, secure=False, v4auth=True)
    storage = {"s3": given, "maintenance": {"readonly": {"enabled": True}}}
    document = {"version": 0.1, "storage": storage, "log": {"level": "error"}}
    config = folder / "config.yml"
    config.write_text(json.dumps(document))  # JSON is YAML
    return config


def counted(proxy: FaultProxy, *command: str) -> int:
    """How many requests *command* sends.

    :raises SystemExit: it failed.
    """
    proxy.reset()
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return len(proxy.requests)


def batches(state: Path) -> int:
    """Full batches of the newest run, phase by phase."""
    newest = max(state.glob("**/*.sqlite*"), key=lambda path: path.stat().st_mtime)
    with closing(sqlite3.connect(newest)) as file:
        rows = file.execute("SELECT count(*) FROM deletions GROUP BY phase").fetchall()
    return sum(-(-count // 1000) for (count,) in rows)


def measure(folder: Path, repositories: int, pushes: int) -> tuple[list[Row], dict[str, str]]:
    """Let all commands run, one after the other."""
    files = fill(repositories, pushes)
    with moto(folder) as server, fault_proxy(server.url) as proxy:
        bucket = server.bucket()
        with closing(open_s3(server.parameters(bucket))) as storage, ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda path: storage.write(path, files[path]), files):
                pass
        config = str(configure(folder, server, proxy, bucket))
        state = folder / "state"
        ours = [tool("registry-garbage-collect"), "--state-dir", str(state)]
        stock = ["docker-registry", "garbage-collect"]
        listed, read = pages(files), manifests(files)
        first = int((listed + read) * 1.05) + 2 + FIXED
        again = int(listed * 1.05) + 2 + FIXED
        rows = []
        for mode in ((), ("-m",)):
            name = " ".join(("dry run", *mode))
            cold = counted(proxy, *ours, "--no-cache", "--dry-run", *mode, config)
            rows.append(Row(name, "registry-garbage-collect", cold, first))
            beside = counted(proxy, *stock, "--dry-run", *mode, config)
            rows.append(Row(name, "docker-registry", beside))
        counted(proxy, *ours, "--dry-run", "-m", config)
        known = counted(proxy, *ours, "--dry-run", "-m", config)
        rows.append(Row("dry run -m, again", "registry-garbage-collect", known, again))
        sweep = counted(proxy, *ours, "-m", config) - known
        # Beyond the dry run: the batches, the lock, and a look at it and the guard.
        limit = int(batches(state) * 1.05) + 1 + FIXED
        rows.append(Row("sweep -m", "registry-garbage-collect", sweep, limit))
    about = {"objects": f"{len(files):,}", "manifests": f"{read:,}", "pages": str(listed)}
    return rows, about


def markdown(rows: list[Row], about: dict[str, str]) -> str:
    """The figures as they stand in the README."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()) + ".", ""]
    lines += ["| what | command | requests | at most |", "|---|---|---:|---:|"]
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:,}"
        over = "" if row.limit is None or row.requests <= row.limit else " **(missed)**"
        lines.append(f"| {row.what} | {row.command} | {row.requests:,}{over} | {limit} |")
    return "\n".join(lines) + "\n"


def record(rows: list[Row], about: dict[str, str], text: str) -> None:
    """Put the figures where the next reader looks for them."""
    figures = {"about": about, "rows": [asdict(row) for row in rows]}
    (HERE / "requests_beside.json").write_text(json.dumps(figures, indent=1) + "\n")
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}{text}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    """Count, and show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repositories", type=int, default=30)
    parser.add_argument("--pushes", type=int, default=18)
    parser.add_argument("--record", action="store_true", help="put the figures into the README")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows, about = measure(Path(name), arguments.repositories, arguments.pushes)
        version = subprocess.run(
            ["docker-registry", "--version"], capture_output=True, text=True, check=True
        )
        about = {
            "counted": f"{datetime.now(UTC):%Y-%m-%d}",
            **about,
            "docker-registry": version.stdout.split()[-1],
            "python": machine(Path(name))["python"],
        }
    text = markdown(rows, about)
    print(text)
    if arguments.record:
        record(rows, about, text)


if __name__ == "__main__":
    main()
