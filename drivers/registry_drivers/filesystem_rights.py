"""Who may read what is put back among the registry's files: whoever may read what lies around it.

The process's umask and user say nothing about that. A unit with ``UMask=0077`` that may not give
files away would put a live image into folders that the registry cannot enter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
from stat import S_IMODE, S_IRGRP, S_IROTH, S_IRUSR, S_IXGRP, S_IXOTH, S_IXUSR

# To enter a folder and to list it; a file needs no more than the reading.
_OWNER = S_IRUSR | S_IXUSR
_GROUP = S_IRGRP | S_IXGRP
_OTHERS = S_IROTH | S_IXOTH


def give_to(path: str, owner: os.stat_result) -> None:
    """Make *path* belong to whom *owner* belongs to, where this user may."""
    # Only root can, and only root needs to; some network file systems let nobody.
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_alike(path: str, model: os.stat_result) -> None:
    """Give *path*, which this user has just made, the mode, owner and group of *model*.

    What cannot be given is left, as long as those who may read *model* may read *path* as well.

    :raises PermissionError: they may not.
    """
    mode = S_IMODE(model.st_mode)
    if S_IMODE(os.stat(path).st_mode) != mode:
        # While it is ours still: root without CAP_FOWNER may change no other's. FAT has no modes.
        with contextlib.suppress(OSError):
            os.chmod(path, mode)
    made = os.stat(path)
    if (made.st_uid, made.st_gid) != (model.st_uid, model.st_gid):
        _give_away(path, model)
        made = os.stat(path)
    if _shuts_out(made, model):
        raise PermissionError(
            errno.EPERM,
            f"cannot be made readable for the registry, as what is around it is: that has the user"
            f" {model.st_uid}, the group {model.st_gid} and the mode {mode:o}, and this would have"
            f" {made.st_uid}, {made.st_gid} and {S_IMODE(made.st_mode):o}; do this as the user who"
            " owns the registry's files, or as root with CAP_CHOWN",
        )


def _give_away(path: str, model: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        os.chown(path, model.st_uid, model.st_gid)
        return
    # To a group of one's own anybody may give it.
    with contextlib.suppress(OSError):
        os.chown(path, -1, model.st_gid)


def _shuts_out(made: os.stat_result, model: os.stat_result) -> bool:
    """Whether somebody may read *model* and not *made*."""
    if model.st_mode & ~made.st_mode & (_OWNER | _GROUP | _OTHERS):
        return True
    of_others = model.st_mode & _OTHERS
    if model.st_gid != made.st_gid and (model.st_mode & _GROUP) >> 3 & ~of_others:
        return True
    if model.st_uid in (made.st_uid, 0):
        # Root may read everything.
        return False
    left = of_others
    if model.st_gid == made.st_gid and _is_member(model.st_uid, model.st_gid):
        left = (model.st_mode & _GROUP) >> 3
    return bool((model.st_mode & _OWNER) >> 6 & ~left)


def _is_member(user: int, group: int) -> bool:
    try:
        known = pwd.getpwuid(user)
    except KeyError:
        # A user of a container, of whose groups this system knows nothing.
        return False
    return group in os.getgrouplist(known.pw_name, known.pw_gid)
