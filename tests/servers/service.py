"""A real registry that commands stop, start and make read-only, as an operator's scripts do.

It is no child of the test's: whoever runs the scripts starts and ends it. Its process ID is in a
file, by which :meth:`Service.over` ends what is left at the end of a test.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from real import Layout, RealRegistry, program
from servers.process import answers

_SCRIPT = """#!/bin/sh
echo "$0" | sed 's,.*/,,' >>{folder}/calls
up() {{ [ -s {folder}/pid ] && readlink "/proc/$(cat {folder}/pid)/exe" >/dev/null; }}
stop() {{
    if up; then kill "$(cat {folder}/pid)"; fi
    while up; do sleep 0.02; done
}}
listens() {{
    : >{folder}/log
    {registry} serve {config} >>{folder}/log 2>&1 &
    echo $! >{folder}/pid
    until grep -q 'listening on' {folder}/log; do up || return 1; sleep 0.02; done
}}
# One that ends is not up when its memory is gone, which is before its port is free.
start() {{
    tries=0
    until up || listens; do
        tries=$((tries + 1))
        if [ $tries = 100 ] || ! grep -q 'address already in use' {folder}/log; then
            cat {folder}/log >&2
            exit 1
        fi
        sleep 0.02
    done
}}
switch() {{ sed -i "/readonly/,/enabled/s/enabled: .*/enabled: $1/" {config}; }}
echo "said by $(basename "$0")"
{body}
"""
SCRIPTS = {
    "stop": "stop",
    "start": "start",
    "fail": "exit 3",
    "readonly": "switch true; stop; start",
    "readwrite": "switch false; stop; start",
}


_TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >>{folder}/asked
for word; do verb=$word; case $word in stop|start|restart) break; esac; done
case $verb in
    restart) {folder}/bin/stop && exec {folder}/bin/start;;
    *) exec {folder}/bin/$verb;;
esac
"""


class Service:
    """Scripts named in :data:`SCRIPTS`, in *folder*/bin, and the registry that they drive."""

    def __init__(self, folder: Path, registry: RealRegistry | None = None) -> None:
        self.folder = folder
        self.registry = registry or RealRegistry(folder)
        (folder / "bin").mkdir()
        for name, body in SCRIPTS.items():
            self.script(name, body)

    def script(self, name: str, body: str) -> str:
        """Write a script; returns its path."""
        path = self.folder / "bin" / name
        path.write_text(
            _SCRIPT.format(
                folder=self.folder,
                registry=program("docker-registry"),
                config=self.registry.config,
                body=body,
            )
        )
        path.chmod(0o755)
        return str(path)

    def path(self, name: str) -> str:
        """The path of a script."""
        return str(self.folder / "bin" / name)

    def tools(self, *names: str) -> None:
        """Write programs that stop and start the registry as they are told, and our command."""
        for name in names:
            path = self.folder / "bin" / name
            path.write_text(_TOOL.format(folder=self.folder))
            path.chmod(0o755)
        command = self.folder / "bin" / "registry-garbage-collect"
        command.write_text(
            f"#!{sys.executable}\n"
            "from registry_gc.cli.main import registry_garbage_collect\n"
            "registry_garbage_collect()\n"
        )
        command.chmod(0o755)

    def asked(self) -> list[str]:
        """What the tools have been asked, in order; the test's folder is left out of it."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [line.replace(f"{self.folder}/", "") for line in lines]

    def calls(self) -> list[str]:
        """Which scripts have been run, in order."""
        file = self.folder / "calls"
        return file.read_text().split() if file.exists() else []

    @property
    def up(self) -> bool:
        """Whether the registry answers."""
        return answers(self.registry.port)

    def fill(self, layouts: Path) -> None:
        """Push an image that stays and one that goes, with the registry up."""
        layout = Layout(layouts)
        layout.name("stays", layout.image(["base", "stays"]))
        layout.name("goes", layout.image(["base", "goes"]))
        self.registry.push(layout.folder, "stays", "a:stays")
        self.registry.push(layout.folder, "goes", "a:goes")
        self.registry.delete_manifest("a", "goes")

    @contextmanager
    def over(self) -> Iterator[Service]:
        """End the registry at the end, whoever started it."""
        try:
            yield self
        finally:
            with suppress(ProcessLookupError, FileNotFoundError, ValueError):
                number = int((self.folder / "pid").read_text())
                # A script has ended it, as a rule; its number may be another's by now.
                if os.fsencode(self.folder) in Path(f"/proc/{number}/cmdline").read_bytes():
                    os.kill(number, signal.SIGKILL)
