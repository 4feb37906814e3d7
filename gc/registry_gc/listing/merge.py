"""What the units of a listing have found, put together.

Repositories are numbered in the order of their names, so that nothing later depends on which worker
was first.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from registry_drivers.base import Paths
from registry_gc.catalog import Catalog
from registry_gc.digest import Keys, Names
from registry_gc.listing.link_store import AT_ONCE, LinkStore, Revisions
from registry_gc.listing.links import Links, OddLink
from registry_gc.listing.repositories import (
    RepositoryBatch,
    Signature,
    Upload,
    hides_folder,
    repository_of,
)
from registry_gc.listing.tags import TagColumns, TagFolders, Tags


class Merge:
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
        self.folder_owner.append(number[batch.tag_folders.owner])
        self.folder_names.append(batch.tag_folders.names)
        self.tags.append(replace(batch.tags, folder=batch.tags.folder + np.int32(self.folders)))
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
