"""Manifests with all that they say of their parts, each read once.

For those who look whether everything is there; a collection keeps only what it needs of a
manifest, in columns (:mod:`registry_gc.references`).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from registry_drivers.base import Reader
from registry_drivers.errors import NoFile, NotFound, TooLarge
from registry_gc.catalog import Catalog
from registry_gc.digest import Names
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import blob_path
from registry_gc.manifest_reader import Wanted
from registry_gc.manifests import SIZE_LIMIT
from registry_gc.verify.descriptors import Indescribable, Role, describe

_MANIFESTS_A_UNIT = 256
_ROLES = {int(role): role for role in Role}  # asking the class takes six times as long


class Manifest(NamedTuple):
    """One manifest as it is stored; its parts as columns.

    ``targets``: 32-byte keys, one after the other. ``roles``: a byte of :class:`Role` for each.
    ``sizes``: what it states of each, in bytes. ``subject``: a key, or empty. ``reason``: why it
    cannot be read, empty when it can. ``stored``: whether there are any bytes at all.
    """

    targets: bytes = b""
    roles: bytes = b""
    sizes: array[int] = array("q")
    subject: bytes = b""
    schema_1: bool = False
    reason: str = ""
    stored: bool = True

    def parts(self) -> Iterator[tuple[Role, bytes]]:
        """Role and key of each part."""
        for at, role in enumerate(self.roles):
            yield _ROLES[role], self.targets[32 * at : 32 * at + 32]


Described = list[tuple[bytes, Manifest]]


def read_described(reader: Reader, wanted: Wanted) -> tuple[Described, dict[bytes, str]]:
    """Read some manifests; a work unit. Also returns the texts of keys that are not sha256.

    :raises StorageError: one could not be read for another reason than that it is not there.
    """
    names = Names()
    found: Described = []
    for at, (digest, stored) in enumerate(wanted):
        found.append((wanted.keys[32 * at : 32 * at + 32], _read(reader, digest, stored, names)))
    return found, names.others


def _read(reader: Reader, digest: str, stored: Iterable[str], names: Names) -> Manifest:
    for name in stored:
        try:
            data = reader.read(blob_path(name), limit=SIZE_LIMIT)
        except NoFile as error:
            return Manifest(reason=f"its data is {error.what}")
        except NotFound:
            continue
        except TooLarge:
            return Manifest(reason="too large for a manifest")
        algorithm, _, encoded = digest.partition(":")
        try:
            if hashlib.new(algorithm, data).hexdigest() != encoded:
                return Manifest(reason="its content has another digest")
            described = describe(data)
        except Indescribable as error:
            return Manifest(reason=f"not a manifest: {error}")
        except (ValueError, TypeError):
            return Manifest(reason=f"no way to check a digest of the algorithm {algorithm}")
        return Manifest(
            targets=b"".join(names.key(part.digest) for part in described.parts),
            roles=bytes(part.role for part in described.parts),
            sizes=array("q", [part.size for part in described.parts]),
            subject=b"" if described.subject is None else names.key(described.subject),
            schema_1=described.schema_1,
        )
    return Manifest(reason="not in the store", stored=False)


class Library:
    """The manifests read so far, by key; each is read once."""

    def __init__(self, engine: Engine, catalog: Catalog, observer: Observer) -> None:
        self._engine = engine
        self._catalog = catalog
        self._observer = observer
        self._known: dict[bytes, Manifest] = {}

    def __getitem__(self, key: bytes) -> Manifest:
        return self._known[key]

    @property
    def names(self) -> Names:
        """The texts of the keys that are not sha256 digests themselves."""
        return self._catalog.names

    def __len__(self) -> int:
        return len(self._known)

    def load(self, keys: Iterable[bytes]) -> None:
        """Read those of *keys* that are not known yet.

        :raises StorageError: as :func:`read_described`.
        """
        missing = sorted(set(keys) - self._known.keys())
        if not missing:
            return
        self._observer.phase("reading manifests", len(missing), "manifests")
        for batch, others in self._engine.run(read_described, self._units(missing)):
            self._known.update(batch)
            self._catalog.names.others.update(others)
            self._observer.advance(len(batch))
        self._observer.finish()

    def _units(self, missing: list[bytes]) -> Iterator[Wanted]:
        names, aliases = self._catalog.names, self._catalog.aliases
        size = max(1, min(_MANIFESTS_A_UNIT, -(-len(missing) // (4 * self._engine.workers))))
        for at in range(0, len(missing), size):
            keys = missing[at : at + size]
            special = {
                key: (names.text(key), *map(names.text, sorted(aliases.get(key, ()))))
                for key in keys
                if key in names.others or key in aliases
            }
            yield Wanted(b"".join(keys), special)
