"""Links as columns, and what is in the files of those that have to be read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import UNASKED, Reader
from registry_drivers.errors import InvalidPath, NoFile, NotFound, StorageError, TooLarge
from registry_gc.digest import InvalidDigest, Keys, check_digest, empty_keys

_RUNS_AT_ONCE = 1 << 12
_MOST = 1024  # bytes of a link
_TRIES = 3
VANISHED = "vanished while it was read"
"""Of a link that was listed, and is not found."""


class Links(msgspec.Struct, frozen=True):
    """Links of one kind, as columns: whose, naming what, of which age.

    ``owner``: int32, the number of a repository or of a tag. ``keys``: ``V32``. ``modified``:
    seconds since the epoch.
    """

    owner: NDArray[np.int32]
    keys: Keys
    modified: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls) -> Links:
        """No links."""
        return cls(np.empty(0, np.int32), empty_keys(), np.empty(0, np.float64))

    @classmethod
    def joined(cls, parts: Sequence[Links]) -> Links:
        """All of *parts*, one after the other."""
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        return cls(
            np.concatenate([part.owner for part in parts]),
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.modified for part in parts]),
        )


class LinkList(msgspec.Struct):
    """Collects links run by run, without an object for each."""

    owners: list[int] = msgspec.field(default_factory=list)
    keys: list[Keys] = msgspec.field(default_factory=list)
    modified: list[NDArray[np.float64]] = msgspec.field(default_factory=list)
    parts: list[Links] = msgspec.field(default_factory=list)

    def add(self, owner: int, keys: Keys, modified: NDArray[np.float64]) -> None:
        """Links of one owner."""
        self.owners.append(owner)
        self.keys.append(keys)
        self.modified.append(modified)
        if len(self.owners) >= _RUNS_AT_ONCE:
            # The history of a tag is a run of one; and each run keeps its whole page.
            self.parts.append(self._packed_runs())
            self.owners, self.keys, self.modified = [], [], []

    def packed(self) -> Links:
        """All of them, in the order in which they came."""
        if self.owners:
            return Links.joined([*self.parts, self._packed_runs()])
        return Links.joined(self.parts)

    def _packed_runs(self) -> Links:
        return Links(
            np.repeat(np.array(self.owners, dtype=np.int32), [len(keys) for keys in self.keys]),
            np.concatenate(self.keys),
            np.concatenate(self.modified),
        )


MORE = "holds more than a digest; no registry reads it"
"""Of a link with a newline, for instance, as an editor or ``echo`` has left it."""


class OddLink(msgspec.Struct, frozen=True):
    """A link that has to be read: its size, or its algorithm, is not the ordinary one.

    ``size``: its bytes, as listed; :data:`registry_drivers.base.UNASKED` where nobody knows.
    """

    path: str
    named: str
    size: int = UNASKED


def read_links(reader: Reader, paths: tuple[str, ...]) -> list[tuple[str, str | None, str]]:
    """Read link files: path, the digest in it or None, and what is wrong.

    A link that has vanished since it was listed is not in the answer.
    """
    return read_odd_links(reader, tuple(OddLink(path, "") for path in paths))


def read_odd_links(reader: Reader, links: tuple[OddLink, ...]) -> list[tuple[str, str | None, str]]:
    """As :func:`read_links`, of links whose sizes are known.

    :raises StorageError: what is read of one is not as long as the storage says that it is.
    """
    found: list[tuple[str, str | None, str]] = []
    for link in links:
        path = link.path
        try:
            data = _whole(reader, path, link.size)
        except NoFile as error:
            found.append((path, None, f"{error.what}, and no link"))
            continue
        except NotFound:
            continue
        except InvalidPath:
            # Object stores may have keys such as "a//b"; no registry would read them either.
            found.append((path, None, "a key that is no path"))
            continue
        except TooLarge:
            found.append((path, None, f"a link of over {_MOST} bytes"))
            continue
        found.append((path, *link_target(data)))
    return found


def _whole(reader: Reader, path: str, size: int) -> bytes:
    """What is in a link of *size* bytes, and all of it.

    An answer that was cut short on the way looks like a link that has rotted; who believes it
    does not know what that link keeps.
    """
    data = reader.read(path, limit=_MOST)
    for _ in range(_TRIES):
        if size in (UNASKED, len(data)):
            return data
        # It may have been written anew since it was listed.
        size = reader.stat(path).size
        data = reader.read(path, limit=_MOST)
    if size == len(data):
        return data
    raise StorageError(
        f"a link of {size} bytes, of which {len(data)} are read", path=path, driver=reader.driver
    )


def link_target(data: bytes) -> tuple[str | None, str]:
    """The digest that a link file holds, if any, and what is wrong with the file.

    A newline at the end, say, takes nothing from what is meant; but no registry reads such a link.
    """
    text = data.decode("utf-8", "replace").strip()
    try:
        digest = check_digest(text)
        return digest, "" if len(data) == len(digest) else MORE
    except InvalidDigest:
        return None, "empty link" if not text else "holds no digest"
