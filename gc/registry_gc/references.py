"""Manifest digest -> references, each manifest read once, however many repositories link it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.cache import ReferenceCache, Remembered, others_of, others_text
from registry_gc.compact.arrays import among
from registry_gc.compact.key_index import KeyIndex, distinct_keys
from registry_gc.compact.spool import Spool
from registry_gc.digest import KEY, Keys, Names, empty_keys, pack, prefixes
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.manifest_reader import (
    NO_SUBJECT,
    Edge,
    ManifestBatch,
    ManifestState,
    Wanted,
    read_manifests,
)
from registry_gc.manifests import ManifestKind

_MANIFESTS_A_UNIT = 512
_EDGES_AT_ONCE = 1 << 17
_IDS_AT_ONCE = 1 << 14
_FEW_STRETCHES = 8


class Columns(msgspec.Struct):
    """What is kept of every manifest met, by its number.

    The edges of number ``i`` are ``counts[i]`` rows of a spool, from ``starts[i]`` on. ``plain``:
    all of them are blobs. ``reasons`` says by number why a manifest could not be read.
    """

    keys: Keys
    sizes: NDArray[np.uint32]
    states: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    starts: NDArray[np.int64]
    counts: NDArray[np.uint32]
    plain: NDArray[np.bool_]
    reasons: dict[int, str]

    @classmethod
    def of(cls, keys: Keys) -> Columns:
        """Columns for *keys*, to be filled."""
        return cls(
            keys,
            np.zeros(len(keys), np.uint32),
            np.full(len(keys), ManifestState.MISSING, np.uint8),
            np.zeros(len(keys), np.uint8),
            np.zeros(len(keys), np.int64),
            np.zeros(len(keys), np.uint32),
            np.ones(len(keys), np.bool_),
            {},
        )

    def followed_by(self, more: Columns) -> Columns:
        """These, and then *more*."""
        if not len(self.keys):
            return more
        reasons = {number + len(self.keys): reason for number, reason in more.reasons.items()}
        return Columns(
            np.concatenate([self.keys, more.keys]),
            np.concatenate([self.sizes, more.sizes]),
            np.concatenate([self.states, more.states]),
            np.concatenate([self.kinds, more.kinds]),
            np.concatenate([self.starts, more.starts]),
            np.concatenate([self.counts, more.counts]),
            np.concatenate([self.plain, more.plain]),
            self.reasons | reasons,
        )


class _Filling:
    """Manifests that are being loaded; they get their numbers at the end, all at once."""

    def __init__(self, keys: Keys) -> None:
        self.index = KeyIndex(keys)
        self.columns = Columns.of(keys)
        self.known = np.zeros(len(keys), np.bool_)
        self.remembered = np.zeros(len(keys), np.bool_)
        self.subjects: list[tuple[NDArray[np.int64], Keys]] = []
        self.others: dict[bytes, str] = {}

    def fill(self, part: ManifestBatch, start: int) -> NDArray[np.int64]:
        """Put *part*, whose edges begin at row *start* of the spool, where its keys belong."""
        rows = self.index.positions(part.keys)
        assert (rows >= 0).all()
        columns = self.columns
        columns.sizes[rows] = part.sizes
        columns.states[rows] = part.states
        columns.kinds[rows] = part.kinds
        columns.starts[rows] = part.offsets[:-1] + start
        columns.counts[rows] = np.diff(part.offsets)
        owner = np.repeat(rows, np.diff(part.offsets))
        columns.plain[owner[part.edges != Edge.BLOB]] = False
        columns.reasons.update((int(rows[row]), reason) for row, reason in part.reasons.items())
        self.known[rows] = True
        with_subject = np.flatnonzero(part.subjects != np.frombuffer(NO_SUBJECT, dtype=KEY)[0])
        if len(with_subject):
            self.subjects.append((rows[with_subject], part.subjects[with_subject]))
        self.others.update(part.others)
        return rows


class Stretch:
    """Keys that were loaded together, and the number of each."""

    __slots__ = ("_index", "_numbers")

    def __init__(self, index: KeyIndex, numbers: NDArray[np.int64] | int) -> None:
        """*numbers* of the keys of *index*, in their order; only the first where all follow it."""
        self._index = index
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._index)

    def ids(self, keys: Keys, found: NDArray[np.int64]) -> None:
        """Put the number of each of *keys* that is here into *found*."""
        at = self._index.positions(keys)
        there = at >= 0
        numbers = self._numbers
        if isinstance(numbers, int):
            np.copyto(found, at + numbers, where=there)
        else:
            found[there] = numbers[at[there]]

    def joined(self, other: Stretch) -> Stretch:
        """Both of them; no key is in both."""
        keys = np.concatenate([self._index.keys, other._index.keys])
        order = np.argsort(prefixes(keys), kind="stable")
        numbers = np.concatenate([self._all_numbers(), other._all_numbers()])
        return Stretch(KeyIndex(keys[order]), numbers[order])

    def _all_numbers(self) -> NDArray[np.int64]:
        numbers = self._numbers
        if isinstance(numbers, int):
            return np.arange(numbers, numbers + len(self), dtype=np.int64)
        return numbers


class Manifests:
    """All manifests met so far, numbered; reads those it is asked for and does not know.

    ``ids`` are positions in the columns; they stay valid, new manifests are appended. What
    manifests name is kept in a spool, which is no memory where it is much.
    """

    def __init__(
        self,
        engine: Engine,
        names: Names,
        aliases: Mapping[bytes, set[bytes]],
        observer: Observer,
        cache: ReferenceCache | None = None,
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._names = names
        self._aliases = aliases
        self._observer = observer
        self.batch = Columns.of(empty_keys())
        # Each load appends one.
        self._stretches: list[Stretch] = []
        self._targets = Spool(KEY)
        self._edges = Spool(np.dtype(np.uint8))
        self._subject_ids = np.empty(0, np.int64)
        self._subject_keys = empty_keys()
        # Manifests that were remembered, not read, and those of which the listing has shown a
        # blob of their size.
        self._unread = np.empty(0, np.bool_)
        self._seen = np.empty(0, np.bool_)
        self._largest = 0  # bytes, of those that were remembered

    def __len__(self) -> int:
        return len(self.batch.keys)

    def ids(self, keys: Keys) -> NDArray[np.int64]:
        """The number of each of *keys*, -1 for those never loaded."""
        found = np.full(len(keys), -1, np.int64)
        for stretch in self._stretches:
            stretch.ids(keys, found)
        return found

    def keys_of(self, ids: NDArray[np.integer]) -> Keys:
        """The key of each number."""
        keys: Keys = self.batch.keys[ids]
        return keys

    def load(self, keys: Keys) -> None:
        """Read the manifests of *keys* that are not known yet.

        :raises StorageError: as :func:`read_manifests`.
        """
        wanted = distinct_keys(keys[self.ids(keys) < 0] if self._stretches else keys)
        if not len(wanted):
            return
        filling = _Filling(wanted)
        for part in self._remembered(wanted):
            filling.remembered[filling.fill(part, self._spooled(part))] = True
        missing = wanted if not filling.known.any() else wanted[~filling.known]
        if len(missing):
            self._observer.phase("reading manifests", len(missing), "manifests")
            # They are done in any order, but have their places by then.
            for part in self._engine.run(read_manifests, self._units(missing)):
                filling.fill(part, self._spooled(part))
                self._remember(part)
                self._observer.advance(len(part.keys))
            self._observer.finish()
        self._append(filling)

    def _spooled(self, part: ManifestBatch) -> int:
        self._edges.append(part.edges)
        return self._targets.append(part.targets)

    def _append(self, filling: _Filling) -> None:
        self._targets.settle()
        self._edges.settle()
        base = len(self)
        remembered = filling.columns.sizes[filling.remembered]
        self._largest = max(self._largest, int(remembered.max(initial=0)))
        self.batch = self.batch.followed_by(filling.columns)
        self._add_stretch(Stretch(filling.index, base))
        self._unread = np.concatenate([self._unread, filling.remembered])
        self._seen = np.concatenate([self._seen, np.zeros(len(filling.known), np.bool_)])
        if filling.subjects:
            ids = np.concatenate([ids for ids, _ in filling.subjects]) + base
            order = np.argsort(ids)
            keys = np.concatenate([keys for _, keys in filling.subjects])
            self._subject_ids = np.concatenate([self._subject_ids, ids[order]])
            self._subject_keys = np.concatenate([self._subject_keys, keys[order]])
        self._names.others.update(filling.others)

    def _add_stretch(self, added: Stretch) -> None:
        """Keep the stretches few: indexes that lie in one another are a load for each level.

        What is joined is half as large again as the larger part at least, so that each key is
        copied a few times only. A usual registry takes two or three loads, and joins nothing.
        """
        stretches = self._stretches
        while len(stretches) >= _FEW_STRETCHES and 2 * len(added) >= len(stretches[-1]):
            added = stretches.pop().joined(added)
        stretches.append(added)

    def _remembered(self, wanted: Keys) -> Iterator[ManifestBatch]:
        """What the cache knows of *wanted*, some at a time."""
        if self._cache is None:
            return
        for found in self._cache.find(wanted):
            others: dict[bytes, str] = {}
            for text in found.others:
                if text:
                    others.update(others_of(text))
            counts = [len(edges) for edges in found.edges]
            yield ManifestBatch(
                keys=pack(found.keys),
                sizes=np.array(found.sizes, np.int64),
                states=np.full(len(counts), ManifestState.OK, np.uint8),
                kinds=np.array(found.kinds, np.uint8),
                offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
                targets=pack(found.targets),
                edges=np.frombuffer(b"".join(found.edges), np.uint8),
                subjects=pack(found.subjects),
                reasons={},
                others=others,
            )

    def _remember(self, part: ManifestBatch) -> None:
        """Tell the cache of the manifests that were read and understood."""
        if self._cache is None:
            return
        rows: list[Remembered] = []
        for at in np.flatnonzero(part.states == ManifestState.OK).tolist():
            key = part.keys[at].tobytes()
            # What is stored under another name is left to be read: its listing shows that name.
            if key in self._names.others or key in self._aliases:
                continue
            edges = slice(part.offsets[at], part.offsets[at + 1])
            targets = part.targets[edges].tobytes()
            named = (targets[word : word + 32] for word in range(0, len(targets), 32))
            subject = part.subjects[at].tobytes()
            others = (
                {word: part.others[word] for word in (*named, subject) if word in part.others}
                if part.others
                else {}
            )
            rows.append(
                Remembered(
                    key=key,
                    size=int(part.sizes[at]),
                    kind=int(part.kinds[at]),
                    subject=subject,
                    edges=part.edges[edges].tobytes(),
                    targets=targets,
                    others=others_text(others),
                )
            )
        self._cache.add(rows)

    def check(self, keys: Keys, sizes: NDArray[np.int64]) -> None:
        """Be told of blobs that a listing has shown, and their sizes in bytes."""
        if self.remembers:
            # Nearly all layers are larger than any manifest, and need not be looked for.
            small = np.flatnonzero(sizes <= self._largest)
            ids = self.ids(keys[small])
            at = np.flatnonzero(ids >= 0)
            ids = ids[at]
            self._seen[ids] |= self.batch.sizes[ids] == sizes[small[at]]

    def unconfirmed(self) -> Keys:
        """The remembered manifests for which no listed blob was of the right size."""
        return distinct_keys(self.batch.keys[self._unread & ~self._seen])

    @property
    def unread(self) -> Keys:
        """The remembered manifests, of which the size of the blob has to be checked."""
        return self.batch.keys[self._unread]

    @property
    def missing(self) -> Keys:
        """The manifests that were not in the store when they were asked for, sorted."""
        return distinct_keys(self.batch.keys[self.in_state(ManifestState.MISSING)])

    @property
    def remembers(self) -> bool:
        """Whether anything was remembered instead of read, and has to be checked."""
        return bool(self._unread.any())

    def _units(self, missing: Keys) -> Iterator[Wanted]:
        size = max(1, min(_MANIFESTS_A_UNIT, -(-len(missing) // (8 * self._engine.workers))))
        special = self._names.others.keys() | self._aliases.keys()
        for at in range(0, len(missing), size):
            keys = missing[at : at + size]
            names: dict[bytes, tuple[str, ...]] = {}
            if special:
                for key in special.intersection(key.tobytes() for key in keys):
                    stored = sorted(self._names.text(alias) for alias in self._aliases.get(key, ()))
                    digest = self._names.text(key)
                    names[key] = (digest, *(name for name in stored if name != digest))
            yield Wanted(keys.tobytes(), names)

    def targets_of(
        self, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Keys, NDArray[np.uint8]]:
        """All edges of *ids*: which position of *ids* they start from, to what, and how."""
        starts, counts = self.batch.starts[ids], self.batch.counts[ids].astype(np.int64)
        source = np.repeat(np.arange(len(ids), dtype=np.int64), counts)
        keys = self._targets.take(starts, counts)
        if self.batch.plain[ids].all():
            return source, keys, np.full(len(keys), Edge.BLOB, np.uint8)
        return source, keys, self._edges.take(starts, counts)

    def targets_in_parts(
        self, ids: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Keys, NDArray[np.uint8]]]:
        """As :meth:`targets_of`, some of *ids* at a time.

        It is cheap where *ids* are in order: neighbours are kept side by side.
        """
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            total = np.cumsum(self.batch.counts[some], dtype=np.int64)
            first = 0
            while first < len(some):
                done = total[first - 1] if first else 0
                last = max(first + 1, int(np.searchsorted(total, done + _EDGES_AT_ONCE, "right")))
                source, keys, edges = self.targets_of(some[first:last])
                source += start + first
                yield source, keys, edges
                first = last

    def edges_among(self, ids: NDArray[np.int64]) -> int:
        """How many edges *ids* have together."""
        return int(self.batch.counts[ids].sum(dtype=np.int64))

    def with_subject(self) -> NDArray[np.int64]:
        """The numbers of the manifests that have a subject."""
        return self._subject_ids

    def subjects_of(self, ids: NDArray[np.int64]) -> Keys:
        """The subjects of *ids*, which all have one."""
        return self._subject_keys[np.searchsorted(self._subject_ids, ids)]

    def in_state(self, *states: ManifestState) -> NDArray[np.bool_]:
        """Tell for each manifest whether it is in one of *states*."""
        return among(self.batch.states, states)

    def of_kind(self, kind: ManifestKind) -> NDArray[np.bool_]:
        """Tell for each manifest whether it is of *kind*."""
        found: NDArray[np.bool_] = self.batch.kinds == kind
        return found
