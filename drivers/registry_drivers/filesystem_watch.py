"""Whether a storage is still the disks that it was.

A disk that goes away while it is used leaves its mount point: an empty folder, in which nothing
is damaged and everything is missing. A run takes "missing" for a fact about the registry, so it is
believed only while the folders that everything lies below are the ones that they were.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from registry_drivers.errors import NotFound, StorageError
from registry_drivers.filesystem_errors import DRIVER, MISSING, dangling, translate

# Folders that operators put on disks of their own, by a mount or by a symbolic link.
_FOLDERS = (
    "docker",
    "docker/registry",
    "docker/registry/v2",
    "docker/registry/v2/blobs",
    "docker/registry/v2/blobs/sha256",
    "docker/registry/v2/repositories",
)
_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_POINT = 4  # which word of a line, see proc_pid_mountinfo(5)
_ESCAPED = re.compile(r"\\([0-7]{3})")

_Identity = tuple[int, int]
"""Device and inode."""


class Watch:
    """The root of a storage, and what lies on disks of its own below.

    Each folder is known from when it is first seen. Nothing is looked at before it is asked for.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen: dict[str, _Identity] = {}
        self._folders: tuple[str, ...] | None = None

    def look(self) -> None:
        """Return while all folders are those that they were.

        :raises NotFound: the root is not there, or is no folder, and never was.
        :raises AccessDenied: this user may not look at it.
        :raises StorageError: a folder is another now, or is gone, or cannot be looked at any more.
        """
        if not self._is_the_root():
            raise StorageError(
                "the root directory was replaced or unmounted while we used it",
                path=self._root,
                driver=DRIVER,
            )
        if self._folders is None:
            self._folders = tuple(dict.fromkeys((*_FOLDERS, *_mount_points(self._root))))
        for folder in self._folders:
            self._look_at(folder)

    def _is_the_root(self) -> bool:
        try:
            now = _root_identity(self._root)
        except NotFound:
            if "" not in self._seen:
                raise
            # It was there: that it is not is nothing about the registry.
            return False
        return self._seen.setdefault("", now) == now

    def _look_at(self, folder: str) -> None:
        seen = self._seen.get(folder)
        try:
            status = os.stat(f"{self._root}/{folder}")
        except OSError as error:
            if seen is None:
                # Not there yet, or closed to this user: said by who needs it.
                return
            if error.errno not in MISSING:
                raise translate(error, folder, self._root) from error
        else:
            now = status.st_dev, status.st_ino
            if self._seen.setdefault(folder, now) == now:
                return
        raise StorageError(
            f"replaced or unmounted while we used it, below {self._root}",
            path=folder,
            driver=DRIVER,
        )

    def forget(self, folder: str) -> None:
        """We have removed *folder* ourselves."""
        self._seen.pop(folder, None)

    def missing(self, path: str) -> NotFound:
        """The error for a file or folder that the system says is not there.

        :raises StorageError: as :meth:`look`; or a symbolic link on the way leads nowhere.
        """
        self.look()
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            step = "/".join(parts[:count])
            if not os.path.lexists(f"{self._root}/{step}"):
                break
            if not os.path.exists(f"{self._root}/{step}"):
                raise dangling(step, self._root)
        return NotFound(f"not found below {self._root}", path=path, driver=DRIVER)


def _root_identity(root: str) -> _Identity:
    """Raises NotFound for what must never look like an empty registry."""
    advice = "check storage.filesystem.rootdirectory, and that its disk is mounted"
    try:
        status = os.stat(root)
    except OSError as error:
        if error.errno in MISSING:
            raise NotFound(
                f"the root directory does not exist; {advice}", path=root, driver=DRIVER
            ) from error
        raise translate(error, root, root) from error
    if not os.path.isdir(root):
        raise NotFound(f"the root is not a directory; {advice}", path=root, driver=DRIVER)
    return status.st_dev, status.st_ino


def _mount_points(root: str) -> list[str]:
    """What is mounted below *root* now, where the system tells."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    above = os.path.realpath(root).rstrip("/") + "/"
    places = [_ESCAPED.sub(_character, line.split()[_MOUNT_POINT]) for line in lines]
    return [place.removeprefix(above) for place in places if place.startswith(above)]


def _character(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))
