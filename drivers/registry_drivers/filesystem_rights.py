"""Who may read what is put back among the registry's files: whoever may read what lies around it.

The process's umask and user say nothing about that. A unit with ``UMask=0077`` that may not give
files away would put a live image into folders that the registry cannot enter. Who is let in by an
access control list (POSIX ACL, ``setfacl``) has no part in the mode at all: its bits of the group
are then the most that any list may give.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import struct
from collections.abc import Iterator
from stat import S_IMODE, S_IRGRP, S_IROTH, S_IRUSR, S_ISDIR, S_IXGRP, S_IXOTH, S_IXUSR
from typing import NamedTuple

# To enter a folder and to list it; a file needs no more than the reading.
_OWNER = S_IRUSR | S_IXUSR
_GROUP = S_IRGRP | S_IXGRP
_OTHERS = S_IROTH | S_IXOTH
# Who may enter or read, and what is to be made in a folder inherits; linux/posix_acl_xattr.h.
_ACCESS = "system.posix_acl_access"
_DEFAULT = "system.posix_acl_default"
_HEAD = 4
_RULE = struct.Struct("<HHI")
_USER, _OWN_GROUP, _MASK = 0x02, 0x04, 0x10
# What is said where there is no list, by file systems that know none too.
_NO_LIST = frozenset({errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class _Rights(NamedTuple):
    """What says who may read a file: its status, its list, and what a folder hands on."""

    status: os.stat_result
    access: bytes = b""
    default: bytes = b""


def give_to(path: str, owner: os.stat_result) -> None:
    """Make *path* belong to whom *owner* belongs to, where this user may."""
    # Only root can, and only root needs to; some network file systems let nobody.
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_alike(path: str, model: str) -> None:
    """Give *path*, which this user has just made, the mode, owner, group and ACLs of *model*.

    What cannot be given is left, as long as those who may read *model* may read *path* as well.

    :raises PermissionError: they may not.
    """
    wanted = _rights(model)
    mode = S_IMODE(wanted.status.st_mode)
    # While it is ours still: root without CAP_FOWNER may change no other's. FAT has no modes.
    _give_lists(path, wanted)
    if S_IMODE(os.stat(path).st_mode) != mode:
        with contextlib.suppress(OSError):
            os.chmod(path, mode)
    made = os.stat(path)
    if (made.st_uid, made.st_gid) != (wanted.status.st_uid, wanted.status.st_gid):
        _give_away(path, wanted.status)
    given = _rights(path)
    if _shuts_out(given, wanted):
        raise PermissionError(
            errno.EPERM,
            "cannot be made readable for the registry, as what is around it is: that has"
            f" {_described(wanted)}, and this would have {_described(given)}; do this as the user"
            " who owns the registry's files, or as root with CAP_CHOWN",
        )


def _described(rights: _Rights) -> str:
    status = rights.status
    listed = " and an ACL" if rights.access or rights.default else ""
    return (
        f"the user {status.st_uid}, the group {status.st_gid} and the mode"
        f" {S_IMODE(status.st_mode):o}{listed}"
    )


def _rights(path: str) -> _Rights:
    status = os.stat(path)
    # Only a folder hands anything on.
    default = _list(path, _DEFAULT) if S_ISDIR(status.st_mode) else b""
    return _Rights(status, _list(path, _ACCESS), default)


def _list(path: str, name: str) -> bytes:
    """The list of *path* as the kernel has it; empty where it has none."""
    if not hasattr(os, "getxattr"):
        return b""
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in _NO_LIST:
            return b""
        raise


def _give_lists(path: str, wanted: _Rights) -> None:
    has = _rights(path)
    for name, given, there in (
        (_DEFAULT, wanted.default, has.default),
        (_ACCESS, wanted.access, has.access),
    ):
        # What could not be given is seen, and judged, afterwards.
        with contextlib.suppress(OSError):
            if given and given != there:
                os.setxattr(path, name, given)
            elif there and not given:
                # Inherited: the mode would not mean what it means around it.
                os.removexattr(path, name)


def _give_away(path: str, model: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        os.chown(path, model.st_uid, model.st_gid)
        return
    # To a group of one's own anybody may give it.
    with contextlib.suppress(OSError):
        os.chown(path, -1, model.st_gid)


def _shuts_out(given: _Rights, wanted: _Rights) -> bool:
    """Whether somebody may read what has the rights *wanted*, and not what has those *given*."""
    if (given.access, given.default) != (wanted.access, wanted.default):
        return True
    made, model = given.status, wanted.status
    if model.st_mode & ~made.st_mode & (_OWNER | _GROUP | _OTHERS):
        return True
    of_others = model.st_mode & _OTHERS
    of_group = _of_group(wanted)
    if model.st_gid != made.st_gid and of_group & ~of_others:
        return True
    if model.st_uid in (made.st_uid, 0):
        # Root may read everything.
        return False
    left = of_others
    if wanted.access:
        left = _of_user(wanted.access, model.st_uid)
    elif model.st_gid == made.st_gid and _is_member(model.st_uid, model.st_gid):
        left = of_group
    return bool((model.st_mode & _OWNER) >> 6 & ~left)


def _rules(access: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, rights and number of each entry of a list."""
    return _RULE.iter_unpack(access[_HEAD:])


def _of_group(rights: _Rights) -> int:
    """What the group that a file belongs to may do, as others' bits."""
    of_mode = (rights.status.st_mode & _GROUP) >> 3
    # Under a list, these bits of the mode are its mask.
    return next(
        (of_mode & may for tag, may, _ in _rules(rights.access) if tag == _OWN_GROUP), of_mode
    )


def _of_user(access: bytes, user: int) -> int:
    """What *access* lets *user* do by name, as others' bits; that of groups is not counted."""
    rules = list(_rules(access))
    mask = next((may for tag, may, _ in rules if tag == _MASK), _OTHERS)
    return next((may & mask for tag, may, who in rules if (tag, who) == (_USER, user)), 0)


def _is_member(user: int, group: int) -> bool:
    try:
        known = pwd.getpwuid(user)
    except KeyError:
        # A user of a container, of whose groups this system knows nothing.
        return False
    return group in os.getgrouplist(known.pw_name, known.pw_gid)
