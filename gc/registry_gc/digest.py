"""Digests as text, and as 32-byte keys that fit into arrays.

A registry holds millions of digests, nearly all of them sha256. A *key* is 32 bytes: of a sha256
digest its bytes, of any other the BLAKE2 hash of its text, which is kept aside in :class:`Names`.
So every digest has the same width, and two share a key only by a collision. (Not sha256 of the
text: anybody can push a blob that consists of a digest's text, and so has that very sha256.)

Source of the grammar: OCI image specification, ``descriptor.md``, "Digests".
"""

from __future__ import annotations

import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

KEY = np.dtype("V32")
Keys = NDArray[np.void]

_PREFIX = np.frombuffer(b"sha256:", np.uint8)
_MANY = 64  # texts from which columns are worth their overhead
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_ANY = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}

LINK_SIZE = len("sha256:") + 64
"""Bytes of a well-formed link file: a sha256 digest, no newline."""


class InvalidDigest(ValueError):
    """A text that is no digest."""


def check_digest(text: str) -> str:
    """Return *text* when it is a digest.

    :raises InvalidDigest: it is not, or its length is not that of its algorithm.
    """
    if _SHA256.fullmatch(text):
        return text
    if _ANY.fullmatch(text):
        algorithm, _, encoded = text.partition(":")
        wanted = _HEX_LENGTHS.get(algorithm)
        if wanted is None or re.fullmatch(f"[0-9a-f]{{{wanted}}}", encoded):
            return text
    raise InvalidDigest(f"not a digest: {text[:100]!r}")


def stored_digest(algorithm: str, encoded: str) -> str:
    """The digest that a folder ``<algorithm>/<encoded>`` stands for.

    Only algorithms that registries store under; a folder of any other is a stranger, and what
    is not understood is never deleted.

    :raises InvalidDigest: it stands for none.
    """
    if algorithm not in _HEX_LENGTHS:
        raise InvalidDigest(f"not an algorithm that registries store under: {algorithm[:100]!r}")
    return check_digest(f"{algorithm}:{encoded}")


def key_of(text: str) -> bytes:
    """The key of a digest that :func:`check_digest` has passed."""
    if text.startswith("sha256:"):
        return bytes.fromhex(text[7:])
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def check_digests(texts: Sequence[str]) -> None:
    """Raise what :func:`check_digest` raises for any of *texts*; six at once cost as one."""
    if plain_keys(texts) is None:
        for text in texts:
            check_digest(text)


def plain_keys(texts: Sequence[str]) -> bytes | None:
    """The keys of *texts*, one after the other, if all are sha256 digests; else None.

    None also where there is no text at all.
    """
    count = len(texts)
    joined = "".join(texts)
    # No text is longer than 71 and all are so together: each is. "s" is no hex digit, so what is
    # left after taking out "sha256:" is hex only if each text begins with it and has it once.
    if not count or len(joined) != 71 * count or max(map(len, texts)) != 71:
        return None
    if count >= _MANY:
        return _keys_of_columns(joined)
    encoded = joined.replace("sha256:", "")
    if joined[::71] != "s" * count or len(encoded) != 64 * count:
        return None
    try:
        keys = bytes.fromhex(encoded)
    except ValueError:
        return None
    # fromhex takes capitals and blanks; a digest has neither.
    return keys if keys.hex() == encoded else None


def _keys_of_columns(joined: str) -> bytes | None:
    """:func:`plain_keys` of texts of 71 characters each; of thousands at once in half the time."""
    if not joined.isascii():
        return None
    rows = np.frombuffer(joined.encode(), np.uint8).reshape(-1, 71)
    if (rows[:, :7] != _PREFIX).any():
        return None
    encoded = rows[:, 7:].tobytes()
    try:
        keys = binascii.unhexlify(encoded)
    except ValueError:
        return None
    # unhexlify takes capitals; a digest has none.
    return keys if binascii.hexlify(keys) == encoded else None


class Names:
    """The texts of the keys that are not sha256 digests themselves."""

    __slots__ = ("others",)

    def __init__(self, others: Mapping[bytes, str] | None = None) -> None:
        self.others: dict[bytes, str] = dict(others or {})

    def key(self, text: str) -> bytes:
        """The key of a checked digest; remembers its text where the key does not tell it."""
        key = key_of(text)
        if not text.startswith("sha256:"):
            self.others[key] = text
        return key

    def keys(self, texts: Sequence[str]) -> bytes:
        """The keys of checked digests, one after the other; see :meth:`key`."""
        keys = plain_keys(texts)
        return b"".join(map(self.key, texts)) if keys is None else keys

    def text(self, key: bytes) -> str:
        """The digest that *key* stands for."""
        return self.others.get(key) or "sha256:" + key.hex()

    def texts(self, keys: Keys) -> list[str]:
        """The digests of many keys, in their order."""
        joined = keys.tobytes().hex()
        plain = ["sha256:" + joined[at : at + 64] for at in range(0, len(joined), 64)]
        if not self.others:
            return plain
        return [self.others.get(bytes.fromhex(text[7:]), text) for text in plain]


def pack(keys: Iterable[bytes]) -> Keys:
    """Keys as an array of dtype ``V32``, shape ``(n,)``."""
    return np.frombuffer(b"".join(keys), dtype=KEY)


def empty_keys() -> Keys:
    """No keys."""
    return np.empty(0, dtype=KEY)


def prefixes(keys: Keys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key as a big-endian number, so that order is that of the keys."""
    if not len(keys):
        return np.empty(0, dtype=np.uint64)
    words = np.ascontiguousarray(keys).view(">u8").reshape(len(keys), 4)
    return words[:, 0].astype(np.uint64)
