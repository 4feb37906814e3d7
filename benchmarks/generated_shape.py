"""The registry that :mod:`generated` serves: numbers to digests, vectorised, from a seed alone.

A repository has ten manifests of its own: ``0`` is an index of 1 to 5 and of its neighbour's 1 to
5, which the repository links too; ``1`` to ``8`` are images, of which no tag reaches ``8``; ``9``
refers to ``1`` by its subject. An image names a config, a base layer
that many share, and eight layers of its own: ten references each, as an index has.

Digests of layers and configs are made up, in sorted order: the first 64 bits grow with the
digest's *rank*, so that any page of the sorted listing can be made by itself. Digests of
manifests are those of their real content. They are computed once for a shape and seed and kept
in a file, 32 bytes each.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OWN = 10
BORROWED = (1, 2, 3, 4, 5)
"""What a repository links of its neighbour's manifests; its index lists them."""
TAGGED = (0, 6, 7)
"""What its tags point to."""
LAYERS = 9
KEY = np.dtype("V32")
OLD = 1_600_000_000.0
"""Seconds since the epoch: when everything was pushed."""

_WORDS = ("api", "backend", "worker", "frontend-assets", "db")
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_HEX = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype=np.uint16)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a registry is. ``repositories`` of 10 manifests; ``blobs`` is the total.

    ``stale``: layer links in each repository that no manifest needs. ``tags`` in each repository,
    at most 3: one for the index, the others for images 6 and 7. ``teams``: folders above the
    repositories; 0 for none.
    """

    repositories: int
    blobs: int
    stale: int = 10
    tags: int = 3
    teams: int = 100
    seed: int = 1

    @classmethod
    def of_blobs(cls, blobs: int, *, seed: int = 1) -> Shape:
        """The shape of the goals: of 10M blobs 1M are manifests, in 100,000 repositories."""
        repositories = max(2, blobs // 100)
        return cls(repositories, max(blobs, repositories * 95), seed=seed)

    @property
    def manifests(self) -> int:
        """Manifests in the store."""
        return self.repositories * OWN

    @property
    def images(self) -> int:
        """Manifests that are no index."""
        return self.repositories * (OWN - 1)

    @property
    def bases(self) -> int:
        """Layers that many images share."""
        return min(5000, self.repositories)

    @property
    def others(self) -> int:
        """Blobs that are no manifest."""
        return self.blobs - self.manifests

    def describe(self) -> dict[str, int]:
        """Counts, for figures."""
        per_repository = (OWN - 1 + len(BORROWED)) * (LAYERS + 1) + self.stale
        return {
            "blobs": self.blobs,
            "manifests": self.manifests,
            "references": self.manifests * 10,
            "repositories": self.repositories,
            "revisions": self.repositories * (OWN + len(BORROWED)),
            "tags": self.repositories * self.tags,
            "layer_links_at_most": self.repositories * per_repository,
        }

    def repository(self, number: int) -> str:
        """The name of a repository; names sort as their numbers do."""
        word = _WORDS[number * 7919 % len(_WORDS)]
        name = f"app-{number:07d}-{word}"
        return f"team-{number // self.teams:06d}/{name}" if self.teams else name


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: 64 bits that look random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hex_of(keys: NDArray[np.void]) -> NDArray[np.uint8]:
    """The hex digits of keys, shape ``(n, 64)``."""
    raw = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), 32)
    return _HEX[raw].view(np.uint8)


class Numbers:
    """Digests of a shape, by number."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.stride = (1 << 64) // max(1, shape.others)
        self._seed = mix(np.array([shape.seed], dtype=np.uint64) * _GAMMA)[0]
        self._multiplier = _coprime(shape.others)

    def rank(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Spread slots over all ranks, one to one."""
        wide = slots.astype(np.uint64) * np.uint64(self._multiplier)
        return (wide % np.uint64(self.shape.others)).astype(np.int64)

    def keys(self, ranks: NDArray[np.int64]) -> NDArray[np.void]:
        """The digests of the blobs that are no manifests; they sort as *ranks* do."""
        words = np.empty((len(ranks), 4), dtype=">u8")
        base = ranks.astype(np.uint64)
        noise = mix(base * _GAMMA + self._seed)
        words[:, 0] = base * np.uint64(self.stride) + noise % np.uint64(self.stride)
        words[:, 1] = noise
        words[:, 2] = mix(noise + _GAMMA)
        words[:, 3] = noise ^ self._seed
        return words.reshape(-1).view(KEY)

    def sizes(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of those blobs."""
        return (mix(ranks.astype(np.uint64) + self._seed) % np.uint64(50_000_000)).astype(np.int64)

    def slots(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Config and layers of images, shape ``(n, 10)``; the second is the shared base."""
        own = self.shape.bases + images[:, None] * LAYERS + np.arange(LAYERS, dtype=np.int64)
        base = (mix(images.astype(np.uint64)) % np.uint64(self.shape.bases)).astype(np.int64)
        return np.concatenate([own[:, :1], base[:, None], own[:, 1:]], axis=1)

    def stale(self, repository: int) -> NDArray[np.int64]:
        """Slots of layers that nothing references, of which a repository has links."""
        first = self.shape.bases + self.shape.images * LAYERS
        count = self.shape.others - first
        if count <= 0:
            return np.empty(0, np.int64)
        wanted = min(self.shape.stale, count)
        return first + (repository * self.shape.stale + np.arange(wanted, dtype=np.int64)) % count


def _coprime(count: int) -> int:
    """A multiplier that is coprime to *count*; slots times it stay below 64 bits."""
    from math import gcd

    candidate = max(1, int(min(count, 1 << 31) * 0.6180339887))
    while gcd(candidate, count) != 1:
        candidate += 1
    return candidate


IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Content:
    """Manifests by number, and their digests in a file beside."""

    def __init__(self, numbers: Numbers, folder: str | None = None) -> None:
        self.numbers = numbers
        self.shape = numbers.shape
        shape = self.shape
        folder = folder or os.path.join(tempfile.gettempdir(), "registry-gc-generated")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        name = f"v2-{shape.repositories}-{shape.blobs}-{shape.seed}"
        self._digests = os.path.join(folder, f"{name}.digests")
        self._sorted = os.path.join(folder, f"{name}.sorted")
        if not os.path.exists(self._sorted):
            self._compute()
        self._digest_file = os.open(self._digests, os.O_RDONLY)
        self._sorted_file = os.open(self._sorted, os.O_RDONLY)
        self._samples = np.fromfile(self._sorted + ".index", dtype=np.uint64)

    def _compute(self) -> None:
        """Digests of all manifests, by number and in order."""
        shape = self.shape
        known = np.zeros((shape.repositories, OWN), dtype=KEY)
        hashed = hashlib.sha256
        for first in range(0, shape.repositories, 500):
            block = np.arange(first, min(first + 500, shape.repositories))
            for number, data in self._images(block):
                if number % OWN != 9:
                    known[number // OWN, number % OWN] = np.void(hashed(data).digest())
        self._known = known
        for repository in range(shape.repositories):
            for own in (9, 0):
                data = self.content(repository * OWN + own)
                known[repository, own] = np.void(hashed(data).digest())
        flat = known.reshape(-1)
        words = flat.view(">u8").reshape(-1, 4)
        order = np.lexsort((words[:, 1], words[:, 0]))
        rows = np.empty(len(flat), dtype=[("key", KEY), ("number", "<i8")])
        rows["key"], rows["number"] = flat[order], order
        _put(words[order[::_SAMPLE], 0].astype(np.uint64), self._sorted + ".index")
        _put(flat, self._digests)
        _put(rows, self._sorted)
        del self._known

    def _images(self, repositories: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        own = np.arange(1, OWN, dtype=np.int64)
        numbers = (repositories[:, None] * OWN + own).reshape(-1)
        for number, image in zip(numbers.tolist(), self._parts(numbers), strict=True):
            if number % OWN != 9:
                yield number, _image(image, None)

    def _parts(self, numbers: NDArray[np.int64]) -> list[list[str]]:
        """The hex of the ten blobs of each of the images *numbers*."""
        images = numbers // OWN * (OWN - 1) + numbers % OWN - 1
        ranks = self.numbers.rank(self.numbers.slots(images).reshape(-1))
        text = hex_of(self.numbers.keys(ranks)).tobytes().decode()
        digests = [text[at : at + 64] for at in range(0, len(text), 64)]
        return [digests[at : at + 10] for at in range(0, len(digests), 10)]

    def digests_of(self, first: int, count: int) -> NDArray[np.void]:
        """The digests of the manifests *first* and following."""
        if hasattr(self, "_known"):
            return self._known.reshape(-1)[first : first + count]
        return np.frombuffer(os.pread(self._digest_file, count * 32, first * 32), dtype=KEY)

    def content(self, number: int) -> bytes:
        """The bytes of a manifest."""
        own = number % OWN
        first = number - own
        if own == 0:
            neighbour = (number // OWN + 1) % self.shape.repositories * OWN
            keys = [*self.digests_of(first + 1, 5), *self.digests_of(neighbour + 1, 5)]
            return _index([key.tobytes().hex() for key in keys])
        (parts,) = self._parts(np.array([number], dtype=np.int64))
        subject = self.digests_of(first + 1, 1)[0].tobytes().hex() if own == 9 else None
        return _image(parts, subject)

    def sorted_rows(self, start: int, count: int) -> NDArray[np.void]:
        """Digests with numbers, in the order of digests."""
        width = 40
        data = os.pread(self._sorted_file, count * width, start * width)
        return np.frombuffer(data, dtype=[("key", KEY), ("number", "<i8")])

    def position(self, word: int) -> int:
        """How many manifests have a digest whose first 64 bits are less than *word*."""
        if word >= 1 << 64:
            return self.shape.manifests
        block = max(0, int(np.searchsorted(self._samples, np.uint64(word), "left")) - 1)
        rows = self.sorted_rows(block * _SAMPLE, _SAMPLE)
        words = np.ascontiguousarray(rows["key"]).view(">u8").reshape(-1, 4)[:, 0]
        return block * _SAMPLE + int(np.searchsorted(words.astype(np.uint64), np.uint64(word)))

    def number_of(self, key: bytes) -> int | None:
        """The number of the manifest with the digest *key*."""
        at = self.position(int.from_bytes(key[:8], "big"))
        rows = self.sorted_rows(at, 4)
        for row in rows:
            if row["key"].tobytes() == key:
                return int(row["number"])
        return None

    def sizes(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes of manifests; all of one form are of one length."""
        own = numbers % OWN
        found = np.full(len(numbers), _IMAGE_SIZE, dtype=np.int64)
        found[own == 0] = _INDEX_SIZE
        found[own == 9] = _REFERRER_SIZE
        return found

    def close(self) -> None:
        """Close the files."""
        os.close(self._digest_file)
        os.close(self._sorted_file)


_SAMPLE = 256


def _image(parts: list[str], subject: str | None) -> bytes:
    config, *layers = parts
    tail = ""
    if subject is not None:
        tail = f',"subject":{{"mediaType":"{IMAGE}","digest":"sha256:{subject}","size":1000}}'
    named = ",".join(
        f'{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",'
        f'"digest":"sha256:{layer}","size":31415926}}'
        for layer in layers
    )
    return (
        f'{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":'
        f'"application/vnd.oci.image.config.v1+json","digest":"sha256:{config}","size":1469}},'
        f'"layers":[{named}]{tail}}}'
    ).encode()


def _index(children: list[str]) -> bytes:
    named = ",".join(
        f'{{"mediaType":"{IMAGE}","digest":"sha256:{child}","size":1000,'
        f'"platform":{{"architecture":"amd64","os":"linux"}}}}'
        for child in children
    )
    return f'{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{named}]}}'.encode()


_IMAGE_SIZE = len(_image(["0" * 64] * 10, None))
_REFERRER_SIZE = len(_image(["0" * 64] * 10, "0" * 64))
_INDEX_SIZE = len(_index(["0" * 64] * 10))


def _put(rows: NDArray[Any], path: str) -> None:
    """Write *rows* whole or not at all: two workers may do so at once, with a third reading."""
    part = f"{path}.{os.getpid()}.part"
    rows.tofile(part)
    os.replace(part, path)
