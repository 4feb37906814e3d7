"""Schema 1 signatures on a filesystem, where the listing does not look into revision folders.

Registries 2.0 to 2.4 kept them as links beside the revision's own. Only a schema 1 manifest can
have them, or one that cannot be read any more; so only those folders are opened.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_gc.catalog import Catalog
from registry_gc.layout import revision_folder
from registry_gc.listing.ranges import Range
from registry_gc.listing.repositories import Signature, list_repositories
from registry_gc.manifest_reader import ManifestState
from registry_gc.manifests import ManifestKind
from registry_gc.references import Manifests


def read_signatures(reader: Reader, catalog: Catalog, manifests: Manifests) -> list[Signature]:
    """The signature links of every revision that may have some."""
    if not reader.capabilities.folders:
        return catalog.signatures
    # The listing does show those that have lost their revision's own link.
    found = list(catalog.signatures)
    ids = catalog.revisions.ids(manifests)
    suspects = manifests.of_kind(ManifestKind.SCHEMA_1) | ~manifests.in_state(ManifestState.OK)
    keys = catalog.revisions.keys
    for row in np.flatnonzero(suspects[ids]).tolist():
        owner = int(catalog.revisions.owner[row])
        digest = catalog.names.text(keys[row].tobytes())
        folder = revision_folder(catalog.repositories[owner], digest)
        batch = list_repositories(reader, Range((folder + "signatures/",)))
        found += [replace(signature, repository=owner) for signature in batch.signatures]
    # A revision that has lost its own link may have been shown by both.
    return list({signature.path: signature for signature in found}.values())
