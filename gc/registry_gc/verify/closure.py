"""What is live, worked out a second time: slowly, in sets, and exactly.

A collection that is asked to verify compares what it would delete with this, and ``registry-gc
verify`` looks whether all of it is there. It shares with :mod:`registry_gc.mark` the listing and
nothing else: manifests are parsed by :mod:`registry_gc.verify.descriptors`, and digests are
compared whole. The rules are those of docs/what-is-deleted.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound
from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import distinct, within
from registry_gc.digest import Keys, pack
from registry_gc.layout import blob_path, revision_folder
from registry_gc.listing.links import Links
from registry_gc.listing.ranges import Range
from registry_gc.listing.repositories import Signature, list_repositories
from registry_gc.listing.tags import Tag
from registry_gc.policy import Policy
from registry_gc.verify.descriptors import Role
from registry_gc.verify.library import Library


@dataclass(slots=True)
class Closure:
    """What is live. ``live`` and ``linked``: keys of manifests, by number of their repository.

    ``held``: numbers of repositories of which nothing may go. ``young``: keys that something
    names which is younger than the cut-off. ``digests``: every live key, sorted, each once.
    """

    live: dict[int, set[bytes]]
    linked: dict[int, set[bytes]]
    held: set[int]
    young: set[bytes]
    digests: Keys


class Owned(Protocol):
    """Links of some kind, however they are kept."""

    @property
    def owner(self) -> NDArray[np.int32]:
        """Whose each is."""

    @property
    def keys(self) -> Keys:
        """What each names."""


def by_owner(links: Links | Owned) -> dict[int, set[bytes]]:
    """The keys of links by the number of who owns them."""
    found: dict[int, set[bytes]] = {}
    keys = links.keys.tobytes()
    for at, owner in enumerate(links.owner.tolist()):
        found.setdefault(owner, set()).add(keys[32 * at : 32 * at + 32])
    return found


def close(
    reader: Reader,
    library: Library,
    catalog: Catalog,
    policy: Policy,
    cutoff: float,
    young: Iterable[bytes] = (),
    *,
    hold: bool = True,
) -> Closure:
    """Follow everything that is live from its roots.

    :param cutoff: seconds since the epoch; what is younger is not dead.
    :param young: keys known to be young beside those that a link of the catalog shows.
    :param hold: hold repositories in which something cannot be read, as a collection does.
    :raises StorageError: a manifest could not be read.
    """
    return _Closing(reader, library, catalog, policy, cutoff, young, hold=hold).run()


@dataclass(slots=True)
class _Frontier:
    """What has become live and was not followed yet."""

    live: dict[int, set[bytes]] = field(default_factory=dict)
    todo: list[tuple[int, bytes]] = field(default_factory=list)

    def add(self, repository: int, key: bytes) -> None:
        known = self.live.setdefault(repository, set())
        if key not in known:
            known.add(key)
            self.todo.append((repository, key))

    def take(self) -> list[tuple[int, bytes]]:
        taken, self.todo = self.todo, []
        return taken


class _Closing:
    def __init__(
        self,
        reader: Reader,
        library: Library,
        catalog: Catalog,
        policy: Policy,
        cutoff: float,
        young: Iterable[bytes],
        *,
        hold: bool,
    ) -> None:
        self.reader = reader
        self.library = library
        self.catalog = catalog
        self.policy = policy
        self.cutoff = cutoff
        self.hold = hold
        self.key: Callable[[str], bytes] = catalog.names.key
        self.frontier = _Frontier()
        self.live = self.frontier.live
        self.held: set[int] = set()
        self.linked = by_owner(catalog.revisions)
        self.histories = {
            catalog.tag_folders[owner]: keys for owner, keys in by_owner(catalog.tag_index).items()
        }
        self.linked_anywhere = set().union(*self.linked.values())
        self.stored: dict[bytes, bool] = {}
        library.load(self.linked_anywhere)
        self.signatures = self._signatures()
        self.young = self._young(young)
        self.referrers = self._referrers()

    def run(self) -> Closure:
        self._begin()
        while frontier := self.frontier.take() or self._describing_content():
            self.library.load(key for _, key in frontier)
            self._load_entries(frontier)
            for repository, key in frontier:
                self._follow(repository, key)
        return Closure(self.live, self.linked, self.held, self.young, self._digests())

    def _signatures(self) -> list[Signature]:
        """The links of schema 1 signatures; the listing of a filesystem does not show them."""
        found = {link.path: link for link in self.catalog.signatures}
        if not self.reader.capabilities.folders:
            return list(found.values())
        for repository, keys in self.linked.items():
            for key in keys:
                if self.library[key].schema_1 or self.library[key].reason:
                    name, digest = self._name(repository), self.catalog.names.text(key)
                    unit = Range((revision_folder(name, digest) + "signatures/",))
                    for link in list_repositories(self.reader, unit).signatures:
                        found[link.path] = Signature(
                            repository, link.revision, link.digest, link.path, link.modified
                        )
        return list(found.values())

    def _young(self, more: Iterable[bytes]) -> set[bytes]:
        found = set(more)
        for links in (self.catalog.revisions, self.catalog.tag_index):
            keys = links.keys[links.modified > self.cutoff]
            found.update(map(np.void.tobytes, keys))
        for young in self.catalog.layers.young(self.cutoff):
            found.update(map(np.void.tobytes, young))
        for tag in self.catalog.tags:
            if tag.target and tag.modified > self.cutoff:
                found.add(self.key(tag.target))
        found.update(self.key(link.digest) for link in self.signatures if self._is_young(link))
        for name in found & self.catalog.aliases.keys():
            found |= self.catalog.aliases[name]
        return found

    def _is_young(self, link: Signature) -> bool:
        return link.modified > self.cutoff

    def _referrers(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """By each name of a subject: the linked manifests that describe it."""
        found: dict[bytes, list[tuple[int, bytes]]] = {}
        for repository, keys in self.linked.items():
            for key in keys:
                if subject := self.library[key].subject:
                    for name in (subject, *self.catalog.aliases.get(subject, ())):
                        found.setdefault(name, []).append((repository, key))
        return found

    def _name(self, repository: int) -> str:
        return self.catalog.repositories[repository]

    # Roots

    def _begin(self) -> None:
        broken: set[tuple[int, str]] = set()
        self.library.load(self.key(tag.target) for tag in self.catalog.tags if tag.target)
        for tag in self.catalog.tags:
            if tag.target is not None:
                self.frontier.add(tag.repository, self.key(tag.target))
            name = self._name(tag.repository)
            if self._is_broken(tag) and not self.policy.released(name, tag.target):
                broken.add((tag.repository, tag.name))
                self._hold(tag.repository)
        for repository, keys in self.linked.items():
            if not self.policy.delete_untagged:
                self._add_all(repository, keys)
            else:
                self._add_all(repository, keys & self.young)
            if any(self._is_damaged(repository, key) for key in keys):
                self._hold(repository)
        self._begin_with_histories(broken)

    def _is_broken(self, tag: Tag) -> bool:
        """Whether a tag says nothing, or what is neither stored nor in its own history."""
        if tag.target is None:
            return True
        key = self.key(tag.target)
        history = self.histories.get((tag.repository, tag.name), set())
        return not self.library[key].stored and key not in history

    def _begin_with_histories(self, broken: set[tuple[int, str]]) -> None:
        """Young entries of a tag's index are roots, and all of a tag that holds no digest."""
        index = self.catalog.tag_index
        young = (index.modified > self.cutoff).tolist()
        named: list[tuple[int, bytes]] = []
        for at, owner in enumerate(index.owner.tolist()):
            folder = self.catalog.tag_folders[owner]
            if young[at] or (self.hold and folder in broken):
                named.append((folder[0], index.keys[at].tobytes()))
        self.library.load(key for _, key in named)
        for repository, key in named:
            # Stored or not: what refers to it stays, as it does where the tag itself names it.
            self.frontier.add(repository, key)

    def _add_all(self, repository: int, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.frontier.add(repository, key)

    # Holding

    def _is_damaged(self, repository: int, key: bytes) -> bool:
        manifest = self.library[key]
        return bool(manifest.reason) and manifest.stored and not self._released(repository, key)

    def _released(self, repository: int, key: bytes) -> bool:
        return self.policy.released(self._name(repository), self.catalog.names.text(key))

    def _hold(self, repository: int) -> None:
        if self.hold and repository not in self.held:
            self.held.add(repository)
            self._add_all(repository, self.linked.get(repository, ()))

    def _is_stored(self, key: bytes) -> bool:
        if key not in self.stored:
            try:
                self.reader.stat(blob_path(self.catalog.names.text(key)))
                self.stored[key] = True
            except NotFound:
                self.stored[key] = False
        return self.stored[key]

    # Following

    def _load_entries(self, frontier: list[tuple[int, bytes]]) -> None:
        """Read what an index lists without saying whether it is a manifest."""
        self.library.load(
            part
            for _, key in frontier
            for role, part in self.library[key].parts()
            if role is Role.ENTRY
        )

    def _follow(self, repository: int, key: bytes) -> None:
        for owner, referrer in self.referrers.get(key, ()):
            if owner == repository or key not in self.linked.get(owner, ()):
                self.frontier.add(owner, referrer)
        if self._is_damaged(repository, key):
            self._hold(repository)
        for role, part in self.library[key].parts():
            if self._is_manifest(role, part):
                self.frontier.add(repository, part)
                if self._is_known_by_link(role, part):
                    self._add_links(part)
            if part in self.catalog.names.others and self._is_lost(repository, part):
                self._hold(repository)

    def _describing_content(self) -> list[tuple[int, bytes]]:
        """What has become live as its subject is, though as no manifest, and not linked there."""
        away = [
            (subject, owner, referrer)
            for subject, referrers in self.referrers.items()
            for owner, referrer in referrers
            if subject not in self.linked[owner] and referrer not in self.live.get(owner, ())
        ]
        if away:
            live = within(self._digests(), pack(subject for subject, _, _ in away)).tolist()
            for (_, owner, referrer), is_live in zip(away, live, strict=True):
                if is_live:
                    self.frontier.add(owner, referrer)
        return self.frontier.take()

    def _is_manifest(self, role: Role, part: bytes) -> bool:
        if role is Role.CHILD:
            return True
        if role is Role.ENTRY:
            return part in self.linked_anywhere or not self.library[part].reason
        # Only an index lists layers that somebody may have linked as manifests.
        return role is Role.LISTED and part in self.linked_anywhere

    def _is_known_by_link(self, role: Role, part: bytes) -> bool:
        """Whether nothing but a link tells that a part is a manifest; then its links stay."""
        return role is Role.LISTED or (role is Role.ENTRY and bool(self.library[part].reason))

    def _add_links(self, key: bytes) -> None:
        for owner, keys in self.linked.items():
            if key in keys:
                self.frontier.add(owner, key)

    def _is_lost(self, repository: int, key: bytes) -> bool:
        """Whether nobody knows under which name the bytes of a digest are stored."""
        names = (key, *self.catalog.aliases.get(key, ()))
        return not any(map(self._is_stored, names)) and not self._released(repository, key)

    # Result

    def _digests(self) -> Keys:
        parts: list[bytes] = [b"".join(self.young)]
        reached = set().union(*self.live.values())
        parts.append(b"".join(reached))
        parts += [self.library[key].targets for key in reached]
        for link in self.signatures:
            revision = self.key(link.revision)
            if link.repository in self.held or revision in self.live.get(link.repository, ()):
                parts.append(self.key(link.digest))
        layers = self.catalog.layers
        index_owner = [owner for owner, _ in self.catalog.tag_folders]
        for repository in self.held:
            parts += [links.keys.tobytes() for links in layers.of([repository])]
            entries = [index_owner[owner] == repository for owner in self.catalog.tag_index.owner]
            parts.append(self.catalog.tag_index.keys[np.array(entries, bool)].tobytes())
        digests = distinct(pack(parts))
        if self.catalog.aliases:
            known = {key.tobytes() for key in digests} & self.catalog.aliases.keys()
            more = [target for name in known for target in self.catalog.aliases[name]]
            digests = distinct(np.concatenate([digests, pack(more)]))
        return digests
