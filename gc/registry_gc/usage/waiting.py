"""What waits in quarantine: of no figure of who uses the storage, but of the disk's."""

from __future__ import annotations

import msgspec

from registry_drivers.base import Reader
from registry_gc.quarantine.aside import asides, contents


class Waiting(msgspec.Struct, frozen=True):
    """What one run has set aside.

    ``objects``: those that were moved, with their ``bytes``. ``hidden``: objects that a delete
    marker hides where they were; what their versions come to is not known. ``until``: when
    ``registry-gc purge`` deletes it, in seconds since the epoch; None where nobody knows.
    """

    run: str
    objects: int
    bytes: int
    hidden: int
    until: float | None


def waiting_in(reader: Reader) -> tuple[Waiting, ...]:
    """The quarantines in which something waits, the youngest first; one listing where none is.

    :raises StorageError: one could not be listed.
    """
    found = []
    for aside in asides(reader):
        moved = size = hidden = 0
        for kept in contents(reader, aside):
            marked = sum(one.marked for one in kept)
            hidden += marked
            moved += len(kept) - marked
            size += sum(one.size for one in kept)
        if moved or hidden:
            found.append(Waiting(aside.run, moved, size, hidden, aside.until()))
    return tuple(found)
