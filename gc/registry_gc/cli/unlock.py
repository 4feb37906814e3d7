"""``registry-gc unlock``: remove a lock whose holder will never come back."""

from __future__ import annotations

import click

from registry_gc.cli.wiring import exit_code_of, registry
from registry_gc.lock import unlock
from registry_gc.progress import Progress


def run_unlock(path: str | None) -> int:
    """Unlock the storage of the config at *path*; returns the exit code."""

    def work() -> int:
        with registry(path, Progress(bars=False)) as (_, storage):
            removed = unlock(storage)
            click.echo(f"{storage.root}: " + ("unlocked" if removed else "there was no lock"))
        return 0

    return exit_code_of(work)
