"""What is to be deleted, and why. Pure: live sets in, rows out; time is an argument."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry_gc.catalog import Catalog
from registry_gc.compact.arrays import among, distinct, slices, within
from registry_gc.compact.key_index import KeyIndex
from registry_gc.digest import KEY, Keys, Names, pack
from registry_gc.layout import (
    blob_paths,
    layer_links,
    revision_link,
    tag_index_link,
)
from registry_gc.listing.blobs import BlobBatch
from registry_gc.listing.links import Links
from registry_gc.listing.repositories import Signature, Upload
from registry_gc.live_set import LiveSet
from registry_gc.mark import Marking
from registry_gc.marking.dead_layers import DeadLayers, Resolver, dead_layers
from registry_gc.marking.pairs import pairs_of
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.runs.rows import Row, RowKind, RowParts, Rows

FIRST_DATE = 31_536_000.0
"""Seconds since the epoch: 1971. A store that says 1970 of a blob, or nothing, knows no date."""


class DeadLinks(NamedTuple):
    """Rows for everything in ``repositories/``, by kind, and the repositories that they empty.

    The rows come some at a time, and once: there may be millions.
    """

    rows: RowParts
    emptied: frozenset[str]


_RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"
)


class Blobs(NamedTuple):
    """The dead blobs of one batch as rows, and the keys that only their age keeps, with that.

    ``undated``: how many of the dead ones have a date that is none, see :data:`FIRST_DATE`.
    """

    rows: Rows
    young: Keys
    modified: NDArray[np.float64]
    undated: int


def dead_blobs(batch: BlobBatch, live: LiveSet, cutoff: float, names: Names) -> Blobs:
    """Look which blobs of *batch* are not in the live set, and old enough."""
    names.others.update(batch.others)
    unreached = ~live.has(batch.keys)
    young = unreached & (batch.modified > cutoff)
    dead = np.flatnonzero(unreached & ~young)
    digests = names.texts(batch.keys[dead])
    rows = Rows(
        kind=RowKind.BLOB,
        reason="no live manifest references it",
        repositories=None,
        digests=digests,
        paths=blob_paths(digests),
        sizes=batch.sizes[dead].tolist(),
        modified=batch.modified[dead].tolist(),
    )
    undated = int(np.count_nonzero(batch.modified[dead] < FIRST_DATE))
    return Blobs(rows, batch.keys[young], batch.modified[young], undated)


def dead_links(
    catalog: Catalog, manifests: Manifests, marking: Marking, policy: Policy, cutoff: float
) -> DeadLinks:
    """Everything below ``repositories/`` that goes.

    :param cutoff: seconds since the epoch; nothing younger goes.
    """
    resolver = Resolver(catalog, marking)
    layers = dead_layers(catalog, manifests, marking, resolver)
    entries = _dead_tag_entries(catalog, manifests, marking, resolver)
    revisions = _dead_revisions(catalog, manifests, marking, resolver)
    signatures = _dead_signatures(catalog, manifests, marking, cutoff)
    uploads = abandoned_uploads(catalog, policy, cutoff)
    rows: Iterable[Iterable[Row]] = chain(
        [_tag_index_rows(catalog, entries)],
        [_signature_rows(catalog, signatures)],
        _revision_rows(catalog, manifests, revisions),
        _layer_rows(catalog, layers),
        [_upload_rows(catalog, uploads)],
    )
    kept = _kept_repositories(catalog, marking, revisions, layers, entries, signatures, uploads)
    emptied = (catalog.repositories[at] for at in np.flatnonzero(~kept).tolist())
    return DeadLinks(RowParts(rows), frozenset(emptied))


def _dead_tag_entries(
    catalog: Catalog, manifests: Manifests, marking: Marking, resolver: Resolver
) -> NDArray[np.bool_]:
    """Which entries of tags' indexes name a manifest that does not live in their repository."""
    index = catalog.tag_index
    tags = catalog.tags
    current = np.zeros(len(catalog.tag_folders), dtype=KEY)
    current[tags.folder[tags.known]] = tags.keys[tags.known]
    young = KeyIndex(marking.young)
    dead = np.ones(len(index), np.bool_)
    for rows in slices(len(index)):
        keys, folders = index.keys[rows], index.owner[rows]
        owners = catalog.tag_folders.owner[folders]
        ids = manifests.ids(keys)
        alive = (ids >= 0) & within(marking.live, pairs_of(owners, np.maximum(ids, 0)))
        alive |= current[folders] == keys
        alive |= resolver.keeps(keys, _entry_paths(catalog, rows.start))
        alive |= young.has(keys)
        alive |= among(owners, marking.held)
        dead[rows] = ~alive
    return dead


