"""Is every tag whole? Looks, changes nothing, and needs no lock; the registry may be in use.

What seems wrong is looked at once more by itself before it is told, since a listing of a registry
in use shows no single moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from registry_drivers.base import Page, Reader
from registry_drivers.errors import NotFound
from registry_drivers.wrappers import ReadOnly
from registry_gc.catalog import Catalog
from registry_gc.digest import empty_keys
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import REPOSITORIES, blob_path
from registry_gc.listing.blob_stream import stream_blobs
from registry_gc.listing.links import read_links
from registry_gc.listing.reading import read_catalog
from registry_gc.listing.tags import Tag
from registry_gc.policy import Policy
from registry_gc.verify.closure import close
from registry_gc.verify.content import wrong_content
from registry_gc.verify.library import Library
from registry_gc.verify.wholeness import Check, Fault, Leads, Stored, What

_LINKS_A_UNIT = 256


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something cannot be pulled. ``tag`` is the first that leads there, if any does.

    ``repository`` is None for a blob that no live manifest names, and where there is no tag at all.
    """

    repository: str | None
    tag: str | None
    digest: str | None
    what: What
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class MissingChild:
    """A manifest that an index lists and its repository does not have, as sparse indexes do.

    ``stored``: whether another repository has it.
    """

    repository: str
    tag: str | None
    index: str
    digest: str
    stored: bool


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong.

    ``broken``: the tags that cannot be pulled whole, as ``repository:tag``. ``changed``: those
    that were moved or deleted meanwhile, so that nothing can be said of them. ``bytes``: how many
    were read to check their digest.
    """

    repositories: int
    tags: int
    manifests: int
    blobs: int
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    missing_children: list[MissingChild] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


class TrueSizes(ReadOnly):
    """A reader whose listings give a file's size, not what deleting it frees."""

    __slots__ = ()

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[Page]:
        """As the wrapped storage, but that no file counts as shared."""
        for page in super().list(prefix, start_after=start_after):
            yield replace(page, shared=None)


def list_stored(reader: Reader, engine: Engine, catalog: Catalog, observer: Observer) -> Stored:
    """List ``blobs/``; the engine's reader must be one with :class:`TrueSizes`."""
    observer.phase("listing blobs", None, "blobs")
    keys, sizes = [empty_keys()], [np.empty(0, np.int64)]
    for batch in stream_blobs(reader, engine):
        catalog.names.others.update(batch.others)
        keys.append(batch.keys)
        sizes.append(batch.sizes)
        observer.advance(len(batch.keys))
    observer.finish()
    joined = np.concatenate(keys)
    order = np.argsort(joined, kind="stable")
    return Stored(joined[order], np.concatenate(sizes)[order])


def verify(
    reader: Reader, engine: Engine, observer: Observer, *, untagged: bool, content: bool
) -> Verified:
    """Look whether every tag is whole.

    :param reader: reads the same storage as *engine*, both through :class:`TrueSizes`.
    :param untagged: also look at manifests that no tag leads to.
    :param content: read every blob and every link that is needed, and check them. On a filesystem
        links are read in any case: a crash leaves files of the right size that hold nothing.
    :raises StorageError: something could not be read; nothing can be said then.
    """
    catalog = read_catalog(reader, engine, observer)
    library = Library(engine, catalog, observer)
    policy = Policy(delete_untagged=not untagged)
    closure = close(reader, library, catalog, policy, np.inf, hold=False)
    # After the manifests: a push writes blobs before what references them.
    stored = list_stored(reader, engine, catalog, observer)
    links = content or reader.capabilities.folders
    check = Check(catalog, library, closure, stored, links=links)
    if links:
        _check_links(engine, check, observer)
        _check_tags(engine, check)
    if content:
        _check_content(engine, check, observer)
    return _Result(reader, check).verified(sum(stored.all_sizes()) if content else 0)


