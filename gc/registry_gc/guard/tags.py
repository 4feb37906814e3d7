"""The guard of a run that deletes what no tag leads to, where the storage does not have the tags.

To it, every image of Harbor's or OpenShift's is untagged. Without ``-m`` no run asks for tags.
"""

from __future__ import annotations

from collections.abc import Callable

from registry_gc.config import Config
from registry_gc.guard import Finding, Verdict


def tags_elsewhere(config: Config) -> Finding | None:
    """Why nothing is to be deleted for want of a tag; None where the storage has the tags."""
    found = config.tags_elsewhere
    if found is None:
        return None
    return Finding(
        "tags-elsewhere",
        f"{config.path}: {found.key} is {found.owner}'s, whose tags are in its database: the"
        " storage does not know them, and -m would delete tagged images; run without -m: when"
        f" {found.owner} itself has deleted manifests, that collects the blobs that are left",
    )


def refused_for(check: Callable[[], Verdict], why: Finding | None) -> Callable[[], Verdict]:
    """*check*, which refuses for *why* whatever it says besides; nothing lifts that."""
    if why is None:
        return check
    return lambda: Verdict("refused", (why, *check().findings))