def _index_owners(catalog: Catalog) -> NDArray[np.int32]:
    return catalog.tag_folders.owner[catalog.tag_index.owner]


def _entry_paths(catalog: Catalog, first: int) -> Callable[[int, str], str]:
    """Where entries of the tags' indexes are, by their rows from *first* on."""

    def path(at: int, digest: str) -> str:
        owner, tag = catalog.tag_folders[int(catalog.tag_index.owner[first + at])]
        return tag_index_link(catalog.repositories[owner], tag, digest)

    return path


def _tag_index_rows(catalog: Catalog, dead: NDArray[np.bool_]) -> Iterator[Row]:
    index = catalog.tag_index
    rows = np.flatnonzero(dead)
    for some in (rows[part] for part in slices(len(rows))):
        digests = catalog.names.texts(index.keys[some])
        folders, times = index.owner[some].tolist(), index.modified[some].tolist()
        for digest, folder, modified in zip(digests, folders, times, strict=True):
            owner, tag = catalog.tag_folders[folder]
            repository = catalog.repositories[owner]
            yield Row(
                kind=RowKind.TAG_INDEX,
                repository=repository,
                digest=digest,
                path=tag_index_link(repository, tag, digest),
                size=0,
                modified=modified,
                reason=f"the tag {tag} pointed to it once",
            )


def _dead_signatures(
    catalog: Catalog, manifests: Manifests, marking: Marking, cutoff: float
) -> list[Signature]:
    """The signature links of revisions that do not live, linked still or no more."""
    signatures = catalog.signatures
    ids = manifests.ids(pack(catalog.names.key(link.revision) for link in signatures))
    owners = np.array([link.repository for link in signatures], np.int64)
    alive = (ids >= 0) & within(marking.live, pairs_of(owners, np.maximum(ids, 0)))
    alive |= among(owners, marking.held)
    # Of a digest that is young nothing goes.
    named = pack(catalog.names.key(link.digest) for link in signatures)
    alive |= KeyIndex(marking.young).has(named)
    alive |= np.array([link.modified > cutoff for link in signatures], np.bool_)
    return [signatures[row] for row in np.flatnonzero(~alive).tolist()]


def _signature_rows(catalog: Catalog, dead: Sequence[Signature]) -> Iterator[Row]:
    for signature in dead:
        yield Row(
            kind=RowKind.SIGNATURE,
            repository=catalog.repositories[signature.repository],
            digest=signature.digest,
            path=signature.path,
            size=0,
            modified=signature.modified,
            reason=f"it signs the dead manifest {signature.revision}",
        )


def _dead_revisions(
    catalog: Catalog, manifests: Manifests, marking: Marking, resolver: Resolver
) -> NDArray[np.bool_]:
    """Which revisions go."""
    revisions = catalog.revisions
    ids = revisions.ids(manifests)
    dead = np.zeros(len(revisions), np.bool_)
    for rows in slices(len(revisions)):
        dead[rows] = within(marking.dead, pairs_of(revisions.owner[rows], ids[rows]))
        if resolver:
            links = revisions.part(rows)
            dead[rows] &= ~resolver.keeps(links.keys, _revision_paths(catalog, links))
    return dead


def _revision_paths(catalog: Catalog, links: Links) -> Callable[[int, str], str]:
    return lambda at, digest: revision_link(catalog.repositories[links.owner[at]], digest)


def _revision_rows(
    catalog: Catalog, manifests: Manifests, dead: NDArray[np.bool_]
) -> Iterator[Rows]:
    """Dead revisions, referrers before their subjects.

    A run that dies after a subject's link would leave a referrer whose subject is not linked any
    more; if that lives in another repository, the referrer would live from then on.
    """
    revisions = catalog.revisions
    rows = np.flatnonzero(dead)
    ids = revisions.ids(manifests)[rows]
    depth = _subject_depths(manifests, distinct(ids))
    depths = np.zeros(len(ids), np.int64)
    referrers = np.flatnonzero(within(manifests.with_subject(), ids))
    depths[referrers] = [depth[number] for number in ids[referrers].tolist()]
    rows = rows[np.argsort(-depths, kind="stable")]
    for part in slices(len(rows)):
        links = revisions.part(rows[part])
        yield _link_rows(
            catalog,
            links,
            RowKind.REVISION,
            lambda owners, digests: list(map(revision_link, owners, digests)),
            "no tag of this repository leads to it",
        )


