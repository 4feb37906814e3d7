"""What the system says is mounted, and which of it is the same folder under another name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
# Mounted when somebody looks into it, and unmounted again.
_SNAPSHOTS = "/.zfs/"


class Mount(NamedTuple):
    """What is mounted somewhere: its path, the device's number and the kind of file system.

    ``root``: which folder of that file system it is; another than ``/`` for a bind mount.
    """

    path: str
    device: int
    kind: str
    root: str = "/"

    def second_name_of(self, others: list[Mount]) -> str:
        """The path of another mount of this folder, or of one that it lies in; empty for none.

        Nobody can tell of NFS: all folders of one file system there have one number and no name.
        """
        if self.kind.startswith("nfs"):
            return ""
        path, root = _slashed(self.path), _slashed(self.root)
        for other in others:
            its_path, its_root = _slashed(other.path), _slashed(other.root)
            if other.device != self.device or not root.startswith(its_root):
                continue
            # Bound to itself, or a volume that is mounted where it lies: that is one name.
            if not path.startswith(its_path) or path[len(its_path) :] != root[len(its_root) :]:
                return other.path
        return ""


def all_mounts() -> list[Mount]:
    """All that is mounted, where the system tells: proc_pid_mountinfo(5)."""
    try:
        text = _MOUNTS.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    kinds: dict[str, str] = {}
    above: dict[str, str] = {}
    found: dict[str, Mount] = {}
    # The kernel escapes spaces and newlines, and nothing else that Python would split at.
    for line in text.split("\n"):
        words, _, more = line.partition(" - ")
        if len(fields := words.split(" ")) > 4:
            number, above[number], device, root, path = fields[:5]
            kinds[number] = more.partition(" ")[0]
            major, _, minor = device.partition(":")
            if not (major.isdecimal() and minor.isdecimal()):
                continue
            path, root = (
                _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 8)), text) for text in (path, root)
            )
            found[number] = Mount(path, os.makedev(int(major), int(minor)), kinds[number], root)
    # What an NFS server has on disks of its own is mounted when somebody comes by, and goes again.
    return [
        mount
        for number, mount in found.items()
        if not (mount.kind.startswith("nfs") and kinds.get(above[number]) == mount.kind)
        and _SNAPSHOTS not in mount.path
    ]


def seen_from(folder: str, mounts: list[Mount]) -> tuple[list[Mount], Mount | None]:
    """What is mounted below *folder*, and *folder* itself as a mount of the disk that it is on.

    Of what was mounted over one another, the last is seen.
    """
    inside: list[Mount] = []
    nearest: Mount | None = None
    for mount in mounts:
        path = _slashed(mount.path)
        if _slashed(folder).startswith(path):
            if nearest is None or len(mount.path) >= len(nearest.path):
                nearest = mount
        elif not path.startswith(_slashed(folder)):
            continue
        # What lies below it, or in its own place, is hidden by it.
        inside = [hidden for hidden in inside if not _slashed(hidden.path).startswith(path)]
        if path.startswith(_slashed(folder)) and path != _slashed(folder):
            inside.append(mount)
    if nearest is not None:
        below = _slashed(folder)[len(_slashed(nearest.path)) :]
        root = f"{_slashed(nearest.root)}{below}".rstrip("/") or "/"
        nearest = nearest._replace(path=folder, root=root)
    return inside, nearest


def _slashed(path: str) -> str:
    return path.rstrip("/") + "/"
