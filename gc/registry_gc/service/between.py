"""Keeps other runs of this machine out while a registry is between its stop and its start.

The lock of the storage has to be let go before the start command, which may take long; who got it
then would delete while the registry comes up. So a run with commands holds a ``flock`` on a file in
its state directory from before the first command until after the second. Both processes of
:mod:`registry_gc.service.supervisor` have it, and what else they start does not: it is free when
nobody is left who would start the registry. Runs with another state directory do not see it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgspec
import xxhash

from registry_drivers.parameters import resolved
from registry_gc.machine.processes import Process, ancestors

if TYPE_CHECKING:
    from registry_drivers.factory import StorageSpec

_FOLDER = "away"
# Somebody who only looks has the flock for a moment.
_TRIES, _PAUSE_SECONDS = 5, 0.05
_FILESYSTEM = "filesystem"
_DEFAULT_ROOT = "/var/lib/registry"
# What of a driver's parameters says which place it is, beside the root.
_PLACE = (
    "bucket", "regionendpoint",
    "container", "accountname", "realm", "serviceurl", "connectionstring",
)  # fmt: skip
# What may say it as well: a name in two parts of the world, a prefix that older versions wrote.
_PLACE_TOO = ("region", "legacyrootprefix", "trimlegacyrootprefix")


def place_of(state_dir: str, spec: StorageSpec) -> str:
    """The file for the storage that *spec* names.

    By the words of the config, since no storage may be opened before a process forks. Two
    spellings of one place in a cloud are two: then the storage's own lock is all that keeps runs
    apart. Two registries are never one, or the second of them would not be collected.
    """
    module, root, *place = _words(spec)
    if module == _FILESYSTEM:
        root = _identity(root)
    text = "\n".join([module, *place, root])
    name = xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogateescape"))
    return os.path.join(state_dir, _FOLDER, f"{name}.lock")


def same_place(one: StorageSpec, other: StorageSpec) -> bool:
    """Whether both specs name one storage, by their words; of folders, by what is there too.

    That a folder of the same path is mounted anew is no matter: the registry has that one.
    """
    (module, root, *place), (other_module, other_root, *other_place) = _words(one), _words(other)
    if module != other_module or place != other_place:
        return False
    if any(_text(one.parameters, key) != _text(other.parameters, key) for key in _PLACE_TOO):
        return False
    if root == other_root:
        return True
    return module == _FILESYSTEM and _identity(root) == _identity(other_root)


def _words(spec: StorageSpec) -> tuple[str, ...]:
    """What says which storage it is: the driver's module, the root, and the rest."""
    from registry_drivers.factory import DRIVERS

    module = DRIVERS.get(spec.driver, (spec.driver,))[0]
    root = _text(spec.parameters, "rootdirectory")
    root = (root or _DEFAULT_ROOT) if module == _FILESYSTEM else root.strip("/")
    return (module, root, *(_text(spec.parameters, name) for name in _PLACE))


def _identity(root: str) -> str:
    """The same for each path of one folder; containers have others of the same path."""
    try:
        status = os.stat(root)
    except (OSError, ValueError):
        return os.path.realpath(root)
    return f"{status.st_dev}:{status.st_ino}"


def _text(parameters: Mapping[str, Any], name: str) -> str:
    value = resolved(parameters.get(name))
    return "" if value is None else str(value)


class OutOfUse(Exception):
    """Another run of this machine is between stop and start; the message says which."""


class Between:
    """The flock on *path*, from the constructor to :meth:`close` in all processes that have it.

    The next process that is forked has it too, none that it forks in its turn.

    :raises OutOfUse: another run has it.
    :raises OSError: there is none to be had here.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._inherited = True
        try:
            if _lock(self._fd, path):
                os.ftruncate(self._fd, 0)
                self.mine()
        except BaseException:
            os.close(self._fd)
            raise
        _held.add(self)

    def mine(self) -> None:
        """Write down that this process has it: what it starts is not kept out."""
        os.write(self._fd, msgspec.json.encode(Process.current()) + b"\n")

    def close(self) -> None:
        """This process has it no longer."""
        _held.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def end(self) -> None:
        """No process has it any longer: the registry is back, and other runs may begin."""
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def forked(self) -> None:
        """Called in a process that has just been forked."""
        if self._inherited:
            self._inherited = False
        else:
            self.close()


_held: WeakSet[Between] = WeakSet()


def _after_fork() -> None:
    # A worker that outlives both processes must not keep the next run out.
    for held in list(_held):
        with contextlib.suppress(OSError):
            held.forked()


os.register_at_fork(after_in_child=_after_fork)


def out_of_use(path: str) -> str:
    """Why no run may begin now, going by the file at *path*; empty where one may.

    What a run's own commands start is let in: it is its own turn.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""  # nobody has had it here
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holders = _holders(fd)
        return "" if _is_part_of(holders) else _told(holders)
    except OSError:
        pass  # there is no flock here, and nobody has one
    finally:
        os.close(fd)
    return ""


def _lock(fd: int, path: str) -> bool:
    """Get the flock; false where this run is a part of the one that has it."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            why = out_of_use(path)
            if why:
                raise OutOfUse(why) from None
        time.sleep(_PAUSE_SECONDS)
    if _is_part_of(_holders(fd)):
        return False
    raise OutOfUse(_told(_holders(fd)))


def _is_part_of(holders: list[Process]) -> bool:
    """Whether this process was started by one of *holders*, however far up."""
    return not ancestors().isdisjoint((holder.pid, holder.started) for holder in holders)


def _holders(fd: int) -> list[Process]:
    """Who has said to have it; none where that is just being written."""
    found = []
    for line in os.pread(fd, 1 << 16, 0).splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=Process))
    return found


def _told(holders: list[Process]) -> str:
    who = f"process {holders[0].pid}" if holders else "another run"
    return (
        f"{who} of this machine has the registry out of use, and brings it back when it ends: wait"
        " until then"
    )
