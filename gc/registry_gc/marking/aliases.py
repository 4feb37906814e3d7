"""Digests of other algorithms than sha256: what is stored for them, under which name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound
from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import Keys, Names, pack
from registry_gc.layout import blob_path


class Aliases:
    """What is stored for a digest that is not sha256: under its own name, or another's.

    :param aliases: by the key of such a digest, the keys that links of its name hold.
    """

    def __init__(self, reader: Reader, names: Names, aliases: dict[bytes, set[bytes]]) -> None:
        self._reader = reader
        self._names = names
        self._aliases = aliases
        self._stored: dict[bytes, bool] = {}

    def targets(self, key: bytes) -> set[bytes]:
        """The keys that links of this name hold."""
        return self._aliases.get(key, set())

    def targets_of(self, keys: Iterable[bytes]) -> Keys:
        """The keys that links of any of these names hold, in order."""
        return pack(target for key in sorted(keys) for target in sorted(self.targets(key)))

    def among(self, keys: Keys) -> list[int]:
        """Which of *keys* are digests of another algorithm than sha256, by their place in them."""
        if not self._names.others:
            return []
        others = KeyIndex(pack(sorted(self._names.others)))
        return np.flatnonzero(others.has(keys)).tolist()

    def found(self, key: bytes) -> bool:
        """Tell whether a blob has this name, or a name that a readable link says.

        A link that says what is not stored may be rotten, and then nobody knows the right name.
        """
        return any(map(self._is_stored, (key, *sorted(self.targets(key)))))

    def _is_stored(self, key: bytes) -> bool:
        if key not in self._stored:
            try:
                self._reader.stat(blob_path(self._names.text(key)))
                self._stored[key] = True
            except NotFound:
                self._stored[key] = False
        return self._stored[key]