class _Result:
    """Puts faults into words, after a second look at each."""

    def __init__(self, reader: Reader, check: Check) -> None:
        self.reader = reader
        self.check = check
        self.catalog = check.catalog
        self._leads: dict[int, Leads] = {}
        self._moved: dict[str, bool] = {}

    def verified(self, read: int) -> Verified:
        result = Verified(
            repositories=len(self.catalog.repositories),
            tags=len(self.catalog.tags),
            manifests=self.check.manifests,
            blobs=len(self.check.stored.keys),
            bytes=read,
        )
        if not result.tags and not len(self.catalog.revisions) and result.blobs:
            # Half of a registry is there: its other half may be on a disk that is not mounted.
            reason = (
                f"there is none, nor a link to any manifest, while {result.blobs} blobs are "
                "stored; is everything mounted?"
            )
            result.problems.append(Problem(None, None, None, What.TAG, REPOSITORIES, reason))
        broken: set[str] = set()
        order = sorted(self.check.faults, key=lambda fault: (self._name(fault) or "", *fault[2:]))
        for fault in order:
            holders = self.check.faults[fault]
            tags = self._tags(fault, holders)
            standing = [tag for tag in tags if not self._has_moved(tag)]
            if (tags and not standing) or self._is_there_now(fault):
                continue
            first = standing[0].name if standing else None
            digest = None if fault.what is What.TAG else fault.digest
            name = self._name(fault)
            result.problems.append(
                Problem(name, first, digest, fault.what, fault.path, fault.reason)
            )
            whole_needs = {tag.path for tag in self._tags(fault, holders, by_subject=False)}
            broken.update(f"{name}:{tag.name}" for tag in standing if tag.path in whole_needs)
        result.broken.extend(sorted(broken))
        result.missing_children.extend(self._missing_children())
        result.changed.extend(sorted(path for path, moved in self._moved.items() if moved))
        return result

    def _name(self, fault: Fault) -> str | None:
        return None if fault.repository < 0 else self.catalog.repositories[fault.repository]

    def _tags(self, fault: Fault, holders: set[bytes], *, by_subject: bool = True) -> list[Tag]:
        if fault.what is What.TAG:
            tags = self.check.tags[fault.repository]
            return [tag for tag in tags if tag.path == fault.path]
        return self._leads_in(fault.repository).tags(holders, by_subject=by_subject)

    def _leads_in(self, repository: int) -> Leads:
        if repository not in self._leads:
            self._leads[repository] = Leads(self.check, repository)
        return self._leads[repository]

    def _missing_children(self) -> Iterator[MissingChild]:
        text = self.catalog.names.text
        for absent in sorted(self.check.absent):
            tags = self._leads_in(absent.repository).tags([absent.parent], by_subject=True)
            yield MissingChild(
                self.catalog.repositories[absent.repository],
                tags[0].name if tags else None,
                text(absent.parent),
                text(absent.child),
                absent.stored,
            )

    # The second look

    def _has_moved(self, tag: Tag) -> bool:
        label = f"{self.catalog.repositories[tag.repository]}:{tag.name}"
        if label not in self._moved:
            found = read_links(self.reader, (tag.path,))
            self._moved[label] = not found or found[0][1] != tag.target
        return self._moved[label]

    def _is_there_now(self, fault: Fault) -> bool:
        if fault.what in (What.REVISION_LINK, What.LAYER_LINK):
            found = read_links(self.reader, (fault.path,))
            right = bool(found) and _is_right(self.check, fault.path, found[0][1])
            return right and not found[0][2]
        if fault.what is What.BLOB:
            return any(map(self._is_stored, self._names(fault)))
        return False

    def _names(self, fault: Fault) -> list[str]:
        assert fault.digest is not None
        aliases = self.catalog.aliases.get(self.catalog.names.key(fault.digest), ())
        return [fault.digest, *map(self.catalog.names.text, sorted(aliases))]

    def _is_stored(self, digest: str) -> bool:
        try:
            self.reader.stat(blob_path(digest))
        except NotFound:
            return False
        return True


def _digest_of(path: str) -> str:
    """The digest that a link's path names."""
    return ":".join(path.split("/")[-3:-1])


def _is_right(check: Check, path: str, target: str | None) -> bool:
    """Whether a link that holds *target* serves what its path names."""
    digest = _digest_of(path)
    return target is not None and (target == digest or check.is_alias(digest, target))


def _check_links(engine: Engine, check: Check, observer: Observer) -> None:
    """Read each link that a pull reads, and see that it names what its path does."""
    assert check.links is not None
    paths = sorted(check.links)
    observer.phase("reading links", len(paths), "links")
    for batch in _read(engine, paths):
        for path, target, reason in batch:
            if not reason and _is_right(check, path, target):
                continue
            digest = _digest_of(path)
            what = What.LAYER_LINK if "/_layers/" in path else What.REVISION_LINK
            holders = dict(check.holders_of(digest)).get(check.links[path], set())
            fault = Fault(check.links[path], what, digest, path, reason or f"holds {target}")
            check.add(fault, holders)
        observer.advance(len(batch))
    observer.finish()


def _check_tags(engine: Engine, check: Check) -> None:
    """Read the link of each tag that names something, and see that it does no more than that."""
    tags = {tag.path: tag for tag in check.catalog.tags if tag.target is not None}
    for batch in _read(engine, sorted(tags)):
        for path, target, reason in batch:
            if target is not None and reason:
                tag = tags[path]
                check.add(Fault(tag.repository, What.TAG, tag.name, path, reason), ())


def _read(engine: Engine, paths: Sequence[str]) -> Iterable[Sequence[tuple[str, str | None, str]]]:
    units = [tuple(paths[at : at + _LINKS_A_UNIT]) for at in range(0, len(paths), _LINKS_A_UNIT)]
    return engine.run(read_links, units)


def _check_content(engine: Engine, check: Check, observer: Observer) -> None:
    """Read every blob, also those that no tag needs.

    A registry that is told to take a blob which it has keeps the one it has: a rotten blob that
    nothing references today is what the next push of that layer will get.
    """
    digests = check.catalog.names.texts(check.stored.keys)
    for digest, reason in wrong_content(engine, digests, check.stored.all_sizes(), observer):
        path = blob_path(digest)
        holders = check.holders_of(digest) or [(-1, set())]
        for repository, keys in holders:
            check.add(Fault(repository, What.CONTENT, digest, path, reason), keys)
