"""Storage to repositories, tags, revisions, links and uploads; all but blobs.

One listing, cut into units (:mod:`registry_gc.listing.units`), then one read for each link that the
listing could not tell the content of. Repositories are numbered in the order of their names, so
that nothing later depends on which worker was first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import Paths, Reader
from registry_drivers.errors import InvalidPath, NotFound, TooLarge
from registry_gc.digest import Keys, Names, key_of
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import REPOSITORIES, V2
from registry_gc.listing.link_store import AT_ONCE, LinkStore, Revisions
from registry_gc.listing.links import VANISHED, Links, OddLink, read_links
from registry_gc.listing.ranges import Range, first_ranges
from registry_gc.listing.repositories import (
    RepositoryBatch,
    Signature,
    Upload,
    hides_folder,
    name_repositories,
    repository_of,
)
from registry_gc.listing.tag_memory import TagMemory
from registry_gc.listing.tags import TagColumns, TagFolders, Tags
from registry_gc.listing.units import cut_repositories, still_to_list
from registry_gc.listing.unlisted_tags import with_unlisted

_LINKS_A_UNIT = 128
_TAGS_AT_ONCE = 1 << 15  # bounds what of their paths is in memory


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


def read_catalog(
    reader: Reader, engine: Engine, observer: Observer, memory: TagMemory | None = None
) -> Catalog:
    """List ``repositories/`` and read the links that need it.

    :param memory: what earlier runs have read of tags.
    :raises StorageError: a folder or a link could not be read; nobody may go on without it.
    """

    def listed(units: list[Range]) -> Iterator[RepositoryBatch]:
        return (cut.batch for cut in engine.run(cut_repositories, units, still_to_list))

    return _catalog(reader, engine, observer, memory, listed)


def name_catalog(
    reader: Reader, engine: Engine, observer: Observer, memory: TagMemory | None = None
) -> Catalog:
    """As :func:`read_catalog`, with the ages of no more layer links than the listing brings.

    Those of the others are ``UNASKED_AGE`` until :mod:`registry_gc.link_ages` asks for them. A link
    of which nobody asks the age may be damaged or missing: its folder is there.
    """
    if not reader.capabilities.folders:
        return read_catalog(reader, engine, observer, memory)

    def listed(units: list[Range]) -> Iterator[RepositoryBatch]:
        return engine.run(name_repositories, [unit.prefixes for unit in units])

    return _catalog(reader, engine, observer, memory, listed)


def _catalog(
    reader: Reader,
    engine: Engine,
    observer: Observer,
    memory: TagMemory | None,
    listed: Callable[[list[Range]], Iterator[RepositoryBatch]],
) -> Catalog:
    observer.phase("listing repositories", None, "repositories")
    merge = _Merge()
    units, strays = first_ranges(reader, REPOSITORIES, engine.workers)
    merge.add_strays(strays, reader.capabilities.folders)
    for batch in listed(units):
        merge.add(batch)
        observer.advance(len(batch.repositories))
    observer.finish()
    catalog, odd = merge.catalog()
    if not reader.capabilities.folders:
        # A folder is what it says; the pages of an object store may lag behind.
        catalog.tags = with_unlisted(
            engine, catalog.repositories, catalog.tags, catalog.tag_index, observer
        )
    _read_tags(engine, catalog, observer, memory)
    catalog.tags.forget_stamps()
    learn_links(engine, catalog, odd)
    _read_upload_starts(engine, catalog)
    return catalog


class _Merge:
    """Puts batches together: local numbers of repositories and tags become global ones."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.revisions = LinkStore()
        self.layers = LinkStore()
        self.tag_index: list[Links] = []
        # A folder that was cut by the end of a batch comes twice here.
        self.folder_owner: list[NDArray[np.int32]] = []
        self.folder_names: list[Paths] = []
        self.folders = 0
        self.tags: list[TagColumns] = []
        self.uploads: dict[tuple[int, str], Upload] = {}
        self.signatures: list[Signature] = []
        self.odd: list[OddLink] = []
        self.names = Names()
        self.strangers = 0
        self.with_strangers: set[int] = set()
        self.misplaced: dict[int, str] = {}
        self.hollow: list[str] = []
        self.unfinished: list[str] = []

    def add(self, batch: RepositoryBatch) -> None:
        number = np.array(
            [self.numbers.setdefault(name, len(self.numbers)) for name in batch.repositories],
            dtype=np.int32,
        )
        self.names.others.update(batch.others)
        self.revisions.add(_owned_by(batch.revisions, number))
        self.layers.add(_owned_by(batch.layers, number))
        self._add_tags(batch, number)
        for upload in batch.uploads:
            owner = int(number[upload.repository])
            known = self.uploads.setdefault((owner, upload.uuid), Upload(owner, upload.uuid))
            known.files += upload.files
            known.sizes += upload.sizes
            known.youngest = max(known.youngest, upload.youngest)
        self.signatures += [
            replace(signature, repository=int(number[signature.repository]))
            for signature in batch.signatures
        ]
        self.odd += batch.odd
        self.strangers += batch.strangers
        self.with_strangers.update(int(number[owner]) for owner in batch.with_strangers)
        for owner, path in batch.misplaced.items():
            self.misplaced.setdefault(int(number[owner]), path)
        self.hollow += batch.hollow
        self.unfinished += batch.unfinished

    def _add_tags(self, batch: RepositoryBatch, number: NDArray[np.int32]) -> None:
        count = len(batch.tag_folders)
        if not count:
            return
        owners = np.array([owner for owner, _ in batch.tag_folders], dtype=np.int32)
        self.folder_owner.append(number[owners])
        self.folder_names.append(Paths.of([name for _, name in batch.tag_folders]))
        places = {folder: self.folders + at for at, folder in enumerate(batch.tag_folders)}
        key = self.names.key
        self.tags.append(
            TagColumns.of(
                [
                    (
                        places[tag.repository, tag.name],
                        tag.modified,
                        None if tag.target is None else key(tag.target),
                        tag.stamp,
                    )
                    for tag in batch.tags
                ]
            )
        )
        rows = np.arange(self.folders, self.folders + count, dtype=np.int32)
        self.tag_index.append(_owned_by(batch.tag_index, rows))
        self.folders += count

    def add_strays(self, paths: list[str], folders: bool) -> None:
        """Count files that lie where a registry has folders only."""
        self.strangers += len(paths)
        for path in paths:
            name = repository_of(path)
            if name is not None:
                number = self.numbers.setdefault(name, len(self.numbers))
                self.with_strangers.add(number)
                if folders and hides_folder(path):
                    self.misplaced.setdefault(number, path)

    def catalog(self) -> tuple[Catalog, list[OddLink]]:
        """Everything, renumbered in the order of names; and the links to be read."""
        order = sorted(self.numbers)
        rank = {name: position for position, name in enumerate(order)}
        renumber = np.array([rank[name] for name in self.numbers], dtype=np.int32)
        del rank
        self.layers.renumber(renumber)
        folders, retag = self._tag_folders(renumber)
        columns = TagColumns.joined(self.tags)
        # What is put together is not kept in parts: in a large registry both are much.
        self.tags.clear()
        columns = replace(columns, folder=retag[columns.folder])
        tag_index = _sorted(self.tag_index, retag)
        catalog = Catalog(
            repositories=order,
            revisions=Revisions(_ordered(self.revisions, renumber)),
            layers=self.layers,
            tag_folders=folders,
            tag_index=tag_index,
            tags=Tags(order, folders, self.names, columns),
            uploads=sorted(
                (
                    Upload(
                        int(renumber[upload.repository]),
                        upload.uuid,
                        upload.files,
                        upload.sizes,
                        upload.youngest,
                    )
                    for upload in self.uploads.values()
                ),
                key=lambda upload: (upload.repository, upload.uuid),
            ),
            signatures=[
                replace(signature, repository=int(renumber[signature.repository]))
                for signature in self.signatures
            ],
            names=self.names,
            aliases={},
            alias_links=set(),
            damaged=[],
            strangers=self.strangers,
            with_strangers={int(renumber[owner]) for owner in self.with_strangers},
            misplaced={int(renumber[owner]): path for owner, path in self.misplaced.items()},
            hollow=sorted(self.hollow),
            unfinished=self.unfinished,
        )
        return catalog, self.odd

    def _tag_folders(self, renumber: NDArray[np.int32]) -> tuple[TagFolders, NDArray[np.int32]]:
        """All folders of tags, each once, by repository and name; and their old numbers' new."""
        if not self.folders:
            return TagFolders.empty(), np.empty(0, np.int32)
        owner = renumber[np.concatenate(self.folder_owner)]
        found = [name for names in self.folder_names for name in names]
        order = np.argsort(owner, kind="stable")
        edges = np.flatnonzero(np.diff(owner[order])) + 1
        bounds = [0, *edges.tolist(), len(order)]
        rows = order.tolist()
        kept: list[int] = []
        retag = [0] * len(rows)
        for start, stop in zip(bounds, bounds[1:], strict=False):
            last: str | None = None
            for name, row in sorted((found[row], row) for row in rows[start:stop]):
                if name != last:
                    kept.append(row)
                    last = name
                retag[row] = len(kept) - 1
        self.folder_owner.clear()
        self.folder_names.clear()
        names = Paths.of([found[row] for row in kept])
        return TagFolders(owner[kept], names), np.array(retag, dtype=np.int32)


