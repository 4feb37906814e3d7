"""What a registry holds beside its blobs: repositories, tags, revisions, links and uploads.

:mod:`registry_gc.listing.reading` makes it of a storage.
"""

from __future__ import annotations

import msgspec

from registry_drivers.base import Reader
from registry_gc.digest import Names, key_of
from registry_gc.layout import V2
from registry_gc.listing.link_store import LinkStore, Revisions
from registry_gc.listing.links import Links
from registry_gc.listing.repositories import Signature, Upload
from registry_gc.listing.tags import TagFolders, Tags


class Damage(msgspec.Struct, frozen=True):
    """An object that is not what its path says."""

    path: str
    reason: str


class Catalog(msgspec.Struct):
    """What the registry holds beside its blobs. Owners are positions in ``repositories``.

    ``tag_index`` is owned by positions in ``tag_folders``, pairs of repository and tag.
    ``tags`` are those with a ``current/link``; a target of None means that it holds no digest.
    ``aliases``: what links of another name say: key of that name -> keys of what is stored.
    ``alias_links``: the paths of those links. ``misplaced``: of a repository, a file where a folder
    of manifests or tags is to be.
    """

    repositories: list[str]
    revisions: Revisions
    layers: LinkStore
    tag_folders: TagFolders
    tag_index: Links
    tags: Tags
    uploads: list[Upload]
    signatures: list[Signature]
    names: Names
    aliases: dict[bytes, set[bytes]]
    alias_links: set[str]
    damaged: list[Damage]
    strangers: int
    with_strangers: set[int]
    misplaced: dict[int, str] = msgspec.field(default_factory=dict)
    hollow: list[str] = msgspec.field(default_factory=list)
    unfinished: list[str] = msgspec.field(default_factory=list)

    def stored_as(self, digest: str) -> list[str]:
        """The other digests that links of *digest* hold, sorted by their keys."""
        return [self.names.text(key) for key in sorted(self.aliases.get(key_of(digest), ()))]


def is_registry(reader: Reader) -> bool:
    """Tell whether a registry has ever written below this root."""
    folders = reader.children(V2).folders
    return "blobs" in folders or "repositories" in folders
