"""Shows a collection from beginning to end on a small registry that is made for it.

    python benchmarks/demo.py [FOLDER]            (``make run`` does it)

Runs the installed command as anyone would, a dry run and then a collection, and looks at the
folder before and after with its own eyes. Everything lies in FOLDER (``.demo``), made anew.
"""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from demo_registry import make
from registry_tree import V2, blob_path
from timing import tool

HERE = Path(__file__).resolve().parent.parent
FOLDER = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE / ".demo"


@dataclass(frozen=True, slots=True)
class Repository:
    """What one repository holds on disk."""

    name: str
    tags: tuple[str, ...]
    manifests: int
    layer_links: int
    uploads: int


@dataclass(frozen=True, slots=True)
class Census:
    """What the whole registry holds on disk; ``size`` in bytes, uploads included."""

    repositories: tuple[Repository, ...]
    blobs: int
    size: int


def census(root: Path) -> Census:
    """Count what lies in the registry's folder."""
    repositories = root / V2 / "repositories"
    folders = sorted({path.parent for path in repositories.rglob("_*") if path.is_dir()})
    blobs = list((root / V2 / "blobs").rglob("data"))
    uploads = list(repositories.glob("**/_uploads/*/data"))
    return Census(
        repositories=tuple(count(repositories, folder) for folder in folders),
        blobs=len(blobs),
        size=sum(path.stat().st_size for path in [*blobs, *uploads]),
    )


def count(repositories: Path, folder: Path) -> Repository:
    """Count what lies in one repository's folder."""
    tags = folder.glob("_manifests/tags/*/current/link")
    return Repository(
        name=str(folder.relative_to(repositories)),
        tags=tuple(sorted(path.parent.parent.name for path in tags)),
        manifests=len(list(folder.glob("_manifests/revisions/*/*/link"))),
        layer_links=len(list(folder.glob("_layers/*/*/link"))),
        uploads=len(list(folder.glob("_uploads/*"))),
    )


def missing(root: Path) -> list[str]:
    """Walk from every tag to its last layer; returns what is not there."""
    absent: list[str] = []

    def walk(name: str, digest: str) -> None:
        path = root / blob_path(digest)
        if not path.exists():
            absent.append(f"{name}: {digest}")
            return
        data = path.read_bytes()
        if not data.startswith(b'{"schemaVersion"'):
            return
        document = json.loads(data)
        config = [document["config"]] if "config" in document else []
        for child in [*config, *document.get("layers", []), *document.get("manifests", [])]:
            walk(name, child["digest"])

    repositories = root / V2 / "repositories"
    for link in repositories.glob("**/_manifests/tags/*/current/link"):
        walk(str(link.relative_to(repositories)), link.read_text())
    return absent


def size(number: float) -> str:
    """Bytes as people write them."""
    for unit in ("B", "kB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} MB"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print *rows*, the first of them the heading; numbers stand to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [column[-1][:1].isdigit() for column in columns]
    for row in rows:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ]
        print(f"  {'  '.join(cells)}".rstrip())


