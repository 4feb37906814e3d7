"""What a closure needs, compared with what is there. Pure: listings and manifests in, faults out.

A pull needs for each manifest its bytes and its revision link in that repository, and for each
config and layer its bytes and its layer link. Sources: CNCF Distribution,
``registry/storage/linkedblobstore.go`` and ``manifeststore.go``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import locate
from registry_gc.digest import KEY, Keys, pack
from registry_gc.layout import blob_path, layer_link, revision_link
from registry_gc.listing.tags import Tag
from registry_gc.verify.closure import Closure
from registry_gc.verify.descriptors import UNSTATED, Role
from registry_gc.verify.library import Library, Manifest


class What(enum.StrEnum):
    """What is wrong."""

    TAG = "tag"
    MANIFEST = "manifest"
    BLOB = "blob"
    SIZE = "size"
    REVISION_LINK = "revision link"
    LAYER_LINK = "layer link"
    CONTENT = "content"


class Fault(NamedTuple):
    """Something that is wrong. ``repository`` is a number, -1 for what lies in none."""

    repository: int
    what: What
    digest: str | None
    path: str
    reason: str


class Absent(NamedTuple):
    """A manifest that an index lists and its repository does not have; both as keys.

    ``stored``: whether its bytes are there, as when another repository has it.
    """

    repository: int
    parent: bytes
    child: bytes
    stored: bool


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies under ``blobs/``: sorted keys and their sizes in bytes, None where unknown."""

    keys: Keys
    sizes: NDArray[np.int64] | None

    def sizes_of(self, keys: Keys) -> NDArray[np.int64]:
        """The size of each of *keys*, 0 where nobody knows it, -1 where it is not stored."""
        at, there = locate(self.keys, keys)
        if self.sizes is None or not len(self.keys):
            return np.where(there, 0, -1)
        return np.where(there, self.sizes[at], -1)

    def all_sizes(self) -> list[int]:
        """The sizes in the order of the keys; none where they are not known."""
        return [] if self.sizes is None else self.sizes.tolist()


