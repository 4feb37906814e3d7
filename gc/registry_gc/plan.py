"""What is to be deleted, and why. Pure: live sets in, rows out; time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry_gc.arrays import among, distinct, within
from registry_gc.catalog import Catalog
from registry_gc.digest import Keys, Names, pack, prefixes
from registry_gc.layout import (
    blob_path,
    layer_link,
    revision_link,
    tag_index_link,
)
from registry_gc.listing import BlobBatch, Upload
from registry_gc.live_set import LiveSet
from registry_gc.mark import Marking, manifests_of, repositories_of
from registry_gc.policy import Policy
from registry_gc.references import Manifests
from registry_gc.run_file import Kind, Row

# Spreads repositories over the 64 bits that a digest's prefix has; any odd number would do.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


class Links(NamedTuple):
    """Rows for everything in ``repositories/``, by kind, and the repositories that they empty."""

    rows: list[Row]
    emptied: frozenset[str]


class Blobs(NamedTuple):
    """The dead blobs of one batch as rows, and the keys that only their age keeps."""

    rows: list[Row]
    young: Keys


def dead_blobs(batch: BlobBatch, live: LiveSet, cutoff: float, names: Names) -> Blobs:
    """Look which blobs of *batch* are not in the live set, and old enough."""
    names.others.update(batch.others)
    unreached = ~live.has(batch.keys)
    young = unreached & (batch.modified > cutoff)
    dead = np.flatnonzero(unreached & ~young)
    digests = names.texts(batch.keys[dead])
    rows = [
        Row(
            kind=Kind.BLOB,
            repository=None,
            digest=digest,
            path=blob_path(digest),
            size=int(batch.sizes[at]),
            modified=float(batch.modified[at]),
            reason="no live manifest references it",
        )
        for digest, at in zip(digests, dead.tolist(), strict=True)
    ]
    return Blobs(rows, batch.keys[young])


def dead_links(
    catalog: Catalog, manifests: Manifests, marking: Marking, policy: Policy, cutoff: float
) -> Links:
    """Everything below ``repositories/`` that goes.

    :param cutoff: seconds since the epoch; nothing younger goes.
    """
    layers = _dead_layers(catalog, manifests, marking)
    entries = _dead_tag_entries(catalog, manifests, marking)
    revisions = _dead_revisions(catalog, manifests, marking)
    uploads = [upload for upload in catalog.uploads if _is_abandoned(upload, policy, cutoff)]
    rows = [
        *_tag_index_rows(catalog, entries),
        *_signature_rows(catalog, manifests, marking, cutoff),
        *_revision_rows(catalog, manifests, revisions),
        *_layer_rows(catalog, layers),
        *_upload_rows(catalog, uploads),
    ]
    kept = _kept_repositories(catalog, marking, revisions, layers, entries, uploads)
    emptied = (name for at, name in enumerate(catalog.repositories) if at not in kept)
    return Links(rows, frozenset(emptied))


def link_words(owner: NDArray[np.integer], keys: Keys) -> NDArray[np.uint64]:
    """One 64-bit word for a digest in a repository; sharing one can only keep a link."""
    mixed: NDArray[np.uint64] = prefixes(keys) ^ (owner.astype(np.uint64) * _SPREAD)
    return mixed


def needed_links(catalog: Catalog, manifests: Manifests, marking: Marking) -> NDArray[np.uint64]:
    """The words of all layer links that live manifests need in their repository, sorted."""
    ids = manifests_of(marking.live)
    owners = repositories_of(marking.live)
    source, targets, _ = manifests.targets_of(ids)
    needed_by = [owners, owners[source]]
    needed = [manifests.batch.keys[ids], targets]
    # One digest under two names: who needs either keeps the links of both.
    pairs = [(name, other) for name, stored in catalog.aliases.items() for other in stored]
    if pairs:
        order = np.argsort(targets)
        one, two = (pack(side) for side in zip(*pairs, strict=True))
        these, those = np.concatenate([one, two]), np.concatenate([two, one])
        first = np.searchsorted(targets, these, "left", sorter=order)
        last = np.searchsorted(targets, these, "right", sorter=order)
        for start, stop, other in zip(first.tolist(), last.tolist(), those, strict=True):
            needed_by.append(owners[source[order[start:stop]]])
            needed.append(np.repeat(other, stop - start))
    return distinct(link_words(np.concatenate(needed_by), np.concatenate(needed)))


def _dead_layers(catalog: Catalog, manifests: Manifests, marking: Marking) -> NDArray[np.bool_]:
    """Which layer links no live manifest of their repository needs."""
    layers = catalog.layers
    words = needed_links(catalog, manifests, marking)
    dead = ~within(words, link_words(layers.owner, layers.keys))
    dead &= ~within(marking.young, layers.keys)
    dead &= ~_resolves(
        catalog,
        marking,
        layers.keys,
        lambda at, digest: layer_link(catalog.repositories[layers.owner[at]], digest),
    )
    dead &= ~among(layers.owner, marking.held)
    return dead


def _resolves(
    catalog: Catalog, marking: Marking, keys: Keys, path: Callable[[int, str], str]
) -> NDArray[np.bool_]:
    """Tell which links of *keys* say what a live digest of another algorithm stands for.

    In whatever repository, of whatever kind, any of them may be the last one: without it the next
    run would not find what is stored for a reference, and delete it. And those that say something
    young stay, as any link to it does.
    """
    names = [
        name
        for name, stored in sorted(catalog.aliases.items())
        if within(marking.digests, pack([name]))[0] or within(marking.young, pack(stored)).any()
    ]
    if not names:
        return np.zeros(len(keys), dtype=np.bool_)
    found = within(pack(names), keys)
    for at in np.flatnonzero(found).tolist():
        digest = catalog.names.text(keys[at].tobytes())
        found[at] = path(at, digest) in catalog.alias_links
    return found


def _dead_tag_entries(
    catalog: Catalog, manifests: Manifests, marking: Marking
) -> NDArray[np.bool_]:
    """Which entries of tags' indexes name a manifest that does not live in their repository."""
    index = catalog.tag_index
    owners = _index_owners(catalog)
    ids = manifests.ids(index.keys)
    pairs = (owners << 32) | np.maximum(ids, 0)
    alive = (ids >= 0) & within(marking.live, pairs)
    current = {
        (tag.repository, tag.name): tag.target for tag in catalog.tags if tag.target is not None
    }
    targets = [current.get(folder) for folder in catalog.tag_folders]
    if any(target is not None for target in targets):
        keys = pack(
            b"\0" * 32 if target is None else catalog.names.key(target) for target in targets
        )
        alive |= keys[index.owner] == index.keys
    alive |= _resolves(
        catalog, marking, index.keys, lambda at, digest: _entry_path(catalog, at, digest)
    )
    alive |= within(marking.young, index.keys)
    alive |= among(owners, marking.held)
    dead: NDArray[np.bool_] = ~alive
    return dead


