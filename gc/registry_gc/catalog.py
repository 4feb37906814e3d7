"""Storage to repositories, tags, revisions, links and uploads; and blobs, as a stream.

One listing, cut into units (:mod:`registry_gc.listing`), then one read for each link that the
listing could not tell the content of. Repositories are numbered in the order of their names, so
that nothing later depends on which worker was first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np
from msgspec.structs import replace

from registry_drivers.base import Reader
from registry_drivers.errors import NotFound, TooLarge
from registry_gc.digest import Keys, Names
from registry_gc.engine import Engine
from registry_gc.events import Observer
from registry_gc.layout import BLOBS, REPOSITORIES, SHA256_BLOBS, V2
from registry_gc.listing import (
    BlobBatch,
    Links,
    OddLink,
    RepositoryBatch,
    Signature,
    Tag,
    Upload,
    list_blobs,
    list_repositories,
    name_blobs,
    read_links,
    repository_of,
    stat_blobs,
)
from registry_gc.live_set import LiveSet
from registry_gc.ranges import Range, first_ranges, split_rest

_LINKS_A_UNIT = 128
_BLOBS_A_UNIT = 4096


class Damage(msgspec.Struct, frozen=True):
    """An object that is not what its path says."""

    path: str
    reason: str


class Catalog(msgspec.Struct):
    """What the registry holds beside its blobs. Owners are positions in ``repositories``.

    ``tag_index`` is owned by positions in ``tag_folders``, pairs of repository and tag.
    ``tags`` are those with a ``current/link``; a target of None means that it holds no digest.
    ``aliases``: what links of another name say: key of that name -> keys of what is stored.
    ``alias_links``: the paths of those links.
    """

    repositories: list[str]
    revisions: Links
    layers: Links
    tag_folders: list[tuple[int, str]]
    tag_index: Links
    tags: list[Tag]
    uploads: list[Upload]
    signatures: list[Signature]
    names: Names
    aliases: dict[bytes, set[bytes]]
    alias_links: set[str]
    damaged: list[Damage]
    strangers: int
    with_strangers: set[int]
    hollow: list[str] = msgspec.field(default_factory=list)


def is_registry(reader: Reader) -> bool:
    """Tell whether a registry has ever written below this root."""
    folders = reader.children(V2).folders
    return "blobs" in folders or "repositories" in folders


def read_catalog(reader: Reader, engine: Engine, observer: Observer) -> Catalog:
    """List ``repositories/`` and read the links that need it.

    :raises StorageError: a folder or a link could not be read; nobody may go on without it.
    """
    observer.phase("listing repositories", None, "repositories")
    merge = _Merge()
    units, strays = first_ranges(reader, REPOSITORIES, engine.workers)
    merge.add_strays(strays)
    for batch in engine.run(
        list_repositories,
        units,
        lambda batch: split_rest(reader, batch.rest) if batch.rest else (),
    ):
        merge.add(batch)
        observer.advance(len(batch.repositories))
    observer.finish()
    catalog, odd = merge.catalog()
    _read_tags(engine, catalog, observer)
    _read_odd_links(engine, catalog, odd)
    _read_upload_starts(engine, catalog)
    return catalog


def stream_blobs(
    reader: Reader, engine: Engine, expected: int = 0, live: LiveSet | None = None
) -> Iterator[BlobBatch]:
    """List ``blobs/``; each batch is dropped once it was looked at.

    :param expected: about how many there are, as far as that is known.
    :param live: on a filesystem, where a file's size and age cost a look at each, those of live
        blobs are not asked for: such blobs are only counted.
    :raises StorageError: a folder could not be listed.
    """
    if live is not None and reader.capabilities.folders:
        yield from _stream_unreached(reader, engine, live)
        return
    units, strays = first_ranges(reader, BLOBS, engine.workers, expected)
    if strays:
        yield replace(_NO_BLOBS, strangers=len(strays))
    yield from engine.run(
        list_blobs, units, lambda batch: split_rest(reader, batch.rest) if batch.rest else ()
    )


def _stream_unreached(reader: Reader, engine: Engine, live: LiveSet) -> Iterator[BlobBatch]:
    """Blobs of which the folder's name is not live; the others are counted by that name."""
    top = reader.children(BLOBS)
    sha256 = reader.children(SHA256_BLOBS)
    buckets = [f"{SHA256_BLOBS}{name}/" for name in sha256.folders if len(name) == 2]
    whole = [f"{SHA256_BLOBS}{name}/" for name in sha256.folders if len(name) != 2]
    whole += [f"{BLOBS}{name}/" for name in top.folders if name != "sha256"]
    size = max(1, -(-len(buckets) // (8 * engine.workers)))
    units = [tuple(buckets[at : at + size]) for at in range(0, len(buckets), size)]
    unreached: list[Keys] = []
    counted = 0
    for keys, odd in engine.run(name_blobs, units):
        dead = keys[~live.has(keys)]
        counted += len(keys) - len(dead)
        unreached.append(dead)
        whole += odd
    yield replace(_NO_BLOBS, strangers=len(top.files) + len(sha256.files), live=counted)
    keys = np.concatenate([_NO_BLOBS.keys, *unreached])
    size = max(1, min(_BLOBS_A_UNIT, -(-len(keys) // (4 * engine.workers))))
    yield from engine.run(
        stat_blobs, [keys[at : at + size].tobytes() for at in range(0, len(keys), size)]
    )
    yield from engine.run(list_blobs, [Range((folder,)) for folder in sorted(whole)])


_NO_BLOBS = BlobBatch(
    keys=Links.empty().keys,
    sizes=np.empty(0, np.int64),
    modified=np.empty(0, np.float64),
    others={},
    strangers=0,
    hollow=[],
    rest=None,
)


class _Merge:
    """Puts batches together: local numbers of repositories and tags become global ones."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.tag_numbers: dict[tuple[int, str], int] = {}
        self.links: dict[str, list[Links]] = {"revisions": [], "layers": [], "tag_index": []}
        self.tags: list[Tag] = []
        self.uploads: dict[tuple[int, str], Upload] = {}
        self.signatures: list[Signature] = []
        self.odd: list[OddLink] = []
        self.names = Names()
        self.strangers = 0
        self.with_strangers: set[int] = set()
        self.hollow: list[str] = []

    def add(self, batch: RepositoryBatch) -> None:
        number = [self.numbers.setdefault(name, len(self.numbers)) for name in batch.repositories]
        tag_number = [
            self.tag_numbers.setdefault((number[owner], tag), len(self.tag_numbers))
            for owner, tag in batch.tag_folders
        ]
        self.links["revisions"].append(_owned_by(batch.revisions, number))
        self.links["layers"].append(_owned_by(batch.layers, number))
        self.links["tag_index"].append(_owned_by(batch.tag_index, tag_number))
        self.tags += [_renumbered(tag, number) for tag in batch.tags]
        for upload in batch.uploads:
            owner = number[upload.repository]
            known = self.uploads.setdefault((owner, upload.uuid), Upload(owner, upload.uuid))
            known.files += upload.files
            known.sizes += upload.sizes
            known.youngest = max(known.youngest, upload.youngest)
        self.signatures += [
            replace(signature, repository=number[signature.repository])
            for signature in batch.signatures
        ]
        self.odd += batch.odd
        self.names.others.update(batch.others)
        self.strangers += batch.strangers
        self.with_strangers.update(number[owner] for owner in batch.with_strangers)
        self.hollow += batch.hollow

    def add_strays(self, paths: list[str]) -> None:
        """Count files that lie where a registry has folders only."""
        self.strangers += len(paths)
        for path in paths:
            name = repository_of(path)
            if name is not None:
                number = self.numbers.setdefault(name, len(self.numbers))
                self.with_strangers.add(number)

    def catalog(self) -> tuple[Catalog, list[OddLink]]:
        """Everything, renumbered in the order of names; and the links to be read."""
        order = sorted(self.numbers)
        rank = {name: position for position, name in enumerate(order)}
        renumber = [rank[name] for name in self.numbers]
        tags = sorted((renumber[owner], tag) for owner, tag in self.tag_numbers)
        tag_rank = {folder: position for position, folder in enumerate(tags)}
        retag = [tag_rank[renumber[owner], tag] for owner, tag in self.tag_numbers]
        catalog = Catalog(
            repositories=order,
            revisions=_sorted(self.links["revisions"], renumber),
            layers=_sorted(self.links["layers"], renumber),
            tag_folders=tags,
            tag_index=_sorted(self.links["tag_index"], retag),
            tags=sorted(
                (_renumbered(tag, renumber) for tag in self.tags),
                key=lambda tag: (tag.repository, tag.name),
            ),
            uploads=sorted(
                (
                    Upload(
                        renumber[upload.repository],
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
                replace(signature, repository=renumber[signature.repository])
                for signature in self.signatures
            ],
            names=self.names,
            aliases={},
            alias_links=set(),
            damaged=[],
            strangers=self.strangers,
            with_strangers={renumber[owner] for owner in self.with_strangers},
            hollow=sorted(self.hollow),
        )
        return catalog, self.odd


def _renumbered(tag: Tag, numbers: list[int]) -> Tag:
    # dataclasses.replace takes eight times as long, and there is one for each tag.
    return Tag(numbers[tag.repository], tag.name, tag.path, tag.modified, tag.target)


def _owned_by(links: Links, numbers: list[int]) -> Links:
    if not len(links):
        return links
    return Links(np.array(numbers, dtype=np.int32)[links.owner], links.keys, links.modified)


def _sorted(parts: list[Links], renumber: list[int]) -> Links:
    """All parts as one, ordered by owner and key."""
    filled = [part for part in parts if len(part)]
    if not filled:
        return Links.empty()
    owner = np.array(renumber, dtype=np.int32)[np.concatenate([part.owner for part in filled])]
    keys = np.concatenate([part.keys for part in filled])
    modified = np.concatenate([part.modified for part in filled])
    order = np.argsort(keys, kind="stable")
    order = order[np.argsort(owner[order], kind="stable")]
    return Links(owner[order], keys[order], modified[order])


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


def _read_tags(engine: Engine, catalog: Catalog, observer: Observer) -> None:
    """Learn the targets of the tags that the listing did not tell."""
    unknown = [tag.path for tag in catalog.tags if tag.target is None]
    if not unknown:
        return
    observer.phase("reading tags", len(unknown), "tags")
    contents = _read_all(engine, unknown, observer)
    observer.finish()
    known: list[Tag] = []
    for tag in catalog.tags:
        if tag.target is not None:
            known.append(tag)
        else:
            # A tag that was listed and cannot be found now was deleted, or is being written
            # anew: nobody knows where to, so it counts as one that holds no digest.
            target, reason = contents.get(tag.path, (None, "vanished while it was read"))
            known.append(Tag(tag.repository, tag.name, tag.path, tag.modified, target))
            if target is None:
                catalog.damaged.append(Damage(tag.path, reason))
            else:
                catalog.names.key(target)
    catalog.tags = known


def _read_odd_links(engine: Engine, catalog: Catalog, odd: list[OddLink]) -> None:
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
        except (NotFound, TooLarge):
            # A read-only registry still purges uploads; and what is no time says nothing.
            continue
    return found
