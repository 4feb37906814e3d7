"""What the options of a command ask to be kept and to go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import click

from registry_gc.config import Config
from registry_gc.policy import GRACE_IN_USE, Policy
from registry_gc.progress import Progress


def policy_of(config: Config, options: Mapping[str, Any]) -> Policy:
    """What *options* say of a collection, and where they are silent the registry's own config.

    :raises UsageError: two options do not go together; the message says which, and why.
    """
    if not options.get("sealed"):
        _check_quarantine(options)
    return Policy(
        delete_untagged=options["delete_untagged"],
        grace=max(options["grace"], GRACE_IN_USE if options["allow_writable"] else 0.0),
        **upload_ages(config, options),
        max_delete=options["max_delete"],
        allow_empty=options["allow_empty"],
        accept_shrink=options["accept_shrink"],
        keep_empty_repositories=options["keep_empty_repositories"],
        purge_versions=options["purge_versions"],
        quarantine=options["quarantine"],
        allow_writable=options["allow_writable"],
        releases=tuple(options["releases"]),
    )


class UploadAges(TypedDict):
    """What of a policy says which uploads go."""

    upload_age: float | None
    upload_without_start: bool


def upload_ages(config: Config, options: Mapping[str, Any]) -> UploadAges:
    """Which uploads go: by ``--upload-age``, else by the config's ``uploadpurging``."""
    asked = options["upload_age"]
    purging = config.upload_purging
    by_config = purging.age_seconds if purging.enabled else None
    return {
        "upload_age": by_config if asked is None else asked,
        "upload_without_start": asked is not None,
    }


def _check_quarantine(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be meant."""
    seconds = options["quarantine"]
    if options["allow_writable"] and (seconds is None or seconds < GRACE_IN_USE):
        raise click.UsageError(
            "--allow-writable needs a --quarantine of at least 24h: a push may need what this run "
            "takes for dead, and then it has to be there to come back"
        )
    if seconds is not None and options["purge_versions"]:
        raise click.UsageError(
            "--quarantine keeps what --purge-versions deletes for good: give one of them"
        )


def caution(config: Config, progress: Progress) -> None:
    """Say what a run cannot see to while a registry is writing."""
    cache = config.blob_descriptor_cache
    if cache is not None:
        progress.notice(
            f"storage.cache.blobdescriptor is {cache!r}: the registry goes on telling pushes that "
            "what is in quarantine now is there. The next run or purge brings such blobs back; "
            "until then their images cannot be pulled. Restart the registry, or run again soon"
        )