def _owned_by(links: Links, numbers: NDArray[np.int32]) -> Links:
    return Links(numbers[links.owner], links.keys, links.modified) if len(links) else links


def _sorted(parts: list[Links], renumber: NDArray[np.int32]) -> Links:
    """All parts as one, ordered by owner and key."""
    if not any(map(len, parts)):
        return Links.empty()
    owner = renumber[np.concatenate([part.owner for part in parts])]
    keys = np.concatenate([part.keys for part in parts])
    modified = np.concatenate([part.modified for part in parts])
    parts.clear()
    order = _order(owner, keys)
    return Links(owner[order], keys[order], modified[order])


def _ordered(store: LinkStore, renumber: NDArray[np.int32]) -> Links:
    """As :func:`_sorted`, and never more than one copy in memory; *store* is closed."""
    store.renumber(renumber)
    links = store.by_owner()
    store.close()
    start = 0
    while start < len(links):
        # As many whole repositories as are AT_ONCE links, or one that is more.
        last = int(links.owner[min(start + AT_ONCE, len(links)) - 1])
        whole = last == links.owner[start] or start + AT_ONCE >= len(links)
        stop = int(np.searchsorted(links.owner, last, "right" if whole else "left"))
        rows = slice(start, stop)
        order = _order(links.owner[rows], links.keys[rows])
        for column in (links.owner, links.keys, links.modified):
            column[rows] = column[rows][order]
        start = stop
    return links


