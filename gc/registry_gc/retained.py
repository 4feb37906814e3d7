"""What the storage keeps of what was deleted: leftovers, and uploads in parts.

Object stores may keep versions of deleted objects, which no ordinary listing shows, and parts of
uploads that nobody finished. What is looked at here is told in the report; what is to go becomes
rows of the run file. Pure but for the listings; only a sweep deletes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import msgspec

from registry_drivers.versions import Keep, Leftover, MultipartUpload, VersionReader
from registry_gc.digest import InvalidDigest, Names, pack, stored_digest
from registry_gc.layout import BLOBS, OWN, REPOSITORIES, SHA256_BLOBS
from registry_gc.live_set import LiveSet
from registry_gc.locking.holder import LOCK
from registry_gc.policy import Policy
from registry_gc.runs.rows import Row, RowKind

_CHUNK = 1000  # a page
_MANY_BLOBS = 50_000
"""From here on blobs are listed by the 256 beginnings of their digests, side by side."""
_WORKERS = 16


class Retained(msgspec.Struct):
    """What deleted objects take. ``bytes`` can be freed, ``soft_deleted`` bytes not yet.

    ``recoverable``: keys of live blobs that are gone, and of which old versions are left. They
    are damage that an operator can undo, so they are told and never purged. ``own`` is what a dry
    run foretells of objects that are to go themselves: all their versions, and the bytes of those
    beside what their rows count.
    """

    objects: int = 0
    bytes: int = 0
    soft_deleted: int = 0
    young: int = 0
    recoverable: tuple[str, ...] = ()
    own: int = 0
    own_bytes: int = 0


def shows_leftovers(keeps: Sequence[Keep], *, purge: bool) -> bool:
    """Whether listing all versions is worth its requests: one more for each page of keys.

    Who wants to purge wants to know; a setting that is off now may have been on before.
    """
    return purge or any(keep.listed and keep.code != "unknown" for keep in keeps)


Listing = Callable[[str], Iterator[Leftover]]
"""Of a prefix, what :class:`~registry_drivers.versions.VersionReader` tells of its keys."""


def leftovers_of(listing_of: Listing, blobs: int) -> Iterator[list[Leftover]]:
    """All leftovers of a registry, and of what is ours, some at a time.

    :param blobs: how many blobs there are.
    """
    whole = [REPOSITORIES, OWN, BLOBS]
    if blobs >= _MANY_BLOBS:
        # Not repositories: of those that are gone altogether no listing knows the name.
        whole = [REPOSITORIES, OWN, f"{BLOBS}sha512/"]
        whole += [f"{SHA256_BLOBS}{number:02x}/" for number in range(256)]
    listings = deque(listing_of(prefix) for prefix in whole)
    under_way: deque[tuple[Iterator[Leftover], Future[list[Leftover]]]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="registry-gc-versions") as pool:
        while listings or under_way:
            # No more of them than are at work: each chunk that waits is an object for each key.
            while listings and len(under_way) < _WORKERS:
                listing = listings.popleft()
                under_way.append((listing, pool.submit(_chunk, listing)))
            listing, chunk = under_way.popleft()
            if found := chunk.result():
                listings.appendleft(listing)
                yield found


def _chunk(listing: Iterator[Leftover]) -> list[Leftover]:
    return [*islice(listing, _CHUNK)]


def foretell(found: Sequence[Leftover], going: Mapping[str, int], retained: Retained) -> None:
    """Add to *retained* what a real run would delete of *found*, beside the objects themselves.

    :param going: bytes that each object which is to go is counted with.
    """
    for left in found:
        if left.path in going:
            retained.own += 1
            retained.own_bytes += max(0, left.bytes - going[left.path])


def leftover_rows(
    leftovers: Sequence[Leftover], live: LiveSet, names: Names, cutoff: float, found: Retained
) -> list[Row]:
    """What of *leftovers* may go; adds them all up in *found*."""
    rows: list[Row] = []
    for left in leftovers:
        if left.path == LOCK or left.path.startswith(f"{LOCK}."):
            # Whoever deletes any versions holds the lock, and its key has a current object then.
            continue
        if is_live(left.path, live, names):
            found.recoverable += (left.path,)
            continue
        found.soft_deleted += left.retained
        if not left.versions:
            continue
        found.objects += 1
        found.bytes += left.bytes
        if left.youngest > cutoff:
            found.young += 1
            continue
        rows.append(
            Row(
                kind=RowKind.VERSIONS,
                repository=None,
                digest=None,
                path=left.path,
                size=left.bytes,
                modified=left.youngest,
                reason=f"{left.versions} versions of what is deleted already",
            )
        )
    return rows


def is_live(path: str, live: LiveSet, names: Names) -> bool:
    """Whether *path* is that of a blob that something live references."""
    parts = path.removeprefix(BLOBS).split("/")
    if not path.startswith(BLOBS) or len(parts) != 4:
        return False
    try:
        digest = stored_digest(parts[0], parts[2])
    except InvalidDigest:
        return False
    return bool(live.has(pack([names.key(digest)]))[0])


def multipart_rows(versions: VersionReader, policy: Policy, cutoff: float) -> list[Row]:
    """Uploads in parts that are older than the upload age; they stay where the policy keeps all.

    :param cutoff: seconds since the epoch, one grace period back.
    """
    if policy.upload_age is None:
        return []
    before = cutoff - max(0.0, policy.upload_age - policy.grace)
    return [
        Row(
            kind=RowKind.MULTIPART,
            repository=None,
            digest=upload.upload_id,
            path=f"{upload.path}{_UPLOAD}{upload.upload_id}",
            size=upload.bytes or 0,
            modified=upload.youngest,
            reason="an upload in parts that nobody finished",
        )
        for upload in versions.abandoned_uploads(REPOSITORIES, before=before)
        if "/_uploads/" in upload.path
    ]


_UPLOAD = "?uploadId="


def multipart_of(path: str) -> MultipartUpload:
    """The upload that the row of *path* is about."""
    key, _, upload = path.rpartition(_UPLOAD)
    return MultipartUpload(key, upload, 0.0, 0.0, None)