def _subject_depths(manifests: Manifests, ids: NDArray[np.int64]) -> dict[int, int]:
    """How many subjects follow one another from each of *ids* that has one."""
    referrers = ids[within(manifests.with_subject(), ids)]
    subjects = manifests.ids(manifests.subjects_of(referrers))
    subject_of = dict(zip(referrers.tolist(), subjects.tolist(), strict=True))
    depths: dict[int, int] = {}
    for referrer in subject_of:
        number, way = referrer, list[int]()
        # A digest cannot lie in its own content, so chains end; the bound is against rot.
        while number in subject_of and number not in depths and len(way) <= len(subject_of):
            way.append(number)
            number = subject_of[number]
        depth = depths.get(number, 0)
        for below in reversed(way):
            depth += 1
            depths[below] = depth
    return depths


def _layer_rows(catalog: Catalog, layers: DeadLayers) -> Iterator[Rows]:
    for links in layers.parts():
        yield _link_rows(
            catalog,
            links,
            RowKind.LAYER_LINK,
            layer_links,
            "no live manifest of this repository references it",
        )


def _link_rows(
    catalog: Catalog,
    links: Links,
    kind: RowKind,
    paths: Callable[[list[str], list[str]], list[str]],
    reason: str,
) -> Rows:
    repositories = [catalog.repositories[owner] for owner in links.owner.tolist()]
    digests = catalog.names.texts(links.keys)
    return Rows(
        kind=kind,
        reason=reason,
        repositories=repositories,
        digests=digests,
        paths=paths(repositories, digests),
        sizes=[0] * len(digests),
        modified=links.modified.tolist(),
    )


def _started(upload: Upload) -> float | None:
    """When the upload began, in seconds since the epoch; None when it does not say.

    As registries write it (RFC 3339), and not the other ways that ISO 8601 has.
    """
    if not _RFC_3339.fullmatch(upload.started_at or ""):
        return None
    try:
        began = datetime.fromisoformat(upload.started_at or "")
    except ValueError:
        return None
    return began.timestamp() if began.tzinfo is not None else None


def abandoned_uploads(catalog: Catalog, policy: Policy, cutoff: float) -> list[Upload]:
    """The uploads that are old enough to go."""
    return [upload for upload in catalog.uploads if _is_abandoned(upload, policy, cutoff)]


def _is_abandoned(upload: Upload, policy: Policy, cutoff: float) -> bool:
    """Tell whether an upload is older than the upload age; its age is its youngest part's."""
    if policy.upload_age is None:
        return False
    started = _started(upload)
    if started is None and not policy.upload_without_start:
        return False
    youngest = max(upload.youngest, started or 0.0)
    # The cut-off already lies one grace period back; uploads may need to be older still.
    return youngest <= cutoff - max(0.0, policy.upload_age - policy.grace)


def _upload_rows(catalog: Catalog, uploads: Sequence[Upload]) -> Iterator[Row]:
    for upload in uploads:
        reason = f"upload begun {upload.started_at or 'at an unknown time'} and not finished"
        # What tells its age goes last: a run that dies before would leave an upload of none.
        files = zip(upload.files, upload.sizes, strict=True)
        for path, size in sorted(files, key=lambda file: file[0].endswith("/startedat")):
            yield Row(
                kind=RowKind.UPLOAD,
                repository=catalog.repositories[upload.repository],
                digest=upload.uuid,
                path=path,
                size=size,
                modified=upload.youngest,
                reason=reason,
            )


def _kept_repositories(
    catalog: Catalog,
    marking: Marking,
    revisions: NDArray[np.bool_],
    layers: DeadLayers,
    entries: NDArray[np.bool_],
    signatures: Sequence[Signature],
    uploads: Sequence[Upload],
) -> NDArray[np.bool_]:
    """Tell of which repositories at least one file stays; the arguments tell what goes."""
    going = {(upload.repository, upload.uuid) for upload in uploads}
    signing = {signature.path for signature in signatures}
    kept = layers.kept.copy()
    kept[catalog.tags.owner] = True
    kept[[*catalog.with_strangers, *marking.held]] = True
    kept[catalog.revisions.owner[~revisions]] = True
    kept[_index_owners(catalog)[~entries]] = True
    kept[[link.repository for link in catalog.signatures if link.path not in signing]] = True
    staying = [
        upload.repository
        for upload in catalog.uploads
        if (upload.repository, upload.uuid) not in going
    ]
    kept[staying] = True
    return kept
