"""``registry-gc unlock``: remove a lock whose holder will never come back."""

from __future__ import annotations

from registry_drivers.base import Storage
from registry_gc.cli.output import Output
from registry_gc.cli.wiring import exit_code_of, note, registry
from registry_gc.lock import LockHeld, to_unlock, unlock
from registry_gc.progress import Progress
from registry_gc.wording.shown import shown


def run_unlock(path: str | None, *, dry_run: bool) -> int:
    """Unlock the storage of the config at *path*, or say what that would do; the exit code."""
    output = Output()

    def work() -> int:
        with registry(path, Progress(bars=False)) as (_, storage):
            if dry_run:
                _look_only(storage, output)
                return output.exit_code(0)
            done = "unlocked" if unlock(storage) else "there was no lock"
            output.lines([shown(f"{storage.root}: {done}")])
        return 0

    try:
        return exit_code_of(work)
    finally:
        output.close()


def _look_only(storage: Storage, output: Output) -> None:
    try:
        found = to_unlock(storage)
    except LockHeld as error:
        note(f"an unlock would be refused: {error}")
        return
    would = "there is no lock"
    if found is not None:
        would = f"would be unlocked: {found} has the lock, refreshed {found.when}"
    output.lines([shown(f"{storage.root}: {would}")])
