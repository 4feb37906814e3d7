"""Who uses the storage. Pure: an inventory in, figures out; the time is an argument.

A repository *uses* a blob that it links, or that a manifest it links leads to. ``logical`` are
the bytes of all that it uses, each blob once; ``unique`` of those that no other repository uses,
so what deleting the repository would free; ``shared`` is the rest. The same for a group of
repositories. So the logical bytes of all repositories together are more than what is stored.

A *pair* is a blob as one repository, or one group, uses it, packed as ``owner << 32 | row``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from registry_gc.compact.arrays import distinct
from registry_gc.digest import Keys, pack
from registry_gc.listing.repositories import Upload
from registry_gc.marking.holding import Hold
from registry_gc.marking.pairs import manifests_of, repositories_of
from registry_gc.usage.images import Image, largest_and_oldest_images
from registry_gc.usage.inventory import Inventory, Outlook

Pairs = NDArray[np.int64]
Bytes = NDArray[np.int64]

DAY = 86_400.0
AGES: tuple[tuple[str, float], ...] = (
    ("1 day", DAY),
    ("1 week", 7 * DAY),
    ("1 month", 30 * DAY),
    ("3 months", 91 * DAY),
    ("6 months", 182 * DAY),
    ("1 year", 365 * DAY),
    ("2 years", 730 * DAY),
)
"""The upper ends of the age classes, in seconds; there is one more class, without an end."""

_ROW = (1 << 32) - 1


class Share(msgspec.Struct, frozen=True):
    """What one repository, or one group of them, uses. Sizes in bytes, times since the epoch.

    ``untagged``: manifests that no tag leads to, whether or not they go. ``reclaimable``: what a
    collection would free of what is used here, abandoned uploads too; ``reclaimable_untagged``
    with ``-m``. A blob that several repositories use counts in each. ``oldest`` and ``newest``:
    pushes; None without any.
    """

    name: str
    repositories: int
    tags: int
    manifests: int
    untagged: int
    blobs: int
    logical: int
    unique: int
    reclaimable: int
    reclaimable_untagged: int
    uploads: int
    upload_bytes: int
    oldest: float | None
    newest: float | None
    held: bool

    @property
    def shared(self) -> int:
        """Bytes of what others use too."""
        return self.logical - self.unique


class Totals(msgspec.Struct, frozen=True):
    """The whole storage; what several repositories use counts once. Sizes in bytes.

    ``unused``: what no repository uses. ``logical``: the sum of all repositories' logical bytes.
    """

    repositories: int
    groups: int
    tags: int
    manifests: int
    untagged: int
    blobs: int
    stored: int
    logical: int
    shared: int
    unused_blobs: int
    unused: int
    uploads: int
    upload_bytes: int
    reclaimable_blobs: int
    reclaimable: int
    reclaimable_untagged_blobs: int
    reclaimable_untagged: int
    held: int
    damaged: int
    strangers: int


class AgeClass(msgspec.Struct, frozen=True):
    """The blobs that are younger than ``below`` and not in the class before; None: the rest.

    ``goes``: bytes that any collection would free; ``goes_untagged``: bytes that only ``-m``
    would.
    """

    label: str
    below: float | None
    blobs: int
    bytes: int
    goes: int
    goes_untagged: int


class Blob(msgspec.Struct, frozen=True):
    """One blob: by how many repositories it is used, one of them, and what becomes of it.

    ``fate``: ``kept``, ``goes`` or ``goes with -m``.
    """

    digest: str
    bytes: int
    modified: float
    repositories: int
    repository: str | None
    fate: str


class Usage(msgspec.Struct, frozen=True):
    """All figures. ``repositories`` and ``groups`` are in the order of their names."""

    made: float
    group_depth: int
    totals: Totals
    repositories: tuple[Share, ...]
    groups: tuple[Share, ...]
    ages: tuple[AgeClass, ...]
    largest_images: tuple[Image, ...]
    oldest_images: tuple[Image, ...]
    largest_blobs: tuple[Blob, ...]
    oldest_blobs: tuple[Blob, ...]
    holds: tuple[Hold, ...]


def usage_of(inventory: Inventory, group_depth: int, top: int, now: float) -> Usage:
    """Work out who uses what.

    :param inventory: with two outlooks, without and with the deletion of what is untagged.
    :param group_depth: how many first components of its name make a repository's group.
    :param top: how many of the largest and oldest to name.
    :param now: seconds since the epoch, by the storage's clock.
    """
    return _Reckoner(inventory, group_depth, top, now).usage()


def group_of(name: str, depth: int) -> str:
    """The group of the repository *name*: its first *depth* components, or fewer."""
    return "/".join(name.split("/")[:depth])


class _Counts(msgspec.Struct, frozen=True):
    """What is counted link by link: one number for each repository."""

    tags: Bytes
    manifests: Bytes
    untagged: Bytes
    uploads: Bytes
    upload_bytes: Bytes
    abandoned: Bytes
    abandoned_untagged: Bytes
    oldest: NDArray[np.float64]
    newest: NDArray[np.float64]
    held: NDArray[np.bool_]


class _Reckoner:
    def __init__(self, inventory: Inventory, group_depth: int, top: int, now: float) -> None:
        self.inventory = inventory
        self.catalog = inventory.catalog
        self.stored = inventory.stored
        self.now_goes, self.untagged_goes = inventory.outlooks
        self.depth = group_depth
        self.top = top
        self.now = now
        self.pairs = uses(inventory)
        self.rows = self.pairs & _ROW
        self.users = np.bincount(self.rows, minlength=len(self.stored))

    def usage(self) -> Usage:
        names = self.catalog.repositories
        groups = [group_of(name, self.depth) for name in names]
        group_names = sorted(set(groups))
        number = {name: at for at, name in enumerate(group_names)}
        group = np.array([number[name] for name in groups], dtype=np.int64)
        counts = self._counts()
        repositories = self._shares(names, np.arange(len(names)), self.pairs, self.users, counts)
        pairs = distinct((group[self.pairs >> 32] << 32) | self.rows)
        users = np.bincount(pairs & _ROW, minlength=len(self.stored))
        totals = self._totals(repositories, len(group_names))
        images = largest_and_oldest_images(self.inventory, self.top)
        return Usage(
            made=self.now,
            group_depth=self.depth,
            totals=totals,
            repositories=repositories,
            groups=self._shares(group_names, group, pairs, users, counts),
            ages=self._ages(),
            largest_images=images.largest,
            oldest_images=images.oldest,
            largest_blobs=self._blobs(_first(-self.stored.sizes, self.top)),
            oldest_blobs=self._blobs(_first(self.stored.modified, self.top)),
            holds=self.untagged_goes.marking.holds,
        )

    def _counts(self) -> _Counts:
        catalog = self.catalog
        count = len(catalog.repositories)
        tagged = catalog.tags.owner
        links = chain(
            [
                (catalog.revisions.owner, catalog.revisions.modified),
                (tagged, catalog.tags.modified),
            ],
            ((part.owner, part.modified) for part in catalog.layers.groups()),
        )
        oldest = np.full(count, np.inf)
        newest = np.full(count, -np.inf)
        for owner, modified in links:
            np.minimum.at(oldest, owner, modified)
            np.maximum.at(newest, owner, modified)
        held = np.zeros(count, np.bool_)
        held[list(self.untagged_goes.marking.held)] = True
        uploads = np.array([upload.repository for upload in catalog.uploads], np.int64)
        return _Counts(
            tags=np.bincount(tagged, minlength=count),
            manifests=np.bincount(catalog.revisions.owner, minlength=count),
            untagged=np.bincount(repositories_of(self.inventory.untagged), minlength=count),
            uploads=np.bincount(uploads, minlength=count),
            upload_bytes=_upload_bytes(catalog.uploads, count),
            abandoned=_upload_bytes(self.now_goes.uploads, count),
            abandoned_untagged=_upload_bytes(self.untagged_goes.uploads, count),
            oldest=oldest,
            newest=newest,
            held=held,
        )

    def _shares(
        self,
        names: Sequence[str],
        owner: NDArray[np.int64],
        pairs: Pairs,
        users: NDArray[np.int64],
        counts: _Counts,
    ) -> tuple[Share, ...]:
        """One share for each of *names*; *owner* says which of them each repository is in."""
        rows = pairs & _ROW
        sizes = self.stored.sizes[rows]
        bounds = np.searchsorted(pairs, np.arange(len(names) + 1, dtype=np.int64) << 32)

        def total(values: Bytes) -> list[int]:
            sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
            found: list[int] = (sums[bounds[1:]] - sums[bounds[:-1]]).tolist()
            return found

        def added(values: NDArray[np.int64]) -> list[int]:
            sums = np.zeros(len(names), np.int64)
            np.add.at(sums, owner, values)
            found: list[int] = sums.tolist()
            return found

        oldest = np.full(len(names), np.inf)
        newest = np.full(len(names), -np.inf)
        np.minimum.at(oldest, owner, counts.oldest)
        np.maximum.at(newest, owner, counts.newest)
        columns = zip(
            names,
            added(np.ones(len(owner), np.int64)),
            added(counts.tags),
            added(counts.manifests),
            added(counts.untagged),
            np.diff(bounds).tolist(),
            total(sizes),
            total(np.where(users[rows] == 1, sizes, 0)),
            map(int.__add__, total(_of(sizes, self.now_goes, rows)), added(counts.abandoned)),
            map(
                int.__add__,
                total(_of(sizes, self.untagged_goes, rows)),
                added(counts.abandoned_untagged),
            ),
            added(counts.uploads),
            added(counts.upload_bytes),
            map(_known, oldest.tolist()),
            map(_known, newest.tolist()),
            map(bool, added(counts.held.astype(np.int64))),
            strict=True,
        )
        return tuple(Share(*row) for row in columns)

    def _totals(self, repositories: Sequence[Share], groups: int) -> Totals:
        sizes = self.stored.sizes
        unused = self.users == 0
        now, untagged = self.now_goes, self.untagged_goes

        def freed(outlook: Outlook) -> int:
            uploads = sum(sum(upload.sizes) for upload in outlook.uploads)
            return int(sizes[outlook.dead].sum()) + uploads

        return Totals(
            repositories=len(repositories),
            groups=groups,
            tags=len(self.catalog.tags),
            manifests=len(self.catalog.revisions),
            untagged=sum(share.untagged for share in repositories),
            blobs=len(sizes),
            stored=int(sizes.sum()),
            logical=sum(share.logical for share in repositories),
            shared=int(sizes[self.users > 1].sum()),
            unused_blobs=int(np.count_nonzero(unused)),
            unused=int(sizes[unused].sum()),
            uploads=len(self.catalog.uploads),
            upload_bytes=sum(share.upload_bytes for share in repositories),
            reclaimable_blobs=int(np.count_nonzero(now.dead)),
            reclaimable=freed(now),
            reclaimable_untagged_blobs=int(np.count_nonzero(untagged.dead)),
            reclaimable_untagged=freed(untagged),
            held=len(untagged.marking.held),
            damaged=len(untagged.marking.damaged),
            strangers=self.inventory.strangers,
        )

    def _ages(self) -> tuple[AgeClass, ...]:
        sizes = self.stored.sizes
        ends = [seconds for _, seconds in AGES]
        place = np.searchsorted(ends, self.now - self.stored.modified, side="right")
        goes = self.now_goes.dead
        only_untagged = self.untagged_goes.dead & ~goes
        labels = [*AGES, ("older", None)]
        return tuple(
            AgeClass(
                label=label,
                below=below,
                blobs=int(np.count_nonzero(inside)),
                bytes=int(sizes[inside].sum()),
                goes=int(sizes[inside & goes].sum()),
                goes_untagged=int(sizes[inside & only_untagged].sum()),
            )
            for at, (label, below) in enumerate(labels)
            for inside in [place == at]
        )

    def _blobs(self, rows: NDArray[np.int64]) -> tuple[Blob, ...]:
        digests = self.catalog.names.texts(self.stored.keys[rows])
        found: list[Blob] = []
        for digest, row in zip(digests, rows.tolist(), strict=True):
            users = self.pairs[self.rows == row] if self.users[row] else self.pairs[:0]
            owner = self.catalog.repositories[int(users[0] >> 32)] if len(users) else None
            fate = "kept"
            if self.now_goes.dead[row]:
                fate = "goes"
            elif self.untagged_goes.dead[row]:
                fate = "goes with -m"
            size, modified = int(self.stored.sizes[row]), float(self.stored.modified[row])
            found.append(Blob(digest, size, modified, len(users), owner, fate))
        return tuple(found)


def _of(sizes: Bytes, outlook: Outlook, rows: NDArray[np.int64]) -> Bytes:
    """The sizes of what goes, and 0 for what stays."""
    return np.where(outlook.dead[rows], sizes, 0)


def _known(moment: float) -> float | None:
    return moment if np.isfinite(moment) else None


def _first(values: NDArray[np.generic], count: int) -> NDArray[np.int64]:
    """The rows of the *count* smallest values, in their order, equal ones in that of the keys."""
    if len(values) > count:
        # Sorting a million rows for ten of them takes ten times as long.
        edge = np.partition(values, count)[count]
        rows = np.flatnonzero(values <= edge)
    else:
        rows = np.arange(len(values))
    return rows[np.argsort(values[rows], kind="stable")][:count].astype(np.int64)


def _upload_bytes(uploads: Sequence[Upload], count: int) -> Bytes:
    sizes = np.zeros(count, np.int64)
    for upload in uploads:
        sizes[upload.repository] += sum(upload.sizes)
    return sizes


def uses(inventory: Inventory) -> Pairs:
    """Which repository uses which stored blob: sorted pairs, each once."""
    aliases = inventory.catalog.aliases
    parts = [np.empty(0, np.int64)]
    for owner, keys in _used(inventory):
        found, rows = inventory.stored.find(owner.astype(np.int64), keys, aliases)
        parts.append(distinct((found << 32) | rows))
    return distinct(np.concatenate(parts))


def _used(inventory: Inventory) -> Iterator[tuple[NDArray[np.integer], Keys]]:
    """Owner and key of everything that a repository links or leads to."""
    catalog, manifests = inventory.catalog, inventory.manifests
    for part in catalog.layers.groups():
        yield part.owner, part.keys
    yield catalog.revisions.owner, catalog.revisions.keys
    signed = [signature.repository for signature in catalog.signatures]
    keys = pack(catalog.names.key(signature.digest) for signature in catalog.signatures)
    yield np.array(signed, np.int64), keys
    # Without -m every revision is a root, so these are all manifests of each repository.
    live = inventory.outlooks[0].marking.live
    owners, ids = repositories_of(live), manifests_of(live)
    yield owners, manifests.batch.keys[ids]
    for source, targets, _ in manifests.targets_in_parts(ids):
        yield owners[source], targets
