"""How large a registry was when a run last looked at it: a half-mounted tree looks like garbage.

What a run saw is remembered in the state directory, one small file for each storage. That is no
safety of its own but a second look at what nobody would believe: where a listing is whole, what
it does not name cannot be lost by a collection; where half of it is missing, the other half's
blobs look dead.
"""

from __future__ import annotations

import json
import os

import msgspec
import xxhash

from registry_gc.runs.state_dir import replace_json

_FEW = 5
"""So many fewer are always believed. Of three repositories two may well be deleted; that a registry
has lost every second of many without anybody meaning it is what this is against."""


class Seen(msgspec.Struct, frozen=True):
    """How many repositories and tags there were.

    ``missing``: how many linked manifests were not in the store, as far as that was accepted.
    """

    repositories: int
    tags: int
    missing: int = 0

    def lost(self, now: Seen) -> str:
        """What has halved between this and *now*, in words; empty where nothing has."""
        parts = [
            f"{before} {what} have become {after}"
            for what, before, after in (
                ("repositories", self.repositories, now.repositories),
                ("tags", self.tags, now.tags),
            )
            if after * 2 <= before and before - after >= _FEW
        ]
        return " and ".join(parts)


def memory_path(state_dir: str, driver: str, root: str) -> str:
    """Where the size of the registry at *root* is remembered."""
    name = xxhash.xxh3_64_hexdigest(f"{driver}\n{root}".encode("utf-8", "surrogateescape"))
    return os.path.join(state_dir, "seen", f"{name}.json")


NOTHING = Seen(0, 0)
"""Nothing has become less since."""


def remembered(path: str | None) -> tuple[Seen, str]:
    """What the last run saw, nothing where there was none; and a notice where it is unreadable."""
    if path is None:
        return NOTHING, ""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
        missing = int(found.get("missing", 0))
        return Seen(int(found["repositories"]), int(found["tags"]), missing), ""
    except FileNotFoundError:
        return NOTHING, ""
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        # It never lets anything go that another check would keep, so the run goes on without.
        return NOTHING, f"{path}: how large the registry was is not known: {error}"


def remember(path: str, seen: Seen, driver: str, root: str) -> str:
    """Write down *seen*, whole or not at all; returns a notice where that is not possible."""
    document = {"driver": driver, "root": root, **msgspec.structs.asdict(seen)}
    try:
        replace_json(path, document)
    except OSError as error:
        return f"how large the registry is could not be remembered: {error}"
    return ""
