"""The lock object: where it lies in a storage, what it says, how old it is.

::

    LockError
    ├── LockHeld        another run has it; nothing was changed
    ├── LockLost        it was ours and is no more: delete nothing further
    └── LockUnsafe      this storage cannot keep two runs apart
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from registry_drivers.base import Reader
from registry_drivers.errors import NoFile, NotFound, TooLarge
from registry_gc.machine.processes import Process

FOLDER = "docker/registry/registry-gc"
LOCK = f"{FOLDER}/lock"
# Twenty refreshes missed: longer than any retry, shorter than an operator's patience.
STALE_SECONDS = 600.0
_MAX_BYTES = 64 << 10


class LockError(Exception):
    """Something is wrong with the lock; the message is one line for the operator."""


class LockLost(LockError):
    """Another run took the lock over, or somebody removed it."""


class LockUnsafe(LockError):
    """The storage lets two runs create the same lock."""


class Holder(Process, frozen=True, kw_only=True):
    """What the lock object says, as JSON. ``since`` and ``time`` are by the storage's clock.

    ``token`` names one acquisition, as a run may be resumed; ``flock`` is whether one is held
    besides.
    """

    run: str
    time: datetime
    since: datetime | None = None
    token: str = ""
    flock: bool = True

    def __str__(self) -> str:
        began = f", since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"process {self.pid} on {self.host} (run {self.run}{began})"

    def encode(self) -> bytes:
        """The lock object's bytes."""
        return msgspec.json.encode(self)


class LockHeld(LockError):
    """Another run has the lock; ``holder`` is None where its object says nothing."""

    def __init__(self, message: str, holder: Holder | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class Found(msgspec.Struct, frozen=True):
    """A lock object: its bytes, who it names, and the seconds since its last refresh.

    ``holder`` is None where the object is damaged.
    """

    data: bytes
    holder: Holder | None
    age: float

    @property
    def stale(self) -> bool:
        """Whether its holder has given no sign of life for too long.

        A time ahead of the storage's clock counts as fresh: somebody may have set that clock
        back under a run that is alive.
        """
        return self.age >= STALE_SECONDS

    @property
    def when(self) -> str:
        """When it was refreshed, for people."""
        if self.age < 0:
            return "at a time ahead of the storage's clock"
        return f"{self.age:.0f} s ago"

    def __str__(self) -> str:
        return str(self.holder) if self.holder else f"somebody unknown ({LOCK} is damaged)"


def look(storage: Reader) -> Found | None:
    """The lock object of *storage*; None where there is none.

    :raises StorageError: it could not be read.
    :raises LockHeld: a folder is in its place.
    """
    try:
        data = _read(storage, LOCK)
        modified = storage.stat(LOCK).modified
    except NoFile as error:
        raise LockHeld(f"{storage.root}: {LOCK} is {error.what}, and no lock: remove it") from error
    except NotFound:
        return None
    holder = _decode(data)
    # The later of the two, as either may have been copied from elsewhere.
    refreshed = max(modified, _seconds(holder.time)) if holder else modified
    return Found(data, holder, storage.now() - refreshed)


def held(storage: Reader, found: Found) -> LockHeld:
    """The error that *found* is in the way."""
    return LockHeld(
        f"{storage.root}: {found} holds the lock, refreshed {found.when}: wait until it ends; if"
        " you know that it is dead: registry-gc unlock",
        found.holder,
    )


def read_holder(storage: Reader, path: str = LOCK) -> Holder | None:
    """Who the object at *path* names; None where it is damaged.

    :raises NotFound: there is none.
    """
    return _decode(_read(storage, path))


def moment(storage: Reader) -> datetime:
    """The storage's own time."""
    return datetime.fromtimestamp(storage.now(), UTC)


def _read(storage: Reader, path: str) -> bytes:
    try:
        return storage.read(path, limit=_MAX_BYTES)
    except TooLarge:
        return b""  # not of our making: as good as damaged


def _decode(data: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