def _order(owner: NDArray[np.int32], keys: Keys) -> NDArray[np.intp]:
    # By the first half of the keys; more than that two digests never share by chance, and the
    # order of those that do on purpose is all that is open then.
    words = keys.view(">u8").reshape(-1, 4)
    return np.lexsort((words[:, 1].astype(np.uint64), words[:, 0].astype(np.uint64), owner))


def _read_all(
    engine: Engine, paths: list[str], observer: Observer | None = None
) -> dict[str, tuple[str | None, str]]:
    units = [tuple(paths[at : at + _LINKS_A_UNIT]) for at in range(0, len(paths), _LINKS_A_UNIT)]
    contents: dict[str, tuple[str | None, str]] = {}
    for batch in engine.run(read_links, units):
        contents.update((path, (digest, reason)) for path, digest, reason in batch)
        if observer is not None:
            observer.advance(len(batch))
    return contents


def _read_tags(
    engine: Engine, catalog: Catalog, observer: Observer, memory: TagMemory | None
) -> None:
    """Learn the targets of the tags that the listing did not tell."""
    tags = catalog.tags
    unknown = np.flatnonzero(~tags.known)
    if memory is not None and len(unknown):
        memory.recall(tags, unknown, catalog.names)
        unknown = np.flatnonzero(~tags.known)
    if not len(unknown):
        return
    observer.phase("reading tags", len(unknown), "tags")
    for start in range(0, len(unknown), _TAGS_AT_ONCE):
        rows = unknown[start : start + _TAGS_AT_ONCE].tolist()
        paths = [tags.path(row) for row in rows]
        contents = _read_all(engine, paths, observer)
        # The others of them have been read by now; a store that was behind may have caught up.
        contents |= _read_all(engine, [path for path in paths if path not in contents])
        for row, path in zip(rows, paths, strict=True):
            # A tag that was listed and cannot be found now was deleted, or is being written
            # anew: nobody knows where to, so it counts as one that holds no digest.
            target, reason = contents.get(path, (None, VANISHED))
            if target is None:
                catalog.damaged.append(Damage(path, reason))
            else:
                tags.learn(row, catalog.names.key(target))
        if memory is not None:
            memory.remember(tags, rows, paths, catalog.names)
    observer.finish()


def learn_links(engine: Engine, catalog: Catalog, odd: list[OddLink]) -> None:
    """Learn aliases from links of another algorithm, and which links are damaged."""
    contents = _read_all(engine, [link.path for link in odd])
    for link in sorted(odd, key=lambda link: link.path):
        if link.path not in contents:
            continue
        target, reason = contents[link.path]
        if target is None:
            catalog.damaged.append(Damage(link.path, reason))
        elif target != link.named:
            named = catalog.names.key(link.named)
            catalog.aliases.setdefault(named, set()).add(catalog.names.key(target))
            catalog.alias_links.add(link.path)
            if link.named.startswith("sha256:"):
                catalog.damaged.append(Damage(link.path, f"holds {target}"))


def _read_upload_starts(engine: Engine, catalog: Catalog) -> None:
    """Learn when each upload began, for those that still say so."""
    starts = {
        path: upload
        for upload in catalog.uploads
        for path in upload.files
        if path.endswith(f"/_uploads/{upload.uuid}/startedat")
    }
    paths = sorted(starts)
    units: Iterable[tuple[str, ...]] = [
        tuple(paths[at : at + _LINKS_A_UNIT]) for at in range(0, len(paths), _LINKS_A_UNIT)
    ]
    for batch in engine.run(read_texts, units):
        for path, text in batch:
            starts[path].started_at = text


def read_texts(reader: Reader, paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """Read small text files; those that have vanished are left out."""
    found: list[tuple[str, str]] = []
    for path in paths:
        try:
            found.append((path, reader.read(path, limit=4096).decode("utf-8", "replace").strip()))
        except (NotFound, TooLarge, InvalidPath):
            # A read-only registry still purges uploads; and what is no time, or lies under a key
            # that is no path, says nothing.
            continue
    return found
