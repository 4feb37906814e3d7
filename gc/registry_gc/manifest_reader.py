"""Manifests from storage to columns: the work unit that reads, checks and parses some of them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_drivers.errors import NoFile, NotFound, TooLarge
from registry_gc.digest import KEY, Keys, Names, pack
from registry_gc.layout import blob_path
from registry_gc.machine.overlap import size_of_parts
from registry_gc.manifests import SIZE_LIMIT, References, parse_many

# Bytes of manifests that are held until they are parsed together.
_HELD_BYTES = 1 << 18


class ManifestState(enum.IntEnum):
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


NO_SUBJECT = b"\0" * 32
_EDGE_OF_BLOB = bytes([Edge.BLOB])


class ManifestBatch(msgspec.Struct, frozen=True):
    """References of some manifests, as columns.

    Row ``i`` has the edges ``offsets[i]:offsets[i + 1]`` of ``targets`` and ``edges``;
    ``subjects`` is all zeros where there is none. ``reasons`` says by row why one was not read.
    ``sizes``: bytes of the manifest, 0 where none were read; one that was refused has its size.
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


class Wanted(msgspec.Struct, frozen=True):
    """Manifests to read: their keys, one after the other.

    ``names``: for those that are not sha256, or stored under another name too: the digest, and
    then all digests under which its bytes may be stored.
    """

    keys: bytes
    names: Mapping[bytes, tuple[str, ...]]

    def parts(self, count: int) -> list[Wanted]:
        """See :class:`registry_gc.machine.overlap.Divisible`."""
        size = 32 * size_of_parts(len(self.keys) // 32, count)
        starts = range(0, len(self.keys), size)
        return [Wanted(self.keys[at : at + size], self.names) for at in starts] or [self]

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
    builder = _BatchBuilder()
    held: list[_Read] = []
    length = 0
    for digest, stored in wanted:
        one = _read_one(reader, digest, stored)
        held.append(one)
        length += len(one[1])
        if length > _HELD_BYTES:
            builder.add(held)
            held.clear()
            length = 0
    builder.add(held)
    return builder.batch(wanted.keys)


# What came of reading one manifest, its bytes if any were read, and where it is not OK the reason.
_Read = tuple[ManifestState, bytes, str]


class _BatchBuilder:
    """Puts manifests into columns, row by row."""

    def __init__(self) -> None:
        self.names = Names()
        self.sizes: list[int] = []
        self.states = bytearray()
        self.kinds = bytearray()
        self.ends = [0]
        self.targets: list[bytes] = []
        self.edges = bytearray()
        self.subjects: list[bytes] = []
        self.reasons: dict[int, str] = {}

    def add(self, read: Sequence[_Read]) -> None:
        """One more row for each of *read*."""
        parsed = iter(parse_many([data for state, data, _ in read if state is ManifestState.OK]))
        for state, data, reason in read:
            # Nothing is skipped: each that was read has its own answer, in the same order.
            found = next(parsed) if state is ManifestState.OK else None
            if isinstance(found, References):
                self.understood(found, len(data))
            elif found is None:
                self.refused(state, reason, len(data))
            else:
                self.refused(ManifestState.UNREADABLE, str(found), len(data))

    def understood(self, references: References, size: int) -> None:
        self.states.append(ManifestState.OK)
        self.sizes.append(size)
        self.kinds.append(references.kind)
        subject = references.subject
        self.subjects.append(NO_SUBJECT if subject is None else self.names.key(subject))
        blobs = references.blobs
        if blobs:
            self.targets.append(references.blob_keys or self.names.keys(blobs))
            self.edges += _EDGE_OF_BLOB * len(blobs)
        if references.children or references.maybe or references.linked:
            self.entries(references)
        self.ends.append(len(self.edges))

    def entries(self, references: References) -> None:
        for digests, edge in (
            (references.children, Edge.CHILD),
            (references.maybe, Edge.MAYBE),
            (references.linked, Edge.LINKED),
        ):
            if digests:
                self.targets.append(self.names.keys(digests))
                self.edges += bytes([edge]) * len(digests)

    def refused(self, state: ManifestState, reason: str, size: int) -> None:
        self.reasons[len(self.states)] = reason
        self.states.append(state)
        self.sizes.append(size)
        self.kinds.append(0)
        self.subjects.append(NO_SUBJECT)
        self.ends.append(len(self.edges))

    def batch(self, keys: bytes) -> ManifestBatch:
        return ManifestBatch(
            keys=np.frombuffer(keys, dtype=KEY),
            sizes=np.array(self.sizes, dtype=np.int64),
            states=np.frombuffer(bytes(self.states), np.uint8),
            kinds=np.frombuffer(bytes(self.kinds), np.uint8),
            offsets=np.array(self.ends, dtype=np.int64),
            targets=pack(self.targets),
            edges=np.frombuffer(bytes(self.edges), np.uint8),
            subjects=pack(self.subjects),
            reasons=self.reasons,
            others=self.names.others,
        )


def _read_one(reader: Reader, digest: str, stored: tuple[str, ...]) -> _Read:
    for name in stored:
        try:
            data = reader.read(blob_path(name), limit=SIZE_LIMIT)
        except NoFile as error:
            # Nobody knows what was there; that it is missing would free all that it names.
            return ManifestState.UNREADABLE, b"", f"its data is {error.what}"
        except NotFound:
            continue
        except TooLarge:
            reason = f"over {SIZE_LIMIT >> 20} MiB: too large for a manifest"
            return ManifestState.UNREADABLE, b"", reason
        wrong = mismatch(data, digest)
        return (ManifestState.MISMATCH if wrong else ManifestState.OK), data, wrong
    return ManifestState.MISSING, b"", "its manifest is not in the store"


def mismatch(data: bytes, digest: str) -> str:
    """What is wrong with *data* as the content of *digest*; empty where nothing is."""
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