def _index_owners(catalog: Catalog) -> NDArray[np.int64]:
    owners = np.array([owner for owner, _ in catalog.tag_folders], dtype=np.int64)
    found: NDArray[np.int64] = owners[catalog.tag_index.owner]
    return found


def _entry_path(catalog: Catalog, at: int, digest: str) -> str:
    """The path of the entry in row *at* of the tags' indexes."""
    owner, tag = catalog.tag_folders[catalog.tag_index.owner[at]]
    return tag_index_link(catalog.repositories[owner], tag, digest)


def _tag_index_rows(catalog: Catalog, dead: NDArray[np.bool_]) -> Iterator[Row]:
    index = catalog.tag_index
    digests = catalog.names.texts(index.keys[dead])
    for digest, at in zip(digests, np.flatnonzero(dead).tolist(), strict=True):
        owner, tag = catalog.tag_folders[index.owner[at]]
        repository = catalog.repositories[owner]
        yield Row(
            kind=Kind.TAG_INDEX,
            repository=repository,
            digest=digest,
            path=tag_index_link(repository, tag, digest),
            size=0,
            modified=float(index.modified[at]),
            reason=f"the tag {tag} pointed to it once",
        )


def _signature_rows(
    catalog: Catalog, manifests: Manifests, marking: Marking, cutoff: float
) -> Iterator[Row]:
    """Signature links of revisions that do not live, linked still or no more."""
    for signature in catalog.signatures:
        (number,) = manifests.ids(pack([catalog.names.key(signature.revision)])).tolist()
        pair = np.array([signature.repository << 32 | max(number, 0)], np.int64)
        alive = number >= 0 and bool(within(marking.live, pair)[0])
        if alive or signature.repository in marking.held or signature.modified > cutoff:
            continue
        yield Row(
            kind=Kind.SIGNATURE,
            repository=catalog.repositories[signature.repository],
            digest=signature.digest,
            path=signature.path,
            size=0,
            modified=signature.modified,
            reason=f"it signs the dead manifest {signature.revision}",
        )


