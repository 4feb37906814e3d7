"""From a short digest to the one that is meant."""

from __future__ import annotations

import re

import numpy as np

from registry_drivers.base import Reader
from registry_gc.catalog import Catalog
from registry_gc.digest import InvalidDigest, Keys, check_digest
from registry_gc.layout import BLOBS
from registry_gc.references import Manifests

ALGORITHMS = ("sha256:", "sha384:", "sha512:")
LOOKS_LIKE_DIGEST = re.compile(r"(?:sha256:|sha384:|sha512:)?[0-9a-f]{6,128}")


class Unknown(Exception):
    """There is nothing of that name, or more than one; the message says which."""


def whole_digest(text: str, reader: Reader, catalog: Catalog, manifests: Manifests) -> str:
    """The digest that *text* is, or begins; without an algorithm it is one of sha256.

    Looked for in the store, and among all that is linked or referenced.

    :raises Unknown: nothing begins so, or several do.
    """
    algorithm, colon, encoded = text.rpartition(":")
    beginning = f"{algorithm if colon else 'sha256'}:{encoded}"
    if not LOOKS_LIKE_DIGEST.fullmatch(text):
        raise Unknown(f"{text}: no digest, nor the beginning of one (6 hex digits at least)")
    try:
        return check_digest(beginning)
    except InvalidDigest:
        found = sorted(_beginning_with(beginning, reader, catalog, manifests))
    if len(found) == 1:
        return found[0]
    if not found:
        raise Unknown(f"{text}: nothing that is stored, linked or referenced begins so")
    raise Unknown(f"{text}: {len(found)} digests begin so, such as {', '.join(found[:3])}")


def _beginning_with(
    beginning: str, reader: Reader, catalog: Catalog, manifests: Manifests
) -> set[str]:
    algorithm, _, encoded = beginning.partition(":")
    folder = f"{BLOBS}{algorithm}/{encoded[:2]}/"
    found = {f"{algorithm}:{name}" for name in reader.children(folder).folders}
    found.update(catalog.names.others.values())
    if algorithm == "sha256":
        for keys in (
            catalog.revisions.keys,
            *(links.keys for links in catalog.layers.groups()),
            catalog.tag_index.keys,
            manifests.batch.keys,
            manifests.targets_of(np.arange(len(manifests)))[1],
        ):
            found.update(catalog.names.texts(_near(keys, encoded)))
    return {digest for digest in found if digest.startswith(beginning)}


def _near(keys: Keys, encoded: str) -> Keys:
    """Those of *keys* that share the first three bytes of *encoded*; not a text for each key."""
    if not len(keys):
        return keys
    table = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 32)[:, :3]
    rows = (table == np.frombuffer(bytes.fromhex(encoded[:6]), np.uint8)).all(axis=1)
    near: Keys = keys[rows]
    return near
