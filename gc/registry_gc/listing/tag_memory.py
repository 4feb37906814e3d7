"""What tags point to, remembered from run to run where a listing cannot tell it.

On S3 with KMS an ETag is no MD5, and then each tag's link is a request. What was read of a link
is remembered with its *stamp*: ETag, size and time, as listed. A link that is written anew gets
another stamp, and is read again. Should a store give two contents one ETag, they still differ in
their time: what is as young as a clock's tick is not remembered at all, so that nothing can be
written later with the same time. Where there is no ETag nothing is remembered: on a filesystem
every link has the same size, and times can be set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_gc.cache import ReferenceCache, TagRow
from registry_gc.digest import InvalidDigest, Names, check_digest, pack
from registry_gc.listing.tags import NO_STAMP, Tags

SETTLED = 60.0
"""Seconds that a link must be old to be remembered; stores tell times to the second or better."""


class TagMemory:
    """Tags of one storage in a cache, which may hold those of others.

    :param opened: opens the cache, or says that there is none; called once, when it is needed.
    :param before: seconds since the epoch by the storage's clock: some time before the listing.
    """

    def __init__(
        self, opened: Callable[[], ReferenceCache | None], reader: Reader, before: float
    ) -> None:
        self._open = opened
        self._place = f"{reader.driver}\n{reader.root}\n"
        self._settled = before - SETTLED

    @cached_property
    def _cache(self) -> ReferenceCache | None:
        return self._open()

    def recall(self, tags: Tags, rows: NDArray[np.int64], names: Names) -> None:
        """Tell *tags* in which of *rows* the stamp is still the one that goes with a target."""
        rows = rows[self._stamped(tags, rows)]
        if not len(rows) or self._cache is None:
            return
        keys = pack(self._keys(tags, rows))
        order = np.argsort(keys, kind="stable")
        at = dict(zip((key.tobytes() for key in keys), rows.tolist(), strict=True))
        for found in self._cache.find_tags(keys[order]):
            row = at[found.key]
            if tags.stamps[row].tobytes() != found.stamp:
                continue
            try:
                tags.learn(row, names.key(check_digest(found.target)))
            except InvalidDigest:
                continue  # not of our writing; it is read from the storage

    def remember(self, tags: Tags, rows: Sequence[int], paths: Sequence[str], names: Names) -> None:
        """Keep what was read of *rows*, whose links are *paths*."""
        fit = self._stamped(tags, np.array(rows, np.int64)).tolist()
        if not any(fit) or self._cache is None:
            return
        self._cache.add_tags(
            TagRow(
                self._key(path),
                tags.stamps[row].tobytes(),
                names.text(tags.keys[row].tobytes()),
            )
            for row, path, stamped in zip(rows, paths, fit, strict=True)
            if stamped and tags.known[row] and tags.modified[row] < self._settled
        )

    def _stamped(self, tags: Tags, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        stamped: NDArray[np.bool_] = tags.stamps[rows] != np.void(NO_STAMP)
        return stamped

    def _keys(self, tags: Tags, rows: NDArray[np.int64]) -> Iterator[bytes]:
        return (self._key(tags.path(row)) for row in rows.tolist())

    def _key(self, path: str) -> bytes:
        place = (self._place + path).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(place, digest_size=32).digest()