class Check:
    """Compares what a closure needs with what is there.

    ``faults``: each with the keys of the manifests that need it. ``absent``: missing children.
    ``needed``: keys of the manifests that were looked at, by number of their repository.
    ``links``: where asked for, the path of each link that a pull reads, and the number of its
    repository.
    """

    def __init__(
        self,
        catalog: Catalog,
        library: Library,
        closure: Closure,
        stored: Stored,
        *,
        links: bool = False,
    ) -> None:
        self.catalog = catalog
        self.library = library
        self.closure = closure
        self.stored = stored
        self.faults: dict[Fault, set[bytes]] = {}
        self.absent: list[Absent] = []
        self.needed: dict[int, set[bytes]] = {}
        self.links: dict[str, int] | None = {} if links else None
        self._layers: tuple[int, set[bytes]] = -1, set()
        self._damaged = {damage.path: damage.reason for damage in catalog.damaged}
        self.tags: dict[int, list[Tag]] = {}
        for tag in catalog.tags:
            self.tags.setdefault(tag.repository, []).append(tag)
        self._run()

    @property
    def manifests(self) -> int:
        """How many manifests were looked at, counted for each repository."""
        return sum(map(len, self.needed.values()))

    def add(self, fault: Fault, holders: Iterable[bytes]) -> None:
        """Note a fault. What many manifests need is one fault in each repository."""
        self.faults.setdefault(fault, set()).update(holders)

    def _run(self) -> None:
        for tag in self.catalog.tags:
            if tag.target is None:
                reason = self._damaged.get(tag.path, "holds no digest")
                self.add(Fault(tag.repository, What.TAG, tag.name, tag.path, reason), ())
        for repository in sorted(self.closure.live):
            linked = self.closure.linked.get(repository, set())
            wanted = linked | {
                self.catalog.names.key(tag.target)
                for tag in self.tags.get(repository, ())
                if tag.target is not None
            }
            # A child that is not linked here cannot be pulled from here, and is told as missing.
            needed = self.needed[repository] = self.closure.live[repository] & wanted
            for key in sorted(needed):
                self._manifest(repository, key, linked)

    def _manifest(self, repository: int, key: bytes, linked: set[bytes]) -> None:
        manifest = self.library[key]
        self._link(repository, key, key, What.REVISION_LINK, there=key in linked)
        reason = manifest.reason
        if not reason and not self._is_stored(key):
            reason = "not in the store any more"
        if reason:
            digest = self.catalog.names.text(key)
            self.add(Fault(repository, What.MANIFEST, digest, blob_path(digest), reason), [key])
        elif manifest.roles:
            self._parts(repository, key, manifest, linked)

    def _parts(self, repository: int, key: bytes, manifest: Manifest, linked: set[bytes]) -> None:
        sizes = self.stored.sizes_of(np.frombuffer(manifest.targets, dtype=KEY)).tolist()
        for (role, part), stated, listed in zip(
            manifest.parts(), manifest.sizes, sizes, strict=True
        ):
            if role is Role.FOREIGN:
                continue
            size = listed if listed >= 0 else self._size_by_other_name(part)
            if self._is_blob(repository, role, part, linked):
                self._blob(repository, key, part, size)
            elif part not in linked:
                # No pull from here reads it, so what is stored of it is no fault here.
                self.absent.append(Absent(repository, key, part, size >= 0))
                continue
            if size >= 0 and stated not in (UNSTATED, size) and self.stored.sizes is not None:
                digest = self.catalog.names.text(part)
                reason = f"{size} bytes, while {stated} are stated"
                self.add(Fault(repository, What.SIZE, digest, blob_path(digest), reason), [key])

    def _is_blob(self, repository: int, role: Role, part: bytes, linked: set[bytes]) -> bool:
        """Whether *part* is to be served as a blob; else it is a manifest, or never was there."""
        if role is Role.ENTRY:
            return part not in linked and part in self._layers_of(repository)
        return role in (Role.CONFIG, Role.LAYER) or (role is Role.LISTED and part not in linked)

    def _layers_of(self, repository: int) -> set[bytes]:
        """The keys of a repository's layer links. Those of one at a time: there may be millions."""
        if self._layers[0] != repository:
            keys = b"".join(links.keys.tobytes() for links in self.catalog.layers.of([repository]))
            found = {keys[at : at + 32] for at in range(0, len(keys), 32)}
            self._layers = repository, found
        return self._layers[1]

    def _is_stored(self, key: bytes) -> bool:
        found = int(self.stored.sizes_of(pack([key]))[0])
        return found >= 0 or self._size_by_other_name(key) >= 0

    def _size_by_other_name(self, part: bytes) -> int:
        others = pack(sorted(self.catalog.aliases.get(part, ())))
        return int(self.stored.sizes_of(others).max(initial=-1))

    def _blob(self, repository: int, holder: bytes, part: bytes, size: int) -> None:
        there = part in self._layers_of(repository)
        self._link(repository, holder, part, What.LAYER_LINK, there=there)
        if size < 0:
            digest = self.catalog.names.text(part)
            others = sorted(self.catalog.aliases.get(part, ()))
            path = blob_path(self.catalog.names.text(others[0]) if others else digest)
            self.add(Fault(repository, What.BLOB, digest, path, "not in the store"), [holder])

    def _link(self, repository: int, holder: bytes, key: bytes, what: What, *, there: bool) -> None:
        """Look at the link by which a repository serves *key*; *there*: it was listed."""
        if there and not self._damaged and self.links is None:
            return
        name, digest = self.catalog.repositories[repository], self.catalog.names.text(key)
        path = (revision_link if what is What.REVISION_LINK else layer_link)(name, digest)
        if not there:
            reason = "not there: it cannot be pulled from this repository"
        elif path in self._damaged:
            reason = self._damaged[path]
        else:
            if self.links is not None:
                self.links[path] = repository
            return
        self.add(Fault(repository, what, digest, path, reason), [holder])

    def is_alias(self, digest: str, target: str) -> bool:
        """Whether a link named by another algorithm says under which name the bytes lie."""
        key = self.catalog.names.key
        known = self.catalog.aliases.get(key(digest), ())
        return not digest.startswith("sha256:") and key(target) in known

    def holders_of(self, digest: str) -> list[tuple[int, set[bytes]]]:
        """The manifests whose pulls read *digest*, by repository; itself too where it is one."""
        wanted = self.catalog.names.key(digest)
        names = {wanted} | {key for key, said in self.catalog.aliases.items() if wanted in said}
        naming = {
            key
            for key in set().union(*self.needed.values())
            if any(part in names for _, part in self.library[key].parts())
        }
        lacking: dict[int, set[bytes]] = {}
        for absent in self.absent:
            if absent.child in names:
                lacking.setdefault(absent.repository, set()).add(absent.parent)
        found = [
            (number, (keys & names) | (keys & naming) - lacking.get(number, set()))
            for number, keys in sorted(self.needed.items())
        ]
        return [(number, keys) for number, keys in found if keys]


class Leads:
    """Which tags of a repository lead to which of its manifests."""

    def __init__(self, check: Check, repository: int) -> None:
        self._tags = [
            (tag, check.catalog.names.key(tag.target))
            for tag in check.tags.get(repository, ())
            if tag.target is not None
        ]
        live = check.closure.live.get(repository, set())
        self._listing: dict[bytes, list[bytes]] = {}
        self._subject: dict[bytes, bytes] = {}
        for key in live:
            manifest = check.library[key]
            for _, part in manifest.parts():
                if part in live:
                    self._listing.setdefault(part, []).append(key)
            if manifest.subject:
                self._subject[key] = manifest.subject

    def tags(self, keys: Iterable[bytes], *, by_subject: bool) -> list[Tag]:
        """The tags that lead to any of *keys*, by name.

        :param by_subject: also from what is described to what describes it. A tag can be pulled
            whole although its signature cannot.
        """
        seen = set(keys)
        todo = [*seen]
        while todo:
            key = todo.pop()
            above = [*self._listing.get(key, ())]
            if by_subject and key in self._subject:
                above.append(self._subject[key])
            for other in above:
                if other not in seen:
                    seen.add(other)
                    todo.append(other)
        return [tag for tag, target in self._tags if target in seen]