def _dead_revisions(catalog: Catalog, manifests: Manifests, marking: Marking) -> NDArray[np.bool_]:
    """Which revisions go."""
    revisions = catalog.revisions
    pairs = (revisions.owner.astype(np.int64) << 32) | manifests.ids(revisions.keys)
    dead = within(marking.dead, pairs)
    dead &= ~_resolves(
        catalog,
        marking,
        revisions.keys,
        lambda at, digest: revision_link(catalog.repositories[revisions.owner[at]], digest),
    )
    return dead


def _revision_rows(
    catalog: Catalog, manifests: Manifests, dead: NDArray[np.bool_]
) -> Iterator[Row]:
    """Dead revisions, referrers before their subjects.

    A run that dies after a subject's link would leave a referrer whose subject is not linked any
    more; if that lives in another repository, the referrer would live from then on.
    """
    revisions = catalog.revisions
    ids = manifests.ids(revisions.keys)
    digests = catalog.names.texts(revisions.keys[dead])
    depth = _subject_depths(manifests, distinct(ids[dead]))
    rows = zip(ids[dead].tolist(), digests, np.flatnonzero(dead).tolist(), strict=True)
    for _, digest, at in sorted(rows, key=lambda row: -depth.get(row[0], 0)):
        repository = catalog.repositories[revisions.owner[at]]
        yield Row(
            kind=Kind.REVISION,
            repository=repository,
            digest=digest,
            path=revision_link(repository, digest),
            size=0,
            modified=float(revisions.modified[at]),
            reason="no tag of this repository leads to it",
        )


def _subject_depths(manifests: Manifests, ids: NDArray[np.int64]) -> dict[int, int]:
    """How many subjects follow one another from each of *ids* that has one."""
    referrers = ids[within(manifests.with_subject(), ids)]
    subjects = manifests.ids(manifests.batch.subjects[referrers])
    subject_of = dict(zip(referrers.tolist(), subjects.tolist(), strict=True))
    depths: dict[int, int] = {}
    for referrer in subject_of:
        depth, number = 0, referrer
        # A digest cannot lie in its own content, so chains end; the bound is against rot.
        while number in subject_of and depth <= len(subject_of):
            number = subject_of[number]
            depth += 1
        depths[referrer] = depth
    return depths


def _layer_rows(catalog: Catalog, dead: NDArray[np.bool_]) -> Iterator[Row]:
    layers = catalog.layers
    digests = catalog.names.texts(layers.keys[dead])
    for digest, at in zip(digests, np.flatnonzero(dead).tolist(), strict=True):
        repository = catalog.repositories[layers.owner[at]]
        yield Row(
            kind=Kind.LAYER_LINK,
            repository=repository,
            digest=digest,
            path=layer_link(repository, digest),
            size=0,
            modified=float(layers.modified[at]),
            reason="no live manifest of this repository references it",
        )


def _started(upload: Upload) -> float | None:
    """When the upload began, in seconds since the epoch; None when it does not say."""
    try:
        began = datetime.fromisoformat(upload.started_at or "")
    except ValueError:
        return None
    return began.timestamp() if began.tzinfo is not None else None


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
                kind=Kind.UPLOAD,
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
    layers: NDArray[np.bool_],
    entries: NDArray[np.bool_],
    uploads: Sequence[Upload],
) -> set[int]:
    """The repositories in which at least one file stays; the arrays tell what goes."""
    going = {(upload.repository, upload.uuid) for upload in uploads}
    kept = {tag.repository for tag in catalog.tags} | catalog.with_strangers | set(marking.held)
    kept.update(catalog.revisions.owner[~revisions].tolist())
    kept.update(catalog.layers.owner[~layers].tolist())
    kept.update(_index_owners(catalog)[~entries].tolist())
    kept.update(
        upload.repository
        for upload in catalog.uploads
        if (upload.repository, upload.uuid) not in going
    )
    return kept