def heading(text: str) -> None:
    """Print a line that divides."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{text}{plain}\n")


def show(counted: Census) -> None:
    """Print a census."""
    rows = [("repository", "manifests", "layer links", "uploads", "tags")]
    for one in counted.repositories:
        # A signature's tag is as long as a digest, and nobody reads its middle.
        tags = [tag if len(tag) < 25 else f"{tag[:13]}…{tag[-8:]}" for tag in one.tags]
        counts = (str(one.manifests), str(one.layer_links), str(one.uploads))
        rows.append((one.name, *counts, ", ".join(tags) or "(none)"))
    table(rows)
    print(f"\n  {counted.blobs} blobs; blobs and uploads take {size(counted.size)}")


def run(*arguments: str) -> str:
    """Show the command and run it."""
    shown = " ".join(part.replace(f"{HERE}/", "") for part in arguments)
    print(f"  $ registry-garbage-collect {shown}\n", flush=True)
    return run_quietly(*arguments)


def run_quietly(*arguments: str) -> str:
    """Run the installed command and return its stdout; its progress goes to the terminal."""
    line = [tool("registry-garbage-collect"), "--state-dir", str(FOLDER / "state"), *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout)
        raise SystemExit(f"registry-garbage-collect ended with code {done.returncode}")
    return done.stdout


def excerpt(text: str, first: int = 12) -> None:
    """Print how a long output begins, digests cut short, and the summary that it ends with."""
    text = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1…", text)
    body, _, summary = text.rstrip("\n").rpartition("\n\n")
    lines = body.splitlines()
    more = [f"… {len(lines) - first} more lines …"] if len(lines) > first else []
    for line in [*lines[:first], *more, "", *summary.splitlines()]:
        print(f"    {line}".rstrip())


def went(run_file: str, words: Mapping[str, str]) -> None:
    """Print what a run deleted, and why, as its run file has it."""
    query = (
        "SELECT kind, reason, count(*), sum(size) FROM deletions WHERE state = 'deleted' "
        "GROUP BY phase, kind, reason ORDER BY phase, reason"
    )
    with closing(sqlite3.connect(run_file)) as connection:
        rows = [("what", "files", "bytes", "why")]
        for kind, reason, files, freed in connection.execute(query):
            rows.append((kind, str(files), size(freed), reason))
        revisions = connection.execute(
            "SELECT repository, digest FROM deletions WHERE kind = 'revision'"
        ).fetchall()
    table(rows)
    print("\n  The manifests that went:\n")
    by_repository(revisions, words)


def by_repository(revisions: Iterable[tuple[str, str]], words: Mapping[str, str]) -> None:
    """Print what manifests were, a line for each repository."""
    names: dict[str, list[str]] = {}
    for repository, digest in revisions:
        names.setdefault(repository, []).append(words[digest])
    table([(name, ", ".join(sorted(names[name]))) for name in sorted(names)])


def untagged(root: Path) -> Iterator[tuple[str, str]]:
    """The manifests on disk that no tag of their repository names."""
    repositories = root / V2 / "repositories"
    for link in repositories.glob("**/_manifests/revisions/*/*/link"):
        folder, digest = link.parents[4], link.read_text()
        tags = folder.glob("_manifests/tags/*/current/link")
        if digest not in {tag.read_text() for tag in tags}:
            yield str(folder.relative_to(repositories)), digest


STOPPED = "--registry-stopped"
"""No registry serves the demo's storage; without the word, a note says that nobody has answered."""


def main() -> None:
    """Make the registry, collect it, and show each step."""
    config, words = make(FOLDER)
    root = FOLDER / "registry"

    heading("Before: a demo registry, made in .demo/registry")
    before = census(root)
    show(before)

    heading("A dry run: what would go? It deletes nothing.")
    excerpt(run("--dry-run", "-m", STOPPED, str(config)))
    if census(root) != before:
        raise SystemExit("the dry run changed something")

    heading("The collection: -m also takes manifests that no tag reaches")
    document = json.loads(run("-m", STOPPED, "--output", "json", str(config)))
    went(document["run_file"], words)

    heading("After")
    after = census(root)
    show(after)
    print(f"\n  {size(before.size - after.size)} of {size(before.size)} are free again.")
    absent = missing(root)
    if absent:
        raise SystemExit("gone although a tag needs it: " + ", ".join(absent))
    print(
        "\n  Still there though no tag names them, as children of an index or by their subject:\n"
    )
    by_repository(untagged(root), words)
    print("\n  Every tag still has all of its manifests, configs and layers.")

    again = json.loads(run_quietly("--dry-run", "-m", STOPPED, "--output", "json", str(config)))
    if again["blobs"]["eligible"] or again["manifests"]["eligible"]:
        raise SystemExit("a second run would delete more")
    print("  A second run finds nothing more to delete.")
    print("\nOn your own registry (a dry run only):")
    print("  make run CONFIG=/etc/docker/registry/config.yml")


if __name__ == "__main__":
    main()
