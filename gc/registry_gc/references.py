"""Manifest digest -> references, each manifest read once, however many repositories link it."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, TooLarge
from registry_gc.arrays import among, distinct, locate, without
from registry_gc.cache import ReferenceCache, Remembered, others_of, others_text
from registry_gc.digest import KEY, Keys, Names, empty_keys, pack
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import blob_path
from registry_gc.manifests import SIZE_LIMIT, Kind, References, UnreadableManifest, parse

_MANIFESTS_A_UNIT = 512


class State(enum.IntEnum):
    """What came of reading a manifest."""

    OK = 0
    MISSING = 1
    UNREADABLE = 2
    MISMATCH = 3


class Edge(enum.IntEnum):
    """How a manifest names a digest; see :class:`registry_gc.manifests.References`."""

    BLOB = 0
    CHILD = 1
    MAYBE = 2
    LINKED = 3


_NO_SUBJECT = b"\0" * 32


class ManifestBatch(msgspec.Struct, frozen=True):
    """References of some manifests, as columns.

    Row ``i`` has the edges ``offsets[i]:offsets[i + 1]`` of ``targets`` and ``edges``;
    ``subjects`` is all zeros where there is none. ``reasons`` says by row why one was not read.
    ``sizes``: bytes of the manifest, 0 where it was not read.
    """

    keys: Keys
    sizes: NDArray[np.int64]
    states: NDArray[np.uint8]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    targets: Keys
    edges: NDArray[np.uint8]
    subjects: Keys
    reasons: dict[int, str]
    others: dict[bytes, str]

    @classmethod
    def empty(cls) -> ManifestBatch:
        """No manifests."""
        nothing = np.empty(0, np.uint8)
        return cls(
            empty_keys(), np.empty(0, np.int64), nothing, nothing, np.zeros(1, np.int64),
            empty_keys(), nothing, empty_keys(), {}, {},
        )  # fmt: skip


class Wanted(msgspec.Struct, frozen=True):
    """Manifests to read: their keys, one after the other.

    ``names``: for those that are not sha256, or stored under another name too: the digest, and
    then all digests under which its bytes may be stored.
    """

    keys: bytes
    names: Mapping[bytes, tuple[str, ...]]

    def __iter__(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each digest, and where its bytes may be."""
        encoded = self.keys.hex()
        for at in range(0, len(encoded), 64):
            digest = "sha256:" + encoded[at : at + 64]
            names = self.names.get(self.keys[at // 2 : at // 2 + 32]) if self.names else None
            yield (names[0], names) if names else (digest, (digest,))


def read_manifests(reader: Reader, wanted: Wanted) -> ManifestBatch:
    """Read and check some manifests; a work unit.

    :raises StorageError: one could not be read for another reason than that it is not there.
    """
    names = Names()
    sizes: list[int] = []
    states: list[State] = []
    kinds: list[int] = []
    counts: list[int] = []
    targets: list[bytes] = []
    edges: list[int] = []
    subjects: list[bytes] = []
    reasons: dict[int, str] = {}
    for row, (digest, stored) in enumerate(wanted):
        state, references, size, reason = _read_one(reader, digest, stored)
        states.append(state)
        sizes.append(size)
        if reason:
            reasons[row] = reason
        before = len(edges)
        kind = 0
        subject = _NO_SUBJECT
        if references is not None:
            kind = references.kind
            _edges(references, names, targets, edges)
            if references.subject is not None:
                subject = names.key(references.subject)
        kinds.append(kind)
        subjects.append(subject)
        counts.append(len(edges) - before)
    return ManifestBatch(
        keys=np.frombuffer(wanted.keys, dtype=KEY),
        sizes=np.array(sizes, dtype=np.int64),
        states=np.array(states, dtype=np.uint8),
        kinds=np.array(kinds, dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        targets=pack(targets),
        edges=np.array(edges, dtype=np.uint8),
        subjects=pack(subjects),
        reasons=reasons,
        others=names.others,
    )


def _edges(references: References, names: Names, targets: list[bytes], edges: list[int]) -> None:
    blobs = references.blobs
    if blobs:
        targets.append(references.blob_keys or names.keys(blobs))
        edges += [Edge.BLOB] * len(blobs)
    for digests, edge in (
        (references.children, Edge.CHILD),
        (references.maybe, Edge.MAYBE),
        (references.linked, Edge.LINKED),
    ):
        if digests:
            targets.append(names.keys(digests))
            edges += [edge] * len(digests)


def _read_one(
    reader: Reader, digest: str, stored: tuple[str, ...]
) -> tuple[State, References | None, int, str]:
    for name in stored:
        try:
            data = reader.read(blob_path(name), limit=SIZE_LIMIT)
        except NotFound:
            continue
        except TooLarge:
            reason = f"over {SIZE_LIMIT >> 20} MiB: too large for a manifest"
            return State.UNREADABLE, None, 0, reason
        mismatch = _mismatch(data, digest)
        if mismatch:
            return State.MISMATCH, None, 0, mismatch
        try:
            return State.OK, parse(data), len(data), ""
        except UnreadableManifest as error:
            return State.UNREADABLE, None, 0, str(error)
    return State.MISSING, None, 0, "its manifest is not in the store"


def _mismatch(data: bytes, digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    try:
        # hashlib.new costs four times as much as the hash of a small manifest.
        new = hashlib.sha256 if algorithm == "sha256" else None
        actual = (new(data) if new else hashlib.new(algorithm, data)).hexdigest()
    except (ValueError, TypeError):
        return f"no way to check a digest of the algorithm {algorithm}"
    if actual == encoded:
        return ""
    return "empty" if not data else f"its content has the digest {algorithm}:{actual}"


class Manifests:
    """All manifests met so far, numbered; reads those it is asked for and does not know.

    ``ids`` are positions in the columns; they stay valid, new manifests are appended.
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
        # Manifests that were remembered, not read: sorted keys, sizes, and whether the listing
        # has shown a blob of that size.
        self._unread = empty_keys()
        self._unread_sizes = np.empty(0, np.int64)
        self._unread_seen = np.empty(0, np.bool_)
        self._engine = engine
        self._names = names
        self._aliases = aliases
        self._observer = observer
        self.batch = ManifestBatch.empty()
        self._sorted = empty_keys()
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.batch.keys)

    def ids(self, keys: Keys) -> NDArray[np.int64]:
        """The number of each of *keys*, -1 for those never loaded."""
        at, there = locate(self._sorted, keys)
        if not len(self._order):
            return np.full(len(keys), -1, np.int64)
        return np.where(there, self._order[at], -1)

    def load(self, keys: Keys) -> None:
        """Read the manifests of *keys* that are not known yet.

        :raises StorageError: as :func:`read_manifests`.
        """
        unique = distinct(keys)
        missing = unique[self.ids(unique) < 0]
        if not len(missing):
            return
        parts = [self.batch]
        remembered = self._remembered(missing)
        if remembered is not None:
            parts.append(remembered)
            missing = without(missing, remembered.keys)
        if len(missing):
            self._observer.phase("reading manifests", len(missing), "manifests")
            for part in self._engine.run(read_manifests, self._units(missing)):
                parts.append(part)
                self._remember(part)
                self._observer.advance(len(part.keys))
            self._observer.finish()
        # The order of completion is chance; numbers and everything after them must not be.
        parts[1:] = sorted(parts[1:], key=lambda part: part.keys[0].tobytes())
        self.batch = _joined(parts)
        self._names.others.update(self.batch.others)
        self._order = np.argsort(self.batch.keys, kind="stable")
        self._sorted = self.batch.keys[self._order]

    def _remembered(self, missing: Keys) -> ManifestBatch | None:
        """What the cache knows of *missing*."""
        if self._cache is None:
            return None
        found = self._cache.find(missing)
        if not found:
            return None
        keys = pack(row.key for row in found)
        sizes = np.array([row.size for row in found], np.int64)
        order = np.argsort(np.concatenate([self._unread, keys]), kind="stable")
        self._unread = np.concatenate([self._unread, keys])[order]
        self._unread_sizes = np.concatenate([self._unread_sizes, sizes])[order]
        self._unread_seen = np.concatenate([self._unread_seen, np.zeros(len(keys), np.bool_)])[
            order
        ]
        others: dict[bytes, str] = {}
        for row in found:
            if row.others:
                others.update(others_of(row.others))
        counts = [len(row.edges) for row in found]
        return ManifestBatch(
            keys=keys,
            sizes=sizes,
            states=np.full(len(found), State.OK, np.uint8),
            kinds=np.array([row.kind for row in found], np.uint8),
            offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
            targets=pack(row.targets for row in found),
            edges=np.frombuffer(b"".join(row.edges for row in found), np.uint8),
            subjects=pack(row.subject for row in found),
            reasons={},
            others=others,
        )

    def _remember(self, part: ManifestBatch) -> None:
        """Tell the cache of the manifests that were read and understood."""
        if self._cache is None:
            return
        rows: list[Remembered] = []
        for at in np.flatnonzero(part.states == State.OK).tolist():
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
        if len(self._unread):
            at, there = locate(self._unread, keys)
            self._unread_seen[at[there]] |= self._unread_sizes[at[there]] == sizes[there]

    def unconfirmed(self) -> Keys:
        """The remembered manifests for which no listed blob was of the right size."""
        return self._unread[~self._unread_seen]

    @property
    def remembers(self) -> bool:
        """Whether anything was remembered instead of read, and has to be checked."""
        return bool(len(self._unread))

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
        starts, stops = self.batch.offsets[ids], self.batch.offsets[ids + 1]
        counts = stops - starts
        source = np.repeat(np.arange(len(ids), dtype=np.int64), counts)
        within = np.arange(len(source), dtype=np.int64) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        rows = np.repeat(starts, counts) + within
        return source, self.batch.targets[rows], self.batch.edges[rows]

    def with_subject(self) -> NDArray[np.int64]:
        """The numbers of the manifests that have a subject."""
        return np.flatnonzero(self.batch.subjects != np.frombuffer(_NO_SUBJECT, dtype=KEY)[0])

    def in_state(self, *states: State) -> NDArray[np.bool_]:
        """Tell for each manifest whether it is in one of *states*."""
        return among(self.batch.states, states)

    def of_kind(self, kind: Kind) -> NDArray[np.bool_]:
        """Tell for each manifest whether it is of *kind*."""
        found: NDArray[np.bool_] = self.batch.kinds == kind
        return found


def _joined(parts: list[ManifestBatch]) -> ManifestBatch:
    offsets = [np.zeros(1, np.int64)]
    reasons: dict[int, str] = {}
    others: dict[bytes, str] = {}
    rows = 0
    edges = 0
    for part in parts:
        offsets.append(part.offsets[1:] + edges)
        reasons.update((rows + row, reason) for row, reason in part.reasons.items())
        others.update(part.others)
        rows += len(part.keys)
        edges += len(part.targets)
    return ManifestBatch(
        keys=np.concatenate([part.keys for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        states=np.concatenate([part.states for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        offsets=np.concatenate(offsets),
        targets=np.concatenate([part.targets for part in parts]),
        edges=np.concatenate([part.edges for part in parts]),
        subjects=np.concatenate([part.subjects for part in parts]),
        reasons=reasons,
        others=others,
    )
