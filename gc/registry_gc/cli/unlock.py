"""``registry-gc unlock``: remove a lock whose holder will never come back."""

from __future__ import annotations

import os

import click

from registry_drivers.errors import DriverConfigError, StorageError
from registry_drivers.factory import open_storage
from registry_gc.config import load_config
from registry_gc.config_file import ConfigError
from registry_gc.lock import LockError, unlock


def run_unlock(path: str | None) -> int:
    """Unlock the storage of the config at *path*; returns the exit code."""
    try:
        config = load_config(path, os.environ)
        storage = open_storage(config.storage)
    except (ConfigError, DriverConfigError) as error:
        click.echo(f"error: {error}", err=True)
        return 2
    try:
        removed = unlock(storage)
    except LockError as error:
        click.echo(f"error: {error}", err=True)
        return 4
    except StorageError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    finally:
        storage.close()
    click.echo(f"{storage.root}: " + ("unlocked" if removed else "there was no lock"))
    return 0
