"""Whether a storage is still the disks that it was.

A disk that goes away while it is used leaves its mount point: an empty folder, in which nothing
is damaged and everything is missing. A run takes "missing" for a fact about the registry, so it is
believed only while the folders that everything lies below are the ones that they were.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator

from registry_drivers.errors import NotFound, Replaced, StorageError
from registry_drivers.filesystem_errors import (
    DRIVER,
    MISSING,
    UNSURE,
    dangling,
    is_folder,
    is_link,
    is_there,
    translate,
)
from registry_drivers.filesystem_mounts import Mount, all_mounts, seen_from

_REGISTRY = "docker/registry"
# Folders that operators put on disks of their own, by a mount or by a symbolic link.
_FOLDERS = (
    "docker",
    _REGISTRY,
    f"{_REGISTRY}/v2",
    f"{_REGISTRY}/v2/blobs",
    f"{_REGISTRY}/v2/blobs/sha256",
    f"{_REGISTRY}/v2/repositories",
)
# What belongs to one repository, or to one digest: a second name for it means something else.
_OWNED = re.compile(
    _REGISTRY + r"/v2/(?:blobs/.|repositories/(?:.*/)?_(?:layers|manifests|uploads)(?:/|\Z))", re.S
)
_LISTED = (f"{_REGISTRY}/v2/blobs", f"{_REGISTRY}/v2/repositories")
# These may number a folder anew when they have forgotten it. What is mounted is told by its
# device anyway; the number only tells bind mounts of one disk apart.
_FORGETFUL = ("fuse", "cifs", "smb", "9p", "vboxsf", "virtiofs", "overlay", "aufs")
_MAX_DEVICES = 64
"""More than a registry is spread over; a look asks for each."""

Identity = tuple[int, int]
"""Device and inode; the inode is 0 where it says nothing."""


class Watch:
    """The root of a storage, and what lies on disks of its own below.

    Each folder is known from when it is first seen. Nothing is looked at before it is asked for.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen: dict[str, Identity] = {}
        self._folders: list[str] = []
        self._mounts: list[Mount] = []
        self._mounted: frozenset[str] = frozenset()
        self._forgetful: frozenset[int] = frozenset()
        self._failed: dict[str, OSError] = {}
        self._looked = -math.inf
        self._right: set[tuple[str, int]] = set()

    def look(self) -> None:
        """Return while all folders are those that they were.

        :raises NotFound: the root is not there, or is no folder, and never was.
        :raises AccessDenied: this user may not look at it.
        :raises Replaced: a folder is another now, or is gone.
        :raises StorageError: one cannot be looked at any more.
        """
        if not self._folders:
            self._begin()
        if not self._is_the_root():
            raise Replaced(
                "the root directory was replaced or unmounted while we used it",
                path=self._root,
                driver=DRIVER,
            )
        for folder in self._folders:
            self._look_at(folder)

    def look_closely(self, within: float = 0.0) -> None:
        """As :meth:`look`, before something goes: nothing may have been mounted since either.

        What was not mounted when it was listed looked empty.

        :param within: seconds; what is mounted, which may be a long list, is read no more often.
        """
        self.look()
        now = time.monotonic()
        if now - self._looked < within:
            return
        if within:
            self._looked = now
        for folder in sorted(set(self._mount_points(all_mounts())) - self._mounted):
            raise Replaced(
                f"mounted while we used it, below {self._root}", path=folder, driver=DRIVER
            )

    def passed(self, folder: str) -> None:
        """A listing passes through *folder*, which may lie on a disk that is not known yet.

        :raises StorageError: it lay on one that was mounted when we began, and is not any more;
            or a symbolic link on the way is a second name of what is listed under its own.
        """
        folder = folder.rstrip("/")
        steps = _steps(folder)
        try:
            links = [step for step in steps if is_link(f"{self._root}/{step}")]
        except OSError as error:
            raise translate(error, folder, self._root) from error
        if not links:
            # What is mounted there itself is known from the beginning.
            return
        for link in links:
            self._refuse_second_name(link)
        try:
            device = os.stat(f"{self._root}/{folder}/").st_dev
            self._refuse_unmounted(folder, device)
            if device in {seen for seen, _ in list(self._seen.values())}:
                return
            first = next(step for step in steps if os.stat(f"{self._root}/{step}").st_dev == device)
        except (OSError, StopIteration):
            # Who lists it says what is wrong.
            return
        if len(self._folders) < _MAX_DEVICES and first not in self._folders:
            self._folders.append(first)
            self._look_at(first)

    def _refuse_second_name(self, link: str) -> None:
        """Raise where *link* leads from one repository's or digest's folder into another's.

        What nobody needs under one of the names would go, and with it what is live under the
        other. A link to a whole repository is an alias: all that it holds means the same twice.
        """
        if not _OWNED.match(link):
            return
        real = os.path.realpath(f"{self._root}/{link}")
        for listed in _LISTED:
            if f"{real}/".startswith(os.path.realpath(f"{self._root}/{listed}").rstrip("/") + "/"):
                raise StorageError(
                    f"a symbolic link to {real}, which is listed under that name too: what is dead"
                    " under one name may be live under the other. Replace it by a folder of its"
                    " own, with a copy of what it leads to",
                    path=link,
                    driver=DRIVER,
                )

    def _refuse_second_mounts(self, mounts: list[Mount]) -> None:
        """As :meth:`_refuse_second_name`, for what bind mounts show under a second name."""
        for listed in _LISTED:
            real = os.path.realpath(f"{self._root}/{listed}")
            inside, nearest = seen_from(real, mounts)
            # The tree as it is on its disk, and what else is mounted into it.
            names = [*inside, nearest] if nearest is not None else inside
            for mount in inside:
                below = f"{listed}{mount.path[len(real) :]}"
                others = [name for name in names if name is not mount]
                if _OWNED.match(below) and (other := mount.second_name_of(others)):
                    raise StorageError(
                        f"a mount of what is listed below {other} too: what is dead under one name"
                        " may be live under the other. Unmount it",
                        path=below,
                        driver=DRIVER,
                    )

    def _refuse_unmounted(self, folder: str, device: int) -> None:
        """Raise where a symbolic link leads to what is a mount point no more."""
        real = os.path.realpath(f"{self._root}/{folder}") + "/"
        on = [mount for mount in self._mounts if real.startswith(f"{mount.path.rstrip('/')}/")]
        nearest = max(on, key=lambda mount: len(mount.path), default=None)
        # Some file systems number their parts, so that devices differ where nothing is wrong.
        if nearest is None or nearest.device == device or (nearest.path, device) in self._right:
            return
        if nearest.path not in {mount.path for mount in all_mounts()}:
            raise Replaced(
                f"unmounted while we used it, below {self._root}", path=folder, driver=DRIVER
            )
        self._right.add((nearest.path, device))

    def forget(self, folder: str) -> None:
        """We have removed *folder* ourselves."""
        self._seen.pop(folder, None)

    def missing(self, path: str) -> NotFound:
        """The error for a file, or a folder (with ``/``), that the system says is not there.

        :raises StorageError: as :meth:`look`; or a symbolic link on the way leads nowhere; or it
            is there again, as on a disk that comes and goes.
        """
        self.look()
        folder = path.endswith("/")
        path = path.rstrip("/")
        try:
            back = self._is_back(path, folder)
        except OSError as error:
            raise translate(error, path, self._root) from error
        if back:
            raise StorageError(
                f"was missing a moment ago and is there again, below {self._root}: is its disk"
                " steady, and does nobody write to the registry?",
                path=path,
                driver=DRIVER,
            )
        return NotFound(f"not found below {self._root}", path=path, driver=DRIVER)

    def _is_back(self, path: str, folder: bool) -> bool:
        for step in _steps(path):
            full = f"{self._root}/{step}"
            if not is_there(full):
                return False
            if not is_there(full, links=False):
                raise dangling(step, self._root)
        # Our own files come and go. A file in the place of a folder is not that folder.
        return path.startswith(_FOLDERS[2]) and (not folder or is_folder(full))

    def identity(self, status: os.stat_result) -> Identity:
        """What tells a folder from another that is put in its place."""
        forgetful = status.st_dev in self._forgetful
        return status.st_dev, 0 if forgetful else status.st_ino

    def _begin(self) -> None:
        _root_status(self._root)
        for folder in _FOLDERS:
            # What is mounted when somebody comes by is mounted now.
            try:
                os.stat(f"{self._root}/{folder}/")
            except OSError as error:
                self._note(folder, error)
        mounts = self._mounts = all_mounts()
        self._forgetful = frozenset(
            mount.device for mount in mounts if mount.kind.startswith(_FORGETFUL)
        )
        points = list(self._mount_points(mounts))
        self._refuse_second_mounts(mounts)
        self._mounted = frozenset(points)
        self._folders = list(dict.fromkeys((*_FOLDERS, *points)))

    def _mount_points(self, mounts: list[Mount]) -> Iterator[str]:
        """What of *mounts* lies in the registry, by its path below the root."""
        for base in ("", *_FOLDERS):
            folder = f"{self._root}/{base}"
            if base and not os.path.islink(folder):
                continue
            above = os.path.realpath(folder).rstrip("/") + "/"
            for mount in mounts:
                if mount.path.startswith(above):
                    path = f"{base}/{mount.path.removeprefix(above)}".lstrip("/")
                    # Docker itself mounts much below a folder called docker.
                    if path == "docker" or f"{path}/".startswith(f"{_REGISTRY}/"):
                        yield path

    def _is_the_root(self) -> bool:
        try:
            now = self.identity(_root_status(self._root))
        except NotFound:
            if "" not in self._seen:
                raise
            # It was there: that it is not is nothing about the registry.
            return False
        except StorageError as error:
            if "" in self._seen:
                raise _lost(error) from error
            raise
        return self._seen.setdefault("", now) == now

    def _note(self, folder: str, error: OSError) -> None:
        """A folder that is not known yet fails: what is missing after that may be there."""
        if error.errno in UNSURE:
            self._failed[folder] = error

    def _look_at(self, folder: str) -> None:
        seen = self._seen.get(folder)
        try:
            status = os.stat(f"{self._root}/{folder}/")
        except OSError as error:
            if seen is None:
                if error.errno in MISSING and folder in self._failed:
                    failed = self._failed[folder]
                    raise translate(failed, folder, self._root) from failed
                self._note(folder, error)
                # Not there yet, or closed to this user: said by who needs it.
                return
            if error.errno not in MISSING:
                raise _lost(translate(error, folder, self._root)) from error
        else:
            now = self.identity(status)
            self._failed.pop(folder, None)
            if self._seen.setdefault(folder, now) == now:
                return
        raise Replaced(
            f"replaced or unmounted while we used it, below {self._root}",
            path=folder,
            driver=DRIVER,
        )


def _lost(error: StorageError) -> StorageError:
    """*error*, met at a folder that could be looked at before: what is broken is all of a disk."""
    if type(error) is not StorageError:
        return error
    return Replaced(error.message, path=error.path, driver=error.driver)


def _steps(path: str) -> list[str]:
    """The folders on the way to *path*, and itself."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _root_status(root: str) -> os.stat_result:
    """Raises NotFound for what must never look like an empty registry."""
    advice = "check storage.filesystem.rootdirectory, and that its disk is mounted"
    try:
        return os.stat(f"{root}/")
    except OSError as error:
        if error.errno not in MISSING:
            raise translate(error, root, root) from error
        what = "is not a directory" if os.path.exists(root) else "directory does not exist"
        raise NotFound(f"the root {what}; {advice}", path=root, driver=DRIVER) from error
