"""The command as scripts, cron and people call it: in this process, or as one of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from registry_tree import blob_path, folder_sink, layer_link_path, sha256
from running import Disk, Result, run, write_config

MAIN = "from registry_gc.cli.main import registry_garbage_collect as main; main()"
GROUP = "from registry_gc.cli.main import registry_gc; registry_gc()"


def go(disk: Disk, *arguments: str | Path, config: Path | None = None) -> Result:
    """Run on *disk* in this process."""
    return run(*arguments, config or write_config(disk.root), state=disk.folder / "state")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    places = os.pathsep.join(place for place in sys.path if place)
    return {**os.environ, "PYTHONPATH": places, **(more or {})}


def call(
    *arguments: str | Path,
    redirect: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    main: str = MAIN,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command as a process of its own; *redirect* is the shell's."""
    words = shlex.join([sys.executable, "-c", main, *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", f"exec {words} {redirect}"],
        env=environment(env),
        cwd=cwd,
        capture_output=True,
        check=False,
    )


def own_folder_is_gone(disk: Disk) -> bool:
    return not disk.has("docker/registry/registry-gc")


def many_orphans(disk: Disk) -> Path:
    """So many that the lines about them do not fit into a pipe."""
    sink = folder_sink(disk.root)
    for number in range(700):
        digest = sha256(b"%d" % number)
        sink(blob_path(digest), b"")
        sink(layer_link_path("a", digest), digest.encode())
    disk.age()
    return write_config(disk.root)
